"""The table: on the terminal, and in `benchmarks/results/`."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.measure import Bench, Figure, Series

RESULTS = Path(__file__).resolve().parent / "results"

HOW = "Below 1, headstart is faster. How it is measured: `benchmarks/__init__.py`."

_COUNTS = ("compiles", "lines")
_SCALES = {"ratio": 1.0, "s": 1.0, "ms": 1e3, "µs": 1e6, "MiB": 2.0**-20, **dict.fromkeys(_COUNTS, 1.0)}


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of the table.

    Attributes:
        row: number of the row that it belongs to.
        what: for people.
        figure: what was measured: a ratio, seconds, bytes, or how many.
        unit: what it is shown in.
        goal: the most that it may be; None: it is only reported.
        note: what the figure was made of.
    """

    row: int
    what: str
    figure: Figure
    unit: str = "ratio"
    goal: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the median meets the goal."""
        return None if self.goal is None else self.figure.median <= self.goal

    def cells(self) -> list[str]:
        scale, unit = _SCALES[self.unit], "" if self.unit == "ratio" else f" {self.unit}"
        digits = "{:g}".format if self.unit in _COUNTS else _digits
        low, middle, high = (
            digits(value * scale) for value in (self.figure.least, self.figure.median, self.figure.greatest)
        )
        goal = "" if self.goal is None else f"≤ {digits(self.goal * scale)}{unit}"
        verdict = {None: "", True: "yes", False: "**no**"}[self.met]
        return [str(self.row), self.what, goal, f"{middle}{unit}", f"{low} .. {high}", verdict]


def markdown(facts: dict[str, str], bench: Bench, lines: Sequence[Line], how: str = HOW) -> str:
    """The whole report. `how`: a sentence on what it means, and how it was measured."""
    return "\n".join(_report(facts, bench, lines, how)) + "\n"


def keep(facts: dict[str, str], bench: Bench, lines: Sequence[Line], *, name: str = "", how: str = HOW) -> Path:
    """Write the report as .md, and all that was measured as .json beside it. Returns the former.

    Args:
        name: what was measured, for the file's name; empty: the whole table.
        how: as for `markdown`.
    """
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{facts['date'][:10]}-{machine.short_name()}{name and f'-{name}'}.md"
    path.write_text(markdown(facts, bench, lines, how), encoding="utf-8")
    path.with_suffix(".json").write_text(json.dumps(_raw(facts, bench, lines), indent=1) + "\n", encoding="utf-8")
    return path


def _report(facts: dict[str, str], bench: Bench, lines: Sequence[Line], how: str) -> Iterator[str]:
    yield f"# headstart {facts['headstart']}, Triton {facts['Triton']}, {facts['CPU']}, {facts['date'][:10]}"
    yield ""
    missed = [line for line in lines if line.met is False]
    goals = sum(line.goal is not None for line in lines)
    yield (
        f"{goals - len(missed)} of {goals} goals met. Medians of {_count(bench.runs, 'round')}, "
        f"{bench.workers} workers. {how}"
    )
    yield ""
    yield from _table(["row", "what", "goal", "measured", "least .. greatest", "met"], [line.cells() for line in lines])
    yield ""
    yield from (f"- {line.what}: {line.note}" for line in lines if line.note)
    yield ""
    yield "Behind the ratios, whole processes, medians:"
    yield ""
    yield from _table(
        ["process", "runs", "wall s", "CPU s", "CPU s of others meanwhile"],
        [
            [
                name,
                str(len(runs)),
                f"{runs.wall.median:.3f}",
                f"{runs.cpu.median:.3f}",
                f"{_others(runs):.2f}",
            ]
            for name, runs in bench.series.items()
        ],
    )
    yield ""
    yield from _table(["machine", ""], [[name, value] for name, value in facts.items()])
    yield ""
    yield _noise(bench)


def _noise(bench: Bench) -> str:
    runs = [run for series in bench.series.values() for run in series]
    wall = sum(run.wall_s for run in runs) or 1.0
    others, withheld = sum(run.others_s for run in runs) / wall, sum(run.withheld_s for run in runs) / wall
    quiet = "" if others + withheld < 0.05 else " The machine was not quiet: ratios of unlike parallelism are off."
    return (
        f"While it was measured, others used {others:.2f} cores of this machine on average, and its host withheld "
        f"{withheld:.2f}.{quiet}"
    )


def _others(runs: Series) -> float:
    return statistics.median(run.others_s + run.withheld_s for run in runs)


def _raw(facts: dict[str, str], bench: Bench, lines: Sequence[Line]) -> dict[str, Any]:
    return {
        "machine": facts,
        "runs": bench.runs,
        "workers": bench.workers,
        "table": [
            {
                "row": line.row,
                "what": line.what,
                "unit": "s" if line.unit in ("ms", "µs") else {"MiB": "bytes"}.get(line.unit, line.unit),
                "goal": line.goal,
                "median": line.figure.median,
                "met": line.met,
                "values": line.figure.values,
                "note": line.note,
            }
            for line in lines
        ],
        "processes": {name: [dataclasses.asdict(run) for run in runs] for name, runs in bench.series.items()},
    }


def _table(heads: list[str], rows: list[list[str]]) -> Iterator[str]:
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    for row in [heads, ["-" * width for width in widths], *rows]:
        yield "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"


def _digits(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
