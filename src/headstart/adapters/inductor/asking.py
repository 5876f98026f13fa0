"""Who asked for a source, and who waits for it: for the run's log, in which only kernels are."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from headstart.client.about import asked_from
from headstart.client.kernel_log import KernelLog


class Asking:
    """Of one source; made in the thread that asks for it."""

    def __init__(self) -> None:
        self._asked = time.monotonic()
        self._where = asked_from()
        self._thread = threading.current_thread().name
        self._log: KernelLog | None = None

    def is_for(self, log: KernelLog | None) -> None:
        """A kernel is part of it. The service named it, or a recipe, long after the source was asked for."""
        if log is not None:
            log.since(self._asked, self._thread, self._where)
            self._log = self._log or log

    @contextmanager
    def waits(self) -> Iterator[None]:
        """This thread waits for the source in the context; told as a wait for the first of its kernels."""
        begun = time.monotonic()
        try:
            yield
        finally:
            if self._log is not None:
                self._log.waited(begun)
