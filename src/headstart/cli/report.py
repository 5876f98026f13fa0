"""`headstart report`: what became of a run's kernels, as one HTML file, as JSON, or as a trace."""

from __future__ import annotations

import datetime as dt
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import click

from headstart.artifacts import runs
from headstart.cli import BadInput, Failure, OutputFile, count, json_line, printable
from headstart.errors import UsageError
from headstart.system.files import Format, replace
from headstart.system.folders import cache_dir

_DEFAULT = "headstart-report.html"
TRACE = Format("a trace", begins=(b'{"displayTimeUnit":"ms","otherData":{"headstart":',))


@click.command(short_help="Show what became of a run's kernels, as one HTML page.")
@click.option("--run", "name", metavar="ID", default="", help="Of this run. Default: the last one.")
@click.option("--list", "as_list", is_flag=True, help="List the runs that are kept, and write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print what the page shows as JSON, and write no page.")
@click.option("--perfetto", type=OutputFile(), metavar="F", help="Write a trace for ui.perfetto.dev, and no page.")
@click.option("-o", "--output", type=OutputFile(), metavar="F", help=f"Where the page goes. Default: {_DEFAULT}, here.")
@click.option("--open/--no-open", "opens", default=None, help="Show it in a browser. Default: on a desktop.")
def report(
    name: str, as_list: bool, as_json: bool, perfetto: Path | None, output: Path | None, opens: bool | None
) -> None:
    """Write one HTML file that shows what became of the kernels of the last run: who waited for what, what the workers
    did, where kernels came from, and what would have hidden the longest waits.

    The file needs no network, now or later; without -o, nobody else may read it. It has names, constants and sources of
    kernels in it: what you would not show, do not send. A run that was killed, or still runs, has a page too.

    Exit code: 0; 1 there is no run yet, or the file cannot be written; 2 bad usage, or no run of that name.
    """
    folder = cache_dir()
    if as_list and (name or perfetto or output or opens is not None):
        raise UsageError("--list names the runs and writes nothing: it takes --json only")
    if as_list:
        _list(folder, as_json=as_json)
        return
    run = find(folder, name)
    from headstart.cli.report_data import report_data

    data = report_data(folder, run)
    if as_json:
        click.echo(json_line(data))
    if perfetto is not None:
        import msgspec

        from headstart.cli.perfetto import trace

        _write(perfetto, msgspec.json.encode(trace(data)), TRACE)
        click.echo(f"{printable(str(perfetto))}: open it at ui.perfetto.dev", err=as_json)
    if output is None and (as_json or perfetto is not None):
        return
    from headstart.cli.report_page import REPORT, page

    path = output or Path(_DEFAULT)
    if output is None and path.is_symlink():  # anybody may have put it into a folder like /tmp
        raise BadInput(
            f"{_DEFAULT} is a symbolic link, which is not followed; name the file with -o, or remove the link"
        )
    # Nobody chose who may read it, and sources are in it.
    _write(path, page(data), REPORT, 0o600 if output is None else 0o666)
    click.echo(data["sentence"], err=as_json)
    click.echo(printable(str(path)), err=as_json)
    if _is_to_be_opened() if opens is None else opens:
        import webbrowser

        webbrowser.open(path.absolute().as_uri())


def find(folder: Path, name: str) -> runs.Run:
    """The run of that name, or the last one."""
    if name:
        run = runs.open_run(folder, name)
        if run is None:
            raise BadInput(f"there is no run {printable(name)}; headstart report --list names them")
        return run
    run = next(runs.runs(folder, 1), None)
    if run is None:
        raise Failure(
            "there is no run yet: headstart run app.py makes one; a program that asks for no kernel leaves none, and "
            "HEADSTART_KEEP_RUNS=0 keeps none"
        )
    return run


def _list(folder: Path, *, as_json: bool) -> None:
    for run in runs.runs(folder):
        origins = Counter(kernel.origin for kernel in run.kernels)
        fields: dict[str, Any] = {
            "run": run.name,
            "began": run.head.began,
            "kind": run.head.kind,
            "program": run.head.program,
            "state": run.state,
            "processes": len(run.processes),
            "kernels": origins.total(),
            "origins": dict(origins),
        }
        if as_json:
            click.echo(json_line(fields))
            continue
        began = dt.datetime.fromtimestamp(run.head.began, dt.timezone.utc).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        state = "" if run.state == "ended" else f"  {run.state}"
        program = Path(run.head.program).name or run.head.kind
        click.echo(
            printable(
                f"{run.name}  {began}  {run.head.kind:6}  {count(origins.total(), 'kernel'):>12}, "
                f"{origins['worker']} compiled  {program}{state}"
            )
        )


def _write(path: Path, data: bytes, format: Format, mode: int = 0o666) -> None:
    if path.exists() and not path.is_file():  # a pipe behind /dev/stdout has no name that could be replaced
        raise BadInput(f"{printable(str(path))} is not a regular file, so it is not replaced; choose another name")
    try:
        replace(path, data, format, mode)
    except OSError as error:
        raise Failure(f"cannot write {path}: {error.strerror or error}") from error


def _is_to_be_opened() -> bool:
    return sys.stdout.isatty() and any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))
