"""One way in for events, one way out for actions; and the log of both."""

from __future__ import annotations

from typing import Any

import pytest

from headstart.service import events, history
from headstart.service.actions import Action, Fork, Kill, StartZygote
from headstart.service.engine import Engine
from headstart.service.history import History
from headstart.service.queue import Kind, Ticket, Urgency
from headstart.service.scheduler import Scheduler
from headstart.wire import Finished

PLAIN = Kind("toolchain", "environment")


class Scripted:
    """A scheduler that answers each kind of event with given actions, and notes what it is told."""

    def __init__(self, answers: dict[type, list[Action]]) -> None:
        self.answers = answers
        self.told: list[object] = []

    def handle(self, event: object) -> list[Action]:
        self.told.append(event)
        return self.answers.get(type(event), [])


def test_an_event_that_an_action_leads_to_waits_until_all_actions_of_the_one_before_are_carried_out() -> None:
    scheduler: Any = Scripted({events.ZygoteReady: [Fork(1, PLAIN), Fork(2, PLAIN)], events.ForkFailed: [Kill(2)]})
    done: list[Action] = []

    def carry_out(action: Action) -> None:
        done.append(action)
        if action == Fork(1, PLAIN):
            engine.happened(events.ForkFailed(1, "no more processes", 1.0))
            assert scheduler.told == [events.ZygoteReady(PLAIN, 1.0)]

    engine = Engine(scheduler, carry_out)
    engine.happened(events.ZygoteReady(PLAIN, 1.0))
    assert done == [Fork(1, PLAIN), Fork(2, PLAIN), Kill(2)]
    assert scheduler.told[1] == events.ForkFailed(1, "no more processes", 1.0)


def test_an_action_that_cannot_be_carried_out_does_not_silence_what_comes_after() -> None:
    scheduler: Any = Scripted({events.ZygoteReady: [Fork(1, PLAIN)], events.Resumed: [Kill(7)]})
    done: list[Action] = []

    def carry_out(action: Action) -> None:
        if isinstance(action, Fork):
            raise RuntimeError("a bug")
        done.append(action)

    engine = Engine(scheduler, carry_out)
    with pytest.raises(RuntimeError, match="a bug"):
        engine.happened(events.ZygoteReady(PLAIN, 1.0))
    engine.happened(events.Resumed(2.0))
    assert done == [Kill(7)]


def test_every_event_leads_to_a_method_of_the_plan() -> None:
    scheduler = Scheduler(1)
    engine = Engine(scheduler, lambda action: None)
    for event in (
        events.Announced(PLAIN, 1),
        events.Requested(Ticket(1, 1), "key", PLAIN, None, Urgency.EARLY, 1.0),
        events.Awaited("key", 1.0),
        events.ZygoteReady(PLAIN, 1.0),
        events.ForkFailed(1, "why", 1.0),
        events.WorkerForked(9, 1.0),
        events.Finished(9, None, 1.0),
        events.Reached(9, "suffix"),
        events.StoodAside(9, "suffix", b"", 1.0),
        events.WorkerGone(9, 0, "", "", 1.0),
        events.OverMemory(9, "evidence"),
        events.Stalled(9),
        events.Resized(2, 1.0),
        events.Quiesced(kill=True),
        events.Resumed(1.0),
        events.Ticked(1.0),
        events.ZygoteLost(PLAIN, "why", 1.0),
        events.ZygoteUnable(PLAIN, "why", 1.0),
        events.Withdrawn(Ticket(1, 1), "a", 1.0),
        events.ClientLeft(1, 1.0),
    ):
        engine.happened(event)
    assert scheduler.jobs() == []


def test_the_log_says_what_happened_and_what_was_done_in_one_line_and_shows_no_source() -> None:
    scheduler = Scheduler(1)
    engine = Engine(scheduler, lambda action: None)
    key = "0123456789abcdef" * 4
    engine.happened(events.Requested(Ticket(3, 7), f"{key} /cache", PLAIN, "SECRET SOURCE", Urgency.EARLY, 1.0))
    engine.happened(events.Ticked(2.0))
    (line,) = engine.history.latest()
    assert line.event.startswith("Requested ticket 3/7 key 0123456789ab kind ")
    assert [action.split()[0] for action in line.actions] == ["StartZygote"]
    (shown,) = history.lines([line], line.at + 1.5)
    assert shown.lstrip().startswith("1.500 s ago  Requested ticket 3/7")
    assert "SECRET" not in shown


def test_the_log_is_bounded_and_so_are_its_lines() -> None:
    log = History(kept=3)
    for number in range(10):
        log.note(float(number), events.ZygoteLost(PLAIN, "x" * 10_000 + "\n", 1.0), [StartZygote(PLAIN)])
    log.note(10.0, events.Finished(4, Finished(stored=True, started=1.0, finished=2.0), 1.0), [])
    assert [line.at for line in log.latest()] == [8.0, 9.0, 10.0]
    assert all(len(line.event) < 300 and "\n" not in line.event for line in log.latest())
    assert log.latest()[-1].event == "Finished worker 4 Finished"
