"""Stores made of stores: each is one itself, so that they can be put into one another."""

from __future__ import annotations

import errno
import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from headstart.artifacts.entry import Entry
from headstart.errors import DamagedError, StoreUnavailable
from headstart.stores.base import PruneReport, Store

_log = logging.getLogger("headstart")


class ReadOnlyStore:
    """Finds what another store has, and changes nothing in it.

    A damaged entry is a miss from then on, for this object, and stays where it is.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._damaged: set[str] = set()

    def find(self, key: str, *, kind: str = "", request_digest: str = "") -> Entry | None:
        """See `Store`. One of another kind or request is a miss."""
        entry = None if key in self._damaged else self._store.find(key)
        return entry if entry is not None and entry.answers(kind, request_digest) else None

    def publish(self, key: str, parts: Sequence[bytes]) -> Entry | None:
        """Raises `StoreUnavailable`."""
        raise _read_only()

    def set_aside(self, key: str, reason: str) -> None:
        """See `Store`."""
        if key not in self._damaged:
            self._damaged.add(key)
            _log.warning("%s is damaged and will be compiled again: %s", key, reason)

    def claim(self, key: str) -> AbstractContextManager[None]:
        """Nobody who cannot publish needs to wait."""
        return nullcontext()

    def prune(self, limit_bytes: int | None = None) -> PruneReport:
        """Raises `StoreUnavailable`."""
        raise _read_only()


class TieredStore:
    """A store that is near, and one behind it that is larger, slower, or shared by more.

    What is found behind is kept near. What is published goes to both; that the one behind does not take it is a
    warning, once, and nothing that a compile fails for. Claims and pruning concern the near one: the other has owners
    of its own.
    """

    def __init__(self, near: Store, far: Store) -> None:
        self._near = near
        self._far = far
        self._has_warned = False

    def find(self, key: str, *, kind: str = "", request_digest: str = "") -> Entry | None:
        """See `Store`."""
        entry = self._near.find(key, kind=kind, request_digest=request_digest)
        if entry is not None:
            return entry
        entry = self._far.find(key, kind=kind, request_digest=request_digest)
        if entry is None:
            return None
        try:
            entry.verify()  # nobody would look for damage behind once it is near
            return self._near.publish(key, [entry.raw()]) or entry
        except DamagedError as error:
            self._far.set_aside(key, error.reason)
            return None
        except StoreUnavailable:
            return entry

    def publish(self, key: str, parts: Sequence[bytes]) -> Entry | None:
        """See `Store`."""
        entry = self._near.publish(key, parts)
        try:
            self._far.publish(key, parts)
        except StoreUnavailable as error:
            if not self._has_warned:
                self._has_warned = True
                _log.warning("kernels are kept here only: %s", error)
        return entry

    def set_aside(self, key: str, reason: str) -> None:
        """See `Store`. Which of the two has the damaged one is not known."""
        self._near.set_aside(key, reason)
        self._far.set_aside(key, reason)

    def claim(self, key: str) -> AbstractContextManager[None]:
        """See `Store`."""
        return self._near.claim(key)

    def prune(self, limit_bytes: int | None = None) -> PruneReport:
        """See `Store`."""
        return self._near.prune(limit_bytes)


class CountingStore:
    """Counts what is asked of another store.

    Attributes:
        hits, misses: answers of `find`.
        published: entries, and
        published_bytes: their size.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.hits = self.misses = self.published = self.published_bytes = 0

    def find(self, key: str, *, kind: str = "", request_digest: str = "") -> Entry | None:
        """See `Store`."""
        entry = self._store.find(key, kind=kind, request_digest=request_digest)
        if entry is None:
            self.misses += 1
        else:
            self.hits += 1
        return entry

    def publish(self, key: str, parts: Sequence[bytes]) -> Entry | None:
        """See `Store`."""
        entry = self._store.publish(key, parts)
        self.published += 1
        self.published_bytes += sum(map(len, parts))
        return entry

    def set_aside(self, key: str, reason: str) -> None:
        """See `Store`."""
        self._store.set_aside(key, reason)

    def claim(self, key: str) -> AbstractContextManager[None]:
        """See `Store`."""
        return self._store.claim(key)

    def prune(self, limit_bytes: int | None = None) -> PruneReport:
        """See `Store`."""
        return self._store.prune(limit_bytes)


def _read_only() -> StoreUnavailable:
    return StoreUnavailable(Path("a store that is only read"), OSError(errno.EROFS, "Read-only"))
