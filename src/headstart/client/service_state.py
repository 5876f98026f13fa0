"""What a connection knows of the service at its other end: who it is, and whether it has welcomed or dismissed us."""

from __future__ import annotations

import logging
import os
from collections import deque
from concurrent.futures import Future
from typing import Any

from headstart import wire
from headstart.client.launch import Launched
from headstart.errors import ServiceError

MAX_REFUSALS = 3  # in a row, by shared services that end while we connect

RemoteCounted = Future["wire.RemoteCounts | None"]

_log = logging.getLogger("headstart")


class ServiceState:
    """Of one connection, from service to service.

    Attributes:
        pid: of the service that we are connected to; 0: unknown.
        dismissed: it has said that it ends because it was told to.
        lost: services that had welcomed us, and that another had to follow.
    """

    def __init__(self) -> None:
        self.pid = 0
        self.dismissed = False
        self.lost = 0
        self._greeted_by = 0  # its pid, if it has welcomed us, and has not hung up on us while it goes on
        self._hung_up = 0  # the pid of the one that did
        self._welcomed = False
        self._refusals = 0  # services in a row that ended before they had welcomed us
        self._counting: deque[RemoteCounted] = deque()  # who has asked how it stands with remotes

    def begin(self, launched: Launched) -> None:
        """Another service."""
        self.lost += self._greeted_by > 0
        self._greeted_by = 0
        self._welcomed = self.dismissed = False
        self.pid = 0 if launched.pid == os.getpid() else launched.pid

    def hear(self, message: Any) -> bool:
        """What it says of itself; False: it is about something else.

        Raises:
            ServiceError: it cannot be used.
        """
        if isinstance(message, wire.Notice):
            _log.warning("%s", message.text)
            return True
        if isinstance(message, wire.RemoteCounts):
            if self._counting:
                self._counting.popleft().set_result(message)
            return True
        if isinstance(message, wire.Unwelcome):
            raise ServiceError(f"the compile service cannot be used: {message.why}")
        if not isinstance(message, wire.Welcome | wire.Leaving | wire.Report):
            return False
        self._welcomed = True
        if isinstance(message, wire.Welcome):
            self.pid = message.pid  # a socket names its first listener, which may be a client
            self.lost += self._hung_up not in (0, message.pid)
            self._greeted_by, self._hung_up = message.pid, 0
        self.dismissed = isinstance(message, wire.Leaving)
        if isinstance(message, wire.Leaving) and message.why:
            _log.info("the compile service hung up, and is asked again: %s", message.why)
            self._greeted_by, self._hung_up = 0, self._greeted_by
        return True

    def asked_for_counts(self, *, can_answer: bool) -> RemoteCounted:
        """What it is to say of the stores of other hosts; None if it ends before it does."""
        counted: RemoteCounted = Future()
        if can_answer:
            self._counting.append(counted)
        else:
            counted.set_result(None)
        return counted

    @property
    def counts_asked(self) -> int:
        """How many such answers it owes."""
        return len(self._counting)

    def end(self) -> None:
        """It is gone."""
        while self._counting:
            self._counting.popleft().set_result(None)

    def was_too_late(self) -> bool:
        """Whether this looks like a service that ended, its last client gone, while we were connecting."""
        self._refusals = 0 if self._welcomed else self._refusals + 1
        return 0 < self._refusals <= MAX_REFUSALS
