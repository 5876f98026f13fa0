"""What happens: the one way into the scheduler. Times (`now`) are monotonic seconds; `worker` is a worker's number.

Clients and the user make the first half, the executor the second. Each class has the arguments of the method of
`Scheduler` that it leads to, where they are described.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from headstart.service.queue import Kind, Room, Size, Ticket, Urgency

# What clients do, and the user says


@dataclass(frozen=True)
class Announced:
    """A client will ask for jobs of `kind`."""

    kind: Kind
    client: int


@dataclass(frozen=True)
class Requested:
    """A client wants the entry of `key`."""

    ticket: Ticket
    key: str
    kind: Kind
    payload: object
    urgency: Urgency
    now: float
    estimate: float | None = None
    time_limit: float | None = None
    memory_limit: int | None = None
    unclaimed: bool = False
    place: tuple[Hashable, str] | None = None
    size: Size | None = None


@dataclass(frozen=True)
class Awaited:
    """Somebody is blocked on `key`."""

    key: str
    now: float


@dataclass(frozen=True)
class Obtained:
    """The entry of `key` has come from elsewhere; `outcome` is what its clients are told."""

    key: str
    outcome: object
    now: float


@dataclass(frozen=True)
class Returned:
    """A job that was claimed is this host's, or nobody is to wait for another host, or a farm, any longer."""

    key: str
    now: float


@dataclass(frozen=True)
class Offered:
    """A farm has room for so many jobs, by toolchain."""

    farm: Hashable
    rooms: Mapping[str, Room]


@dataclass(frozen=True)
class LentBegun:
    """A job that was lent is being compiled on a farm."""

    key: str


@dataclass(frozen=True)
class Elsewhere:
    """Another host makes a job that was to be claimed; it will be obtained, or return."""

    key: str
    now: float


@dataclass(frozen=True)
class Withdrawn:
    """A client does not want `key` any more."""

    ticket: Ticket
    key: str
    now: float


@dataclass(frozen=True)
class ClientLeft:
    """A client is gone."""

    client: int
    now: float


@dataclass(frozen=True)
class Quiesced:
    """Nothing is to be compiled; with `kill`, not even to the end."""

    kill: bool


@dataclass(frozen=True)
class Resumed:
    """Compiles may begin again."""

    now: float


@dataclass(frozen=True)
class Resized:
    """There may be `limit` workers."""

    limit: int
    now: float


@dataclass(frozen=True)
class Ticked:
    """Time has passed."""

    now: float


# What happens to processes


@dataclass(frozen=True)
class ZygoteReady:
    """Workers of `kind` can be forked."""

    kind: Kind
    now: float


@dataclass(frozen=True)
class ZygoteUnable:
    """No workers of `kind` can ever be forked."""

    kind: Kind
    why: str
    now: float


@dataclass(frozen=True)
class ZygoteLost:
    """A zygote died, and its workers with it."""

    kind: Kind
    why: str
    now: float


@dataclass(frozen=True)
class WorkerForked:
    """A worker waits for its first job."""

    worker: int
    now: float


@dataclass(frozen=True)
class ForkFailed:
    """The machine gives no more processes."""

    worker: int
    why: str
    now: float


@dataclass(frozen=True)
class Finished:
    """A worker is done with its job; `outcome` is what it sent."""

    worker: int
    outcome: object
    now: float


@dataclass(frozen=True)
class Reached:
    """A worker's compile has come to `suffix`."""

    worker: int
    suffix: str


@dataclass(frozen=True)
class StoodAside:
    """A worker has given its compile back."""

    worker: int
    suffix: str
    prefix: bytes
    now: float


@dataclass(frozen=True)
class WorkerGone:
    """A worker has ended, or was ended, with everything that it started."""

    worker: int
    status: int
    stage: str
    last_words: str
    now: float


@dataclass(frozen=True)
class OverMemory:
    """A worker uses more memory than its job may."""

    worker: int
    evidence: str


@dataclass(frozen=True)
class Stalled:
    """A worker has been stopped from outside."""

    worker: int


FromExecutor = (
    ZygoteReady
    | ZygoteUnable
    | ZygoteLost
    | WorkerForked
    | ForkFailed
    | Finished
    | Reached
    | StoodAside
    | WorkerGone
    | OverMemory
    | Stalled
)
Event = (
    Announced
    | Requested
    | Awaited
    | Obtained
    | Returned
    | Elsewhere
    | Offered
    | LentBegun
    | Withdrawn
    | ClientLeft
    | Quiesced
    | Resumed
    | Resized
    | Ticked
    | FromExecutor
)

# The method of `Scheduler` that each leads to.
METHODS: dict[type[Event], str] = {
    Announced: "announced",
    Requested: "requested",
    Awaited: "awaited",
    Obtained: "obtained",
    Returned: "returned",
    Elsewhere: "elsewhere",
    Offered: "offered",
    LentBegun: "lent_begun",
    Withdrawn: "withdrawn",
    ClientLeft: "client_left",
    Quiesced: "quiesce",
    Resumed: "resume",
    Resized: "resize",
    Ticked: "tick",
    ZygoteReady: "zygote_ready",
    ZygoteUnable: "zygote_unable",
    ZygoteLost: "zygote_lost",
    WorkerForked: "worker_forked",
    ForkFailed: "fork_failed",
    Finished: "finished",
    Reached: "reached",
    StoodAside: "stood_aside",
    WorkerGone: "worker_gone",
    OverMemory: "over_memory",
    Stalled: "stalled",
}
