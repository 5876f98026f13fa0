"""A service without processes: what the scheduler says is done to dictionaries; what would be wrong is refused."""

from __future__ import annotations

import signal
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from headstart.service import scheduler
from headstart.service.actions import (
    Action,
    Assign,
    Claim,
    Deliver,
    EndZygote,
    Fork,
    Kill,
    Lend,
    MoveOn,
    Proceed,
    Retire,
    StandAside,
    StartZygote,
)
from headstart.service.queue import Kind, Room, Ticket, Urgency
from headstart.service.scheduler import (
    MAX_ATTEMPTS,
    MAX_ZYGOTE_LOSSES,
    Scheduler,
)
from headstart.wire import Failure

PLAIN = Kind("triton 3.9", "")
DEBUG = Kind("triton 3.9", "TRITON_DEBUG=1")
OLD = Kind("triton 3.6", "")
PLACE = ("farm", "triton 3.9")
STRANGE = Kind("triton 3.9", "", confined=True)
AWAITED, EARLY, BACKGROUND = Urgency.AWAITED, Urgency.EARLY, Urgency.BACKGROUND


# A service without processes


@dataclass
class SimulatedWorker:
    kind: Kind
    state: str = "forking"  # then "idle", "busy", "retired" or "killed"
    key: str | None = None
    recalled: bool = False  # killed for no fault of its job
    worked: bool = False  # it has had a job


@dataclass
class Wanted:
    """What the queue should know about a key."""

    kind: Kind
    urgency: Urgency
    order: int
    estimate: float | None = None
    tickets: list[Ticket] = field(default_factory=list)
    worker: int | None = None
    deaths: int = 0
    stands_for: str | None = None  # the suffix that somebody else is at
    prefix: bytes = b""
    whole: bool = False
    moved: bool = False  # it was begun anew for lack of space
    unclaimed: bool = False
    away: bool = False  # it is being claimed, or another host makes it
    lent: bool = False  # and is lent, as far as was seen
    claiming: bool = False
    claimed: bool = False


class SimulatedService:
    """Carries out a scheduler's actions on dictionaries, and refuses those that would be wrong."""

    def __init__(
        self,
        limit: int = 2,
        *,
        time_limit: float | None = None,
        memory_limit: int | None = None,
        **options: Any,
    ) -> None:
        self.scheduler = Scheduler(limit, **options)
        self.most_zygotes = options.get("most_zygotes", scheduler.MAX_ZYGOTES)
        self.time_limit = time_limit  # of every client
        self.memory_limit = memory_limit  # of every client
        self.now = 1000.0
        self.zygotes: dict[Kind, str] = {}  # "starting" or "ready"
        self.workers: dict[int, SimulatedWorker] = {}
        self.wanted: dict[str, Wanted] = {}
        self.answers: dict[Ticket, list[Any]] = defaultdict(list)
        self.losses: Counter[Kind] = Counter()  # of zygotes, in a row
        self.turns: dict[int, int] = {}  # of clients: how many jobs had been assigned when it was served last
        self.assignments = 0
        self.at_suffix: dict[str, str] = {}  # suffix: the key of who is at it
        self.asked_aside: dict[int, str] = {}  # worker: the suffix that it is to give way at
        self.idle_there = 0  # on a farm, when it was last heard
        self.full: set[int] = set()  # workers that have their folders where there is no space
        self._tickets = 0
        self._orders = 0

    # Events

    def announce(self, kind: Kind = PLAIN, *, client: int = 0) -> list[Action]:
        return self._perform(self.scheduler.announced(kind, client))

    def request(
        self,
        key: str,
        kind: Kind = PLAIN,
        *,
        client: int = 1,
        urgency: Urgency = EARLY,
        estimate: float | None = None,
        unclaimed: bool = False,
        place: tuple[str, str] | None = None,
    ) -> tuple[Ticket, list[Action]]:
        self._tickets += 1
        ticket = Ticket(client, self._tickets)
        wanted = self.wanted.get(key)
        if wanted is None:
            self._orders += 1
            wanted = self.wanted[key] = Wanted(kind, urgency, self._orders, estimate, unclaimed=unclaimed)
        wanted.tickets.append(ticket)
        self._raise(key, urgency)
        actions = self.scheduler.requested(
            ticket,
            key,
            kind,
            f"payload of {key}",
            urgency,
            self.now,
            estimate=estimate,
            time_limit=self.time_limit,
            memory_limit=self.memory_limit,
            unclaimed=unclaimed,
            place=place,
        )
        return ticket, self._perform(actions)

    def wait_for(self, key: str) -> list[Action]:
        if key in self.wanted:
            self._raise(key, AWAITED)
        return self._perform(self.scheduler.awaited(key, self.now))

    def obtain(self, key: str) -> list[Action]:
        """Its entry comes from elsewhere."""
        wanted = self.wanted.get(key)
        if wanted is not None and wanted.worker is not None:
            worker = self.workers[wanted.worker]
            worker.key = None
            self.asked_aside.pop(wanted.worker, None)
            if worker.kind.confined and worker.state == "busy":
                worker.state = "idle"  # it has had its job, and is killed in any case
        actions = self._perform(self.scheduler.obtained(key, "obtained", self.now))
        assert self.scheduler.in_flight(key) is None
        return actions

    def come_back(self, key: str) -> list[Action]:
        """Nobody else makes it."""
        if key in self.wanted:
            wanted = self.wanted[key]
            wanted.claimed |= wanted.away and not wanted.lent
            wanted.away = wanted.claiming = wanted.lent = False
        return self._perform(self.scheduler.returned(key, self.now))

    def offer(self, idle: int, room: int | None = None, delay: float = 0.0) -> list[Action]:
        """The farm has so many free workers, and takes so many jobs in all."""
        self.idle_there = idle
        rooms = {PLACE[1]: Room(idle, idle if room is None else room, delay)}
        self._perform(self.scheduler.offered(PLACE[0], rooms))
        return self._perform(self.scheduler.tick(self.now))

    def begin_there(self, key: str) -> list[Action]:
        return self._perform(self.scheduler.lent_begun(key))

    def made_elsewhere(self, key: str) -> list[Action]:
        """Another host makes it."""
        if key in self.wanted:
            self.wanted[key].claiming = False
        return self._perform(self.scheduler.elsewhere(key, self.now))

    @property
    def away(self) -> list[str]:
        return [key for key, wanted in self.wanted.items() if wanted.away]

    def leave(self, client: int) -> list[Action]:
        self.turns.pop(client, None)
        for key, wanted in list(self.wanted.items()):
            wanted.tickets = [ticket for ticket in wanted.tickets if ticket.client != client]
            if not wanted.tickets and wanted.worker is None:
                self._drop(key)
        return self._perform(self.scheduler.client_left(client, self.now))

    def withdraw(self, ticket: Ticket) -> list[Action]:
        """Its client does not want it any more."""
        for key, wanted in list(self.wanted.items()):
            if ticket in wanted.tickets:
                wanted.tickets.remove(ticket)
                if not wanted.tickets and wanted.worker is None:
                    self._drop(key)
                return self._perform(self.scheduler.withdrawn(ticket, key, self.now))
        return self._perform(self.scheduler.withdrawn(ticket, "unknown", self.now))

    def quiesce(self, *, kill: bool = False) -> list[Action]:
        return self._perform(self.scheduler.quiesce(kill=kill))

    def resume(self) -> list[Action]:
        return self._perform(self.scheduler.resume(self.now))

    def resize(self, limit: int) -> list[Action]:
        return self._perform(self.scheduler.resize(limit, self.now))

    def zygote_ready(self, kind: Kind = PLAIN) -> list[Action]:
        self.zygotes[kind] = "ready"
        return self._perform(self.scheduler.zygote_ready(kind, self.now))

    def zygote_unable(self, kind: Kind = PLAIN, why: str = "no libtriton") -> list[Action]:
        del self.zygotes[kind]
        self.losses[kind] = 0
        return self._perform(self.scheduler.zygote_unable(kind, why, self.now))

    def lose_zygote(self, kind: Kind = PLAIN, why: str = "the zygote died") -> list[Action]:
        del self.zygotes[kind]
        for number, worker in list(self.workers.items()):
            if worker.kind == kind:
                del self.workers[number]
                self.asked_aside.pop(number, None)
                if worker.key is not None:
                    self.wanted[worker.key].worker = None
                    self._begins_anew(worker.key)
        self.losses[kind] += 1
        given_up = self.losses[kind] == MAX_ZYGOTE_LOSSES
        if given_up:
            self.losses[kind] = 0
        actions = self._perform(self.scheduler.zygote_lost(kind, why, self.now))
        if StartZygote(kind) not in actions:
            self.losses[kind] = 0
        assert not (given_up and StartZygote(kind) in actions)
        return actions

    def forked(self, number: int) -> list[Action]:
        self.workers[number].state = "idle"
        return self._perform(self.scheduler.worker_forked(number, self.now))

    def all_forked(self) -> list[Action]:
        return [action for number in self.in_state("forking") for action in self.forked(number)]

    def fork_fails(self, number: int, why: str = "EAGAIN") -> list[Action]:
        del self.workers[number]
        return self._perform(self.scheduler.fork_failed(number, why, self.now))

    def finish(self, key: str, outcome: object = "entry") -> list[Action]:
        number = self.worker_of(key)
        worker = self.workers[number]
        worker.key = None
        if worker.state == "busy":
            worker.state = "idle"
        self.losses[worker.kind] = 0
        if isinstance(outcome, Failure) and outcome.kind == "space" and not worker.kind.confined:
            return self._lack_space(number, key, outcome)
        return self._perform(self.scheduler.finished(number, outcome, self.now))

    def _lack_space(self, number: int, key: str, outcome: Failure) -> list[Action]:
        wanted, self.full = self.wanted[key], set(self.workers)
        wanted.worker = None
        if not wanted.moved:
            wanted.moved = True
            self._begins_anew(key)
        return self._perform(self.scheduler.finished(number, outcome, self.now))

    def reach(self, key: str, suffix: str) -> list[Action]:
        number = self.worker_of(key)
        actions = self.scheduler.reached(number, suffix)
        if actions:
            alone = self.at_suffix.setdefault(suffix, key) == key
            assert actions == [Proceed(number) if alone else StandAside(number)]
            if not alone:
                self.asked_aside[number] = suffix
        return actions

    def stand_aside(self, key: str) -> list[Action]:
        number = self.worker_of(key)
        worker, wanted = self.workers[number], self.wanted[key]
        suffix = self.asked_aside.pop(number)
        worker.key = wanted.worker = None
        wanted.prefix = f"prefix of {key}".encode()
        if worker.state == "busy":
            worker.state = "idle"
        if not wanted.tickets:
            self._drop(key)
        elif suffix in self.at_suffix:
            wanted.stands_for = suffix
            self._raise(key, wanted.urgency)
        return self._perform(self.scheduler.stood_aside(number, suffix, wanted.prefix, self.now))

    def _raise(self, key: str, urgency: Urgency) -> None:
        wanted = self.wanted[key]
        wanted.urgency = min(wanted.urgency, urgency)
        if wanted.stands_for is not None:
            self._raise(self.at_suffix[wanted.stands_for], urgency)

    def _land(self, key: str, *, done: bool) -> None:
        self.wanted[key].stands_for = None
        for suffix in [suffix for suffix, doer in self.at_suffix.items() if doer == key]:
            del self.at_suffix[suffix]
            for other in [other for other, wanted in self.wanted.items() if wanted.stands_for == suffix]:
                self.wanted[other].stands_for = None
                if not done:
                    self._begins_anew(other)

    def _begins_anew(self, key: str) -> None:
        self._land(key, done=False)
        wanted = self.wanted[key]
        wanted.prefix, wanted.whole = b"", True
        if not wanted.tickets:
            self._drop(key)

    def _drop(self, key: str) -> None:
        self._land(key, done=False)
        del self.wanted[key]

    def die(self, number: int, status: int = -signal.SIGSEGV, words: str = "", stage: str = "") -> list[Action]:
        worker = self.workers.pop(number)
        self.asked_aside.pop(number, None)
        if worker.key is not None:
            wanted = self.wanted[worker.key]
            wanted.worker = None
            wanted.deaths += not worker.recalled
            if wanted.deaths < MAX_ATTEMPTS:
                self._begins_anew(worker.key)
        return self._perform(self.scheduler.worker_gone(number, status, stage, words, self.now))

    def stall(self, number: int) -> list[Action]:
        actions = self._perform(self.scheduler.stalled(number))
        self.workers[number].recalled |= bool(actions)
        return actions

    def swell(self, number: int, evidence: str = "ptxas 9 GiB") -> list[Action]:
        return self._perform(self.scheduler.over_memory(number, evidence))

    def crash(self, key: str, status: int = -signal.SIGSEGV, words: str = "", stage: str = "") -> list[Action]:
        return self.die(self.worker_of(key), status, words, stage)

    def pass_time(self, seconds: float) -> list[Action]:
        self.now += seconds
        actions = self._perform(self.scheduler.tick(self.now))
        deadline = self.scheduler.next_deadline()
        assert deadline is None or deadline > self.now, "tick would be called again at once"
        return actions

    # What there is

    def in_state(self, *states: str) -> list[int]:
        return [number for number, worker in self.workers.items() if worker.state in states]

    def worker_of(self, key: str) -> int:
        return next(number for number, worker in self.workers.items() if worker.key == key)

    @property
    def running(self) -> list[str]:
        return [worker.key for worker in self.workers.values() if worker.key is not None]

    @property
    def present(self) -> int:
        """How many workers there are, without those that were killed after their one job."""
        return sum(not (worker.state == "killed" and worker.key is None) for worker in self.workers.values())

    def answer(self, ticket: Ticket) -> Any:
        (outcome,) = self.answers[ticket]
        return outcome

    # Carrying out

    def _perform(self, actions: list[Action]) -> list[Action]:
        for action in actions:
            match action:
                case StartZygote(kind):
                    assert kind not in self.zygotes
                    self.zygotes[kind] = "starting"
                    assert len(self.zygotes) <= self.most_zygotes
                case EndZygote(kind):
                    assert self.zygotes.pop(kind) == "ready"
                    assert self.zygotes or StartZygote in map(type, actions), "the next job should find one"
                    for number in [number for number, worker in self.workers.items() if worker.kind == kind]:
                        worker = self.workers.pop(number)
                        assert worker.key is None
                        assert worker.state != "forking"
                    assert not any(wanted.kind == kind for wanted in self.wanted.values())
                    self.losses[kind] = 0
                case Fork(number, kind):
                    assert self.zygotes[kind] == "ready"
                    assert number not in self.workers
                    self.workers[number] = SimulatedWorker(kind)
                    assert self.present <= self.scheduler.limit
                case Assign(number, job):
                    self._assign(self.workers[number], number, job)
                case Claim(job):
                    wanted = self.wanted[job.key]
                    assert wanted.unclaimed, "it was claimed before"
                    assert wanted.worker is None
                    assert wanted.stands_for is None
                    assert not self.scheduler.quiesced
                    wanted.unclaimed, wanted.away, wanted.claiming = False, True, True
                    self._served(wanted)
                    assert (
                        sum(each.claiming for each in self.wanted.values())
                        <= self.scheduler.limit + self.idle_there + 1
                    )
                case Lend(job):
                    wanted = self.wanted[job.key]
                    assert wanted.worker is None
                    assert not wanted.away
                    assert wanted.deaths == 0
                    assert not wanted.moved
                    assert wanted.stands_for is None
                    assert wanted.prefix == b""
                    assert not self.scheduler.quiesced
                    assert not wanted.unclaimed, "another host may be at it"
                    wanted.away, wanted.lent = True, True
                    if not wanted.claimed:  # else its clients had their turn then
                        self._served(wanted)
                case MoveOn(number):
                    assert number in self.full
                case Retire(number):
                    assert self.workers[number].state == "idle"
                    self.workers[number].state = "retired"
                case Kill(number):
                    worker = self.workers[number]
                    assert worker.state == ("idle" if worker.kind.confined and worker.key is None else "busy")
                    self.workers[number].state = "killed"
                    self.workers[number].recalled = self.scheduler.quiesced
                case Deliver(job, outcome):
                    self._land(job.key, done=not isinstance(outcome, Failure))
                    wanted = self.wanted.pop(job.key)
                    assert wanted.tickets == job.tickets
                    for ticket in job.tickets:
                        self.answers[ticket].append(outcome)
        return actions

    def _assign(self, worker: SimulatedWorker, number: int, job: Any) -> None:
        wanted = self.wanted[job.key]
        assert worker.state == "idle"
        assert not (worker.kind.confined and worker.worked), "it may not be itself any more"
        worker.worked = True
        assert worker.kind == wanted.kind
        assert number not in self.full, "there is no space for it"
        assert wanted.worker is None, "it is compiled twice at a time"
        assert wanted.deaths < MAX_ATTEMPTS
        assert job.payload == f"payload of {job.key}"
        assert job.urgency == wanted.urgency
        assert wanted.stands_for is None
        assert (job.prefix, job.whole) == (wanted.prefix, wanted.whole)
        assert not wanted.unclaimed, "another host may be at it"
        assert not wanted.away or wanted.lent, "another host may be at it"
        assert not self.scheduler.quiesced
        if wanted.lent:  # it was taken back
            wanted.away = wanted.lent = False
            self._served(wanted)
        else:
            self._check_turn(wanted)
        worker.state, worker.key = "busy", job.key
        wanted.worker = number

    def _check_turn(self, chosen: Wanted) -> None:
        waiting = [
            wanted
            for wanted in self.wanted.values()
            if wanted.worker is None and wanted.stands_for is None and wanted.kind == chosen.kind and not wanted.away
            # What is to be claimed first keeps no worker waiting.
            if not wanted.unclaimed
        ]
        assert chosen.urgency == min(wanted.urgency for wanted in waiting)
        classmates = [wanted for wanted in waiting if wanted.urgency == chosen.urgency]

        def last_served(wanted: Wanted) -> int:
            return min(self.turns.get(ticket.client, 0) for ticket in wanted.tickets)

        turn = last_served(chosen)
        assert turn == min(map(last_served, classmates)), "another client has waited for longer"
        clients = {t.client for t in chosen.tickets if self.turns.get(t.client, 0) == turn}
        firsts = [
            min(self._length(w) for w in classmates if client in {t.client for t in w.tickets}) for client in clients
        ]
        assert self._length(chosen) in firsts, "its client has a longer one"
        if not chosen.claimed:  # else its clients had their turn then
            self._served(chosen)

    def _served(self, chosen: Wanted) -> None:
        self.assignments += 1
        self.turns.update({ticket.client: self.assignments for ticket in chosen.tickets})

    @staticmethod
    def _length(wanted: Wanted) -> tuple[float, int]:
        if wanted.claimed:
            return float("-inf"), -1
        return (float("-inf") if wanted.estimate is None else -wanted.estimate, wanted.order)


def service(limit: int = 2, **options: Any) -> SimulatedService:
    """With a zygote and all its workers ready."""
    simulated = SimulatedService(limit, **options)
    simulated.announce()
    simulated.zygote_ready()
    simulated.all_forked()
    return simulated


def assigned(actions: list[Action]) -> list[str]:
    return [action.job.key for action in actions if isinstance(action, Assign)]
