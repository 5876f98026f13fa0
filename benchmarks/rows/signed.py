"""Row 26: what it costs to find out whether a bundle of 10,000 kernels is trusted."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from benchmarks.measure import Bench
from benchmarks.report import Line

NUMBERS = (26,)

_KERNELS = 10_000
_GOAL = 15e-3  # seconds
_TIMES = 4  # as many rounds as elsewhere, since they are short


def measure(bench: Bench) -> Iterator[Line]:
    """Opening a signed bundle that has code in it, less opening one of kernels alone, each in a fresh process."""
    bench.subject("write_signed", _KERNELS, bench.folder, caches=bench.folder)
    names = ("unsigned", "local", "ed25519")
    runs = bench.rounds(
        {
            f"open a bundle, {name}": partial(
                bench.subject, "signed", bench.folder / f"{name}.bundle", caches=bench.folder
            )
            for name in names
        },
        times=_TIMES,
    )
    plain, *signed = runs.values()
    opening = f"{plain.said('opening_s').median * 1e3:.1f} ms"
    for name, series in zip(names[1:], signed, strict=True):
        assert all(run["trusted"] for run in series), f"{name} is not trusted"
        yield Line(
            26,
            f"verifying a bundle of {_KERNELS} kernels, signed by {name}",
            series.said("opening_s") - plain.said("opening_s"),
            unit="ms",
            goal=_GOAL,
            note=f"added to opening an unsigned one, {opening}; of the process's own CPU time "
            f"{(series.said('cpu_s') - plain.said('cpu_s')).median * 1e3:.1f} ms; imports are in it, loaded: "
            f"{', '.join(series[0]['loaded']) or 'no package'}",
        )
