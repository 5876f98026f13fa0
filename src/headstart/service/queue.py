"""Who is next: jobs that wait for a worker, by class, then by their clients' turns, then by their length.

                            client 1: longest first ─┐
    kind ─▶ awaited     ─▶  client 2: …              ├─▶ the client that was served longest ago
            early       ─▶  …                        ┘
            background

Pure, like the scheduler, whose part it is. A job lies in the line of every client that wants it. It is not searched for
there when something about it changes (it was taken, dropped, became more urgent): what a line holds is looked at when
it reaches the front, and what is no longer true is thrown away.

Of jobs that are thought to take as long, those of one family (configurations of one kernel) go together, the largest of
them first: so few workers end late with a long one while the others idle.
"""

from __future__ import annotations

import enum
import heapq
from collections import Counter
from collections.abc import Collection, Hashable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple


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
    """What compiles: a toolchain in an environment. There is a zygote for each kind, and each worker is of one.

    `confined`: it compiles what nobody vouches for. Its workers have one job in their life: what they were told may
    have changed them.
    """

    toolchain: Hashable
    environment: Hashable
    confined: bool = False


@dataclass
class Room:
    """What one farm has for one toolchain.

    Attributes:
        idle: jobs that would begin at once.
        room: jobs that it takes, these included.
        delay: seconds from lending to an answer, the compile left aside.
    """

    idle: int
    room: int
    delay: float

    def take(self) -> None:
        """One job less."""
        self.idle, self.room = max(0, self.idle - 1), max(0, self.room - 1)


class Size(NamedTuple):
    """How much there is to compile, by a measure that holds within a family: configurations of one kernel."""

    family: Hashable
    amount: float


@dataclass(eq=False)
class Job:
    """One compile that somebody asked for.

    Attributes:
        estimate: seconds that it may take; None: nobody knows.
        size: how much there is to compile, where that can be compared with others.
        time_limit: the longest that any of its clients allows, seconds; None: no limit.
        memory_limit: the most that any of its clients allows, bytes; None: no limit.
        worker: while it runs.
        waiting: whether it waits for a worker.
        order: of its first request, among all jobs.
        exclusive_until: it has failed once and is to run by itself; monotonic seconds until which others stand back.
        moved: whether it was begun anew for lack of space in its worker's folder.
        prefix: what its worker had made when it stood aside for another job's suffix, unread.
        whole: it is to be compiled from start to end, whatever other jobs are at.
        unclaimed: other hosts may be asked for it: it is claimed before it gets a worker.
        claimed: it has been, or may be: it goes before others, for which other hosts need not wait.
        lines: those of the queue in which it lies.
        place: which farm it may be lent to, and its toolchain there; None: it is compiled here.
        lent_at: since when it is lent; monotonic seconds; None: it is not.
        returned: it was lent, and is not lent again.
    """

    key: str
    kind: Kind
    urgency: Urgency
    payload: object
    estimate: float | None = None
    time_limit: float | None = None
    memory_limit: int | None = None
    tickets: list[Ticket] = field(default_factory=list)
    unclaimed: bool = False
    place: tuple[Hashable, str] | None = None
    size: Size | None = None
    claimed: bool = False
    lines: set[tuple[Urgency, int]] = field(default_factory=set)
    attempts: int = 0
    worker: int | None = None
    waiting: bool = False
    order: int = -1
    exclusive_until: float | None = None
    moved: bool = False
    prefix: bytes = b""
    whole: bool = False
    lent_at: float | None = None
    returned: bool = False


class _Place(NamedTuple):
    rank: float  # longest first, and what nobody knows before all of them
    family: int  # the order of the first of it that waits
    size: float  # negative, or 0
    order: int
    serial: int  # because a job cannot be compared, and may lie in a line twice
    job: Job


@dataclass
class _Family:
    order: int
    waiting: int = 0


class Queue:
    """The jobs that wait for a worker."""

    def __init__(self) -> None:
        self._lines: dict[Kind, dict[tuple[Urgency, int], list[_Place]]] = {}
        self._waiting: Counter[Kind] = Counter()
        self._families: dict[Hashable, _Family] = {}  # of which somebody waits
        self._turns: dict[int, int] = {}  # client: when it was last served
        self._clock = count(1)
        self._orders = count()

    def put(self, job: Job) -> None:
        """Have a job wait; one that has waited before keeps its place."""
        if job.order < 0:
            job.order = next(self._orders)
        if not job.waiting:
            job.waiting = True
            self._waiting[job.kind] += 1
            if job.size is not None:
                self._families.setdefault(job.size.family, _Family(job.order)).waiting += 1
        for client in {ticket.client for ticket in job.tickets}:
            self.join(job, client)

    def join(self, job: Job, client: int) -> None:
        """Put a waiting job into the line of one more client."""
        name = job.urgency, client
        if name in job.lines:
            return
        job.lines.add(name)
        rank = float("-inf") if job.estimate is None else -job.estimate
        line = self._lines.setdefault(job.kind, {}).setdefault(name, [])
        family, size = job.order, 0.0
        if job.size is not None:
            family, size = self._families[job.size.family].order, -job.size.amount
        if job.claimed:
            rank, family = float("-inf"), -1
        heapq.heappush(line, _Place(rank, family, size, job.order, next(self._clock), job))

    def first(self, blocked: Collection[Kind] = (), *, unclaimed: bool = True) -> Job | None:
        """The job whose turn it is, kinds that are `blocked` left aside, and, unless they may be, `unclaimed` jobs."""
        best = None
        chosen = None
        for urgency, client, place in self._fronts(blocked):
            if place.job.unclaimed and not unclaimed:
                continue
            candidate = (urgency, self._turns.get(client, 0), *place[:4])
            if best is None or candidate < best:
                best, chosen = candidate, place.job
        return chosen

    def take(self, job: Job) -> None:
        """A job has got its worker; its clients have had their turn."""
        self.drop(job)
        turn = next(self._clock)
        for ticket in job.tickets:
            self._turns[ticket.client] = turn

    def drop(self, job: Job) -> None:
        """A job waits no longer."""
        if job.waiting:
            job.waiting = False
            self._waiting[job.kind] -= 1
            if job.size is not None:
                family = self._families[job.size.family]
                family.waiting -= 1
                if not family.waiting:
                    del self._families[job.size.family]

    def leave(self, client: int) -> None:
        """A client has no line any more."""
        self._turns.pop(client, None)
        for kind, lines in list(self._lines.items()):
            for urgency in Urgency:
                lines.pop((urgency, client), None)
            if not lines:
                del self._lines[kind]

    def waiting(self, kind: Kind) -> int:
        """How many jobs of a kind wait."""
        return self._waiting[kind]

    @property
    def count(self) -> int:
        """How many jobs wait."""
        return self._waiting.total()

    def _fronts(self, blocked: Collection[Kind]) -> Iterator[tuple[Urgency, int, _Place]]:
        for kind, lines in list(self._lines.items()):
            if kind in blocked:
                continue
            for (urgency, client), line in list(lines.items()):
                while line and not _is_in_line(line[0].job, urgency, client):
                    heapq.heappop(line).job.lines.discard((urgency, client))
                if line:
                    yield urgency, client, line[0]
                else:
                    del lines[urgency, client]
            if not lines:
                del self._lines[kind]


def _is_in_line(job: Job, urgency: Urgency, client: int) -> bool:
    return job.waiting and job.urgency == urgency and any(ticket.client == client for ticket in job.tickets)
