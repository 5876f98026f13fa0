"""What may take long, done in a thread of its own: the loop answers everybody else meanwhile.

    loop ── do(work, then) ─▶ thread: work()
    loop ◀─ eventfd ──────── then(what it returned), in the loop again

Reading a toolchain, looking an entry up, writing a failure down: each touches files, which may lie on a slow or a
hanging disk. One thread, so that what one client asks for is done in order, and no two write the same file.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import TypeVar

from headstart.service.loop import Loop

_END_TIMEOUT = 5.0  # seconds that what is still to be written gets at the end

Made = TypeVar("Made")
_log = logging.getLogger("headstart.service")


class Errands:
    """A thread, started with the first errand, and a way back from it.

    Args:
        loop: in whose thread the rest is done.
    """

    def __init__(self, loop: Loop) -> None:
        self._todo: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._done: deque[Callable[[], None]] = deque()
        self._wakeup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread: threading.Thread | None = None
        self._loop = loop
        loop.watch(self._wakeup, self._come_back)

    def do(
        self,
        work: Callable[[], Made],
        then: Callable[[Made], None] | None = None,
        failed: Callable[[], None] | None = None,
    ) -> None:
        """Have `work` done in the thread, and `then` in the loop; `failed` instead if it raises, which is a bug."""

        def run() -> None:
            try:
                made = work()
            except Exception:  # noqa: BLE001 - one client's trouble must not become the others'
                _log.exception("an errand failed; this is a bug")
                if failed is not None:
                    self.post(failed)
                return
            if then is not None:
                self.post(lambda: then(made))

        if self._has_thread():
            self._todo.put(run)
        else:
            run()

    def post(self, step: Callable[[], None]) -> None:
        """From the thread: have `step` done in the loop."""
        self._done.append(step)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(self._wakeup, 1)

    def close(self) -> None:
        """Wait for what was begun; what it leads to in the loop is not done any more."""
        self._todo.put(None)
        if self._thread is not None:
            self._thread.join(_END_TIMEOUT)
        self._loop.unwatch(self._wakeup)
        os.close(self._wakeup)

    def _has_thread(self) -> bool:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="headstart-errands", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # a limit on processes
                return False
            self._thread = thread
        return True

    def _run(self) -> None:
        while (errand := self._todo.get()) is not None:
            errand()

    def _come_back(self, mask: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wakeup)
        while self._done:
            self._done.popleft()()
