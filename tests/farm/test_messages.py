"""What bridges and nodes say to one another: read as plain data, or refused."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from headstart.wire import farm
from headstart.wire.farm import Exchange, Exchanged, NodeJob, NodeResult, NodeState, pack, unpack

EXCHANGE = Exchange("session", 3, [NodeJob(1, "ab" * 32, "cd" * 32, b"request")], [2], 2.0)
EXCHANGED = Exchanged("x", 1, [NodeResult(1, b"entry")], [2], False, NodeState(4, ["kernel"], 0, 0, ["cd" * 32]))


@pytest.mark.parametrize("message", [EXCHANGE, EXCHANGED])
def test_a_message_arrives_as_it_was_sent(message: msgspec.Struct) -> None:
    assert unpack(pack(message), type(message)) == message


def test_the_sources_of_a_sweep_are_sent_as_little_more_than_one() -> None:
    source = bytes(range(256)) * 20
    one = pack(Exchange("s", jobs=[NodeJob(1, "ab" * 32, "cd" * 32, source)]))
    many = pack(Exchange("s", jobs=[NodeJob(number, "ab" * 32, "cd" * 32, source) for number in range(100)]))
    assert len(many) < 3 * len(one)


@given(st.binary(max_size=200), st.booleans())
def test_anything_else_is_refused(data: bytes, is_compressed: bool) -> None:
    with pytest.raises(ValueError):
        unpack(zstandard.compress(data) if is_compressed else data, Exchanged)


def test_one_message_is_not_taken_for_another() -> None:
    with pytest.raises(ValueError):
        unpack(pack(EXCHANGE), Exchanged)


@pytest.mark.parametrize("says", [True, False])
def test_a_small_message_that_becomes_a_huge_one_is_refused(says: bool) -> None:
    huge = zstandard.ZstdCompressor(write_content_size=says).compress(bytes(4 << 20))
    with pytest.raises(ValueError):
        unpack(huge, Exchange, 1 << 20)


STATE = NodeState(4, [], 0, 0, [])
TOO_MUCH = [
    {"workers": farm.MAX_WORKERS + 1},
    {"workers": -1},
    {"running": ["k"] * (farm.MAX_WORKERS + 1)},
    {"running": ["k" * (farm.MAX_TEXT + 1)]},
    {"queued": -1},
    {"queued": 1 << 62},
    {"compiled": -1},
    {"compiled": 1 << 62},
    {"toolchains": ["k"] * 17},
    {"toolchains": ["k" * (farm.MAX_TEXT + 1)]},
    {"triton_version": "k" * (farm.MAX_TEXT + 1)},
    {"unable": "k" * (farm.MAX_TEXT + 1)},
]


@pytest.mark.parametrize("what", TOO_MUCH)
def test_what_a_node_says_of_itself_has_an_end(what: dict[str, Any]) -> None:
    said = msgspec.structs.replace(EXCHANGED, state=msgspec.structs.replace(STATE, **what))
    with pytest.raises(ValueError, match="no message"):
        unpack(pack(said), Exchanged)


def test_what_a_node_says_of_jobs_has_an_end() -> None:
    many = 1 << 17
    for said in (
        msgspec.structs.replace(EXCHANGED, results=[NodeResult(1)] * many),
        msgspec.structs.replace(EXCHANGED, results=[NodeResult(1, why="k" * (farm.MAX_TEXT + 1))]),
        msgspec.structs.replace(EXCHANGED, begun=[1] * many),
        msgspec.structs.replace(EXCHANGED, incarnation="k" * many),
    ):
        with pytest.raises(ValueError, match="no message"):
            unpack(pack(said), Exchanged)


def test_what_is_too_much_is_not_read_to_its_end() -> None:
    """A list whose head says that it has four thousand million elements, of which none follows."""
    said = bytearray(msgspec.msgpack.encode(EXCHANGED))
    at = said.index(b"\xa7running") + len(b"\xa7running")
    said[at : at + 1] = b"\xdd\xff\xff\xff\xff"
    with pytest.raises(ValueError, match="length <= 1024"):
        unpack(zstandard.compress(bytes(said)), Exchanged)
