"""torch.compile's part of a record is kicked off at the next start, by whom it may be. Needs no torch."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from headstart.adapters.replay import Replay, SourcesReplay
from headstart.artifacts.generated import GeneratedSource
from headstart.artifacts.manifest import Manifest
from headstart.artifacts.specialization import Specialization
from headstart.errors import DamagedError, ServiceError
from headstart.model.request import CompileRequest

DAY = dt.date(2026, 11, 30)


def source(number: int, seconds: float = 0.0) -> GeneratedSource:
    return GeneratedSource(
        key=f"{number:064x}",
        name=f"triton_{number}",
        target="cuda:90",
        configurations=1,
        question=b"",
        recipe=b"",
        stem="c",
        torch="torch",
        generation="generation",
        duration_s=seconds,
        last_seen=DAY,
    )


def late(name: str) -> Specialization:
    made = CompileRequest.make(name, "source", signature={"x": "*fp32"}, target="cuda:90", environment={})
    return Specialization(request=made, digest=made.digest(), torch="stamp", last_seen=DAY)


class Adapter:
    """Notes what is kicked off; `fails` by name."""

    def __init__(self, **fails: Exception) -> None:
        self.asked: list[str] = []
        self.fails = fails

    def prefetch(self, recorded: GeneratedSource) -> bool:
        if recorded.name in self.fails:
            raise self.fails[recorded.name]
        self.asked.append(recorded.name)
        return True

    def prefetch_late(self, recorded: Specialization) -> bool:
        self.asked.append(recorded.request.name)
        return True


def replay(adapter: Any, *, trusted: bool = True) -> SourcesReplay:
    manifest = Manifest.of([late("fusion")], generated=[source(1, 0.5), source(2, 2.0), source(3)])
    return SourcesReplay(manifest, lambda: adapter, trusted=trusted)


def test_the_longest_go_first_and_what_no_source_foresaw_last() -> None:
    adapter = Adapter()
    made = replay(adapter)
    made.run()
    assert adapter.asked == ["triton_2", "triton_1", "triton_3", "fusion"]
    assert made.report({f"{2:064x}", "another"}) == (
        "torch.compile: 3 sources recorded, 3 prefetched, 1 used, 2 not used"
    )


def test_one_that_says_too_little_is_left_out() -> None:
    adapter = Adapter(triton_2=DamagedError("triton_2", "it says nothing"))  # type: ignore[arg-type]
    replay(adapter).run()
    assert adapter.asked == ["triton_1", "triton_3", "fusion"]


def test_with_the_service_gone_the_rest_is_left_out() -> None:
    adapter = Adapter(triton_1=ServiceError("the client is closed"))
    replay(adapter).run()
    assert adapter.asked == ["triton_2"]


def test_nothing_of_others_is_kicked_off_and_one_line_says_so(caplog: pytest.LogCaptureFixture) -> None:
    adapter = Adapter()
    replay(adapter, trusted=False).run()
    assert adapter.asked == []
    assert [record.getMessage() for record in caplog.records] == [
        "4 recorded sources of torch.compile's are not compiled ahead: nobody vouches for them; --trust compiles them"
    ]


def test_where_torch_compile_is_left_alone_nothing_is_kicked_off() -> None:
    replay(None).run()


def test_after_the_end_nothing_more_is_kicked_off() -> None:
    adapter = Adapter()
    made = replay(adapter)
    made.stop()
    made.run()
    assert adapter.asked == []


def test_triton_jits_replay_leaves_alone_what_is_torch_compiles() -> None:
    def compiler() -> Any:
        raise AssertionError("there is nothing to do")

    made = Replay(Manifest.of([late("fusion")]), compiler, trusted=True)
    made.run()
    assert made.report(set(), set()).startswith("0 recorded")
