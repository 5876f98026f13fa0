"""`headstart serve`: a compile service for all of a user's programs on this host."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from typing import TypeVar

import click

from headstart.cli import count, printable, say_misspelt
from headstart.errors import ServiceError, UsageError
from headstart.system.settings import Settings, parse_seconds, parse_size

T = TypeVar("T")


def _parsed(parse: Callable[[str], T]) -> Callable[[click.Context, click.Parameter, str | None], T | None]:
    def callback(ctx: click.Context, param: click.Parameter, value: str | None) -> T | None:
        try:
            return None if value is None else parse(value)
        except UsageError as error:
            raise click.BadParameter(str(error), ctx, param) from None

    return callback


@click.command(short_help="Run a compile service that programs share.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Compiles at a time. Default: HEADSTART_WORKERS, or one per core that may be used.",
)
@click.option(
    "--memory",
    callback=_parsed(parse_size),
    metavar="SIZE",
    help="What all workers together may use, as 8GiB. Default: what the machine and its cgroup have.",
)
@click.option(
    "--idle",
    callback=_parsed(parse_seconds),
    metavar="TIME",
    help="After how long without work a worker leaves, as 10m. Default: 60s.",
)
def serve(workers: int | None, memory: int | None, idle: float | None) -> None:
    """Run a compile service in the foreground, for all of your programs on this host, until it is stopped.

    Programs that start meanwhile join it by themselves, unless HEADSTART_SERVICE=private. If HEADSTART_SERVICE is a
    path, the service listens there, for programs that have the same value.
    """
    say_misspelt()
    become_service(Settings.load(workers=workers), memory=memory, idle=idle)


def become_service(settings: Settings, *, memory: int | None, idle: float | None) -> None:
    """Be the service at `control.socket_of(settings)`, until somebody stops it.

    Raises:
        ServiceError: there is one already, or none can be there.
    """
    from headstart.client import control, sharing
    from headstart.service import server  # needs all that a service needs
    from headstart.wire.config import Config

    path = control.socket_of(settings)
    with sharing.place_for_a_service(path) as listener:
        if listener is None:
            state = control.ask(path, "status")
            who = "" if state is None else f" (process {state.pid})"
            raise ServiceError(f"a service listens at {path} already{who}; headstart stop ends it")
        fd = os.dup(listener.fileno())
    signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
    config = Config(workers=settings.workers, memory=memory, idle=idle, listener=fd, socket=str(path), persistent=True)
    who = f"process {os.getpid()}, up to {count(settings.workers, 'worker')}"
    _say(f"a compile service listens at {path} ({who}), until headstart stop or Ctrl-C")
    why = "a failure"
    try:
        server.serve(config)
        why = "headstart stop"
    except SystemExit:
        why = "a signal"
        raise
    finally:
        _say(f"the compile service at {path} has stopped, by {why}")


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # whoever read it may be gone
        click.echo(f"headstart: {printable(text)}", err=True)
