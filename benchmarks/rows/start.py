"""Row 4: AsyncCompile() until the first compile has begun in a worker."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import workloads
from benchmarks.measure import Bench
from benchmarks.report import Line

NUMBERS = (4,)

_GOAL = 0.6  # seconds


def measure(bench: Bench) -> Iterator[Line]:
    path = workloads.write(bench, "codegen")
    name = "first compile"
    runs = bench.rounds({name: lambda: bench.subject("first_compile", path, bench.workers)})
    yield Line(
        4,
        "AsyncCompile() until the first compile has begun",
        runs[name].said("until_first_compile_s"),
        unit="s",
        goal=_GOAL,
    )
