"""Which jobs are lent to a farm, and which are taken back."""

from __future__ import annotations

from simulated_service import AWAITED, BACKGROUND, PLACE, PLAIN, SimulatedService, assigned, service

from headstart.service.actions import Action, Claim, Kill, Lend
from headstart.service.lending import GRACE


def lent(actions: list[Action]) -> list[str]:
    return [action.job.key for action in actions if isinstance(action, Lend)]


def claimed(actions: list[Action]) -> list[str]:
    return [action.job.key for action in actions if isinstance(action, Claim)]


def busy(limit: int = 1, waiting: int = 4, estimate: float | None = 2.0) -> SimulatedService:
    """All workers are at something, and jobs wait that may be lent, the longest first."""
    made = service(limit)
    for number in range(limit):
        made.request(f"local {number}", estimate=estimate)
    for number in range(waiting):
        made.request(f"job {number}", estimate=1.0 - number / 100, place=PLACE)
    return made


def test_without_a_farm_nothing_is_lent() -> None:
    made = busy()
    assert assigned(made.finish("local 0")) == ["job 0"]


def test_what_would_begin_at_once_is_lent_the_longest_first_and_workers_here_go_on() -> None:
    made = busy()
    assert lent(made.offer(2, delay=0.01)) == ["job 0", "job 1"]
    assert assigned(made.finish("local 0")) == ["job 2"]


def test_no_more_is_lent_than_there_is_room_for() -> None:
    made = busy(waiting=20)
    assert len(lent(made.offer(2, room=3, delay=0.01))) == 3
    made.request("one more", place=PLACE)
    assert lent(made.pass_time(0.0)) == []


def test_what_would_only_wait_there_is_lent_if_workers_here_do_not_come_to_it_soon() -> None:
    made = busy(waiting=5)
    assert lent(made.offer(0, room=10, delay=0.01)) == ["job 0", "job 1", "job 2"]


def test_a_job_that_may_not_go_out_is_looked_past() -> None:
    made = busy(waiting=0)
    made.request("stays", estimate=9.0)
    for number in range(3):
        made.request(f"goes {number}", estimate=1.0, place=PLACE)
    assert lent(made.offer(1, delay=0.01)) == ["goes 0"]
    assert assigned(made.finish("local 0")) == ["stays"]


def test_what_somebody_is_blocked_on_is_lent_only_if_it_begins_sooner_there() -> None:
    made = busy(waiting=0, estimate=2.0)
    made.request("awaited", urgency=AWAITED, place=PLACE)
    assert lent(made.offer(1, delay=3.0)) == []  # the worker here is done in two seconds
    assert lent(made.offer(0, room=4, delay=0.01)) == []  # it would wait for a worker there
    assert lent(made.offer(1, delay=0.5)) == ["awaited"]


def test_a_single_job_is_not_lent_to_a_farm_that_is_slower_than_a_worker_here() -> None:
    made = busy(waiting=1, estimate=0.2)
    assert lent(made.offer(1, delay=0.5)) == []


def test_what_comes_back_is_compiled_here_and_not_lent_again() -> None:
    made = busy(waiting=3)
    assert lent(made.offer(1, delay=0.01)) == ["job 0"]
    made.offer(5, delay=0.01)
    assert made.come_back("job 0") == []
    assert assigned(made.finish("local 0")) == ["job 0"]


def test_what_was_lent_and_is_made_answers_its_client() -> None:
    made = busy(waiting=0)
    made.request("other", place=PLACE)
    ticket, _ = made.request("job", place=PLACE, estimate=1.0)
    assert "job" in lent(made.offer(2, delay=0.01))
    made.begin_there("job")
    made.obtain("job")
    assert made.answer(ticket) == "obtained"


def test_an_answer_that_is_late_ends_the_compile_here() -> None:
    made = busy(waiting=2)
    (key,) = lent(made.offer(1, delay=0.01))
    made.come_back(key)
    assert assigned(made.finish("local 0")) == [key]
    number = made.worker_of(key)
    assert Kill(number) in made.obtain(key)


def test_an_idle_worker_takes_back_what_has_not_begun_there_after_a_moment() -> None:
    made = busy(waiting=4)
    assert len(lent(made.offer(4, delay=0.01))) == 4
    made.begin_there("job 0")
    made.finish("local 0")
    assert made.running == []
    assert assigned(made.pass_time(GRACE)) == ["job 1"]
    for done, following in (("job 1", ["job 2"]), ("job 2", ["job 3"]), ("job 3", [])):  # job 0 has begun
        made.finish(done)
        assert assigned(made.pass_time(0.0)) == following


def test_what_somebody_comes_to_wait_for_and_has_not_begun_there_comes_home() -> None:
    made = busy(waiting=4)
    assert "job 3" in lent(made.offer(4, delay=0.01))
    made.pass_time(GRACE)
    made.wait_for("job 3")
    assert assigned(made.finish("local 0")) == ["job 3"]


def test_what_somebody_is_blocked_on_since_just_after_it_was_lent_comes_home_before_others_are_begun() -> None:
    made = busy(waiting=8)
    assert "job 0" in lent(made.offer(0, room=3, delay=0.01))
    made.wait_for("job 0")
    assert made.scheduler.next_deadline() == made.now + GRACE, "nobody would look"
    made.pass_time(GRACE / 2)
    assert made.scheduler.in_flight("job 0").lent_at is not None  # type: ignore[union-attr]
    made.pass_time(GRACE / 2)
    assert assigned(made.finish("local 0")) == ["job 0"]


def test_a_quiesced_service_takes_nothing_back_and_does_not_look_for_it_again_and_again() -> None:
    made = busy(waiting=8)
    assert "job 0" in lent(made.offer(0, room=3, delay=0.01))
    made.wait_for("job 0")
    made.quiesce()
    made.pass_time(2 * GRACE)  # which asserts that
    made.finish("local 0")
    made.resume()
    made.pass_time(0.0)
    assert made.scheduler.in_flight("job 0").lent_at is None  # type: ignore[union-attr]


def test_what_somebody_is_blocked_on_and_has_begun_there_stays() -> None:
    made = busy(waiting=8)
    assert "job 0" in lent(made.offer(0, room=3, delay=0.01))
    made.wait_for("job 0")
    made.begin_there("job 0")
    made.pass_time(GRACE)
    assert assigned(made.finish("local 0")) == ["job 3"]


def test_an_idle_worker_takes_back_first_what_somebody_is_blocked_on() -> None:
    made = busy(waiting=3)
    assert len(lent(made.offer(3, delay=0.01))) == 3
    made.finish("local 0")
    made.wait_for("job 2")
    assert assigned(made.pass_time(GRACE)) == ["job 2"]


def test_what_nobody_wants_any_more_is_forgotten_though_it_is_lent() -> None:
    made = busy(waiting=3)
    assert lent(made.offer(3, delay=0.01))
    made.leave(1)
    assert made.scheduler.jobs() == [made.scheduler.in_flight("local 0")]


def test_what_has_failed_here_is_tried_again_here() -> None:
    made = service(1)
    made.request("job", place=PLACE)
    made.crash("job")
    assert lent(made.offer(5, delay=0.0)) == []


def test_a_quiesced_service_lends_nothing() -> None:
    made = busy(waiting=5)
    made.quiesce(kill=False)
    assert lent(made.offer(5, delay=0.01)) == []


def test_background_work_goes_out_too_after_what_is_more_urgent() -> None:
    made = busy(waiting=0)
    for number in range(3):
        made.request(f"background {number}", PLAIN, urgency=BACKGROUND, place=PLACE)
    made.request("early", PLAIN, place=PLACE)
    assert lent(made.offer(2, delay=0.01)) == ["early", "background 0"]


def shared(waiting: int, limit: int = 1) -> SimulatedService:
    """All workers are at something, and jobs wait that may be lent, and hosts share; one of them is claimed."""
    made = service(limit)
    for number in range(limit):
        made.request(f"local {number}", estimate=2.0)
    for number in range(waiting):
        made.request(f"job {number}", estimate=1.0 - number / 100, place=PLACE, unclaimed=True)
    return made


def test_what_hosts_share_is_claimed_before_it_is_lent_and_as_many_as_would_begin() -> None:
    made = shared(8)
    assert made.away == ["job 0"]
    actions = made.offer(3, room=9, delay=0.01)
    assert (lent(actions), claimed(actions)) == ([], ["job 1", "job 2", "job 3"])
    for key in ("job 0", "job 1", "job 2", "job 3"):
        assert made.come_back(key) == []
    actions = made.pass_time(0.0)
    assert lent(actions) == ["job 0", "job 1", "job 2", "job 3"]
    assert claimed(actions) == ["job 4"], "no worker would be free for more"


def test_what_another_host_makes_is_not_lent_and_another_one_is_claimed_for_the_farm() -> None:
    made = shared(4)
    made.offer(1, room=9, delay=0.01)
    assert made.away == ["job 0", "job 1"]
    assert claimed(made.made_elsewhere("job 0")) == ["job 2"]
    made.come_back("job 1")
    actions = made.pass_time(0.0)
    assert (lent(actions), claimed(actions)) == (["job 1"], [])
    made.obtain("job 0")
    made.come_back("job 2")
    assert assigned(made.finish("local 0")) == ["job 2"]


def test_what_may_not_go_out_is_not_claimed_for_a_farm() -> None:
    made = service(1)
    made.request("local", estimate=2.0)
    for number in range(4):
        made.request(f"stays {number}", unclaimed=True)
    assert made.away == ["stays 0"]
    assert claimed(made.offer(3, delay=0.01)) == []


def test_what_was_claimed_and_lent_and_comes_back_is_compiled_here_without_another_claim() -> None:
    made = shared(2)
    made.offer(1, delay=0.01)
    made.come_back("job 0")
    assert lent(made.pass_time(0.0)) == ["job 0"]
    assert claimed(made.come_back("job 0")) == []
    assert assigned(made.finish("local 0")) == ["job 0"]


def test_what_came_back_and_waits_for_a_worker_here_keeps_nothing_from_being_claimed_for_the_farm() -> None:
    made = shared(10)
    made.offer(1, room=4, delay=0.01)
    made.come_back("job 0")
    made.come_back("job 1")
    assert lent(made.pass_time(0.0)) == ["job 0", "job 1"]
    made.come_back("job 0")  # nothing came of it
    for _ in range(3):
        made.offer(8, room=32, delay=0.01)
        for key in made.away:
            if made.wanted[key].claiming:
                made.come_back(key)
        made.pass_time(0.0)
    assert [key for key, wanted in made.wanted.items() if not wanted.away] == ["local 0", "job 0"]
