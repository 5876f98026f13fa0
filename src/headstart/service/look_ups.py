"""What is looked up in stores of other hosts, and by whom."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from headstart import wire


class Sought(NamedTuple):
    """An entry that is looked for, and the store that it is for; the rest is as in `wire.Wanted` and `wire.LookUp`."""

    key: str
    kind: str
    request_digest: str
    cache_dir: bytes
    trusted: bool


Answered = Callable[[wire.FoundRemotely | None], None]
Late = Callable[[wire.FoundRemotely], None]


class LookUp:
    """One key that a process is asked for, and who waits for it.

    Attributes:
        place: by which it is found again: claimed or not, these are two.
        asked: monotonic seconds; once it comes out of a queue, when it did.
        claimed_until: when another host is given up that makes it; None: none has said so.
        elsewhere, claimed_late: see `Remotes.look_up`.
    """

    def __init__(self, ticket: int, sought: Sought, lease: float, background: bool, now: float) -> None:
        self.ticket = ticket
        self.sought = sought
        self.place = (sought, lease > 0)
        self.lease = lease
        self.background = background
        self.asked = now
        self.sent = False
        self.claimed_until: float | None = None  # another host makes it
        self.askers: list[tuple[Answered, Late | None]] = []
        self.elsewhere: list[Callable[[], None]] = []
        self.claimed_late: list[Callable[[], None]] = []
        self.given_up: list[Late] = []  # who want to be told all the same

    def give_up(self) -> None:
        """Nobody is to wait for it any longer."""
        askers, self.askers = self.askers, []
        self.given_up += [late for _, late in askers if late is not None]
        for answered, _ in askers:
            answered(None)
