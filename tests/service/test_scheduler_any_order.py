"""The scheduler keeps its guarantees in any order of events."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from simulated_service import (
    DEBUG,
    OLD,
    PLACE,
    PLAIN,
    STRANGE,
    SimulatedService,
)

from headstart.service import scheduler
from headstart.service.queue import Kind, Ticket, Urgency
from headstart.wire import Failure

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
        most_zygotes=st.sampled_from([1, 2, scheduler.MAX_ZYGOTES]),
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
        unclaimed=st.booleans(),
        place=st.sampled_from([None, PLACE]),
    )
    def request(
        self,
        client: int,
        kind: Kind,
        kernel: int,
        urgency: Urgency,
        estimate: float | None,
        unclaimed: bool,
        place: tuple[str, str] | None,
    ) -> None:
        key = f"kernel {kernel} of {kind}"
        ticket, _ = self.service.request(
            key, kind, client=client, urgency=urgency, estimate=estimate, unclaimed=unclaimed, place=place
        )
        self.tickets.add(ticket)

    @rule(pick=any_number)
    def wait(self, pick: int) -> None:
        keys = sorted(self.service.wanted)
        self.service.wait_for(keys[pick % len(keys)] if keys else "unknown")

    @rule(pick=any_number)
    def obtain(self, pick: int) -> None:
        keys = sorted(self.service.wanted)
        self.service.obtain(keys[pick % len(keys)] if keys else "unknown")

    @rule(pick=any_number, of_any=st.booleans())
    def come_back(self, pick: int, of_any: bool) -> None:
        keys = sorted(self.service.wanted if of_any else self.service.away)
        self.service.come_back(keys[pick % len(keys)] if keys else "unknown")

    @rule(pick=any_number, of_any=st.booleans())
    def made_elsewhere(self, pick: int, of_any: bool) -> None:
        keys = sorted(self.service.wanted if of_any else self.service.away)
        self.service.made_elsewhere(keys[pick % len(keys)] if keys else "unknown")

    @rule(idle=st.integers(0, 2), room=st.integers(0, 3), delay=st.sampled_from([0.01, 100.0]))
    def offer(self, idle: int, room: int, delay: float) -> None:
        self.service.offer(idle, max(idle, room), delay)

    @rule(pick=any_number, of_any=st.booleans())
    def begin_there(self, pick: int, of_any: bool) -> None:
        keys = sorted(self.service.wanted if of_any else self.service.away)
        self.service.begin_there(keys[pick % len(keys)] if keys else "unknown")

    @rule(client=st.sampled_from(CLIENTS))
    def leave(self, client: int) -> None:
        self.service.leave(client)
        self.tickets = {ticket for ticket in self.tickets if ticket.client != client}

    @precondition(lambda self: self.tickets)
    @rule(pick=any_number)
    def withdraw(self, pick: int) -> None:
        tickets = sorted(self.tickets)
        ticket = tickets[pick % len(tickets)]
        self.service.withdraw(ticket)
        if not self.service.answers[ticket]:
            self.tickets.remove(ticket)

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
    @rule(pick=any_number, cut_point=st.integers(1, 2), program=st.integers(0, 1))
    def reach(self, pick: int, cut_point: int, program: int) -> None:
        running = self._going_on()
        key = running[pick % len(running)]
        at = [int(suffix[0]) for suffix, doer in self.service.at_suffix.items() if doer == key]
        wanted = self.service.wanted[key]
        if not wanted.whole and not wanted.prefix and cut_point > max(at, default=0):
            self.service.reach(key, f"{cut_point} {program} of {self.service.wanted[key].kind}")

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

    @precondition(lambda self: self.service.scheduler.memory_limits())
    @rule(pick=any_number)
    def worker_swells(self, pick: int) -> None:
        watched = sorted(self.service.scheduler.memory_limits())
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
            job = self.service.scheduler.in_flight(key)
            assert job is not None or not wanted.tickets
            assert job is None or job.worker == wanted.worker

    @invariant()
    def what_is_queued_has_a_worker_coming(self) -> None:
        under_way = self._zygotes("starting") or self.service.in_state("forking", "busy", "retired", "killed")
        claiming = [key for key, wanted in self.service.wanted.items() if wanted.claiming]
        queued = [key for key, wanted in self.service.wanted.items() if wanted.worker is None and not wanted.away]
        assert under_way or claiming or not queued or self.service.scheduler.quiesced, (
            "nothing will ever happen to these"
        )

    @invariant()
    def there_are_at_most_as_many_workers_as_allowed_and_each_has_one_job(self) -> None:
        assert self.service.present <= self.limit
        assert len(set(self.service.running)) == len(self.service.running)
        assert all((worker.key is not None) or worker.state != "busy" for worker in self.service.workers.values())

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
        assert self.service.scheduler.next_deadline() is None

    def _settle_a_little(self) -> bool:
        """Let everything that is under way come to its end. Returns whether there was anything."""
        simulated = self.service
        starting, forking = self._zygotes("starting"), simulated.in_state("forking")
        running, leaving = simulated.running, simulated.in_state("retired", "killed")
        away = simulated.away
        for key in away:
            simulated.come_back(key)
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
        return bool(away or starting or forking or running or leaving)


TestAnyOrderOfEvents = AnyOrderOfEvents.TestCase
TestAnyOrderOfEvents.settings = settings(
    max_examples=300, stateful_step_count=40, deadline=None, report_multiple_bugs=False
)
