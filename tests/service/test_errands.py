"""What may take long is done beside the loop, in order, and comes back into it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from headstart.service.errands import Errands
from headstart.service.loop import Loop

PATIENCE = 20.0  # seconds


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def errands(loop: Loop) -> Iterator[Errands]:
    made = Errands(loop)
    yield made
    made.close()


def until(loop: Loop, condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        loop.once(0.1)


def test_the_loop_goes_on_while_an_errand_takes_long(loop: Loop, errands: Errands) -> None:
    may_end, done = threading.Event(), []
    errands.do(lambda: may_end.wait(PATIENCE), done.append)
    loop.once(0.0)
    assert done == []
    may_end.set()
    until(loop, lambda: done)
    assert done == [True]


def test_errands_are_done_in_order_and_end_in_the_loops_thread(loop: Loop, errands: Errands) -> None:
    done: list[tuple[int, bool, bool]] = []
    here = threading.get_ident()
    for number in range(100):
        errands.do(
            lambda number=number: (number, threading.get_ident() != here),  # type: ignore[misc]
            lambda made: done.append((*made, threading.get_ident() == here)),
        )
    until(loop, lambda: len(done) == 100)
    assert done == [(number, True, True) for number in range(100)]


def test_an_errand_that_raises_is_told_and_the_next_is_done(
    loop: Loop, errands: Errands, caplog: pytest.LogCaptureFixture
) -> None:
    done: list[str] = []
    errands.do(lambda: 1 // 0, lambda made: done.append("made"), lambda: done.append("failed"))
    errands.do(lambda: None, lambda made: done.append("next"))
    until(loop, lambda: len(done) == 2)
    assert done == ["failed", "next"]
    assert "this is a bug" in caplog.text


def test_where_there_is_no_thread_an_errand_is_done_in_the_loop(
    loop: Loop, errands: Errands, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    done: list[int] = []
    errands.do(threading.get_ident, done.append)
    until(loop, lambda: done)
    assert done == [threading.get_ident()]


def test_what_was_begun_is_finished_at_the_end(loop: Loop) -> None:
    errands, written = Errands(loop), []
    for number in range(5):
        errands.do(lambda number=number: written.append(number))  # type: ignore[misc]
    errands.close()
    assert written == [0, 1, 2, 3, 4]
