"""Unix sockets by their path, however long; who is at the other end; where a service that listens has its log."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

from headstart.system.files import Format

LOG = Format("a service's log", begins=(b"headstart: what this service has to say\n",))


BACKLOG = 4096  # clients that have connected and were not accepted yet; the kernel may allow fewer


_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid


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
