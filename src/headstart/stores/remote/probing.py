"""What a person wants to know of a remote: whether it can be reached, written, read, and how long that takes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from hashlib import sha256
from typing import NamedTuple

from headstart.stores.remote import OPERATION_SECONDS, open_remote
from headstart.stores.remote.base import Remote, RemoteError
from headstart.stores.remote.urls import RemoteUrl
from headstart.stores.remote.wrappers import DeadlineRemote

PROBE_BYTES = 16 << 10  # about a small kernel's entry


class Probed(NamedTuple):
    """What came of trying one remote.

    Attributes:
        name: its URL without credentials.
        steps: what was done, and the seconds that it took, in order.
        trusted: whether what is there counts without a signature.
        error: what is wrong; None: nothing.
        left: a key that could not be removed again; empty: none.
    """

    name: str
    steps: dict[str, float]
    trusted: bool
    error: RemoteError | None = None
    left: str = ""


def probe(url: RemoteUrl) -> Probed:
    """Look for a key that is not there; then write, read and delete it, unless the remote is only read.

    Raises:
        UsageError: its library is not installed, or an option is wrong.
    """
    remote: Remote = DeadlineRemote(open_remote(url), OPERATION_SECONDS)
    key, blob = sha256(os.urandom(32)).hexdigest(), os.urandom(PROBE_BYTES)
    steps: dict[str, float] = {}
    error: RemoteError | None = None
    left = ""

    def step(name: str, what: Callable[[], object]) -> None:
        begun = time.monotonic()
        what()
        steps[name] = time.monotonic() - begun

    try:
        step("reached", lambda: remote.get_many([key]))
        if not url.read_only:
            left = key  # a write that failed may have worked
            step("wrote", lambda: remote.put(key, blob))
            step("read", lambda: _check(remote, key, blob))
            step("deleted", lambda: remote.delete(key))
            left = ""
            if url.claims:
                step("claimed", lambda: _claim(remote, key))
    except RemoteError as why:
        error = why
        if left and "wrote" not in steps:
            left = ""
    finally:
        trusted = remote.trusted
        remote.close()
    return Probed(url.shown, steps, trusted, error, left)


def _check(remote: Remote, key: str, blob: bytes) -> None:
    found = remote.get_many([key]).get(key)
    if found is None:
        raise RemoteError(f"{remote.name}: what was written is not there", advice="see whether it drops values at once")
    if found != blob:
        raise RemoteError(f"{remote.name}: what was written came back as something else")


def _claim(remote: Remote, key: str) -> None:
    if remote.claim(key, 10.0) is None:
        raise RemoteError(f"{remote.name}: this kind of remote has no claims", advice="take claims out of its URL")
    remote.release(key)
