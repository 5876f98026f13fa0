"""Where a shared service is found, and its end of it: a listening socket that only its own user gets through.

A path that is too long for a socket's address is reached through its folder's fd, so any will do.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from headstart.replacing import Format, carries_mark
from headstart.service.runtime import locked

LOG = Format("a service's log", begins=(b"headstart: what this service has to say\n",))
BACKLOG = 4096  # clients that have connected and were not accepted yet; the kernel may allow fewer
_SO_PEERPIDFD = 77  # socket(7), since Linux 6.5
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid


class Peer(NamedTuple):
    """Somebody who has connected. `pidfd` becomes readable when the process ends; -1 where there is none to be had."""

    socket: socket.socket
    pid: int
    pidfd: int


@contextlib.contextmanager
def address(path: Path) -> Iterator[str]:
    """What to bind or connect to for the socket at `path`.

    Raises:
        OSError: there is no such folder.
    """
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not os.path.exists("/proc/self/fd"):  # not mounted: then only a short path will do
            yield str(path)
            return
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def credentials(sock: socket.socket) -> tuple[int, int]:
    """The peer's pid and uid, as the kernel knows them: of the process that connected, or that listened."""
    packed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(packed)
    return pid, uid


def log_of(path: Path) -> Path:
    """Where the service that listens at `path` writes what it has to say."""
    return path.with_name(f"{path.name}.log")


class Door:
    """The listening socket at `path`, which is removed with it."""

    def __init__(self, listener: socket.socket, path: Path) -> None:
        listener.setblocking(False)
        listener.listen(BACKLOG)  # once more, so that clients see this process's credentials
        self._listener = listener
        self._path = path
        self._inode = path.stat().st_ino

    def fileno(self) -> int:
        return self._listener.fileno()

    def accept(self) -> Peer | None:
        """The next one who wants in; None if it was somebody else's, or has gone again.

        Raises:
            OSError: this process has no more file descriptors.
        """
        try:
            sock, _ = self._listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise
            return None
        try:
            pid, uid = credentials(sock)
            if uid == os.getuid():
                return Peer(sock, pid, _pidfd(sock, pid))
        except OSError:
            pass
        sock.close()
        return None

    def close(self, farewell: bytes) -> None:
        """Turn away whoever has not been let in, with a word; the next client starts another service."""
        with contextlib.suppress(OSError), locked(self._path.parent):
            with contextlib.suppress(OSError):
                while True:
                    late, _ = self._listener.accept()
                    with late, contextlib.suppress(OSError):
                        late.send(farewell)
            self._listener.close()
            # Somebody may have removed ours, and a successor may listen there by now.
            if self._path.lstat().st_ino == self._inode:
                if carries_mark(log_of(self._path), LOG):
                    log_of(self._path).unlink()
                self._path.unlink()


def _pidfd(sock: socket.socket, pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD))
    # An older kernel. The number may be another process's by now: then EOF alone says when the peer is gone.
    with contextlib.suppress(OSError):
        return os.pidfd_open(pid)
    return -1
