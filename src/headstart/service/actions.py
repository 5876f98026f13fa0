"""What the scheduler has done: its one way out. An executor carries out all but `Deliver` and `Claim`.

These answer clients, and ask other hosts."""

from __future__ import annotations

from dataclasses import dataclass

from headstart.service.queue import Job, Kind


@dataclass(frozen=True)
class StartZygote:
    kind: Kind


@dataclass(frozen=True)
class EndZygote:
    """It has no workers, or idle ones that go with it, and nobody asks for its kind just now."""

    kind: Kind


@dataclass(frozen=True)
class Fork:
    worker: int
    kind: Kind


@dataclass(frozen=True)
class Assign:
    worker: int
    job: Job


@dataclass(frozen=True)
class Proceed:
    """Have a worker go on behind the cut point that its compile has reached."""

    worker: int


@dataclass(frozen=True)
class StandAside:
    """Have a worker give back the compile that has reached a cut point."""

    worker: int


@dataclass(frozen=True)
class Retire:
    """Let an idle worker leave by itself."""

    worker: int


@dataclass(frozen=True)
class Kill:
    """End a worker now, with everything that it started."""

    worker: int


@dataclass(frozen=True)
class Deliver:
    """Answer the tickets of `job`; `outcome` is what its worker sent, or a `Failure`."""

    job: Job
    outcome: object


@dataclass(frozen=True)
class Claim:
    """Have other hosts told that this one makes `job`, unless one of them does. It waits for no worker meanwhile."""

    job: Job


@dataclass(frozen=True)
class Lend:
    """Have `job` compiled on another machine. It waits for no worker meanwhile."""

    job: Job


@dataclass(frozen=True)
class MoveOn:
    """There is no space left where a worker's folder is: those to come have theirs elsewhere."""

    worker: int


ForExecutor = StartZygote | EndZygote | Fork | Assign | Proceed | StandAside | Retire | MoveOn | Kill
Action = ForExecutor | Deliver | Claim | Lend
