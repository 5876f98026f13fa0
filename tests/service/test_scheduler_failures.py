"""What dies, runs out of time or memory, or cannot be had: what is tried again, and what is blamed."""

from __future__ import annotations

import signal

import pytest
from simulated_service import (
    BACKGROUND,
    DEBUG,
    EARLY,
    OLD,
    PLAIN,
    SimulatedService,
    assigned,
    service,
)
from test_scheduler import order_of_the_rest

from headstart.service.actions import (
    Deliver,
    Fork,
    Kill,
    MoveOn,
    Retire,
    StartZygote,
)
from headstart.service.dispatch import EXCLUSIVE_TIMEOUT
from headstart.service.limits import BACKGROUND_TIME_LIMIT
from headstart.service.queue import Ticket
from headstart.service.scheduler import (
    MAX_ATTEMPTS,
    MAX_ZYGOTE_LOSSES,
    Scheduler,
)
from headstart.wire import Failure

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
    simulated.pass_time(EXCLUSIVE_TIMEOUT)
    assert assigned(simulated.all_forked()) == ["bad"], "its neighbour takes too long"
    simulated.finish("neighbour")
    simulated.finish("bad")
    for key in ("hangs", "other"):
        simulated.request(key)
    simulated.crash("hangs")
    assert assigned(simulated.finish("other")) == ["hangs"]
    simulated.request("more")
    simulated.pass_time(EXCLUSIVE_TIMEOUT)
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
    assert simulated.scheduler.next_deadline() is None
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
    assert simulated.scheduler.next_deadline() == simulated.now + 10.0
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
    assert simulated.scheduler.memory_limits() == {}, "nobody is watched who does nothing"
    ticket, _ = simulated.request("a")
    for _ in range(MAX_ATTEMPTS):
        simulated.all_forked()
        (number,) = simulated.scheduler.memory_limits()
        assert simulated.swell(number, "ptxas 600 MiB") == [Kill(number)]
        assert simulated.scheduler.memory_limits() == {}
        simulated.die(number, -signal.SIGKILL, stage="cubin")
    failure = simulated.answer(ticket)
    assert (failure.kind, failure.stage, failure.detail) == ("memory", "cubin", "ptxas 600 MiB")
    assert "more than 512 MiB of memory, 2 times" in failure.summary


def test_of_two_memory_limits_for_one_job_the_larger_holds() -> None:
    scheduler = Scheduler(1)
    for number, limit in enumerate([5, 9, 7]):
        scheduler.requested(Ticket(number, 1), "a", PLAIN, "payload", EARLY, 0.0, memory_limit=limit)
    job = scheduler.in_flight("a")
    assert job is not None
    assert job.memory_limit == 9
    scheduler.requested(Ticket(3, 1), "a", PLAIN, "payload", EARLY, 0.0)
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
    assert simulated.scheduler.next_deadline() == simulated.now + BACKGROUND_TIME_LIMIT
    simulated.wait_for("a")
    assert simulated.scheduler.next_deadline() is None


def test_of_two_time_limits_for_one_job_the_longer_holds() -> None:
    simulated = service(limit=1, time_limit=10.0)
    simulated.request("a", client=1)
    simulated.time_limit = 20.0
    simulated.request("a", client=2)
    simulated.time_limit = 5.0
    simulated.request("a", client=3)
    assert simulated.scheduler.next_deadline() == simulated.now + 20.0
    simulated.time_limit = None
    simulated.request("a", client=4)
    assert simulated.scheduler.next_deadline() is None


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
    assert simulated.scheduler.next_deadline() is None
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
    assert simulated.scheduler.next_deadline() is None
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
    assert Scheduler(1).zygote_lost(PLAIN, "twice reported", 0.0) == []


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
    assert simulated.scheduler.limit == 1
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
