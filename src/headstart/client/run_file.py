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
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from headstart.artifacts import run_records as records
from headstart.artifacts.runs import folder_of, forget
from headstart.client.about import described, new_run
from headstart.system.private import make_folder

MAX_BYTES = 32 << 20  # of one process's file
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
# What the processes of a launcher have in common.
_TORCHRUN = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT")
_STEP = ("SLURM_JOB_ID", "SLURM_STEP_ID")


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


def _program() -> str:
    argument = sys.argv[0] if getattr(sys, "argv", None) else ""
    return os.path.realpath(argument) if argument and argument != "-c" and os.path.exists(argument) else argument


def _text(text: str) -> str:
    return text.encode(errors="replace").decode()
