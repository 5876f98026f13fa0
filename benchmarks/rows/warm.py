"""Row 6: warm from a bundle, against Triton's own warm cache on disk."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import workloads
from benchmarks.measure import Bench, Figure, Series
from benchmarks.report import Line
from headstart.artifacts.bundle import Bundle

NUMBERS = (6,)

_FIRST_GOAL = 60e-3  # seconds
_FURTHER_GOAL = 0.2e-3  # seconds
_TRITON_GOAL = 1 / 5


def measure(bench: Bench) -> Iterator[Line]:
    """All kernels of the generator, in fresh processes.

    Once with the cache folder of the process that made the bundle, and once with an empty one, as where a bundle
    was brought along: there the toolchain has to be identified anew.
    """
    path = workloads.write(bench, "codegen")
    caches, bundle = bench.folder / "warm", bench.folder / "codegen.bundle"
    bench.subject("build_bundle", path, bench.workers, bundle, caches=caches)
    bench.subject("compile_forked", path, bench.workers, caches=caches)
    runs = bench.rounds(
        {
            "warm, bundle": lambda: bench.subject("warm_headstart", path, bundle, caches=caches),
            "warm, bundle brought along": lambda: bench.subject("warm_headstart", path, bundle),
            "warm, Triton's cache": lambda: bench.subject("warm_triton", path, caches=caches),
        }
    )
    bundled, brought, triton = runs.values()
    first, further, total = (bundled.said(f"{what}_s") for what in ("first", "further", "total"))

    def milli(series: Series, what: str) -> str:
        return f"{series.said(what).median * 1e3:.2f} ms"

    yield Line(
        6,
        "warm, bundle: first kernel",
        first,
        unit="ms",
        goal=_FIRST_GOAL,
        note=(
            f"from before `import headstart`; {milli(bundled, 'first_from_spawn_s')} from the start of the process. "
            f"Triton's cache: {milli(triton, 'first_s')} from before `import triton`, "
            f"{milli(triton, 'first_from_spawn_s')} from the start"
        ),
    )
    yield Line(6, "warm, bundle brought along, cache folder empty: first kernel", brought.said("first_s"), unit="ms")
    yield Line(6, "warm, bundle: each further kernel", further, unit="ms", goal=_FURTHER_GOAL)
    yield Line(
        6,
        "warm, each further kernel: bundle : Triton's cache",
        further / triton.said("further_s"),
        goal=_TRITON_GOAL,
        note=(
            f"Triton's takes {milli(triton, 'further_s')}, of which triton.compile "
            f"{milli(triton, 'further_compile_s')} and the rest the source's execution"
        ),
    )
    yield Line(
        6,
        "warm, each further kernel: bundle : triton.compile alone",
        further / triton.said("further_compile_s"),
    )
    yield Line(
        6,
        f"warm, all {bundled[0]['kernels']} kernels, imports included: bundle : Triton's cache",
        total / triton.said("total_s"),
        goal=_TRITON_GOAL,
        note=f"{milli(bundled, 'total_s')} and {milli(triton, 'total_s')}",
    )
    size, entries = bundle.stat().st_size, sum(item.entry_size for item in Bundle.open(bundle))
    yield Line(
        6,
        f"bundle of {bundled[0]['kernels']} kernels: bytes : their entries'",
        Figure.of([size / entries]),
        note=f"{size / 1e6:.2f} MB and {entries / 1e6:.2f} MB; counted once, it does not vary",
    )
    if {run["digest"] for run in [*bundled, *brought, *triton]} != {bundled[0]["digest"]}:
        raise RuntimeError("the bundle and Triton's cache hold different binaries")
