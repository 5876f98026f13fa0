"""Taking turns at a file that several processes and threads read, change and replace.

This code assumes that locks of `fcntl.lockf` work where the file lies; they end with their process, and no fork
inherits them.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PATIENCE = 60.0  # seconds to wait for others
_POLL = 0.01  # seconds


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Be the only one, of all threads and processes, to replace the file at `path`.

    The lock is on `.NAME.lock` beside it, which stays there: the file itself becomes another one at each turn.

    Raises:
        OSError: the lock cannot be had, or not within `PATIENCE`.
    """
    # Locks of lockf are a process's own: they do not keep its threads apart, and closing the file elsewhere ends them.
    deadline = time.monotonic() + PATIENCE
    if not _in_process.acquire(timeout=PATIENCE):
        raise TimeoutError(f"another thread has been writing for {PATIENCE:.0f} s")
    try:
        fd = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            while not _try_lock(fd):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"another process has been writing for {PATIENCE:.0f} s")
                time.sleep(_POLL)
            yield
        finally:
            os.close(fd)
    finally:
        _in_process.release()


def _try_lock(fd: int) -> bool:
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # POSIX lets systems choose between the two
        return False
    return True


_in_process = threading.Lock()


def _after_fork_in_child() -> None:
    global _in_process
    _in_process = threading.Lock()


os.register_at_fork(after_in_child=_after_fork_in_child)
