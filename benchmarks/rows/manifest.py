"""Row 9: a manifest of 10,000 specializations."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import workloads
from benchmarks.measure import Bench
from benchmarks.report import Line

NUMBERS = (9,)

_GOAL = 0.3  # seconds


def measure(bench: Bench) -> Iterator[Line]:
    """See `subjects/manifest.py` for what is counted."""
    path = workloads.write(bench, "codegen")
    name = "manifest, 10,000 specializations"
    file = bench.folder / "app.manifest"
    runs = bench.rounds({name: lambda: bench.subject("manifest", path, file)})[name]

    def milli(what: str) -> str:
        return f"{runs.said(what).median * 1e3:.1f} ms"

    yield Line(
        9,
        "manifest of 10,000 specializations: load and match",
        runs.said("load_and_match_s"),
        unit="s",
        goal=_GOAL,
        note=(
            f"load {milli('load_s')}, match {milli('match_s')}, merge two {milli('merge_s')}, "
            f"write {milli('save_s')}; {file.stat().st_size / 2**20:.1f} MiB"
        ),
    )
    yield Line(9, "one note of a running program", runs.said("note_s"), unit="µs")
