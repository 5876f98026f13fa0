"""What the threads of a remote process share: local stores, keys, what was refused, and the way back to the service."""

from __future__ import annotations

import os
import socket
import threading
from collections import Counter
from collections.abc import Callable

import msgspec

from headstart import wire
from headstart.errors import DamagedError, FutureVersionError, PastVersionError
from headstart.stores import open_store
from headstart.stores.disk import DiskStore
from headstart.stores.remote.base import plain
from headstart.stores.remote.sealing import NotTrusted, Signer, Verifier, keyring_in, unseal
from headstart.stores.remote.tiers import Remotes

_MOST_REASONS = 4  # why entries were not published, that are told apart
MOST_SAID = 1000  # characters of one line to a person: the names of a few remotes, what is wrong, and what to do


class Replies:
    """Sends to the service, from any thread. One that is gone is told nothing."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._lock = threading.Lock()

    def say(self, message: msgspec.Struct) -> None:
        """Send a message."""
        try:
            with self._lock:
                self._socket.sendall(wire.frame(message))
        except OSError:
            pass  # it is gone, which the thread that reads notices


class Shared:
    """What all threads need.

    Args:
        settings: what the process serves.
        remotes: the stores of other hosts.
        say: tells the service something.

    Attributes:
        signer: of what goes out.
        unfit: keys under which a remote has something that is of no use here, and may be replaced.
    """

    def __init__(self, settings: wire.RemoteSettings, remotes: Remotes, say: Callable[[msgspec.Struct], None]) -> None:
        self.settings = settings
        self.remotes = remotes
        self.say = say
        keyring = keyring_in(settings.config_dir)
        self.signer = Signer(keyring, settings.key)
        self._verifier = Verifier(keyring, lambda text: self.tell(text, quiet=True))
        self.unfit: set[str] = set()
        self._stores: dict[tuple[bytes, bool], DiskStore] = {}
        self._told: set[str] = set()
        self._counts: Counter[str] = Counter()
        self._unpublished: Counter[str] = Counter()  # why, and how many
        self._lock = threading.Lock()
        self._saying = threading.Lock()

    def store(self, cache_dir: bytes, trusted: bool) -> DiskStore:
        """The local store in a cache folder."""
        with self._lock:
            store = self._stores.get((cache_dir, trusted))
            if store is None:
                store = open_store(os.fsdecode(cache_dir), trusted=trusted, warn=self.tell)
                self._stores[cache_dir, trusted] = store
            return store

    def accepted(self, wanted: wire.Wanted, blob: bytes, trusted: bool) -> bytes | None:
        """The entry in what a remote had; None if it is of no use here. `trusted`: it needs no signature."""
        signed = not (trusted or self.settings.trusts_all)
        try:
            return unseal(
                wanted.key,
                blob,
                self._verifier,
                signed=signed,
                kind=wanted.kind,
                request_digest=wanted.request_digest,
            )
        except (FutureVersionError, PastVersionError):
            return None  # fine for others
        except DamagedError as error:
            self._refuse(
                wanted.key, "damaged", f"what is there for {wanted.key[:12]} is damaged ({plain(error.reason)})"
            )
        except NotTrusted as error:
            self._refuse(
                wanted.key,
                "untrusted",
                f"entries there are not used, because of the first: {plain(error)}. headstart key trust has a key "
                "count; ?trust=all in the URL has entries that carry no code count without one",
            )
        return None

    def _refuse(self, key: str, kind: str, why: str) -> None:
        self.count("refused")
        self.unfit.add(key)
        if self._is_first(kind):
            self.tell(f"{self.remotes.name}: {why}")

    def tell(self, text: str, quiet: bool = False) -> None:
        """Have a person told, or, if `quiet`, the log."""
        self.say(says(text, quiet))

    def tell_once(self, text: str) -> None:
        """Have the log told."""
        if self._is_first(text):
            self.tell(text, quiet=True)

    def _is_first(self, text: str) -> bool:
        with self._lock:
            is_first = text not in self._told
            self._told.add(text)
            return is_first

    def count(self, what: str, by: int = 1) -> None:
        """One more `"refused"`, or `"dropped"`."""
        with self._lock:
            self._counts[what] += by

    def settled(self, *, why_not: str = "", published: bool = True) -> None:
        """It is known what became of an entry that was offered.

        Args:
            why_not: why no remote has taken it; empty: one has,
            published: now, or before.
        """
        with self._lock:
            self._counts["settled"] += 1
            if why_not:
                self._counts["dropped"] += 1
                is_known = why_not in self._unpublished or len(self._unpublished) < _MOST_REASONS
                self._unpublished[why_not if is_known else "other reasons"] += 1
            else:
                self._counts["published"] += published

    def say_counts(self) -> None:
        """Tell the service how it stands."""
        with self._saying:  # what was counted first is said first
            self.say(self._count_all())

    def _count_all(self) -> wire.RemoteCounts:
        tiers = [
            wire.RemoteReport(
                tier.name,
                tier.hits,
                tier.misses,
                tier.hit_bytes,
                tier.puts,
                tier.put_bytes,
                tier.errors,
                tier.seconds,
            )
            for tier in self.remotes.tiers
        ]
        with self._lock:
            return wire.RemoteCounts(
                tiers,
                self._counts["refused"],
                self._counts["dropped"],
                settled=self._counts["settled"],
                published=self._counts["published"],
                unpublished=dict(self._unpublished),
            )


def says(text: str, quiet: bool = False) -> wire.RemoteSays:
    """What a person is told, perhaps on a terminal: parts of it may be of whoever can write a remote."""
    return wire.RemoteSays(plain(text, most=MOST_SAID), quiet)
