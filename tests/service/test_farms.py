"""What a service lends to a farm: deadlines, what comes late, what comes back, and for how long nobody asks again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from headstart import wire
from headstart.errors import ServiceError
from headstart.model.request import CompileRequest
from headstart.service import events
from headstart.service import farms as farms_module
from headstart.service.farms import FACTOR, MAX_PATIENCE, MAX_REST, MOST_LATE, REST, SLACK, Farms
from headstart.service.lending import DEFAULT_ESTIMATE
from headstart.service.loop import Loop
from headstart.service.queue import Job, Kind, Room, Ticket, Urgency
from headstart.service.results import CompilePayload
from kernels import pointwise

RAY = wire.FarmSettings("ray")
TOOLCHAIN = "ab" * 32
KIND = Kind("triton", "")


class FakeProcess:
    """See `headstart.service.bridge_process.BridgeProcess`."""

    def __init__(
        self, loop: Loop, settings: wire.FarmSettings, take: Callable[[Any], None], gone: Callable[[str], None]
    ) -> None:
        self.pid = 1
        self.settings = settings
        self.say = take
        self.gone = gone
        self.is_dead = False
        self.sent: list[Any] = []
        self.left = False

    def send(self, message: Any) -> None:
        self.sent.append(message)

    def die(self, why: str) -> None:
        self.is_dead = True
        self.gone(why)

    def replace_if_stopped(self, now: float) -> None:
        pass

    def leave(self) -> None:
        self.left = True


class Lender:
    """Farms with bridges that are fakes and a clock that a test moves; what is told of is noted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.processes: list[FakeProcess] = []
        self.startable = True
        self.told: list[str] = []
        self.events: list[events.Event] = []
        self.obtained: list[str] = []
        monkeypatch.setattr(farms_module, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(farms_module, "BridgeProcess", self._start)
        self.farms = Farms(
            Loop(),
            self.events.append,
            lambda job_key, payload, made: self.obtained.append(job_key),
            lambda settings, text: self.told.append(text),
        )
        self.farms.prepare(RAY)

    def _start(self, *arguments: Any) -> FakeProcess:
        if not self.startable:
            raise ServiceError("no bridge to the farm: no more processes")
        self.processes.append(FakeProcess(*arguments))
        return self.processes[-1]

    @property
    def process(self) -> FakeProcess:
        return self.processes[-1]

    def state(self, idle: int = 4, room: int = 6, seen: int = 0, delay: float = 0.5) -> None:
        self.process.say(wire.FarmState(seen, {TOOLCHAIN: idle}, {TOOLCHAIN: room}, delay))

    def lend(self, *keys: str, estimate: float | None = 2.0, cache_dir: bytes = b"/cache") -> None:
        preferences = wire.Preferences(cache_dir, farm=RAY)
        request = CompileRequest.make(**pointwise(), target="cuda:90")
        for key in keys:
            payload = CompilePayload(f"key of {key}", TOOLCHAIN, request, True, preferences, "", False)
            self.farms.lend(Job(key, KIND, Urgency.EARLY, payload, estimate, tickets=[Ticket(1, 1)]))
        self.farms.flush()

    def sent(self, kind: type) -> list[Any]:
        return [message for message in self.process.sent if isinstance(message, kind)]

    def tickets(self) -> dict[str, int]:
        return {job.key.removeprefix("key of "): job.ticket for lend in self.sent(wire.Lend) for job in lend.jobs}

    def make(self, *keys: str) -> None:
        tickets = self.tickets()
        self.process.say(wire.Made([wire.MadeEntry(tickets[key], "node", b"digest") for key in keys]))

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.farms.look_around(self.now)
        self.farms.flush()
        deadline = self.farms.deadline
        assert deadline is None or deadline > 0, "the loop would spin"

    def returned(self) -> list[str]:
        return [event.key for event in self.events if isinstance(event, events.Returned)]

    def offers(self) -> dict[str, Room]:
        """The latest."""
        return dict([event for event in self.events if isinstance(event, events.Offered)][-1].rooms)

    @property
    def report(self) -> wire.FarmReport:
        (found,) = self.farms.reports()
        return found


@pytest.fixture
def lender(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lender]:
    made = Lender(monkeypatch)
    yield made
    made.farms.end()
    assert all(each.left or each.is_dead for each in made.processes)
    assert made.farms.reports() == []


def test_what_is_lent_in_one_turn_is_one_message_for_each_store(lender: Lender) -> None:
    for key in ("a", "b"):
        lender.farms.lend(lender_job(key, b"/cache"))
    lender.farms.lend(lender_job("c", b"/other"))
    lender.farms.flush()
    assert [(len(each.jobs), each.cache_dir) for each in lender.sent(wire.Lend)] == [(2, b"/cache"), (1, b"/other")]
    (job, _) = lender.sent(wire.Lend)[0].jobs
    assert msgspec.msgpack.decode(job.request, type=CompileRequest).digest() == job.request_digest


def lender_job(key: str, cache_dir: bytes) -> Job:
    request = CompileRequest.make(**pointwise(), target="cuda:90")
    preferences = wire.Preferences(cache_dir, farm=RAY)
    payload = CompilePayload(f"key of {key}", TOOLCHAIN, request, True, preferences, "", False)
    return Job(key, KIND, Urgency.EARLY, payload, tickets=[Ticket(1, 1)])


def test_what_was_made_in_time_is_obtained(lender: Lender) -> None:
    lender.lend("a", "b")
    lender.make("a")
    assert lender.obtained == ["a"]
    assert lender.returned() == []
    assert (lender.report.lent, lender.report.made, lender.report.out) == (2, 1, 1)


@pytest.mark.parametrize(("estimate", "taken_for"), [(2.0, 2.0), (None, DEFAULT_ESTIMATE)])
def test_what_is_not_there_after_a_deadline_from_its_estimate_is_compiled_here(
    lender: Lender, estimate: float | None, taken_for: float
) -> None:
    lender.state(delay=0.5)
    lender.lend("a", estimate=estimate)
    due = SLACK + 0.5 + FACTOR * taken_for
    lender.pass_time(due - 0.01)
    assert lender.returned() == []
    lender.pass_time(0.01)
    assert lender.returned() == ["a"]
    (message,) = lender.sent(wire.TakeBack)
    assert message.late


def test_nobody_waits_without_end_whatever_an_estimate_says(lender: Lender) -> None:
    lender.state(delay=0.5)
    lender.lend("a", estimate=1e300)
    lender.process.say(wire.Begun([lender.tickets()["a"]]))
    lender.pass_time(SLACK + 0.5 + MAX_PATIENCE - 0.01)
    assert lender.returned() == []
    lender.pass_time(0.01)
    assert lender.returned() == ["a"]


def test_the_deadline_begins_anew_when_a_worker_has_begun(lender: Lender) -> None:
    lender.lend("a")
    lender.pass_time(SLACK + FACTOR * 2.0 - 0.1)
    lender.process.say(wire.Begun([lender.tickets()["a"]]))
    assert events.LentBegun("a") in lender.events
    lender.pass_time(1.0)
    assert lender.returned() == []


def test_what_is_late_is_welcome(lender: Lender) -> None:
    lender.lend("a")
    lender.pass_time(100.0)
    assert lender.returned() == ["a"]
    lender.make("a")
    assert lender.obtained == ["a"]
    assert lender.report.late == 1


def test_what_is_answered_here_is_taken_back_and_forgotten_since_a_bridge_never_answers_it(lender: Lender) -> None:
    lender.lend("a")
    lender.farms.settled("a")
    lender.farms.flush()
    (message,) = lender.sent(wire.TakeBack)
    assert (message.tickets, message.late) == ([lender.tickets()["a"]], False)
    assert lender.report.out == 0
    assert not lender.farms.busy
    assert lender.farms.deadline is None
    lender.pass_time(100.0)
    assert lender.returned() == []


def test_an_entry_that_was_on_its_way_when_its_job_was_answered_here_changes_nothing(lender: Lender) -> None:
    lender.lend("a")
    lender.farms.settled("a")
    lender.make("a")
    assert lender.obtained == []
    assert lender.report.made == 0


def test_what_nobody_wants_any_more_is_taken_back_and_forgotten(lender: Lender) -> None:
    lender.lend("a", "b", "c")
    lender.farms.unwanted(lambda key: key == "a")
    lender.farms.flush()
    (message,) = lender.sent(wire.TakeBack)
    assert message.tickets == [lender.tickets()["b"], lender.tickets()["c"]]
    assert lender.report.out == 1


def test_what_a_worker_here_has_taken_back_does_not_begin_there_and_is_never_late(lender: Lender) -> None:
    lender.state()
    for number in range(MOST_LATE):
        lender.lend(f"{number}")
        lender.farms.begun_here(f"{number}")
        lender.farms.flush()
        lender.pass_time(100.0)
    assert [(each.tickets, each.late) for each in lender.sent(wire.TakeBack)] == [
        ([1], False),
        ([2], False),
        ([3], False),
    ]
    assert lender.returned() == []
    assert lender.told == []
    assert lender.offers()


def test_what_begins_here_and_is_late_or_has_begun_there_may_yet_come(lender: Lender) -> None:
    lender.lend("late")
    lender.pass_time(100.0)
    lender.lend("begun")
    lender.process.say(wire.Begun([lender.tickets()["begun"]]))
    for key in ("late", "begun"):
        lender.farms.begun_here(key)
        lender.make(key)
    assert lender.obtained == ["late", "begun"]


def test_what_was_late_and_is_answered_here_is_forgotten_too(lender: Lender) -> None:
    lender.lend("a")
    lender.pass_time(100.0)
    lender.farms.settled("a")
    assert not lender.farms.busy
    lender.farms.flush()
    assert [(each.tickets, each.late) for each in lender.sent(wire.TakeBack)] == [([1], True), ([1], False)]


def test_what_is_not_made_there_comes_back_once(lender: Lender) -> None:
    lender.lend("a")
    ticket = lender.tickets()["a"]
    lender.process.say(wire.Unmade([ticket]))
    lender.process.say(wire.Unmade([ticket]))
    lender.pass_time(100.0)
    assert lender.returned() == ["a"]


def test_what_was_lent_since_a_state_is_taken_off_it(lender: Lender) -> None:
    lender.lend("a", "b")
    lender.state(idle=4, room=6, seen=1)
    assert lender.offers()[TOOLCHAIN] == Room(3, 5, 0.5)


def test_after_some_deadlines_in_a_row_nothing_is_lent_for_a_while_which_doubles(lender: Lender) -> None:
    lender.state()
    rest = REST
    for _ in range(3):
        for number in range(MOST_LATE):
            lender.lend(f"{rest} {number}")
            lender.pass_time(100.0 + MAX_REST)
        lender.state(seen=10**6)
        assert lender.offers() == {}
        lender.pass_time(rest - 0.1)
        assert lender.offers() == {}
        lender.pass_time(0.2)
        assert lender.offers()
        rest *= 2
    assert len(lender.told) == 1
    assert "slower than it was thought to be" in lender.told[0]


def test_that_a_farm_is_slow_is_said_once_for_each_bridge(lender: Lender) -> None:
    def be_slow_and_then_not(name: str) -> None:
        for number in range(MOST_LATE):
            lender.lend(f"{name} {number}")
            lender.pass_time(100.0 + MAX_REST)
        lender.make(f"{name} 0")

    be_slow_and_then_not("first")
    be_slow_and_then_not("second")
    assert len(lender.told) == 1
    lender.process.die("")
    lender.farms.prepare(RAY)
    be_slow_and_then_not("of another bridge")
    assert len(lender.told) == 2


def test_a_bridge_that_dies_gives_everything_back_and_is_started_again_after_a_while(lender: Lender) -> None:
    lender.state()
    lender.lend("a", "b")
    lender.process.die("the bridge to the farm was killed by SIGKILL; its last words: none")
    assert lender.returned() == ["a", "b"]
    assert lender.offers() == {}
    assert len(lender.told) == 1
    lender.farms.prepare(RAY)
    assert len(lender.processes) == 1
    lender.lend("c")
    assert lender.returned() == ["a", "b", "c"]
    lender.pass_time(REST)
    assert len(lender.processes) == 1  # nobody asks for anything
    lender.farms.look_around(lender.now, lambda: {wire.FarmSettings("head:6379")})
    assert len(lender.processes) == 1  # nobody asks for anything that may go there
    lender.farms.look_around(lender.now, lambda: {RAY})
    assert len(lender.processes) == 2


def test_a_bridge_that_joins_and_dies_again_and_again_is_started_less_and_less_often(lender: Lender) -> None:
    for times in range(4):
        assert len(lender.processes) == times + 1
        lender.state()
        lender.process.die("the bridge to the farm has lost its cluster")
        lender.pass_time(REST * 2**times - 1)
        lender.farms.prepare(RAY)
        assert len(lender.processes) == times + 1
        lender.pass_time(1.0)
        lender.farms.prepare(RAY)
    lender.state()
    lender.lend("a")
    lender.make("a")
    lender.process.die("the bridge to the farm has lost its cluster")
    lender.pass_time(REST)
    lender.farms.prepare(RAY)
    assert len(lender.processes) == 6


def test_where_no_process_can_be_started_that_is_said_once(lender: Lender) -> None:
    lender.process.die("")
    lender.startable = False
    lender.farms.prepare(RAY)
    lender.pass_time(REST)
    lender.farms.prepare(RAY)
    assert lender.told == ["the farm is not used for 5 s: no bridge to the farm: no more processes"]
    lender.startable = True
    lender.pass_time(MAX_REST)
    lender.farms.prepare(RAY)


def test_what_a_bridge_says_to_people_reaches_them_unless_it_is_for_the_log(lender: Lender) -> None:
    lender.process.say(wire.FarmSays("loud"))
    lender.process.say(wire.FarmSays("quiet", quiet=True))
    assert lender.told == ["loud"]
