"""A LambdaFuture finishes once, whoever asks, and keeps what it is told about time."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from headstart.client import future as future_module
from headstart.client.future import LambdaFuture, as_completed
from headstart.errors import CompileError, ServiceError, SourceError


class FakePending:
    """An answer that the test gives."""

    def __init__(self, answer: Any = None) -> None:
        self.answer: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self.wanted = 0
        self.withdrawn = 0
        self.is_running = False
        if isinstance(answer, BaseException):
            self.answer.set_exception(answer)
        elif answer is not None:
            self.answer.set_result(answer)

    def want(self) -> None:
        self.wanted += 1

    def withdraw(self) -> None:
        self.withdrawn += 1


def identity(answer: Any) -> Any:
    return answer


def make(pending: FakePending, finish: Callable[[Any], Any] = identity, name: str = "add_kernel") -> LambdaFuture[Any]:
    return LambdaFuture(name, pending, finish)


def refused() -> CompileError:
    return SourceError("NameError", kernel="add_kernel", target="cuda:90", options={"num_warps": 4})


def in_threads(count: int, work: Callable[[], Any]) -> list[Any]:
    """What `work` returns in each of `count` threads that begin together."""
    barrier = threading.Barrier(count)

    def begin() -> Any:
        barrier.wait(10)
        return work()

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        return [submitted.result(10) for submitted in [pool.submit(begin) for _ in range(count)]]


# The finishing step


def test_making_a_future_asks_for_nothing_and_finishes_nothing() -> None:
    pending = FakePending("entry")
    made = make(pending, lambda answer: pytest.fail("finished too early"))
    assert made.done()
    assert pending.wanted == 0


def test_the_result_is_what_the_finishing_step_makes_of_the_answer() -> None:
    assert make(FakePending("entry"), str.upper).result() == "ENTRY"


def test_the_finishing_step_runs_once_in_the_consumer() -> None:
    threads = []

    def finish(answer: str) -> object:
        threads.append(threading.get_ident())
        return object()

    made = make(FakePending("entry"), finish)
    assert made.result() is made.result()
    assert threads == [threading.get_ident()]


def test_the_finishing_step_runs_once_when_several_threads_ask_at_the_same_time() -> None:
    calls = []

    def finish(answer: str) -> object:
        calls.append(answer)
        time.sleep(0.02)  # the others come meanwhile
        return object()

    made = make(FakePending("entry"), finish)
    results = in_threads(4, made.result)
    assert len(calls) == 1
    assert all(result is results[0] for result in results)


def test_a_finishing_step_that_fails_is_not_tried_again_and_fails_everybody() -> None:
    calls = []

    def finish(answer: str) -> None:
        calls.append(answer)
        raise refused()

    made = make(FakePending("entry"), finish)
    for _ in range(2):
        with pytest.raises(SourceError, match="NameError"):
            made.result()
    assert len(calls) == 1


def test_a_finishing_step_may_give_none() -> None:
    calls = []
    made = make(FakePending("entry"), calls.append)
    assert made.result() is None
    assert made.result() is None
    assert calls == ["entry"]


# Waiting


def test_result_waits_for_the_answer() -> None:
    pending = FakePending()
    made = make(pending)
    assert not made.done()
    timer = threading.Timer(0.02, pending.answer.set_result, ["late"])
    timer.start()
    assert made.result(timeout=10) == "late"
    timer.join()


def test_whoever_waits_moves_the_kernel_up() -> None:
    pending = FakePending()
    made = make(pending)
    with pytest.raises(TimeoutError):
        made.result(timeout=0)
    assert pending.wanted == 1
    made.want()
    assert pending.wanted == 2


def test_a_kernel_that_is_done_is_not_asked_for() -> None:
    pending = FakePending("entry")
    made = make(pending)
    made.want()
    made.result()
    assert pending.wanted == 0


def test_a_timeout_names_the_kernel_and_the_seconds_and_result_can_be_asked_again() -> None:
    pending = FakePending()
    made = make(pending)
    with pytest.raises(TimeoutError, match=r"add_kernel is not compiled after 0\.01 s"):
        made.result(timeout=0.01)
    pending.answer.set_result("entry")
    assert made.result(timeout=0.01) == "entry"


@pytest.mark.parametrize("timeout", [0, -1])
def test_no_time_at_all_is_enough_for_what_is_there(timeout: float) -> None:
    assert make(FakePending("entry")).result(timeout) == "entry"


def test_a_timeout_does_not_last_much_longer_than_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(future_module, "SLOW_COMPILE", 0.03)
    begun = time.monotonic()
    with pytest.raises(TimeoutError):
        make(FakePending()).result(timeout=0.05)
    assert 0.05 <= time.monotonic() - begun < 5


def test_the_name_of_a_slow_compile_is_shown_again_and_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(future_module, "SLOW_COMPILE", 0.01)
    pending = FakePending()
    shown = threading.Event()

    class Watch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if len(caplog.records) >= 2:
                shown.set()

    watch = Watch()
    logging.getLogger("headstart").addHandler(watch)
    try:
        with concurrent.futures.ThreadPoolExecutor(1) as pool, caplog.at_level(logging.WARNING, "headstart"):
            waiting = pool.submit(make(pending).result)
            assert shown.wait(10)
            pending.answer.set_result("entry")
            assert waiting.result(10) == "entry"
    finally:
        logging.getLogger("headstart").removeHandler(watch)
    assert all(record.message.startswith("still compiling add_kernel after ") for record in caplog.records)
    assert len(caplog.records) >= 2


def test_a_quick_compile_shows_nothing(caplog: pytest.LogCaptureFixture) -> None:
    make(FakePending("entry")).result()
    assert caplog.records == []


def test_result_works_inside_a_running_event_loop() -> None:
    pending = FakePending()
    timer = threading.Timer(0.02, pending.answer.set_result, ["entry"])

    async def program() -> str:
        timer.start()
        result: str = make(pending).result(timeout=10)
        return result

    assert asyncio.run(program()) == "entry"
    timer.join()


# Errors


def test_a_failed_compile_is_raised_each_time_as_an_error_of_its_own() -> None:
    original = refused()
    made = make(FakePending(original))
    raised = []
    for _ in range(2):
        with pytest.raises(SourceError) as caught:
            made.result()
        raised.append(caught.value)
    assert len({id(error) for error in [original, *raised]}) == 3
    assert {str(error) for error in raised} == {str(original)}
    assert [error.__cause__ for error in raised] == [None, None]


def test_each_of_several_waiting_threads_gets_an_error_of_its_own() -> None:
    pending = FakePending()
    made = make(pending)
    timer = threading.Timer(0.02, pending.answer.set_exception, [refused()])
    timer.start()
    errors = in_threads(4, made.exception)
    timer.join()
    assert {type(error) for error in errors} == {SourceError}
    assert len({id(error) for error in errors}) == 4


def test_a_failure_of_the_finishing_step_is_each_waiters_own_too() -> None:
    def finish(answer: str) -> None:
        raise refused()

    made = make(FakePending("entry"), finish)
    errors = [made.exception() for _ in range(2)]
    assert errors[0] is not errors[1]


def test_a_machines_failure_is_raised_as_it_is() -> None:
    made = make(FakePending(ServiceError("no Triton")))
    with pytest.raises(ServiceError, match="no Triton"):
        made.result()


def test_an_answer_that_is_itself_a_timeout_is_raised_and_not_waited_for_again() -> None:
    made = make(FakePending(TimeoutError("the file system does not answer")))
    with pytest.raises(TimeoutError, match="file system"):
        made.result(timeout=0.2)


def test_exception_gives_what_result_would_raise_or_none() -> None:
    assert make(FakePending("entry")).exception() is None
    assert isinstance(make(FakePending(refused())).exception(), SourceError)
    with pytest.raises(TimeoutError):
        make(FakePending()).exception(timeout=0)


def test_finishing_is_not_counted_as_done_by_a_failure_before_it() -> None:
    made = make(FakePending(refused()), lambda answer: pytest.fail("there is nothing to finish"))
    assert made.done()
    assert isinstance(made.exception(), SourceError)


# Callbacks


def test_a_callback_gets_the_future_when_it_is_done_or_at_once_if_it_is() -> None:
    pending = FakePending()
    made = make(pending, lambda answer: pytest.fail("nobody asked for the result"))
    called: list[LambdaFuture[Any]] = []
    made.add_done_callback(called.append)
    assert called == []
    pending.answer.set_result("entry")
    assert called == [made]
    made.add_done_callback(called.append)
    assert called == [made, made]


def test_a_future_shows_its_kernel_and_whether_it_is_done() -> None:
    pending = FakePending()
    made = make(pending)
    assert repr(made) == "<LambdaFuture add_kernel pending>"
    pending.answer.set_result("entry")
    assert repr(made) == "<LambdaFuture add_kernel done>"


# as_completed


def test_futures_come_in_the_order_of_their_answers() -> None:
    pendings = [FakePending() for _ in range(4)]
    futures = [make(pending) for pending in pendings]
    completed = as_completed(futures, timeout=10)
    order = [2, 0, 3, 1]
    for index in order:
        pendings[index].answer.set_result(index)
        assert next(completed) is futures[index]
    assert list(completed) == []


def test_all_that_is_waited_for_is_moved_up() -> None:
    pendings = [FakePending() for _ in range(3)]
    pendings[2].answer.set_result("entry")
    next(as_completed(map(make, pendings), timeout=10))
    assert [pending.wanted for pending in pendings] == [1, 1, 0]


def test_a_future_given_twice_comes_once_and_two_futures_of_one_answer_both() -> None:
    pending = FakePending("entry")
    one, other = make(pending), make(pending)
    assert list(as_completed([one, other, one])) == [one, other]


def test_failed_futures_are_completed_too() -> None:
    failed = make(FakePending(refused()))
    assert list(as_completed([failed])) == [failed]


def test_nothing_to_wait_for_is_nothing() -> None:
    assert list(as_completed([])) == []


def test_what_is_done_comes_before_a_timeout_that_names_what_is_not() -> None:
    done = make(FakePending("entry"), name="done_kernel")
    slow = [make(FakePending(), name=f"slow_{n}") for n in range(7)]
    completed = as_completed([*slow, done], timeout=0.01)
    assert next(completed) is done
    with pytest.raises(TimeoutError) as timeout:
        next(completed)
    text = str(timeout.value)
    assert "7 kernels are not compiled after 0.01 s" in text
    assert "slow_0" in text
    assert "slow_6" not in text, "a few names are enough"
    assert "done_kernel" not in text
