"""What `make demo` runs: the code generator of this folder, with its kernels compiled while it generates. Needs no GPU.

The first run compiles everything, shows what overlapped, and does the same once more with every compile kicked off only
after generation, for comparison. It leaves a bundle behind: further runs find all kernels in it and compile nothing.
Every run ends by timing a fresh process that starts from that bundle.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import codegen
from rich.console import Console
from rich.table import Table

import headstart

WIDTH = 60  # columns of the timeline
LEVELS = " ▁▂▃▄▅▆▇█"
SMALLEST_TERMINAL = 100  # columns; a pipe has none, and names of kernels should not wrap in it


@dataclass
class Run:
    """One generation with its compiles. Moments are `time.monotonic()` seconds."""

    text: str
    began: float
    generated: float
    ended: float
    cpu: float  # seconds that generation took of one CPU
    statistics: headstart.Statistics
    spans: list[headstart.Span]
    services: int

    @property
    def generation(self) -> float:
        return self.generated - self.began

    @property
    def total(self) -> float:
        return self.ended - self.began


def generate(*, late: bool, **how: Any) -> Run:
    """Both phases. `late`: nothing is kicked off before generation is finished."""
    with headstart.AsyncCompile(**how) as async_compile:
        began, cpu = time.monotonic(), time.thread_time()
        if late:
            collected: list[codegen.Kernel] = []
            text = codegen.generate(None, define_kernel=lambda *kernel: collected.append(kernel))
        else:
            text = codegen.generate(async_compile)
        # Of this thread only: the one that talks to the service is no part of the generator.
        cpu = time.thread_time() - cpu
        generated = time.monotonic()
        if late:
            for name, source, arguments in collected:
                async_compile.triton(name, source, **arguments)
        codegen.run_module(text, async_compile)
        ended = time.monotonic()
        statistics, spans = async_compile.statistics, async_compile.timeline
        return Run(text, began, generated, ended, cpu, statistics, spans, async_compile.services_started)


# The second start


class FirstKernel:
    """Passes everything on to an AsyncCompile, and notes when the first kernel's binary was at hand."""

    def __init__(self, async_compile: headstart.AsyncCompile) -> None:
        self._async_compile = async_compile
        self.ready: float | None = None
        self.wait = async_compile.wait

    def triton(self, *args: Any, **kwargs: Any) -> Any:
        future = self._async_compile.triton(*args, **kwargs)
        if self.ready is None:
            binary(future.result())
            self.ready = time.monotonic()
        return future


def binary(kernel: headstart.CompiledKernel) -> bytes:
    return next(kernel.asm[kind] for kind in ("cubin", "hsaco") if kind in kernel.asm)


def second_start(text: str, bundle: Path, target: str, workers: int) -> dict[str, Any]:
    """What a fresh process reports that runs the generated module, with the bundle as its only source of kernels."""
    with tempfile.TemporaryDirectory() as folder:
        module = Path(folder) / "generated.py"
        module.write_text(text)
        command = [sys.executable, __file__, "--target", target, "--workers", str(workers)]
        command += ["--second-start", str(module), str(bundle), str(time.monotonic())]
        return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def report_second_start(module: Path, bundle: Path, spawned: float, target: str, workers: int) -> None:
    """In the fresh process. `spawned`: when its parent started it; both read the same monotonic clock."""
    running = time.monotonic()
    with headstart.AsyncCompile(target=target, workers=workers, bundle=bundle) as async_compile:
        first = FirstKernel(async_compile)
        scope = codegen.run_module(module.read_text(), first)
        size = sum(len(binary(x)) for x in scope.values() if isinstance(x, headstart.CompiledKernel))
        ended = time.monotonic()
        statistics = async_compile.statistics
        report = {
            "python": running - spawned,
            "first": (first.ready or ended) - running,
            "all": ended - running,
            "kernels": statistics.cached,
            "bytes": size,
            "compiled": statistics.compiled,
            "services": async_compile.services_started,
            "triton": "triton" in sys.modules,
        }
    print(json.dumps(report))


# Drawing


def strip(length: float, value: Callable[[float, float], float]) -> str:
    """One character per slice of time; `value(from, to)` in 0..1 is how full it is."""
    step = length / WIDTH
    cells = (value(i * step, (i + 1) * step) for i in range(WIDTH))
    # What is there at all is visible, however little it is.
    return "".join(LEVELS[0 if x <= 0 else max(1, round(min(x, 1.0) * 8))] for x in cells)


def overlap(a: float, b: float, since: float, until: float) -> float:
    return max(0.0, min(b, until) - max(a, since))


def draw(console: Console, run: Run, length: float, title: str) -> None:
    """The run as three rows on one clock of `length` seconds."""
    compiles = [
        (span.started - run.began, span.finished - run.began)
        for span in run.spans
        if span.started is not None and span.finished is not None
    ]
    workers = run.statistics.workers

    def busy(a: float, b: float) -> float:
        return sum(overlap(a, b, *compile_) for compile_ in compiles) / (b - a) / workers

    def between(since: float, until: float) -> Callable[[float, float], float]:
        return lambda a, b: overlap(a, b, since, until) / (b - a)

    console.print(f"\n[bold]{title}[/]")
    note = f"{len(compiles)} kernels, {workers} at a time" if compiles else "nothing to compile"
    rows = (
        ("generate", "cyan", between(0, run.generation), f"{run.generation:.1f} s"),
        ("compile", "green", busy, note),
        ("wait", "yellow", between(run.generation, run.total), f"{run.total - run.generation:.1f} s"),
    )
    for label, colour, value, note in rows:
        console.print(f"  {label:9}[{colour}]{strip(length, value)}[/] {note}", highlight=False)
    if compiles:
        first = min(started for started, _ in compiles)
        hidden = sum(overlap(0, run.generation, *compile_) for compile_ in compiles)
        share = hidden / sum(until - since for since, until in compiles)
        console.print(
            f"  {'':9}first compile after {first:.2f} s; {share:.0%} of the compiling during generation",
            highlight=False,
        )


def compare(console: Console, early: Run, late: Run) -> None:
    cpus = len(os.sched_getaffinity(0))
    table = Table(title="\nThe same kernels, workers and empty store", title_justify="left")
    table.add_column("compiles kicked off")
    for heading in ("generation", "wait after it", "total", "G (CPU)", "W (CPU)", f"of {cpus} CPUs"):
        table.add_column(heading, justify="right")
    for label, run in (("after generation", late), ("during generation", early)):
        seconds = (run.generation, run.total - run.generation, run.total, run.cpu, run.statistics.cpu_s)
        used = (run.cpu + run.statistics.cpu_s) / (run.total * cpus)
        table.add_row(label, *(f"{x:.2f} s" for x in seconds), f"{used:.0%}")
    console.print(table)
    console.print("G: CPU time of generation. W: CPU time of all compiles.", highlight=False)
    gained = late.total - early.total
    if gained > 0:
        ratio = late.total / early.total
        console.print(
            f"Kicked off during generation, it ended {gained:.2f} s sooner: {ratio:.2f} times as fast.",
            highlight=False,
        )
    else:
        console.print(
            f"Kicked off during generation, it ended {-gained:.2f} s later. That happens when other programs use the "
            "CPUs during one of the two runs: compare the last column.",
            highlight=False,
        )


def summarize(console: Console, run: Run, bundle: Path) -> None:
    s = run.statistics
    console.print(
        f"\nrequested {s.requested}, compiled {s.compiled}, cached {s.cached}, deduplicated {s.deduplicated}"
        f" (the module asks for what generation had kicked off); G {run.cpu:.2f} s, W {s.cpu_s:.2f} s of CPU",
        highlight=False,
    )
    if not s.compiled:
        sources = sorted({f"the {span.origin}" for span in run.spans})
        console.print(
            f"[bold]Nothing was compiled[/]: all {s.cached} kernels came from {' and '.join(sources)}, "
            f"and {run.services or 'no'} compile service was started.",
            highlight=False,
        )
    where = f"{bundle} ({bundle.stat().st_size / 2**20:.1f} MiB)" if bundle.exists() else "none could be written"
    console.print(f"bundle: {where}", highlight=False, soft_wrap=True)


def show_second_start(console: Console, report: dict[str, Any]) -> None:
    console.print("\n[bold]A fresh process that starts from the bundle[/]")
    console.print(
        f"  first kernel after {report['first'] * 1e3:.0f} ms, all {report['kernels']} after "
        f"{report['all'] * 1e3:.0f} ms ({report['bytes'] / 2**20:.1f} MiB of binaries read and verified); "
        f"starting Python and importing took {report['python'] * 1e3:.0f} ms before that",
        highlight=False,
    )
    console.print(
        f"  compiled {report['compiled']}, Triton imported: {'yes' if report['triton'] else 'no'}, "
        f"compile services started: {report['services']}"
        + (", so no worker processes" if not report["services"] else ""),
        highlight=False,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--target", default="cuda:90", help="what to compile for, e.g. hip:gfx942")
    parser.add_argument("--workers", type=int, default=2, help="compiles that may run at once")
    parser.add_argument("--fresh", action="store_true", help="as if for the first time: no bundle, empty store")
    parser.add_argument("--second-start", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.second_start:
        module, bundle, spawned = options.second_start
        report_second_start(Path(module), Path(bundle), float(spawned), options.target, options.workers)
        return
    demo(options.target, options.workers, options.fresh)


def demo(target: str, workers: int, fresh: bool) -> None:
    console = Console()
    if console.width < SMALLEST_TERMINAL and not console.is_terminal:
        console = Console(width=SMALLEST_TERMINAL)
    bundle = headstart.cache_dir() / "bundles" / "codegen-demo.bundle"
    how = {"target": target, "workers": workers}
    with tempfile.TemporaryDirectory() as empty, tempfile.TemporaryDirectory() as also_empty:
        if fresh:
            bundle.unlink(missing_ok=True)
        cold = {"cache_dir": empty} if fresh else {}
        console.print(f"Generating kernels for {target} with {workers} workers …", highlight=False)
        early = generate(late=False, bundle=bundle, **how, **cold)
        everything = early.statistics.requested - early.statistics.deduplicated
        # A comparison is fair only against a run that had to compile everything, as this one will.
        late = None
        if early.statistics.compiled == everything:
            console.print("The same again, kicking off only after generation, for comparison …")
            late = generate(late=True, cache_dir=also_empty, **how)
    length = max(early.total, late.total if late else 0.0)
    draw(console, early, length, "Each compile kicked off the moment its kernel is generated")
    if late:
        draw(console, late, length, "All compiles kicked off after generation")
        compare(console, early, late)
    summarize(console, early, bundle)
    if not bundle.exists():
        return
    show_second_start(console, second_start(early.text, bundle, target, workers))
    again = "to do all of it anew" if not early.statistics.compiled else "and everything will come from the bundle"
    console.print(f"\nRun this again{' with --fresh' * (not early.statistics.compiled)} {again}.")


if __name__ == "__main__":
    try:
        main()
    except headstart.HeadstartError as error:
        sys.exit(f"error: {error}")
