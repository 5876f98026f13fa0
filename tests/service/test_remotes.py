"""Stores of other hosts, from a service's side: what is asked, who waits for how long, and what comes too late."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from headstart import wire
from headstart.errors import ServiceError
from headstart.service import remotes as remotes_module
from headstart.service.look_ups import Sought
from headstart.service.loop import Loop
from headstart.service.remotes import BACKGROUND_DEADLINE, MAX_REST, MOST_LATE, REST, STARTING, Remotes

REDIS = wire.RemoteSettings("redis://:secret@redis", deadline=0.1)
FOLDER = wire.RemoteSettings("file:///remote", deadline=0.1)


class FakeProcess:
    """See `headstart.service.remote_process.RemoteProcess`."""

    def __init__(
        self, loop: Loop, settings: wire.RemoteSettings, take: Callable[[Any], None], gone: Callable[[str], None]
    ) -> None:
        self.pid = 1
        self.settings = settings
        self.take = take
        self.gone = gone
        self.awake = False
        self.started = remotes_module.time.monotonic()
        self.sent: list[Any] = []
        self.left = self.died = False

    def send(self, message: Any) -> None:
        self.sent.append(message)

    def say(self, message: Any) -> None:
        self.awake |= isinstance(message, wire.Awake)
        self.take(message)

    def replace_if_stopped(self, now: float) -> None:
        pass

    def die(self, why: str = "") -> None:
        self.died = True
        self.gone(why)

    def leave(self) -> None:
        self.left = True

    def asked(self, kind: type = wire.LookUp) -> list[Any]:
        return [message for message in self.sent if isinstance(message, kind)]

    def answer(self, *found: str, entry: bytes = b"") -> None:
        """Everything that was asked: these keys are there."""
        wanted = [each for message in self.asked() for each in message.wanted]
        self.sent.clear()
        self.say(
            wire.LookedUp(
                [wire.FoundRemotely(each.ticket, entry) for each in wanted if each.key in found],
                [each.ticket for each in wanted if each.key not in found],
            )
        )


class Asking:
    """Remotes with processes that are fakes and a clock that a test moves; what is answered is noted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.processes: list[FakeProcess] = []
        self.startable = True
        self.told: list[tuple[wire.RemoteSettings, str]] = []
        self.answers: list[tuple[str, bool]] = []
        self.late: list[str] = []
        monkeypatch.setattr(remotes_module, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(remotes_module, "RemoteProcess", self._start)
        self.remotes = Remotes(Loop(), lambda settings, text: self.told.append((settings, text)))

    def _start(self, *arguments: Any) -> FakeProcess:
        if not self.startable:
            raise ServiceError("no remote process: no more processes")
        self.processes.append(FakeProcess(*arguments))
        return self.processes[-1]

    @property
    def process(self) -> FakeProcess:
        return self.processes[-1]

    def awake(self, settings: wire.RemoteSettings = REDIS) -> FakeProcess:
        self.remotes.prepare(settings)
        self.process.say(wire.Awake())
        return self.process

    def sought(self, key: str, cache_dir: bytes = b"/cache") -> Sought:
        return Sought(key, "kernel", f"request of {key}", cache_dir, False)

    def look_up(
        self, *keys: str, settings: wire.RemoteSettings = REDIS, cache_dir: bytes = b"/cache", **how: Any
    ) -> None:
        for key in keys:
            self.remotes.look_up(
                settings,
                self.sought(key, cache_dir),
                lambda found, key=key: self.answers.append((key, found is not None)),  # type: ignore[misc]
                lambda found, key=key: self.late.append(key),  # type: ignore[misc]
                **how,
            )
        self.remotes.flush()

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.remotes.look_around(self.now)
        deadline = self.remotes.deadline
        assert deadline is None or deadline > 0, "the loop would spin"


@pytest.fixture
def asking(monkeypatch: pytest.MonkeyPatch) -> Iterator[Asking]:
    made = Asking(monkeypatch)
    yield made
    made.remotes.end()
    assert all(process.left or process.died for process in made.processes)


# One message for many keys


def test_what_is_looked_up_in_one_turn_travels_in_one_message(asking: Asking) -> None:
    process = asking.awake()
    asking.look_up("a", "b", "c")
    (message,) = process.asked()
    assert [each.key for each in message.wanted] == ["a", "b", "c"]
    assert (message.wanted[0].kind, message.wanted[0].request_digest) == ("kernel", "request of a")
    process.answer("b")
    assert asking.answers == [("b", True), ("a", False), ("c", False)]
    assert asking.remotes.deadline is None


def test_what_is_for_other_stores_or_for_later_travels_by_itself(asking: Asking) -> None:
    process = asking.awake()
    asking.remotes.look_up(REDIS, asking.sought("a"), lambda found: None)
    asking.remotes.look_up(REDIS, asking.sought("b", b"/other"), lambda found: None)
    asking.remotes.look_up(REDIS, asking.sought("c"), lambda found: None, background=True)
    asking.remotes.flush()
    assert [(message.cache_dir, message.background) for message in process.asked()] == [
        (b"/cache", False),
        (b"/other", False),
        (b"/cache", True),
    ]


def test_a_key_that_is_being_looked_up_is_asked_for_once_and_everybody_is_answered(asking: Asking) -> None:
    process = asking.awake()
    asking.look_up("a")
    asking.look_up("a")
    assert len(process.asked()) == 1
    process.answer("a")
    assert asking.answers == [("a", True)] * 2


def test_there_is_a_process_for_each_setting_and_none_hears_of_the_other(asking: Asking) -> None:
    redis, folder = asking.awake(REDIS), asking.awake(FOLDER)
    asking.look_up("a", settings=REDIS)
    asking.look_up("a", settings=FOLDER)
    folder.answer("a")
    assert asking.answers == [("a", True)]
    redis.answer()
    assert asking.answers == [("a", True), ("a", False)]
    assert len(asking.processes) == 2


# Deadlines


def test_nobody_waits_for_longer_than_the_deadline_and_a_late_entry_is_told(asking: Asking) -> None:
    process = asking.awake()
    asking.look_up("a", "b")
    asking.pass_time(0.09)
    assert asking.answers == []
    assert asking.remotes.deadline == pytest.approx(0.01)
    asking.pass_time(0.02)
    assert asking.answers == [("a", False), ("b", False)]
    assert asking.late == []
    process.answer("b")
    assert asking.answers == [("a", False), ("b", False)]
    assert asking.late == ["b"]


def test_after_one_deadline_nobody_waits_until_something_is_answered(asking: Asking) -> None:
    process = asking.awake()
    asking.look_up("a")
    asking.pass_time(0.2)
    asking.look_up("b")
    assert asking.answers == [("a", False), ("b", False)]  # b at once
    assert len(process.asked()) == 2  # and it is asked for all the same: it may come before its compile is over
    process.answer()
    asking.look_up("c")
    assert len(asking.answers) == 2


def test_as_long_as_others_are_answered_a_look_up_waits_but_not_for_ever(asking: Asking) -> None:
    process = asking.awake()
    asking.look_up("last")
    for _ in range(9):
        asking.pass_time(0.09)
        asking.look_up("other")
        ticket = process.asked()[-1].wanted[0].ticket
        process.say(wire.LookedUp([], [ticket]))
        assert ("last", False) not in asking.answers
    asking.pass_time(0.09)
    assert ("last", False) not in asking.answers
    asking.pass_time(0.11)
    assert ("last", False) in asking.answers


def test_a_remote_that_is_late_time_and_again_is_not_waited_for_for_a_while_and_it_is_said_once(asking: Asking) -> None:
    process = asking.awake()
    process.say(wire.RemoteCounts([wire.RemoteReport("redis://redis")]))
    for _ in range(2):
        for _ in range(MOST_LATE):
            asking.look_up("a")
            assert asking.answers == []
            asking.pass_time(0.2)
            assert asking.answers == [("a", False)]
            asking.answers.clear()
            process.answer()
        asking.pass_time(REST - 0.5)
        asking.look_up("a")
        assert asking.answers == [("a", False)]
        asking.answers.clear()
        process.answer()
        asking.pass_time(0.5)
        asking.look_up("a")
        process.answer("a")
        assert asking.answers == [("a", True)]  # in time: what follows is as at first
        asking.answers.clear()
    assert [settings for settings, _ in asking.told] == [REDIS]
    assert "redis://redis does not answer within 0.1 s" in asking.told[0][1]
    assert "secret" not in asking.told[0][1]


def test_the_rest_doubles_while_no_answer_comes_in_time(asking: Asking) -> None:
    process = asking.awake()
    deadlines, waited = 0, []
    for _ in range(2000):
        asking.look_up("a")
        if not asking.answers:
            asking.pass_time(0.2)
            deadlines += 1
            waited.append(asking.now)
        asking.answers.clear()
        process.answer()
        asking.pass_time(1.0)
    gaps = [later - earlier for earlier, later in itertools.pairwise(waited) if later - earlier > 3]
    assert gaps[0] == pytest.approx(REST, abs=1.5)
    assert gaps[1] == pytest.approx(2 * REST, abs=2.5)
    assert max(gaps) == pytest.approx(MAX_REST, abs=2.5)
    assert deadlines < 45  # in 2000 seconds in which it never once answered in time


def test_look_ups_wait_for_a_process_that_is_being_started_and_not_for_one_that_does_not_come(asking: Asking) -> None:
    asking.look_up("a")
    asking.pass_time(STARTING - 0.1)
    assert asking.answers == []
    asking.process.say(wire.Awake())
    asking.pass_time(0.09)
    assert asking.answers == []
    asking.process.answer("a")
    assert asking.answers == [("a", True)]


def test_a_process_that_does_not_come_is_not_waited_for_again(asking: Asking) -> None:
    asking.look_up("a")
    asking.pass_time(STARTING + 0.1)
    asking.look_up("b")
    assert asking.answers == [("a", False), ("b", False)]
    asking.process.awake = True


def test_the_background_waits_longer_unless_somebody_begins_to_wait(asking: Asking) -> None:
    process = asking.awake()
    asking.look_up("a", "b", "c", background=True)
    asking.pass_time(BACKGROUND_DEADLINE - 0.1)
    assert asking.answers == []
    asking.remotes.hurry(REDIS, asking.sought("a"))
    asking.look_up("b")  # somebody else, who waits for it
    asking.pass_time(0.09)
    assert asking.answers == []
    asking.pass_time(0.02)
    assert sorted(asking.answers) == [("a", False), ("b", False), ("b", False), ("c", False)]
    process.answer("c")
    assert asking.late == ["c"]


def test_what_another_host_compiles_is_waited_for_until_its_time_is_over(asking: Asking) -> None:
    process = asking.awake()
    asking.look_up("a", "b", lease=3.0)
    assert [each.lease for each in process.asked()[0].wanted] == [3.0, 3.0]
    tickets = [each.ticket for each in process.asked()[0].wanted]
    process.say(wire.Claimed(tickets, 3.0))
    asking.pass_time(2.9)
    assert asking.answers == []
    process.say(wire.LookedUp([wire.FoundRemotely(tickets[0])], []))
    assert asking.answers == [("a", True)]
    asking.pass_time(0.2)
    assert asking.answers == [("a", True), ("b", False)]
    asking.look_up("c")  # that another host is slow says nothing about the remote
    assert len(asking.answers) == 2


# Processes that are of no use


def test_nobody_asks_while_the_process_says_that_it_is_no_use(asking: Asking) -> None:
    process = asking.awake()
    asking.look_up("a")
    process.say(wire.Availability(False))
    assert asking.answers == [("a", False)]
    process.sent.clear()
    asking.look_up("b")
    assert asking.answers == [("a", False), ("b", False)]
    assert process.sent == []
    process.say(wire.Availability(True))
    asking.look_up("c")
    assert len(asking.answers) == 2
    process.answer("c")
    assert asking.answers[-1] == ("c", True)


def test_a_process_that_dies_answers_nothing_and_is_started_again_later_and_later(asking: Asking) -> None:
    pauses = []
    for _ in range(3):
        process = asking.awake()
        asking.look_up("a")
        process.die("the remote process was killed by SIGKILL; its last words: none")
        assert asking.answers == [("a", False)]
        since, started = asking.now, len(asking.processes)
        while len(asking.processes) == started:
            asking.pass_time(1.0)
            asking.look_up("a")
        pauses.append(asking.now - since)
        asking.process.die("")  # of itself, before it was of any use
        asking.answers.clear()
    assert pauses == [REST, 2 * REST, 4 * REST]
    assert len(asking.told) == 1
    assert "SIGKILL" in asking.told[0][1]


def test_a_process_that_left_because_nobody_asked_is_started_at_once(asking: Asking) -> None:
    asking.awake().die("")
    asking.look_up("a")
    assert len(asking.processes) == 2
    asking.process.say(wire.Awake())
    asking.process.answer("a")
    assert asking.answers == [("a", True)]
    assert asking.told == []


def test_look_ups_wait_for_a_process_that_is_started_again_as_for_the_first(asking: Asking) -> None:
    asking.awake().die("")
    asking.pass_time(60.0)
    asking.look_up("a")
    asking.pass_time(STARTING - 0.1)
    assert asking.answers == []
    asking.process.say(wire.Awake())
    asking.process.answer("a")
    assert asking.answers == [("a", True)]


def test_where_no_process_can_be_started_everything_is_compiled_and_it_is_said_once(asking: Asking) -> None:
    asking.startable = False
    asking.look_up("a", "b")
    assert asking.answers == [("a", False), ("b", False)]
    assert len(asking.told) == 1
    asking.remotes.offer(REDIS, asking.sought("a"), b"digest")
    asking.startable = True
    asking.pass_time(REST)
    asking.look_up("c")
    asking.process.say(wire.Awake())
    asking.process.answer("c")
    assert asking.answers[-1] == ("c", True)


def test_a_process_that_says_that_its_store_answers_is_waited_for(asking: Asking) -> None:
    process = asking.awake()
    asking.look_up("a", "b")
    for _ in range(3):
        asking.pass_time(0.09)
        process.say(wire.LookedUp([], []))
    assert asking.answers == []
    asking.pass_time(0.11)
    assert asking.answers == [("a", False), ("b", False)]


def test_an_answer_that_nobody_asked_for_is_nothing(asking: Asking) -> None:
    process = asking.awake()
    process.say(wire.LookedUp([wire.FoundRemotely(99)], [100]))
    process.say(wire.Claimed([101], 1.0))
    assert asking.answers == []


def keys_sent(process: FakeProcess) -> list[list[str]]:
    return [[each.key for each in message.wanted] for message in process.asked()]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process may owe three answers, and two look-ups may wait for that."""
    monkeypatch.setattr(remotes_module, "_MOST_ASKED", 3)
    monkeypatch.setattr(remotes_module, "_MOST_QUEUED", 2)


@pytest.mark.usefixtures("few")
def test_a_process_that_answers_nothing_is_not_sent_more_and_more(asking: Asking) -> None:
    process = asking.awake()
    asking.look_up("a", "b", "c")
    asking.pass_time(0.2)
    asking.answers.clear()
    asking.look_up("d", "e")
    assert keys_sent(process) == [["a", "b", "c"]]
    assert asking.answers == [("d", False), ("e", False)]
    assert not asking.late


@pytest.mark.usefixtures("few")
def test_what_a_process_is_not_to_owe_yet_waits_in_the_background_and_is_asked_as_answers_come(asking: Asking) -> None:
    process = asking.awake()
    asking.look_up(*"abcdefg", background=True)
    assert keys_sent(process) == [["a", "b", "c"]]
    assert asking.answers == [("f", False), ("g", False)]  # for which there is no room either
    first = process.asked()[0].wanted
    process.say(wire.LookedUp([wire.FoundRemotely(first[0].ticket)], []))
    asking.remotes.flush()
    assert keys_sent(process) == [["a", "b", "c"], ["d"]]
    process.answer("d")
    asking.remotes.flush()
    assert keys_sent(process) == [["e"]]
    process.answer("e")
    assert sorted(asking.answers[2:]) == [("a", True), ("b", False), ("c", False), ("d", True), ("e", True)]
    assert not asking.remotes.busy


@pytest.mark.usefixtures("few")
def test_what_somebody_waits_for_does_not_wait_in_the_queue(asking: Asking) -> None:
    process = asking.awake()
    asking.look_up(*"abcde", background=True)
    asking.remotes.hurry(REDIS, asking.sought("e"))
    asking.look_up("d")
    assert keys_sent(process) == [["a", "b", "c"], ["e", "d"]]
    assert [message.background for message in process.asked()] == [True, False]
    assert process.asked(wire.Hurry) == []  # it was asked for in time
    process.answer("d", "e")
    asking.remotes.flush()
    assert keys_sent(process) == []
    assert sorted(asking.answers) == [(each, each in "de") for each in "abcdde"]


@pytest.mark.usefixtures("few")
def test_what_waits_in_the_queue_of_a_silent_process_is_compiled_and_never_asked_for(asking: Asking) -> None:
    process = asking.awake()
    asking.look_up(*"abc", background=True)
    asking.pass_time(1.0)
    asking.look_up(*"de", background=True)
    asking.pass_time(BACKGROUND_DEADLINE - 0.9)
    assert sorted(asking.answers) == [("a", False), ("b", False), ("c", False)]
    asking.pass_time(1.0)
    assert asking.answers[3:] == [("d", False), ("e", False)]
    process.answer()
    asking.remotes.flush()
    assert process.sent == []


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("how", ["dies", "is no use"])
def test_what_waits_in_the_queue_of_a_process_that_is_gone_is_compiled(asking: Asking, how: str) -> None:
    process = asking.awake()
    asking.look_up(*"abcde", background=True)
    if how == "dies":
        process.die("the remote process was killed by SIGKILL; its last words: none")
    else:
        process.say(wire.Availability(False))
    assert sorted(asking.answers) == [(each, False) for each in "abcde"]
    asking.remotes.flush()
    assert len(keys_sent(process)) == 1


def test_the_process_is_told_once_who_waits_for_what_it_has_in_the_background(asking: Asking) -> None:
    process = asking.awake()
    asking.look_up("a", "b", "c", background=True)
    tickets = [each.ticket for each in process.asked()[0].wanted]
    asking.remotes.hurry(REDIS, asking.sought("b"))
    asking.remotes.hurry(REDIS, asking.sought("b"))
    asking.look_up("c")
    asking.remotes.flush()
    assert process.asked(wire.Hurry) == [wire.Hurry(tickets[1:])]
    process.answer()
    asking.remotes.hurry(REDIS, asking.sought("a"))  # which is answered
    asking.remotes.flush()
    assert process.sent == []


def test_settings_that_are_wrong_are_said_once_and_not_tried_again(asking: Asking) -> None:
    process = asking.awake()
    asking.look_up("a")
    process.say(wire.RemoteSays("redis:// needs the package redis"))
    process.say(wire.Availability(False, for_good=True))
    process.die("")  # it has no more to do
    asking.pass_time(10 * MAX_REST)
    asking.look_up("b")
    asking.remotes.prepare(REDIS)
    asking.remotes.offer(REDIS, asking.sought("b"), b"digest")
    assert asking.answers == [("a", False), ("b", False)]
    assert len(asking.processes) == len(asking.told) == 1
    asking.awake(FOLDER)  # other settings are another matter
    asking.look_up("c", settings=FOLDER)
    asking.process.answer("c")
    assert asking.answers[-1] == ("c", True)


def test_what_was_counted_outlives_its_process(asking: Asking) -> None:
    process = asking.awake()
    tier = wire.RemoteReport("redis://redis", 1, 2, 300, 4, 500, 6, 0.5)
    process.say(wire.RemoteCounts([tier], 1, 2))
    process.die("")
    asking.awake().say(wire.RemoteCounts([tier], 3, 4))
    (counts,) = asking.remotes.counts()
    assert counts.tiers == [wire.RemoteReport("redis://redis", 2, 4, 600, 8, 1000, 12, 1.0)]
    assert (counts.refused, counts.dropped) == (4, 6)


# What goes out


def test_what_was_compiled_is_offered_by_its_key(asking: Asking) -> None:
    process = asking.awake()
    asking.remotes.offer(REDIS, asking.sought("a"), b"digest")
    assert process.asked(wire.Offer) == [wire.Offer("a", b"/cache", False, b"digest")]
    asking.remotes.disclaim(REDIS, "b")
    assert process.asked(wire.Disclaim) == [wire.Disclaim("b")]
    asking.remotes.disclaim(FOLDER, "b")  # which nobody has asked


def test_what_became_of_what_was_offered_is_known_process_by_process(asking: Asking) -> None:
    process = asking.awake()
    for key in ("a", "b", "c"):
        asking.remotes.offer(REDIS, asking.sought(key), b"digest")
    process.say(wire.RemoteCounts(settled=1, published=1))
    counts = asking.remotes.counts_of(REDIS)
    assert (counts.offered, counts.settled, counts.published) == (3, 1, 1)
    process.die("it crashed")
    lost = {"the remote process was not there": 2}
    counts = asking.remotes.counts_of(REDIS)
    assert (counts.offered, counts.settled, counts.published, counts.unpublished) == (3, 3, 1, lost)
    asking.remotes.offer(REDIS, asking.sought("d"), b"digest")  # it is not started again so soon
    assert len(asking.processes) == 1
    counts = asking.remotes.counts_of(REDIS)
    assert (counts.offered, counts.settled, counts.dropped) == (4, 4, 3)
    asking.now += REST
    asking.remotes.offer(REDIS, asking.sought("e"), b"digest")
    asking.process.say(wire.RemoteCounts(settled=1, unpublished={"it is full": 1}))
    counts = asking.remotes.counts_of(REDIS)
    assert (counts.offered, counts.settled) == (5, 5)
    assert counts.unpublished == {"the remote process was not there": 3, "it is full": 1}
    assert asking.remotes.counts_of(FOLDER) == wire.RemoteCounts()


def test_a_process_that_leaves_because_nobody_asks_has_lost_nothing(asking: Asking) -> None:
    process = asking.awake()
    asking.remotes.offer(REDIS, asking.sought("a"), b"digest")
    process.say(wire.RemoteCounts(settled=1, published=1))
    process.die("")
    counts = asking.remotes.counts_of(REDIS)
    assert (counts.offered, counts.settled, counts.dropped, counts.unpublished) == (1, 1, 0, {})


def test_what_a_person_should_know_is_told_to_those_who_use_that_remote(asking: Asking) -> None:
    process = asking.awake()
    process.say(wire.RemoteSays("it cannot be reached"))
    process.say(wire.RemoteSays("a detail", quiet=True))
    assert asking.told == [(REDIS, "it cannot be reached")]
