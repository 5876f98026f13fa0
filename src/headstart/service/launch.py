"""How a client starts a service of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from typing import IO

import msgspec

from headstart.errors import ServiceError
from headstart.service.boot import spawn
from headstart.service.config import Config

_LAST_WORDS = 4 << 10  # bytes


class Launched:
    """A running service, seen from the client that started it.

    Attributes:
        process: the service.
        socket: connected to it; closing it ends the service.
    """

    def __init__(self, process: subprocess.Popen[bytes], sock: socket.socket, log: IO[bytes]) -> None:
        self.process = process
        self.socket = sock
        self._log = log

    def last_words(self) -> str:
        """The end of what the service and its zygotes printed."""
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), _LAST_WORDS, max(0, size - _LAST_WORDS)).decode(errors="replace").strip()

    def end(self, timeout: float) -> None:
        """Close the connection and wait for the service to be gone; kill it after `timeout` seconds."""
        self.socket.close()
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()

    def forget(self) -> None:
        """In a fork of the client: close what belongs to the parent, and leave the service alone."""
        self.socket.close()
        self._log.close()
        self.process.returncode = 0  # it is not ours to wait for


def launch(*, cache_dir: str, workers: int, time_limit: float | None, store_limit: int | None) -> Launched:
    """Start a service that ends with this process. See `Config` for the arguments.

    Raises:
        ServiceError: no process could be started.
    """
    if not sys.executable or not os.access(sys.executable, os.X_OK):
        raise ServiceError(
            f"no compile service: sys.executable is {sys.executable!r}, which cannot be run; headstart needs a Python"
        )
    mine, theirs = socket.socketpair()
    # An unnamed file: it is there to be quoted if the service dies, and leaves nothing behind.
    log = tempfile.TemporaryFile(prefix="headstart-")  # noqa: SIM115 - closed by `end`
    pidfd = os.pidfd_open(os.getpid())
    config = Config(
        cache_dir=cache_dir,
        workers=workers,
        time_limit=time_limit,
        store_limit=store_limit,
        client=theirs.fileno(),
        client_pidfd=pidfd,
    )
    try:
        process = spawn(
            sys.executable,
            [os.path.abspath(entry) for entry in sys.path],
            "headstart.service.server",
            msgspec.json.encode(config).decode(),
            pass_fds=[theirs.fileno(), pidfd],
            stderr=log,
            new_session=True,
        )
    except OSError as error:
        mine.close()
        log.close()
        raise ServiceError(f"no compile service: cannot start {sys.executable}: {error.strerror}") from error
    finally:
        theirs.close()
        os.close(pidfd)
    return Launched(process, mine, log)
