"""Several remotes, the nearest first: looked at in order, and what a far one had is copied into the nearer ones."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from headstart.errors import UsageError
from headstart.stores.remote.base import Progress, RemoteError
from headstart.stores.remote.wrappers import CountingRemote


class Found(NamedTuple):
    """A blob that was accepted, and where it was.

    Attributes:
        blob: as it was there.
        tier: the number of the remote that had it, 0 for the nearest.
    """

    blob: bytes
    tier: int


# Given a key, its blob, and whether it counts without a signature; says whether it is what it should be.
Accept = Callable[[str, bytes, bool], bool]


class Remotes:
    """Several remotes as one, which is a `Remote` itself.

    A blob that its reader does not accept is not there, so that a farther one may have a better one. Only what was
    accepted is copied: else a far remote that others can write would fill a near one that is trusted.

    Attributes:
        tiers: the remotes, nearest first, with their counters.
        progress: of calls under way.
    """

    def __init__(self, tiers: Sequence[CountingRemote], progress: Progress | None = None) -> None:
        self.tiers = tuple(tiers)
        self.progress = progress or Progress()

    @property
    def name(self) -> str:
        """The names of all."""
        return " ".join(each.name for each in self.tiers)

    @property
    def trusted(self) -> bool:
        """Whether what any of them has counts without a signature."""
        return all(each.trusted for each in self.tiers)

    @property
    def writable(self) -> bool:
        """Whether any of them is."""
        return any(each.writable for each in self.tiers)

    def find_many(self, keys: Sequence[str], accept: Accept | None = None, *, again: bool = False) -> dict[str, Found]:
        """What of `keys` is in any of them; each is asked for what those before it lack. Nothing is copied.

        Args:
            accept: looks at each blob; without it, all are accepted.
            again: they were missing before, and are not counted as that again.

        Raises:
            RemoteError: none of them answered.
        """
        found: dict[str, Found] = {}
        errors = []
        for number, tier in enumerate(self.tiers):
            missing = [key for key in dict.fromkeys(keys) if key not in found]
            if not missing:
                break
            trusted = tier.trusted  # before the blobs are read; see `Remote`
            try:
                blobs = tier.get_again(missing) if again else tier.get_many(missing)
            except RemoteError as error:
                errors.append(error)
                continue
            for key, blob in blobs.items():
                if accept is None or accept(key, blob, trusted):
                    found[key] = Found(blob, number)
        if errors and len(errors) == len(self.tiers):
            raise errors[0]
        return found

    def keep_near(self, found: Mapping[str, Found]) -> int:
        """Copy what a far one had into the nearer ones; returns how many copies were made. Never raises."""
        copies = 0
        for key, (blob, number) in found.items():
            for tier in self.tiers[:number]:
                if tier.writable:
                    with contextlib.suppress(RemoteError, UsageError):
                        tier.put(key, blob)
                        copies += 1
        return copies

    def probe(self, key: str) -> None:
        """Find out whether any of them answers, with a key that nobody has; it is not counted.

        Raises:
            RemoteError: none does.
        """
        errors = []
        for tier in self.tiers:
            try:
                tier.probe(key)
            except RemoteError as error:
                errors.append(error)
        if errors and len(errors) == len(self.tiers):
            raise errors[0]

    def get_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        """See `Remote`. Copies at once, and accepts everything."""
        found = self.find_many(keys)
        self.keep_near(found)
        return {key: each.blob for key, each in found.items()}

    def put(self, key: str, blob: bytes) -> None:
        """See `Remote`. It is kept in all that can be written.

        Raises:
            RemoteError: none of them took it.
        """
        self._each(lambda tier: tier.put(key, blob), any_is_enough=True)

    def claim(self, key: str, seconds: float) -> bool | None:
        """See `Remote`. Among the hosts of the farthest one that has claims: these are the most."""
        for tier in reversed(self.tiers):
            if tier.writable:
                with contextlib.suppress(RemoteError):
                    answer = tier.claim(key, seconds)
                    if answer is not None:
                        return answer
        return None

    def release(self, key: str) -> None:
        """See `Remote`."""
        self._each(lambda tier: tier.release(key), any_is_enough=True)

    def delete(self, key: str) -> None:
        """See `Remote`.

        Raises:
            RemoteError: one of them may still have it.
        """
        self._each(lambda tier: tier.delete(key), any_is_enough=False)

    def close(self) -> None:
        """See `Remote`."""
        for tier in self.tiers:
            tier.close()

    def _each(self, what: Callable[[CountingRemote], None], *, any_is_enough: bool) -> None:
        errors = []
        writable = [tier for tier in self.tiers if tier.writable]
        for tier in writable:
            try:
                what(tier)
            except RemoteError as error:
                errors.append(error)
        if errors and (len(errors) == len(writable) or not any_is_enough):
            raise errors[0]
