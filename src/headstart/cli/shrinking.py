"""`headstart bundle prune`: bundles made smaller."""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from headstart.artifacts import last_used, pruning
from headstart.artifacts.bundle import Bundle
from headstart.artifacts.generated import GeneratedSource
from headstart.artifacts.manifest import Manifest
from headstart.artifacts.pruning import Choice, Use
from headstart.artifacts.trust import trust_of_this_user
from headstart.cli import (
    Failure,
    OutputFile,
    check_output,
    count,
    human_bytes,
    printable,
    printable_lines,
    reading,
    writing,
)
from headstart.cli.differences import counted
from headstart.client import vouching
from headstart.describe.plain import NotPlainDataError
from headstart.describe.recipe import Describe, decode_jobs, decode_recipe, kernels_named, request_of
from headstart.errors import DamagedError, UsageError
from headstart.system.files import BUNDLE
from headstart.system.settings import Settings

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_describe_decoder = msgspec.msgpack.Decoder(Describe)
_SHORT_KEY = 12  # hexadecimal digits that tell kernels of one bundle apart


def _day(ctx: click.Context, param: click.Parameter, value: str | None) -> dt.date | None:
    """A date, or a number of days before today (UTC)."""
    if value is None:
        return None
    today = dt.datetime.now(dt.timezone.utc).date()
    try:
        if value.isascii() and value.isdecimal():
            return today - dt.timedelta(int(value))
        day = dt.date.fromisoformat(value)
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{value!r} is neither a number of days nor a date such as 2026-11-30", ctx, param
        ) from None
    if day > today:  # nothing was used since then, so that all would go
        raise click.BadParameter(f"{value} is still to come", ctx, param)
    return day


@click.command(short_help="Drop what no recent run used, or no manifest asks for.")
@click.argument("path", metavar="BUNDLE", type=_FILE)
@click.option("-o", "--output", type=OutputFile(), metavar="OUT", help="Where the rest goes. Default: BUNDLE itself.")
@click.option(
    "--unused-since",
    "since",
    callback=_day,
    metavar="DAYS|DATE",
    help="Drop what runs of yours on this machine had there and did not use in so many days, or since that day.",
)
@click.option(
    "--keep",
    "manifests",
    type=_FILE,
    multiple=True,
    metavar="MANIFEST",
    help="Drop the kernels that MANIFEST does not ask for. May be repeated: what one asks for is kept.",
)
@click.option("--dry-run", is_flag=True, help="List what would be dropped, and change nothing.")
def prune(path: Path, output: Path | None, since: dt.date | None, manifests: Sequence[Path], dry_run: bool) -> None:
    """Write BUNDLE without what is not needed.

    With both --unused-since and --keep, what either would keep is kept. What cannot be known to be unused is kept, and
    named: torch.compile's graphs, for instance, of which no manifest tells.

    What is written has your local key's signature if you trust all of BUNDLE, and no other; else it has none.
    """
    if since is None and not manifests:
        raise UsageError("what is not needed? expected --unused-since DAYS, or --keep MANIFEST")
    out = output or path
    check_output(out, BUNDLE)
    with reading(path):
        bundle = Bundle.open(path)
        choice = _chosen(bundle, since, manifests)
    for item in choice.dropped if dry_run else ():
        kind = "" if item.kind == "kernel" else f"  ({printable(item.kind)})"
        click.echo(f"{item.key[:_SHORT_KEY]}  {printable(item.target):12}  {printable(item.name)}{kind}")
    if choice.unsure:
        click.echo(
            f"kept, since nobody can tell whether they are used: {counted(choice.unsure)}"
            " (of torch.compile, or of a kind that is not known here)",
            err=True,
        )
    if dry_run:
        click.echo(f"{path}: {counted(choice.dropped)} would be dropped, {len(choice.kept)} kept", err=True)
        return
    if not choice.dropped and output is None:
        click.echo(f"{path}: nothing to drop, left as it is")
        return
    before = path.stat().st_size
    signed = _write(out, bundle, choice)
    sizes = f"{human_bytes(before)} before, {human_bytes(out.stat().st_size)} now"
    click.echo(f"{out}: {counted(choice.dropped)} dropped, {len(choice.kept)} kept, {sizes}, {signed}")


def _chosen(bundle: Bundle, since: dt.date | None, manifests: Sequence[Path]) -> Choice:
    use = Use()
    if since is not None:
        settings = Settings.load()
        try:
            days = last_used.last_used(bundle.path, settings.cache_dir, trusted=settings.trusts_cache_dir)
        except FileNotFoundError:
            days = {}
        except DamagedError as error:
            raise Failure(
                f"nothing is dropped, since it cannot be read when {bundle.path} was used: {error}"
            ) from error
        if not any(item.key in days for item in bundle):
            raise Failure(
                f"nothing is dropped: no run of yours on this machine has used {bundle.path} under this name, so "
                "nobody can tell what is not used; --keep MANIFEST goes by what a program asks for"
            )
        use = Use(days, since)
    wanted: set[str] | None = None
    if manifests:
        opened = []
        for manifest in manifests:
            with reading(manifest):
                opened.append(Manifest.open(manifest))
        wanted = pruning.wanted_by(opened, bundle)
        for each in opened:
            for source in each.generated.values():
                wanted |= _wanted_by_source(source)
    choice = pruning.choose(bundle, use, wanted, _named_by_recipes(bundle))
    if wanted is not None and choice.dropped and not any(item.request_digest in wanted for item in bundle):
        raise Failure(
            f"nothing is dropped: {bundle.path} has none of the kernels of {', '.join(map(str, manifests))}. "
            "Are they of one program?"
        )
    return choice


def _wanted_by_source(source: GeneratedSource) -> set[str]:
    """What a source that torch.compile generated takes: its recipe, what rescaling added, and the kernels of both."""
    wanted = {source.key, source.added_key} - {""}
    with contextlib.suppress(msgspec.DecodeError, NotPlainDataError, UsageError):
        described, recipe = _describe_decoder.decode(source.question), decode_recipe(source.recipe)
        added = decode_jobs(source.added) if source.added else []
        for job in recipe.jobs + added:
            module, variables = recipe.function.module, described.variables
            wanted.add(request_of(job, text=recipe.text, path="", module=module, variables=variables).digest())
    return wanted


def _named_by_recipes(bundle: Bundle) -> set[str]:
    """The kernels that recipes in a bundle are for. Of those that cannot be read, the entry's own name has to do."""
    found = set()
    for item in bundle:
        if item.kind == pruning.RECIPE:
            found.add(item.name)
            try:
                found |= kernels_named(bundle.entry(item.key).artifact(pruning.RECIPE))
            except (msgspec.DecodeError, KeyError):
                click.echo(f"{printable(item.name)}: a recipe of another headstart", err=True)
    return found


def _write(out: Path, bundle: Bundle, choice: Choice) -> str:
    """Returns who has signed it, for people."""
    trust = trust_of_this_user(lambda text: click.echo(f"headstart: {printable_lines(text)}", err=True))
    verdict = None if trust is None else trust.judge(bundle.index)
    sign = None
    if verdict is not None and verdict.trusted:
        sign = functools.partial(vouching.sign, out, set(verdict.relies_on))
    with writing(out):
        pruning.write(out, bundle, choice.kept, sign)
        written = Bundle.open(out)
    if written.signatures:
        return "signed by your local key"
    if written.code:
        could = f"{count(len(written.code), 'entry')} of it could run code, and will not be used until it is signed"
        click.echo(f"{could}: headstart bundle sign {out} --key NAME", err=True)
    return "not signed"
