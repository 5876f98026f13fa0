"""Rows 10 and 11: programs with @triton.jit: kick-offs of live functions, and launches of compiled ones."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.measure import Bench
from benchmarks.report import Line

NUMBERS = (10, 11)

_FIRST, _FURTHER, _LAUNCH = 3e-3, 150e-6, 1.02  # goals: seconds, seconds, a ratio


def measure(bench: Bench) -> Iterator[Line]:
    """See `subjects/launches.py`; medians over kernels, and over blocks of launches."""
    name = "launches"
    runs = bench.rounds({name: lambda: bench.subject("launches")})[name]
    yield Line(10, "kick-off of a live function, its first", runs.said("first_s"), unit="ms", goal=_FIRST)
    yield Line(10, "kick-off of a further specialization", runs.said("further_s"), unit="µs", goal=_FURTHER)
    yield Line(
        11,
        "launch of a compiled kernel, enabled : not",
        runs.said("launch_ratio"),
        goal=_LAUNCH,
        note="in turns in one process",
    )
