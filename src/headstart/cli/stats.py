"""`headstart stats`: what headstart was good for, over the runs whose logs are kept."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import click
import msgspec

from headstart.artifacts import runs
from headstart.cli import count, json_line, printable
from headstart.cli.run_times import Compiles, blocked_s
from headstart.system.folders import cache_dir

_ORIGINS = {
    "worker": "compiled",
    "store": "from the cache",
    "bundle": "from a bundle",
    "remote": "from other hosts",
    "farm": "by a farm",
    "failed": "failed",
    "cancelled": "cancelled",
    "pending": "not answered",
}
_STAGES = dict.fromkeys(("ir_initialization", "ttir", "store_results"), "front end")
_STAGES |= dict.fromkeys(("cubin", "hsaco"), "assembler")
_SLOWEST, _SLOWEST_VERBOSE = 5, 30
_WIDTH = 24  # columns of a name


class Slow(msgspec.Struct, frozen=True):
    """One kernel that took long."""

    name: str
    label: str
    target: str
    compile_s: float
    program: str


class Trouble(msgspec.Struct, frozen=True, order=True):
    """Something that failed, or that the program's process compiled, and how often."""

    name: str
    why: str
    times: int


class Totals(msgspec.Struct):
    """Over runs.

    Attributes:
        since: when the earliest began, seconds since 1970; 0: there is none.
        asked: requests, those not counted that an earlier one's future answered, which are
        joined.
        origins: requests by who had them; see `runs.Kernel.origin`.
        compile_s: of compiling, one compile once, and by `stages`.
        saved_s: that were not compiled again, as far as it is known how long they took.
        waited_s: in which somebody was blocked on a kernel.
    """

    runs: int = 0
    processes: int = 0
    since: float = 0.0
    asked: int = 0
    joined: int = 0
    origins: dict[str, int] = {}
    compile_s: float = 0.0
    cpu_s: float = 0.0
    saved_s: float = 0.0
    waited_s: float = 0.0
    stages: dict[str, float] = {}
    slowest: list[Slow] = []
    failures: list[Trouble] = []
    fell_back: list[Trouble] = []
    killed: int = 0


@click.command(short_help="Show what headstart was good for, over runs.")
@click.option("-v", "--verbose", is_flag=True, help="Name more of what was slow, failed or fell back.")
@click.option("--reset", is_flag=True, help="Forget all runs but those that are going on; headstart report too.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def stats(verbose: bool, reset: bool, as_json: bool) -> None:
    """Show where kernels came from, how long compiling took and how much of it was saved, over the runs that are kept.

    HEADSTART_KEEP_RUNS says how many these are. What a kernel from the cache saves is what its compile had taken.
    """
    folder = cache_dir()
    if reset:
        removed = runs.forget(folder, 0)
        click.echo(json_line({"forgotten": removed}) if as_json else f"{count(removed, 'run')} forgotten")
        return
    found = totals(runs.runs(folder), _SLOWEST_VERBOSE if verbose else _SLOWEST)
    click.echo(json_line(msgspec.to_builtins(found)) if as_json else text(found, folder))


def totals(found: Iterable[runs.Run], most: int) -> Totals:
    """Over these runs; of lists, the first `most`."""
    total = Totals()
    compiles = Compiles()
    known: dict[str, float] = {}  # seconds by key; the key of a kernel from a bundle is not in the log
    spared: list[runs.Kernel] = []
    slow: dict[tuple[str, str, str], Slow] = {}
    failures: Counter[tuple[str, str]] = Counter()
    fell_back: Counter[tuple[str, str]] = Counter()
    origins: Counter[str] = Counter()
    for run in found:
        total.runs += 1
        total.killed += run.state == "killed"
        total.since = min(total.since or run.head.began, run.head.began)
        for process in run.processes:
            total.processes += 1
            total.joined += process.joined
            total.waited_s += blocked_s(process)
            fell_back.update(process.fell_back)
            for kernel in process.kernels.values():
                origins[kernel.origin] += 1
                if kernel.compile_s and compiles.told(kernel, process.head)[1]:
                    total.compile_s += kernel.compile_s
                    total.cpu_s += kernel.cpu_s
                    for stage, seconds in kernel.stages:
                        name = _STAGES.get(stage, stage)
                        total.stages[name] = total.stages.get(name, 0.0) + seconds
                if kernel.origin == "failed":
                    failures[kernel.name, kernel.error] += 1
                elif kernel.compile_s:
                    if kernel.key:
                        known[kernel.key] = max(known.get(kernel.key, 0.0), kernel.compile_s)
                    which = (kernel.name, kernel.label, kernel.target)
                    if which not in slow or slow[which].compile_s < kernel.compile_s:
                        slow[which] = Slow(*which, kernel.compile_s, process.head.program)
                elif kernel.origin in ("store", "bundle", "remote", "farm"):
                    spared.append(kernel)
    total.asked = sum(origins.values())
    total.origins = {origin: origins[origin] for origin in _ORIGINS if origins[origin]}
    total.saved_s = sum(kernel.saved_s or known.get(kernel.key, 0.0) for kernel in spared)
    total.slowest = sorted(slow.values(), key=lambda each: -each.compile_s)[:most]
    total.failures = [Trouble(*what, times) for what, times in failures.most_common(most)]
    total.fell_back = [Trouble(*what, times) for what, times in fell_back.most_common(most)]
    return total


def text(total: Totals, folder: Path) -> str:
    """For people."""
    if not total.runs:
        return f"no runs are kept in {printable(str(folder))}: headstart run app.py makes one"
    day = dt.datetime.fromtimestamp(total.since, dt.timezone.utc).astimezone().strftime("%Y-%m-%d %H:%M")
    killed = f", {total.killed} of them killed" if total.killed else ""
    lines = [f"{count(total.runs, 'run')} since {day}{killed}", "", _row("kernels asked for", f"{total.asked:,}")]
    for origin, number in total.origins.items():
        lines.append(_row(f"  {_ORIGINS[origin]}", f"{number:,}", f"{100 * number / total.asked:.1f} %"))
    if total.joined:
        lines.append(_row("  the same again", f"{total.joined:,}", "answered by the first one's future, not counted"))
    lines.append(_row("compiling", f"{total.compile_s:,.1f} s"))
    staged = sum(total.stages.values())
    for stage, seconds in total.stages.items():
        lines.append(_row(f"  {printable(stage)}", f"{seconds:,.1f} s", f"{100 * seconds / max(staged, 1e-9):.1f} %"))
    lines += [_row("saved", f"{total.saved_s:,.1f} s"), _row("waited for", f"{total.waited_s:,.1f} s")]
    if total.slowest:
        lines += ["", "slowest kernels"]
        lines += [f"  {each.compile_s:7.2f} s  {printable(_named(each))}" for each in total.slowest]
    for title, several in (("failures", total.failures), ("compiled in the program's process", total.fell_back)):
        if several:
            lines += ["", title]
            lines += [f"  {each.times:5} ×  {printable(each.name)}: {printable(each.why)}" for each in several]
    return "\n".join(lines)


def _row(name: str, value: str, more: str = "") -> str:
    return f"{name:{_WIDTH}}{value:>14}  {more}".rstrip()


def _named(each: Slow) -> str:
    return f"{each.name} {each.label}  {each.target}  {Path(each.program).name}"
