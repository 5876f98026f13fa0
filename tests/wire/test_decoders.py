"""Bytes from anywhere: every decoder takes them for what they are or refuses them, and does nothing else.

The targets are those of `fuzz/`, which also says what else could drive them.
"""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.targets import CAPTURED, REQUESTS, TARGETS, bodies, seeds
from headstart import wire
from headstart.model.captured import CapturedSource
from kernels import TOOLCHAIN

relaxed = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])


def edited(valid: bytes) -> st.SearchStrategy[bytes]:
    """`valid` with a few stretches replaced by other bytes, or by others of its own."""
    place = st.integers(0, len(valid))
    piece = st.binary(max_size=8) | st.tuples(place, st.integers(0, 64)).map(lambda at: valid[at[0] : at[0] + at[1]])

    def apply(edits: list[tuple[int, int, bytes]]) -> bytes:
        data = bytearray(valid)
        for at, removed, inserted in edits:
            data[at : at + removed] = inserted
        return bytes(data)

    return st.lists(st.tuples(place, st.integers(0, 8), piece), min_size=1, max_size=4).map(apply)


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(["", ".", "../up", "0" * 64, "a\0b", "cuda:90", "import", "__import__('os')"])
    | st.binary(max_size=4)
)
not_json = st.just(msgspec.msgpack.Ext(5, b"code")) | st.just(dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc))
keys = st.text(max_size=3) | st.integers(0, 5) | st.booleans() | st.none() | st.floats(allow_nan=False)


def deep(levels: int) -> Any:
    """Lists in lists."""
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


plain = st.recursive(
    scalars | not_json | st.sampled_from([100, 450, 900]).map(deep),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def tampered(draw: st.DrawFn, valid: Any) -> Any:
    """A tree of plain data, with one value in it exchanged, removed or added."""
    if isinstance(valid, dict) and valid and draw(st.integers(0, 5)):
        key = draw(st.sampled_from(list(valid)))
        changed = dict(valid)
        if draw(st.integers(0, 9)):
            changed[key] = draw(tampered(valid[key]))
        else:
            del changed[key]
        return changed
    if isinstance(valid, list) and valid and draw(st.integers(0, 5)):
        at = draw(st.integers(0, len(valid) - 1))
        return [*valid[:at], draw(tampered(valid[at])), *valid[at + 1 :]]
    return draw(plain)


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_what_is_valid_is_read(name: str) -> None:
    for data in seeds(name):
        TARGETS[name](data)


UNTOLD: list[Any] = [{1: 2, "b": 3}, deep(100), deep(400), {"a": {None: deep(90)}}]  # whose identity nobody can tell


@pytest.mark.parametrize("value", UNTOLD, ids=lambda value: repr(value)[:20])
@pytest.mark.parametrize("field", ["constants", "options"])
def test_a_request_whose_identity_nobody_can_tell_is_no_message(field: str, value: Any) -> None:
    submit = msgspec.msgpack.decode(wire.encode(wire.Submit(1, TOOLCHAIN, REQUESTS[0], True)))
    submit["request"][field] = {"a": value}
    with pytest.raises(wire.ProtocolError):
        wire.decode(wire.decoder(wire.FromClient), msgspec.msgpack.encode(submit))


def test_a_captured_source_without_a_kernel_is_none() -> None:
    with pytest.raises(msgspec.ValidationError, match="there is no kernel"):
        CapturedSource.from_plain({**CAPTURED.plain(), "functions": []})


@pytest.mark.parametrize("name", sorted(TARGETS))
@relaxed
@given(data=st.data())
def test_any_bytes_are_read_or_refused(name: str, data: st.DataObject) -> None:
    valid = data.draw(st.sampled_from(seeds(name)))
    TARGETS[name](data.draw(st.binary(max_size=100) | edited(valid)))


@pytest.mark.parametrize("name", sorted(TARGETS))
@relaxed
@given(data=st.data())
def test_any_plain_data_is_read_or_refused(name: str, data: st.DataObject) -> None:
    body = data.draw(st.sampled_from(bodies(name)))
    if name == "failure":
        value = data.draw(tampered(json.loads(body)))
        TARGETS[name](json.dumps(value, default=repr, skipkeys=True).encode())
    else:
        TARGETS[name](msgspec.msgpack.encode(data.draw(tampered(msgspec.msgpack.decode(body)))))
