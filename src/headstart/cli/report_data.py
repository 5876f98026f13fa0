"""What the page of `headstart report` shows, as plain data: also `--json`. Every text in it may be anybody's.

Times are seconds on one clock, from the run's beginning on. A process of another host is placed by its own clock.
"""

from __future__ import annotations

import datetime as dt
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

from headstart.artifacts import runs
from headstart.cli import count
from headstart.cli.report_kernels import STAGES, Page, seconds_text, stages_of
from headstart.cli.run_facts import Library
from headstart.cli.run_times import blocked_s, compiles, hidden_s, offset_of, total_s, union
from headstart.cli.why import COMPILED

HISTORY = 20  # runs


def report_data(folder: Path, run: runs.Run) -> dict[str, Any]:
    """All of it, for one run of the cache folder `folder`."""
    page = Page(Library(folder))
    for process in run.processes:
        page.add(process, offset_of(process.head, run.head))
    page.misses(folder, run)
    figures = _figures(run, page)
    return {
        "headstart": 1,
        "run": _run_fields(run),
        "sentence": sentence(figures, run),
        "commands": commands(run),
        "figures": figures,
        "processes": page.processes,
        "kernels": page.kernels,
        "sources": page.sources,
        "lanes": page.lanes,
        "queue": page.queue(),
        "stages": _stage_totals(run),
        "stalls": page.stalls(),
        "misses": page.missed,
        "sweeps": page.sweeps,
        "fell_back": page.fell_back,
        "history": history(folder),
    }


def sentence(figures: dict[str, Any], run: runs.Run) -> str:
    """What was gained, in one sentence of figures."""
    told = [count(figures["kernels"], "kernel")]
    if figures["compiled"]:
        side_by_side = figures["compile_s"] - figures["compiling_for_s"] > max(0.05, figures["compile_s"] / 20)
        parallel = f" ({seconds_text(figures['compiling_for_s'])} in parallel)" if side_by_side else ""
        told.append(f"{figures['compiled']} compiled in {seconds_text(figures['compile_s'])} of compiling{parallel}")
    if figures["shared"]:
        told.append(f"{figures['shared']} answered by the same compiles")
    if hits := figures["hits"]:
        saved = f", which saves {seconds_text(figures['saved_s'])} of compiling" if figures["saved_s"] >= 0.05 else ""
        told.append(f"{hits} there already{saved}")
    if figures["failed"]:
        told.append(f"{figures['failed']} failed")
    if figures["pending"]:
        told.append(f"{figures['pending']} without an answer")
    if run.head.kind == "build":  # nobody goes on meanwhile
        told.append(f"{seconds_text(figures['wall_s'])} with {count(run.head.workers, 'worker')}")
    else:
        told.append(f"{seconds_text(figures['waited_s'])} waited for")
        if figures["compiled"]:
            told.append(f"{seconds_text(figures['hidden_s'])} hidden")
    state = {"running": "; it still runs", "killed": "; it was killed"}.get(run.state, "")
    return f"{', '.join(told)}{state}."


def commands(run: runs.Run) -> list[dict[str, str]]:
    """What to type next, and what for."""
    head = run.head
    if not any(kernel.origin in COMPILED for kernel in run.kernels):
        return []
    words = head.program.split()
    is_module = words[:1] == ["-m"] and len(words) > 1
    program = f"-m {shlex.quote(words[1])}" if is_module else shlex.quote(head.program or "app.py")
    if head.kind == "run" and head.record:
        stem = words[1] if is_module else Path(head.program).stem
        bundle = shlex.quote(f"{stem or 'app'}.bundle")
        built = f"headstart build --trust {shlex.quote(head.record)} -o {bundle}"
        return [
            {
                "why": "The next start from a bundle compiles none of them:",
                "command": f"{built} && headstart run --bundle {bundle} {program}",
            }
        ]
    if head.kind == "build" and head.bundle:
        return [
            {
                "why": "A program that is started from it compiles none of them:",
                "command": f"headstart run --bundle {shlex.quote(head.bundle)} app.py",
            }
        ]
    return [{"why": "Recorded, and the next time kicked off from the start:", "command": f"headstart run {program}"}]


def history(folder: Path) -> list[dict[str, Any]]:
    """The origins of kernels in the latest runs, the earliest of them first."""
    found = [
        {
            "run": each.name,
            "program": Path(each.head.program).name,
            "began": _when(each.head.began),
            "origins": dict(Counter(kernel.origin for kernel in each.kernels)),
        }
        for each in runs.runs(folder, HISTORY)
    ]
    return found[::-1]


def _stage_totals(run: runs.Run) -> dict[str, float]:
    total: dict[str, float] = {}
    for each in compiles(run):
        for name, took in stages_of(each.kernel):
            total[name] = total.get(name, 0.0) + took
    return {name: round(total[name], 3) for name in STAGES if total.get(name)}


def _figures(run: runs.Run, page: Page) -> dict[str, Any]:
    origins = Counter(kernel.origin for kernel in run.kernels)
    made = compiles(run)
    answered = sum(bool(kernel.compile_s) for kernel in run.kernels)
    # Ranks wait side by side: the run waits for the slowest.
    waited_s = max((blocked_s(process) for process in run.processes), default=0.0)
    return {
        "kernels": origins.total(),
        "compiled": origins["worker"] - (answered - len(made)),
        "shared": answered - len(made),
        "hits": origins["store"] + origins["bundle"] + origins["remote"] + origins["farm"],
        "failed": origins["failed"],
        "pending": origins["pending"],
        "origins": dict(origins),
        "compile_s": round(sum(each.kernel.compile_s for each in made), 3),
        "compiling_for_s": round(total_s(union(each.span for each in made)), 3),
        "cpu_s": round(sum(each.kernel.cpu_s for each in made), 3),
        "saved_s": round(sum(kernel["saved_s"] for kernel in page.kernels), 3),
        "waited_s": round(waited_s, 3),
        "hidden_s": round(hidden_s(run, made), 3),
        "wall_s": round(max((process["end"] for process in page.processes), default=0.0), 3),
        "joined": sum(process.joined for process in run.processes),
    }


def _run_fields(run: runs.Run) -> dict[str, Any]:
    head = run.head
    return {
        "id": run.name,
        "program": head.program,
        "kind": head.kind,
        "state": run.state,
        "began": _when(head.began),
        "host": head.host,
        "triton": run.triton,
        "python": head.python,
        "headstart": head.headstart,
        "workers": head.workers,
        "bundle": head.bundle,
        "record": head.record,
    }


def _when(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.timezone.utc).astimezone().isoformat(timespec="seconds")
