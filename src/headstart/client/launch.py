"""How a client comes by a service: it starts a private one, or joins a shared one, starting that if nobody has.

auto ─┬─ somebody ran `headstart serve` ─────▶ join
      ├─ several ranks of a job on this host ─▶ join theirs, or start it
      └─ else ────────────────────────────────▶ a child of this process
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Protocol

from headstart.client import sharing
from headstart.errors import ServiceError, UsageError
from headstart.system.files import Replacement, carries_mark
from headstart.system.folders import FULL
from headstart.system.settings import Settings
from headstart.system.sockets import LOG, credentials, log_of
from headstart.system.spawn import last_words_file, spawn
from headstart.wire.config import Config

_log = logging.getLogger("headstart")
_LAST_WORDS = 4 << 10  # bytes
_STARTING = 60.0  # seconds that a service may take until it is there
_DYING = 5.0  # seconds for a process that was killed to be gone
_ATTEMPTS = 5  # to join a service that ends each time just then


class Launched(Protocol):
    """A running service, seen from a client.

    Attributes:
        socket: connected to it; closing it means that this client has left.
        pid: of its process; 0: unknown.
        status: how it ended, where that can be told.
        shared: whether it may have other clients, and may end because of them.
    """

    socket: socket.socket
    shared: bool

    @property
    def pid(self) -> int: ...

    @property
    def status(self) -> int | None: ...

    def last_words(self) -> str:
        """The end of what the service and its zygotes printed."""

    def end(self, timeout: float) -> None:
        """Leave. Waits up to `timeout` seconds for a private service to be gone, and then kills it."""

    def forget(self) -> None:
        """In a fork of the client: close what belongs to the parent, and leave the service alone."""


class Private:
    """A service that is a child of this process, and ends with it."""

    shared = False

    def __init__(self, process: subprocess.Popen[bytes], sock: socket.socket, log: IO[bytes]) -> None:
        self.process = process
        self.socket = sock
        self._log = log

    @property
    def pid(self) -> int:
        """See `Launched`."""
        return self.process.pid

    @property
    def status(self) -> int | None:
        """See `Launched`."""
        return self.process.returncode

    def last_words(self) -> str:
        """See `Launched`."""
        return _end_of(self._log)

    def end(self, timeout: float) -> None:
        """See `Launched`."""
        _hang_up(self.socket)
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):  # a disk may keep it from dying
                self.process.wait(_DYING)
        self._log.close()

    def forget(self) -> None:
        """See `Launched`."""
        self.socket.close()
        self._log.close()
        self.process.returncode = 0  # it is not ours to wait for


class Shared:
    """A service that others may use too, and that is nobody's child."""

    shared = True
    status = None

    def __init__(self, sock: socket.socket, path: Path) -> None:
        self.socket = sock
        self._path = path
        self.pid = 0
        with contextlib.suppress(OSError):
            self.pid, _ = credentials(sock)

    def last_words(self) -> str:
        """See `Launched`."""
        path = log_of(self._path)
        with contextlib.suppress(OSError), path.open("rb") as log:
            return _end_of(log).removeprefix(LOG.begins[0].decode().strip()).lstrip() if carries_mark(path, LOG) else ""
        return ""

    def end(self, timeout: float) -> None:
        """See `Launched`."""
        _hang_up(self.socket)

    def forget(self) -> None:
        """See `Launched`."""
        self.socket.close()


def launch(settings: Settings) -> Launched:
    """The service that `settings.service` asks for, connected to.

    Raises:
        ServiceError: there is none and none can be started; or it is another user's.
    """
    if settings.service == "private":
        return launch_private(settings.workers)
    if settings.service == "shared":
        return _join_or_start(sharing.user_socket(), settings.workers)
    if settings.service != "auto":
        path = Path(settings.service)
        sock = sharing.connect(path)
        if sock is None:
            raise ServiceError(
                f"HEADSTART_SERVICE: no service listens at {path}; start one with "
                f"HEADSTART_SERVICE={path} headstart serve"
            )
        return Shared(sock, path)
    try:
        path = sharing.user_socket()
        sock = sharing.connect(path)
        if sock is not None:
            return Shared(sock, path)
        job = sharing.job_on_this_host(os.environ)
        if job is not None:
            return _join_or_start(sharing.job_socket(job), settings.workers)
    except ServiceError as error:
        _log.info("no shared compile service: %s", error)
    return launch_private(settings.workers)


def launch_private(workers: int) -> Private:
    """Start a service that ends with this process.

    Raises:
        ServiceError: no process could be started.
    """
    _check_interpreter()
    with contextlib.ExitStack() as stack:
        try:
            mine, theirs = socket.socketpair()
        except OSError as error:
            raise ServiceError(f"no compile service: {error.strerror}") from error
        stack.enter_context(theirs)
        passed = [stack.enter_context(_high(theirs.fileno()))]
        # Where there is none to be had (a sandbox, an old kernel), EOF alone says when this process is gone.
        with contextlib.suppress(OSError):
            pidfd = os.pidfd_open(os.getpid())
            stack.callback(os.close, pidfd)
            passed.append(stack.enter_context(_high(pidfd)))
        try:
            log = last_words_file()  # closed by `end`
        except OSError as error:
            mine.close()
            raise ServiceError(f"no compile service: no file for what it prints: {error}") from error
        config = Config(workers=workers, client=passed[0], client_pidfd=passed[1] if len(passed) > 1 else -1)
        try:
            process = _spawn(config, passed, log)
        except ServiceError:
            mine.close()
            log.close()
            raise
    return Private(process, mine, log)


def _join_or_start(path: Path, workers: int) -> Shared:
    for _ in range(_ATTEMPTS):
        sock = sharing.connect(path)
        if sock is not None:
            return Shared(sock, path)
        _check_interpreter()
        try:
            sharing.check_place(path)
        except UsageError as error:
            raise ServiceError(str(error)) from None
        with sharing.place_for_a_service(path) as listener:
            if listener is None:
                continue
            with _high(listener.fileno()) as fd, _new_log(log_of(path)) as log:
                starter = _spawn(Config(workers=workers, listener=fd, socket=str(path)), [fd], log)
            sock = sharing.connect(path)
        _await_start(starter, path)
        if sock is not None:
            return Shared(sock, path)
    raise ServiceError(f"the compile service at {path} ends as soon as it is started")


def _new_log(path: Path) -> IO[bytes]:
    """What the service and its zygotes print goes there.

    Raises:
        ServiceError: it cannot be made.
    """
    try:
        log = Replacement(path, LOG)
        log.file.write(LOG.begins[0])
        log.commit(close=False)
    except (OSError, UsageError) as error:
        if isinstance(error, OSError) and error.errno in FULL:
            return last_words_file()  # which nobody reads; a service is worth more than its log
        raise ServiceError(f"no compile service: its log cannot be made: {error}") from error
    return log.file


def _await_start(starter: subprocess.Popen[bytes], path: Path) -> None:
    """The starter forks the service, which is to be nobody's child, and ends."""
    try:
        starter.wait(_STARTING)
    except subprocess.TimeoutExpired:
        why = sharing.silence(starter.pid)
        starter.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            starter.wait(_DYING)
        raise ServiceError(f"the compile service at {path} is not started after {_STARTING:.0f} s: {why}") from None


def _spawn(config: Config, fds: list[int], log: IO[bytes]) -> subprocess.Popen[bytes]:
    try:
        return spawn(
            sys.executable,
            [os.path.abspath(entry) for entry in sys.path],
            "headstart.service.server",
            config.text(),
            pass_fds=fds,
            stderr=log,
            new_session=True,
        )
    except OSError as error:
        raise ServiceError(f"no compile service: cannot start {sys.executable}: {error.strerror}") from error


def _check_interpreter() -> None:
    if not sys.executable or not os.access(sys.executable, os.X_OK):
        raise ServiceError(
            f"no compile service: sys.executable is {sys.executable!r}, which cannot be run; headstart needs a Python"
        )


@contextlib.contextmanager
def _high(fd: int) -> Iterator[int]:
    # In a client whose standard streams are closed an fd may be 0, 1 or 2, which mean something else in the child.
    copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    try:
        yield copy
    finally:
        os.close(copy)


def _hang_up(sock: socket.socket) -> None:
    # A fork of this process may hold a copy of the socket, which closing ours would leave open.
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()


def _end_of(log: IO[bytes]) -> str:
    size = os.fstat(log.fileno()).st_size
    return os.pread(log.fileno(), _LAST_WORDS, max(0, size - _LAST_WORDS)).decode(errors="replace").strip()
