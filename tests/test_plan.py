"""The queue decides rightly: by example for each trouble, and in a simulated service for every order of events."""

from __future__ import annotations

import signal
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headstart.service import plan
from headstart.service.actions import (
    Action,
    Assign,
    Deliver,
    EndZygote,
    Fork,
    Kill,
    MoveOn,
    Proceed,
    Retire,
    StandAside,
    StartZygote,
)
from headstart.service.plan import (
    ALONE_PATIENCE,
    BACKGROUND_TIME_LIMIT,
    IDLE_TIMEOUT,
    MAX_ATTEMPTS,
    MAX_ZYGOTE_LOSSES,
    Plan,
)
from headstart.service.queue import Kind, Ticket, Urgency
from headstart.wire import Failure

PLAIN = Kind("triton 3.9", "")
DEBUG = Kind("triton 3.9", "TRITON_DEBUG=1")
OLD = Kind("triton 3.6", "")
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
    stands_for: str | None = None  # the tail that somebody else is at
    front: bytes = b""
    whole: bool = False
    moved: bool = False  # it was begun anew for lack of space


class SimulatedService:
    """Carries out a plan's actions on dictionaries, and refuses those that would be wrong."""

    def __init__(
        self,
        limit: int = 2,
        *,
        time_limit: float | None = None,
        memory_limit: int | None = None,
        **options: Any,
    ) -> None:
        self.plan = Plan(limit, **options)
        self.most_zygotes = options.get("most_zygotes", plan.MAX_ZYGOTES)
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
        self.at_tail: dict[str, str] = {}  # tail: the key of who is at it
        self.asked_aside: dict[int, str] = {}  # worker: the tail that it is to give way at
        self.full: set[int] = set()  # workers that have their folders where there is no space
        self._tickets = 0
        self._orders = 0

    # Events

    def announce(self, kind: Kind = PLAIN, *, client: int = 0) -> list[Action]:
        return self._perform(self.plan.announced(kind, client))

    def request(
        self,
        key: str,
        kind: Kind = PLAIN,
        *,
        client: int = 1,
        urgency: Urgency = EARLY,
        estimate: float | None = None,
    ) -> tuple[Ticket, list[Action]]:
        self._tickets += 1
        ticket = Ticket(client, self._tickets)
        wanted = self.wanted.get(key)
        if wanted is None:
            self._orders += 1
            wanted = self.wanted[key] = Wanted(kind, urgency, self._orders, estimate)
        wanted.tickets.append(ticket)
        self._raise(key, urgency)
        actions = self.plan.requested(
            ticket,
            key,
            kind,
            f"payload of {key}",
            urgency,
            self.now,
            estimate=estimate,
            time_limit=self.time_limit,
            memory_limit=self.memory_limit,
        )
        return ticket, self._perform(actions)

    def wait_for(self, key: str) -> list[Action]:
        if key in self.wanted:
            self._raise(key, AWAITED)
        return self._perform(self.plan.awaited(key, self.now))

    def leave(self, client: int) -> list[Action]:
        self.turns.pop(client, None)
        for key, wanted in list(self.wanted.items()):
            wanted.tickets = [ticket for ticket in wanted.tickets if ticket.client != client]
            if not wanted.tickets and wanted.worker is None:
                self._drop(key)
        return self._perform(self.plan.client_left(client, self.now))

    def quiesce(self, *, kill: bool = False) -> list[Action]:
        return self._perform(self.plan.quiesce(kill=kill))

    def resume(self) -> list[Action]:
        return self._perform(self.plan.resume(self.now))

    def resize(self, limit: int) -> list[Action]:
        return self._perform(self.plan.resize(limit, self.now))

    def zygote_ready(self, kind: Kind = PLAIN) -> list[Action]:
        self.zygotes[kind] = "ready"
        return self._perform(self.plan.zygote_ready(kind, self.now))

    def zygote_unable(self, kind: Kind = PLAIN, why: str = "no libtriton") -> list[Action]:
        del self.zygotes[kind]
        self.losses[kind] = 0
        return self._perform(self.plan.zygote_unable(kind, why, self.now))

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
        actions = self._perform(self.plan.zygote_lost(kind, why, self.now))
        if StartZygote(kind) not in actions:
            self.losses[kind] = 0
        assert not (given_up and StartZygote(kind) in actions)
        return actions

    def forked(self, number: int) -> list[Action]:
        self.workers[number].state = "idle"
        return self._perform(self.plan.worker_forked(number, self.now))

    def all_forked(self) -> list[Action]:
        return [action for number in self.in_state("forking") for action in self.forked(number)]

    def fork_fails(self, number: int, why: str = "EAGAIN") -> list[Action]:
        del self.workers[number]
        return self._perform(self.plan.fork_failed(number, why, self.now))

    def finish(self, key: str, outcome: object = "entry") -> list[Action]:
        number = self.worker_of(key)
        worker = self.workers[number]
        worker.key = None
        if worker.state == "busy":
            worker.state = "idle"
        self.losses[worker.kind] = 0
        if isinstance(outcome, Failure) and outcome.kind == "space" and not worker.kind.confined:
            return self._lack_space(number, key, outcome)
        return self._perform(self.plan.finished(number, outcome, self.now))

    def _lack_space(self, number: int, key: str, outcome: Failure) -> list[Action]:
        wanted, self.full = self.wanted[key], set(self.workers)
        wanted.worker = None
        if not wanted.moved:
            wanted.moved = True
            self._begins_anew(key)
        return self._perform(self.plan.finished(number, outcome, self.now))

    def reach(self, key: str, tail: str) -> list[Action]:
        number = self.worker_of(key)
        actions = self.plan.reached(number, tail)
        if actions:
            alone = self.at_tail.setdefault(tail, key) == key
            assert actions == [Proceed(number) if alone else StandAside(number)]
            if not alone:
                self.asked_aside[number] = tail
        return actions

    def stand_aside(self, key: str) -> list[Action]:
        number = self.worker_of(key)
        worker, wanted = self.workers[number], self.wanted[key]
        tail = self.asked_aside.pop(number)
        worker.key = wanted.worker = None
        wanted.front = f"front of {key}".encode()
        if worker.state == "busy":
            worker.state = "idle"
        if not wanted.tickets:
            self._drop(key)
        elif tail in self.at_tail:
            wanted.stands_for = tail
            self._raise(key, wanted.urgency)
        return self._perform(self.plan.stood_aside(number, tail, wanted.front, self.now))

    def _raise(self, key: str, urgency: Urgency) -> None:
        wanted = self.wanted[key]
        wanted.urgency = min(wanted.urgency, urgency)
        if wanted.stands_for is not None:
            self._raise(self.at_tail[wanted.stands_for], urgency)

    def _land(self, key: str, *, done: bool) -> None:
        self.wanted[key].stands_for = None
        for tail in [tail for tail, doer in self.at_tail.items() if doer == key]:
            del self.at_tail[tail]
            for other in [other for other, wanted in self.wanted.items() if wanted.stands_for == tail]:
                self.wanted[other].stands_for = None
                if not done:
                    self._begins_anew(other)

    def _begins_anew(self, key: str) -> None:
        self._land(key, done=False)
        wanted = self.wanted[key]
        wanted.front, wanted.whole = b"", True
        if not wanted.tickets:
            self._drop(key)

    def _drop(self, key: str) -> None:
        self._land(key, done=False)
        del self.wanted[key]

    def die(
        self, number: int, status: int = -signal.SIGSEGV, words: str = "", stage: str = ""
    ) -> list[Action]:
        worker = self.workers.pop(number)
        self.asked_aside.pop(number, None)
        if worker.key is not None:
            wanted = self.wanted[worker.key]
            wanted.worker = None
            wanted.deaths += not worker.recalled
            if wanted.deaths < MAX_ATTEMPTS:
                self._begins_anew(worker.key)
        return self._perform(self.plan.worker_gone(number, status, stage, words, self.now))

    def stall(self, number: int) -> list[Action]:
        actions = self._perform(self.plan.stalled(number))
        self.workers[number].recalled |= bool(actions)
        return actions

    def swell(self, number: int, evidence: str = "ptxas 9 GiB") -> list[Action]:
        return self._perform(self.plan.over_memory(number, evidence))

    def crash(
        self, key: str, status: int = -signal.SIGSEGV, words: str = "", stage: str = ""
    ) -> list[Action]:
        return self.die(self.worker_of(key), status, words, stage)

    def pass_time(self, seconds: float) -> list[Action]:
        self.now += seconds
        actions = self._perform(self.plan.tick(self.now))
        deadline = self.plan.next_deadline()
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
                    assert self.present <= self.plan.limit
                case Assign(number, job):
                    self._assign(self.workers[number], number, job)
                case MoveOn(number):
                    assert number in self.full
                case Retire(number):
                    assert self.workers[number].state == "idle"
                    self.workers[number].state = "retired"
                case Kill(number):
                    worker = self.workers[number]
                    assert worker.state == ("idle" if worker.kind.confined and worker.key is None else "busy")
                    self.workers[number].state = "killed"
                    self.workers[number].recalled = self.plan.quiesced
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
        assert (job.front, job.whole) == (wanted.front, wanted.whole)
        assert not self.plan.quiesced
        self._check_turn(wanted)
        worker.state, worker.key = "busy", job.key
        wanted.worker = number

    def _check_turn(self, chosen: Wanted) -> None:
        waiting = [
            wanted
            for wanted in self.wanted.values()
            if wanted.worker is None and wanted.stands_for is None and wanted.kind == chosen.kind
        ]
        assert chosen.urgency == min(wanted.urgency for wanted in waiting)
        classmates = [wanted for wanted in waiting if wanted.urgency == chosen.urgency]

        def last_served(wanted: Wanted) -> int:
            return min(self.turns.get(ticket.client, 0) for ticket in wanted.tickets)

        turn = last_served(chosen)
        assert turn == min(map(last_served, classmates)), "another client has waited for longer"
        clients = {t.client for t in chosen.tickets if self.turns.get(t.client, 0) == turn}
        firsts = [
            min(self._length(w) for w in classmates if client in {t.client for t in w.tickets})
            for client in clients
        ]
        assert self._length(chosen) in firsts, "its client has a longer one"
        self.assignments += 1
        self.turns.update({ticket.client: self.assignments for ticket in chosen.tickets})

    @staticmethod
    def _length(wanted: Wanted) -> tuple[float, int]:
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


# Tails: what several jobs come to


def two_at_one_tail(limit: int = 2) -> SimulatedService:
    """`first` is at it, and `second` has stood aside."""
    simulated = service(limit)
    simulated.request("first", urgency=BACKGROUND)
    simulated.request("second")
    assert simulated.reach("first", "tail") == [Proceed(simulated.worker_of("first"))]
    assert simulated.reach("second", "tail") == [StandAside(simulated.worker_of("second"))]
    simulated.stand_aside("second")
    return simulated


def test_who_stands_aside_for_a_tail_holds_no_worker() -> None:
    simulated = two_at_one_tail()
    _, actions = simulated.request("third")
    assert assigned(actions) == ["third"]


def test_who_stood_aside_is_taken_up_with_its_front_when_the_tail_is_made() -> None:
    simulated = two_at_one_tail()
    (assign,) = [action for action in simulated.finish("first") if isinstance(action, Assign)]
    assert (assign.job.key, assign.job.front, assign.job.whole) == ("second", b"front of second", False)


def test_who_stands_aside_too_late_is_taken_up_at_once() -> None:
    simulated = service()
    simulated.request("first")
    simulated.request("second")
    simulated.reach("first", "tail")
    simulated.reach("second", "tail")
    simulated.finish("first")
    assert assigned(simulated.stand_aside("second")) == ["second"]


@pytest.mark.parametrize("end", ["failure", "crash", "zygote"])
def test_a_failure_at_a_tail_is_its_own_and_the_others_are_compiled_whole(end: str) -> None:
    simulated = two_at_one_tail()
    match end:
        case "failure":
            actions = simulated.finish("first", Failure("compile", "ptxas said no"))
        case "crash":
            simulated.crash("first")
            actions = simulated.finish("first")  # it had its second attempt alone
        case _:
            simulated.lose_zygote()
            simulated.zygote_ready()
            actions = simulated.all_forked()
    (assign,) = [action for action in actions if isinstance(action, Assign) and action.job.key == "second"]
    assert (assign.job.front, assign.job.whole) == (b"", True)


def test_whoever_is_at_a_tail_is_as_urgent_as_those_who_wait_for_it() -> None:
    simulated = two_at_one_tail()
    job = simulated.plan.in_flight("first")
    assert job is not None
    assert job.urgency == EARLY
    simulated.wait_for("second")
    assert job.urgency == AWAITED


def test_who_is_at_one_tail_may_stand_aside_at_the_next() -> None:
    simulated = service(limit=3)
    for key in ("first", "second", "third"):
        simulated.request(key)
    simulated.reach("first", "ttgir 1")
    simulated.reach("second", "ttgir 1")
    simulated.stand_aside("second")
    simulated.reach("third", "ttgir 2")
    simulated.reach("third", "ptx")
    simulated.reach("first", "ptx")
    simulated.stand_aside("first")
    assert assigned(simulated.finish("third")) == ["first"]
    assert assigned(simulated.finish("first")) == ["second"]


def test_what_stands_aside_and_nobody_wants_any_more_is_dropped() -> None:
    simulated = service()
    simulated.request("first", client=1)
    simulated.request("second", client=2)
    simulated.reach("first", "tail")
    simulated.reach("second", "tail")
    simulated.stand_aside("second")
    simulated.leave(2)
    assert simulated.plan.in_flight("second") is None
    assert assigned(simulated.finish("first")) == []


# Getting ready


def test_a_zygote_is_started_once_however_often_it_is_announced() -> None:
    simulated = SimulatedService()
    assert simulated.announce() == [StartZygote(PLAIN)]
    assert simulated.announce() == []
    _, actions = simulated.request("a")
    assert actions == []


def test_all_workers_are_forked_before_anybody_asks() -> None:
    simulated = SimulatedService(limit=3)
    simulated.announce()
    assert simulated.zygote_ready() == [Fork(number, PLAIN) for number in (1, 2, 3)]


def test_a_request_starts_the_zygote_that_nobody_announced() -> None:
    _, actions = SimulatedService().request("a")
    assert actions == [StartZygote(PLAIN)]


def test_requests_made_before_the_zygote_is_ready_are_not_lost() -> None:
    simulated = SimulatedService(limit=2)
    tickets = [simulated.request(key)[0] for key in "ab"]
    simulated.zygote_ready()
    assert assigned(simulated.all_forked()) == ["a", "b"]
    simulated.finish("a")
    simulated.finish("b")
    assert [simulated.answer(ticket) for ticket in tickets] == ["entry", "entry"]


# Single flight


def test_many_tickets_for_one_key_are_one_compile() -> None:
    simulated = service()
    tickets = [simulated.request("a")[0] for _ in range(5)]
    assert simulated.running == ["a"]
    actions = simulated.finish("a", "the entry")
    assert sum(isinstance(action, Deliver) for action in actions) == 1
    assert [simulated.answer(ticket) for ticket in tickets] == ["the entry"] * 5


def test_two_clients_that_want_one_key_share_one_assignment() -> None:
    simulated = service()
    mine, first = simulated.request("a", client=1)
    yours, second = simulated.request("a", client=2)
    assert assigned(first + second) == ["a"]
    simulated.finish("a")
    assert simulated.answer(mine) == simulated.answer(yours) == "entry"


def test_what_is_queued_or_running_is_in_flight_and_nothing_else() -> None:
    simulated = service(limit=1)
    simulated.request("a")
    simulated.request("b")
    a, b = simulated.plan.in_flight("a"), simulated.plan.in_flight("b")
    assert a is not None
    assert a.worker == simulated.worker_of("a")
    assert b is not None
    assert b.worker is None
    simulated.finish("a")
    assert simulated.plan.in_flight("a") is None


def test_a_key_that_was_answered_is_compiled_anew_when_asked_for_again() -> None:
    simulated = service()
    simulated.request("a")
    simulated.finish("a")
    _, actions = simulated.request("a")
    assert assigned(actions) == ["a"]


def test_a_failure_that_the_worker_reports_is_passed_on_and_the_worker_goes_on() -> None:
    simulated = service(limit=1)
    bad, _ = simulated.request("bad")
    good, _ = simulated.request("good")
    failure = Failure("source", "NameError")
    assert assigned(simulated.finish("bad", failure)) == ["good"]
    simulated.finish("good")
    assert simulated.answer(bad) is failure
    assert simulated.answer(good) == "entry"


# Order


def busy_service() -> SimulatedService:
    """Whose only worker compiles "first"."""
    simulated = service(limit=1)
    simulated.request("first")
    return simulated


def order_of_the_rest(simulated: SimulatedService) -> list[str]:
    order = []
    while simulated.running:
        order += assigned(simulated.finish(simulated.running[0]))
    return order


def test_what_is_awaited_goes_before_what_is_early_and_that_before_background_work() -> None:
    simulated = busy_service()
    simulated.request("background", urgency=BACKGROUND)
    simulated.request("early", urgency=EARLY)
    simulated.request("awaited", urgency=AWAITED)
    assert order_of_the_rest(simulated) == ["awaited", "early", "background"]


@pytest.mark.parametrize("urgency", Urgency)
def test_equally_urgent_jobs_run_in_the_order_of_their_requests(urgency: Urgency) -> None:
    simulated = busy_service()
    for key in "cab":
        simulated.request(key, urgency=urgency)
    assert order_of_the_rest(simulated) == ["c", "a", "b"]


def test_a_waiter_moves_its_job_up() -> None:
    simulated = busy_service()
    for key in "abc":
        simulated.request(key)
    simulated.wait_for("c")
    assert order_of_the_rest(simulated) == ["c", "a", "b"]


def test_awaited_jobs_keep_the_order_of_their_requests_among_themselves() -> None:
    simulated = busy_service()
    for key in "abc":
        simulated.request(key)
    simulated.wait_for("c")
    simulated.wait_for("b")
    assert order_of_the_rest(simulated) == ["b", "c", "a"]


def test_a_more_urgent_request_for_a_queued_key_moves_it_up_and_a_less_urgent_one_not_down() -> None:
    simulated = busy_service()
    for key in "abc":
        simulated.request(key)
    simulated.request("c", urgency=AWAITED)
    simulated.request("c", urgency=BACKGROUND)
    simulated.request("b", urgency=BACKGROUND)
    assert order_of_the_rest(simulated) == ["c", "a", "b"]


def test_waiting_for_a_running_or_unknown_key_changes_nothing() -> None:
    simulated = busy_service()
    simulated.wait_for("first")
    simulated.wait_for("unknown")
    assert order_of_the_rest(simulated) == []


def test_a_job_awaited_while_it_runs_is_still_first_when_it_has_to_run_again() -> None:
    simulated = busy_service()
    simulated.request("other", urgency=AWAITED)
    simulated.wait_for("first")
    simulated.crash("first")
    assert assigned(simulated.all_forked()) == ["first"]


# Several clients


def test_clients_take_turns_however_much_one_of_them_asks_for() -> None:
    simulated = busy_service()
    for number in range(4):
        simulated.request(f"mine {number}", client=1)
    for number in range(2):
        simulated.request(f"yours {number}", client=2)
    assert order_of_the_rest(simulated) == ["yours 0", "mine 0", "yours 1", "mine 1", "mine 2", "mine 3"]


def test_taking_turns_never_puts_early_work_before_what_somebody_waits_for() -> None:
    simulated = busy_service()
    for number in range(2):
        simulated.request(f"awaited {number}", client=1, urgency=AWAITED)
    simulated.request("early", client=2)
    assert order_of_the_rest(simulated) == ["awaited 0", "awaited 1", "early"]


def test_of_one_clients_jobs_the_longest_goes_first_and_the_unknown_before_it() -> None:
    simulated = busy_service()
    for key, estimate in {"short": 0.1, "long": 3.0, "unknown": None, "middling": 1.0, "new": None}.items():
        simulated.request(key, estimate=estimate)
    assert order_of_the_rest(simulated) == ["unknown", "new", "long", "middling", "short"]


def test_a_job_of_several_clients_comes_when_it_is_the_turn_of_any() -> None:
    simulated = busy_service()
    simulated.request("mine", client=1)
    simulated.request("ours", client=1)
    simulated.request("ours", client=2)
    assert order_of_the_rest(simulated) == ["ours", "mine"]


# Kinds of workers


def prepare(simulated: SimulatedService, kind: Kind) -> list[Action]:
    """Have a zygote of `kind` ready, as after its first request."""
    assert simulated.zygotes[kind] == "starting"
    return simulated.zygote_ready(kind)


def test_another_environment_gets_a_zygote_of_its_own_and_an_idle_workers_room() -> None:
    simulated = service(limit=1)
    simulated.request("plain", PLAIN)
    plain = simulated.worker_of("plain")
    simulated.finish("plain")
    ticket, actions = simulated.request("debug", DEBUG)
    assert actions == [StartZygote(DEBUG)]
    assert prepare(simulated, DEBUG) == [Retire(plain)]
    assert simulated.die(plain, status=0)[0] == Fork(plain + 1, DEBUG)
    assert assigned(simulated.all_forked()) == ["debug"]
    simulated.finish("debug")
    assert simulated.answer(ticket) == "entry"


def test_only_one_idle_worker_makes_room_for_one_job() -> None:
    simulated = service(limit=2)
    simulated.request("debug", DEBUG)
    assert [type(action) for action in prepare(simulated, DEBUG)] == [Retire]
    simulated.request("plain", PLAIN)
    assert simulated.running == ["plain"], "the other worker stays at work"


def test_a_busy_worker_of_another_environment_is_waited_for() -> None:
    simulated = service(limit=1)
    simulated.request("plain", PLAIN)
    simulated.request("debug", DEBUG)
    assert prepare(simulated, DEBUG) == []
    assert [type(action) for action in simulated.finish("plain")] == [Deliver, Retire]


def test_room_goes_to_the_most_urgent_job_whatever_its_kind() -> None:
    simulated = busy_service()
    simulated.request("plain", PLAIN)
    simulated.request("debug", DEBUG, urgency=AWAITED)
    prepare(simulated, DEBUG)
    assert [type(action) for action in simulated.finish("first")] == [Deliver, Retire]


def test_a_job_takes_no_workers_place_that_comes_first_itself() -> None:
    simulated = busy_service()
    simulated.request("plain", PLAIN, urgency=AWAITED)
    simulated.request("debug", DEBUG)
    prepare(simulated, DEBUG)
    assert assigned(simulated.finish("first")) == ["plain"]


def test_a_zygote_of_an_environment_of_the_past_is_ended_with_its_last_worker() -> None:
    simulated = service(limit=2)
    simulated.leave(0)  # who announced it
    simulated.request("debug", DEBUG)
    (retire,) = prepare(simulated, DEBUG)
    assert isinstance(retire, Retire)
    actions = simulated.die(retire.worker, status=0)
    assert not any(isinstance(action, EndZygote) for action in actions), "one worker is left"
    simulated.all_forked()
    simulated.finish("debug")
    simulated.pass_time(IDLE_TIMEOUT)
    first, last = simulated.in_state("retired")
    assert simulated.die(first, status=0) == [EndZygote(PLAIN)]
    assert simulated.die(last, status=0) == [], "the next job finds a zygote"
    assert list(simulated.zygotes) == [DEBUG]


def test_a_zygote_stays_for_the_client_that_announced_its_kind_and_goes_with_it() -> None:
    simulated = service(limit=1)
    simulated.announce(DEBUG, client=1)
    assert simulated.zygote_ready(DEBUG) == []
    (worker,) = simulated.in_state("idle")
    simulated.pass_time(IDLE_TIMEOUT)
    assert simulated.die(worker, status=0) == []
    assert set(simulated.zygotes) == {PLAIN, DEBUG}
    assert simulated.leave(1) == [EndZygote(DEBUG)]


def test_a_zygote_that_somebody_asks_for_is_not_ended() -> None:
    simulated = service(limit=1)
    simulated.request("debug", DEBUG)
    (retire,) = prepare(simulated, DEBUG)
    simulated.request("plain", PLAIN)
    assert isinstance(retire, Retire)
    assert [type(action) for action in simulated.die(retire.worker, status=0)] == [Fork]
    assert set(simulated.zygotes) == {PLAIN, DEBUG}


def test_a_zygote_whose_last_worker_crashed_is_ended_too() -> None:
    simulated = service(limit=2)
    simulated.request("debug", DEBUG)
    (retire,) = prepare(simulated, DEBUG)
    assert isinstance(retire, Retire)
    simulated.die(retire.worker, status=0)
    for _ in range(MAX_ATTEMPTS):
        simulated.all_forked()
        simulated.crash("debug")
    assert list(simulated.zygotes) == [PLAIN]


def test_there_are_never_more_workers_than_the_limit() -> None:
    simulated = service(limit=3)
    forks = [action for key in "abcdefgh" for action in simulated.request(key)[1] if isinstance(action, Fork)]
    assert forks == []
    assert sorted(simulated.running) == ["a", "b", "c"]
    assert [type(action) for action in simulated.finish("b")] == [Deliver, Assign]


# A worker dies


def test_a_job_whose_worker_dies_is_tried_once_more_in_a_fresh_worker() -> None:
    simulated = service(limit=1)
    ticket, _ = simulated.request("a")
    first = simulated.worker_of("a")
    assert simulated.crash("a") == [Fork(first + 1, PLAIN)]
    assert assigned(simulated.all_forked()) == ["a"]
    simulated.finish("a")
    assert simulated.answer(ticket) == "entry"


def test_a_job_that_killed_two_workers_fails_as_a_crash_with_signal_and_last_words() -> None:
    simulated = service(limit=1)
    mine, _ = simulated.request("a", client=1)
    yours, _ = simulated.request("a", client=2)
    simulated.crash("a", -signal.SIGABRT, "first words")
    simulated.all_forked()
    actions = simulated.crash("a", -signal.SIGABRT, "Assertion `x' failed", "llir")
    assert not any(isinstance(action, Fork) for action in actions), "nobody wants another worker"
    failure = simulated.answer(mine)
    assert failure is simulated.answer(yours)
    assert failure.kind == "crash"
    assert "was ended by SIGABRT, 2 times" in failure.summary
    assert failure.stage == "llir"
    assert failure.output == "Assertion `x' failed"
    assert "assertion" in failure.detail
    assert failure.advice


@pytest.mark.parametrize(
    ("status", "summary", "cause"),
    [
        (-signal.SIGKILL, "was ended by SIGKILL", "memory is exhausted"),
        (-signal.SIGSEGV, "was ended by SIGSEGV", "memory fault"),
        (-signal.SIGBUS, "was ended by SIGBUS", "memory fault"),
        (-signal.SIGTERM, "was ended by SIGTERM", ""),
        (-63, "was ended by signal 63", ""),
        (3, "exited with code 3", ""),
        (0, "exited with code 0", ""),
    ],
)
def test_a_crash_says_how_the_worker_ended_and_what_is_likely(status: int, summary: str, cause: str) -> None:
    simulated = service(limit=1)
    ticket, _ = simulated.request("a")
    for _ in range(MAX_ATTEMPTS):
        simulated.crash("a", status)
        simulated.all_forked()
    failure = simulated.answer(ticket)
    assert summary in failure.summary
    assert cause in failure.detail
    assert bool(failure.detail) == bool(cause)


def test_a_crash_fails_its_own_waiters_only() -> None:
    simulated = service(limit=2)
    bad, _ = simulated.request("bad")
    good, _ = simulated.request("good")
    simulated.crash("bad")
    simulated.finish("good")
    simulated.crash("bad")
    assert simulated.answer(bad).kind == "crash"
    assert simulated.answer(good) == "entry"


def test_a_worker_that_dies_idle_blames_nobody_and_is_replaced_when_needed() -> None:
    simulated = service(limit=1)
    (number,) = simulated.workers
    assert simulated.die(number, status=1) == []
    ticket, actions = simulated.request("a")
    assert actions == [Fork(number + 1, PLAIN)]
    simulated.all_forked()
    simulated.crash("a")
    simulated.all_forked()
    simulated.finish("a")
    assert simulated.answer(ticket) == "entry"


def test_a_second_attempt_waits_for_those_who_run_and_then_has_the_service_to_itself() -> None:
    simulated = service(limit=3)
    for key in ("neighbour", "bad", "waits"):
        simulated.request(key)
    simulated.request("later")
    simulated.crash("bad")
    simulated.all_forked()
    assert sorted(simulated.running) == ["neighbour", "waits"]
    assert assigned(simulated.finish("waits")) == []
    assert assigned(simulated.finish("neighbour")) == ["bad"]
    assert simulated.request("new", client=2)[1] == []
    assert assigned(simulated.finish("bad")) == ["new", "later"]


def test_a_second_attempt_does_not_wait_for_long_nor_is_it_waited_for_long() -> None:
    simulated = service(limit=2)
    for key in ("neighbour", "bad"):
        simulated.request(key)
    simulated.crash("bad")
    simulated.pass_time(ALONE_PATIENCE)
    assert assigned(simulated.all_forked()) == ["bad"], "its neighbour takes too long"
    simulated.finish("neighbour")
    simulated.finish("bad")
    for key in ("hangs", "other"):
        simulated.request(key)
    simulated.crash("hangs")
    assert assigned(simulated.finish("other")) == ["hangs"]
    simulated.request("more")
    simulated.pass_time(ALONE_PATIENCE)
    assert assigned(simulated.all_forked()) == ["more"]


def test_others_go_on_at_once_when_the_client_of_a_second_attempt_leaves() -> None:
    simulated = service(limit=2)
    simulated.request("bad", client=2)
    simulated.request("neighbour", client=1)
    simulated.crash("bad")
    simulated.request("next", client=1)
    assert [type(action) for action in simulated.leave(2)] == [Fork]
    assert assigned(simulated.all_forked()) == ["next"]


# Quiesced, and resized


def test_quiesced_it_lets_running_compiles_end_and_then_has_no_workers() -> None:
    simulated = service(limit=2)
    ticket, _ = simulated.request("a")
    (idle,) = simulated.in_state("idle")
    assert simulated.quiesce() == [Retire(idle)]
    waiting, actions = simulated.request("b")
    assert actions == []
    assert [type(action) for action in simulated.finish("a")] == [Deliver, Retire]
    for number in simulated.in_state("retired"):
        assert simulated.die(number, status=0) == []
    assert simulated.answer(ticket) == "entry"
    assert simulated.plan.next_deadline() is None
    assert [type(action) for action in simulated.resume()] == [Fork]
    assert assigned(simulated.all_forked()) == ["b"]
    simulated.finish("b")
    assert simulated.answer(waiting) == "entry"


def test_quiesced_now_kills_running_compiles_and_blames_none_of_them() -> None:
    simulated = service(limit=1)
    ticket, _ = simulated.request("a")
    number = simulated.worker_of("a")
    for _ in range(MAX_ATTEMPTS + 1):
        assert simulated.quiesce(kill=True) == [Kill(number)]
        assert simulated.die(number, -signal.SIGKILL) == []
        simulated.resume()
        assert assigned(simulated.all_forked()) == ["a"]
        number = simulated.worker_of("a")
    simulated.finish("a")
    assert simulated.answer(ticket) == "entry"


def test_a_compile_without_space_begins_anew_elsewhere_once_and_then_the_machine_is_to_blame() -> None:
    simulated = service(limit=2)
    ticket, _ = simulated.request("a")
    first = simulated.worker_of("a")
    other, _ = simulated.request("b")
    (idle,) = simulated.in_state("idle") or [simulated.worker_of("b")]
    actions = simulated.finish("a", outcome=Failure("space", "no space is left in /dev/shm"))
    assert actions == [MoveOn(first), Retire(first)]
    assert [type(action) for action in simulated.finish("b")] == [Deliver, Retire]  # it is there as well
    assert simulated.answer(other) == "entry"
    for number in (first, idle):
        simulated.die(number, status=0)
    assert assigned(simulated.all_forked()) == ["a"]
    simulated.finish("a", outcome=Failure("space", "no space is left in /tmp"))
    answer = simulated.answer(ticket)
    assert (answer.kind, answer.summary) == ("service", "no space is left in /tmp")


def test_a_compile_whose_worker_was_stopped_begins_anew_and_is_not_blamed() -> None:
    simulated = service(limit=1)
    ticket, _ = simulated.request("a")
    for _ in range(MAX_ATTEMPTS + 1):
        number = simulated.worker_of("a")
        assert simulated.stall(number) == [Kill(number)]
        assert simulated.stall(number) == []  # it is ending
        simulated.die(number, -signal.SIGKILL)
        assert assigned(simulated.all_forked()) == ["a"]
    simulated.finish("a")
    assert simulated.answer(ticket) == "entry"
    (idle,) = simulated.in_state("idle")
    assert simulated.stall(idle) == []


def test_a_worker_or_a_zygote_that_comes_while_it_is_quiesced_gets_no_work() -> None:
    simulated = SimulatedService(limit=1)
    simulated.request("a")
    simulated.zygote_ready()
    simulated.quiesce()
    assert simulated.all_forked() == [Retire(1)]
    assert simulated.announce(DEBUG) == [StartZygote(DEBUG)]
    assert simulated.zygote_ready(DEBUG) == []


def test_with_less_memory_idle_workers_leave_at_once_and_busy_ones_when_they_are_done() -> None:
    simulated = service(limit=3)
    for key in "abcd":
        simulated.request(key)
    assert simulated.resize(1) == []
    assert [type(action) for action in simulated.finish("a")] == [Deliver, Retire]
    assert [type(action) for action in simulated.finish("b")] == [Deliver, Retire]
    assert assigned(simulated.finish("c")) == ["d"]
    for number in simulated.in_state("retired"):
        simulated.die(number, status=0)
    assert simulated.resize(3) == [], "nobody needs them"
    simulated.finish("d")
    (idle,) = simulated.in_state("idle")
    assert simulated.resize(0) == [Retire(idle)]


# The time limit


def test_a_compile_that_takes_too_long_is_killed_and_fails_as_a_timeout() -> None:
    simulated = service(limit=1, time_limit=10.0)
    slow, _ = simulated.request("slow")
    number = simulated.worker_of("slow")
    assert simulated.plan.next_deadline() == simulated.now + 10.0
    assert simulated.pass_time(9.9) == []
    assert simulated.pass_time(0.1) == [Kill(number)]
    simulated.die(number, -signal.SIGKILL)
    simulated.all_forked()
    simulated.pass_time(10.0)
    assert simulated.answers[slow] == [], "its last words come with the burial"
    simulated.crash("slow", -signal.SIGKILL, "ptxas is thinking", "cubin")
    failure = simulated.answer(slow)
    assert failure.kind == "timeout"
    assert "10 s" in failure.summary
    assert failure.stage == "cubin"
    assert failure.output == "ptxas is thinking"
    assert "HEADSTART_COMPILE_TIMEOUT" in failure.advice


def test_a_compile_that_uses_too_much_memory_is_killed_tried_once_more_and_fails() -> None:
    simulated = SimulatedService(1, memory_limit=512 << 20)
    simulated.announce()
    simulated.zygote_ready()
    simulated.all_forked()
    assert simulated.plan.memory_limits() == {}, "nobody is watched who does nothing"
    ticket, _ = simulated.request("a")
    for _ in range(MAX_ATTEMPTS):
        simulated.all_forked()
        (number,) = simulated.plan.memory_limits()
        assert simulated.swell(number, "ptxas 600 MiB") == [Kill(number)]
        assert simulated.plan.memory_limits() == {}
        simulated.die(number, -signal.SIGKILL, stage="cubin")
    failure = simulated.answer(ticket)
    assert (failure.kind, failure.stage, failure.detail) == ("memory", "cubin", "ptxas 600 MiB")
    assert "more than 512 MiB of memory, 2 times" in failure.summary


def test_of_two_memory_limits_for_one_job_the_larger_holds() -> None:
    plan = Plan(1)
    for number, limit in enumerate([5, 9, 7]):
        plan.requested(Ticket(number, 1), "a", PLAIN, "payload", EARLY, 0.0, memory_limit=limit)
    job = plan.in_flight("a")
    assert job is not None
    assert job.memory_limit == 9
    plan.requested(Ticket(3, 1), "a", PLAIN, "payload", EARLY, 0.0)
    assert job.memory_limit is None


def test_a_timeout_is_tried_once_more_and_then_the_others_go_on() -> None:
    simulated = service(limit=1, time_limit=10.0)
    simulated.request("slow")
    next_one, _ = simulated.request("next")
    for _ in range(MAX_ATTEMPTS):
        assert simulated.running == ["slow"]
        simulated.pass_time(10.0)
        simulated.crash("slow", -signal.SIGKILL)
        actions = simulated.all_forked()
    assert assigned(actions) == ["next"]
    simulated.finish("next")
    assert simulated.answer(next_one) == "entry"


def test_what_nobody_waits_for_has_a_time_limit_that_ends_when_somebody_does() -> None:
    simulated = service(limit=1)
    simulated.request("a", urgency=BACKGROUND)
    assert simulated.plan.next_deadline() == simulated.now + BACKGROUND_TIME_LIMIT
    simulated.wait_for("a")
    assert simulated.plan.next_deadline() is None


def test_of_two_time_limits_for_one_job_the_longer_holds() -> None:
    simulated = service(limit=1, time_limit=10.0)
    simulated.request("a", client=1)
    simulated.time_limit = 20.0
    simulated.request("a", client=2)
    simulated.time_limit = 5.0
    simulated.request("a", client=3)
    assert simulated.plan.next_deadline() == simulated.now + 20.0
    simulated.time_limit = None
    simulated.request("a", client=4)
    assert simulated.plan.next_deadline() is None


def test_the_time_limit_counts_from_the_start_of_a_compile_not_from_its_request() -> None:
    simulated = service(limit=1, time_limit=10.0)
    simulated.request("a")
    simulated.request("b")
    simulated.pass_time(9.0)
    simulated.finish("a")
    assert simulated.pass_time(9.0) == []
    assert simulated.pass_time(1.0) == [Kill(simulated.worker_of("b"))]


def test_a_result_that_comes_after_the_kill_still_counts() -> None:
    simulated = service(limit=1, time_limit=10.0)
    ticket, _ = simulated.request("a")
    number = simulated.worker_of("a")
    simulated.pass_time(10.0)
    simulated.finish("a")
    _, actions = simulated.request("b")
    assert actions == [], "a worker about to die gets no more work"
    simulated.die(number, -signal.SIGKILL)
    assert simulated.answer(ticket) == "entry"
    assert assigned(simulated.all_forked()) == ["b"]


def test_without_a_time_limit_a_compile_is_never_killed() -> None:
    simulated = service(limit=1)
    simulated.request("a")
    assert simulated.plan.next_deadline() is None
    assert simulated.pass_time(1e9) == []


# A zygote dies


def test_losing_a_zygote_restarts_it_and_blames_no_job() -> None:
    simulated = service(limit=1)
    ticket, _ = simulated.request("a")
    assert simulated.lose_zygote() == [StartZygote(PLAIN)]
    simulated.zygote_ready()
    assert assigned(simulated.all_forked()) == ["a"]
    simulated.crash("a")  # its first own failure
    assert assigned(simulated.all_forked()) == ["a"]
    simulated.finish("a")
    assert simulated.answer(ticket) == "entry"


def test_jobs_of_a_lost_zygote_keep_their_place_in_the_queue() -> None:
    simulated = service(limit=1)
    for key in "abc":
        simulated.request(key)
    simulated.lose_zygote()
    simulated.zygote_ready()
    assert assigned(simulated.all_forked()) == ["a"]
    assert order_of_the_rest(simulated) == ["b", "c"]


def test_a_lost_zygote_that_nobody_needs_is_not_restarted_until_somebody_does() -> None:
    simulated = service()
    assert simulated.lose_zygote() == []
    assert simulated.plan.next_deadline() is None
    _, actions = simulated.request("a")
    assert actions == [StartZygote(PLAIN)]


def test_a_zygote_that_is_lost_three_times_in_a_row_is_given_up() -> None:
    simulated = service(limit=1)
    tickets = [simulated.request(key)[0] for key in "ab"]
    for _ in range(MAX_ZYGOTE_LOSSES - 1):
        assert StartZygote(PLAIN) in simulated.lose_zygote()
    actions = simulated.lose_zygote(why="it was killed")
    assert {type(action) for action in actions} == {Deliver}
    for ticket in tickets:
        failure = simulated.answer(ticket)
        assert failure.kind == "service"
        assert "it was killed; it happened 3 times in a row" in failure.summary


def test_a_zygote_that_was_given_up_is_tried_again_for_the_next_request() -> None:
    simulated = service(limit=1)
    simulated.request("a")
    for _ in range(MAX_ZYGOTE_LOSSES):
        simulated.lose_zygote()
    ticket, actions = simulated.request("b")
    assert actions == [StartZygote(PLAIN)]
    assert simulated.lose_zygote() == [StartZygote(PLAIN)], "the count begins anew"
    simulated.zygote_ready()
    simulated.all_forked()
    simulated.finish("b")
    assert simulated.answer(ticket) == "entry"


def test_a_compile_between_losses_means_they_are_not_in_a_row() -> None:
    simulated = service(limit=1)
    for key in "abcdef":
        ticket, _ = simulated.request(key)
        for _ in range(MAX_ZYGOTE_LOSSES - 1):
            assert StartZygote(PLAIN) in simulated.lose_zygote()
            simulated.zygote_ready()
            simulated.all_forked()
        simulated.finish(key)
        assert simulated.answer(ticket) == "entry"


def test_losing_an_unknown_zygote_changes_nothing() -> None:
    assert Plan(1).zygote_lost(PLAIN, "twice reported", 0.0) == []


def test_losing_one_zygote_leaves_the_others_alone() -> None:
    simulated = service(limit=2)
    simulated.request("new", PLAIN)
    simulated.request("old", OLD)
    (retire,) = simulated.zygote_ready(OLD)
    assert isinstance(retire, Retire)
    simulated.die(retire.worker, status=0)
    simulated.all_forked()
    assert simulated.running == ["new", "old"]
    simulated.lose_zygote(OLD)
    assert simulated.running == ["new"]


def test_the_room_that_a_lost_zygotes_workers_leave_goes_to_another_kind() -> None:
    simulated = service(limit=1)
    simulated.request("new", PLAIN)
    ticket, _ = simulated.request("old", OLD)
    simulated.zygote_ready(OLD)
    assert [type(action) for action in simulated.finish("new")] == [Deliver, Retire]
    assert [type(action) for action in simulated.lose_zygote(PLAIN)] == [Fork]
    simulated.all_forked()
    simulated.finish("old")
    assert simulated.answer(ticket) == "entry"


def test_giving_up_one_kind_lets_another_go_on() -> None:
    simulated = service(limit=1)
    simulated.request("new", PLAIN)
    for _ in range(MAX_ZYGOTE_LOSSES - 1):
        simulated.lose_zygote(PLAIN)
        simulated.zygote_ready(PLAIN)
        simulated.all_forked()
    ticket, _ = simulated.request("old", OLD)
    simulated.zygote_ready(OLD)
    simulated.lose_zygote(PLAIN)
    simulated.all_forked()
    simulated.finish("old")
    assert simulated.answer(ticket) == "entry"


def test_a_zygote_that_cannot_compile_fails_its_jobs_with_the_reason_and_may_be_tried_again() -> None:
    simulated = SimulatedService()
    tickets = [simulated.request(key)[0] for key in "ab"]
    simulated.zygote_unable(why="libtriton.so: undefined symbol")
    for ticket in tickets:
        failure = simulated.answer(ticket)
        assert failure.kind == "service"
        assert "libtriton.so: undefined symbol" in failure.summary
    _, actions = simulated.request("a")
    assert actions == [StartZygote(PLAIN)]


def test_a_zygote_that_cannot_compile_fails_no_other_kinds_jobs() -> None:
    simulated = SimulatedService()
    simulated.request("old", OLD)
    new, _ = simulated.request("new", PLAIN)
    simulated.zygote_unable(OLD)
    assert simulated.answers[new] == []
    simulated.zygote_ready(PLAIN)
    assert assigned(simulated.all_forked()) == ["new"]


# The machine gives no more processes


def test_a_failed_fork_makes_do_with_the_workers_there_are() -> None:
    simulated = SimulatedService(limit=3)
    simulated.announce()
    simulated.zygote_ready()
    simulated.forked(1)
    simulated.fork_fails(2)
    simulated.fork_fails(3)
    assert simulated.plan.limit == 1
    simulated.now += 1
    tickets = [simulated.request(key)[0] for key in "abc"]
    for key in "abc":
        assert simulated.running == [key]
        simulated.finish(key)
    assert [simulated.answer(ticket) for ticket in tickets] == ["entry"] * 3


def test_when_not_even_one_worker_can_be_forked_the_jobs_fail_with_the_reason() -> None:
    simulated = SimulatedService(limit=2)
    tickets = [simulated.request(key)[0] for key in "ab"]
    simulated.zygote_ready()
    simulated.fork_fails(1)
    simulated.fork_fails(2, "Resource temporarily unavailable")
    for ticket in tickets:
        failure = simulated.answer(ticket)
        assert failure.kind == "service"
        assert "Resource temporarily unavailable" in failure.summary


def test_a_fork_is_tried_again_for_the_next_request() -> None:
    simulated = SimulatedService(limit=1)
    simulated.request("a")
    simulated.zygote_ready()
    simulated.fork_fails(1)
    _, actions = simulated.request("b")
    assert actions == [Fork(2, PLAIN)]


def test_a_fork_that_fails_for_one_kind_does_not_stall_another() -> None:
    simulated = SimulatedService(limit=1)
    simulated.request("new", PLAIN)
    simulated.request("old", OLD)
    simulated.zygote_ready(PLAIN)
    simulated.zygote_ready(OLD)
    actions = simulated.fork_fails(1)
    assert [action.kind for action in actions if isinstance(action, Fork)] == [OLD]


# Clients leave


def test_a_client_that_leaves_takes_its_queued_jobs_but_not_the_running_one() -> None:
    simulated = service(limit=1)
    running, _ = simulated.request("running", client=1)
    queued, _ = simulated.request("queued", client=1)
    other, _ = simulated.request("other", client=2)
    simulated.leave(1)
    assert simulated.plan.in_flight("queued") is None
    assert simulated.plan.in_flight("running") is not None
    assert assigned(simulated.finish("running")) == ["other"]
    simulated.finish("other")
    assert simulated.answers[running] == simulated.answers[queued] == []
    assert simulated.answer(other) == "entry"


def test_a_job_that_another_client_wants_too_stays_when_one_leaves() -> None:
    simulated = busy_service()
    mine, _ = simulated.request("shared", client=1)
    yours, _ = simulated.request("shared", client=2)
    simulated.leave(1)
    assert order_of_the_rest(simulated) == ["shared"]
    assert simulated.answers[mine] == []
    assert simulated.answer(yours) == "entry"


def test_somebody_else_can_join_a_running_job_whose_client_left() -> None:
    simulated = service(limit=1)
    simulated.request("a", client=1)
    simulated.leave(1)
    ticket, actions = simulated.request("a", client=2)
    assert actions == []
    simulated.finish("a")
    assert simulated.answer(ticket) == "entry"


def test_a_dropped_job_that_is_asked_for_again_takes_its_new_place() -> None:
    simulated = busy_service()
    simulated.request("a", client=2, urgency=AWAITED)
    simulated.request("b", client=3)
    simulated.leave(2)
    simulated.request("a", client=3)
    assert order_of_the_rest(simulated) == ["b", "a"]


def test_a_job_that_nobody_wants_any_more_is_not_tried_again_after_a_crash() -> None:
    simulated = service(limit=1)
    simulated.request("a", client=1)
    simulated.leave(1)
    assert simulated.crash("a") == []
    assert simulated.plan.in_flight("a") is None


def test_a_zygote_is_not_restarted_for_a_job_that_nobody_wants_any_more() -> None:
    simulated = service(limit=1)
    simulated.request("a", client=1)
    simulated.leave(1)
    assert simulated.lose_zygote() == []
    assert simulated.plan.in_flight("a") is None


# Idle


def test_idle_workers_leave_after_the_idle_timeout_and_then_nothing_is_due() -> None:
    simulated = service(limit=2)
    assert simulated.plan.next_deadline() == simulated.now + IDLE_TIMEOUT
    assert simulated.pass_time(IDLE_TIMEOUT - 1) == []
    assert simulated.pass_time(1) == [Retire(1), Retire(2)]
    assert simulated.plan.next_deadline() is None
    for number in (1, 2):
        assert simulated.die(number, status=0) == []
    assert simulated.plan.next_deadline() is None, "no workers, no wakeups"


def test_a_worker_that_worked_meanwhile_stays_its_full_idle_time() -> None:
    simulated = service(limit=1, idle_timeout=5.0)
    simulated.pass_time(4.0)
    simulated.request("a")
    simulated.pass_time(4.0)
    simulated.finish("a")
    assert simulated.pass_time(4.0) == []
    assert simulated.pass_time(1.0) == [Retire(1)]


def test_a_plan_without_workers_wakes_nobody() -> None:
    simulated = SimulatedService()
    assert simulated.plan.next_deadline() is None
    simulated.announce()
    assert simulated.plan.next_deadline() is None


def test_only_as_many_workers_come_back_after_an_idle_time_as_there_are_jobs() -> None:
    simulated = service(limit=4)
    for number in [
        action.worker for action in simulated.pass_time(IDLE_TIMEOUT) if isinstance(action, Retire)
    ]:
        simulated.die(number, status=0)
    _, actions = simulated.request("a")
    assert [type(action) for action in actions] == [Fork]


def test_a_job_that_was_moved_up_still_needs_only_one_worker() -> None:
    simulated = service(limit=2)
    for number in [
        action.worker for action in simulated.pass_time(IDLE_TIMEOUT) if isinstance(action, Retire)
    ]:
        simulated.die(number, status=0)
    simulated.request("a", urgency=BACKGROUND)
    simulated.wait_for("a")
    _, actions = simulated.request("a")
    assert actions == []
    assert len(simulated.in_state("forking")) == 1


# What comes too late


def test_news_of_workers_that_are_gone_changes_nothing() -> None:
    simulated = service(limit=1)
    ticket, _ = simulated.request("a")
    assert simulated.plan.finished(99, "entry", simulated.now) == []
    assert simulated.plan.worker_gone(99, 0, "", "", simulated.now) == []
    simulated.finish("a")
    assert simulated.plan.finished(1, "entry again", simulated.now) == []
    assert simulated.answer(ticket) == "entry"


# What nobody vouches for


def test_a_confined_worker_has_one_job_and_is_killed_while_the_next_one_is_forked_already() -> None:
    simulated = SimulatedService(limit=1)
    simulated.request("first", STRANGE)
    simulated.request("second", STRANGE)
    simulated.zygote_ready(STRANGE)
    simulated.all_forked()
    number = simulated.worker_of("first")
    assert [type(action) for action in simulated.finish("first")] == [Deliver, Kill, Fork]
    assert assigned(simulated.all_forked()) == ["second"]
    assert simulated.die(number, status=-9) == []


def test_who_vouches_and_who_does_not_share_neither_job_nor_worker() -> None:
    simulated = service(limit=2)
    simulated.request("key", PLAIN)
    simulated.request("key confined", STRANGE)
    simulated.zygote_ready(STRANGE)
    (leaving,) = simulated.in_state("retired")
    simulated.die(leaving, status=0)
    simulated.all_forked()
    plain, strange = (simulated.workers[simulated.worker_of(key)].kind for key in ("key", "key confined"))
    assert (plain.confined, strange.confined) == (False, True)


@pytest.mark.parametrize("kind", ["timeout", "memory"])
def test_a_confined_compile_that_runs_out_of_its_limits_is_not_tried_again(kind: str) -> None:
    simulated = SimulatedService(limit=1, time_limit=10.0, memory_limit=1 << 30)
    ticket, _ = simulated.request("first", STRANGE)
    simulated.zygote_ready(STRANGE)
    simulated.all_forked()
    number = simulated.worker_of("first")
    _ = simulated.pass_time(10.0) if kind == "timeout" else simulated.swell(number)
    simulated.wanted["first"].deaths = MAX_ATTEMPTS  # there is no second one
    simulated.die(number, status=-9)
    assert simulated.answer(ticket).kind == kind
    assert "times" not in simulated.answer(ticket).summary


def test_a_confined_worker_that_says_that_there_is_no_space_moves_nobody() -> None:
    simulated = SimulatedService(limit=1)
    ticket, _ = simulated.request("first", STRANGE)
    simulated.zygote_ready(STRANGE)
    simulated.all_forked()
    actions = simulated.finish("first", Failure("space", "none is left"))
    assert [type(action) for action in actions] == [Deliver, Kill]
    assert simulated.answer(ticket).kind == "service"


# Many kinds


def test_however_many_environments_are_asked_for_there_are_few_zygotes() -> None:
    simulated = SimulatedService(limit=2)
    kinds = [Kind("triton 3.9", f"TRITON_OVERRIDE_ARCH={number}", confined=True) for number in range(300)]
    tickets = [simulated.request(f"kernel for {kind}", kind)[0] for kind in kinds]
    assert len(simulated.zygotes) == plan.MAX_ZYGOTES
    while not all(simulated.answers[ticket] for ticket in tickets):
        progress = False
        for kind in [kind for kind, state in simulated.zygotes.items() if state == "starting"]:
            progress = bool(simulated.zygote_ready(kind)) or True
        progress |= bool(simulated.all_forked())
        for key in simulated.running:
            progress |= bool(simulated.finish(key))
        for number in simulated.in_state("retired", "killed"):
            progress |= bool(simulated.die(number, status=0)) or True
        assert progress, "nothing will ever happen to the others"
        assert len(simulated.zygotes) <= plan.MAX_ZYGOTES


# Any order of events


class AnyOrderOfEvents(RuleBasedStateMachine):
    """The service's checks hold after each event, and in the end nothing is left."""

    CLIENTS = (1, 2, 3)
    KINDS = (PLAIN, DEBUG, OLD, STRANGE)
    any_number = st.integers(0, 99)

    @initialize(
        limit=st.integers(1, 3),
        time_limit=st.sampled_from([None, 10.0]),
        memory_limit=st.sampled_from([None, 1 << 30]),
        most_zygotes=st.sampled_from([1, 2, plan.MAX_ZYGOTES]),
    )
    def begin(self, limit: int, time_limit: float | None, memory_limit: int | None, most_zygotes: int) -> None:
        self.service = SimulatedService(
            limit,
            time_limit=time_limit,
            memory_limit=memory_limit,
            idle_timeout=30.0,
            most_zygotes=most_zygotes,
        )
        self.limit = limit
        self.tickets: set[Ticket] = set()

    @rule(
        client=st.sampled_from(CLIENTS),
        kind=st.sampled_from(KINDS),
        kernel=st.integers(0, 2),
        urgency=st.sampled_from(Urgency),
        estimate=st.sampled_from([None, 1.0, 2.0]),
    )
    def request(self, client: int, kind: Kind, kernel: int, urgency: Urgency, estimate: float | None) -> None:
        key = f"kernel {kernel} of {kind}"
        ticket, _ = self.service.request(key, kind, client=client, urgency=urgency, estimate=estimate)
        self.tickets.add(ticket)

    @rule(pick=any_number)
    def wait(self, pick: int) -> None:
        keys = sorted(self.service.wanted)
        self.service.wait_for(keys[pick % len(keys)] if keys else "unknown")

    @rule(client=st.sampled_from(CLIENTS))
    def leave(self, client: int) -> None:
        self.service.leave(client)
        self.tickets = {ticket for ticket in self.tickets if ticket.client != client}

    @rule(kill=st.booleans())
    def quiesce(self, kill: bool) -> None:
        self.service.quiesce(kill=kill)

    @rule()
    def resume(self) -> None:
        self.service.resume()

    @rule(kind=st.sampled_from(KINDS), client=st.sampled_from(CLIENTS))
    def come(self, kind: Kind, client: int) -> None:
        self.service.announce(kind, client=client)

    def _zygotes(self, *states: str) -> list[Kind]:
        return [kind for kind, state in self.service.zygotes.items() if state in states]

    @precondition(lambda self: self._zygotes("starting"))
    @rule(pick=any_number)
    def zygote_becomes_ready(self, pick: int) -> None:
        starting = self._zygotes("starting")
        self.service.zygote_ready(starting[pick % len(starting)])

    @precondition(lambda self: self._zygotes("starting"))
    @rule(pick=any_number)
    def zygote_is_unable(self, pick: int) -> None:
        starting = self._zygotes("starting")
        self.service.zygote_unable(starting[pick % len(starting)])

    @precondition(lambda self: self.service.zygotes)
    @rule(pick=any_number)
    def zygote_dies(self, pick: int) -> None:
        zygotes = self._zygotes("starting", "ready")
        self.service.lose_zygote(zygotes[pick % len(zygotes)])

    @precondition(lambda self: self.service.in_state("forking"))
    @rule(pick=any_number, works=st.sampled_from([True, True, True, False]))
    def fork(self, pick: int, works: bool) -> None:
        forking = self.service.in_state("forking")
        number = forking[pick % len(forking)]
        if works:
            self.service.forked(number)
        else:
            self.service.fork_fails(number)

    def _going_on(self) -> list[str]:
        asked = {self.service.workers[number].key for number in self.service.asked_aside}
        return [key for key in self.service.running if key not in asked]

    @precondition(lambda self: self._going_on())
    @rule(pick=any_number, seam=st.integers(1, 2), program=st.integers(0, 1))
    def reach(self, pick: int, seam: int, program: int) -> None:
        running = self._going_on()
        key = running[pick % len(running)]
        at = [int(tail[0]) for tail, doer in self.service.at_tail.items() if doer == key]
        if not self.service.wanted[key].whole and not self.service.wanted[key].front and seam > max(at, default=0):
            self.service.reach(key, f"{seam} {program} of {self.service.wanted[key].kind}")

    @precondition(lambda self: self.service.asked_aside)
    @rule(pick=any_number)
    def stand_aside(self, pick: int) -> None:
        numbers = sorted(self.service.asked_aside)
        key = self.service.workers[numbers[pick % len(numbers)]].key
        assert key is not None
        self.service.stand_aside(key)

    @precondition(lambda self: self._going_on())
    @rule(pick=any_number, outcome=st.sampled_from(["entry", "source", "space"]))
    def finish(self, pick: int, outcome: str) -> None:
        running = self._going_on()
        failure = None if outcome == "entry" else Failure(outcome, "it failed")
        self.service.finish(running[pick % len(running)], failure or outcome)

    @precondition(lambda self: self.service.in_state("idle", "busy", "retired", "killed"))
    @rule(pick=any_number, status=st.sampled_from([0, 1, -9, -11]))
    def worker_dies(self, pick: int, status: int) -> None:
        workers = self.service.in_state("idle", "busy", "retired", "killed")
        self.service.die(workers[pick % len(workers)], status)

    @precondition(lambda self: self.service.plan.memory_limits())
    @rule(pick=any_number)
    def worker_swells(self, pick: int) -> None:
        watched = sorted(self.service.plan.memory_limits())
        self.service.swell(watched[pick % len(watched)])

    @rule(limit=st.integers(1, 3))
    def memory_comes_and_goes(self, limit: int) -> None:
        self.limit = max(self.limit, limit)  # those that are too many leave as they finish
        self.service.resize(limit)

    @rule(seconds=st.sampled_from([0.0, 1.0, 10.0, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self.service.pass_time(seconds)

    @invariant()
    def no_ticket_is_answered_twice_or_after_its_client_left(self) -> None:
        assert all(len(outcomes) <= 1 for outcomes in self.service.answers.values())

    @invariant()
    def what_is_wanted_and_not_yet_answered_is_in_flight(self) -> None:
        unanswered = {ticket for ticket in self.tickets if not self.service.answers[ticket]}
        assert unanswered == {ticket for wanted in self.service.wanted.values() for ticket in wanted.tickets}
        for key, wanted in self.service.wanted.items():
            job = self.service.plan.in_flight(key)
            assert job is not None or not wanted.tickets
            assert job is None or job.worker == wanted.worker

    @invariant()
    def what_is_queued_has_a_worker_coming(self) -> None:
        under_way = self._zygotes("starting") or self.service.in_state("forking", "busy", "retired", "killed")
        queued = [key for key, wanted in self.service.wanted.items() if wanted.worker is None]
        assert under_way or not queued or self.service.plan.quiesced, "nothing will ever happen to these"

    @invariant()
    def there_are_at_most_as_many_workers_as_allowed_and_each_has_one_job(self) -> None:
        assert self.service.present <= self.limit
        assert len(set(self.service.running)) == len(self.service.running)
        assert all(
            (worker.key is not None) or worker.state != "busy" for worker in self.service.workers.values()
        )

    def teardown(self) -> None:
        if not hasattr(self, "service"):
            return
        self.service.resume()
        for _ in range(200):
            if not self._settle_a_little():
                break
        assert not [key for key, wanted in self.service.wanted.items() if wanted.tickets], "these were lost"
        assert all(len(self.service.answers[ticket]) == 1 for ticket in self.tickets)
        self.service.pass_time(30.0)
        for number in self.service.in_state("retired"):
            self.service.die(number, status=0)
        assert not self.service.workers
        assert self.service.plan.next_deadline() is None

    def _settle_a_little(self) -> bool:
        """Let everything that is under way come to its end. Returns whether there was anything."""
        simulated = self.service
        starting, forking = self._zygotes("starting"), simulated.in_state("forking")
        running, leaving = simulated.running, simulated.in_state("retired", "killed")
        for kind in starting:
            simulated.zygote_ready(kind)
        for number in forking:
            simulated.forked(number)
        for key in running:
            if simulated.worker_of(key) in simulated.asked_aside:
                simulated.stand_aside(key)
            else:
                simulated.finish(key)
        for number in filter(simulated.workers.__contains__, leaving):  # some go with their zygotes
            simulated.die(number, status=0)
        return bool(starting or forking or running or leaving)


TestAnyOrderOfEvents = AnyOrderOfEvents.TestCase
TestAnyOrderOfEvents.settings = settings(
    max_examples=300, stateful_step_count=40, deadline=None, report_multiple_bugs=False
)
