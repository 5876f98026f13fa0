"""`headstart status`: the compile services of this user, and what they are doing."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from msgspec.structs import asdict

from headstart.cli import Failure, count, human_bytes, json_line, printable
from headstart.system import machine
from headstart.system.settings import Settings

if TYPE_CHECKING:
    from headstart.service.runtime import Owned
    from headstart.wire import Events, FarmReport, RemoteCounts, Report

_SHOWN = 8  # kernels that a node compiles
_COMMAND = 100  # characters of a command line
_INTERVAL = 1.0  # seconds between two looks


@click.command(short_help="Show the compile services that run, and what they are doing.")
@click.option("--watch", is_flag=True, help="Show it again every second, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: what runs is in its `services`.")
@click.option("--events", is_flag=True, help="Show the latest events instead, and what was done about each.")
def status(watch: bool, as_json: bool, events: bool) -> None:
    """Show clients, queue, kernels in flight with their ages, hit rates, and the workers' memory.

    Of private services, which belong to one program each, only this is shown: whose they are. --events is for the
    report of a bug: it names kernels, clients and workers by their numbers and keys, and shows no source.
    """
    from headstart.client import control
    from headstart.service.runtime import owners

    settings = Settings.load()
    while True:
        found: Sequence[tuple[Path, Report | Events]]
        found = control.events(settings) if events else control.reports(settings)
        private = [] if events or os.path.isabs(settings.service) else owners()
        if watch and not as_json:
            click.clear()
        if as_json:
            services = [{"socket": str(path), **asdict(told)} for path, told in found]
            told_private = [private_fields(owned, workers) for owned, workers in private]
            click.echo(json_line({"services": services, "private": told_private}))
        for path, told in [] if as_json else found:
            click.echo(_text(path, told))
        for owned, workers in [] if as_json else private:
            click.echo(describe_private(owned, workers))
        none = f"no service runs; headstart serve starts one at {control.socket_of(settings)}"
        if not watch:
            if not (found or private or as_json):
                raise Failure(none)
            return
        if not (found or private or as_json):
            click.echo(none)
        try:
            time.sleep(_INTERVAL)
        except KeyboardInterrupt:
            return


def private_fields(owned: Owned, workers: int) -> dict[str, Any]:
    """What `--json` says of a private service."""
    return {**asdict(owned), "command": machine.command_of(owned.client), "workers": workers}


def describe_private(owned: Owned, workers: int) -> str:
    """The same for people."""
    command = machine.command_of(owned.client)
    shown = command if len(command) <= _COMMAND else f"{command[: _COMMAND - 1]}…"
    return f"private, process {owned.pid}, {count(workers, 'worker')}: of process {owned.client}, {printable(shown)}"


def _text(path: Path, told: Report | Events) -> str:
    from headstart.service.history import lines
    from headstart.wire import Events

    if isinstance(told, Events):
        return "\n".join([f"{path}", *(printable(line) for line in lines(told.events, told.now))])
    return describe(path, told)


def describe(path: Path, report: Report) -> str:
    """A report for people."""
    awaited, early, background = report.queued
    state = "quiesced" if report.quiesced else "serving"
    end = "stays until stopped" if report.persistent else "ends with its last client"
    stored, joined = _share(report.stored, report), _share(report.joined, report)
    lines = [
        f"{path}",
        f"  process {report.pid}, {state}, up for {_age(report.now - report.started)}, {end}",
        f"  {report.workers} of {count(report.limit, 'worker')}, {human_bytes(report.workers_memory)}",
        f"  queue: {awaited} awaited, {early} early, {background} background",
        f"  {count(report.requests, 'request')}: {stored} from the store, {joined} joined a compile under way",
        f"  {report.compiled} compiled ({report.taken_over} of them in part), {report.failed} failed",
    ]
    if report.remote:
        lines.append(f"  {_share(report.remote, report)} from stores of other hosts")
    lines += [f"  {line}" for counts in report.remotes for line in _remote(counts)]
    if report.farm:
        lines.append(f"  {_share(report.farm, report)} from a farm")
    lines += [f"  {line}" for each in report.farms for line in _farm(each)]
    if report.describers:
        lines.append(f"  {count(report.describers, 'describer')} with torch")
    lines += [
        f"  client {client.pid} {printable(client.name)}, here for {_age(report.now - client.since)}: "
        f"waits for {count(client.waiting, 'kernel')}"
        for client in report.clients
    ]
    lines += [
        f"  compiling {printable(f'{flight.name} ({flight.target})')} for {_age(report.now - flight.started)}, "
        f"wanted by {count(flight.clients, 'client')}, {human_bytes(flight.memory)}"
        for flight in report.running
    ]
    return "\n".join(lines)


def _remote(counts: RemoteCounts) -> list[str]:
    """What the stores of one `HEADSTART_REMOTE` were good for."""
    lines = [
        f"{printable(tier.name)}: {count(tier.hits, 'hit')} ({human_bytes(tier.hit_bytes)}), "
        f"{tier.misses} not there, {tier.published} published ({human_bytes(tier.published_bytes)}), "
        f"{count(tier.errors, 'error')}, {_age(tier.seconds)}"
        for tier in counts.tiers
    ]
    left = [(counts.refused, "found there and not used"), (counts.dropped, "not published")]
    return lines + [f"{count(number, 'entry')} {what}" for number, what in left if number]


def _farm(report: FarmReport) -> list[str]:
    """What one `HEADSTART_FARM` was good for, and who is there."""
    nodes = report.state.nodes
    usable = sum(not node.refused for node in nodes)
    line = (
        f"farm {printable(report.address)}: {usable} of {count(len(nodes), 'node')}, {report.lent} lent, {report.made} "
        f"made there, {report.late} of them late, {report.returned} given back, {report.out} out"
    )
    lines = [line]
    for node in nodes:
        if node.refused:
            lines.append(f"  {printable(node.name)} is not used: {printable(node.refused)}")
            continue
        running = sorted({printable(each) for each in node.running if each})
        now = f": {', '.join(running[:_SHOWN])}" if running else ""
        busy = f"{len(node.running)} of {count(node.workers, 'worker')} busy"
        lines.append(f"  {printable(node.name)}: {busy}, {node.queued} queued, {node.compiled} compiled{now}")
    return lines


def _share(part: int, report: Report) -> str:
    return f"{part} ({part / report.requests:.0%})" if report.requests else f"{part}"


def _age(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
