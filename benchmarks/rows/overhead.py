"""Row 5: a kick-off in the caller, and the service's overhead per job."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import workloads
from benchmarks.measure import Bench
from benchmarks.report import Line

NUMBERS = (5,)

_KICKOFF_GOAL = 100e-6  # seconds
_OVERHEAD_GOAL = 2e-3  # seconds


def measure(bench: Bench) -> Iterator[Line]:
    """See `subjects/overhead.py` for what is counted."""
    path = workloads.write(bench, "codegen", every=4)
    name = "overhead, 1 worker"
    runs = bench.rounds({name: lambda: bench.subject("overhead", path)})[name]
    jobs = runs[0]["jobs"]

    def micro(what: str) -> str:
        return f"{runs.said(what).median * 1e6:.0f} µs"

    yield Line(
        5,
        "kick-off per call, in the caller",
        runs.said("kickoff_s"),
        unit="µs",
        goal=_KICKOFF_GOAL,
        note=(
            f"median of {jobs} in each process; the first call {micro('kickoff_first_s')}, further ones while the "
            f"service starts {micro('kickoff_starting_s')}, the longest {micro('kickoff_longest_s')}"
        ),
    )
    yield Line(
        5,
        "service overhead per job",
        runs.said("overhead_s"),
        unit="ms",
        goal=_OVERHEAD_GOAL,
        note=f"one worker, {jobs} jobs: wall time less the time inside compiles, per job",
    )
    yield Line(
        5,
        "CPU per job outside compiles",
        runs.said("cpu_s"),
        unit="ms",
        note=f"worker {micro('worker_cpu_s')}, service {micro('service_cpu_s')}, client {micro('client_cpu_s')}",
    )
