"""Taking turns at a file or a folder that several processes and threads read, change and replace.

This code assumes that locks of `fcntl.lockf` work where the file lies; they end with their process, and no fork
inherits them.
"""

from __future__ import annotations

import fcntl
import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from headstart.system import machine

PATIENCE = 60.0  # seconds to wait for others
STOPPED_TIMEOUT = 1.0  # seconds to wait for somebody who has been stopped
FOLDER_TIMEOUT = 20.0  # seconds to wait for others, who hold a lock while they start a service
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


@contextmanager
def locked_folder(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock on a folder, which ends with this process if not before.

    Raises:
        OSError: there is no such folder, or somebody has it and we do not `wait`.
        TimeoutError: somebody has had it for `FOLDER_TIMEOUT` seconds: they are stopped, or their disk is.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        deadline = time.monotonic() + FOLDER_TIMEOUT
        while not _try_flock(fd):
            if not wait:
                raise BlockingIOError(f"somebody has locked {folder}")
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"another process has kept {folder} locked for {FOLDER_TIMEOUT:.0f} s; is it stopped?"
                )
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


def lock_byte(fd: int, offset: int, patience: float = PATIENCE) -> bool:
    """Lock one byte of a file for this process, until it closes the file or ends.

    Args:
        fd: of the file, open for writing.
        offset: of the byte, which need not exist.
        patience: seconds to wait for its holder; a process that is stopped is not waited for.

    Returns:
        Whether it is locked now.

    Raises:
        OSError: there are no locks where the file lies.
    """
    deadline = time.monotonic() + patience
    stopped_at = time.monotonic() + min(patience, STOPPED_TIMEOUT)
    while not _try_lock(fd, 1, offset):
        now = time.monotonic()
        if now > deadline or (now > stopped_at and machine.stopped(_holder(fd, offset))):
            return False
        time.sleep(_POLL)
    return True


_FLOCK = struct.Struct("hhqqi")  # fcntl(2), Linux with 64 bits: type, whence, start, length, pid


def _holder(fd: int, offset: int) -> int:
    """The process that has locked a byte; 0 if nobody has, or where that cannot be told (another host)."""
    with suppress(OSError, struct.error):
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0)
        kind, *_, pid = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, asked))
        return 0 if kind == fcntl.F_UNLCK else max(0, int(pid))
    return 0


def _try_lock(fd: int, length: int = 0, offset: int = 0) -> bool:
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, length, offset)
    except (BlockingIOError, PermissionError):  # POSIX lets systems choose between the two
        return False
    return True


_in_process = threading.Lock()


def _after_fork_in_child() -> None:
    global _in_process
    _in_process = threading.Lock()


os.register_at_fork(after_in_child=_after_fork_in_child)
