"""The seam between those who keep entries and those who want them: many entries by key."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import msgspec

from headstart.artifacts.entry import Entry


class StoreInfo(msgspec.Struct, frozen=True):
    """How much is in a store. `limit` and `bytes` are bytes; `path` is None in memory."""

    entries: int
    bytes: int
    limit: int | None
    path: Path | None


class PruneReport(msgspec.Struct, frozen=True):
    """What pruning did, in entries and their bytes.

    If `busy`, somebody else was pruning, nothing was done, and the other fields are zero.
    """

    removed: int = 0
    freed_bytes: int = 0
    kept: int = 0
    kept_bytes: int = 0
    busy: bool = False


class Store(Protocol):
    """Where entries are kept: what services, workers, adapters and recipes need of it.

    `tests/stores/test_contract.py` holds the contract that every store and every wrapper is run against.
    """

    def find(self, key: str, *, kind: str = "", request_digest: str = "") -> Entry | None:
        """The entry, which counts as a use of it; None if there is none that this headstart can read.

        One of another `kind`, or of another request, is set aside, if these are given. Never raises.
        """

    def publish(self, key: str, parts: Sequence[bytes]) -> Entry | None:
        """Keep the entry that `pack_entry` made; None if it was pruned at once.

        Raises:
            StoreUnavailable: it cannot be written. Nothing is left behind.
        """

    def set_aside(self, key: str, reason: str) -> None:
        """Make a damaged entry a miss and warn, once. For those who find out when they read an artifact."""

    def claim(self, key: str) -> AbstractContextManager[None]:
        """The right to compile `key`, among all who can be kept from it; waits for its holder."""

    def prune(self, limit_bytes: int | None = None) -> PruneReport:
        """Remove the entries used longest ago until at most `limit_bytes` are left; by default the store's limit.

        Raises:
            StoreUnavailable: the store is read-only.
        """


class Listed(Store, Protocol):
    """A store that can say all that it holds: what the command line needs."""

    def keys(self) -> Iterator[str]:
        """The keys of all entries, readable or not, in no order."""

    def entries(self) -> Iterator[Entry]:
        """All readable entries, in no order; does not count as a use of them."""

    def info(self) -> StoreInfo:
        """Count what is there."""

    def clear(self) -> PruneReport:
        """Remove every entry, damaged ones included.

        Raises:
            StoreUnavailable: the store is read-only.
        """
