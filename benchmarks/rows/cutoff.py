"""Row 24: early cutoff, on sweeps with duplicates and on one without."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import workloads
from benchmarks.measure import Bench, Series, say
from benchmarks.report import Line

NUMBERS = (24,)

_SWEEPS = {
    "rows": "softmax and row sum, num_warps and num_stages",
    "sweep": "pipelined matmul",
    "stages": "kernels of the example, num_stages",
}
_EVERY = {"rows": 1, "sweep": 2, "stages": 1}
_ALLOWANCE = 0.05  # of the goal where there are duplicates
_NO_DUPLICATES_GOAL = 1.02


def measure(bench: Bench) -> Iterator[Line]:
    """CPU seconds of a whole sweep by a warm service. What comes out, metadata included, has to be the same."""
    for name, what in _SWEEPS.items():
        path = workloads.write(bench, name, every=_EVERY[name])
        say(f"{name}: how much is the front end")
        front = bench.subject("front", path)["front"]
        runs = bench.rounds(
            {
                f"{name}, early cutoff": lambda path=path: bench.subject("cutoff", path, bench.workers, 1),  # type: ignore[misc]
                f"{name}, whole": lambda path=path: bench.subject("cutoff", path, bench.workers, 0),  # type: ignore[misc]
            }
        )
        cut, whole = runs.values()
        yield _line(what, front, cut, whole)


def _line(what: str, front: float, cut: Series, whole: Series) -> Line:
    configurations, programs = whole[0]["configurations"], whole[0]["programs"]
    if len({run["digest"] for run in [*cut, *whole]}) != 1:
        raise RuntimeError(f"{what}: with early cutoff other kernels come out than without")
    distinct = programs / configurations
    goal = distinct + front * (1 - distinct) + _ALLOWANCE if distinct < 1 else _NO_DUPLICATES_GOAL
    return Line(
        24,
        f"early cutoff, {what}: CPU time with : without",
        cut.said("cpu_s") / whole.said("cpu_s"),
        goal=goal,
        note=(
            f"{configurations} configurations, {programs} programs (d/c {distinct:.2f}), f, the front end's share, is "
            f"{front:.2f}; all artifacts and metadata are the same"
        ),
    )
