"""The adapter's thread: what needs no service, and may take long, is done in it, one step after the other."""

from __future__ import annotations

import functools
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable

_END_TIMEOUT = 5.0  # seconds for what is still to be written
_IDLE_TIMEOUT = 1.0  # seconds; with no bundle there is hardly anything for it to do

_log = logging.getLogger("headstart")


class AdapterThread:
    """Started with a step, and gone when there has been none for a moment."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._idle: deque[Callable[[], None]] = deque()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._closed = False

    def soon(self, step: Callable[..., None], *arguments: object) -> bool:
        """Run `step` in the thread. False: there can be none, and it will not be run."""
        with self._lock:
            if self._closed:
                return False
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="headstart-inductor", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:
                    _log.info("the torch.compile adapter has no thread: %s", error)
                    return False
                self._thread = thread
            self._queue.put(functools.partial(step, *arguments))
            return True

    def later(self, step: Callable[..., None], *arguments: object) -> None:
        """Run `step` in the thread, from which it is called, once nothing that somebody may wait for is left.

        While Inductor generates code, each call into the system costs this thread a wait for the interpreter's lock.
        """
        self._idle.append(functools.partial(step, *arguments))

    def close(self) -> None:
        """Wait for what is still to be done."""
        with self._lock:
            self._closed, thread = True, self._thread
            if thread is not None:
                self._queue.put(None)
        if thread is not None:
            thread.join(_END_TIMEOUT)

    def _run(self) -> None:
        while True:
            try:
                step = self._queue.get(timeout=0.0 if self._idle else _IDLE_TIMEOUT)
            except queue.Empty:
                if self._idle:
                    _guarded(self._idle.popleft())
                    continue
                with self._lock:  # whoever puts a step there finds this thread at work, or none
                    if self._queue.empty():
                        self._thread = None
                        return
                continue
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
