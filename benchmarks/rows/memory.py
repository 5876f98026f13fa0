"""Row 8: what a worker keeps to itself after 20 compiles."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import workloads
from benchmarks.measure import Bench
from benchmarks.report import Line

NUMBERS = (8,)


def measure(bench: Bench) -> Iterator[Line]:
    path = workloads.write(bench, "codegen", every=4)
    name = "memory, 1 worker"
    runs = bench.rounds({name: lambda: bench.subject("memory", path)})[name]

    def mebi(what: str) -> str:
        return f"{runs.said(what).median / 2**20:.0f} MiB"

    yield Line(
        8,
        "private dirty memory of a worker after 20 compiles",
        runs.said("worker_private_dirty"),
        unit="MiB",
        note=f"PSS: worker {mebi('worker_pss')}, zygote {mebi('zygote_pss')}, service {mebi('service_pss')}",
    )
