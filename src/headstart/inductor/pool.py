"""What stands in for Inductor's pool of compile workers: `submit` appends to a queue and returns.

    AsyncCompile.triton (Inductor's) ─▶ Pool.submit ─▶ Source, shared by all who kick the same source off
                                           └▶ PoolFuture: one for each, so that each consumer has its own autotuner
"""

from __future__ import annotations

import concurrent.futures
import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from headstart.errors import CompileError
from headstart.inductor import compat

if TYPE_CHECKING:
    from headstart.inductor.adapter import Adapter
    from headstart.inductor.source import Source

_LOOK = 5.0  # seconds between two looks at the describer while somebody waits
NO_WORKER = "no worker has answered yet"

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
        if self._source.waits_for_describer:
            with self._making:
                if self._made is None:
                    self._made = self._load_here()
                return self._made
        reason = self._wait(timeout)
        with self._making:
            if self._made is None:
                self._made = self._source.autotuner() if reason is None else self._in_process(reason)
            return self._made

    def _wait(self, timeout: float | None) -> str | None:
        """Returns why the kernel must be compiled in this process, or None."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if deadline is None else deadline - time.monotonic()
            patience = self._source.adapter.patience_left()
            waits = [seconds for seconds in (left, patience, _LOOK) if seconds is not None]
            try:
                reason: str | None = super().result(max(0.0, min(waits)))
                return reason
            except concurrent.futures.TimeoutError:
                if deadline is not None and time.monotonic() >= deadline:
                    raise
                if self._source.adapter.patience_left() == 0.0:
                    return NO_WORKER
                self._source.adapter.describing.end_if_stopped()
            except CompileError as error:
                raise compat.worker_error(str(error), error) from None

    def _load_here(self) -> tuple[Any, int]:
        started = time.monotonic()
        return self._source.adapter.load_here(self._load), int((time.monotonic() - started) * 1e6)

    def _in_process(self, reason: str) -> tuple[Any, int]:
        self._source.adapter.steps_aside(self._source.name, self._source.stem, reason)
        started = time.monotonic()
        return self._load(), int((time.monotonic() - started) * 1e6)

    def _settle(self, done: concurrent.futures.Future[str | None]) -> None:
        error = done.exception()
        if error is not None:
            self.set_exception(error)
        else:
            self.set_result(done.result())


class Pool:
    """Takes the place of Inductor's SubprocPool.

    Args:
        adapter: does the work.
        stock: makes Inductor's own pool, for jobs that are not Triton's.
    """

    def __init__(self, adapter: Adapter, stock: Callable[[], Any]) -> None:
        self._adapter = adapter
        self._stock = stock

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
            other: concurrent.futures.Future[Any] = self._stock().submit(function, *arguments, **keywords)
            return other
        return PoolFuture(self._adapter.kick_off(*job), arguments[0])

    def wakeup(self) -> None:
        """Workers are awake."""

    def shutdown(self, *arguments: Any, **keywords: Any) -> None:
        """The service ends with the adapter."""
