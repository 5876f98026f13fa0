"""The file of a run's log: made with the first frame, appended to, closed, opened again; what it says of this process.

`headstart.artifacts.run_records` says what is in it, `headstart.client.run_log` what becomes of a program meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import logging
import os
import socket
import sys
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from headstart.artifacts import run_records as records
from headstart.artifacts.runs import folder_of, forget
from headstart.client.about import described, new_run, plain
from headstart.system.private import make_folder

MAX_BYTES = 32 << 20  # of one process's file
_LAST_BYTES = 4096  # of a full file, for what says that it is
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
_AGAIN = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_log = logging.getLogger("headstart")
# What the processes of a launcher have in common.
_TORCHRUN = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT")
_STEP = ("SLURM_JOB_ID", "SLURM_STEP_ID")


class RunFile:
    """The file of one process, in one cache folder.

    A program that closes descriptors that it did not open (a daemon does) may have closed ours, and then one of its own
    files has that number. Before each use of it the file behind it is compared with the one that was made.

    Args:
        cache_dir: of which folder. What is missing above it is made; what is there now, and gone later, is not.
        keep: how many runs stay there when a new one begins; 0: there will be no file.
        workers, zero, parent: see `run_records.Head`.

    Attributes:
        size: bytes that it has.
        is_full: nothing more goes in, but for the last frame.
    """

    def __init__(self, cache_dir: Path, keep: int, workers: int, zero: float, parent: int) -> None:
        self._cache_dir = cache_dir
        self._keep = keep
        self._workers = workers
        self._zero = zero
        self._parent = parent
        self._fd = -1
        self._path: Path | None = None
        self._identity = (-1, -1)  # device and inode
        self._above = cache_dir
        self._about = described()
        self.size = 0
        self.is_full = False
        if keep:
            _program()  # before the program goes to another folder
            _run_of_this_process()  # before it is forked
            self._above = next((each for each in (cache_dir, *cache_dir.parents) if each.is_dir()), cache_dir)

    @property
    def is_there(self) -> bool:
        """Whether anything was written, and more can be."""
        return self._fd >= 0

    def append(self, made: list[records.Record], *, is_last: bool = False) -> int:
        """Write one frame; for the last one there is room in a full file. Returns how many records could not be told.

        Raises:
            OSError: it cannot be written. The file is as it was.
        """
        if self._fd < 0:
            self._make()
        elif not self._is_ours():
            raise OSError(errno.EBADF, "the program has closed the run's log")
        data, left_out = _frame([self._head(), *made] if self.size == 0 else made)
        if self.size == 0:
            data = records.beginning() + data
        if self.size + len(data) > MAX_BYTES + (_LAST_BYTES if is_last else 0):
            self.is_full = True
            return len(made)
        try:
            written = os.write(self._fd, data)
            if written < len(data):
                raise OSError(f"only {written} of {len(data)} bytes could be written")
        except OSError:
            if self._is_ours():
                with contextlib.suppress(OSError):
                    os.ftruncate(self._fd, self.size)
            if self.size == 0:  # without a head nobody reads what follows
                self._unmake()
            raise
        self.size += len(data)
        return left_out

    def close(self) -> None:
        """Let go of it; in a fork, of the parent's."""
        is_ours = self._is_ours()
        fd, self._fd = self._fd, -1
        if is_ours:
            with contextlib.suppress(OSError):
                os.close(fd)

    def reopen(self) -> bool:
        """Go on with a file that was closed, if it was; False: it is there no more, or is about something else."""
        if self._path is None or self._fd >= 0:
            return True
        if self._about != described():  # something else runs
            return False
        try:
            self._fd = os.open(self._path, _AGAIN)
            status = os.fstat(self._fd)
        except OSError:
            return False
        is_same = (status.st_dev, status.st_ino, status.st_size) == (*self._identity, self.size)
        self._lock()
        if not is_same:
            os.close(self._fd)
            self._fd = -1
        return is_same

    def _is_ours(self) -> bool:
        if self._fd < 0:
            return False
        try:
            status = os.fstat(self._fd)
        except OSError:  # it is closed
            is_ours = False
        else:
            is_ours = (status.st_dev, status.st_ino) == self._identity
        if not is_ours:
            self._fd = -1
        return is_ours

    def _make(self) -> None:
        folder = folder_of(self._cache_dir) / (described().run or _run_of_this_process())
        is_new = not folder.is_dir()
        name = f"{os.getpid()}-{os.urandom(4).hex()}{records.SUFFIX}"
        try:
            self._make_in(folder, name)
        except FileNotFoundError:  # another process removed the folder, in which there was nothing yet
            self._make_in(folder, name)
        if is_new:
            with contextlib.suppress(OSError):
                forget(self._cache_dir, self._keep)

    def _make_in(self, folder: Path, name: str) -> None:
        if not self._above.is_dir():  # the program has removed it
            raise NotADirectoryError(errno.ENOTDIR, "the cache folder is gone", str(self._above))
        make_folder(folder)
        # Nobody removes it, or the folder, before it has its lock and its name.
        unfinished = folder / f".{name}"
        fd = os.open(unfinished, _NEW, 0o600)
        try:
            status = os.fstat(fd)
            self._fd, self._identity = fd, (status.st_dev, status.st_ino)
            self._lock()
            self._path = folder / name
            os.rename(unfinished, self._path)
        except BaseException:
            self._path = None
            self.close()
            with contextlib.suppress(OSError):
                os.unlink(unfinished)
            raise

    def _unmake(self) -> None:
        """Leave no empty file."""
        path, self._path = self._path, None
        if path is not None and self._is_ours():
            with contextlib.suppress(OSError):
                os.unlink(path)
            with contextlib.suppress(OSError):
                os.rmdir(path.parent)
        self.close()

    def _lock(self) -> None:
        with contextlib.suppress(OSError):  # a file system without locks: then it seems that nobody writes it
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _head(self) -> records.Head:
        about = self._about = described()
        return records.Head(
            run=about.run or _run_of_this_process(),
            kind=about.kind,
            program=plain(about.program or _program()),
            pid=os.getpid(),
            parent=self._parent,
            rank=_rank(),
            host=socket.gethostname(),
            began=time.time() - (time.monotonic() - self._zero),
            zero=self._zero,
            headstart=import_module("headstart").__version__,  # by name: the package stands above all its modules
            python=sys.version.partition(" ")[0],
            bundle=plain(about.bundle),
            record=plain(about.record),
            workers=self._workers,
        )


@functools.cache
def _run_of_this_process() -> str:
    """The same for all processes of one torchrun, or of one step of SLURM's, on all of its hosts.

    What a user calls a torchrun may be the same each time: of one on a single host, what its agent made for it is part
    of the name. A shell of salloc's or of srun's, in which one program is started after another, makes no run.
    """
    said = _torchrun(os.environ) or _slurm_step(os.environ)
    if not said:
        return new_run()
    return hashlib.sha256("\n".join(said).encode(errors="replace")).hexdigest()[:8]


def _torchrun(variables: Mapping[str, str]) -> list[str]:
    if "TORCHELASTIC_RUN_ID" not in variables:
        return []
    said = [variables.get(name, "") for name in _TORCHRUN]
    if _number(variables.get("LOCAL_WORLD_SIZE", "")) >= _number(variables.get("WORLD_SIZE", "")):
        # In a new folder of the agent's, by attempt and rank; what a rank starts inherits it, but not its parent.
        errors = variables.get("TORCHELASTIC_ERROR_FILE", "")
        said.append(os.path.dirname(os.path.dirname(errors)) or str(os.getppid()))
    return said


def _slurm_step(variables: Mapping[str, str]) -> list[str]:
    is_launched = all(variables.get(name) for name in (*_STEP, "SLURM_PROCID"))
    if not is_launched or _number(variables.get("SLURM_STEP_NUM_TASKS", "")) < 2:
        return []
    return [variables[name] for name in _STEP] + [variables.get("SLURM_RESTART_COUNT", "")]


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else 0


def _rank() -> str:
    if _torchrun(os.environ):
        return os.environ.get("RANK", "")
    return os.environ["SLURM_PROCID"] if _slurm_step(os.environ) else ""


@functools.cache
def _program() -> str:
    argument = sys.argv[0] if getattr(sys, "argv", None) else ""
    if not isinstance(argument, str) or argument in ("", "-c"):
        return str(argument)
    try:
        return os.path.realpath(argument) if os.path.exists(argument) else argument
    except (OSError, ValueError):  # the current folder is gone
        return argument


def _frame(made: list[records.Record]) -> tuple[bytes, int]:
    """Records as they are appended, and how many cannot be: each costs itself only."""
    try:
        return records.frame(made), 0
    except Exception:  # noqa: BLE001 - of whatever kind
        good = [each for each in made if _can_be_written(each)]
        return records.frame(good), len(made) - len(good)


def _can_be_written(record: records.Record) -> bool:
    try:
        return bool(records.frame([record]))
    except Exception:  # noqa: BLE001 - see `_frame`
        _log.debug("something is not in the run's log", exc_info=True)
        return False
