"""The kernels that are compiled, as files that subjects load without importing anything.

`codegen` is what the generator of `examples/` emits; `sweep` is one matrix product in 48 configurations, as an
autotuner asks for them. A workload file is a marshalled list of (name, source, arguments of `AsyncCompile.triton`).
"""

from __future__ import annotations

import marshal
from pathlib import Path

from examples import codegen

from benchmarks.measure import Bench

TARGET = "cuda:90"
NAMES = ("codegen", "sweep")


def write(bench: Bench, name: str, *, every: int = 1) -> Path:
    """The file of a workload, written at its first use. `every`: 4 takes one kernel of four."""
    path = bench.folder / f"{name}-{every}.kernels"
    if not path.exists():
        kernels = codegen.collect()[1] if name == "codegen" else list(codegen.matmul_sweep())
        path.write_bytes(marshal.dumps(kernels[::every]))
    return path
