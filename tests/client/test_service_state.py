"""What a client knows of its services: which of them were lost, with what they knew of published entries."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Any

import pytest

from conftest import PATIENCE, wait_until
from headstart import wire
from headstart.client.connection import ServiceConnection
from headstart.model.request import CompileRequest

HUNG_UP = wire.Leaving("answers were not read")


class Fake:
    """A shared service, seen from a client: it says what it is given, and ends if it is to."""

    shared = True
    status = None
    pid = 7

    def __init__(self, says: list[Any], ends: bool) -> None:
        self.socket, self._theirs = socket.socketpair()
        self._theirs.sendall(b"".join(wire.frame(each) for each in says))
        if ends:
            self._theirs.shutdown(socket.SHUT_WR)

    def last_words(self) -> str:
        return ""

    def end(self, timeout: float) -> None:
        for each in (self.socket, self._theirs):
            with contextlib.suppress(OSError):
                each.close()

    def forget(self) -> None:
        raise AssertionError


def lost(*services: list[Any]) -> int:
    """How many services are, once the last of these has welcomed us, and the others have ended."""
    left = list(services)
    is_there = threading.Event()

    def launch() -> Fake:
        says = left.pop(0)
        if not left:
            is_there.set()
        return Fake([*says, *([] if left else [wire.RemoteCounts()])], ends=bool(left))

    def reproduce(request: CompileRequest) -> str:
        raise AssertionError

    connection = ServiceConnection(launch, reproduce, wire.Preferences(b"/cache"))
    try:
        while left:
            connection.start()
            counted = connection.count_remotes()
            wait_until(lambda counted=counted: counted.done())  # by the last one, or because it is gone
        assert is_there.wait(PATIENCE)
        wait_until(lambda: connection.service.pid in [each.pid for each in services[-1] if hasattr(each, "pid")])
        return connection.service.lost
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("services", "expected"),
    [
        ([[wire.Welcome(1)]], 0),
        ([[], [wire.Welcome(2)]], 0),  # it ended while we came
        ([[wire.Leaving()], [wire.Welcome(2)]], 0),  # and said so
        ([[wire.Welcome(1)], [wire.Welcome(2)]], 1),
        ([[wire.Welcome(1), wire.Leaving()], [wire.Welcome(2)]], 1),
        ([[wire.Welcome(1)], [], [wire.Welcome(2)]], 1),
        ([[wire.Welcome(1), HUNG_UP], [wire.Welcome(1)]], 0),  # it goes on
        ([[wire.Welcome(1), HUNG_UP], [], [wire.Welcome(2)]], 1),  # and ended before we were back
    ],
)
def test_a_service_is_lost_if_it_had_welcomed_us_and_is_gone(services: list[list[Any]], expected: int) -> None:
    assert lost(*services) == expected
