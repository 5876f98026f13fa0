"""Workers and zygotes, as far as decisions need them: how many there are, of which kind, and who makes way.

Part of the scheduler, and as pure: what it returns are actions.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from headstart.service.actions import Action, EndZygote, Fork, Kill, MoveOn, Retire, StartZygote
from headstart.service.queue import Job, Kind

MAX_ZYGOTES = 8  # each has a Triton in memory


class WorkerState(enum.Enum):
    """What a worker is at."""

    FORKING = enum.auto()
    IDLE = enum.auto()
    BUSY = enum.auto()
    LEAVING = enum.auto()


@dataclass(eq=False)
class PooledWorker:
    """A worker, as far as decisions need it."""

    number: int
    kind: Kind
    state: WorkerState = WorkerState.FORKING
    job: Job | None = None
    since: float = 0.0  # when it began its job, or became idle
    timed_out: float | None = None  # the limit that it was killed for
    over_memory: tuple[int, str] | None = None  # the limit that it was killed for, and what used how much
    done: bool = False  # it has had the one job that a confined worker has, and was killed
    outmoded: bool = False  # it has its folder where there is no space: it leaves after its job
    recalled: bool = False  # killed so that its job goes back into the queue


@dataclass(eq=False)
class PooledZygote:
    """A zygote; `losses`: deaths in a row, with nothing compiled between."""

    ready: bool = False
    losses: int = 0


class Workforce:
    """The workers of one service.

    Args:
        limit: how many there may be at once.
        most_zygotes: how many zygotes there may be.
        wanted: the kinds of all jobs.

    Attributes:
        limit: the same; it changes with the memory that is left.
        workers: by number.
        zygotes: by kind.
        announced: what each client will mostly ask for.
        crowded: the last fork failed: until one succeeds, those who are dying still take room.
    """

    def __init__(self, limit: int, most_zygotes: int, wanted: Callable[[], set[Kind]]) -> None:
        self.limit = limit
        self._most_zygotes = most_zygotes
        self._wanted = wanted
        self.workers: dict[int, PooledWorker] = {}
        self.zygotes: dict[Kind, PooledZygote] = {}
        self.announced: dict[int, set[Kind]] = {}
        self.crowded = False
        self._numbers = count(1)

    def idle(self, kind: Kind) -> PooledWorker | None:
        """A worker of a kind that waits for a job."""
        idle = (w for w in self.workers.values() if w.state is WorkerState.IDLE and w.kind == kind)
        return next(idle, None)

    def free(self) -> int:
        """How many workers there is room for. Those that were killed after their job are as good as gone."""
        return self.limit - sum(self.crowded or not worker.done for worker in self.workers.values())

    def count_idle(self, kind: Kind) -> int:
        """How many workers of a kind wait for a job."""
        return sum(w.state is WorkerState.IDLE and w.kind == kind for w in self.workers.values())

    @property
    def spare(self) -> int:
        """How many more jobs may run at once."""
        return max(0, self.limit - sum(worker.job is not None for worker in self.workers.values()))

    def start_zygote(self, kind: Kind) -> list[Action]:
        """A zygote of a kind, unless there is one; none if no other can make way."""
        if kind in self.zygotes:
            return []
        ended: list[Action] = []
        if len(self.zygotes) >= self._most_zygotes:
            spare = self._spare()
            if spare is None:
                return []  # whatever makes one spare has jobs scheduled again
            ended = [self._end_zygote(spare)]
        self.zygotes[kind] = PooledZygote()
        return [*ended, StartZygote(kind)]

    def _spare(self) -> Kind | None:
        """One that could make way: it does nothing, and nobody has asked it for anything; announced ones last."""
        needed = self._wanted()
        needed |= {w.kind for w in self.workers.values() if w.state is WorkerState.FORKING or w.job is not None}
        spare = [kind for kind, zygote in self.zygotes.items() if zygote.ready and kind not in needed]
        expected = self._expected()
        return min(spare, key=lambda kind: kind in expected, default=None)

    def _expected(self) -> set[Kind]:
        """What the clients that are here have announced."""
        return {kind for kinds in self.announced.values() for kind in kinds}

    def _end_zygote(self, kind: Kind) -> EndZygote:
        del self.zygotes[kind]
        for worker in [worker for worker in self.workers.values() if worker.kind == kind]:
            del self.workers[worker.number]
        return EndZygote(kind)

    def end_unused_zygotes(self) -> list[Action]:
        """End zygotes that nobody needs."""
        used = {worker.kind for worker in self.workers.values()} | self._wanted()
        used |= self._expected()
        unused = [kind for kind, zygote in self.zygotes.items() if zygote.ready and kind not in used]
        # The last one stays, so that the next job finds a zygote; others were for clients and environments of the past.
        if len(unused) == len(self.zygotes):
            del unused[-1:]
        return [self._end_zygote(kind) for kind in unused]

    def fork(self, kind: Kind) -> Fork:
        """One more worker of a kind."""
        number = next(self._numbers)
        self.workers[number] = PooledWorker(number, kind)
        return Fork(number, kind)

    def retire(self, worker: PooledWorker) -> Retire:
        """Let a worker leave by itself."""
        worker.state = WorkerState.LEAVING
        return Retire(worker.number)

    def abandon(self, job: Job) -> list[Action]:
        """Nobody needs what a worker is at, if one is at `job`: whatever it says of it now, nobody listens."""
        worker = None if job.worker is None else self.workers.get(job.worker)
        if worker is None:
            return []
        worker.job = None
        if worker.state is not WorkerState.BUSY:
            return []
        worker.state, worker.done = WorkerState.LEAVING, True
        return [Kill(worker.number)]

    def move_on(self, worker: PooledWorker) -> list[Action]:
        """There is no space left where workers have their folders: those to come have theirs elsewhere."""
        actions: list[Action] = [MoveOn(worker.number)]
        for each in self.workers.values():
            each.outmoded = True
            if each.state is WorkerState.IDLE or (each is worker and each.state is WorkerState.BUSY):
                actions.append(self.retire(each))
        return actions

    def stand_down(self, *, kill: bool) -> list[Action]:
        """Idle workers leave; with `kill`, busy ones are ended, and their jobs queued again."""
        actions: list[Action] = []
        for worker in self.workers.values():
            if worker.state is WorkerState.IDLE:
                actions.append(self.retire(worker))
            elif worker.state is WorkerState.BUSY and kill:
                worker.state, worker.recalled = WorkerState.LEAVING, True
                actions.append(Kill(worker.number))
        return actions

    def shrink(self) -> list[Action]:
        """Idle workers leave, as far as there are too many."""
        idle = [worker for worker in self.workers.values() if worker.state is WorkerState.IDLE]
        return [self.retire(worker) for worker in idle[: max(0, self.surplus())]]

    def surplus(self) -> int:
        """How many workers there are too many."""
        return sum(worker.state is not WorkerState.LEAVING for worker in self.workers.values()) - self.limit
