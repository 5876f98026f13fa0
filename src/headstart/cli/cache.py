"""`headstart cache`: the store of compiled kernels under `HEADSTART_CACHE_DIR`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from headstart.cli import Failure, count, human_bytes, printable, using
from headstart.cli.kept import Kept, kept, remove
from headstart.errors import HeadstartError, UsageError
from headstart.stores import open_store
from headstart.stores.base import Listed, PruneReport
from headstart.stores.disk import DiskStore
from headstart.system.places import config_dir
from headstart.system.settings import Settings, parse_size


def _size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    try:
        size = parse_size(value)
    except UsageError:
        size = None
    if size is None or value.strip().isdecimal():  # 10 is as good as never meant as bytes
        raise click.BadParameter(
            f"{value!r} is not a size: expected one with its unit, such as 500MiB or 2GiB", ctx, param
        )
    return size


@click.group(short_help="Show, shrink or empty the cache of compiled kernels.")
def cache() -> None:
    """Show, shrink or empty the cache of compiled kernels.

    It lies under HEADSTART_CACHE_DIR, by default in the platform's cache folder, and is kept below
    HEADSTART_CACHE_LIMIT, by default 10GiB. Programs that use it meanwhile go on: what is gone is compiled again when
    it is needed.
    """


@cache.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def info(as_json: bool) -> None:
    """Show where the cache is and how much is in it."""
    store = _store()
    found, kinds = store.info(), _kinds(store)
    if as_json:
        click.echo(msgspec.json.encode({**msgspec.structs.asdict(found), "path": str(found.path), "kinds": kinds}))
        return
    limit = "no limit" if found.limit is None else f"limit {human_bytes(found.limit)}"
    held = ", ".join(count(number, kind) for kind, number in kinds.items())
    click.echo(f"{held}, {human_bytes(found.bytes)} ({limit}) in {found.path}")


@cache.command(short_help="Remove what was used longest ago.")
@click.option("--max-size", callback=_size, metavar="SIZE", help="What may stay, as 2GiB.")
@click.option("--remote", is_flag=True, help="In the stores that hosts share, not in this host's cache.")
@click.option("--older-than", metavar="TIME", help="With --remote: what may go, as 30d.")
def prune(max_size: int | None, remote: bool, older_than: str | None) -> None:
    """Remove the kernels that were used longest ago until at most --max-size is left, and all of earlier formats.

    With --remote, from those stores of HEADSTART_REMOTE that are folders or object stores: what was written, in a
    folder used, longer ago than --older-than. Redis drops what is older than the ttl of its URL; a registry has rules
    of its own for that.
    """
    if remote:
        if older_than is None or max_size is not None:
            raise UsageError("--remote takes --older-than, as 30d, and no --max-size")
        _prune_remotes(older_than)
        return
    if older_than is not None or max_size is None:
        raise UsageError("expected --max-size, as 2GiB; --older-than is for --remote")
    store = _store()
    _say(store.prune(max_size))
    _drop_earlier(store)


@cache.command()
@click.option("--all", "everything", is_flag=True, help="All else that headstart keeps in the cache folder, too.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def clear(everything: bool, yes: bool) -> None:
    """Remove every kernel, of earlier formats too, and name what is left. Asks first.

    With --all the records of programs go as well, failures that are remembered, bundles that were pulled, and what is
    known of toolchains. Keys, which lie in the configuration folder, stay in any case.
    """
    store = _store()
    folder = Settings.load().cache_dir
    found, others = store.info(), kept(folder)
    if not yes:
        what = f"{count(found.entries, 'kernel')} ({human_bytes(found.bytes)}) from {found.path}"
        besides = f", and from {folder} {_listed(others)}" if everything and others else ""
        click.confirm(f"Remove {what}{besides}?", abort=True)
    _say(store.clear())
    _drop_earlier(store)
    if not everything:
        if others:
            click.echo(f"left in {folder}: {_listed(others)}; --all removes these too")
        return
    with using(folder):
        removed = remove(folder)
    if removed:
        click.echo(f"removed {_listed(removed)} from {folder}")
    if keys := _keys_folder():
        click.echo(f"keys stay, in {keys}")


@cache.command()
@click.argument("kernel")
def retry(kernel: str) -> None:
    """Have KERNEL tried again, which crashed the compiler or took too long twice.

    KERNEL is a kernel's name, or the beginning of a key. A kernel that failed so is remembered, for the Triton that it
    failed with, and a program that asks for it gets the same error at once.
    """
    from headstart.stores.failures import Failures

    forgotten = Failures(Settings.load().cache_dir).forget(kernel)
    for each in forgotten:
        click.echo(f"{each.kernel} ({each.target}) will be tried again; {each.failure.summary}")
    if not forgotten:
        raise Failure(f"no failure of {kernel!r} is remembered")


def _listed(several: Sequence[Kept]) -> str:
    return ", ".join(map(str, several))


def _keys_folder() -> Path | None:
    """Where keys are, if there are any."""
    try:
        folder = config_dir() / "keys"
    except HeadstartError:  # this user has no such folder
        return None
    return folder if folder.is_dir() else None


def _prune_remotes(older_than: str) -> None:
    """Each by itself: that one cannot be reached is a failure once all were tried."""
    from headstart.stores.remote import open_remote, prunable
    from headstart.stores.remote.base import RemoteError
    from headstart.stores.remote.urls import parse_urls, seconds_of
    from headstart.system.configuration import lookup

    seconds = seconds_of(older_than, "--older-than", "headstart cache prune")
    urls = [url for url in parse_urls(lookup("HEADSTART_REMOTE")) if not url.read_only]
    failed: RemoteError | None = None
    done = 0
    for url in urls:
        opened = open_remote(url)
        store = prunable(opened)
        if store is None:
            continue
        done += 1
        try:
            pruned = store.prune(seconds)
        except RemoteError as error:
            click.echo(f"headstart: {printable(str(error))}", err=True)
            failed = failed or error
        else:
            removed = f"removed {count(pruned.removed, 'entry')} ({human_bytes(pruned.freed_bytes)})"
            click.echo(f"{printable(url.shown)}: {removed}, {pruned.kept} left ({human_bytes(pruned.kept_bytes)})")
        finally:
            opened.close()
    if failed is not None:
        raise Failure(failed.summary)
    if not done:
        raise UsageError("there is no remote to prune: HEADSTART_REMOTE names no folder or object store to be written")


def _kinds(store: Listed) -> dict[str, int]:
    """How many readable entries of each kind there are, kernels first."""
    found = Counter(entry.header.kind for entry in store.entries())
    return {"kernel": found.pop("kernel", 0), **dict(sorted(found.items()))}


def _store() -> DiskStore:
    settings = Settings.load()
    store = open_store(settings.cache_dir, limit_bytes=settings.store_limit, trusted=settings.trusts_cache_dir)
    if why := store.refusal():
        raise UsageError(why)
    return store


def _drop_earlier(store: DiskStore) -> None:
    """What other versions of headstart have left, and this one does not use."""
    folders = store.earlier()
    if folders:
        dropped = store.drop_earlier()
        places = ", ".join(map(str, folders))
        freed = human_bytes(dropped.freed_bytes)
        click.echo(f"removed {count(dropped.removed, 'kernel')} ({freed}) of earlier formats from {places}")


def _say(report: PruneReport) -> None:
    if report.busy:
        raise Failure("another process is pruning this cache at the moment; nothing was removed")
    removed = f"removed {count(report.removed, 'kernel')} ({human_bytes(report.freed_bytes)})"
    click.echo(f"{removed}, {report.kept} left ({human_bytes(report.kept_bytes)})")
