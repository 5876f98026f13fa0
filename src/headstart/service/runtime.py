"""The folder that lives as long as a service: worker folders, and (shared services) the socket.

A service holds a lock on its folder while it lives. The kernel releases the lock however the service ends, so whoever
starts next can tell which folders nobody owns any more, and removes them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from headstart.folders import runtime_dir

PATIENCE = 20.0  # seconds to wait for others, who hold a lock while they start a service
_PREFIX = "service-"
_POLL = 0.01  # seconds


@contextlib.contextmanager
def service_folder() -> Iterator[Path]:
    """A fresh folder in the user's runtime folder, removed at the end; abandoned ones are removed first.

    Raises:
        ServiceError: the runtime folder cannot be used.
    """
    parent = runtime_dir()
    with contextlib.ExitStack() as mine:
        # Held while a folder is made and locked, so that nobody takes a folder for abandoned in between.
        with contextlib.ExitStack() as turn:
            with contextlib.suppress(TimeoutError):  # whoever has it is stuck, and removes nothing
                turn.enter_context(locked(parent))
                for other in parent.glob(f"{_PREFIX}*"):
                    with contextlib.suppress(OSError), locked(other, wait=False):
                        shutil.rmtree(other, ignore_errors=True)
            folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
            mine.enter_context(locked(folder))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def locked(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock on a folder, which ends with this process if not before.

    Raises:
        OSError: there is no such folder, or somebody has it and we do not `wait`.
        TimeoutError: somebody has had it for `PATIENCE` seconds: they are stopped, or their disk is.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        deadline = time.monotonic() + PATIENCE
        while not _try_flock(fd):
            if not wait:
                raise BlockingIOError(f"somebody has locked {folder}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"another process has kept {folder} locked for {PATIENCE:.0f} s; is it stopped?")
            time.sleep(_POLL)
        try:
            yield
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)  # a fork made meanwhile has a copy of the fd
    finally:
        os.close(fd)


def _try_flock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
