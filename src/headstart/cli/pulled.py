"""`headstart run --bundle oci://…`: a bundle of a registry, as a file that runs take from, and add to.

    cache folder/pulled/<of the URL>/<manifest's digest>.bundle      each that was pulled

What was pulled by digest is not asked for again. Runs add what they miss to the file, as to any bundle: it is this
user's copy, and what the registry has stays as it is.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from headstart.cli import Failure, OutputFile, human_bytes, printable_lines
from headstart.errors import HeadstartError, UsageError
from headstart.system.folders import distrust
from headstart.system.locks import locked
from headstart.system.private import make_folder
from headstart.system.settings import Settings

KEPT = 90 * 86400.0  # seconds that a copy is kept after its last use
_COPY = re.compile(r"[0-9a-f]{64}\.bundle")
_SHORT = 16  # hexadecimal digits of a digest in a file's name


class BundleFile(OutputFile):
    """A bundle's file, or the URL of one in a registry, which stays a string."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        text = os.fspath(value)
        return text if text.startswith("oci://") else super().convert(value, param, ctx)


def pulled(url: str, settings: Settings, *, required: bool, quiet: bool = False) -> Path | None:
    """The copy of a bundle that a registry has, pulled if need be.

    Args:
        url: as for `headstart bundle pull`.
        settings: say where headstart's cache folder is.
        required: whether there has to be one.

    Returns:
        None: it cannot be had, and one line has said why. The last copy of the same tag is better than none.

    Raises:
        UsageError: the URL is wrong.
        Failure: it cannot be had, and is required.
    """
    from headstart.cli.transfer import transferring  # a program without such a bundle starts faster without
    from headstart.stores.remote.oci_bundles import by_digest, digest_in, pull_bundle, shown

    name = shown(url)
    folder = settings.cache_dir / "pulled" / hashlib.sha256(name.encode()).hexdigest()[:_SHORT]
    if why := distrust(folder, trusted=settings.trusts_cache_dir):
        _go_without(why, required=required)  # nor with a copy that is there already
        return None
    try:
        make_folder(folder)
        digest = digest_in(url)
        path = folder / f"{digest.removeprefix('sha256:')}.bundle"
        with locked(path):
            if not path.exists():
                with transferring(f"pulling {name}", quiet=quiet) as tell:
                    size = pull_bundle(by_digest(url, digest), path, tell).size
                click.echo(f"headstart: pulled {name}, {human_bytes(size)}", err=True)
        _note_use(path)
        _forget_old(folder)
        return path
    except UsageError:
        raise
    except (HeadstartError, OSError) as error:
        latest = _latest(folder)
        if latest is None:
            _go_without(str(error), required=required)
            return None
        click.echo(f"headstart: {printable_lines(str(error))}; the copy that was pulled last is used", err=True)
        return latest


def _go_without(why: str, *, required: bool) -> None:
    why = printable_lines(why)
    if required:
        raise Failure(f"--require-bundle: {why}")
    click.echo(f"headstart: {why}; the program runs without a bundle", err=True)


def _note_use(path: Path) -> None:
    with suppress(OSError):
        os.utime(path.with_name(f".{path.name}.lock"))


def _copies(folder: Path) -> list[tuple[float, Path]]:
    """With when each was last used, the latest last."""
    found = []
    with suppress(OSError):
        for path in folder.iterdir():
            if _COPY.fullmatch(path.name) is None:
                continue
            with suppress(OSError):
                found.append((path.with_name(f".{path.name}.lock").stat().st_mtime, path))
    return sorted(found)


def _latest(folder: Path) -> Path | None:
    return max(_copies(folder), default=(0.0, None))[1]


def _forget_old(folder: Path) -> None:
    now = time.time()
    for used, path in _copies(folder):
        if now - used > KEPT:
            with suppress(OSError):
                path.unlink()
                path.with_name(f".{path.name}.lock").unlink()
