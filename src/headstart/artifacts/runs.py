"""The logs of runs: which there are, and what became of each kernel; written by `headstart.client.run_log`.

    <cache folder>/runs/<run>/<pid>-<random>.run      one file for each process that asked for a kernel

Nothing is executed, and names in a log are whatever a program had: whoever shows them says them as text.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import os
import re
import stat
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import msgspec

from headstart.artifacts import run_records as records
from headstart.artifacts.run_records import FOLDER, ORIGINS, SUFFIX, TICK, Damage
from headstart.errors import UsageError
from headstart.system.private import Swept

MAX_BYTES = 33 << 20  # of one file that is read; what writes stops before, see `headstart.client.run_file`
_MAX_RUN_BYTES = 256 << 20  # of all files of one run
_MAX_RECORDS = 2_000_000  # of one file: a byte there may be 30 in memory
_END_OF_TIME = 221845392000.0  # the year 9000, seconds since 1970: far enough from what no time zone can say
_NAME = re.compile(r"[0-9a-f]{8}")
_FILE = re.compile(r"[0-9]+-[0-9a-f]{8}\.run")
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Kernel(msgspec.Struct):
    """What became of one request of one process. Times are seconds since `Process.zero`.

    Attributes:
        number: in its process.
        asked: when; `thread`, `where` and `background`: see `run_records.Asked`.
        began: when a worker did, or None; `worker`: which, or -1.
        answered: when the process heard of the outcome, or None.
        origin: one of `ORIGINS`, `"failed"`, or `"pending"`.
        key: the beginning of the entry's key, hexadecimal; empty: not known. `digest`: of the request's.
        compile_s, cpu_s: of the compile, 0 if there was none.
        saved_s: what the compile had taken of which this was spared; 0: not known.
        stages: names and seconds.
        error, kind, stage: of a failure.
        waits: when threads began to be blocked on it, how long (one that never ended: as long as is known), and which.
    """

    number: int
    name: str
    asked: float
    thread: str = ""
    where: str = ""
    target: str = ""
    digest: str = ""
    label: str = ""
    background: bool = False
    began: float | None = None
    worker: int = -1
    answered: float | None = None
    origin: str = "pending"
    key: str = ""
    compile_s: float = 0.0
    cpu_s: float = 0.0
    saved_s: float = 0.0
    stages: list[tuple[str, float]] = []
    error: str = ""
    kind: str = ""
    stage: str = ""
    waits: list[tuple[float, float, str]] = []


class Sweep(msgspec.Struct):
    """What an autotuner benchmarked: milliseconds by the kernel's number, infinite where it could not run."""

    name: str
    at: float
    times: dict[int, float]
    winner: int


class Process(msgspec.Struct):
    """One process of a run.

    Attributes:
        fell_back: names and reasons, in order.
        ended: when it ended by its own will, or None.
        is_running: somebody writes it just now.
        last: the latest time that is known of it: in its log, or now if a thread is blocked now.
        damage: why not all of it could be read; empty: all was.
        lost: records that could not be written.
        size: bytes that were read.
    """

    head: records.Head
    kernels: dict[int, Kernel] = {}
    sweeps: list[Sweep] = []
    fell_back: list[tuple[str, str]] = []
    tritons: list[str] = []
    ended: float | None = None
    joined: int = 0
    is_running: bool = False
    last: float = 0.0
    damage: str = ""
    lost: int = 0
    size: int = 0

    @property
    def state(self) -> str:
        """`"ended"`, `"running"` or `"killed"`."""
        return "running" if self.is_running else "killed" if self.ended is None else "ended"


class Run(msgspec.Struct):
    """All processes of one run, in the order in which they began."""

    name: str
    processes: list[Process]

    @property
    def head(self) -> records.Head:
        """Of its first process."""
        return self.processes[0].head

    @property
    def kernels(self) -> list[Kernel]:
        """Of all processes."""
        return [kernel for process in self.processes for kernel in process.kernels.values()]

    @property
    def state(self) -> str:
        """As of a process: running if one is, killed if one was that is no fork of another one.

        A fork may end by `os._exit`, with which nothing of Python runs.
        """
        if any(process.is_running for process in self.processes):
            return "running"
        known = {(process.head.host, process.head.pid) for process in self.processes}
        first = [each for each in self.processes if (each.head.host, each.head.parent) not in known]
        return "ended" if all(process.state == "ended" for process in first or self.processes) else "killed"

    @property
    def triton(self) -> str:
        """Versions that compiled."""
        return ", ".join(dict.fromkeys(each for process in self.processes for each in process.tritons))


def folder_of(cache_dir: Path) -> Path:
    """Where the runs are."""
    return cache_dir / FOLDER


def names(cache_dir: Path) -> list[str]:
    """The runs that there are, the latest first."""
    found = []
    try:
        entries = list(os.scandir(folder_of(cache_dir)))
    except OSError:
        return []
    for entry in entries:
        with contextlib.suppress(OSError):
            if _NAME.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                files = [each.stat().st_mtime for each in os.scandir(entry.path) if _FILE.fullmatch(each.name)]
                found.append((max(files, default=entry.stat().st_mtime), entry.name))  # one may just be made there
    return [name for _, name in sorted(found, reverse=True)]


def open_run(cache_dir: Path, name: str) -> Run | None:
    """One run; None if nothing of it can be read."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no run; headstart report --list names them")
    processes: list[Process] = []
    left = _MAX_RUN_BYTES
    for path in _files(folder_of(cache_dir) / name):
        if (process := _read(path, left)) is not None:
            processes.append(process)
            left -= process.size
    processes.sort(key=lambda each: (round(each.head.began, 2), bool(each.head.parent), each.head.pid))  # forks later
    return Run(name, processes) if processes else None


def runs(cache_dir: Path, most: int | None = None) -> Iterator[Run]:
    """Those that can be read, the latest first; at most so many."""
    return islice(filter(None, (open_run(cache_dir, name) for name in names(cache_dir))), most)


def forget(cache_dir: Path, keep: int) -> int:
    """Remove all runs but the latest `keep`, and those that are being written. Returns how many are gone."""
    removed = 0
    for name in names(cache_dir)[keep:]:
        folder = folder_of(cache_dir) / name
        with Swept(folder) as swept:
            files = [each for each, _ in swept.files()]
            if not all(_FILE.fullmatch(each) and not _is_written(folder / each) for each in files):
                continue  # or somebody keeps other things there
            with contextlib.suppress(OSError):
                for each in files:
                    swept.remove(each)
                folder.rmdir()
                removed += 1
    return removed


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(folder / name for name in os.listdir(folder) if _FILE.fullmatch(name))
    except OSError:
        return []


def _open(path: Path) -> int | None:
    """A file of this user's, or None. A pipe of that name would have us wait for a writer."""
    try:
        fd = os.open(path, _READ)
    except OSError:
        return None
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and status.st_size <= MAX_BYTES:
        return fd
    os.close(fd)
    return None


def _is_locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EWOULDBLOCK, errno.EAGAIN)  # others: the file system has no locks
    return False


def _is_written(path: Path) -> bool:
    fd = _open(path)
    if fd is None:
        return False
    with os.fdopen(fd):
        return _is_locked(fd)


def _read(path: Path, most: int) -> Process | None:
    """The log of one process; of one with more bytes than `most`, what they say."""
    fd = _open(path)
    if fd is None:
        return None
    with os.fdopen(fd, "rb") as file:
        is_running = _is_locked(fd)
        try:
            data = file.read(most)
            is_whole = not file.read(1)
        except OSError:
            return None
        until = time.time() if is_running else os.fstat(fd).st_mtime
    process = read_log(data, is_running=is_running, until=until)
    if process is not None:
        process.size = len(data)
        process.damage = process.damage or ("" if is_whole else "the logs of its run are too large to be read")
    return process


def read_log(data: bytes, *, is_running: bool = False, until: float = 0.0) -> Process | None:
    """What a file says; None if it does not say whose it is.

    Args:
        until: when its process was there still, seconds since 1970.
    """
    reader: _Reader | None = None
    damage = ""
    try:
        for number, record in enumerate(records.records_of(data)):
            if number >= _MAX_RECORDS:
                raise Damage(f"it has more than {_MAX_RECORDS:,} records")
            if reader is None:
                if not isinstance(record, records.Head) or not all(
                    0 <= t < _END_OF_TIME for t in (record.began, record.zero)
                ):
                    return None
                reader = _Reader(Process(record, is_running=is_running))
            else:
                reader.take(record)
    except Damage as error:
        damage = str(error)
    if reader is None:
        return None
    reader.process.damage = damage
    reader.end_waits(until)
    return reader.process


class _Reader:
    """Puts together what the records of one process say."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self._texts: dict[int, str] = {}
        self._blocked: dict[tuple[int, int], int] = {}  # the place in `Kernel.waits`, by kernel and thread

    def take(self, record: records.Record) -> None:
        """One more. What is about a kernel of which nothing else is known (asked for before a fork) is left out."""
        process = self.process
        if not isinstance(record, (records.Lost, records.Ended)):
            process.ended = None  # it had no client for a while
        match record:
            case records.Text():
                self._texts[record.number] = record.text
            case records.Asked():
                process.kernels[record.kernel] = Kernel(
                    record.kernel,
                    self._text(record.name),
                    self._seconds(record.at),
                    thread=self._text(record.thread),
                    where=self._text(record.where),
                    target=self._text(record.target),
                    digest=record.digest.hex(),
                    label=record.label,
                    background=record.background,
                )
            case records.FellBack():
                self._seconds(record.at)
                process.fell_back.append((record.name, record.why))
            case records.Swept():
                measured = [each if math.isfinite(each) else math.inf for each in record.times]
                times = dict(zip(record.kernels, measured, strict=False))
                process.sweeps.append(Sweep(record.name, self._seconds(record.at), times, record.winner))
            case records.Tool():
                process.tritons.append(record.triton)
            case records.Ended():
                process.ended = self._seconds(record.at)
                process.joined = record.joined
            case records.Lost():
                process.lost += record.count
            case records.Head():
                pass
            case _:
                if (kernel := process.kernels.get(record.kernel)) is not None:
                    self._of_kernel(kernel, record)

    def _of_kernel(self, kernel: Kernel, record: records.Record) -> None:
        match record:
            case records.Began():
                kernel.began, kernel.worker = self._seconds(record.at), record.worker
            case records.Done():
                kernel.answered = self._seconds(record.at)
                kernel.origin = ORIGINS[record.origin] if 0 <= record.origin < len(ORIGINS) else "store"
                kernel.key = record.key.hex()
                if record.started is not None and record.finished is not None:
                    kernel.began = self._seconds(record.started)
                    kernel.compile_s = max(0, record.finished - record.started) * TICK
                    kernel.worker = record.worker if record.worker >= 0 else kernel.worker
                    kernel.cpu_s = record.cpu * TICK
                    stages = zip(record.stages[::2], record.stages[1::2], strict=False)
                    kernel.stages = [(self._text(name), ticks * TICK) for name, ticks in stages]
            case records.Since():
                kernel.asked = self._seconds(record.at)
                kernel.thread, kernel.where = self._text(record.thread), self._text(record.where)
            case records.Loaded():
                kernel.saved_s = record.took * TICK
            case records.Failed():
                kernel.answered, kernel.origin = self._seconds(record.at), "failed"
                kernel.error, kernel.kind, kernel.stage = (
                    record.summary,
                    self._text(record.kind),
                    self._text(record.stage),
                )
            case records.Blocked():
                self._blocked[record.kernel, record.thread] = len(kernel.waits)
                kernel.waits.append((self._seconds(record.at), 0.0, self._text(record.thread)))
            case records.Unblocked():
                place = self._blocked.pop((record.kernel, record.thread), None)
                if place is not None:
                    begun, _, thread = kernel.waits[place]
                    kernel.waits[place] = begun, max(0.0, self._seconds(record.at) - begun), thread
            case _:
                pass

    def end_waits(self, until: float) -> None:
        """Those that never ended last as long as is known of the process."""
        process = self.process
        if self._blocked and process.ended is None:
            process.last = max(process.last, until - process.head.began)
        for (number, _), place in self._blocked.items():
            waits = process.kernels[number].waits
            begun, _, thread = waits[place]
            waits[place] = begun, max(0.0, process.last - begun), thread

    def _text(self, number: int) -> str:
        return self._texts.get(number, "")

    def _seconds(self, ticks: int) -> float:
        seconds = ticks * TICK
        self.process.last = max(self.process.last, seconds)
        return seconds


__all__ = ["FOLDER", "SUFFIX", "Kernel", "Process", "Run", "Sweep", "folder_of", "forget", "names", "open_run", "runs"]
