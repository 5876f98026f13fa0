"""`headstart records`: what headstart wrote down of the programs that `headstart run` ran."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from headstart.artifacts.manifest import Manifest
from headstart.cli import count, human_bytes, json_line, printable, using
from headstart.cli.kept import RECORD, remove
from headstart.errors import DamagedError, UsageError
from headstart.system.folders import distrust
from headstart.system.locks import locked
from headstart.system.private import Swept
from headstart.system.settings import Settings


class Record(NamedTuple):
    """The record of one program. `manifest` is None, and `why` says so, if it cannot be read."""

    path: Path
    bytes: int
    manifest: Manifest | None
    why: str = ""

    @property
    def programs(self) -> list[str]:
        """What ran, as `headstart run` was given it: an absolute path, or `-m module FILE`."""
        found = () if self.manifest is None else self.manifest.origins
        return list(dict.fromkeys(each.program for each in found if each.program))

    def is_of(self, program: str) -> bool:
        """Whether `program` is a name of it: its path, as `headstart run` takes it, `-m module`, or the file's name."""
        if program in (self.path.name, self.path.stem, os.fspath(self.path)):
            return True
        if program.startswith("-m "):
            return any(each == program or each.startswith(f"{program} ") for each in self.programs)
        return any(each in (program, os.path.realpath(program)) for each in self.programs)


@click.group(short_help="List and forget what headstart wrote down of programs.")
def records() -> None:
    """List and forget what `headstart run` wrote down of programs, and replays at their next start.

    They are manifests in the cache folder: `headstart manifest show` looks into one, `headstart build` compiles it.
    """


@records.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per record.")
def list_(as_json: bool) -> None:
    """Show each record: the program, what was compiled for it, and when it last ran."""
    found = list(_records())
    for each in found:
        click.echo(json_line(fields(each)) if as_json else _line(each))
    if not found and not as_json:
        click.echo("no program is recorded; headstart run records one", err=True)


@records.command()
@click.argument("programs", metavar="[PROGRAM]...", nargs=-1)
@click.option("-m", "--module", "modules", metavar="MODULE", multiple=True, help="That of headstart run -m MODULE.")
@click.option("--all", "everything", is_flag=True, help="Every record.")
def forget(programs: Sequence[str], modules: Sequence[str], everything: bool) -> None:
    """Forget PROGRAM's record: its next start is like its first, but for kernels that the cache has.

    PROGRAM is a file, as headstart run takes it, or a record's name as headstart records list shows it.
    """
    programs = [*programs, *(f"-m {module}" for module in modules)]
    if bool(programs) == everything:
        raise UsageError("which record? expected PROGRAM, -m MODULE, or --all")
    folder = _folder()
    with using(folder):
        if everything:
            removed = remove(folder.parent, [RECORD])
            click.echo(f"forgotten: {removed[0] if removed else 'nothing was recorded'}")
            return
        found = list(_records())
        chosen: dict[Path, Record] = {}
        for program in programs:
            its = [each for each in found if each.is_of(program)]
            if not its:
                raise UsageError(f"nothing is recorded of {program}; headstart records list shows what is")
            chosen.update((each.path, each) for each in its)
        for each in chosen.values():
            _forget(each.path)
            click.echo(f"forgotten: {_line(each)}")


def fields(each: Record) -> dict[str, Any]:
    """What `records list --json` prints of one."""
    manifest = each.manifest
    return {
        "path": str(each.path),
        "programs": each.programs,
        "kernels": 0 if manifest is None else len(manifest.specializations),
        "sources": 0 if manifest is None else len(manifest.generated),
        "targets": [] if manifest is None else list(manifest.targets),
        "bytes": each.bytes,
        "last_seen": str(_last_seen(manifest) or "") or None,
        "error": each.why or None,
    }


def _line(each: Record) -> str:
    if each.manifest is None:
        return f"{each.path.name}: {printable(each.why)}"
    manifest = each.manifest
    sources = f" and {count(len(manifest.generated), 'source')} of torch.compile's" if manifest.generated else ""
    when = _last_seen(manifest)
    last = f", last run {when}" if when else ""
    what = f"{count(len(manifest.specializations), 'kernel')}{sources}, {human_bytes(each.bytes)}{last}"
    return f"{printable(', '.join(each.programs) or each.path.name)}: {what}  ({each.path.name})"


def _last_seen(manifest: Manifest | None) -> dt.date | None:
    if manifest is None:
        return None
    seen = [each.last_seen for each in manifest.specializations.values()]
    return max(seen + [each.last_seen for each in manifest.generated.values()], default=None)


def _records() -> Iterator[Record]:
    folder = _folder()
    with Swept(folder) as swept:
        found = sorted((name, status.st_size) for name, status in swept.files() if RECORD.pattern.fullmatch(name))
    for name, size in found:
        path = folder / name
        try:
            yield Record(path, size, Manifest.open(path))
        except FileNotFoundError:
            continue  # gone just now
        except (DamagedError, OSError) as error:
            yield Record(path, size, None, str(error))


def _forget(path: Path) -> None:
    """With what programs that were killed noted for it. Whoever records at the moment writes it anew, what it knows."""
    with locked(path), Swept(path.parent) as swept:
        for name, _ in list(swept.files()):
            if name in (path.name, f"{path.name}.damaged") or name.startswith(f".{path.name}."):
                swept.remove(name)


def _folder() -> Path:
    settings = Settings.load()
    folder = settings.cache_dir / RECORD.folder
    if why := distrust(folder, trusted=settings.trusts_cache_dir):
        raise UsageError(why)
    return folder
