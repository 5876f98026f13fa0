"""What a run's log is told of one request, by whoever has to do with it. None of it waits or raises."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from headstart.artifacts import run_records as records
from headstart.client.about import thread_name

if TYPE_CHECKING:
    import concurrent.futures

    from headstart import wire

NOTED_WAIT = 1e-3  # seconds: who asks again and again whether a kernel is there waits for none


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

    __slots__ = ("_put", "_waiting", "number")

    def __init__(self, put: Callable[..., None], number: int) -> None:
        self._put = put
        self._waiting: dict[str, int] = {}  # how often by thread: coroutines of one may wait for the same kernel
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
    def blocked(self, begun: float | None = None) -> Iterator[None]:
        """This thread waits for it in the context, and has since `begun`."""
        begun = time.monotonic() if begun is None else begun
        thread = thread_name()
        own = _waits_here()
        own.begin(begun)
        self._waiting[thread] = among = self._waiting.get(thread, 0) + 1
        if among == 1:
            self._note(lambda log: log.wait(records.Blocked, self.number, begun, thread))
        try:
            yield
        finally:
            own.end()
            self._waiting[thread] = among = self._waiting.get(thread, 1) - 1
            if among == 0:
                self._unblocked(thread)

    def waited(self, begun: float) -> None:
        """This thread has waited for it since then, if that is worth a word."""
        if time.monotonic() - begun < NOTED_WAIT:
            return
        thread = thread_name()
        own = _waits_here()
        own.begin(begun)
        own.end()
        self._note(lambda log: log.wait(records.Blocked, self.number, begun, thread))
        self._unblocked(thread)

    def _unblocked(self, thread: str) -> None:
        ended = time.monotonic()
        self._note(lambda log: log.wait(records.Unblocked, self.number, ended, thread))

    def _note(self, note: Callable[[Writer], list[records.Record]]) -> None:
        self._put(note)


class _Waits:
    """Of one thread: for how long it has waited. What it waits for at once counts once."""

    __slots__ = ("_at_once", "_begun", "_until", "seconds")

    def __init__(self) -> None:
        self.seconds = 0.0
        self._at_once = 0
        self._begun = 0.0
        self._until = 0.0  # what was before has been counted

    def begin(self, begun: float) -> None:
        if self._at_once == 0:
            self._begun = max(begun, self._until)
        self._at_once += 1

    def end(self) -> None:
        self._at_once -= 1
        if self._at_once == 0:
            self._until = time.monotonic()
            self.seconds += self._until - self._begun


_waits: dict[int, _Waits] = {}  # by thread; each adds to its own, so that no lock is needed


def _waits_here() -> _Waits:
    return _waits.setdefault(threading.get_ident(), _Waits())


def waited_s() -> float:
    """Seconds for which threads of this process were blocked on kernels, added up, as far as any log was kept."""
    return sum(each.seconds for each in list(_waits.values()))


os.register_at_fork(after_in_child=_waits.clear)
