"""What is told of a source of an earlier run. Needs no torch."""

from __future__ import annotations

import msgspec
import pytest

from headstart.adapters.inductor.recorded import RecordedSource
from headstart.artifacts.generated import GeneratedSource
from headstart.describe import facts
from headstart.describe.recipe import Describe
from headstart.errors import DamagedError
from headstart.model.toolchain import find_toolchain

TEXT = "import triton\ndef triton_kernel(): pass"
THEIRS = {"TORCHINDUCTOR_CACHE_DIR": "/tmp/torchinductor_alice", "TRITON_CACHE_DIR": "/scratch/job1"}
ASKED = Describe("triton_kernel", TEXT, THEIRS, None, {"TRITON_DEBUG": "1"}, {"TORCHINDUCTOR_X": "1"})


def recorded(question: bytes = b"", stem: str = "") -> GeneratedSource:
    return GeneratedSource(
        key="a" * 64,
        name="triton_kernel",
        target="cuda:90",
        configurations=1,
        question=question or msgspec.msgpack.encode(ASKED),
        recipe=b"recipe",
        stem=stem or facts.stem_of(TEXT),
        torch="torch",
        generation="generation",
    )


def test_the_folders_of_the_run_that_was_recorded_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/mine")
    monkeypatch.setattr(facts, "stamp", lambda: "stamp")
    source = RecordedSource(recorded(), find_toolchain)
    message = source.message(7)
    described = msgspec.msgpack.decode(message.question, type=Describe)
    assert described.environment == {"TORCHINDUCTOR_CACHE_DIR": "/mine"}
    assert (described.source, described.variables) == (TEXT, {"TRITON_DEBUG": "1"})
    assert message.fan_out is not None
    assert message.fan_out.path == facts.path_of_stem(facts.stem_of(TEXT), "/mine")
    assert (message.fan_out.triton_cache, message.background) == ("", True)
    assert message.spec.settings == (("TORCHINDUCTOR_X", "1"),)
    assert message.recorded is not None
    assert message.recorded.key == "a" * 64


def test_a_source_under_another_ones_name_is_damage() -> None:
    with pytest.raises(DamagedError, match="another source's name"):
        RecordedSource(recorded(stem="cabc"), find_toolchain)


def test_a_question_that_is_none_is_damage() -> None:
    with pytest.raises(DamagedError, match="cannot be read"):
        RecordedSource(recorded(question=b"\xc1"), find_toolchain)
