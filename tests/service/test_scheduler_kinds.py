"""Kinds of workers, clients that leave, idle workers, and what nobody vouches for."""

from __future__ import annotations

import pytest
from simulated_service import (
    AWAITED,
    BACKGROUND,
    DEBUG,
    PLAIN,
    STRANGE,
    SimulatedService,
    assigned,
    service,
)
from test_scheduler import busy_service, order_of_the_rest

from headstart.service import scheduler
from headstart.service.actions import (
    Action,
    Assign,
    Deliver,
    EndZygote,
    Fork,
    Kill,
    Retire,
    StartZygote,
)
from headstart.service.queue import Kind
from headstart.service.scheduler import (
    IDLE_TIMEOUT,
    MAX_ATTEMPTS,
)
from headstart.wire import Failure

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


# Clients leave


def test_a_client_that_leaves_takes_its_queued_jobs_but_not_the_running_one() -> None:
    simulated = service(limit=1)
    running, _ = simulated.request("running", client=1)
    queued, _ = simulated.request("queued", client=1)
    other, _ = simulated.request("other", client=2)
    simulated.leave(1)
    assert simulated.scheduler.in_flight("queued") is None
    assert simulated.scheduler.in_flight("running") is not None
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
    assert simulated.scheduler.in_flight("a") is None


def test_a_zygote_is_not_restarted_for_a_job_that_nobody_wants_any_more() -> None:
    simulated = service(limit=1)
    simulated.request("a", client=1)
    simulated.leave(1)
    assert simulated.lose_zygote() == []
    assert simulated.scheduler.in_flight("a") is None


# Idle


def test_idle_workers_leave_after_the_idle_timeout_and_then_nothing_is_due() -> None:
    simulated = service(limit=2)
    assert simulated.scheduler.next_deadline() == simulated.now + IDLE_TIMEOUT
    assert simulated.pass_time(IDLE_TIMEOUT - 1) == []
    assert simulated.pass_time(1) == [Retire(1), Retire(2)]
    assert simulated.scheduler.next_deadline() is None
    for number in (1, 2):
        assert simulated.die(number, status=0) == []
    assert simulated.scheduler.next_deadline() is None, "no workers, no wakeups"


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
    assert simulated.scheduler.next_deadline() is None
    simulated.announce()
    assert simulated.scheduler.next_deadline() is None


def test_only_as_many_workers_come_back_after_an_idle_time_as_there_are_jobs() -> None:
    simulated = service(limit=4)
    for number in [action.worker for action in simulated.pass_time(IDLE_TIMEOUT) if isinstance(action, Retire)]:
        simulated.die(number, status=0)
    _, actions = simulated.request("a")
    assert [type(action) for action in actions] == [Fork]


def test_a_job_that_was_moved_up_still_needs_only_one_worker() -> None:
    simulated = service(limit=2)
    for number in [action.worker for action in simulated.pass_time(IDLE_TIMEOUT) if isinstance(action, Retire)]:
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
    assert simulated.scheduler.finished(99, "entry", simulated.now) == []
    assert simulated.scheduler.worker_gone(99, 0, "", "", simulated.now) == []
    simulated.finish("a")
    assert simulated.scheduler.finished(1, "entry again", simulated.now) == []
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
    assert len(simulated.zygotes) == scheduler.MAX_ZYGOTES
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
        assert len(simulated.zygotes) <= scheduler.MAX_ZYGOTES
