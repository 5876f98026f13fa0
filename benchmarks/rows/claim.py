"""Row 1: kick-off during generation against kick-off after generation."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from benchmarks.measure import Bench
from benchmarks.report import Line

NUMBERS = (1,)

_SLACK = 0.05


def measure(bench: Bench) -> Iterator[Line]:
    """The goal follows from G and W, the CPU seconds of generating and of compiling.

    On two cores with two workers, compiling after generation takes G + W/2, and during it at best (G + W)/2.
    """
    runs = bench.rounds(
        {
            f"generate, kick-off {when}": partial(bench.subject, "generate", when, bench.workers)
            for when in ("during", "after")
        }
    )
    during, after = runs.values()
    generating, compiling = after.said("generate_cpu_s").median, after.said("compile_cpu_s").median
    best = (generating + compiling) / (2 * generating + compiling)
    yield Line(
        1,
        "kick-off during : after generation",
        during.wall / after.wall,
        goal=best + _SLACK if bench.workers == 2 else None,
        note=(
            f"{after[0]['kernels']} kernels; G = {generating:.2f} s, W = {compiling:.2f} s of CPU, "
            f"(G + W) / (2G + W) = {best:.3f}; "
            f"{during.said('done_when_generated').median:.0f} kernels are compiled when generation ends"
        ),
    )
