"""Who compiles what, when: readiness, order, turns, suffixes."""

from __future__ import annotations

import pytest
from simulated_service import (
    AWAITED,
    BACKGROUND,
    EARLY,
    PLAIN,
    SimulatedService,
    assigned,
    service,
)

from headstart.service.actions import (
    Action,
    Assign,
    Claim,
    Deliver,
    Fork,
    Kill,
    Proceed,
    StandAside,
    StartZygote,
)
from headstart.service.queue import Urgency
from headstart.wire import Failure

# Suffixes: what several jobs come to


def two_at_one_suffix(limit: int = 2) -> SimulatedService:
    """`first` is at it, and `second` has stood aside."""
    simulated = service(limit)
    simulated.request("first", urgency=BACKGROUND)
    simulated.request("second")
    assert simulated.reach("first", "suffix") == [Proceed(simulated.worker_of("first"))]
    assert simulated.reach("second", "suffix") == [StandAside(simulated.worker_of("second"))]
    simulated.stand_aside("second")
    return simulated


def test_who_stands_aside_for_a_tail_holds_no_worker() -> None:
    simulated = two_at_one_suffix()
    _, actions = simulated.request("third")
    assert assigned(actions) == ["third"]


def test_who_stood_aside_is_taken_up_with_its_front_when_the_tail_is_made() -> None:
    simulated = two_at_one_suffix()
    (assign,) = [action for action in simulated.finish("first") if isinstance(action, Assign)]
    assert (assign.job.key, assign.job.prefix, assign.job.whole) == ("second", b"prefix of second", False)


def test_who_stands_aside_too_late_is_taken_up_at_once() -> None:
    simulated = service()
    simulated.request("first")
    simulated.request("second")
    simulated.reach("first", "suffix")
    simulated.reach("second", "suffix")
    simulated.finish("first")
    assert assigned(simulated.stand_aside("second")) == ["second"]


@pytest.mark.parametrize("end", ["failure", "crash", "zygote"])
def test_a_failure_at_a_tail_is_its_own_and_the_others_are_compiled_whole(end: str) -> None:
    simulated = two_at_one_suffix()
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
    assert (assign.job.prefix, assign.job.whole) == (b"", True)


def test_whoever_is_at_a_tail_is_as_urgent_as_those_who_wait_for_it() -> None:
    simulated = two_at_one_suffix()
    job = simulated.scheduler.in_flight("first")
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
    simulated.reach("first", "suffix")
    simulated.reach("second", "suffix")
    simulated.stand_aside("second")
    simulated.leave(2)
    assert simulated.scheduler.in_flight("second") is None
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


def test_what_was_withdrawn_and_nobody_else_wants_is_not_compiled() -> None:
    simulated = service(limit=1)
    simulated.request("a")
    ticket, _ = simulated.request("b")
    simulated.withdraw(ticket)
    assert simulated.scheduler.in_flight("b") is None
    assert assigned(simulated.finish("a")) == []
    assert simulated.answers[ticket] == []


def test_what_was_withdrawn_by_one_client_is_compiled_for_the_others_in_their_turn() -> None:
    simulated = service(limit=1)
    simulated.request("a", client=2)
    mine, _ = simulated.request("b", client=1)
    yours, _ = simulated.request("b", client=2)
    third, _ = simulated.request("c", client=3)
    simulated.withdraw(mine)
    assert assigned(simulated.finish("a")) == ["c"], "client 2 has just had its turn"
    assert assigned(simulated.finish("c")) == ["b"]
    simulated.finish("b")
    assert simulated.answers[mine] == []
    assert simulated.answer(yours) == simulated.answer(third) == "entry"


def test_what_was_withdrawn_while_it_runs_goes_on_and_can_be_joined() -> None:
    simulated = service(limit=1)
    mine, _ = simulated.request("a", client=1)
    simulated.withdraw(mine)
    assert simulated.running == ["a"]
    yours, actions = simulated.request("a", client=2)
    assert assigned(actions) == []
    simulated.finish("a")
    assert simulated.answers[mine] == []
    assert simulated.answer(yours) == "entry"


def test_a_ticket_that_was_answered_or_is_unknown_can_be_withdrawn_in_vain() -> None:
    simulated = service(limit=1)
    ticket, _ = simulated.request("a")
    simulated.finish("a")
    simulated.withdraw(ticket)
    assert simulated.answer(ticket) == "entry"


def test_what_is_queued_or_running_is_in_flight_and_nothing_else() -> None:
    simulated = service(limit=1)
    simulated.request("a")
    simulated.request("b")
    a, b = simulated.scheduler.in_flight("a"), simulated.scheduler.in_flight("b")
    assert a is not None
    assert a.worker == simulated.worker_of("a")
    assert b is not None
    assert b.worker is None
    simulated.finish("a")
    assert simulated.scheduler.in_flight("a") is None


def test_a_key_that_was_answered_is_compiled_anew_when_asked_for_again() -> None:
    simulated = service()
    simulated.request("a")
    simulated.finish("a")
    _, actions = simulated.request("a")
    assert assigned(actions) == ["a"]


def test_an_entry_from_elsewhere_answers_a_job_that_waits_and_nobody_compiles_it() -> None:
    simulated = service(limit=1)
    simulated.request("running")
    mine, _ = simulated.request("waiting", client=1)
    yours, _ = simulated.request("waiting", client=2)
    assert [type(action) for action in simulated.obtain("waiting")] == [Deliver]
    assert simulated.answer(mine) == simulated.answer(yours) == "obtained"
    assert assigned(simulated.finish("running")) == []


def test_an_entry_from_elsewhere_ends_the_worker_that_makes_it_and_its_place_is_free_at_once() -> None:
    simulated = service(limit=1)
    ticket, _ = simulated.request("a")
    simulated.request("b")
    worker = simulated.worker_of("a")
    kill, deliver, fork = simulated.obtain("a")
    assert kill == Kill(worker)
    assert isinstance(deliver, Deliver)
    assert isinstance(fork, Fork)
    assert simulated.answer(ticket) == "obtained"
    # It had just finished, and says so before it dies.
    assert simulated.scheduler.finished(worker, "entry", simulated.now) == []
    assert assigned(simulated.forked(fork.worker)) == ["b"]
    simulated.die(worker, status=-9)
    assert simulated.answers[ticket] == ["obtained"]


def test_an_entry_from_elsewhere_that_nobody_asks_for_changes_nothing() -> None:
    assert service().obtain("unknown") == []


def test_whoever_stood_aside_for_an_entry_that_came_from_elsewhere_goes_on() -> None:
    simulated = two_at_one_suffix()
    (assign,) = [action for action in simulated.obtain("first") if isinstance(action, Assign)]
    assert (assign.job.key, assign.job.prefix) == ("second", b"prefix of second")


def claimed(actions: list[Action]) -> list[str]:
    return [action.job.key for action in actions if isinstance(action, Claim)]


def test_a_job_that_hosts_share_is_claimed_before_it_gets_a_worker_and_another_one_goes_first() -> None:
    simulated = service(limit=1)
    _, actions = simulated.request("shared", unclaimed=True)
    assert actions == [Claim(simulated.scheduler.in_flight("shared"))]
    _, actions = simulated.request("mine")
    assert assigned(actions) == ["mine"]
    assert assigned(simulated.come_back("shared")) == []
    assert assigned(simulated.finish("mine")) == ["shared"]


def test_as_many_are_claimed_as_could_begin_and_one_more() -> None:
    simulated = service(limit=2)
    actions = [action for key in "abcde" for action in simulated.request(key, unclaimed=True)[1]]
    assert claimed(actions) == ["a", "b", "c"]
    assert (assigned(simulated.come_back("a")), assigned(simulated.come_back("b"))) == (["a"], ["b"])
    assert simulated.come_back("c") == [], "one is ready, which is enough"
    actions = simulated.finish("a")
    assert (assigned(actions), claimed(actions)) == (["c"], ["d"])


def test_who_has_no_claims_does_not_wait_for_those_of_others() -> None:
    simulated = service(limit=1)
    for number in range(9):
        simulated.request(f"shared {number}", client=1, unclaimed=True)
    _, actions = simulated.request("mine", client=2)
    assert assigned(actions) == ["mine"]


def test_a_claim_is_its_client_s_turn() -> None:
    simulated = service(limit=1)
    simulated.request("running")
    simulated.request("shared", client=1, unclaimed=True)
    simulated.request("mine", client=2)
    simulated.request("also shared", client=1, unclaimed=True)
    simulated.come_back("shared")
    assert assigned(simulated.finish("running")) == ["mine"]


def test_few_are_claimed_beyond_what_can_begin_whatever_their_size() -> None:
    simulated = service(limit=1)
    simulated.request("running")
    actions = []
    for number in range(9):  # each longer than the one before it, and each claim settled before the next one comes
        _, some = simulated.request(f"{number}", estimate=float(number + 1), unclaimed=True)
        actions += some + [each for key in simulated.away for each in simulated.come_back(key)]
    assert claimed(actions) == ["0"]
    assert assigned(simulated.finish("running")) == ["0"]


def test_an_idle_worker_is_kept_for_what_somebody_is_blocked_on_while_that_is_claimed() -> None:
    simulated = service(limit=1)
    simulated.request("awaited", urgency=AWAITED, unclaimed=True)
    _, actions = simulated.request("background", client=2, urgency=BACKGROUND)
    assert assigned(actions) == []
    assert assigned(simulated.come_back("awaited")) == ["awaited"]


def test_while_another_host_makes_one_job_the_next_ones_are_claimed_and_it_may_come_or_not() -> None:
    simulated = service(limit=1)
    tickets = {key: simulated.request(key, unclaimed=True)[0] for key in "abc"}
    assert simulated.away == ["a", "b"]
    assert claimed(simulated.made_elsewhere("a")) == ["c"]
    simulated.obtain("a")
    assert simulated.answer(tickets["a"]) == "obtained"
    simulated.made_elsewhere("b")
    assert assigned(simulated.come_back("b")) == ["b"]
    assert simulated.come_back("b") == [], "it is not away any more"


def test_a_job_that_was_claimed_and_failed_with_its_worker_is_not_claimed_again() -> None:
    simulated = service(limit=1)
    simulated.request("a", unclaimed=True)
    simulated.come_back("a")
    simulated.die(simulated.worker_of("a"), status=-9)
    (fork,) = simulated.in_state("forking")
    actions = simulated.forked(fork)
    assert (assigned(actions), claimed(actions)) == (["a"], [])


def test_who_is_blocked_on_a_job_that_is_away_has_it_first_when_it_comes_back() -> None:
    simulated = service(limit=1)
    simulated.request("running")
    simulated.request("away", unclaimed=True)
    simulated.request("before")
    simulated.wait_for("away")
    assert simulated.come_back("away") == []
    assert assigned(simulated.finish("running")) == ["away"]


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
