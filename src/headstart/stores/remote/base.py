"""The seam between those who keep entries for other hosts and those who want them: bytes by key.

Guarantees of every `Remote`, which `tests/stores/remote/test_remote_contract.py` holds them to:

What is put is got whole, or not at all, by every host. Of two that put one key at once either stays: they are the same
entry.

What cannot be reached, refuses, or answers nonsense is a `RemoteError`, whose text has no credentials; a key that is
not there is none. No reply takes more memory than `MAX_REPLY_BYTES`, whatever a server says.

This code assumes that keys are SHA-256 in hexadecimal, and that whoever gets a blob verifies it: a remote is not
trusted with more than bytes.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import msgspec

from headstart.errors import HeadstartError, UsageError

MAX_BLOB_BYTES = 64 << 20  # of one entry; a kernel's is about 20 KB to 1 MB
MAX_REPLY_BYTES = 256 << 20  # of all that one `get_many` gives

_LINE = 200  # characters
_KEY = re.compile(r"[0-9a-f]{64}")


class RemoteError(HeadstartError):
    """A remote cannot be reached, or refuses.

    Attributes:
        summary: what happened and where, without credentials.
        advice: what to do next; may be empty.
        lasting: to try again soon is no use: a wrong password, no such bucket.
    """

    def __init__(self, summary: str, *, advice: str = "", lasting: bool = False) -> None:
        self.summary = summary
        self.advice = advice
        self.lasting = lasting
        super().__init__(f"{summary}; {advice}" if advice else summary)

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(type(self), self.summary, advice=self.advice, lasting=self.lasting), ()


class Progress:
    """That a call which is under way has come further: for who waits only as long as something happens.

    Attributes:
        listener: called for each key of a `get_many` that is answered by itself, in any thread; None: nobody.
    """

    def __init__(self) -> None:
        self.listener: Callable[[], None] | None = None

    def __call__(self) -> None:
        """One more."""
        if self.listener is not None:
            self.listener()


class Pruned(msgspec.Struct, frozen=True):
    """What pruning a remote did, in entries and their bytes."""

    removed: int = 0
    freed_bytes: int = 0
    kept: int = 0
    kept_bytes: int = 0


class Remote(Protocol):
    """Where several hosts keep entries. Its methods may be called from several threads."""

    @property
    def name(self) -> str:
        """The URL without credentials, for people."""

    @property
    def trusted(self) -> bool:
        """Whether what is there counts without a signature.

        Asked before the blobs that it is about: it becomes true, for a folder that is private from now on, and never
        false again.
        """

    @property
    def writable(self) -> bool:
        """Whether `put`, `claim` and `delete` may be tried."""

    def get_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        """The blobs of those keys that are there, in as few round trips as the store can.

        One that is larger than `MAX_BLOB_BYTES` is not there.

        Raises:
            RemoteError: nothing can be said of one of them.
        """

    def put(self, key: str, blob: bytes) -> None:
        """Keep a blob under a key that is absent, or has the same.

        Raises:
            RemoteError: it is not kept.
            UsageError: it is larger than `MAX_BLOB_BYTES`.
        """

    def claim(self, key: str, seconds: float) -> bool | None:
        """Take the right to compile `key` for so long. True: ours now; False: somebody's; None: there are no claims.

        Raises:
            RemoteError: nobody knows.
        """

    def release(self, key: str) -> None:
        """Give back a claim of ours; fine if it is gone.

        Raises:
            RemoteError: it stays until its time is over.
        """

    def delete(self, key: str) -> None:
        """Remove what is under a key; fine if nothing is.

        Raises:
            RemoteError: it may still be there.
        """

    def close(self) -> None:
        """Let go of connections. Never raises."""


class Prunable(Remote, Protocol):
    """A remote that does not drop old entries by itself."""

    def prune(self, older_than: float) -> Pruned:
        """Remove entries that were written, or where that is known used, more than `older_than` seconds ago.

        Age is told by the store's own clock, not by this host's.

        Raises:
            RemoteError: not all could be looked at, or removed.
        """


def check_key(key: str) -> str:
    """The key, which becomes part of names in stores.

    Raises:
        UsageError: it is none.
    """
    if _KEY.fullmatch(key) is None:
        raise UsageError(f"expected a key of 64 hexadecimal digits, got {key!r}")
    return key


def check_blob(blob: bytes) -> bytes:
    """The blob, which others must be willing to get.

    Raises:
        UsageError: it is too large.
    """
    if len(blob) > MAX_BLOB_BYTES:
        raise UsageError(f"an entry of {len(blob)} bytes is not kept in remotes, which take {MAX_BLOB_BYTES}")
    return blob


def missing(name: str, package: str, extra: str) -> UsageError:
    """That a remote's library is not installed."""
    return UsageError(f"{name} needs the package {package}: pip install 'headstart[{extra}]'")


_PART_OF_WORDS = 4  # characters: what is shorter is in many a word, and then says nothing


def plain(text: object, secrets: Iterable[str] = (), most: int = _LINE) -> str:
    """One line, of at most `most` characters, of what a library or a server said, without secrets, for people.

    A server may repeat what it was sent: Redis names the arguments of a command that it does not know.
    """
    line = next((line.strip() for line in str(text).splitlines() if line.strip()), "")
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        if len(secret) < _PART_OF_WORDS:
            line = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "***", line)
        else:
            line = line.replace(secret, "***")
    line = line[: most + 1]  # of what may be megabytes
    line = line if line.isprintable() else ascii(line)[1:-1]
    return line if len(line) <= most else f"{line[: most - 1]}…"
