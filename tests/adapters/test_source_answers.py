"""What a source of torch.compile's makes of the service's answers, in whatever order services die. Needs no torch."""

from __future__ import annotations

import concurrent.futures
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from headstart import wire
from headstart.adapters.inductor import compat, source
from headstart.adapters.inductor.jobs import Expected
from headstart.adapters.inductor.thread import AdapterThread
from headstart.describe.recipe import Function, Recipe, RecipeJob
from headstart.errors import ServiceError

encode = msgspec.msgpack.encode


def job(number: int) -> RecipeJob:
    nothing: dict[str, Any] = {"dict": []}
    return RecipeJob(
        f"job {number}", f"{number:064x}", "k", {"x": "*fp32"}, nothing, nothing, {"num_warps": 4}, "cuda:90:32", None
    )


RECIPE = Recipe(
    "stem", "t", 0, {"dict": []}, Function("k", "m", "k", ["x"], [], "a" * 64, "t", "k"), [job(1)], True, 0.1
)


class Delivered:
    log = None  # of no run

    def __init__(self) -> None:
        self.answer: concurrent.futures.Future[Any] = concurrent.futures.Future()

    def settle(self, outcome: wire.JobOutcome) -> None:
        self.answer.set_result(outcome)

    def fail(self, error: BaseException) -> None:
        self.answer.set_exception(error)


class Adapter:
    """A host of sources, which keeps what they expect."""

    def __init__(self) -> None:
        self.expected: dict[str, Delivered] = {}
        self.begun_locally: list[Any] = []
        self.recipes = SimpleNamespace(note=lambda *arguments: None)
        self.recorder = None

    def expect_job(self, job: RecipeJob, **how: Any) -> Expected | None:
        if job.key in self.expected:
            return None
        delivered: Any = Delivered()
        self.expected[job.key] = delivered
        return Expected(delivered, lambda result: None)

    def soon(self, *step: Any) -> bool:
        self.begun_locally.append(step)
        return True

    def describing_with(self, settings: dict[str, str]) -> Any:
        return SimpleNamespace(awake=threading.Event())

    def heard(self) -> None:
        pass

    def queued(self) -> None:
        pass

    def forget(self, source: Any) -> None:
        pass


@pytest.fixture
def adapter() -> Adapter:
    return Adapter()


@pytest.fixture
def asked(adapter: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> source.Source:
    monkeypatch.setattr(compat, "caches_disabled", lambda: False)
    made = source.Source(adapter, "k", "t", {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}, {}, {}, {})  # type: ignore[arg-type]
    made.stem = "cabc"
    return made


def compiled(*, has_more: bool, jobs: bool = True) -> wire.SourceCompiled:
    outcome = wire.JobOutcome(0, wire.Result(0, "e", in_triton_cache=True))
    added = encode([job(2)]) if has_more else b""
    return wire.SourceCompiled(1, "key", encode(RECIPE), [outcome] if jobs else [], "added", added, has_more)


@pytest.mark.parametrize("jobs", [True, False])
def test_who_waits_for_what_rescaling_adds_is_told_if_another_service_says_no_more(
    adapter: Adapter, asked: source.Source, jobs: bool
) -> None:
    asked.compiled(compiled(has_more=True))
    assert not adapter.expected["job 2"].answer.done()
    asked.compiled(compiled(has_more=False, jobs=jobs))
    assert isinstance(adapter.expected["job 2"].answer.exception(0), ServiceError)
    assert adapter.begun_locally == [], "it is done"


def test_what_was_not_said_of_what_rescaling_adds_is_an_error(adapter: Adapter, asked: source.Source) -> None:
    asked.compiled(compiled(has_more=True))
    asked.added(wire.AddedCompiled(1, []))  # fewer than there are
    assert isinstance(adapter.expected["job 2"].answer.exception(0), ServiceError)


def test_a_source_that_is_located_waits_for_no_describer(asked: source.Source) -> None:
    assert asked.waits_for_describer(0.0)
    asked.located(True)
    assert not asked.waits_for_describer(None)


def test_a_thread_that_is_closed_takes_no_step() -> None:
    thread = AdapterThread()
    done = threading.Event()
    assert thread.soon(done.set)
    assert done.wait(10)
    thread.close()
    assert not thread.soon(done.set)
