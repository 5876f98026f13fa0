"""Writes a run's log: what was asked for, when, by whom, who had it, who was blocked on it.

    any thread: a note ──▶ in memory ──▶ thread headstart-run-log: GATHERED after the first, one frame ──▶ appended
    (microseconds)                       close(): whatever is left

`headstart.artifacts.run_records` says what a file holds, `headstart.artifacts.runs` reads it. There is one log for each
cache folder that this process uses, with all of its clients in it, and one file, made with the first note: a process
that asks for no kernel leaves none.

Guarantees:

A program never notices: a note neither waits nor does I/O, and whatever goes wrong here (no space, no permission, a bug
of ours) is a debug line and a log that lacks something. No message about it reaches the program.

A process that is killed loses what it noted in the last `GATHERED` seconds; one that has everything from a bundle, for
which no thread is started, what it noted at all, up to a thousand kernels. A fork begins a file of its own. While
nothing is noted no thread wakes up.

What is kept is bounded: `HEADSTART_KEEP_RUNS` runs, and `MAX_BYTES` of one process.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from headstart.artifacts import run_records as records
from headstart.client.about import asked_from
from headstart.client.kernel_log import KernelLog, Note
from headstart.client.run_file import RunFile
from headstart.system.forks import renew_in_forks

if TYPE_CHECKING:
    import concurrent.futures

    from headstart import wire
    from headstart.model.request import CompileRequest
    from headstart.system.settings import Settings

GATHERED = 0.1  # seconds for which notes are gathered before they are written
_MANY = 1000  # notes for which alone a thread is started
_MAX_NOTES = 100_000  # that are kept in memory while they cannot be written
_CLOSE_PATIENCE = 2.0  # seconds for what is left, on a file system that hangs
_MAX_TEXT = 300  # characters of an error or a reason
_log = logging.getLogger("headstart")


class AskedFor(Protocol):
    """A request as the log is told of it; `headstart.client.timeline.TimelineEntry` says what is in it."""

    @property
    def name(self) -> str: ...

    @property
    def kicked_off(self) -> float: ...

    @property
    def kickoff(self) -> Any: ...

    @property
    def request(self) -> CompileRequest | None: ...


class RunLog:
    """The log of one process for one cache folder. Use `acquire`.

    Args:
        cache_dir: where it goes.
        keep: how many runs are kept there; 0: nothing is written.
        workers: compiles that may run at once.

    Attributes:
        joined: requests that an earlier one's future answered.
    """

    def __init__(self, cache_dir: Path, keep: int, workers: int) -> None:
        self._cache_dir = cache_dir
        self._keep = keep
        self._workers = workers
        self._numbers = count()
        self.zero = time.monotonic()
        self._parent = 0
        self._start_over()
        renew_in_forks(self)

    def _start_over(self) -> None:
        self._off = self._keep == 0
        self._notes: deque[Note] = deque()
        self._wakeup = threading.Event()
        self._closing = threading.Event()
        self._starting = threading.Lock()
        self._writing = threading.Lock()
        self._thread: threading.Thread | None = None
        self._file = RunFile(self._cache_dir, self._keep, self._workers, self.zero, self._parent)
        self._lost = 0
        self._texts: dict[str, int] = {}
        self._new: list[records.Record] = []  # texts that the next frame has to begin with
        self._tritons: set[str] = set()
        self._seen_policies: set[int] = set()
        self.joined = 0

    # Notes. None of these waits or raises.

    def asked(self, entry: AskedFor) -> KernelLog | None:
        """A kernel was asked for, or came out of a bundle."""
        if self._off:
            return None
        number, where, thread = next(self._numbers), asked_from(), threading.current_thread().name
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
        self.put(lambda log: [records.FellBack(log.ticks(at), name[:_MAX_TEXT], why[:_MAX_TEXT])])

    def swept(self, name: str, timed: Iterable[tuple[KernelLog, float]], winner: KernelLog | None) -> None:
        """An autotuner has chosen; milliseconds of each configuration."""
        at, known = time.monotonic(), list(timed)
        numbers, times = [kernel.number for kernel, _ in known], [ms for _, ms in known]
        chosen = -1 if winner is None else winner.number
        self.put(lambda log: [records.Swept(log.ticks(at), name[:_MAX_TEXT], numbers, times, chosen)])

    def put(self, note: Note, *, starts: bool = True) -> None:
        """Write what `note` makes, soon; without `starts`, once there is a thread for it, or many of them."""
        if self._off:
            return
        if len(self._notes) >= _MAX_NOTES:
            self._lost += 1
            return
        self._notes.append(note)
        if not self._wakeup.is_set():
            self._wakeup.set()
        if self._thread is None and (starts or len(self._notes) >= _MANY):
            self._start()

    def close(self) -> None:
        """Write what is left, and that this is the end."""
        if self._off:
            return
        at = time.monotonic()
        if self._file.is_there or self._notes:
            self._notes.append(lambda log: [records.Ended(log.ticks(at), log.joined)])
            self._write(_CLOSE_PATIENCE)
        self._off = True
        self._closing.set()
        self._wakeup.set()
        self._file.close()

    def after_fork(self) -> None:
        """See `renew_in_forks`. The file is the parent's."""
        self._file.close()
        self._parent, off = os.getppid(), self._off
        self._start_over()
        self._off = off

    # What notes become, in the thread that writes

    def ticks(self, at: float) -> int:
        """A time as it is written; below 0: somebody else had asked before this process began."""
        return round((at - self.zero) / records.TICK)

    def text(self, text: str) -> int:
        """The number of a text that comes often."""
        number = self._texts.get(text)
        if number is None:
            number = self._texts[text] = len(self._texts)
            self._new.append(records.Text(number, text))
        return number

    def asked_records(self, number: int, entry: AskedFor, where: str, thread: str) -> list[records.Record]:
        """See `run_records.Asked`; from a bundle, it is there as well."""
        from headstart.model.parameters import configuration_of  # a start that asks for nothing does without

        kickoff = entry.kickoff
        request = entry.request if kickoff is None else vars(kickoff).get("request")  # one to be made stays so
        digest = "" if request is None else request.digest()
        asked = records.Asked(
            number,
            self.ticks(entry.kicked_off),
            self.text(entry.name),
            self.text(thread),
            self.text(where),
            self.text("" if request is None else request.target),
            bytes.fromhex(digest)[: records.SHORT],
            "" if request is None else configuration_of(request),
            kickoff is not None and kickoff.background,
        )
        if kickoff is not None:
            return [*self._tool(kickoff.policy), asked]
        return [asked, records.Done(number, asked.at, records.ORIGINS.index("bundle"), b"")]

    def outcome(
        self, number: int, at: float, answer: concurrent.futures.Future[wire.Result], worker: int
    ) -> list[records.Record]:
        """See `run_records.Done` and `Failed`."""
        if answer.cancelled():
            return [records.Done(number, self.ticks(at), records.ORIGINS.index("cancelled"), b"")]
        error = answer.exception()
        if error is not None:
            summary = str(getattr(error, "summary", "") or error).strip().partition("\n")[0][:_MAX_TEXT]
            stage = str(getattr(error, "stage", ""))
            return [records.Failed(number, self.ticks(at), self.text(type(error).__name__), self.text(stage), summary)]
        result = answer.result()
        key = bytes.fromhex(result.key)[: records.SHORT] if result.key else b""
        elsewhere = "farm" if result.farm else "remote" if result.remote else "store"
        origin = records.ORIGINS.index(elsewhere if result.cached else "worker")
        done = records.Done(number, self.ticks(at), origin, key)
        if not result.cached and result.finished:
            done.started, done.finished = self.ticks(result.started), self.ticks(result.finished)
            done.worker, done.cpu = worker, round(result.cpu_s / records.TICK)
            for name, microseconds in [] if result.log is None else result.log.times:
                done.stages += [self.text(name), round(microseconds * 1e-6 / records.TICK)]
        return [done]

    def wait(self, kind: Any, number: int, at: float, thread: str) -> list[records.Record]:
        """See `run_records.Blocked` and `Unblocked`."""
        return [kind(number, self.ticks(at), self.text(thread))]

    def _tool(self, policy: Any) -> list[records.Record]:
        if id(policy) in self._seen_policies:
            return []
        self._seen_policies.add(id(policy))
        version = policy.toolchain().triton_version
        if version in self._tritons:
            return []
        self._tritons.add(version)
        return [records.Tool(version)]

    # Writing

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                thread = threading.Thread(target=self._write_later, name="headstart-run-log", daemon=True)
                try:
                    thread.start()
                    self._thread = thread
                except RuntimeError:
                    pass  # no more threads, or the end of the process: `close` writes, or a later note tries again

    def _write_later(self) -> None:
        while True:
            self._wakeup.wait()
            self._closing.wait(GATHERED)
            if self._closing.is_set():
                return
            self._wakeup.clear()
            self._write(-1)

    def _write(self, patience: float) -> None:
        """Everything that was noted so far; gives up on a file system that hangs, after so many seconds."""
        if not self._writing.acquire(timeout=patience):
            return
        try:
            self._write_notes()
        except OSError as error:
            self._off = not self._file.is_there  # it cannot even be made
            _log.debug("the run's log lacks something: %s", error)
        except Exception:  # noqa: BLE001 - nothing that is said of a program may be its problem
            self._off = True
            _log.debug("the run's log ends here; this is a bug", exc_info=True)
        finally:
            self._writing.release()

    def _write_notes(self) -> None:
        made: list[records.Record] = []
        taken = 0
        while self._notes:
            note = self._notes.popleft()
            taken += 1
            try:
                found = note(self)
            except Exception:  # noqa: BLE001 - what one kernel was must not cost what others were
                self._lost += 1
                _log.debug("something is not in the run's log", exc_info=True)
                continue
            made += self._new
            self._new = []
            made += found
        if not made:
            return
        if self._lost:
            made.append(records.Lost(self._lost))
        try:
            self._file.append(made)
        except OSError:
            self._lost += taken
            self._texts, self._new = {}, []
            raise
        self._off = self._file.is_full
        self._lost = 0


# The logs of this process

_lock = threading.Lock()
_logs: dict[Path, RunLog] = {}
_holders: dict[Path, int] = {}


def acquire(settings: Settings, *, keeps: bool) -> RunLog:
    """The log that goes with these settings, to be given back by `release`; `keeps`: its cache folder may be used."""
    if not keeps or settings.keep_runs == 0:
        return RunLog(settings.cache_dir, 0, settings.workers)
    with _lock:
        place = settings.cache_dir
        if place not in _logs:
            _logs[place] = RunLog(place, settings.keep_runs, settings.workers)
        _holders[place] = _holders.get(place, 0) + 1
        return _logs[place]


def release(settings: Settings, log: RunLog) -> None:
    """A client has ended; with the last one its log is closed."""
    place = settings.cache_dir
    with _lock:
        if _logs.get(place) is not log:
            return
        _holders[place] -= 1
        if _holders[place]:
            return
        del _logs[place], _holders[place]
    log.close()


def fell_back(name: str, why: str) -> None:
    """Something is left to the program's own process, says an adapter."""
    for log in list(_logs.values()):
        log.fell_back(name, why)


@atexit.register
def _close_all() -> None:
    """Whoever has a client and does not close it."""
    for log in list(_logs.values()):
        log.close()


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork_in_child)
