"""Many entries by key, behind one protocol.

    base        the protocol `Store`
    disk        entries as files; memory: in a dict
    wrappers    read-only, tiered, counting: stores made of stores
    failures    what crashed and is not tried again, beside the entries

`open_store` makes the one that a cache folder has.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headstart.stores.disk import DiskStore


def open_store(
    cache_dir: str | os.PathLike[str],
    *,
    limit_bytes: int | None = None,
    trusted: bool = False,
    warn: Callable[[str], None] | None = None,
) -> DiskStore:
    """The store in a cache folder: the one place where it is decided what that is.

    Args:
        cache_dir: the folder; made when something is published.
        limit_bytes: what `prune` keeps; None: everything.
        trusted: use the folder and all that is in it, whoever else can write there.
        warn: told what a person should know; by default, the log.
    """
    from headstart.stores.disk import DiskStore

    return DiskStore(cache_dir, limit_bytes=limit_bytes, trusted=trusted, warn=warn)
