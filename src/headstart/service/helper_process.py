"""One process that talks to a network for its service, as that sees it: how it is started, heard, and let go of.

    service ── socketpair, a pidfd ── remote process (`headstart.remote.process`)
                                      bridge process (`headstart.farm.bridge`)

It is a child of the service's and ends by itself once its socket is closed, within seconds in which it finishes what it
is at. Nobody waits for that: so it has no PDEATHSIG that would end it with its service.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import IO, Any

import msgspec

from headstart import wire
from headstart.errors import ServiceError
from headstart.service.intake import shown
from headstart.service.loop import Loop
from headstart.system import machine
from headstart.system.deaths import describe_status
from headstart.system.spawn import last_words_file, spawn

STOPPED_TIMEOUT = 10.0  # seconds until one that somebody has stopped is replaced
_MOST_READS = 64  # more than a socket holds
_LAST_WORDS = 4 << 10  # bytes

_log = logging.getLogger("headstart.service")


class HelperProcess:
    """Started at once.

    Args:
        loop: that listens to it.
        name: what it is, for people.
        module: what it runs.
        first: the first message to it.
        hears: what it may say, a union of messages.
        secrets: URLs that its last words are not to quote; empty: none.
        set_to: environment variables that it gets; an empty one it does not have.
        take: what it says.
        gone: it is gone, by itself (an empty text) or, as the text says, not. Called once, unless `leave` is.

    Attributes:
        started: monotonic seconds.
        awake: whether it has said that it can answer.

    Raises:
        ServiceError: no process can be started.
    """

    def __init__(
        self,
        loop: Loop,
        *,
        name: str,
        module: str,
        first: msgspec.Struct,
        hears: Any,
        secrets: str,
        set_to: Mapping[str, str] = {},
        take: Callable[[Any], None],
        gone: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._name = name
        self._secrets = secrets
        self._take = take
        self._gone = gone
        self._stopped: float | None = None  # since when, as far as was looked
        self.started = time.monotonic()
        self.awake = False
        try:
            self._log = last_words_file()
        except OSError as error:
            raise ServiceError(f"no {name}: {error.strerror}") from error
        try:
            self._process, self._channel, self._pidfd = _start(module, hears, set_to, self._log)
        except OSError as error:
            self._log.close()
            raise ServiceError(f"no {name}: cannot start {sys.executable}: {error.strerror}") from error
        loop.watch(self._channel, self._hear)
        loop.watch(self._pidfd, self._died)
        self.send(first)

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    def send(self, message: msgspec.Struct) -> None:
        """Tell it something, at the end of this turn of the loop."""
        self._loop.send(self._channel, message)

    def replace_if_stopped(self, now: float) -> None:
        """End it if somebody has stopped it (SIGSTOP) and left it so; to be called while it owes an answer."""
        if not machine.stopped(self.pid):
            self._stopped = None
        elif self._stopped is None:
            self._stopped = now
        elif now - self._stopped >= STOPPED_TIMEOUT:
            self._process.kill()  # which is seen

    def leave(self) -> None:
        """The service ends: let go of it, and wait for nothing."""
        if machine.stopped(self.pid):
            self._process.kill()
            self._process.wait()
        self._process.returncode = 0  # from here on it is not ours to wait for
        self._let_go()

    def _hear(self, mask: int) -> None:
        try:
            for message in self._loop.receive(self._channel, mask):
                self._hear_one(message)
        except (EOFError, ConnectionError):
            self._loop.unwatch(self._channel)  # its pidfd tells when it is gone
        except wire.ProtocolError:
            _log.exception("a %s was killed", self._name)
            self._loop.unwatch(self._channel)
            self._process.kill()

    def _hear_one(self, message: Any) -> None:
        self.awake |= isinstance(message, wire.Awake)
        self._take(message)

    def _died(self, mask: int) -> None:
        with contextlib.suppress(EOFError, ConnectionError, wire.ProtocolError):
            for _ in range(_MOST_READS):  # what it had said before it died
                for message in self._channel.receive():
                    self._hear_one(message)
        status, words = self._process.wait(), _last_words(self._log)
        self._let_go()
        said = shown(without_secrets(words, self._secrets)) or "none"  # a library may have repeated what a peer sent
        by_itself = status == 0 and self.awake
        self._gone("" if by_itself else f"the {self._name} {describe_status(status)}; its last words: {said}")

    def _let_go(self) -> None:
        self._loop.unwatch(self._channel)
        self._loop.unwatch(self._pidfd)
        self._channel.close()
        os.close(self._pidfd)
        self._log.close()


def _start(
    module: str, hears: Any, set_to: Mapping[str, str], log: IO[bytes]
) -> tuple[subprocess.Popen[bytes], wire.Channel, int]:
    """Raises OSError."""
    mine, theirs = socket.socketpair()
    process = None
    with theirs:
        try:
            process = spawn(
                sys.executable,
                [os.path.abspath(each) for each in sys.path],
                module,
                theirs.fileno(),
                pass_fds=[theirs.fileno()],
                unset=set_to,
                set_to={"HEADSTART": "off"} | {name: value for name, value in set_to.items() if value},
                stderr=log,
            )
            return process, wire.Channel(mine, hears), os.pidfd_open(process.pid)
        except OSError:
            mine.close()
            if process is not None:
                process.kill()
                process.wait()
            raise


def without_secrets(words: str, urls: str) -> str:
    """Text that quotes no part of a URL that may be a password."""
    for url in urls.split():
        location, _, query = url.partition("://")[2].partition("?")
        credentials = location.rpartition("@")[0]
        secrets = {url, query, *({location, credentials, *credentials.split(":")} if credentials else ())}
        for secret in sorted(filter(None, secrets), key=len, reverse=True):
            words = words.replace(secret, "…")
    return words


def _last_words(log: IO[bytes]) -> str:
    size = os.fstat(log.fileno()).st_size
    return os.pread(log.fileno(), _LAST_WORDS, max(0, size - _LAST_WORDS)).decode(errors="replace").strip()
