"""What the `headstart` command asks of services that run."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from headstart import wire
from headstart.client import sharing
from headstart.errors import ServiceError
from headstart.system import machine
from headstart.system.settings import Settings
from headstart.system.sockets import credentials

Told = TypeVar("Told", wire.Report, wire.Events)

_ANSWER = 10.0  # seconds within which a service says something, unless it has to end something first


def socket_of(settings: Settings) -> Path:
    """Where the service listens that the user means: the one named by a path, or else the user's own.

    Raises:
        ServiceError: there is no runtime folder.
    """
    return Path(settings.service) if os.path.isabs(settings.service) else sharing.user_socket()


def reports(settings: Settings) -> list[tuple[Path, wire.Report]]:
    """The state of every service of this user, or of the one that is named by a path."""
    paths = [Path(settings.service)] if os.path.isabs(settings.service) else sharing.sockets()
    asked = [(path, ask(path, "status")) for path in paths]
    return [(path, state) for path, state in asked if state is not None]


def events(settings: Settings) -> list[tuple[Path, wire.Events]]:
    """The latest events of the same."""
    paths = [Path(settings.service)] if os.path.isabs(settings.service) else sharing.sockets()
    asked = [(path, _ask(path, "events", wire.Events)) for path in paths]
    return [(path, told) for path, told in asked if told is not None]


def ask(path: Path, command: str) -> wire.Report | None:
    """Have the service at `path` do as it is told, and wait until it is done. None: there is no service.

    For `"stop"` that is when it has gone. For `command` see `wire.Control`.

    Raises:
        ServiceError: it cannot be reached, does not answer, or talks another language.
    """
    return _ask(path, command, wire.Report)


def _ask(path: Path, command: str, kind: type[Told]) -> Told | None:
    sock = sharing.connect(path)
    if sock is None:
        return None
    report: Told | None = None
    with sock:
        sock.settimeout(_ANSWER)
        try:
            sock.sendall(wire.frame(wire.Control(command)))
            for message in _patiently(sock, path, command):
                if isinstance(message, kind):
                    report = message
                    if command != "stop":
                        break
        except ConnectionError:
            pass  # it has gone
        except wire.ProtocolError as error:
            raise ServiceError(f"the service at {path} talks another language: {error}") from error
    return report


def _patiently(sock: socket.socket, path: Path, command: str) -> Iterator[Any]:
    """What the service says. It may take its time to end what it does, but not to say how it is."""
    deframer = wire.Deframer(wire.FromService)
    pid, _ = credentials(sock)
    while True:
        try:
            yield from wire.receive_blocking(sock, deframer)
            return
        except TimeoutError:
            if machine.stopped(pid) or command in ("status", "events", "resume"):
                raise ServiceError(f"the service at {path} {sharing.silence(pid)}") from None
