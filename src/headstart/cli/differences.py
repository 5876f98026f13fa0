"""How two manifests or two bundles differ, as lines for people and as JSON; and `headstart bundle diff`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from headstart.artifacts.bundle import Bundle
from headstart.artifacts.comparing import KERNEL, Compared, Difference, compare_bundles, counts_by_kind
from headstart.cli import count, json_line, printable, reading

_SHORT_DIGEST = 12  # hexadecimal digits that tell kernels of one file apart
_SHOWN_COMPONENTS = ("constants.", "options.")


@click.command(short_help="Tell two bundles apart.")
@click.argument("before", metavar="OLD", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("after", metavar="NEW", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per difference.")
def diff(before: Path, after: Path, as_json: bool) -> None:
    """Show what only OLD (-) or only NEW (+) holds.

    A kernel (~) of which both hold a variant that the other lacks is shown with what makes the nearest two differ.
    Other entries (torch.compile's graphs and recipes, known failures) are compared by their keys.

    Exit code: 0, whether they differ or not; 2 bad usage, or a file that is no bundle.
    """
    with reading(before):
        old = Bundle.open(before)
    with reading(after):
        new = Bundle.open(after)
    with reading(before):  # a damaged entry names its bundle
        difference = compare_bundles(old, new)
    if as_json:
        for fields in difference_fields(difference):
            click.echo(json_line(fields))
        return
    for line in difference_lines(difference):
        click.echo(line)
    parts = [
        f"{counted(difference.removed)} only in {before}",
        f"{counted(difference.added)} only in {after}",
        f"{len(difference.changed)} changed",
        f"{counted([item for item in new if item.key in old])} in both",
    ]
    click.echo(", ".join(parts), err=True)


def difference_lines(difference: Difference) -> list[str]:
    """What `manifest diff` and `bundle diff` print."""
    lines = [f"- {_line(each)}" for each in difference.removed]
    lines += [f"+ {_line(each)}" for each in difference.added]
    for change in difference.changed:
        lines.append(f"~ {_line(change.after)}")
        lines += [f"    {printable(reason)}" for reason in change.reasons]
    return lines


def difference_fields(difference: Difference) -> Iterator[dict[str, Any]]:
    """What `--json` prints, one object per line."""
    for word, several in (("removed", difference.removed), ("added", difference.added)):
        for each in several:
            yield {"change": word, **_fields(each)}
    for change in difference.changed:
        yield {"change": "changed", **_fields(change.after), "before": change.before.key, "reasons": change.reasons}


def _fields(each: Compared) -> dict[str, str]:
    return {"kind": each.kind, "key": each.key, "name": each.name, "target": each.target}


def _line(each: Compared) -> str:
    kind = "" if each.kind == KERNEL else f"({each.kind})"
    shown = kind or ", ".join(
        f"{name.partition('.')[2]}={value}" for name, value in each.components if name.startswith(_SHOWN_COMPONENTS)
    )
    return printable(f"{each.key[:_SHORT_DIGEST]}  {each.target:12}  {each.name}  {shown}".rstrip())


def counted(several: list[Any]) -> str:
    """As `"3 kernels (and 1 graphs, 2 recipe)"`."""
    counts = counts_by_kind(several)
    kernels = count(counts.pop(KERNEL, 0), "kernel")
    others = ", ".join(f"{number} {printable(kind)}" for kind, number in counts.items())
    return f"{kernels} (and {others})" if others else kernels
