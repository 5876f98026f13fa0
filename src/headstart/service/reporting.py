"""What `headstart status` shows of a service."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any, Protocol

import msgspec

from headstart import wire
from headstart.service.queue import Urgency
from headstart.service.scheduler import Scheduler
from headstart.system import machine


class Tally(msgspec.Struct):
    """What became of the requests; see `wire.Report`."""

    requests: int = 0
    stored: int = 0
    joined: int = 0
    compiled: int = 0
    failed: int = 0
    taken_over: int = 0
    remote: int = 0
    farm: int = 0


class _Client(Protocol):
    pid: int
    hello: wire.Hello | None
    since: float
    jobs: dict[int, str]


class _Worker(Protocol):
    pid: int
    started: float


def report(
    scheduler: Scheduler,
    clients: Collection[_Client],
    workers: Mapping[int, Any],
    tally: Tally,
    *,
    now: float,
    started: float,
    persistent: bool,
    describers: int,
    remotes: list[wire.RemoteCounts],
    farms: list[wire.FarmReport],
) -> wire.Report:
    """The state of a service, as of `now`."""
    memory = {number: machine.own_memory(worker.pid) if worker.pid else 0 for number, worker in workers.items()}
    jobs = scheduler.jobs()
    running = [
        wire.RunningReport(
            name=job.payload.request.name,  # type: ignore[attr-defined] # the scheduler leaves its payloads unread
            target=job.payload.request.target,  # type: ignore[attr-defined]
            worker=job.worker,
            started=workers[job.worker].started,
            clients=len({ticket.client for ticket in job.tickets}),
            memory=memory[job.worker],
        )
        for job in jobs
        if job.worker is not None
    ]
    return wire.Report(
        pid=os.getpid(),
        now=now,
        started=started,
        persistent=persistent,
        quiesced=scheduler.quiesced,
        workers=scheduler.workers,
        limit=scheduler.limit,
        workers_memory=sum(memory.values()),
        queued=[sum(job.worker is None and job.urgency is urgency for job in jobs) for urgency in Urgency],
        **msgspec.structs.asdict(tally),
        clients=[
            wire.ClientReport(
                client.pid,
                client.hello.preferences.name if client.hello else "",
                client.since,
                len(client.jobs),
            )
            for client in clients
        ],
        running=sorted(running, key=lambda flight: flight.started),
        describers=describers,
        remotes=remotes,
        farms=farms,
    )
