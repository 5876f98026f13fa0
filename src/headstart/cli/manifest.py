"""`headstart manifest`: look into manifests, put them together and tell them apart."""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from headstart.artifacts.comparing import compare
from headstart.artifacts.generated import GeneratedSource
from headstart.artifacts.manifest import Manifest
from headstart.artifacts.manifest import merge as merge_manifests
from headstart.artifacts.specialization import Specialization
from headstart.cli import OutputFile, check_output, count, json_line, printable, reading, writing
from headstart.cli.differences import counted, difference_fields, difference_lines
from headstart.model.parameters import named, parameters_of
from headstart.model.request import CompileRequest
from headstart.system.files import MANIFEST

_MANIFEST = click.Path(exists=True, dir_okay=False, path_type=Path)
_LEAST_WIDTH = 80  # columns
_PIPED_WIDTH = 200  # columns, where there is no terminal to ask


@click.group(short_help="Show, merge and compare manifests: what runs compiled.")
def manifest() -> None:
    """Look into manifests, put them together and tell them apart.

    A manifest holds what a run compiled: sources, specializations, targets, durations. Reading one executes nothing;
    `headstart build` compiles one.
    """


@manifest.command(short_help="Show the kernels of a manifest.")
@click.argument("path", metavar="FILE", type=_MANIFEST)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per kernel.")
def show(path: Path, as_json: bool) -> None:
    """Show the kernels of FILE, in the order in which they would be compiled: winners first, longest first."""
    opened = _open(path)
    if as_json:
        for each in opened.in_compile_order():
            click.echo(json_line(fields(each)))
        for source in opened.generated_in_order():
            click.echo(json_line(fields_of_source(source)))
        return
    _print_table(opened.in_compile_order(), opened.generated_in_order())
    click.echo(_totals(opened), err=True)


@manifest.command(short_help="Write what several manifests say into one.")
@click.argument("paths", metavar="FILE...", nargs=-1, required=True, type=_MANIFEST)
@click.option(
    "-o",
    "--output",
    required=True,
    type=OutputFile(),
    metavar="OUT",
    help="Where the manifest goes; may be one of the FILEs. One that exists is replaced.",
)
def merge(paths: Sequence[Path], output: Path) -> None:
    """Write what every FILE says into one manifest. Their order does not matter, and neither does merging one twice."""
    check_output(output, MANIFEST)
    merged = merge_manifests(*map(_open, paths))
    with writing(output):
        merged.save(output)
    click.echo(f"{output}: {_held(merged)} of {count(len(paths), 'manifest')}")


@manifest.command(short_help="Tell two manifests apart.")
@click.argument("before", type=_MANIFEST)
@click.argument("after", type=_MANIFEST)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per difference.")
def diff(before: Path, after: Path, as_json: bool) -> None:
    """Show the kernels that only BEFORE (-) or only AFTER (+) holds.

    A kernel (~) of which both hold a variant that the other lacks is shown with what makes the nearest two differ.

    Exit code: 0, whether they differ or not; 2 bad usage, or a file that is no manifest.
    """
    difference = compare(_open(before), _open(after))
    if as_json:
        for each in difference_fields(difference):
            click.echo(json_line(each))
        return
    for line in difference_lines(difference):
        click.echo(line)
    parts = [
        f"{counted(difference.removed)} only in {before}",
        f"{counted(difference.added)} only in {after}",
        f"{len(difference.changed)} changed",
    ]
    click.echo(", ".join(parts), err=True)


def fields(each: Specialization) -> dict[str, Any]:
    """What `manifest show --json` prints of one kernel; its source only by what it is part of, the digest."""
    request = msgspec.to_builtins(each.request)
    del request["source"]
    return {
        "digest": each.digest,
        **request,
        "duration_s": each.duration_s,
        "winner": each.winner,
        "asked_by": each.asked_by,
        "last_seen": each.last_seen.isoformat(),
        "failed": each.failed,
    }


def fields_of_source(each: GeneratedSource) -> dict[str, Any]:
    """The same of a source that torch.compile generated."""
    return {
        "digest": each.key,
        "name": each.name,
        "kind": "torch.compile",
        "target": each.target,
        "configurations": each.configurations,
        "duration_s": each.duration_s,
        "last_seen": each.last_seen.isoformat(),
    }


def _held(opened: Manifest) -> str:
    parts = [count(len(opened.specializations), "kernel")]
    if opened.generated:
        parts.append(f"{count(len(opened.generated), 'source')} of torch.compile's")
    return " and ".join(parts)


def _open(path: Path) -> Manifest:
    with reading(path):
        return Manifest.open(path)


def _print_table(specializations: Sequence[Specialization], generated: Sequence[GeneratedSource]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("kernel", "target", "specialized for", "seconds", "won", "asked by"):
        table.add_column(title, justify="right" if title == "seconds" else "left", overflow="fold")
    for each in specializations:
        seconds = f"{each.duration_s:.2f}" if each.duration_s else "failed" if each.failed else ""
        cells = (
            each.request.name,
            each.request.target,
            _options(each.request),
            seconds,
            "yes" if each.winner else "",
            each.asked_by,
        )
        table.add_row(*(Text(printable(cell)) for cell in cells))
    for source in generated:
        seconds = f"{source.duration_s:.2f}" if source.duration_s else ""
        compiled = count(source.configurations, "configuration")
        cells = (source.name, source.target, compiled, seconds, "", "torch.compile")
        table.add_row(*(Text(printable(cell)) for cell in cells))
    # Piped, a table is for grep: a row is not to be folded at 80 columns.
    # Where a column would be a letter wide, the terminal had better fold whole rows.
    Console(width=max(Console().width, _LEAST_WIDTH) if sys.stdout.isatty() else _PIPED_WIDTH).print(table)


def _options(request: CompileRequest) -> str:
    parameters = parameters_of(request) if any(path.startswith("#") for path in request.constants) else ()
    constants = {named(path, parameters): value for path, value in request.constants.items()}
    return ", ".join(f"{name}={value!r}" for name, value in {**constants, **request.options}.items())


def _totals(opened: Manifest) -> str:
    durations = [each.duration_s for each in opened.specializations.values()]
    durations += [each.duration_s for each in opened.generated.values()]
    parts = [
        f"{_held(opened)} for {printable(', '.join(opened.targets)) or 'nothing'}",
        f"{sum(durations):.1f} s to compile, the longest {max(durations, default=0.0):.1f} s",
        f"{count(len(opened.tunings), 'tuned key')}",
    ]
    lines = [", ".join(parts)]
    for origin in opened.origins:
        when = dt.datetime.fromtimestamp(origin.recorded_at, dt.timezone.utc)
        triton = f", Triton {origin.triton_version}" if origin.triton_version else ""
        versions = f"headstart {origin.headstart_version or 'unknown'}{triton}"
        program = origin.program or "unknown program"
        lines.append(printable(f"recorded {when:%Y-%m-%d %H:%M} UTC, {versions}: {program}"))
    return "\n".join(lines)
