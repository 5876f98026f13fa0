"""What a run's log is told of one request, by whoever has to do with it. None of it waits or raises."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from headstart.artifacts import run_records as records

if TYPE_CHECKING:
    import concurrent.futures

    from headstart import wire

_waits: list[float] = []  # seconds of each wait of this process; appending takes no lock


class Writer(Protocol):
    """The log, in the thread that writes it; `headstart.client.run_log.RunLog` says what each does."""

    def ticks(self, at: float) -> int: ...

    def text(self, text: str) -> int: ...

    def wait(self, kind: Any, number: int, at: float, thread: str) -> list[records.Record]: ...

    def outcome(
        self, number: int, at: float, answer: concurrent.futures.Future[wire.Result], worker: int
    ) -> list[records.Record]: ...


Note = Callable[[Any], list[records.Record]]  # given the `Writer`


class KernelLog:
    """What the log is told of one request.

    Args:
        put: takes a note, and whether it is to be written soon.
        number: of the request, in its process.
    """

    __slots__ = ("_put", "number")

    def __init__(self, put: Callable[..., None], number: int) -> None:
        self._put = put
        self.number = number

    def began(self, at: float, worker: int) -> None:
        """A worker has begun; `at`: `time.monotonic()` seconds."""
        self._note(lambda log: [records.Began(self.number, log.ticks(at), worker)])

    def answered(self, answer: concurrent.futures.Future[wire.Result], worker: Callable[[], int]) -> None:
        """There is an answer."""
        at = time.monotonic()
        self._note(lambda log: log.outcome(self.number, at, answer, worker()))

    def loaded(self, seconds: float) -> None:
        """It was opened, and says that its compile took so long."""
        self._put(lambda log: [records.Loaded(self.number, round(seconds / records.TICK))], starts=False)

    def since(self, at: float, thread: str, where: str) -> None:
        """It is part of something that was asked for earlier; see `run_records.Since`."""
        self._note(lambda log: [records.Since(self.number, log.ticks(at), log.text(thread), log.text(where))])

    @contextmanager
    def blocked(self) -> Iterator[None]:
        """This thread waits for it in the context."""
        begun, thread = time.monotonic(), threading.current_thread().name
        self._note(lambda log: log.wait(records.Blocked, self.number, begun, thread))
        try:
            yield
        finally:
            self._unblocked(begun, thread)

    def waited(self, begun: float) -> None:
        """This thread has waited for it since then."""
        thread = threading.current_thread().name
        self._note(lambda log: log.wait(records.Blocked, self.number, begun, thread))
        self._unblocked(begun, thread)

    def _unblocked(self, begun: float, thread: str) -> None:
        ended = time.monotonic()
        _waits.append(ended - begun)
        self._note(lambda log: log.wait(records.Unblocked, self.number, ended, thread))

    def _note(self, note: Callable[[Writer], list[records.Record]]) -> None:
        self._put(note)


def waited_s() -> float:
    """Seconds for which threads of this process were blocked on kernels, added up, as far as any log was kept."""
    return sum(_waits)


os.register_at_fork(after_in_child=_waits.clear)
