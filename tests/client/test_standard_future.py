"""A LambdaFuture is a future of `concurrent.futures`, works in asyncio, and can be cancelled."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
from collections.abc import Callable, Coroutine
from itertools import count
from typing import Any

import pytest

from headstart import wire
from headstart.client import future as future_module
from headstart.client.asked import Asked
from headstart.client.connection import ServiceConnection
from headstart.client.delivered import Delivered
from headstart.client.future import LambdaFuture, as_completed, put_results
from headstart.client.kernels import Answered
from headstart.client.launch import Launched
from headstart.client.outstanding import Outstanding
from headstart.client.policy import Policy
from headstart.errors import CompileErrors, HeadstartError, ServiceError, SourceError
from headstart.model.request import CompileRequest
from kernels import pointwise

SECONDS = 10  # of patience


class Answer(concurrent.futures.Future[Any]):
    """An answer, of which the test decides what happens at the moment of a call."""

    def __init__(self) -> None:
        super().__init__()
        self.at_cancel: Callable[[], object] = lambda: None

    def cancel(self) -> bool:
        self.at_cancel()
        return super().cancel()


class FakePending:
    """An answer that the test gives."""

    def __init__(self, answer: Any = None) -> None:
        self.answer = Answer()
        self.is_running = False
        self.wanted = self.withdrawn = 0
        if isinstance(answer, BaseException):
            self.answer.set_exception(answer)
        elif answer is not None:
            self.answer.set_result(answer)

    def want(self) -> None:
        self.wanted += 1

    def withdraw(self) -> None:
        self.withdrawn += 1


def never(_: object) -> Any:
    pytest.fail("nobody asked for the result")


def make(pending: FakePending, finish: Callable[[Any], Any] = str, name: str = "add_kernel") -> LambdaFuture[Any]:
    return LambdaFuture(name, pending, finish)


def refused() -> SourceError:
    return SourceError("NameError", kernel="add_kernel", target="cuda:90", options={})


def run(program: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(program, SECONDS))


# In concurrent.futures


def test_it_is_a_standard_future() -> None:
    assert isinstance(make(FakePending()), concurrent.futures.Future)


def test_asking_for_no_more_than_the_result_makes_nothing_of_a_standard_future_s() -> None:
    made = make(FakePending("entry"))
    made.add_done_callback(lambda _: None)
    assert (made.done(), made.running(), made.cancelled(), made.result()) == (True, False, False, "entry")
    assert not set(vars(made)) & set(vars(concurrent.futures.Future()))
    with pytest.raises(AttributeError, match="'LambdaFuture' object has no attribute 'kernel'"):
        _ = made.kernel


def test_wait_waits_for_the_answers_moves_them_up_and_finishes_nothing() -> None:
    pendings = [FakePending() for _ in range(3)]
    futures = [make(pending, never) for pending in pendings]
    done, pending = concurrent.futures.wait(futures, timeout=0)
    assert (done, pending) == (set(), set(futures))
    assert [each.wanted for each in pendings] == [1, 1, 1]
    pendings[1].answer.set_result("entry")
    done, pending = concurrent.futures.wait(futures, SECONDS, concurrent.futures.FIRST_COMPLETED)
    assert (done, pending) == ({futures[1]}, {futures[0], futures[2]})
    waiting = threading.Thread(target=concurrent.futures.wait, args=(futures,))
    waiting.start()
    pendings[0].answer.set_exception(refused())
    futures[2].cancel()
    waiting.join(SECONDS)
    assert not waiting.is_alive()


@pytest.mark.parametrize("answered", ["before", "while it waits"])
def test_wait_ends_with_the_first_that_failed(answered: str) -> None:
    pendings = [FakePending(), FakePending()]
    futures = [make(pending) for pending in pendings]
    if answered == "before":
        pendings[1].answer.set_exception(refused())
    else:
        # Once it waits, which it does with waiters in every future.
        pendings[0].want = lambda: pendings[1].answer.set_exception(refused())  # type: ignore[method-assign]
    done, pending = concurrent.futures.wait(futures, SECONDS, concurrent.futures.FIRST_EXCEPTION)
    assert (done, pending) == ({futures[1]}, {futures[0]})


def test_a_hundred_come_in_the_order_of_their_answers() -> None:
    pendings = [FakePending() for _ in range(100)]
    futures = [make(pending, never) for pending in pendings]
    order = sorted(range(100), key=lambda number: number * 37 % 100)
    completed = concurrent.futures.as_completed(futures, SECONDS)
    seen = []
    for number in order:
        pendings[number].answer.set_result(number)
        seen.append(next(completed))
    assert seen == [futures[number] for number in order]
    assert list(completed) == []


def test_wait_asks_for_exceptions_under_locks_and_the_finishing_step_may_need_the_thread_that_answers() -> None:
    """As where the entry of the one is gone and has to be compiled again while the other's answer comes in."""
    other = FakePending()
    compiled_again = threading.Event()

    def compile_again(_: object) -> str:
        assert compiled_again.wait(SECONDS)
        return "kernel"

    def connection() -> None:
        other.answer.set_result("entry")
        compiled_again.set()

    gone = make(FakePending("entry"), compile_again)
    both = [gone, make(other)]
    concurrent.futures.wait(both, timeout=0)  # so that there are waiters' locks
    thread = threading.Thread(target=connection)
    with gone._condition, both[1]._condition:  # as `wait` holds them while it asks
        thread.start()
        assert gone.exception() is None
    thread.join(SECONDS)
    assert concurrent.futures.wait(both, SECONDS).done == set(both)
    assert gone.result() == "kernel"


def test_two_threads_that_look_first_at_the_same_time_see_one_state() -> None:
    pending = FakePending()
    made = make(pending)
    barrier = threading.Barrier(8)

    def look() -> object:
        barrier.wait(SECONDS)
        return made._condition

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = {each.result(SECONDS) for each in [pool.submit(look) for _ in range(8)]}
    assert len(found) == 1
    assert pending.wanted == 1


def test_only_the_service_answers_it() -> None:
    made = make(FakePending())
    for answer in (lambda: made.set_result("x"), lambda: made.set_exception(None), made.set_running_or_notify_cancel):
        with pytest.raises(concurrent.futures.InvalidStateError, match="add_kernel: only the compile service"):
            answer()


def test_it_runs_once_a_worker_has_begun_and_until_it_is_done() -> None:
    pending = FakePending()
    made = make(pending)
    assert not made.running()
    pending.is_running = True
    assert made.running()
    pending.answer.set_result("entry")
    assert not made.running()


def test_a_fork_may_wait_though_another_thread_held_its_locks() -> None:
    pending = FakePending()
    made = make(pending, never)
    concurrent.futures.wait([made], timeout=0)
    held, forked = threading.Event(), threading.Event()

    def hold() -> None:
        with made._condition, made._lock:
            held.set()
            forked.wait(SECONDS)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(SECONDS)
    try:
        made.after_fork()
        pending.answer = Answer()  # as the connection does
        assert concurrent.futures.wait([made], timeout=0).not_done == {made}
        assert pending.wanted == 2, "a fork asks for itself"
        pending.answer.set_result("entry")
        assert concurrent.futures.wait([made], SECONDS).done == {made}
    finally:
        forked.set()
        thread.join(SECONDS)


# In asyncio


def test_await_gives_the_kernel_and_finishes_it_in_the_loop_s_thread() -> None:
    pending = FakePending()
    threads = []

    def finish(answer: str) -> str:
        threads.append(threading.get_ident())
        return answer.upper()

    made = make(pending, finish)

    async def program() -> str:
        thread = threading.Thread(target=pending.answer.set_result, args=["entry"])
        asyncio.get_running_loop().call_soon(thread.start)
        kernel: str = await made
        thread.join(SECONDS)
        return kernel

    assert run(program()) == "ENTRY"
    assert threads == [threading.get_ident()]
    assert pending.wanted == 1


def test_await_raises_what_result_would_and_each_time_an_error_of_its_own() -> None:
    made = make(FakePending(refused()))

    async def wait() -> Any:
        return await made

    async def program() -> Any:
        return await asyncio.gather(wait(), wait(), return_exceptions=True)

    errors = run(program())
    assert [type(error) for error in errors] == [SourceError, SourceError]
    assert errors[0] is not errors[1]


def test_many_are_awaited_together() -> None:
    pendings = [FakePending() for _ in range(100)]
    futures = [make(pending) for pending in pendings]

    async def program() -> Any:
        loop = asyncio.get_running_loop()
        loop.call_soon(lambda: [each.answer.set_result(number) for number, each in enumerate(pendings)])
        return await asyncio.gather(*futures)

    assert run(program()) == [str(number) for number in range(100)]


def test_a_task_that_is_cancelled_or_out_of_time_stops_waiting_and_no_more() -> None:
    pending = FakePending()
    made = make(pending)

    async def program() -> str:
        task = asyncio.ensure_future(made)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(made, 0.01)
        assert not made.cancelled()
        pending.answer.set_result("entry")
        result: str = await made
        return result

    assert run(program()) == "entry"
    assert pending.withdrawn == 0


def test_it_is_awaited_in_two_loops_at_once() -> None:
    pending = FakePending()
    calls = []
    made = make(pending, lambda answer: calls.append(answer) or object())
    waiting = threading.Barrier(3)

    async def program() -> object:
        asyncio.get_running_loop().call_soon(waiting.wait, SECONDS)
        return await made

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        results = [pool.submit(run, program()) for _ in range(2)]
        waiting.wait(SECONDS)
        pending.answer.set_result("entry")
        assert results[0].result(SECONDS) is results[1].result(SECONDS)
    assert calls == ["entry"]


def test_an_answer_that_comes_after_the_loop_was_closed_reaches_those_who_still_wait() -> None:
    pending = FakePending()
    made = make(pending)

    async def program() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(made, 0.01)

    run(program())
    called: list[Any] = []
    made.add_done_callback(called.append)
    pending.answer.set_result("entry")
    assert called == [made]


def test_await_of_a_cancelled_one_is_cancelled_as_asyncio_says_it() -> None:
    pending = FakePending()
    made = make(pending, never)

    async def program() -> None:
        asyncio.get_running_loop().call_soon(made.cancel)
        with pytest.raises(asyncio.CancelledError, match="add_kernel was cancelled"):
            await made

    run(program())


def test_a_slow_one_is_named_while_it_is_awaited(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(future_module, "SLOW_COMPILE", 0.01)
    pending = FakePending()

    class Answers(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if not pending.answer.done():
                pending.answer.set_result("entry")

    answers = Answers()
    logging.getLogger("headstart").addHandler(answers)

    async def program() -> Any:
        return await make(pending)

    try:
        assert run(program()) == "entry"
    finally:
        logging.getLogger("headstart").removeHandler(answers)
    assert caplog.records[0].message.startswith("still compiling add_kernel after ")


@pytest.mark.parametrize("answer", ["entry", refused()], ids=["kernel", "error"])
def test_asyncio_can_wrap_it(answer: Any) -> None:
    made = make(FakePending(answer), str.upper)

    async def program() -> Any:
        return await asyncio.gather(asyncio.wrap_future(made), return_exceptions=True)

    (result,) = run(program())
    assert result == "ENTRY" if answer == "entry" else isinstance(result, SourceError)


def test_what_python_3_14_s_wrap_future_reads_says_the_same() -> None:
    pending = FakePending()
    made = make(pending, str.upper)
    assert made._get_snapshot() == (False, False, None, None)
    pending.answer.set_result("entry")
    assert made._get_snapshot() == (True, False, "ENTRY", None)
    failed = make(FakePending(refused()))._get_snapshot()
    assert (*failed[:3], type(failed[3])) == (True, False, None, SourceError)
    cancelled = make(FakePending())
    cancelled.cancel()
    assert cancelled._get_snapshot() == (True, True, None, None)


# cancel


def test_a_cancelled_future_says_so_to_everybody_and_tells_the_service_once() -> None:
    pending = FakePending()
    made = make(pending, never)
    called: list[Any] = []
    made.add_done_callback(called.append)
    concurrent.futures.wait([made], timeout=0)
    assert made.cancel()
    assert made.cancel()
    assert (made.cancelled(), made.done(), made.running(), made.failure()) == (True, True, False, None)
    assert called == [made]
    assert pending.withdrawn == 1
    assert repr(made) == "<LambdaFuture add_kernel cancelled>"
    for ask in (made.result, made.exception):
        with pytest.raises(concurrent.futures.CancelledError, match="add_kernel was cancelled"):
            ask()
    assert concurrent.futures.wait([made], SECONDS).done == {made}
    assert list(as_completed([made], SECONDS)) == [made]


@pytest.mark.parametrize("answer", ["entry", refused()], ids=["kernel", "error"])
def test_what_is_answered_cannot_be_cancelled(answer: Any) -> None:
    pending = FakePending(answer)
    made = make(pending)
    assert not made.cancel()
    assert not made.cancelled()
    assert pending.withdrawn == 0
    assert made.ask_again()


def test_what_comes_out_of_a_bundle_cannot_be_cancelled() -> None:
    assert not LambdaFuture("add_kernel", Answered(), str).cancel()


def test_a_part_of_what_was_asked_for_as_a_whole_cannot_be_cancelled() -> None:
    nothing: dict[str, Any] = {"use_store": True, "bundled": True, "answered": never, "note": lambda *_: None}
    delivered = Delivered("add_kernel", Policy(), lambda: never(None), want=lambda: None, **nothing)
    part: LambdaFuture[Any] = LambdaFuture("add_kernel", delivered, lambda answer: answer.key)
    assert not part.cancel()
    assert not part.cancel()
    delivered.settle(wire.JobOutcome(0, wire.Result(1, "key", cached=True)))
    assert part.result() == "key"


def test_an_answer_that_arrives_while_it_is_being_cancelled_counts() -> None:
    pending = FakePending()
    made = make(pending)
    pending.answer.at_cancel = lambda: pending.answer.set_result("entry")
    assert not made.cancel()
    assert pending.withdrawn == 0
    assert made.result() == "entry"
    assert made.ask_again()


def test_an_answer_that_arrives_when_it_was_cancelled_just_before_is_dropped() -> None:
    outstanding = Outstanding(threading.RLock())
    asked: Asked[Any] = Asked(lambda _: None, "add_kernel", Policy())
    outstanding.add(asked)
    assert asked.answer.cancel()
    outstanding.settle(asked, "entry")
    outstanding.settle(asked, ServiceError("closed"))
    assert asked.answer.cancelled()
    assert asked not in outstanding


def test_those_who_are_blocked_on_it_are_released() -> None:
    pending = FakePending()
    made = make(pending)
    blocked = threading.Barrier(3)
    pending.want = lambda: blocked.wait(SECONDS)  # type: ignore[method-assign,assignment,return-value]

    def wait() -> BaseException | None:
        try:
            return made.exception(SECONDS)
        except concurrent.futures.CancelledError as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(wait) for _ in range(2)]
        blocked.wait(SECONDS)
        assert made.cancel()
        errors = [each.result(SECONDS) for each in waiting]
    assert {type(error) for error in errors} == {concurrent.futures.CancelledError}


def test_threads_that_cancel_at_the_same_time_tell_the_service_once() -> None:
    pending = FakePending()
    made = make(pending)
    both = threading.Barrier(2)
    pending.answer.at_cancel = lambda: both.wait(SECONDS)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        assert [each.result(SECONDS) for each in [pool.submit(made.cancel) for _ in range(2)]] == [True, True]
    assert pending.withdrawn == 1
    assert concurrent.futures.wait([made], SECONDS).done == {made}


def test_a_request_that_others_made_too_is_not_cancelled_before_all_took_theirs_back() -> None:
    pending = FakePending()
    made = make(pending)
    assert made.ask_again()
    assert not made.cancel()
    assert not made.done()
    assert made.cancel()
    assert made.cancelled()
    assert not made.ask_again()


def test_a_request_that_comes_while_it_is_being_cancelled_is_a_new_one() -> None:
    pending = FakePending()
    made = make(pending)
    again = []
    pending.answer.at_cancel = lambda: again.append(made.ask_again())
    assert made.cancel()
    assert again == [False]


def test_wait_of_a_scope_puts_the_others_in_place_before_it_says_what_was_cancelled() -> None:
    cancelled = make(FakePending(), name="not_wanted")
    cancelled.cancel()
    scope: dict[str, Any] = {"cancelled": cancelled, "kernel": make(FakePending("entry")), "other": 1}
    with pytest.raises(concurrent.futures.CancelledError, match="not_wanted was cancelled"):
        put_results(scope)
    assert scope == {"cancelled": cancelled, "kernel": "entry", "other": 1}
    scope["failed"] = make(FakePending(refused()))
    with pytest.raises(CompileErrors):
        put_results(scope)


def test_who_waits_for_several_while_no_service_can_be_started_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that tells them holds the connection's lock, and `wait` those of the futures that it has come to."""
    start, telling, wants = threading.Event(), threading.Event(), count(1)

    def launch() -> Launched:
        start.wait(SECONDS)
        raise ServiceError("it cannot be started")

    def want(self: ServiceConnection, kickoff: Any) -> None:
        if next(wants) == 2:
            start.set()
            telling.wait(SECONDS)
        real_want(self, kickoff)

    def fail(self: Outstanding, error: HeadstartError) -> None:
        telling.set()
        real_fail(self, error)

    real_want, real_fail = ServiceConnection.want, Outstanding.fail
    monkeypatch.setattr(ServiceConnection, "want", want)
    monkeypatch.setattr(Outstanding, "fail", fail)
    connection = ServiceConnection(launch, lambda request: "", wire.Preferences(b"/cache"))
    requests = [CompileRequest.make(**pointwise(float(number)), target="cuda:90") for number in range(3)]
    futures = [LambdaFuture("k", connection.submit(each, Policy(), True), lambda answer: answer) for each in requests]
    waiting = threading.Thread(target=concurrent.futures.wait, args=(futures, SECONDS), daemon=True)
    waiting.start()
    waiting.join(SECONDS)
    assert not waiting.is_alive()
    assert [str(each.exception(0)) for each in futures] == ["it cannot be started"] * 3
