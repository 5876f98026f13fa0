"""How a client starts a service of its own."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import subprocess
import sys
import tempfile
from typing import IO

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
        # A fork of this process may hold a copy of the socket, which closing ours would leave open.
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
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
    with contextlib.ExitStack() as stack:
        mine, theirs = socket.socketpair()
        stack.enter_context(theirs)
        pidfd = os.pidfd_open(os.getpid())
        stack.callback(os.close, pidfd)
        # In a client whose standard streams are closed these may be 0, 1 or 2, which mean something else in the child.
        passed = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in (theirs.fileno(), pidfd)]
        for fd in passed:
            stack.callback(os.close, fd)
        # An unnamed file: it is there to be quoted if the service dies, and leaves nothing behind.
        log = tempfile.TemporaryFile(prefix="headstart-")  # noqa: SIM115 - closed by `end`
        config = Config(
            cache_dir=cache_dir,
            workers=workers,
            time_limit=time_limit,
            store_limit=store_limit,
            client=passed[0],
            client_pidfd=passed[1],
        )
        try:
            process = spawn(
                sys.executable,
                [os.path.abspath(entry) for entry in sys.path],
                "headstart.service.server",
                config.text(),
                pass_fds=passed,
                stderr=log,
                new_session=True,
            )
        except OSError as error:
            mine.close()
            log.close()
            raise ServiceError(f"no compile service: cannot start {sys.executable}: {error.strerror}") from error
    return Launched(process, mine, log)
