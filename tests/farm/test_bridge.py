"""The bridge between a service and a cluster, with nodes that are fakes: what it sends, believes, and gives back."""

from __future__ import annotations

import asyncio
import hashlib
import os
import queue
import socket
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fake_cluster import HERE, FakeCluster, FakeNode, entry, made

from conftest import PATIENCE, wait_until
from headstart import wire
from headstart.artifacts.keyring import Keyring
from headstart.farm import attending, bridge
from headstart.farm.bridge import MOST_WRONG, serve
from headstart.stores.disk import DiskStore
from headstart.stores.remote.sealing import Signer, seal
from headstart.wire.farm import NodeJob, NodeResult, NodeState

RAY = wire.FarmSettings("ray")


def key(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


class Running:
    """A bridge in a thread, and a service that a test speaks for."""

    def __init__(self, cache: Path, cluster: FakeCluster, settings: wire.FarmSettings = RAY) -> None:
        self.cache = cache
        self.cluster = cluster
        self.socket, theirs = socket.socketpair()
        self._heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.states: list[wire.FarmState] = []
        self.said: list[wire.FarmSays] = []

        def run() -> None:
            loop = asyncio.new_event_loop()
            loop.run_until_complete(serve(theirs, lambda settings: cluster))
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()

        self._thread = threading.Thread(target=run, daemon=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        self._reader.start()
        self.say(wire.Join(settings))
        self.hear(wire.Awake)

    def _read(self) -> None:
        try:
            for message in wire.receive_blocking(self.socket, wire.Deframer(wire.FromBridge)):
                if isinstance(message, wire.FarmState):
                    self.states.append(message)
                elif isinstance(message, wire.FarmSays):
                    self.said.append(message)
                else:
                    self._heard.put(message)
        except OSError:
            pass

    def say(self, message: msgspec.Struct) -> None:
        self.socket.sendall(wire.frame(message))

    def hear(self, kind: type) -> Any:
        while True:
            message = self._heard.get(timeout=PATIENCE)
            if isinstance(message, kind):
                return message

    def hears_nothing(self, kind: type, seconds: float = 0.2) -> None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            try:
                assert not isinstance(self._heard.get(timeout=left), kind)
            except queue.Empty:
                return

    def has_nodes(self, number: int = 1) -> None:
        wait_until(lambda: self.states and sum(not node.refused for node in self.states[-1].nodes) >= number)

    def has_room(self) -> None:
        wait_until(lambda: self.states and self.states[-1].room.get(HERE))

    def lend(self, *numbers: int, toolchain: str = HERE) -> None:
        jobs = [wire.LentJob(number, key(number), toolchain, "ef" * 32, b"request") for number in numbers]
        self.say(wire.Lend(jobs, os.fsencode(self.cache)))

    def made(self, many: int = 1) -> list[wire.MadeEntry]:
        entries: list[wire.MadeEntry] = []
        while len(entries) < many:
            entries += self.hear(wire.Made).entries
        return entries

    def unmade(self) -> list[int]:
        tickets: list[int] = self.hear(wire.Unmade).tickets
        return tickets

    def told(self, quiet: bool = False) -> list[str]:
        return [each.text for each in self.said if quiet or not each.quiet]

    def close(self) -> None:
        for node in self.cluster.members.values():
            node.answers_calls.set()
            node.finish()
        self.socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        self._reader.join(PATIENCE)
        self.socket.close()


Start = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    monkeypatch.setattr(bridge, "DISCOVERY", 0.1)
    monkeypatch.setattr(bridge, "LIST_INTERVAL", 0.0)
    running: list[Running] = []

    def make(settings: wire.FarmSettings = RAY, **nodes: FakeNode) -> Running:
        running.append(Running(tmp_path / "cache", FakeCluster(**nodes), settings))
        return running[-1]

    yield make
    for each in running:
        each.close()


def never(job: NodeJob) -> None:
    """A compile that goes on until the test says so."""


def test_what_nodes_make_is_in_the_local_store_and_its_digest_is_told(start: Start) -> None:
    running = start(a=FakeNode(), b=FakeNode())
    running.has_nodes(2)
    running.lend(*range(1, 9))
    entries = running.made(8)
    assert sorted(each.ticket for each in entries) == list(range(1, 9))
    assert {each.node for each in entries} == {"a", "b"}
    store = DiskStore(running.cache)
    for each in entries:
        found = store.find(key(each.ticket), kind="kernel", request_digest="ef" * 32)
        assert found is not None
        assert hashlib.sha256(found.raw()).digest() == each.sha256
    assert running.told() == []


def test_a_sweep_is_a_few_messages(start: Start) -> None:
    node = FakeNode(workers=16)
    running = start(a=node)
    running.has_nodes()
    running.lend(*range(1, 17))
    running.made(16)
    assert [len(call.jobs) for call in node.calls if call.jobs] == [16]


def test_the_service_is_told_what_there_is_room_for(start: Start) -> None:
    node = FakeNode(workers=4)
    node.outcome = never
    running = start(a=node)
    running.has_nodes()
    running.lend(1, 2)
    assert sorted(running.hear(wire.Begun).tickets) == [1, 2]
    wait_until(lambda: running.states[-1].seen == 2 and running.states[-1].idle == {HERE: 2})
    node.finish()
    running.made(2)
    wait_until(lambda: running.states[-1].idle == {HERE: 4})


def test_without_the_toolchain_anywhere_jobs_come_back_at_once(start: Start) -> None:
    running = start(a=FakeNode(toolchains=("cd" * 32,)))
    running.has_nodes()
    running.lend(1)
    assert running.unmade() == [1]


def test_a_node_that_refuses_a_toolchain_is_not_asked_again_for_it(start: Start) -> None:
    node = FakeNode()
    node.outcome = lambda job: NodeResult(job.ticket, why="it has Triton 3.6", refused=True)
    running = start(a=node)
    running.has_nodes()
    running.lend(1)
    assert running.unmade() == [1]
    running.lend(2)
    assert running.unmade() == [2]
    assert len(node.jobs()) == 1
    assert running.told() == ["a is not used for this toolchain: it has Triton 3.6"]
    wait_until(lambda: [each.refused for each in running.states[-1].nodes] == ["it has Triton 3.6"])


def test_what_one_node_refuses_another_makes(start: Start) -> None:
    wrong, right = FakeNode(workers=8), FakeNode(workers=8)
    wrong.outcome = lambda job: NodeResult(job.ticket, why="it has Triton 3.6", refused=True)
    running = start(a=wrong, b=right)
    running.has_nodes(2)
    running.lend(*range(1, 9))
    assert {each.node for each in running.made(8)} == {"b"}


def test_a_failure_there_is_not_believed_but_given_back(start: Start) -> None:
    node = FakeNode()
    node.outcome = lambda job: NodeResult(job.ticket, why="ptxas died")
    running = start(a=node)
    running.has_nodes()
    running.lend(1)
    assert running.unmade() == [1]
    assert running.told() == []
    assert any("ptxas died" in text for text in running.told(quiet=True))


@pytest.mark.parametrize(
    ("blob", "why"),
    [
        (lambda job: seal(entry(job.key), None)[:-1], "damaged"),
        (lambda job: seal(entry("99" * 32), None), "another kernel's"),
        (lambda job: seal(entry(job.key, request_digest="aa" * 32), None), "another kernel's"),
        (lambda job: seal(entry(job.key, toolchain="cd" * 32), None), "another toolchain"),
        (lambda job: b"nonsense", "damaged"),
    ],
)
def test_what_is_not_what_was_asked_for_is_not_stored_and_such_a_node_is_left(
    start: Start, blob: Callable[[NodeJob], bytes], why: str
) -> None:
    node = FakeNode()
    node.outcome = lambda job: NodeResult(job.ticket, blob(job))
    running = start(a=node)
    running.has_nodes()
    for number in range(1, MOST_WRONG + 1):
        running.has_room()
        running.lend(number)
        assert running.unmade() == [number]
        assert DiskStore(running.cache).find(key(number), kind="", request_digest="") is None
    running.lend(9)
    assert running.unmade() == [9]
    assert len(node.jobs()) == MOST_WRONG
    assert why in running.told()[0]


def test_another_node_makes_what_one_has_damaged(start: Start) -> None:
    wrong, right = FakeNode(), FakeNode()
    wrong.outcome = lambda job: NodeResult(job.ticket, b"nonsense")
    running = start(a=wrong, b=right)
    running.has_nodes(2)
    running.lend(1, 2, 3, 4)
    assert {each.node for each in running.made(4)} == {"b"}
    assert wrong.jobs()


def test_where_signatures_are_wanted_only_what_a_trusted_key_signed_counts(start: Start, tmp_path: Path) -> None:
    config = Path(os.environ["HEADSTART_CONFIG_DIR"])
    theirs = Keyring(tmp_path / "theirs")
    public = theirs.new("node")
    signer = Signer(theirs, "node")
    node = FakeNode()
    node.outcome = lambda job: NodeResult(job.ticket, seal(entry(job.key), signer))
    settings = wire.FarmSettings("ray", signed=True, config_dir=os.fsencode(config))
    running = start(settings, a=node)
    running.has_nodes()
    running.lend(1)
    assert running.unmade() == [1]
    assert "headstart key trust" in running.told()[0]
    assert all(call.signed for call in node.calls)
    Keyring(config).trust(public)
    trusting = start(settings, a=node)
    trusting.has_nodes()
    trusting.lend(2)
    assert [each.ticket for each in trusting.made()] == [2]


def test_a_node_that_stops_answering_gets_nothing_more_and_its_jobs_go_elsewhere(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attending, "SILENCE", 0.2)
    monkeypatch.setattr(attending, "POLL", 0.1)
    stopped, other = FakeNode(workers=4), FakeNode(workers=4)
    stopped.outcome = never
    running = start(a=stopped, b=other)
    running.has_nodes(2)
    stopped.answers_calls.clear()
    running.lend(*range(1, 9))
    assert sorted(each.ticket for each in running.made(8)) == list(range(1, 9))
    assert running.told() == ["a does not answer, and is given nothing until it does"]
    before = len(stopped.jobs())
    running.lend(*range(20, 24))
    running.made(4)
    assert len(stopped.jobs()) == before
    stopped.outcome = made
    stopped.answers_calls.set()
    wait_until(lambda: [(node.out, node.refused) for node in running.states[-1].nodes] == [(0, ""), (0, "")])
    running.lend(*range(30, 38))
    assert {each.node for each in running.made(8)} == {"a", "b"}


def test_how_long_a_node_looks_at_its_toolchain_is_no_delay_of_the_farm(start: Start) -> None:
    slow = FakeNode()
    slow.outcome = never
    slow.answers_calls.clear()
    running = start(a=slow)
    wait_until(lambda: slow.calls)
    time.sleep(1.0)  # what it takes
    slow.answers_calls.set()
    running.has_nodes()
    running.lend(1)
    running.hear(wire.Begun)
    wait_until(lambda: running.states[-1].delay > 0.0)
    assert all(state.delay < 1.0 for state in running.states)


def test_the_delay_is_that_of_most_nodes_that_answer() -> None:
    made = bridge.Bridge(RAY, FakeCluster(), lambda message: None)
    for name, trips in {"a": [0.1], "b": [0.2, 9.0, 0.2], "c": [0.3], "silent": [50.0], "new": []}.items():
        made._router.heard(name, NodeState(4, [], 0, 0, [HERE]))
        made._attendants[name] = types.SimpleNamespace(  # type: ignore[assignment]
            round_trip=sorted(trips)[len(trips) // 2] if trips else None
        )
    made._router.lose("silent", "it does not answer", forget=False)
    assert made._delay() == 0.2


def test_a_node_whose_every_call_fails_is_asked_less_and_less_often(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attending, "FIRST_PAUSE", 600.0)
    node = FakeNode()
    node.fails = "RayTaskError(ValueError): no message of a farm's"
    running = start(a=node, b=FakeNode())
    running.has_nodes()
    wait_until(lambda: len(node.calls) == 2)  # the second one at the next look
    for number in range(1, 4):  # each has the bridge look for nodes
        before = running.cluster.looks
        running.lend(number)
        running.made()
        wait_until(lambda before=before: running.cluster.looks > before + 1)  # type: ignore[misc]
    assert len(node.calls) == 2


def test_a_node_whose_calls_are_late_one_after_another_is_silent_once(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told of jobs, and asked for news, in two calls: both are late, and another node is at the jobs by then."""
    monkeypatch.setattr(attending, "SILENCE", 0.2)
    monkeypatch.setattr(attending, "POLL", 0.2)
    stopped, other = FakeNode(workers=4), FakeNode(workers=16)
    stopped.outcome = other.outcome = never
    running = start(a=stopped, b=other)
    running.has_nodes(2)
    stopped.answers_calls.clear()
    running.lend(*range(1, 9))
    wait_until(lambda: len(other.running) == 8)
    running.hears_nothing(wire.Unmade, 0.6)
    other.finish()
    assert {each.node for each in running.made(8)} == {"b"}


def test_what_nobody_wants_any_more_is_not_sent_on_when_its_node_is_lost(start: Start) -> None:
    dying, other = FakeNode(workers=8), FakeNode(workers=8)
    dying.outcome = other.outcome = never
    running = start(a=dying, b=other)
    running.has_nodes(2)
    running.lend(*range(1, 9))
    wait_until(lambda: len(dying.running) + len(other.running) == 8)
    unwanted = next(iter(dying.running))
    running.say(wire.TakeBack([unwanted]))
    wait_until(lambda: dying.dropped() == [unwanted])
    dying.fails = "ActorDiedError: the actor died"
    dying.restart()
    wait_until(lambda: len(other.running) >= 8 - 1)
    assert set(other.running) == set(range(1, 9)) - {unwanted}
    running.hears_nothing(wire.Unmade)


def test_what_another_node_begins_anew_is_said_to_have_begun_again(start: Start) -> None:
    first, second = FakeNode(workers=1), FakeNode(workers=1)
    first.outcome = second.outcome = never
    running = start(a=first)
    running.has_nodes()
    running.lend(1)
    assert running.hear(wire.Begun).tickets == [1]
    running.cluster.members["b"] = second
    running.has_nodes(2)
    first.fails = "ActorDiedError: the actor died"
    first.restart()
    assert running.hear(wire.Begun).tickets == [1]
    assert list(second.running) == [1]


def test_what_a_lost_node_had_is_tried_on_another_and_else_given_back(start: Start) -> None:
    dying, other = FakeNode(workers=8), FakeNode(workers=8)
    dying.outcome = other.outcome = never
    running = start(a=dying, b=other)
    running.has_nodes(2)
    running.lend(*range(1, 9))
    wait_until(lambda: len(dying.running) + len(other.running) == 8)
    assert dying.running
    dying.fails = "ActorDiedError: the actor died"
    dying.restart()
    wait_until(lambda: len(other.running) == 8)
    other.finish()
    running.made(8)


def test_a_node_that_was_started_again_is_asked_again_or_its_jobs_come_back(start: Start) -> None:
    node = FakeNode()
    node.outcome = never
    running = start(a=node)
    running.has_nodes()
    running.lend(1)
    running.hear(wire.Begun)
    node.restart()
    assert running.unmade() == [1]
    node.outcome = made
    running.has_room()
    running.lend(2)
    assert [each.ticket for each in running.made()] == [2]


def test_nodes_that_come_are_used_and_those_that_go_cost_a_retry(start: Start) -> None:
    first = FakeNode(workers=2)
    first.outcome = never
    running = start(a=first)
    running.has_nodes()
    running.lend(1)
    running.hear(wire.Begun)
    second = FakeNode(workers=2)
    running.cluster.members["b"] = second
    running.has_nodes(2)
    del running.cluster.members["a"]
    assert [(each.ticket, each.node) for each in running.made()] == [(1, "b")]


def test_what_is_taken_back_is_dropped_there_and_answered_no_more(start: Start) -> None:
    node = FakeNode()
    node.outcome = never
    running = start(a=node)
    running.has_nodes()
    running.lend(1, 2)
    running.hear(wire.Begun)
    running.say(wire.TakeBack([1]))
    running.say(wire.TakeBack([2], late=True))
    wait_until(lambda: sorted(node.dropped()) == [1, 2])
    node.finish()
    assert [each.ticket for each in running.made()] == [2]  # what is late is welcome
    running.hears_nothing(wire.Made)
    assert DiskStore(running.cache).find(key(1), kind="", request_digest="") is None


def test_the_end_of_the_service_takes_back_what_has_not_begun(start: Start) -> None:
    node = FakeNode()
    node.outcome = never
    running = start(a=node)
    running.has_nodes()
    running.lend(1)
    running.hear(wire.Begun)
    running.socket.shutdown(socket.SHUT_WR)
    wait_until(lambda: node.dropped() == [1])


def test_a_cluster_that_cannot_be_joined_is_said_and_gives_everything_back(start: Start, tmp_path: Path) -> None:
    cluster = FakeCluster()
    cluster.why_not = "Ray is not installed here: pip install 'headstart[ray]'"
    running = Running(tmp_path / "cache", cluster)
    assert running.told() == [f"the farm is not used: {cluster.why_not}"]
    running.lend(1)
    assert running.unmade() == [1]
    running.close()


def test_a_node_that_says_without_end_is_not_heard(start: Start) -> None:
    node, other = FakeNode(), FakeNode()
    node.names = ["k"] * 200_000
    running = start(a=node, b=other)
    running.has_nodes()
    wait_until(lambda: any("no message" in text for text in running.told(quiet=True)))
    assert [each.name for each in running.states[-1].nodes] == ["b"]


def test_what_is_too_long_unpacked_is_not_unpacked(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attending, "MAX_SAID", 1 << 20)
    node = FakeNode()
    node.outcome = lambda job: NodeResult(job.ticket, bytes(2 << 20))
    running = start(a=node)
    running.has_nodes()
    running.lend(1)
    assert running.unmade() == [1]
    assert any("longer than 1048576 bytes" in text for text in running.told(quiet=True))


def test_a_bridge_that_has_lost_its_cluster_ends(tmp_path: Path) -> None:
    """The service starts another one: in this one Ray would start a cluster of its own."""
    cluster = FakeCluster()
    cluster.is_lost = True
    ours, theirs = socket.socketpair()
    with ours:
        ours.sendall(wire.frame(wire.Join(RAY)))
        with pytest.raises(attending.ConnectionLost):
            asyncio.run(asyncio.wait_for(serve(theirs, lambda settings: cluster), PATIENCE))


def test_a_cluster_without_nodes_is_said_once(start: Start) -> None:
    running = start()
    running.lend(1)
    assert running.unmade() == [1]
    wait_until(running.told)
    running.lend(2)
    assert running.unmade() == [2]
    assert running.told() == ["the farm at ray has no nodes: headstart farm up starts them"]


def test_a_job_s_own_cluster_gets_actors_if_nobody_has_started_any(start: Start, tmp_path: Path) -> None:
    cluster = FakeCluster()
    cluster.own["a"] = FakeNode()
    running = Running(tmp_path / "cache", cluster)
    running.has_nodes()
    running.lend(1)
    assert [each.node for each in running.made()] == ["a"]
    assert running.told() == []
    running.close()


def after_a_call_has_failed(start: Start) -> FakeNode:
    """A node whose results were too much for an object store that is full, and were then asked for once more."""
    node = FakeNode()
    node.outcome = never
    running = start(a=node)
    running.has_nodes()
    running.lend(1)
    running.hear(wire.Begun)
    node.is_full = True
    node.finish()
    running.made()
    assert not node.is_full, "a call has failed"
    return node


def test_when_a_call_fails_less_is_asked_for_at_once(start: Start) -> None:
    assert after_a_call_has_failed(start).calls[-1].most == attending.SMALL


def test_a_while_after_a_call_has_failed_as_much_as_ever_is_asked_for(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attending, "FULL", 0.0)
    assert {call.most for call in after_a_call_has_failed(start).calls} == {attending.MOST}
