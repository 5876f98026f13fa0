"""`headstart docs`: where the documentation is on this machine."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path

import click

from headstart.cli import json_line

_PACKAGE = Path(__file__).parents[1]


@click.command(short_help="Show where the documentation is.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: what it is, and its path.")
def docs(as_json: bool) -> None:
    """Show where the documentation is on this machine: pages to read, and manual pages for each command."""
    found = dict(places())
    if as_json:
        click.echo(json_line({what: str(path) for what, path in found.items()}))
        return
    for what, path in found.items():
        click.echo(f"{what:8} {path}")
    if "manual" in found:
        click.echo("man headstart-run shows one of them, or man -l FILE where man does not look there", err=True)
    if "pages" not in found:
        click.echo("headstart COMMAND --help says what each command does", err=True)


def places() -> Iterator[tuple[str, Path]]:
    """What there is, and where: beside the sources in a checkout, else where the wheel has put it."""
    shared = Path(sysconfig.get_path("data"), "share")
    checkout = _PACKAGE.parents[1]
    is_checkout = (checkout / "pyproject.toml").is_file() and _PACKAGE.parent.name == "src"
    choices = {
        "pages": [*([checkout / "docs" / "README.md"] if is_checkout else []), shared / "doc/headstart/README.md"],
        "manual": [*([checkout / "contrib/man"] if is_checkout else []), shared / "man/man1"],
    }
    for what, paths in choices.items():
        for path in paths:
            if path.is_file() or (path / "headstart.1").is_file():
                yield what, path
                break
