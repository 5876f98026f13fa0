"""Rows 20 to 23: one service for many processes."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import workloads
from benchmarks.measure import Bench, Figure, Run
from benchmarks.report import Line

NUMBERS = (20, 21, 22, 23)

CLIENTS = 8
_CONNECT_GOAL = 20e-3  # seconds
_TOGETHER_GOAL = 1.15
_HIT_GOAL = 0.3e-3  # seconds
_QUEUE_GOAL = 0.3e-3  # seconds of the server's CPU
_COUNTS = (100, 1_000, 10_000)


def measure(bench: Bench) -> Iterator[Line]:
    """Each subject has a service of its own, which is warm before anything is measured."""
    if 20 in bench.wanted:
        yield from _connect(bench)
    if 21 in bench.wanted:
        yield from _together(bench)
    if 22 in bench.wanted:
        yield from _counted(bench, 22, "share_hits", "hit_s", "stored: request to artifact, per kernel", _HIT_GOAL)
    if 23 in bench.wanted:
        yield from _counted(bench, 23, "share_queue", "request_s", "queued: server CPU per request", _QUEUE_GOAL)


def _connect(bench: Bench) -> Iterator[Line]:
    runs = bench.rounds({"connect": lambda: bench.subject("share_connect", bench.workers)})["connect"]
    yield Line(
        20,
        "connect to a running service until the first compile has begun",
        runs.said("connect_s"),
        unit="ms",
        goal=_CONNECT_GOAL,
        note=f"the longest of a run: {runs.said('longest_s').median * 1e3:.1f} ms",
    )


def _together(bench: Bench) -> Iterator[Line]:
    path = workloads.write(bench, "sweep")

    def ask(clients: int) -> Run:
        return bench.subject("share_clients", path, clients, bench.workers)

    runs = bench.rounds({"1 client": lambda: ask(1), f"{CLIENTS} clients": lambda: ask(CLIENTS)})
    alone, together = runs.values()
    stock = bench.subject("share_stock", path, CLIENTS)["ask_s"]  # once: it takes minutes
    kernels = alone[0]["kernels"]
    if {run["compiles"] for run in [*alone, *together]} != {kernels}:
        raise RuntimeError(f"{kernels} kernels took {[run['compiles'] for run in together]} compiles")
    yield Line(
        21,
        f"{CLIENTS} clients ask for the same {kernels} kernels: wall against one client alone",
        together.said("ask_s") / alone.said("ask_s"),
        goal=_TOGETHER_GOAL,
        note=f"{kernels} compiles each time; alone {alone.said('ask_s').median:.1f} s",
    )
    yield Line(
        21,
        f"the same: headstart : stock Triton, {CLIENTS} processes with one cache folder",
        Figure.of(seconds / stock for seconds in together.said("ask_s").values),
        note=f"stock Triton, once: {stock:.1f} s",
    )


def _counted(bench: Bench, row: int, script: str, said: str, what: str, goal: float) -> Iterator[Line]:
    runs = bench.rounds({f"{script} {n}": lambda n=n: bench.subject(script, n) for n in _COUNTS})  # type: ignore[misc]
    for number, series in zip(_COUNTS, runs.values(), strict=True):
        yield Line(row, f"{what}, {number:,} of them", series.said(said), unit="ms", goal=goal)
