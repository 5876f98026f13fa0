"""Writes a run's log: what was asked for, when, by whom, who had it, who was blocked on it.

    any thread: a note ──▶ in memory ──▶ thread headstart-run-log: GATHERED after the first, one frame ──▶ appended
    (microseconds)                       close(): whatever is left

`headstart.artifacts.run_records` says what a file holds, `headstart.artifacts.runs` reads it. There is one log for each
cache folder that this process uses, with all of its clients in it, and one file, made with the first note: a process
that asks for no kernel leaves none. With the last client the file is closed, and with the next one it is opened again.

Guarantees:

A program never notices: a note does no I/O, takes no lock that a signal handler could wait for, and waits for nothing
(the first one starts the thread, which is what takes longest). Whatever goes wrong here (no space, no
permission, a bug of ours) is a debug line and a log that lacks something. No message about it reaches the program. Nor
does its end: for what is left it waits `CLOSE_PATIENCE` at most.

A process that is killed loses what it noted in the last `GATHERED` seconds; one that has everything from a bundle, for
which no thread is started, what it noted at all, up to a thousand kernels. A fork begins a file of its own. While
nothing is noted no thread wakes up.

What is kept is bounded: `HEADSTART_KEEP_RUNS` runs, and `MAX_BYTES` of one process.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import threading
import time
from _queue import Empty, SimpleQueue  # not by `queue`: a module of the program may be called so
from collections import deque
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.artifacts import run_records as records
from headstart.client.about import asked_from, thread_name
from headstart.client.kernel_log import KernelLog, Note
from headstart.client.run_file import RunFile
from headstart.client.run_notes import AskedFor, RecordMaker, shown
from headstart.system.forks import renew_in_forks

if TYPE_CHECKING:
    from headstart.system.settings import Settings

GATHERED = 0.1  # seconds for which notes are gathered before they are written
_MANY = 1000  # notes for which alone a thread is started
_MAX_NOTES = 100_000  # that are kept in memory while they cannot be written
CLOSE_PATIENCE = 0.2  # seconds that a program's end waits for what is left
_log = logging.getLogger("headstart")


class RunLog:
    """The log of one process for one cache folder. Use `acquire`.

    Args:
        cache_dir: where it goes.
        keep: how many runs are kept there; 0: nothing is written.
        workers: compiles that may run at once.

    Attributes:
        joined: requests that an earlier one's future answered.
        clients: one for each that has it.
    """

    def __init__(self, cache_dir: Path, keep: int, workers: int) -> None:
        self._cache_dir = cache_dir
        self._keep = keep
        self._workers = workers
        self._numbers = count()
        self._zero = time.monotonic()
        self._parent = 0
        self._closed = keep == 0
        self._failed = False
        self.clients: list[None] = []
        self._start_over()
        renew_in_forks(self)

    def _start_over(self) -> None:
        self._off = self._closed or self._failed  # what is noted is dropped
        self._notes: deque[Note] = deque()
        self._wakeups: SimpleQueue[None] = SimpleQueue()  # `put` may be interrupted by a handler that calls it
        self._is_awake = False
        self._closing = False
        self._until = float("inf")  # when notes are no longer looked at
        self._finished = False
        self._starting = threading.Lock()
        self._writing = threading.Lock()
        self._thread: threading.Thread | None = None
        self._file = RunFile(self._cache_dir, self._keep, self._workers, self._zero, self._parent)
        self._maker = RecordMaker(self._zero)
        self._lost = 0
        self.joined = 0

    # Notes. None of these waits or raises.

    def asked(self, entry: AskedFor) -> KernelLog | None:
        """A kernel was asked for, or came out of a bundle."""
        if self._off:
            self._lost += 1
            return None
        try:
            return self._asked(entry)
        except Exception:  # noqa: BLE001 - the kernel is what counts
            _log.debug("a kernel is not in the run's log", exc_info=True)
            return None

    def _asked(self, entry: AskedFor) -> KernelLog:
        number, where, thread = next(self._numbers), asked_from(), thread_name()
        kernel = KernelLog(self.put, number)
        kickoff = entry.kickoff
        self.put(lambda log: log.asked_records(number, entry, where, thread), starts=kickoff is not None)
        if kickoff is not None:
            kickoff.log = kernel
            if kickoff.started is not None:  # an idle worker was faster
                kernel.began(kickoff.started, kickoff.worker)
            kickoff.answer.add_done_callback(lambda answer: kernel.answered(answer, lambda: kickoff.worker))
        return kernel

    def fell_back(self, name: str, why: str) -> None:
        """Something is left to the program's own process."""
        at = time.monotonic()
        self.put(lambda log: [records.FellBack(log.ticks(at), shown(name), shown(why))])

    def swept(self, name: str, timed: Iterable[tuple[KernelLog, float]], winner: KernelLog | None) -> None:
        """An autotuner has chosen; milliseconds of each configuration."""
        at, known = time.monotonic(), list(timed)
        numbers, times = [kernel.number for kernel, _ in known], [ms for _, ms in known]
        chosen = -1 if winner is None else winner.number
        self.put(lambda log: [records.Swept(log.ticks(at), shown(name), numbers, times, chosen)])

    def put(self, note: Note, *, starts: bool = True) -> None:
        """Write what `note` makes, soon; without `starts`, once there is a thread for it, or many of them."""
        if self._off or len(self._notes) >= _MAX_NOTES:
            self._lost += 1
            return
        self._notes.append(note)
        if not self._is_awake:
            self._is_awake = True
            self._wakeups.put(None)
        if self._thread is None and (starts or len(self._notes) >= _MANY):
            self._start()

    def close(self, patience: float | None = None) -> None:
        """Write what is left, and that this is the end; wait for that, for `CLOSE_PATIENCE` seconds or fewer."""
        if self._closed:
            return
        self._closed = self._off = True
        patience = CLOSE_PATIENCE if patience is None else patience
        self._until = time.monotonic() + patience / 2
        self._closing = True
        if self._thread is None and (self._notes or self._file.is_there):
            self._start()
        thread = self._thread
        if thread is not None:
            self._wakeups.put(None)
            thread.join(patience)
            if thread.is_alive():  # it hangs in a write, and the file is its own
                self._failed = True
                return
        self._finish(patience)  # unless the thread has

    def resume(self) -> bool:
        """Take notes again after `close`; False: this cannot be. Does nothing while it takes them."""
        if not self._closed:
            return True
        if self._failed or not self._file.reopen():
            return False
        self._thread, self._closing, self._finished, self._is_awake = None, False, False, False
        self._wakeups, self._until = SimpleQueue(), float("inf")
        self._closed, self._off = False, self._file.is_full
        return True

    def after_fork(self) -> None:
        """See `renew_in_forks`. The file is the parent's."""
        self._file.close()
        self._parent = os.getppid()
        self._start_over()
        util: Any = sys.modules.get("multiprocessing.util")
        if util is not None:  # its forks end without atexit
            util.register_after_fork(self, lambda log: util.Finalize(None, log.close, exitpriority=-1))

    # Writing

    def start(self) -> None:
        """Have a thread for what is noted already, if anything is."""
        if self._thread is None and self._notes:
            self._start()

    def _start(self) -> None:
        # Who holds it starts the thread: another thread, or this one, which was interrupted by a signal meanwhile.
        if not self._starting.acquire(blocking=False):
            return
        try:
            if self._thread is None:
                thread = threading.Thread(target=self._write_later, name="headstart-run-log", daemon=True)
                thread.start()
                self._thread = thread
        except Exception:  # noqa: BLE001 - no more threads, or the end: `close` writes, or a later note tries again
            _log.debug("no thread for the run's log", exc_info=True)
        finally:
            self._starting.release()

    def _write_later(self) -> None:
        while not self._closing:
            self._wakeups.get()
            if not self._closing:
                with contextlib.suppress(Empty):
                    self._wakeups.get(timeout=GATHERED)  # which `close` cuts short
            self._is_awake = False
            if not self._closing:
                self._write(-1)
        self._finish(-1)

    def _finish(self, patience: float) -> None:
        self._write(patience, is_last=True)

    def _write(self, patience: float, *, is_last: bool = False) -> None:
        """Everything that was noted so far; gives up on a file system that hangs, after so many seconds."""
        if not self._writing.acquire(timeout=patience):
            return
        try:
            if not (self._failed or self._finished):
                self._finished = is_last
                self._write_notes(is_last=is_last)
        except OSError as error:
            self._failed = not self._file.is_there  # it cannot even be made
            _log.debug("the run's log lacks something: %s", error)
        except Exception:  # noqa: BLE001 - nothing that is said of a program may be its problem
            self._failed = True
            _log.debug("the run's log ends here; this is a bug", exc_info=True)
        finally:
            self._off = self._off or self._failed
            if is_last:
                self._file.close()
            self._writing.release()

    def _write_notes(self, *, is_last: bool) -> None:
        made, taken = self._made()
        end: list[records.Record] = []
        if is_last and (made or self._file.is_there):
            end.append(records.Ended(self._maker.ticks(time.monotonic()), self.joined))
        if not self._file.is_full and (made or end):
            try:
                unsaid = self._file.append([*made, *self._lost_records(), *end], is_last=is_last)
            except OSError:
                self._lost += taken
                self._maker = RecordMaker(self._zero)
                raise
            if not self._file.is_full:
                self._lost = unsaid
                return
        self._off = self._off or self._file.is_full
        self._lost += taken
        if end:
            self._file.append([*self._lost_records(), *end], is_last=True)

    def _lost_records(self) -> list[records.Record]:
        return [records.Lost(self._lost)] if self._lost else []

    def _made(self) -> tuple[list[records.Record], int]:
        """What notes have become, and how many those were."""
        made: list[records.Record] = []
        taken = 0
        self._maker.begin_frame()
        while self._notes:
            note = self._notes.popleft()
            if time.monotonic() > self._until:
                self._lost += 1 + len(self._notes)
                self._notes.clear()
                break
            taken += 1
            try:
                found = note(self._maker)
            except Exception:  # noqa: BLE001 - what one kernel was must not cost what others were
                self._lost += 1
                _log.debug("something is not in the run's log", exc_info=True)
                continue
            made += self._maker.new_texts()
            made += found
        return made, taken


# The logs of this process

_lock = threading.RLock()  # which a signal handler may take that interrupts who has it
_logs: dict[Path, RunLog] = {}


def acquire(settings: Settings, *, keeps: bool) -> RunLog:
    """The log that goes with these settings, to be given back by `release`; `keeps`: its cache folder may be used."""
    if not keeps or settings.keep_runs == 0:
        return RunLog(settings.cache_dir, 0, settings.workers)
    with _lock:
        place = settings.cache_dir
        log = _logs.get(place)
        if log is None or not log.resume():
            log = _logs[place] = RunLog(place, settings.keep_runs, settings.workers)
        log.clients.append(None)
        return log


def release(log: RunLog) -> None:
    """A client has ended; with the last one its log is closed."""
    with _lock:
        if log.clients:
            log.clients.pop()
        if not log.clients:
            log.close()


def fell_back(name: str, why: str) -> None:
    """Something is left to the program's own process, says an adapter."""
    for log in list(_logs.values()):
        log.fell_back(name, why)


def _start_all() -> None:
    for log in list(_logs.values()):
        log.start()


@atexit.register
def _close_all() -> None:
    """Whoever has a client and does not close it."""
    until = time.monotonic() + CLOSE_PATIENCE
    for log in list(_logs.values()):
        log.close(max(0.0, until - time.monotonic()))


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_after_fork_in_child)
with contextlib.suppress(AttributeError, RuntimeError):
    # Comes before atexit, where no thread can be started from Python 3.12 on: the end would have to write by itself.
    threading._register_atexit(_start_all)  # type: ignore[attr-defined] # as concurrent.futures does
