"""What stands in for Inductor's pool of compile workers: `submit` appends to a queue and returns.

    AsyncCompile.triton (Inductor's) ─▶ Pool.submit ─▶ Source, shared by all who kick the same source off
                                           └▶ PoolFuture: one for each, so that each consumer has its own autotuner

Whatever else is asked of the pool is asked of Inductor's own.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from headstart.adapters.inductor import compat
from headstart.adapters.inductor.host import PoolHost
from headstart.adapters.inductor.jobs import NO_WORKER
from headstart.adapters.inductor.source import Source, UnusableError
from headstart.errors import CompileError, HeadstartError

_log = logging.getLogger("headstart")


class PoolFuture(concurrent.futures.Future[Any]):
    """The future of one job; its result is what Inductor's worker returns, an autotuner and microseconds.

    The autotuner is built in the consumer that first asks. Inductor asks up to twice for the result of one future.
    """

    def __init__(self, source: Source, load: Callable[[], Any]) -> None:
        super().__init__()
        self._source = source
        self._load = load
        self._making = threading.Lock()
        self._made: tuple[Any, int] | None = None
        self.set_running_or_notify_cancel()
        source.done.add_done_callback(self._settle)

    def result(self, timeout: float | None = None) -> tuple[Any, int]:
        """Wait, and build the autotuner.

        Raises:
            SubprocException: Inductor's, with the worker's traceback: the kernel does not compile.
            TimeoutError: it was not there in time.
        """
        self._source.want()
        patience = [seconds for seconds in (timeout, self._source.adapter.patience_left()) if seconds is not None]
        if self._source.waits_for_describer(min(patience, default=None)):
            with self._making:
                if self._made is None:
                    self._made = self._load_here()
                return self._made
        with contextlib.nullcontext() if self.done() else self._source.asking.waits():
            reason = self._wait(timeout)
        with self._making:
            if self._made is None:
                self._made = self._ours() if reason is None else self._in_process(reason)
            return self._made

    def _ours(self) -> tuple[Any, int]:
        try:
            return self._source.autotuner()
        except UnusableError as error:
            return self._in_process(str(error))

    def _wait(self, timeout: float | None) -> str | None:
        """Returns why the kernel must be compiled in this process, or None."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if deadline is None else deadline - time.monotonic()
            patience = self._source.adapter.patience_left()
            waits = [max(0.0, seconds) for seconds in (left, patience) if seconds is not None]
            try:
                reason: str | None = super().result(min(waits, default=None))
                return reason
            except concurrent.futures.TimeoutError:
                if deadline is not None and time.monotonic() >= deadline:
                    raise
                if self._source.adapter.patience_left() == 0.0:
                    return NO_WORKER
            except CompileError as error:
                raise compat.worker_error(str(error), error) from None

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """As Inductor's worker would fail; see `result`."""
        error = super().exception(timeout)
        return compat.worker_error(str(error), error) if isinstance(error, CompileError) else error

    def _load_here(self) -> tuple[Any, int]:
        started = time.monotonic()
        with _as_in_a_worker():
            autotuner = self._source.adapter.load_here(self._load)
        return autotuner, int((time.monotonic() - started) * 1e6)

    def _in_process(self, reason: str) -> tuple[Any, int]:
        self._source.adapter.steps_aside(self._source.name, self._source.stem, reason)
        started = time.monotonic()
        with _as_in_a_worker():
            autotuner = self._load()
            compat.compile_all(autotuner)
        return autotuner, int((time.monotonic() - started) * 1e6)

    def _settle(self, done: concurrent.futures.Future[str | None]) -> None:
        error = done.exception()
        if error is not None:
            self.set_exception(error)
        else:
            self.set_result(done.result())


@contextlib.contextmanager
def _as_in_a_worker() -> Iterator[None]:
    """What a source raises here it raises as it would in a worker of Inductor's."""
    try:
        yield
    except HeadstartError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a generated source raises
        raise compat.worker_error(traceback.format_exc(), error) from None


class Pool:
    """Takes the place of Inductor's SubprocPool, with all that it offers.

    What concerns workers is nothing to do for ours, and passed on to a pool of Inductor's own if one was made. Whatever
    else is asked of it is asked of such a pool.

    Args:
        adapter: does the work.
        stock: makes Inductor's own pool, for jobs that are not Triton's.
        settings: Inductor's variables now: a pool of its own would go on with them, whatever the program sets later.

    Attributes:
        settings: the same.
    """

    def __init__(self, adapter: PoolHost, stock: Callable[[], Any], settings: dict[str, str]) -> None:
        self._adapter = adapter
        self.settings = settings
        self._stock = stock
        self._made: Any = None

    def submit(self, function: Any, *arguments: Any, **keywords: Any) -> concurrent.futures.Future[Any]:
        """Never waits."""
        if getattr(function, "__name__", "") == "_get_ready":
            # Kick-offs wait in our queue, never for workers: Inductor may always begin.
            ready: concurrent.futures.Future[Any] = concurrent.futures.Future()
            ready.set_result("ready")
            return ready
        job = compat.worker_job(function, arguments, keywords)
        if job is None:
            if getattr(function, "__name__", "") == "_worker_compile_triton":
                self._adapter.log_once("Inductor describes its jobs in a way that headstart does not know")
            other: concurrent.futures.Future[Any] = self._inductors().submit(function, *arguments, **keywords)
            return other
        return PoolFuture(self._adapter.kick_off(*job, self.settings), arguments[0])

    def quiesce(self) -> None:
        """Our workers end by themselves when they idle."""
        if self._made is not None:
            self._made.quiesce()

    def wakeup(self) -> None:
        """Our workers are awake."""
        if self._made is not None:
            self._made.wakeup()

    def shutdown(self, *arguments: Any, **keywords: Any) -> None:
        """The service ends with the adapter."""
        if self._made is not None:
            self._made.shutdown(*arguments, **keywords)
            self._made = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._inductors(), name)

    def _inductors(self) -> Any:
        self._made = self._stock()  # which remembers it, until Inductor has it forget
        return self._made
