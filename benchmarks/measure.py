"""Runs subjects, each in a fresh process, and makes figures of what they took."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT, busy_seconds, monotonic

TIME_LIMIT = 300.0  # seconds that one run may take
SPAWNED = "BENCHMARKS_SPAWNED"  # environment: when the process was started, `machine.monotonic()`
SUBJECTS = ROOT / "benchmarks" / "subjects"


@dataclass(frozen=True)
class Run:
    """One process, from start to end.

    Attributes:
        wall_s: from before it was started until it was reaped.
        cpu_s: of the process and all below it.
        others_s: CPU seconds that the machine spent on anything else meanwhile.
        withheld_s: CPU seconds that the machine's host gave to somebody else meanwhile.
        said: what the subject reports, the JSON object that is its last line.
    """

    wall_s: float
    cpu_s: float
    others_s: float
    withheld_s: float
    said: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.said[name]


@dataclass(frozen=True)
class Figure:
    """A median and what it is the median of."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float]) -> Figure:
        return cls(tuple(values))

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def least(self) -> float:
        return min(self.values)

    @property
    def greatest(self) -> float:
        return max(self.values)

    def __truediv__(self, other: Figure) -> Figure:
        """Round by round."""
        return Figure.of(mine / theirs for mine, theirs in zip(self.values, other.values, strict=True))

    def __sub__(self, other: Figure) -> Figure:
        """Round by round."""
        return Figure.of(mine - theirs for mine, theirs in zip(self.values, other.values, strict=True))

    def __add__(self, other: Figure) -> Figure:
        """Round by round."""
        return Figure.of(mine + theirs for mine, theirs in zip(self.values, other.values, strict=True))


class Series(list[Run]):
    """The runs of one subject, one per round."""

    @property
    def wall(self) -> Figure:
        return Figure.of(run.wall_s for run in self)

    @property
    def cpu(self) -> Figure:
        return Figure.of(run.cpu_s for run in self)

    def said(self, name: str) -> Figure:
        """A number that the subject reports."""
        return Figure.of(run[name] for run in self)


@dataclass
class Bench:
    """How much is measured, where files go meanwhile, and everything that was run.

    Attributes:
        runs: rounds.
        workers: compiles at a time, for every alternative that has a choice.
        folder: for workloads and caches; removed at the end.
        wanted: numbers of the table's rows.
        series: by name of the subject and its arguments.
    """

    runs: int
    workers: int
    folder: Path
    wanted: frozenset[int]
    series: dict[str, Series] = field(default_factory=dict)

    def rounds(self, subjects: Mapping[str, Callable[[], Run]], *, times: int = 1) -> dict[str, Series]:
        """Run the subjects in turn, `times` × `runs` rounds of it. The series are kept under the subjects' names."""
        done = {name: Series() for name in subjects}
        for number in range(self.runs * times):
            for name, run in subjects.items():
                done[name].append(run())
                if times == 1:
                    say(f"{number + 1}/{self.runs} {name}: {done[name][-1].wall_s:.2f} s")
        self.series.update(done)
        return done

    def subject(self, script: str, *arguments: object, caches: Path | None = None) -> Run:
        """Run `subjects/<script>.py`. `caches` holds headstart's and Triton's cache folders; by default new ones."""
        return self.python([str(SUBJECTS / f"{script}.py"), *map(str, arguments)], caches)

    def python(self, arguments: Sequence[str], caches: Path | None = None) -> Run:
        """Run Python. What it prints last is taken for its report if it is a JSON object."""
        with tempfile.TemporaryDirectory(dir=self.folder, prefix="run-") as folder:
            return _run([sys.executable, *arguments], Path(folder), caches or Path(folder))


def say(text: str) -> None:
    """Progress, for whoever watches."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def environment() -> dict[str, str]:
    """The caller's variables, but for those that would change what is measured."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("HEADSTART", "TRITON"))}
    # Else each process would compile headstart's own sources anew, which costs it more than all else that it does.
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    return env


def _run(command: list[str], folder: Path, caches: Path) -> Run:
    env = environment()
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH")]))
    env["HEADSTART_CACHE_DIR"] = str(caches / "headstart")
    env["HEADSTART_CONFIG_DIR"] = str(caches / "config")
    env["TRITON_CACHE_DIR"] = str(caches / "triton")
    out, err = folder / "out", folder / "err"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        busy, withheld = busy_seconds()
        started = monotonic()
        env[SPAWNED] = repr(started)
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, env=env)
        watchdog = threading.Timer(TIME_LIMIT, process.kill)
        watchdog.start()
        # Not `process.wait`: only wait4 tells what this child and its descendants used.
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = monotonic() - started
        busy_after, withheld_after = busy_seconds()
        watchdog.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        words = err.read_text(encoding="utf-8", errors="replace")[-4000:]
        raise RuntimeError(f"{' '.join(command)} failed (status {process.returncode}):\n{words}")
    cpu_s = usage.ru_utime + usage.ru_stime
    said = out.read_text(encoding="utf-8").strip().rpartition("\n")[2]
    return Run(
        wall_s,
        cpu_s,
        others_s=max(0.0, busy_after - busy - cpu_s),
        withheld_s=withheld_after - withheld,
        said=json.loads(said) if said.startswith("{") else {},
    )
