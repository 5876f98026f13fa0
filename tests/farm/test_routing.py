"""Which node gets which job."""

from __future__ import annotations

from collections import Counter
from hashlib import sha256

from headstart.farm.routing import MAX_TRIES, Routed, Router, ahead
from headstart.wire.farm import LentJob, NodeState

HERE, OTHER = "ab" * 32, "cd" * 32  # toolchains


def key(number: int) -> str:
    return sha256(str(number).encode()).hexdigest()


def job(number: int, toolchain: str = HERE) -> Routed:
    return Routed(LentJob(number, key(number), toolchain, "ef" * 32, b""))


def state(workers: int = 4, *, running: int = 0, queued: int = 0, toolchains: tuple[str, ...] = (HERE,)) -> NodeState:
    return NodeState(workers, ["kernel"] * running, queued, 0, list(toolchains))


def router(nodes: int = 3, workers: int = 4) -> Router:
    made = Router()
    for number in range(nodes):
        made.heard(f"node{number}", state(workers))
    return made


def sent(routed: dict[str, list[Routed]]) -> dict[int, str]:
    return {each.job.ticket: name for name, jobs in routed.items() for each in jobs}


def test_hosts_that_know_the_same_nodes_send_a_kernel_to_the_same_one() -> None:
    here, there = router(), router()
    there.nodes = dict(reversed(there.nodes.items()))
    for number in range(3):  # few, so that no node is full
        here.lend([job(number)])
        there.lend([job(number)])
    assert sent(here.route()) == sent(there.route())


def test_keys_are_spread_over_the_nodes_and_few_move_when_one_comes() -> None:
    before = {}
    made = router(nodes=8, workers=1000)
    made.lend(job(number) for number in range(4000))
    before = sent(made.route())
    counts = Counter(before.values())
    assert max(counts.values()) < 1.2 * min(counts.values())
    more = router(nodes=9, workers=1000)
    more.lend(job(number) for number in range(4000))
    after = sent(more.route())
    moved = {ticket for ticket in before if before[ticket] != after[ticket]}
    assert all(after[ticket] == "node8" for ticket in moved)
    assert 0.7 * 4000 / 9 < len(moved) < 1.3 * 4000 / 9


def test_an_idle_node_takes_over_what_another_has_no_worker_for() -> None:
    made = router(nodes=2, workers=4)
    made.lend(job(number) for number in range(8))
    assert Counter(sent(made.route()).values()) == {"node0": 4, "node1": 4}


def test_no_node_has_more_than_its_workers_and_a_few() -> None:
    made = router(nodes=2, workers=4)
    made.lend(job(number) for number in range(100))
    most = 4 + ahead(4)
    assert Counter(sent(made.route()).values()) == {"node0": most, "node1": most}
    assert len(made.waiting) == 100 - 2 * most
    assert made.offers()[1][HERE] == 0
    made.answered("node0", next(iter(made.nodes["node0"].out)))
    assert len(sent(made.route())) == 1


def test_what_others_have_a_node_do_counts() -> None:
    made = router(nodes=1, workers=4)
    made.heard("node0", state(4, running=4, queued=ahead(4)))
    made.lend([job(1)])
    assert made.route() == {}
    assert made.offers()[0][HERE] == 0
    made.heard("node0", state(4, running=1))
    assert made.offers()[0][HERE] == 2  # and one waits
    assert sent(made.route()) == {1: "node0"}


def test_a_node_with_another_toolchain_is_given_nothing() -> None:
    made = Router()
    made.heard("old", state(toolchains=(OTHER,)))
    made.lend([job(1), job(2, OTHER)])
    assert sent(made.route()) == {2: "old"}
    assert [each.job.ticket for each in made.hopeless()] == [1]
    assert not made.waiting


def test_one_that_refuses_is_not_asked_again_for_that_toolchain() -> None:
    made = router(nodes=2)
    made.lend([job(1)])
    ((_, name),) = sent(made.route()).items()
    routed = made.answered(name, 1)
    assert routed is not None
    made.refuse(name, HERE, "it has Triton 3.6")
    made.lend(job(number) for number in range(10, 14))
    assert set(sent(made.route()).values()) == {"node0", "node1"} - {name}


def test_what_a_node_loses_is_tried_once_more_elsewhere_and_then_given_back() -> None:
    made = router(nodes=3)
    made.lend([job(1)])
    tried = []
    for _ in range(MAX_TRIES):
        ((_, name),) = sent(made.route()).items()
        tried.append(name)
        over = made.lose(name, "it is gone", forget=True)
    assert len(set(tried)) == MAX_TRIES
    assert [each.job.ticket for each in over] == [1]
    assert made.route() == {}


def test_a_job_that_every_node_has_lost_is_hopeless_at_once() -> None:
    made = router(nodes=1)
    made.lend([job(1)])
    made.route()
    assert made.lose("node0", "it does not answer", forget=False) == []
    assert [each.job.ticket for each in made.hopeless()] == [1]


def test_a_silent_node_is_used_again_once_it_answers_and_what_it_says_then_counts() -> None:
    made = router(nodes=1)
    made.lend([job(1)])
    made.route()
    made.lose("node0", "it does not answer", forget=False)
    made.lend([job(2)])
    assert made.route() == {}
    made.heard("node0", state())
    assert made.answered("node0", 1) is not None
    assert made.answered("node0", 1) is None
    assert sent(made.route()) == {2: "node0"}


def test_what_two_have_is_not_given_back_as_long_as_one_of_them_answers() -> None:
    made = router(nodes=2)
    made.lend([job(1)])
    ((_, first),) = sent(made.route()).items()
    assert made.lose(first, "it does not answer", forget=False) == []
    ((_, second),) = sent(made.route()).items()
    assert second != first
    made.heard(first, state())
    assert made.lose(first, "it does not answer", forget=False) == []
    assert [each.job.ticket for each in made.lose(second, "it is gone", forget=True)] == [1]


def test_what_nobody_wants_is_not_tried_elsewhere() -> None:
    made = router(nodes=2, workers=1)
    made.lend([job(1)])
    ((_, name),) = sent(made.route()).items()
    made.take_back(1)
    assert made.lose(name, "it is gone", forget=True) == []
    assert made.route() == {}


def test_what_is_late_is_still_wanted_until_it_is_not() -> None:
    made = router(nodes=1)
    made.lend([job(1)])
    made.route()
    routed = made.nodes["node0"].out[1]
    made.take_back(1, wanted=True)
    assert routed.wanted
    made.take_back(1)
    made.take_back(1, wanted=True)
    assert not routed.wanted


def test_what_is_taken_back_is_sent_nowhere_and_those_who_have_it_are_named() -> None:
    made = router(nodes=1, workers=1)
    made.lend(job(number) for number in range(1, 6))
    out = sent(made.route())
    waiting = next(iter(made.waiting))
    assert made.take_back(waiting) == []
    assert waiting not in made.waiting
    assert made.take_back(next(iter(out))) == ["node0"]
