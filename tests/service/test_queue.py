"""Whose turn it is, without a service; how the scheduler uses it is in test_scheduler.py."""

from __future__ import annotations

import random
import time

from headstart.service.queue import Job, Kind, Queue, Size, Ticket, Urgency

KIND, OTHER = Kind("triton 3.9", ""), Kind("triton 3.6", "")


def job(
    key: str,
    client: int = 1,
    *,
    urgency: Urgency = Urgency.EARLY,
    kind: Kind = KIND,
    estimate: float | None = None,
    size: Size | None = None,
) -> Job:
    return Job(key, kind, urgency, None, estimate, tickets=[Ticket(client, 1)], size=size)


def drained(queue: Queue) -> list[str]:
    order = []
    while (first := queue.first()) is not None:
        queue.take(first)
        order.append(first.key)
    return order


def test_looking_takes_nothing() -> None:
    queue = Queue()
    queue.put(job("a"))
    assert queue.first() is queue.first()
    assert queue.waiting(KIND) == 1


def test_of_one_family_the_largest_goes_first_and_families_keep_their_order() -> None:
    queue = Queue()
    queue.put(job("small", size=Size("matmul", 1.0)))
    queue.put(job("other"))
    queue.put(job("large", size=Size("matmul", 9.0)))
    queue.put(job("later", size=Size("reduce", 99.0)))
    queue.put(job("middle", size=Size("matmul", 5.0)))
    assert drained(queue) == ["large", "middle", "small", "other", "later"]


def test_a_family_of_which_nobody_waits_any_more_begins_anew() -> None:
    queue = Queue()
    queue.put(job("first", size=Size("matmul", 1.0)))
    assert drained(queue) == ["first"]
    queue.put(job("other"))
    queue.put(job("again", size=Size("matmul", 2.0)))
    assert drained(queue) == ["other", "again"]
    assert queue._families == {}


def test_what_was_claimed_goes_before_what_would_rank_before_it() -> None:
    queue = Queue()
    small, large = job("small", size=Size("matmul", 1.0)), job("large", size=Size("matmul", 9.0))
    queue.put(small)
    queue.take(small)
    small.claimed = True
    small.lines.clear()
    queue.put(large)
    queue.put(job("unknown"))
    queue.put(small)
    assert drained(queue) == ["small", "large", "unknown"]


def test_what_is_put_aside_and_back_has_one_place() -> None:
    queue = Queue()
    waits = job("a")
    for _ in range(100):
        queue.put(waits)
        queue.drop(waits)
    queue.put(waits)
    assert len(queue._lines[KIND][Urgency.EARLY, 1]) == 1
    assert drained(queue) == ["a"]


def test_what_is_to_be_claimed_can_be_left_aside() -> None:
    queue = Queue()
    first = job("first")
    first.unclaimed = True
    queue.put(first)
    queue.put(job("second", client=2))
    found = queue.first(unclaimed=False)
    assert found is not None
    assert found.key == "second"
    assert queue.first() is first


def test_what_is_known_to_take_longer_goes_first_whatever_its_size() -> None:
    queue = Queue()
    queue.put(job("short", estimate=1.0, size=Size("matmul", 9.0)))
    queue.put(job("long", estimate=2.0, size=Size("reduce", 1.0)))
    assert drained(queue) == ["long", "short"]


def test_a_blocked_kind_is_left_aside() -> None:
    queue = Queue()
    queue.put(job("a"))
    queue.put(job("b", kind=OTHER))
    first = queue.first({KIND})
    assert first is not None
    assert first.key == "b"
    assert queue.first({KIND, OTHER}) is None


def test_a_newcomer_has_its_turn_next_and_then_no_more_often_than_others() -> None:
    queue = Queue()
    for number in range(6):
        queue.put(job(f"old {number}"))
    for _ in range(3):
        queue.take(queue.first())  # type: ignore[arg-type]
    for number in range(2):
        queue.put(job(f"new {number}", client=2))
    assert drained(queue) == ["new 0", "old 3", "new 1", "old 4", "old 5"]


def test_a_job_that_was_dropped_is_not_found_in_any_line_and_one_put_back_only_once() -> None:
    queue = Queue()
    shared = job("shared")
    shared.tickets.append(Ticket(2, 1))
    queue.put(shared)
    queue.drop(shared)
    assert queue.first() is None
    queue.put(shared)
    queue.put(shared)
    assert queue.waiting(KIND) == 1
    assert drained(queue) == ["shared"]
    assert queue.waiting(KIND) == 0


def test_what_a_client_wanted_alone_goes_with_it_and_the_rest_stays_for_the_others() -> None:
    queue = Queue()
    mine, ours = job("mine"), job("ours")
    ours.tickets.append(Ticket(2, 1))
    queue.put(mine)
    queue.put(ours)
    queue.leave(1)
    queue.drop(mine)
    assert drained(queue) == ["ours"]


def test_a_long_queue_costs_no_more_per_job_than_a_short_one() -> None:
    def seconds_each(count: int) -> float:
        queue, numbers = Queue(), random.Random(count)
        begun = time.process_time()
        for number in range(count):
            queue.put(job(str(number), client=number % 7, estimate=numbers.random()))
            queue.first()
        assert len(drained(queue)) == count
        return (time.process_time() - begun) / count

    short = min(seconds_each(500) for _ in range(3))
    assert seconds_each(20_000) < 5 * short
