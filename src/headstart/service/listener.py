"""Where a shared service is found, and its end of it: a listening socket that only its own user gets through.

A path that is too long for a socket's address is reached through its folder's fd, so any will do.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from pathlib import Path
from typing import NamedTuple

from headstart.system.files import carries_mark
from headstart.system.locks import locked_folder
from headstart.system.sockets import BACKLOG, LOG, credentials, log_of

_SO_PEERPIDFD = 77  # socket(7), since Linux 6.5


class Peer(NamedTuple):
    """Somebody who has connected. `pidfd` becomes readable when the process ends; -1 where there is none to be had."""

    socket: socket.socket
    pid: int
    pidfd: int


class Listener:
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

    def close(self, last_word: bytes) -> None:
        """Turn away clients in the backlog, with a word; the next client starts another service."""
        with contextlib.suppress(OSError), locked_folder(self._path.parent):
            with contextlib.suppress(OSError):
                while True:
                    late, _ = self._listener.accept()
                    with late, contextlib.suppress(OSError):
                        late.send(last_word)
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
