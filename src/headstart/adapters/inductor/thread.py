"""The adapter's thread: everything but waiting happens in it, one step after the other."""

from __future__ import annotations

import functools
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable

_END_TIMEOUT = 5.0  # seconds for what is still to be written

_log = logging.getLogger("headstart")


class AdapterThread:
    """Started with the first step."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._idle: deque[Callable[[], None]] = deque()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def soon(self, step: Callable[..., None], *arguments: object) -> None:
        """Run `step` in the thread."""
        self._queue.put(functools.partial(step, *arguments))
        self.is_there()  # if there is none now, the next who finds one has this run as well

    def later(self, step: Callable[..., None], *arguments: object) -> None:
        """Run `step` in the thread, from which it is called, once nothing that somebody may wait for is left.

        While Inductor generates code, each call into the system costs this thread a wait for the interpreter's lock.
        """
        self._idle.append(functools.partial(step, *arguments))

    def is_there(self) -> bool:
        """Whether there is a thread; starts it if there can be one."""
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    thread = threading.Thread(target=self._run, name="headstart-inductor", daemon=True)
                    try:
                        thread.start()
                        self._thread = thread
                    except RuntimeError as error:
                        _log.info("the torch.compile adapter has no thread: %s", error)
        return self._thread is not None

    def close(self) -> None:
        """Wait for what is still to be done."""
        self._queue.put(None)
        if self._thread is not None:
            self._thread.join(_END_TIMEOUT)

    def _run(self) -> None:
        while True:
            try:
                step = self._queue.get(block=not self._idle)
            except queue.Empty:
                step = self._idle.popleft()
            if step is None:
                break
            _guarded(step)
        for step in self._idle:
            _guarded(step)


def _guarded(step: Callable[[], None]) -> None:
    try:
        step()
    except Exception:  # noqa: BLE001 - one source's trouble must not become the others'
        _log.exception("headstart's torch.compile adapter failed; this is a bug")
