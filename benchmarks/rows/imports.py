"""Row 7: `import headstart`."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.measure import Bench
from benchmarks.report import Line

NUMBERS = (7,)

_GOAL = 30e-3  # seconds
_TIMES = 5  # as many rounds as elsewhere, since they are short
_CHECK = """
import sys, headstart, json
headstart.AsyncCompile
print(json.dumps({"loaded": sorted({"triton", "torch"} & set(sys.modules))}))
"""


def measure(bench: Bench) -> Iterator[Line]:
    """Whole processes less bare ones beside them."""
    runs = bench.rounds(
        {
            "bare interpreter": lambda: bench.python(["-c", "pass"]),
            "import headstart": lambda: bench.python(["-c", "import headstart"]),
            "import of AsyncCompile": lambda: bench.python(["-c", "from headstart import AsyncCompile"]),
        },
        times=_TIMES,
    )
    bare, package, client = (series.wall for series in runs.values())
    loaded = bench.python(["-c", _CHECK])["loaded"]
    yield Line(
        7,
        "import headstart",
        package - bare,
        unit="ms",
        goal=_GOAL if not loaded else 0.0,
        note=f"triton or torch loaded by it or by AsyncCompile: {', '.join(loaded) or 'neither'}",
    )
    yield Line(7, "from headstart import AsyncCompile", client - bare, unit="ms")
