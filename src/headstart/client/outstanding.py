"""What a client has asked for and has no answer to yet."""

from __future__ import annotations

import concurrent.futures
import threading
from itertools import count
from typing import Any

from headstart.client.asked import Asked
from headstart.client.policy import Policy
from headstart.errors import HeadstartError

_tickets = count(1)  # of a process and its forks: an old number never means something new


class Outstanding:
    """By ticket, in the order in which it was asked for.

    Args:
        lock: of the connection whose requests these are.
    """

    def __init__(self, lock: threading.RLock) -> None:
        self._lock = lock
        self._pending: dict[int, Asked[Any]] = {}
        self._awaited: set[int] = set()

    def add(self, asked: Asked[Any]) -> None:
        """Something new. It gets its ticket."""
        asked.ticket = next(_tickets)
        self._pending[asked.ticket] = asked

    def want(self, asked: Asked[Any]) -> None:
        """Somebody is blocked on it."""
        self._awaited.add(asked.ticket)

    @property
    def is_awaited(self) -> bool:
        """Whether somebody is blocked on anything."""
        return bool(self._awaited)

    def get(self, ticket: int) -> Asked[Any] | None:
        """What has this ticket, if it has no answer yet."""
        return self._pending.get(ticket)

    def all(self) -> list[Asked[Any]]:
        """Everything."""
        return list(self._pending.values())

    def in_flight(self) -> list[Asked[Any]]:
        """What workers are compiling now."""
        with self._lock:
            return [asked for asked in self.all() if asked.started is not None]

    def policies(self) -> set[Policy]:
        """By whom it is asked."""
        with self._lock:
            return {asked.policy for asked in self.all()}

    def settle(self, asked: Asked[Any], outcome: Any) -> None:
        """Answer it, or fail it if the outcome is an error."""
        asked.settled(outcome)
        # Settled first and forgotten second: a fork in between finds it answered, or asks again.
        try:
            if isinstance(outcome, HeadstartError):
                asked.answer.set_exception(outcome)
            else:
                asked.answer.set_result(outcome)
        except concurrent.futures.InvalidStateError:
            pass  # it was cancelled just before
        self.forget(asked)

    def forget(self, asked: Asked[Any]) -> bool:
        """Nobody is to hear of it any more. Returns whether there was no answer yet."""
        with self._lock:
            self._awaited.discard(asked.ticket)
            return self._pending.pop(asked.ticket, None) is not None

    def fail(self, error: HeadstartError) -> None:
        """Fail everything."""
        for asked in self.all():
            self.settle(asked, error)

    def __contains__(self, asked: Asked[Any]) -> bool:
        return asked.ticket in self._pending

    def __bool__(self) -> bool:
        return bool(self._pending)
