"""Row 25: a manifest that nobody vouches for, against the same one with --trust."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from benchmarks import workloads
from benchmarks.measure import Bench, Run
from benchmarks.report import Line

NUMBERS = (25,)

_MANY_GOAL = 1.35
_ONE_GOAL = 2.0


def measure(bench: Bench) -> Iterator[Line]:
    """`headstart build`, whole processes with empty caches. A worker is forked, confined and killed for each kernel."""
    path = workloads.write(bench, "codegen")
    for many, goal in ((1, _ONE_GOAL), (None, _MANY_GOAL)):
        file = bench.folder / f"{many or 'many'}.manifest"
        kernels = bench.subject("write_manifest", path, file, *([many] if many else []))["kernels"]
        name = f"build of {kernels} kernel{'s' if kernels > 1 else ''}"
        runs = bench.rounds(
            {
                f"{name}, nobody vouches": partial(_build, bench, str(file)),
                f"{name}, --trust": partial(_build, bench, str(file), "--trust"),
            }
        )
        unvouched, vouched = runs.values()
        if any(run["compiled"] != kernels for run in [*unvouched, *vouched]):
            raise RuntimeError(f"{name}: not all were compiled")
        yield Line(
            25,
            f"{name}: nobody vouches : --trust",
            unvouched.wall / vouched.wall,
            goal=goal,
            note=f"wall {unvouched.wall.median:.2f} : {vouched.wall.median:.2f} s, whole processes",
        )


def _build(bench: Bench, file: str, *options: str) -> Run:
    output = str(bench.folder / "built.bundle")
    return bench.python(
        ["-m", "headstart", "build", file, "-o", output, "--workers", str(bench.workers), "--json", "-q", *options]
    )
