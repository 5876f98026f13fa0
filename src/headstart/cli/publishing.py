"""What `headstart build` compiled, and the stores of other hosts: a build waits until they have it, or will not.

Programs do not: what they leave when they end has two seconds. A build is run to fill such a store.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import TimeoutError as NotInTime
from typing import TYPE_CHECKING, Any

import msgspec

from headstart.cli import count, printable
from headstart.errors import UsageError
from headstart.stores.remote.urls import parse_urls

if TYPE_CHECKING:
    from headstart.client.client import Client
    from headstart.wire import RemoteCounts

PATIENCE = 60.0  # seconds in which nothing is published
SAID_EVERY = 5.0  # seconds
_PAUSE = 0.02  # seconds between two questions at first, longer each time
_MAX_PAUSE = 0.25
_NOT_KEPT = "not kept in the local store, from where entries go out"


class Published(msgspec.Struct):
    """What became of what a build was to publish.

    Attributes:
        stores: their names.
        entries: that a store has taken.
        unpublished: why others were not, and how many.
        lost: a service was gone before its time, and nobody knows what of what it had was published.
        interrupted: by Ctrl-C, while it waited.
    """

    stores: str
    entries: int = 0
    unpublished: dict[str, int] = {}
    lost: bool = False
    interrupted: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether everything was published."""
        return not (self.unpublished or self.lost)

    def line(self) -> str:
        """For people: how many. Why others were not, is the warning's."""
        missing = sum(self.unpublished.values())
        if not (self.entries or missing or self.lost):
            return f"nothing was to be published to {self.stores}"
        text = f"{count(self.entries, 'entry')} published to {self.stores}"
        if missing:
            text += f", {missing} not"
        if self.lost:
            text += ", as far as is known"
        return text

    def warning(self) -> str:
        """What a build that did not publish everything says on stderr."""
        reasons = [f"{count(entries, 'entry')}: {why}" for why, entries in self.unpublished.items()]
        if self.lost:
            reasons.append("a compile service ended, and what it had published is not known")
        return f"headstart: warning: not everything was published to {self.stores}: {'; '.join(reasons)}"


class Publishing:
    """What one client publishes; to be made before anything is compiled.

    Args:
        client: whose. Some of its stores can be written.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        urls = parse_urls(client.settings.remote)
        self._stores = printable(" ".join(url.shown for url in urls if not url.read_only))
        # A service that others share has published before.
        self._before = client.count_remotes()

    def wait(self, say: Callable[[str], None], *, compiled: int = 0, kept_back: str = "") -> Published:
        """Until everything is published, or has failed, or nothing has happened for `PATIENCE`, or Ctrl-C.

        Args:
            say: told now and then how far it is.
            compiled: how many kernels were.
            kept_back: why none of these is for anybody else; empty: they are.
        """
        outcome = Published(self._stores, unpublished={})
        if not self._client.keeps:
            kept_back = "others can write the cache folder, so that they are kept in memory only"
        if kept_back:
            self._note(outcome, kept_back, compiled)
            return outcome
        try:
            counts, why = self._wait(say)
        except KeyboardInterrupt:
            outcome.interrupted = True
            counts, why = self._ask(1.0), "interrupted"
        has_lost = self._client.services_lost > 0
        outcome.lost = counts is None or has_lost
        before = None if has_lost or not self._before.done() else self._before.result()
        if counts is not None:
            outcome.entries += counts.published - (before.published if before else 0)
            for reason, entries in counts.unpublished.items():
                self._note(outcome, printable(reason), entries - (before.unpublished.get(reason, 0) if before else 0))
            if why:
                self._note(outcome, why, counts.offered - counts.settled)
            if not has_lost:
                # What other clients of the service offered counts as well, so that these may be more, never fewer.
                self._note(outcome, _NOT_KEPT, compiled - (counts.offered - (before.offered if before else 0)))
        return outcome

    def _wait(self, say: Callable[[str], None]) -> tuple[RemoteCounts | None, str]:
        """How it stands in the end, and why what still waits is not waited for."""
        counts = self._ask(PATIENCE)
        if counts is None:
            return None, ""
        target, settled = counts.offered, counts.settled
        begun = moved = said = time.monotonic()
        pause = _PAUSE
        while counts.settled < target:
            time.sleep(pause)
            pause = min(1.5 * pause, _MAX_PAUSE)
            now = time.monotonic()
            if counts.settled > settled:
                settled, moved = counts.settled, now
            elif now - moved >= PATIENCE:
                return counts, f"no answer for {PATIENCE:g} s"
            if now - said >= SAID_EVERY:
                said = now
                say(f"publishing to {self._stores}: {target - settled} entries to go, {now - begun:.0f} s")
            latest = self._ask(PATIENCE)
            if latest is None:
                return None, ""
            counts = latest
        return counts, ""  # what is offered from then on is another client's

    def _ask(self, seconds: float) -> RemoteCounts | None:
        try:
            return self._client.count_remotes().result(seconds)
        except NotInTime:
            return None

    @staticmethod
    def _note(outcome: Published, why: str, entries: int) -> None:
        if entries > 0:
            outcome.unpublished[why] = outcome.unpublished.get(why, 0) + entries


def summary(published: Published | None) -> dict[str, Any]:
    """What `--json` says of it."""
    if published is None:
        return {"published": 0, "unpublished": {}}
    return {"published": published.entries, "unpublished": published.unpublished}


def publishing_of(client: Client, required: bool) -> Publishing | None:
    """What a client publishes; None: there is no store that it could publish to.

    Raises:
        UsageError: there is none, and one is required.
    """
    urls = parse_urls(client.settings.remote)
    if any(not url.read_only for url in urls):
        return Publishing(client)
    if required:
        why = "every store of HEADSTART_REMOTE is read-only" if urls else "HEADSTART_REMOTE names no store"
        raise UsageError(f"nothing can be published: {why}")
    return None
