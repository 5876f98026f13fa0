"""Stores that several hosts share, in one protocol: bytes by key.

    base        the protocol `Remote`, its error, and what is too large
    urls        `HEADSTART_REMOTE` taken apart: `RemoteUrl`
    folder      file:// (a mounted folder)
    redis       redis://, rediss://
    objects     s3://, gs://, az://
    references, credentials, transport, registry, oci, oci_bundles
                oci:// taken apart; who this user is; HTTP; tokens, blobs and manifests; entries; bundles
    wrappers    read-only, counting, with a deadline, left alone for a while once it fails
    tiers       several, the nearest first

They run in processes of the service's and of the command line's, never in the program's. Each kind's library is an
extra (`headstart[redis]`, `[s3]`, `[oci]`), and is imported when such a remote is opened.
"""

from __future__ import annotations

from collections.abc import Callable

from headstart.stores.remote.base import Progress, Prunable, Remote
from headstart.stores.remote.tiers import Remotes
from headstart.stores.remote.urls import RemoteUrl, parse_urls
from headstart.stores.remote.wrappers import BreakerRemote, CountingRemote, DeadlineRemote, ReadOnlyRemote

OPERATION_SECONDS = 10.0  # that one call of a store may take, whatever the store's own time limits say


def open_remotes(
    setting: str, *, warn: Callable[[str], None] | None = None, operation_seconds: float = OPERATION_SECONDS
) -> Remotes:
    """The remotes of `HEADSTART_REMOTE`, nearest first, each counted, with a deadline, and left alone when it fails.

    Nothing is connected to before the first call.

    Args:
        setting: URLs separated by blanks.
        warn: told once when a remote fails, and once when it is back; by default, the log.
        operation_seconds: that one call may take.

    Raises:
        UsageError: a URL is wrong, or the extra that it needs is not installed.
    """
    opened, progress = [], Progress()
    for url in parse_urls(setting):
        remote: Remote = BreakerRemote(DeadlineRemote(open_remote(url, progress), operation_seconds), warn=warn)
        opened.append(CountingRemote(ReadOnlyRemote(remote) if url.read_only else remote))
    return Remotes(opened, progress)


def open_remote(url: RemoteUrl, progress: Progress | None = None) -> Remote:
    """The store of one URL, and nothing around it.

    Args:
        progress: told of what is answered while a call is under way, by stores that are asked for each key by itself.

    Raises:
        UsageError: the extra that it needs is not installed, or an option is wrong.
    """
    if url.scheme == "file":
        from headstart.stores.remote.folder import FolderRemote

        return FolderRemote(url.path, trust_all=url.trust_all, signed_only=url.signed_only)
    if url.scheme in ("redis", "rediss"):
        from headstart.stores.remote.redis import RedisRemote

        return RedisRemote(url)
    if url.scheme == "oci":
        from headstart.stores.remote.oci import OciRemote

        return OciRemote(url, progress)
    from headstart.stores.remote.objects import ObjectsRemote

    return ObjectsRemote(url, progress)


def prunable(remote: Remote) -> Prunable | None:
    """A store of `open_remote`'s, if it can be pruned."""
    from headstart.stores.remote.folder import FolderRemote

    if isinstance(remote, FolderRemote):
        return remote
    from headstart.stores.remote.objects import ObjectsRemote

    return remote if isinstance(remote, ObjectsRemote) else None
