"""LambdaFuture: the promise of a compiled kernel, a standard future that is answered by the service.

Making one costs a few microseconds: nothing is loaded, parsed or imported. What turns the service's answer into
something usable (the finishing step) runs in the consumer, when it first asks for the result, once.

    connection's thread ── Pending.answer, a plain future ──▶ done, result, exception, callbacks, await
                                    └─ once concurrent.futures looks ──▶ the state that `Future` keeps, for its waiters

What `concurrent.futures.Future.__init__` makes is made when somebody looks there: `concurrent.futures.wait`, say. Most
futures of a program are asked for their result and for nothing else.
"""

from __future__ import annotations

import concurrent.futures
import logging
import os
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, MutableMapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from headstart.client.kernel_log import NOTED_WAIT
from headstart.client.wanting import want_soon
from headstart.errors import CompileError, CompileErrors, HeadstartError
from headstart.system.forks import renew_in_forks

if TYPE_CHECKING:
    from headstart.client.kernel_log import KernelLog

T = TypeVar("T")

SLOW_COMPILE = 60.0  # seconds of waiting after which a kernel's name is shown, and again each time

_STANDARD = frozenset(vars(concurrent.futures.Future()))  # names of what `Future.__init__` makes
_brief = threading.RLock()  # never held while anything else runs, but for what a signal's handler does

_log = logging.getLogger("headstart")


class Pending(Protocol):
    """What a LambdaFuture waits for."""

    @property
    def answer(self) -> concurrent.futures.Future[Any]:
        """Where the answer will be. Asked for anew each time: a fork of the process gets another one."""

    @property
    def is_running(self) -> bool:
        """Whether a worker has begun."""

    def want(self) -> None:
        """Somebody begins to wait."""

    def withdraw(self) -> None:
        """Nobody will wait: the answer has been cancelled. Called once."""


class LambdaFuture(concurrent.futures.Future[T]):
    """The result of one kick-off: a `concurrent.futures.Future`, of which whoever asks first does the last step.

    It works wherever such a future does: from any thread, in `concurrent.futures.wait` and `as_completed`, and in
    asyncio, where `await future` gives the kernel. It is done once the service has answered; opening what was compiled
    is left to the first `result`, `exception` or `await`. Inside a running event loop `result` blocks the loop.

    Args:
        name: of the kernel, for messages.
        pending: what to wait for; the exceptions of its answer are raised by `result`.
        finish: makes the result of the answer; runs once, in the first thread that asks.
    """

    def __init__(self, name: str, pending: Pending, finish: Callable[[Any], T]) -> None:
        # Not `Future`'s: see `__getattr__`.
        self.name = name
        self._pending = pending
        self._finish: Callable[[Any], T] | None = finish
        self._lock = threading.Lock()  # of the finishing step
        self._made: T
        self._error: BaseException | None = None
        self._requests = 1  # that were answered by this future and not taken back
        self._is_standard = False  # whether there is what `Future.__init__` makes

    def done(self) -> bool:
        """Whether the service has answered, or it was cancelled. `result` then no longer waits for a compile."""
        return self._pending.answer.done()

    def running(self) -> bool:
        """Whether a worker compiles it, as far as this process knows."""
        return self._pending.is_running and not self.done()

    def cancelled(self) -> bool:
        """Whether `cancel` has ended it."""
        return self._pending.answer.cancelled()

    def cancel(self) -> bool:
        """Take one request for this kernel back.

        Whoever made the same request has the same future: until each has taken theirs back nothing happens. With the
        last one the future is cancelled, and the service drops a compile that has not begun, unless another client
        wants it. One that has begun goes on, and what comes of it is kept in the store.

        Returns:
            Whether it is cancelled now: not if the service has answered, or others want it.
        """
        answer = self._pending.answer
        if answer.done():
            return answer.cancelled()
        with _brief:
            if self._requests > 1:
                self._requests -= 1
                return False
            is_first, self._requests = self._requests == 1, 0
        if not answer.cancel():
            return False  # the answer came first
        if is_first:
            answer.set_running_or_notify_cancel()  # which tells those in `concurrent.futures.wait`
            self._pending.withdraw()
        return True

    def ask_again(self) -> bool:
        """The same request was made once more. Returns whether this future answers it: not once it is cancelled."""
        with _brief:
            if not self._requests and (not self.done() or self.cancelled()):
                return False
            self._requests += 1
            return True

    def result(self, timeout: float | None = None) -> T:
        """The compiled kernel.

        Args:
            timeout: seconds to wait for; None: as long as it takes.

        Raises:
            TimeoutError: it was not there in time. The compile goes on, and `result` can be called again.
            CompileError: the kernel could not be compiled.
            ServiceError: there is nothing to compile with.
            concurrent.futures.CancelledError: it was cancelled.
        """
        answer = self._wait(timeout)
        with self._lock:
            if self._finish is not None:
                try:
                    self._made = self._finish(answer)
                except Exception as error:  # noqa: BLE001 - raised below, each time
                    self._error = error
                self._finish = None
        if self._error is not None:
            raise _own(self._error)
        return self._made

    @property
    def log(self) -> KernelLog | None:
        """What of the run's log is about it, if anything is written down."""
        return getattr(self._pending, "log", None)

    def failure(self) -> BaseException | None:
        """What the service answered instead of a kernel; None: a kernel, or no answer yet, or it was cancelled."""
        answer = self._pending.answer
        return answer.exception() if answer.done() and not answer.cancelled() else None

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What `result` would raise, or None. Waits, and raises TimeoutError and CancelledError, as `result` does."""
        if self._is_standard and self._condition._is_owned():  # type: ignore[attr-defined] # Condition's own
            # `concurrent.futures.wait` asks under the locks of all its futures. The finishing step may have to compile
            # again, for which the connection's thread has to be free to answer one of these.
            return self._error if self._finish is None else self.failure()
        try:
            self.result(timeout)
        except (TimeoutError, concurrent.futures.TimeoutError, concurrent.futures.CancelledError):
            raise
        except Exception as error:  # noqa: BLE001 - it is the answer
            return error
        return None

    def add_done_callback(self, callback: Callable[[LambdaFuture[T]], object]) -> None:
        """Call `callback(self)` once the service has answered, or it is cancelled; at once if that has happened.

        It runs in headstart's thread, which has to go on: it should hand over to somebody, and not ask for the result.
        """
        self._pending.answer.add_done_callback(lambda _: callback(self))

    def want(self) -> None:
        """Have this kernel compiled before those that nobody waits for. `result` does so by itself."""
        if not self.done():
            self._pending.want()

    def set_result(self, result: Any) -> None:
        """Not to be called: the service answers."""
        raise concurrent.futures.InvalidStateError(f"{self.name}: only the compile service answers it")

    def set_exception(self, exception: BaseException | None) -> None:
        """Not to be called: the service answers."""
        raise concurrent.futures.InvalidStateError(f"{self.name}: only the compile service answers it")

    def set_running_or_notify_cancel(self) -> bool:
        """Not to be called: the service runs it."""
        raise concurrent.futures.InvalidStateError(f"{self.name}: only the compile service runs it")

    def __await__(self) -> Generator[Any, None, T]:
        """In asyncio: as `result`, without blocking the loop. A task that is cancelled stops waiting, and no more."""
        return self._awaited().__await__()

    async def _awaited(self) -> T:
        import asyncio  # who awaits has it

        loop = asyncio.get_running_loop()
        arrived: asyncio.Future[None] = loop.create_future()

        def arrive() -> None:
            if not arrived.done():
                arrived.set_result(None)

        def tell(_: LambdaFuture[T]) -> None:
            try:
                loop.call_soon_threadsafe(arrive)
            except RuntimeError:
                pass  # the loop is closed: nobody waits

        self.add_done_callback(tell)
        self.want()
        begun = time.monotonic()
        if not (await asyncio.wait([arrived], timeout=NOTED_WAIT))[0]:
            with self._waits(begun):
                while not (await asyncio.wait([arrived], timeout=SLOW_COMPILE))[0]:
                    self._warn_of_wait(begun)
        if self.cancelled():
            raise asyncio.CancelledError(f"{self.name} was cancelled")
        return self.result(0)

    def after_fork(self) -> None:
        """In a fork of the process: the threads that held its locks, if any did, are not here."""
        self._lock = threading.Lock()
        self._is_standard = False
        for name in _STANDARD:
            self.__dict__.pop(name, None)

    def __repr__(self) -> str:
        state = "cancelled" if self.cancelled() else "done" if self.done() else "pending"
        return f"<LambdaFuture {self.name} {state}>"

    def __getattr__(self, name: str) -> Any:
        """Called for what is not there: what `Future` keeps is made for the first who looks for it, and will wait."""
        if name not in _STANDARD:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        with _brief:
            is_first = not self._is_standard
            if is_first:
                super().__init__()
                self._is_standard = True
        if is_first:
            renew_in_forks(self)
            self._pending.answer.add_done_callback(self._tell_waiters)
            want_soon(self.want)
        return self.__dict__[name]

    def _tell_waiters(self, answer: concurrent.futures.Future[Any]) -> None:
        """Those that `concurrent.futures` has put where `Future` keeps them."""
        if answer.cancelled():
            super().cancel()
            super().set_running_or_notify_cancel()
        elif (error := answer.exception()) is not None:
            super().set_exception(error)
        else:
            super().set_result(None)  # type: ignore[arg-type] # `result` gives the real one

    def _get_snapshot(self) -> tuple[bool, bool, T | None, BaseException | None]:
        """For `asyncio.wrap_future` from Python 3.14 on: whether it is done, whether cancelled, result, exception."""
        if not self.done() or self.cancelled():
            return self.done(), self.cancelled(), None, None
        error = self.exception()
        return True, False, self.result() if error is None else None, error

    def _wait(self, timeout: float | None) -> Any:
        self.want()
        begun = time.monotonic()
        with nullcontext() if self._comes_at_once(timeout) else self._waits(begun):
            return self._answer(begun, timeout)

    def _comes_at_once(self, timeout: float | None) -> bool:
        """Whether there is no wait that the run's log is to be told of; waits until that is known."""
        longest = NOTED_WAIT if timeout is None else min(NOTED_WAIT, max(0.0, timeout))
        try:
            self._pending.answer.exception(longest)
        except concurrent.futures.CancelledError:
            return True
        except concurrent.futures.TimeoutError:
            return longest < NOTED_WAIT
        return True

    def _waits(self, begun: float) -> AbstractContextManager[None]:
        """This thread has waited since then, and waits in the context."""
        log = self.log
        return nullcontext() if log is None else log.blocked(begun)

    def _answer(self, begun: float, timeout: float | None) -> Any:
        while True:
            waited = time.monotonic() - begun
            patience = SLOW_COMPILE if timeout is None else min(SLOW_COMPILE, max(0.0, timeout - waited))
            try:
                return self._pending.answer.result(patience)
            except concurrent.futures.CancelledError:
                raise concurrent.futures.CancelledError(f"{self.name} was cancelled") from None
            except concurrent.futures.TimeoutError:
                answer = self._pending.answer
                if answer.done() and not answer.cancelled() and (error := answer.exception()) is not None:
                    raise _own(error) from None
                if timeout is not None and time.monotonic() - begun >= timeout:
                    raise TimeoutError(f"{self.name} is not compiled after {timeout:g} s") from None
                self._warn_of_wait(begun)
            except Exception as error:  # noqa: BLE001 - raised at once
                raise _own(error) from None

    def _warn_of_wait(self, begun: float) -> None:
        _log.warning("still compiling %s after %.0f s", self.name, time.monotonic() - begun)


def as_completed(futures: Iterable[LambdaFuture[T]], timeout: float | None = None) -> Iterator[LambdaFuture[T]]:
    """Yield each future once, in the order in which the service answers.

    Args:
        futures: what to wait for; a future given twice is yielded once.
        timeout: seconds for all of them together.

    Raises:
        TimeoutError: not all were answered in time.
    """
    by_answer: dict[concurrent.futures.Future[Any], list[LambdaFuture[T]]] = {}
    for future in dict.fromkeys(futures):
        by_answer.setdefault(future._pending.answer, []).append(future)
        future.want()
    answers = concurrent.futures.as_completed(list(by_answer), timeout)
    while True:
        begun = time.monotonic()
        try:
            arrived = by_answer[next(answers)]
        except StopIteration:
            return
        except concurrent.futures.TimeoutError:
            left = [future for group in by_answer.values() for future in group if not future.done()]
            _note_wait(left, begun)
            names = ", ".join(future.name for future in left[:5])
            raise TimeoutError(f"{len(left)} kernels are not compiled after {timeout:g} s: {names}") from None
        _note_wait(arrived, begun)
        yield from arrived


def _note_wait(futures: Sequence[LambdaFuture[Any]], begun: float) -> None:
    """This thread has waited since then, for the first of these."""
    log = futures[0].log if futures else None
    if log is not None:
        log.waited(begun)


def put_results(scope: MutableMapping[str, Any]) -> None:
    """Replace every LambdaFuture in `scope` by its result; see `AsyncCompile.wait`."""
    futures = {name: value for name, value in scope.items() if isinstance(value, LambdaFuture)}
    for future in futures.values():
        future.want()
    errors: dict[int, HeadstartError] = {}
    cancelled: Exception | None = None
    for name, future in futures.items():
        try:
            scope[name] = future.result()
        except HeadstartError as error:
            errors.setdefault(id(future), error)
        except concurrent.futures.CancelledError as error:
            cancelled = error
    if errors:
        raise CompileErrors(list(errors.values()))
    if cancelled is not None:
        raise cancelled


def _own(error: BaseException) -> BaseException:
    """An error that this waiter may add a traceback to: several threads can wait for one kernel."""
    return error.fresh() if isinstance(error, CompileError) else error


def _after_fork_in_child() -> None:
    global _brief
    _brief = threading.RLock()


os.register_at_fork(after_in_child=_after_fork_in_child)
