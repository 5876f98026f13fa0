"""Rows 2 and 3: cold, against what else compiles many kernels, and against what the cores could do."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from benchmarks import workloads
from benchmarks.measure import Bench, Figure, Series
from benchmarks.report import Line

NUMBERS = (2, 3)

_PEERS = {
    "serial": "serial triton.compile",
    "threads": "AsyncCompileMode, threads",
    "forked": "forked ProcessPoolExecutor",
}
_BOUND_GOAL = 1.10
_SERIAL_GOAL = 1.15


def measure(bench: Bench) -> Iterator[Line]:
    """Every subject loads the kernels from a file and ends with all binaries in its own memory; they must be equal.

    "Both" adds up two processes, one per workload, each with its own start.
    """
    subjects = ["headstart", *(_PEERS if 2 in bench.wanted else ["serial"])]
    runs: dict[tuple[str, str], Series] = {}
    for workload in workloads.NAMES:
        path = workloads.write(bench, workload)
        done = bench.rounds(
            {
                f"{workload}, {subject}": partial(bench.subject, f"compile_{subject}", path, bench.workers)
                for subject in subjects
            }
        )
        runs |= {(workload, subject): series for subject, series in zip(subjects, done.values(), strict=True)}
        _check(workload, done)

    def wall(which: str, subject: str) -> Figure:
        codegen, sweep = (runs[workload, subject].wall for workload in workloads.NAMES)
        return codegen + sweep if which == "both" else runs[which, subject].wall

    for subject in subjects[1:] if 2 in bench.wanted else ():
        for which in (*workloads.NAMES, "both"):
            yield Line(
                2,
                f"cold, {_title(runs, which)}: headstart : {_PEERS[subject]}",
                wall(which, "headstart") / wall(which, subject),
                goal=1.0,
            )
    codegen, sweep = (runs[workload, "headstart"].said("bound_s") for workload in workloads.NAMES)
    both = wall("both", "headstart")
    yield Line(
        3,
        "cold, both: wall : bound_s",
        both / (codegen + sweep),
        goal=_BOUND_GOAL,
        note=(
            "bound_s = max(CPU s of headstart's compiles / workers, CPU s of the longest), "
            f"{codegen.median:.2f} + {sweep.median:.2f} s; wall {both.median:.2f} s is that of two whole processes"
        ),
    )
    codegen, sweep = (runs[workload, "serial"].cpu for workload in workloads.NAMES)
    yield Line(
        3,
        "cold, both: wall : CPU s of plain Triton / workers",
        both / Figure.of(seconds / bench.workers for seconds in (codegen + sweep).values),
        goal=_SERIAL_GOAL,
        note=f"serial triton.compile uses {codegen.median:.2f} + {sweep.median:.2f} s of CPU, whole processes",
    )


def _title(runs: dict[tuple[str, str], Series], which: str) -> str:
    if which == "both":
        return "both"
    return f"{runs[which, 'headstart'][0]['kernels']} kernels of {which}"


def _check(workload: str, runs: dict[str, Series]) -> None:
    made = {name: {run["digest"] for run in series} for name, series in runs.items()}
    if len(set().union(*made.values())) != 1:
        raise RuntimeError(f"{workload}: not all made the same binaries: {made}")
