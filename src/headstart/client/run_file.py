"""The file of a run's log: made with the first frame, appended to, closed; and what it says of this process.

`headstart.artifacts.run_records` says what is in it, `headstart.client.run_log` what becomes of a program meanwhile.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import socket
import sys
import time
from importlib import import_module
from pathlib import Path

from headstart.artifacts import run_records as records
from headstart.artifacts.runs import folder_of, forget
from headstart.client.about import described, new_run
from headstart.system.private import make_folder

MAX_BYTES = 32 << 20  # of one process's file
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
# Of a launcher of processes: what its processes have in common, and which one this is.
_JOBS = (
    (("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT"), "RANK"),
    (("SLURM_JOB_ID", "SLURM_STEP_ID"), "SLURM_PROCID"),
)


class RunFile:
    """The file of one process, in one cache folder.

    Args:
        cache_dir: of which folder.
        keep: how many runs stay there when a new one begins.
        workers, zero, parent: see `run_records.Head`.

    Attributes:
        size: bytes that it has.
        is_full: nothing more goes in.
    """

    def __init__(self, cache_dir: Path, keep: int, workers: int, zero: float, parent: int) -> None:
        self._cache_dir = cache_dir
        self._keep = keep
        self._workers = workers
        self._zero = zero
        self._parent = parent
        self._fd = -1
        self.size = 0
        self.is_full = False

    @property
    def is_there(self) -> bool:
        """Whether anything was written."""
        return self._fd >= 0

    def append(self, made: list[records.Record]) -> None:
        """Write one frame.

        Raises:
            OSError: it cannot be written. The file is as it was.
        """
        if self._fd < 0:
            self._make()
            made = [self._head(), *made]
        data = records.frame(made)
        if self.size == 0:
            data = records.beginning() + data
        if self.size + len(data) > MAX_BYTES:
            self.is_full = True
            return
        try:
            written = os.write(self._fd, data)
            if written < len(data):
                raise OSError(f"only {written} of {len(data)} bytes could be written")
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self.size)
            if self.size == 0:  # without a head nobody reads what follows
                self.close()
            raise
        self.size += len(data)

    def close(self) -> None:
        """Let go of it; in a fork, of the parent's."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)

    def _make(self) -> None:
        folder = folder_of(self._cache_dir) / (described().run or _run_of_this_process())
        is_new = not folder.is_dir()
        make_folder(folder)
        self._fd = os.open(folder / f"{os.getpid()}-{os.urandom(4).hex()}{records.SUFFIX}", _NEW, 0o600)
        with contextlib.suppress(OSError):  # a file system without locks: then it seems that nobody writes it
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_new:
            with contextlib.suppress(OSError):
                forget(self._cache_dir, self._keep)

    def _head(self) -> records.Head:
        about = described()
        return records.Head(
            run=about.run or _run_of_this_process(),
            kind=about.kind,
            program=_text(about.program or _program()),
            pid=os.getpid(),
            parent=self._parent,
            rank=_rank(),
            host=socket.gethostname(),
            began=time.time() - (time.monotonic() - self._zero),
            zero=self._zero,
            headstart=import_module("headstart").__version__,  # by name: the package stands above all its modules
            python=sys.version.partition(" ")[0],
            bundle=_text(about.bundle),
            record=_text(about.record),
            workers=self._workers,
        )


@functools.cache
def _run_of_this_process() -> str:
    """The same for all processes of one torchrun, or of one step of SLURM's, on all of its hosts."""
    for shared, _ in _JOBS:
        if shared[0] in os.environ:
            # What torchrun calls its runs may be the same each time; its agent is the parent of all ranks of a host.
            is_unique = os.environ[shared[0]] not in ("", "none")
            said = [os.environ.get(name, "") for name in shared] + ([] if is_unique else [str(os.getppid())])
            return hashlib.sha256("\n".join(said).encode(errors="replace")).hexdigest()[:8]
    return new_run()


def _rank() -> str:
    return next((os.environ[rank] for shared, rank in _JOBS if shared[0] in os.environ and rank in os.environ), "")


def _program() -> str:
    argument = sys.argv[0] if getattr(sys, "argv", None) else ""
    return os.path.realpath(argument) if argument and argument != "-c" and os.path.exists(argument) else argument


def _text(text: str) -> str:
    return text.encode(errors="replace").decode()
