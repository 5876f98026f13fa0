"""The kernels that are compiled, as files that subjects load without importing anything.

`codegen` is what the generator of `examples/` emits; `sweep` is one matrix product in 48 configurations, as an
autotuner asks for them; `rows` are softmaxes and a row sum in 36 configurations, of which 9 become different programs;
`stages` is every fourth kernel of `codegen` in three depths of a pipeline, which most of them do not have. A workload
file is a marshalled list of (name, source, arguments of `AsyncCompile.triton`).
"""

from __future__ import annotations

import itertools
import marshal
from collections.abc import Iterator
from pathlib import Path

from examples import codegen

from benchmarks.measure import Bench

TARGET = "cuda:90"
NAMES = ("codegen", "sweep")  # those that stand for what programs ask for

_ROWS = """\
import triton
import triton.language as tl


@triton.jit
def softmax(x, y, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    value = tl.load(x + row * columns + i, mask=i < columns, other=float("-inf"))
    value = tl.exp(value - tl.max(value, 0))
    tl.store(y + row * columns + i, value / tl.sum(value, 0), mask=i < columns)


@triton.jit
def row_sum(x, y, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    tl.store(y + row, tl.sum(tl.load(x + row * columns + i, mask=i < columns, other=0.0), 0))
"""


def write(bench: Bench, name: str, *, every: int = 1) -> Path:
    """The file of a workload, written at its first use. `every`: 4 takes one kernel of four."""
    path = bench.folder / f"{name}-{every}.kernels"
    if not path.exists():
        path.write_bytes(marshal.dumps(list(itertools.islice(_KERNELS[name](), 0, None, every))))
    return path


def _rows() -> Iterator[codegen.Kernel]:
    cases = (("softmax", 1024), ("softmax", 4096), ("row_sum", 4096))
    for (name, block), warps, stages in itertools.product(cases, (2, 4, 8), (1, 2, 3, 4)):
        how = {
            "signature": {"x": "*fp32", "y": "*fp32", "columns": "i32", "BLOCK": "constexpr"},
            "constants": {"BLOCK": block},
            "attrs": {(i,): [["tt.divisibility", 16]] for i in range(3)},
            "options": {"num_warps": warps, "num_stages": stages},
        }
        yield name, _ROWS, how


def _stages() -> Iterator[codegen.Kernel]:
    for name, source, how in codegen.collect()[1][::4]:
        for stages in (2, 3, 4):
            yield name, source, {**how, "options": {**how.get("options", {}), "num_stages": stages}}


_KERNELS = {
    "codegen": lambda: iter(codegen.collect()[1]),
    "sweep": codegen.matmul_sweep,
    "rows": _rows,
    "stages": _stages,
}
