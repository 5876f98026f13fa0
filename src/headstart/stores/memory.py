"""Entries in a dict: for tests, and for a tier in front of a slower store."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

from headstart.artifacts.entry import Entry
from headstart.errors import DamagedError, FutureVersionError, PastVersionError
from headstart.stores.base import PruneReport, StoreInfo

_log = logging.getLogger("headstart")


class MemoryStore:
    """Entries as bytes, used longest ago first. Belongs to one thread."""

    def __init__(self, *, limit_bytes: int | None = None) -> None:
        self.limit_bytes = limit_bytes
        self._entries: dict[str, bytes] = {}  # used longest ago first

    def find(self, key: str, *, kind: str = "", request_digest: str = "") -> Entry | None:
        """See `Store`."""
        entry = self._open(key)
        if entry is not None and not entry.answers(kind, request_digest):
            self.set_aside(key, f"it holds another entry, {entry!r}")
            return None
        if entry is not None:
            self._entries[key] = self._entries.pop(key)
        return entry

    def publish(self, key: str, parts: Sequence[bytes]) -> Entry | None:
        """See `Store`."""
        self._entries.pop(key, None)
        self._entries[key] = b"".join(parts)
        return Entry.from_bytes(self._entries[key])

    def set_aside(self, key: str, reason: str) -> None:
        """See `Store`."""
        if self._entries.pop(key, None) is not None:
            _log.warning("%s is damaged and will be compiled again: %s", key, reason)

    def claim(self, key: str) -> AbstractContextManager[None]:
        """See `Store`. It belongs to one thread, which competes with nobody."""
        return nullcontext()

    def keys(self) -> Iterator[str]:
        """See `Store`."""
        return iter(list(self._entries))

    def entries(self) -> Iterator[Entry]:
        """See `Store`."""
        for key in self.keys():
            entry = self._open(key)
            if entry is not None:
                yield entry

    def info(self) -> StoreInfo:
        """See `Store`."""
        return StoreInfo(len(self._entries), sum(map(len, self._entries.values())), self.limit_bytes, None)

    def prune(self, limit_bytes: int | None = None) -> PruneReport:
        """See `Store`."""
        limit = self.limit_bytes if limit_bytes is None else limit_bytes
        before = self.info()
        kept_bytes = before.bytes
        while limit is not None and kept_bytes > limit:
            kept_bytes -= len(self._entries.pop(next(iter(self._entries))))
        kept = len(self._entries)
        return PruneReport(before.entries - kept, before.bytes - kept_bytes, kept, kept_bytes)

    def clear(self) -> PruneReport:
        """See `Store`."""
        return self.prune(0)

    def _open(self, key: str) -> Entry | None:
        data = self._entries.get(key)
        if data is None:
            return None
        try:
            entry = Entry.from_bytes(data)
            if entry.key == key:
                return entry
            self.set_aside(key, f"it holds another entry, {entry!r}")
        except (FutureVersionError, PastVersionError):
            pass
        except DamagedError as error:
            self.set_aside(key, error.reason)
        return None
