"""Who compiles what, when: the queue as a pure state machine.

Events are method calls and come from the server; each returns the actions that the server is to carry out, in order.
No sockets, no clock and no processes here: time is an argument (seconds, monotonic), and a job's payload and outcome
are passed through unread.

Guarantees:

* One job per key is queued or running at a time; everyone who asks meanwhile is added to it and gets its outcome.
* Every ticket is answered exactly once, by one `Deliver`, unless its client leaves first.
* A job whose worker dies under it is tried once more in a fresh worker, then fails; losing a zygote blames no job.
* A worker serves one kind (toolchain and environment) in its life.

Assumptions: after `Retire` or `Kill` the server reports `worker_buried`; after `Fork`, `worker_forked` or `fork_failed`
or the loss of the zygote; after `StartZygote`, `zygote_ready`, `zygote_unable` or `zygote_lost`.
"""

from __future__ import annotations

import enum
import heapq
import signal
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

from headstart.wire import Failure

MAX_ATTEMPTS = 2  # a kernel that killed its worker twice is not tried again
MAX_ZYGOTE_LOSSES = 3  # in a row, with nothing compiled between
IDLE_TIMEOUT = 60.0  # seconds until an idle worker leaves


class Urgency(enum.IntEnum):
    """What a job is wanted for; lower goes first."""

    AWAITED = 0
    EARLY = 1
    BACKGROUND = 2


class Ticket(NamedTuple):
    """One request of one client."""

    client: int
    number: int


class Kind(NamedTuple):
    """What compiles: a toolchain in an environment. There is a zygote for each kind, and each worker is of one."""

    toolchain: Hashable
    environment: Hashable


@dataclass(eq=False)
class Job:
    """One compile that somebody asked for."""

    key: str
    kind: Kind
    urgency: Urgency
    payload: object
    tickets: list[Ticket] = field(default_factory=list)
    attempts: int = 0
    worker: int | None = None  # while running
    order: int | None = None


# Actions


@dataclass(frozen=True)
class StartZygote:
    kind: Kind


@dataclass(frozen=True)
class EndZygote:
    """It has no workers, and nobody asks for its kind any more."""

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


Action = StartZygote | EndZygote | Fork | Assign | Retire | Kill | Deliver


class _State(enum.Enum):
    FORKING = enum.auto()
    IDLE = enum.auto()
    BUSY = enum.auto()
    LEAVING = enum.auto()


@dataclass(eq=False)
class _Worker:
    number: int
    kind: Kind
    state: _State = _State.FORKING
    job: Job | None = None
    since: float = 0.0  # when it began its job, or became idle
    timed_out: bool = False


@dataclass(eq=False)
class _Zygote:
    ready: bool = False
    losses: int = 0


class Plan:
    """The queue of one service.

    Args:
        limit: how many workers there may be at once.
        time_limit: seconds that one compile may take; None: as long as it likes.
        idle_timeout: seconds after which an idle worker leaves.
    """

    def __init__(self, limit: int, *, time_limit: float | None = None, idle_timeout: float = IDLE_TIMEOUT) -> None:
        self.limit = limit
        self.time_limit = time_limit
        self.idle_timeout = idle_timeout
        self._jobs: dict[str, Job] = {}
        self._queues: dict[Kind, list[tuple[int, int, Job]]] = defaultdict(list)
        self._queued: Counter[Kind] = Counter()  # jobs; a queue may hold a job twice
        self._workers: dict[int, _Worker] = {}
        self._zygotes: dict[Kind, _Zygote] = {}
        self._orders = count()
        self._numbers = count(1)

    # What clients do

    def announced(self, kind: Kind) -> list[Action]:
        """A client that will ask for jobs of `kind` has come: get workers ready before it does."""
        return self._start_zygote(kind)

    def requested(
        self, ticket: Ticket, key: str, kind: Kind, payload: object, urgency: Urgency, now: float
    ) -> list[Action]:
        """A client wants the entry of `key`."""
        job = self._jobs.get(key)
        if job is None:
            job = self._jobs[key] = Job(key, kind, urgency, payload)
            self._enqueue(job)
        job.tickets.append(ticket)
        self._raise(job, urgency)
        return self._schedule(now)

    def in_flight(self, key: str) -> Job | None:
        """The queued or running job of `key`."""
        return self._jobs.get(key)

    def awaited(self, key: str) -> None:
        """Somebody is now blocked on `key`."""
        job = self._jobs.get(key)
        if job is not None:
            self._raise(job, Urgency.AWAITED)

    def client_left(self, client: int) -> None:
        """Forget a client's tickets. What nobody else wants is dropped, unless it has begun."""
        for job in list(self._jobs.values()):
            job.tickets = [ticket for ticket in job.tickets if ticket.client != client]
            if not job.tickets and job.worker is None:
                self._queued[job.kind] -= 1
                del self._jobs[job.key]

    # What happens to processes

    def zygote_ready(self, kind: Kind, now: float) -> list[Action]:
        """Workers can be forked; as many as there may be are, since somebody is about to ask."""
        self._zygotes[kind].ready = True
        forks = [self._fork(kind) for _ in range(self.limit - len(self._workers))]
        return [*forks, *self._schedule(now)]

    def zygote_unable(self, kind: Kind, why: str) -> list[Action]:
        """Nothing of this kind can be compiled; whoever wants it is told why, and may try again later."""
        self._zygotes.pop(kind, None)
        return self._give_up(kind, why)

    def zygote_lost(self, kind: Kind, why: str, now: float) -> list[Action]:
        """A zygote died, and its workers with it."""
        zygote = self._zygotes.pop(kind, None)
        if zygote is None:
            return []
        zygote.losses += 1
        for worker in [w for w in self._workers.values() if w.kind == kind]:
            del self._workers[worker.number]
            if worker.job is not None:
                self._try_again(worker.job)
        actions: list[Action] = []
        if zygote.losses >= MAX_ZYGOTE_LOSSES:
            actions = self._give_up(kind, f"{why}; it happened {zygote.losses} times in a row")
        elif self._queued[kind]:
            actions = self._start_zygote(kind)
            self._zygotes[kind].losses = zygote.losses
        return [*actions, *self._schedule(now)]

    def worker_forked(self, number: int, now: float) -> list[Action]:
        """A worker waits for its first job."""
        worker = self._workers[number]
        worker.state, worker.since = _State.IDLE, now
        return self._schedule(now)

    def fork_failed(self, number: int, why: str, now: float) -> list[Action]:
        """The machine gives no more processes: make do with the workers there are, or give up."""
        worker = self._workers.pop(number)
        if self._workers:
            self.limit = len(self._workers)
            return self._schedule(now)
        return [*self._give_up(worker.kind, f"no worker could be started: {why}"), *self._schedule(now)]

    def finished(self, number: int, outcome: object, now: float) -> list[Action]:
        """A worker is done with its job, one way or the other."""
        worker = self._workers.get(number)
        if worker is None or worker.job is None:
            return []
        job = worker.job
        worker.job = None
        if worker.state is _State.BUSY:
            worker.state, worker.since = _State.IDLE, now
        self._zygotes[worker.kind].losses = 0
        return [self._deliver(job, outcome), *self._schedule(now)]

    def worker_buried(self, number: int, status: int, stage: str, last_words: str, now: float) -> list[Action]:
        """A worker is gone.

        Args:
            number: which one.
            status: its exit code, or minus the signal that ended it.
            stage: of the compile that it was at.
            last_words: the end of what it and its tools printed.
            now: monotonic seconds.
        """
        worker = self._workers.pop(number, None)
        if worker is None:
            return []
        answer = [] if worker.job is None else self._after_death(worker, worker.job, status, stage, last_words)
        return [*answer, *self._schedule(now), *self._end_zygote(worker.kind)]

    def _after_death(
        self, worker: _Worker, job: Job, status: int, stage: str, last_words: str
    ) -> list[Action]:
        job.attempts += 1
        if worker.timed_out:
            failure = Failure(
                "timeout",
                f"it took longer than {self.time_limit:g} s",
                stage=stage,
                output=last_words,
                advice="raise HEADSTART_COMPILE_TIMEOUT (seconds), or make the kernel smaller: less unrolling",
            )
            return [self._deliver(job, failure)]
        if job.attempts < MAX_ATTEMPTS:
            self._try_again(job)
            return []
        failure = Failure(
            "crash",
            f"the compiler process {_describe(status)}, {job.attempts} times",
            stage=stage,
            detail=_likely_cause(status),
            output=last_words,
            advice="run the command below; if it crashes alone, it is a bug in Triton, LLVM or ptxas worth reporting",
        )
        return [self._deliver(job, failure)]

    # What time does

    def next_deadline(self) -> float | None:
        """When `tick` should be called; None: nothing is due."""
        return min((deadline for _, deadline in self._deadlines()), default=None)

    def tick(self, now: float) -> list[Action]:
        """Act on whatever is due by `now`."""
        actions: list[Action] = []
        for worker, deadline in list(self._deadlines()):
            if deadline > now:
                continue
            if worker.state is _State.BUSY:
                worker.timed_out = True
                actions.append(Kill(worker.number))
            else:
                actions.append(Retire(worker.number))
            worker.state = _State.LEAVING
        return actions

    def _deadlines(self) -> Iterable[tuple[_Worker, float]]:
        for worker in self._workers.values():
            if worker.state is _State.BUSY and self.time_limit is not None:
                yield worker, worker.since + self.time_limit
            elif worker.state is _State.IDLE:
                yield worker, worker.since + self.idle_timeout

    # Deciding

    def _schedule(self, now: float) -> list[Action]:
        actions: list[Action] = []
        blocked: set[Kind] = set()
        while (kind := self._most_urgent(blocked)) is not None:
            worker = self._idle_worker(kind)
            if worker is None:
                blocked.add(kind)
                actions += self._make_room(kind)
                continue
            _, _, job = heapq.heappop(self._queues[kind])
            worker.state, worker.since = _State.BUSY, now
            worker.job, job.worker = job, worker.number
            self._queued[kind] -= 1
            actions.append(Assign(worker.number, job))
        return actions

    def _most_urgent(self, blocked: set[Kind]) -> Kind | None:
        best: tuple[int, int] | None = None
        chosen = None
        for kind, queue in list(self._queues.items()):
            while queue and not self._is_queued(queue[0]):
                heapq.heappop(queue)
            if not queue:
                del self._queues[kind]
            elif kind not in blocked and (best is None or queue[0][:2] < best):
                best, chosen = queue[0][:2], kind
        return chosen

    def _is_queued(self, entry: tuple[int, int, Job]) -> bool:
        # A job that became more urgent was pushed again, and one that nobody wants any more is still in the heap.
        urgency, _, job = entry
        return self._jobs.get(job.key) is job and job.worker is None and job.urgency == urgency

    def _idle_worker(self, kind: Kind) -> _Worker | None:
        idle = (w for w in self._workers.values() if w.state is _State.IDLE and w.kind == kind)
        return next(idle, None)

    def _make_room(self, kind: Kind) -> list[Action]:
        zygote = self._zygotes.get(kind)
        if zygote is None:
            return self._start_zygote(kind)
        if not zygote.ready:
            return []
        coming = sum(w.state is _State.FORKING and w.kind == kind for w in self._workers.values())
        wanted = max(0, self._queued[kind] - coming)
        free = self.limit - len(self._workers)
        actions: list[Action] = [self._fork(kind) for _ in range(min(wanted, free))]
        leaving = any(w.state is _State.LEAVING for w in self._workers.values())
        if wanted and not actions and not leaving:
            # All places are taken; an idle worker, which must be of another kind, gives up its own.
            idle = next((w for w in self._workers.values() if w.state is _State.IDLE), None)
            if idle is not None:
                idle.state = _State.LEAVING
                actions.append(Retire(idle.number))
        return actions

    def _start_zygote(self, kind: Kind) -> list[Action]:
        if kind in self._zygotes:
            return []
        self._zygotes[kind] = _Zygote()
        return [StartZygote(kind)]

    def _end_zygote(self, kind: Kind) -> list[Action]:
        # The last one stays, so that the next job finds a zygote; others were for environments of the past.
        used = {worker.kind for worker in self._workers.values()} | {job.kind for job in self._jobs.values()}
        if kind not in self._zygotes or len(self._zygotes) == 1 or kind in used:
            return []
        del self._zygotes[kind]
        return [EndZygote(kind)]

    def _fork(self, kind: Kind) -> Fork:
        number = next(self._numbers)
        self._workers[number] = _Worker(number, kind)
        return Fork(number, kind)

    def _enqueue(self, job: Job) -> None:
        self._queued[job.kind] += 1
        if job.order is None:  # a job that is tried again keeps its place
            job.order = next(self._orders)
        self._push(job)

    def _try_again(self, job: Job) -> None:
        job.worker = None
        if job.tickets:
            self._enqueue(job)
        else:
            del self._jobs[job.key]

    def _push(self, job: Job) -> None:
        assert job.order is not None
        heapq.heappush(self._queues[job.kind], (int(job.urgency), job.order, job))

    def _raise(self, job: Job, urgency: Urgency) -> None:
        if urgency < job.urgency:
            job.urgency = urgency
            if job.worker is None:
                self._push(job)

    def _deliver(self, job: Job, outcome: object) -> Deliver:
        del self._jobs[job.key]
        return Deliver(job, outcome)

    def _give_up(self, kind: Kind, why: str) -> list[Action]:
        jobs = [job for job in self._jobs.values() if job.kind == kind and job.worker is None]
        del self._queued[kind]
        return [self._deliver(job, Failure("service", why)) for job in jobs]


def _describe(status: int) -> str:
    if status >= 0:
        return f"exited with code {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"


def _likely_cause(status: int) -> str:
    if status == -signal.SIGKILL:
        return "SIGKILL comes from the kernel when memory is exhausted (see dmesg), or from somebody's kill -9"
    if status == -signal.SIGABRT:
        return "SIGABRT is how LLVM and MLIR report a failed assertion; the assertion is in the output"
    if status in (-signal.SIGSEGV, -signal.SIGBUS):
        return "a memory fault inside the compiler"
    return ""
