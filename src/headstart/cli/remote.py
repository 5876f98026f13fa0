"""`headstart remote`: stores of entries that hosts share."""

from __future__ import annotations

from collections.abc import Sequence

import click

from headstart.cli import Failure, count, json_line, printable
from headstart.errors import UsageError
from headstart.stores.remote.probing import Probed, probe
from headstart.stores.remote.urls import parse_urls
from headstart.system.configuration import lookup


@click.group(short_help="Try the stores that hosts share.")
def remote() -> None:
    """Try the stores of compiled kernels that hosts share, as HEADSTART_REMOTE names them."""


@remote.command(short_help="Reach, write, read and delete a probe in each.")
@click.argument("urls", metavar="[URL]...", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per remote.")
def check(urls: Sequence[str], as_json: bool) -> None:
    """Reach each remote, write, read and delete a probe there, and say how long it took, or what is wrong.

    By default those of HEADSTART_REMOTE, or of a configuration file. One with ?read-only is only asked. Exit code 1 if
    something is wrong.
    """
    parsed = parse_urls(" ".join(urls) or lookup("HEADSTART_REMOTE"))
    if not parsed:
        raise UsageError("which remote? expected a URL, or HEADSTART_REMOTE, such as redis://host:6379/0")
    failed = 0
    for url in parsed:
        probed = probe(url)
        failed += probed.error is not None
        click.echo(json_line(_fields(probed)) if as_json else _text(probed))
    if failed:
        raise Failure(f"{failed} of {count(len(parsed), 'remote')} cannot be used")


def _text(probed: Probed) -> str:
    took = ", ".join(f"{step} in {1000 * seconds:.1f} ms" for step, seconds in probed.steps.items())
    counts = "counts without a signature" if probed.trusted else "counts if a key that you trust signed it"
    lines = [f"{printable(probed.name)}: {'good' if probed.error is None else 'wrong'}"]
    if took:
        lines.append(f"  {took}")
    if probed.error is not None:
        lines.append(f"  {printable(probed.error.summary)}")
        if probed.error.advice:
            lines.append(f"  what to do: {printable(probed.error.advice)}")
        if probed.left:
            lines.append(f"  the probe {probed.left} is left there")
    else:
        lines.append(f"  what is there {counts}")
    return "\n".join(lines)


def _fields(probed: Probed) -> dict[str, object]:
    error = probed.error
    return {
        "remote": probed.name,
        "good": error is None,
        "seconds": {step: round(seconds, 6) for step, seconds in probed.steps.items()},
        "needs_signature": not probed.trusted,
        "error": None if error is None else error.summary,
        "advice": None if error is None else error.advice,
        "left": probed.left,
    }
