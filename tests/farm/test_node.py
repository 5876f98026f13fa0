"""What runs on a node, with a real service and without Ray: what it compiles, refuses, and says once more."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from real_node import RealNode

from conftest import needs_confinement
from headstart import wire
from headstart.artifacts.entry import Entry
from headstart.artifacts.keyring import Keyring
from headstart.farm.node import Node
from headstart.model import keys
from headstart.model.request import CompileRequest
from headstart.model.toolchain import find_toolchain
from headstart.stores.remote.sealing import Verifier, unseal
from headstart.system.settings import Settings
from headstart.wire.farm import MAX_TEXT, Exchange, Exchanged, NodeJob, NodeOptions, NodeResult, pack, unpack
from kernels import pointwise

pytestmark = [pytest.mark.triton, pytest.mark.timeout(120), needs_confinement]

WAIT = 30.0  # seconds


class Bridge:
    """What a bridge says to a node."""

    def __init__(self, node: RealNode, digest: str, session: str = "session") -> None:
        self._node = node
        self.digest = digest
        self._session = session
        self.acked = 0
        self._tickets = 0
        self.incarnation = ""

    def job(self, *, ticket: int | None = None, toolchain: str = "", vouched: bool = False, **how: Any) -> NodeJob:
        self._tickets += 1
        request = CompileRequest.make(**pointwise(**how), target="cuda:90")
        key = keys.entry_key(self.digest, request.digest())
        return NodeJob(ticket or self._tickets, key, toolchain or self.digest, wire.encode(request), vouched)

    def say(
        self, *jobs: NodeJob, dropped: list[int] | None = None, wait: float = 0.0, signed: bool = False
    ) -> Exchanged:
        message = Exchange(self._session, self.acked, list(jobs), dropped or [], wait, signed=signed)
        return unpack(self._node.exchange(pack(message)).result(2 * WAIT), Exchanged)

    def results(self, many: int = 1) -> list[NodeResult]:
        found: list[NodeResult] = []
        while len(found) < many:
            said = self.say(wait=WAIT)
            self.acked = said.serial
            found += said.results
        return found


@pytest.fixture(scope="module")
def digest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return find_toolchain().digest({}, tmp_path_factory.mktemp("toolchains"))


@pytest.fixture
def bridge(tmp_path: Path, digest: str) -> Iterator[Bridge]:
    node = RealNode(tmp_path / "node")
    yield Bridge(node, digest)
    node.close()


def entry_of(job: NodeJob, result: NodeResult) -> Entry:
    return Entry.from_bytes(unseal(job.key, result.blob, Verifier(None), signed=False, kind="kernel"))


def test_it_says_what_it_has_and_compiles_it(bridge: Bridge) -> None:
    state = bridge.say().state
    assert (state.workers, state.unable, state.queued) == (2, "", 0)
    assert bridge.digest in state.toolchains
    job = bridge.job()
    bridge.say(job)
    (result,) = bridge.results()
    entry = entry_of(job, result)
    assert entry.header.toolchain == bridge.digest
    assert entry.artifact("cubin")
    assert bridge.say().state.compiled == 1


def test_it_says_no_more_than_bridges_hear(bridge: Bridge) -> None:
    bridge.say()
    bridge._node.node._unable = "long " * 1000
    assert bridge.say().state.unable == bridge._node.node._unable[:MAX_TEXT]
    (result,) = bridge.say(bridge.job()).results
    assert result.why == bridge._node.node._unable[:MAX_TEXT]


def test_what_it_has_not_got_the_toolchain_of_it_refuses(bridge: Bridge) -> None:
    (result,) = bridge.say(bridge.job(toolchain="cd" * 32)).results
    assert result.refused
    assert "has Triton" in result.why


def test_what_could_be_more_than_a_kernel_it_does_not_compile(bridge: Bridge) -> None:
    (result,) = bridge.say(bridge.job(before="import os; os.system('true')", vouched=True)).results
    assert not result.blob
    assert not result.refused
    assert "os" in result.why


def test_what_is_no_request_is_answered(bridge: Bridge) -> None:
    job = bridge.job()
    (result,) = bridge.say(NodeJob(job.ticket, job.key, job.toolchain, b"nonsense")).results
    assert "no request" in result.why


def test_results_are_said_until_they_have_arrived(bridge: Bridge) -> None:
    job = bridge.job()
    bridge.say(job)
    first = bridge.say(wait=WAIT)
    again = bridge.say(wait=WAIT)
    assert first.results == again.results != []
    bridge.acked = again.serial
    assert bridge.say().results == []


def test_a_call_that_ray_repeats_changes_nothing(bridge: Bridge) -> None:
    job = bridge.job()
    bridge.say(job)
    bridge.say(job)
    assert len(bridge.results()) == 1
    assert bridge.say().results == []
    assert bridge.say().state.compiled == 1


def test_two_that_ask_for_one_kernel_get_it_from_one_compile(bridge: Bridge) -> None:
    other = Bridge(bridge._node, bridge.digest, "other")
    mine, theirs = bridge.job(), other.job(ticket=77)
    assert mine.key == theirs.key
    bridge.say(mine)
    other.say(theirs)
    assert [each.ticket for each in bridge.results()] == [mine.ticket]
    assert [each.ticket for each in other.results()] == [77]
    assert bridge.say().state.compiled == 1


def test_a_key_that_is_not_its_request_s_gets_nothing(bridge: Bridge) -> None:
    """Who asks for the kernel that the key belongs to would get this one's answer."""
    other = Bridge(bridge._node, bridge.digest, "other")
    theirs = other.job()
    mine = msgspec.structs.replace(bridge.job(factor=3.0), key=theirs.key)
    (refused,) = bridge.say(mine).results
    assert (refused.blob, refused.why) == (b"", "its key is another request's")
    other.say(theirs)
    mine = msgspec.structs.replace(bridge.job(factor=3.0), key=theirs.key)  # while that one is compiled
    assert bridge.say(mine).results[-1].why == "its key is another request's"
    (result,) = other.results()
    assert (
        entry_of(theirs, result).header.request_digest
        == msgspec.msgpack.decode(theirs.request, type=CompileRequest).digest()
    )


def test_it_signs_what_it_has_made_and_nothing_that_lay_there(tmp_path: Path, digest: str) -> None:
    def ask(node: RealNode, *, signed: bool) -> NodeResult:
        bridge = Bridge(node, digest, os.urandom(8).hex())
        job = bridge.job()
        bridge.say(job, signed=signed)
        (result,) = bridge.results()
        if result.blob:
            verifier = Verifier(Keyring(Path(os.environ["HEADSTART_CONFIG_DIR"])))
            unseal(job.key, result.blob, verifier, signed=signed, kind="kernel")
        return result

    first = RealNode(tmp_path / "node")
    try:
        assert ask(first, signed=False).blob
        assert ask(first, signed=True).blob  # it is the one that it has made
    finally:
        first.close()
    second = RealNode(tmp_path / "node")
    try:
        assert "before" in ask(second, signed=True).why
        assert ask(second, signed=False).blob
    finally:
        second.close()


def test_a_node_has_no_remote_whatever_its_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEADSTART_REMOTE", "HEADSTART_FARM", "HEADSTART_SERVICE"):  # have them put back
        monkeypatch.setenv(name, "redis://elsewhere")
    monkeypatch.setattr(Node, "_prepare", lambda self: self._ready.set())
    Node(pack(NodeOptions(1, "", trusts=True)), "node", 1)
    assert Settings.load().remote == ""


def test_what_has_not_begun_can_be_taken_back(bridge: Bridge) -> None:
    jobs = [bridge.job(factor=float(number)) for number in range(6)]
    said = bridge.say(*jobs)
    begun = set(said.begun)
    assert len(begun) == 2  # it has two workers
    waiting = [job.ticket for job in jobs if job.ticket not in begun]
    dropped = bridge.say(dropped=[job.ticket for job in jobs]).results
    assert [each.ticket for each in dropped] == waiting
    assert {each.why for each in dropped} == {"it was taken back"}
    bridge.acked = bridge.say().serial
    assert {each.ticket for each in bridge.results(2)} == begun


def test_a_kernel_that_fails_says_why(bridge: Bridge) -> None:
    bridge.say(bridge.job(factor="nonsense"))
    (result,) = bridge.results()
    assert not result.blob
    assert "nonsense" in result.why


def test_a_node_that_trusts_compiles_what_is_vouched_for_as_it_is(tmp_path: Path, digest: str) -> None:
    node = RealNode(tmp_path / "trusting", trusts=True)
    try:
        bridge = Bridge(node, digest)
        job = bridge.job(before="import os; HERE = os.sep", vouched=True)
        bridge.say(job)
        (result,) = bridge.results()
        assert result.why == ""
        assert entry_of(job, result).artifact("cubin")
        strange = bridge.job(before="import os; THERE = os.sep")
        (refused,) = bridge.say(strange).results
        assert "os" in refused.why
    finally:
        node.close()
