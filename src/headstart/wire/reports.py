"""What the `headstart` command asks of a service, and is told."""

from __future__ import annotations

import msgspec

from headstart.wire.farm import FarmReport
from headstart.wire.remotes import RemoteCounts


class Control(msgspec.Struct, tag=True):
    """What `headstart status`, `quiesce`, `resume` and `stop` ask for; answered by a `Report` when it is done.

    `command` is `"status"`, `"quiesce"`, `"quiesce now"`, `"resume"`, `"stop"`, or `"events"`, answered by `Events`.
    """

    command: str


class Supersede(msgspec.Struct, tag=True):
    """A service of a newer `protocol` has come: end once there are no clients. Means the same in all versions."""

    protocol: int


class ClientReport(msgspec.Struct):
    """One client. `waiting` counts its requests that are not answered yet; `since` is monotonic seconds."""

    pid: int
    name: str
    since: float
    waiting: int


class RunningReport(msgspec.Struct):
    """One kernel that is being compiled. `clients` want it; `memory` is its worker's in bytes, tools not counted."""

    name: str
    target: str
    worker: int
    started: float
    clients: int
    memory: int


class Report(msgspec.Struct, tag=True):
    """The state of a service.

    Attributes:
        pid: of the service.
        now: `time.monotonic()` of all times in here.
        started: when the service was.
        persistent: whether it stays when its last client leaves.
        quiesced: whether it starts no compiles.
        workers: how many there are.
        limit: how many there may be now.
        workers_memory: bytes.
        queued: jobs by class: awaited, early, background.
        requests: asked for so far; of these
        stored: came from the store,
        remote: from a store of other hosts,
        joined: were under way already, for somebody else or an earlier request,
        compiled: were compiled, of these
        taken_over: up to where another's compile could be taken over;
        failed: failed.
        clients: who is there.
        running: what is being compiled.
        describers: processes with torch in them.
        remotes: what the stores of other hosts were good for; one for each setting that a client had.
        farm: came from a farm;
        farms: what farms were good for; one for each setting that a client had.
    """

    pid: int
    now: float
    started: float
    persistent: bool
    quiesced: bool
    workers: int
    limit: int
    workers_memory: int
    queued: list[int]
    requests: int
    stored: int
    joined: int
    compiled: int
    failed: int
    clients: list[ClientReport]
    running: list[RunningReport]
    taken_over: int = 0
    describers: int = 0
    remote: int = 0
    remotes: list[RemoteCounts] = []
    farm: int = 0
    farms: list[FarmReport] = []


class Happened(msgspec.Struct, frozen=True):
    """One event of a service's, and what was done about it, as text. `at` is monotonic seconds."""

    at: float
    event: str
    actions: list[str]


class Events(msgspec.Struct, tag=True):
    """The latest of them, oldest first; `now` is `time.monotonic()`."""

    now: float
    events: list[Happened]
