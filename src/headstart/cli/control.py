"""`headstart quiesce`, `resume` and `stop`."""

from __future__ import annotations

import click

from headstart.cli import Failure, count
from headstart.system.settings import Settings


@click.command(short_help="Have the compile service give its memory back.")
@click.option("--now", is_flag=True, help="Kill what is being compiled; it is compiled again after resume.")
def quiesce(now: bool) -> None:
    """Have the compile service start nothing, and end its workers when they are done. Returns when none is left.

    Programs that ask for kernels meanwhile wait for `headstart resume`.
    """
    _tell("quiesce now" if now else "quiesce")
    click.echo("quiesced: no workers are left")


@click.command(short_help="Have the compile service go on after quiesce.")
def resume() -> None:
    """Have the compile service go on with what is queued."""
    queued = _tell("resume")
    click.echo(f"resumed; {count(queued, 'kernel')} queued")


@click.command(short_help="End the compile service.")
def stop() -> None:
    """End the compile service. Programs that wait for kernels ask another one, or start their own."""
    _tell("stop")
    click.echo("stopped")


def _tell(command: str) -> int:
    from headstart.client import control

    path = control.socket_of(Settings.load())
    report = control.ask(path, command)
    if report is None:
        raise Failure(f"no service listens at {path}")
    return sum(report.queued)
