"""Launches kernels of a program on a driver that runs nothing: kick-offs, then launches of one that is compiled."""

import statistics
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.subjects.common import report

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "jit"))

import gpuless

from headstart.adapters.triton.adapter import Adapter

KERNELS = 40
LAUNCHES = 2_000  # in a block; blocks with and without headstart take turns
BLOCKS = 15
SPECIALIZATIONS = 5  # of each kernel, after its first

spent: list[float] = []
_before_compile = Adapter._before_compile


def timed(*arguments: Any) -> Any:
    """headstart's own part of a kick-off."""
    started = time.perf_counter()
    try:
        return _before_compile(*arguments)
    finally:
        spent.append(time.perf_counter() - started)


def block(launch: Callable[[], object]) -> float:
    """Seconds of one launch."""
    started = time.perf_counter()
    for _ in range(LAUNCHES):
        launch()
    gpuless.launches.clear()
    return (time.perf_counter() - started) / LAUNCHES


Adapter._before_compile = timed  # type: ignore[method-assign]
text = "import triton\nimport triton.language as tl\n" + "".join(
    textwrap.dedent(
        f"""
        @triton.jit
        def kernel_{number}(x, y, n, SIZE: tl.constexpr):
            at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
            value = tl.load(x + at, mask=at < n)
            for step in range({number} + 1):
                value = tl.exp(value) * {number}.5 + tl.sum(value, 0) * step
            tl.store(y + at, value, mask=at < n)
        """
    )
    for number in range(KERNELS)
)
folder = tempfile.TemporaryDirectory()
Path(folder.name, "launched_kernels.py").write_text(text)
sys.path.insert(0, folder.name)
import launched_kernels  # type: ignore[import-not-found]  # noqa: E402

adapter = Adapter()
adapter.install()
kernels = [getattr(launched_kernels, f"kernel_{number}") for number in range(KERNELS)]
x, y = gpuless.Tensor(), gpuless.Tensor()
kernels[0].warmup(x, y, 1000, SIZE=64, grid=(1,))  # Triton's own first time
first, further = [], []
for kernel in kernels[1:]:
    with adapter.foreseeing():
        spent.clear()
        kernel.warmup(x, y, 1000, SIZE=128, grid=(1,))
        first += spent
        spent.clear()
        for size in range(SPECIALIZATIONS):
            kernel.warmup(x, y, 1000, SIZE=256 << size, grid=(1,))
        further += spent
launch = lambda: kernels[0][(1,)](x, y, 1000, SIZE=64)  # noqa: E731
launch()


def bare() -> float:
    """The same without headstart's hooks."""
    adapter._hooks.remove()
    adapter.autotuning.remove()
    try:
        return block(launch)
    finally:
        adapter._hooks.install()
        adapter.autotuning.install()


block(launch)
ratios = []
for number in range(BLOCKS):
    if number % 2:
        enabled, plain = block(launch), bare()
    else:
        plain, enabled = bare(), block(launch)
    ratios.append(enabled / plain)
adapter.close()
report(first_s=statistics.median(first), further_s=statistics.median(further), launch_ratio=statistics.median(ratios))
