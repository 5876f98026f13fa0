"""Whether a service still answers, as far as a client can tell."""

from __future__ import annotations

import time

from headstart.client import sharing
from headstart.system import machine

STOPPED_TIMEOUT = 10.0  # seconds of silence from a service that has been stopped


SILENT_TIMEOUT = 60.0  # seconds that a service may take to say how it is; it may be reading a slow disk


QUIET = 5.0  # seconds without a word while somebody waits, until the service is looked at


class Stuck(Exception):
    """The service does not answer; the text says who and why."""


class Watch:
    """How long the service has said nothing. While it compiles for minutes it says how it is when it is asked."""

    def __init__(self) -> None:
        self._looked = time.monotonic()
        self.heard()

    def heard(self) -> None:
        """It has said something."""
        self._since: float | None = None  # when it began to look as if it were silent
        self._asked = False
        self._looked = time.monotonic()

    def wants_to_ask(self, pid: int) -> bool:
        """Called while somebody waits, at any time. Whether the service is to be asked how it is.

        Args:
            pid: of the service; 0: unknown.

        Raises:
            Stuck: it has been silent for too long.
        """
        now = time.monotonic()
        since_last_look = now - self._looked
        if since_last_look < QUIET / 2:
            return False
        self._looked = now
        if since_last_look > 2 * QUIET:
            # Nobody waited, or this process was stopped itself.
            self._since, self._asked = now, False
        elif self._since is None:
            self._since = now - since_last_look
        silent = now - self._since
        patience = STOPPED_TIMEOUT if machine.stopped(pid) else SILENT_TIMEOUT
        if silent > patience:
            raise Stuck(sharing.silence(pid))
        asked, self._asked = self._asked, True
        return not asked
