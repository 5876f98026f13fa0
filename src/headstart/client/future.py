"""LambdaFuture: the promise of a compiled kernel.

Making one costs a few microseconds: nothing is loaded, parsed or imported. What turns the service's answer into
something usable (the finishing step) runs in the consumer, when it first asks for the result, once.
"""

from __future__ import annotations

import concurrent.futures
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from headstart.errors import CompileError, CompileErrors, HeadstartError

if TYPE_CHECKING:
    from headstart.client.kernel_log import KernelLog

T = TypeVar("T")

SLOW_COMPILE = 60.0  # seconds of waiting after which a kernel's name is shown, and again each time

_log = logging.getLogger("headstart")


class Pending(Protocol):
    """What a LambdaFuture waits for."""

    @property
    def answer(self) -> concurrent.futures.Future[Any]:
        """Where the answer will be. Asked for anew each time: a fork of the process gets another one."""

    def want(self) -> None:
        """Somebody begins to wait."""


class LambdaFuture(Generic[T]):
    """The result of one kick-off. Usable from any thread, and inside a running event loop (where `result` blocks it).

    Args:
        name: of the kernel, for messages.
        pending: what to wait for; the exceptions of its answer are raised by `result`.
        finish: makes the result of the answer; runs once, in the first thread that asks.
    """

    def __init__(self, name: str, pending: Pending, finish: Callable[[Any], T]) -> None:
        self.name = name
        self._pending = pending
        self._finish: Callable[[Any], T] | None = finish
        self._lock = threading.Lock()
        self._result: T
        self._error: BaseException | None = None

    def done(self) -> bool:
        """Whether the service has answered. `result` then no longer waits for a compile."""
        return self._pending.answer.done()

    def result(self, timeout: float | None = None) -> T:
        """The compiled kernel.

        Args:
            timeout: seconds to wait for; None: as long as it takes.

        Raises:
            TimeoutError: it was not there in time. The compile goes on, and `result` can be called again.
            CompileError: the kernel could not be compiled.
            ServiceError: there is nothing to compile with.
        """
        answer = self._wait(timeout)
        with self._lock:
            if self._finish is not None:
                try:
                    self._result = self._finish(answer)
                except Exception as error:  # noqa: BLE001 - raised below, each time
                    self._error = error
                self._finish = None
        if self._error is not None:
            raise _own(self._error)
        return self._result

    @property
    def log(self) -> KernelLog | None:
        """What of the run's log is about it, if anything is written down."""
        return getattr(self._pending, "log", None)

    def failure(self) -> BaseException | None:
        """What the service answered instead of a kernel; None: a kernel, or no answer yet."""
        answer = self._pending.answer
        return answer.exception() if answer.done() else None

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What `result` would raise, or None. Waits as `result` does."""
        try:
            self.result(timeout)
        except TimeoutError:
            raise
        except Exception as error:  # noqa: BLE001 - it is the answer
            return error
        return None

    def add_done_callback(self, callback: Callable[[LambdaFuture[T]], object]) -> None:
        """Call `callback(self)` once the service has answered; at once if it has. It may run in headstart's thread."""
        self._pending.answer.add_done_callback(lambda _: callback(self))

    def want(self) -> None:
        """Have this kernel compiled before those that nobody waits for. `result` does so by itself."""
        if not self.done():
            self._pending.want()

    def after_fork(self) -> None:
        """In a fork of the process: the thread that held this lock, if any did, is not here."""
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<LambdaFuture {self.name} {'done' if self.done() else 'pending'}>"

    def _wait(self, timeout: float | None) -> Any:
        self.want()
        log = None if self.done() else self.log
        waits = nullcontext() if log is None else log.blocked()
        with waits:
            return self._answer(timeout)

    def _answer(self, timeout: float | None) -> Any:
        begun = time.monotonic()
        while True:
            waited = time.monotonic() - begun
            patience = SLOW_COMPILE if timeout is None else min(SLOW_COMPILE, max(0.0, timeout - waited))
            try:
                return self._pending.answer.result(patience)
            except concurrent.futures.TimeoutError:
                answer = self._pending.answer
                if answer.done() and (error := answer.exception()) is not None:
                    raise _own(error) from None
                waited = time.monotonic() - begun
                if timeout is not None and waited >= timeout:
                    raise TimeoutError(f"{self.name} is not compiled after {timeout:g} s") from None
                _log.warning("still compiling %s after %.0f s", self.name, waited)
            except Exception as error:  # noqa: BLE001 - raised at once
                raise _own(error) from None


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
    try:
        for answer in concurrent.futures.as_completed(list(by_answer), timeout):
            yield from by_answer[answer]
    except concurrent.futures.TimeoutError:
        left = [future.name for future in (f for group in by_answer.values() for f in group) if not future.done()]
        raise TimeoutError(f"{len(left)} kernels are not compiled after {timeout:g} s: {', '.join(left[:5])}") from None


def put_results(scope: MutableMapping[str, Any]) -> None:
    """Replace every LambdaFuture in `scope` by its result; see `AsyncCompile.wait`."""
    futures = {name: value for name, value in scope.items() if isinstance(value, LambdaFuture)}
    for future in futures.values():
        future.want()
    errors: dict[int, HeadstartError] = {}
    for name, future in futures.items():
        try:
            scope[name] = future.result()
        except HeadstartError as error:
            errors.setdefault(id(future), error)
    if errors:
        raise CompileErrors(list(errors.values()))


def _own(error: BaseException) -> BaseException:
    """An error that this waiter may add a traceback to: several threads can wait for one kernel."""
    return error.fresh() if isinstance(error, CompileError) else error
