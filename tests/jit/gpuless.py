"""Programs that launch @triton.jit kernels on a machine without a GPU: an H100 that runs nothing.

import gpuless                   # makes the driver active
kernel[(1,)](gpuless.Tensor(), …)
gpuless.launches                 # what would have run, in order: Triton's CompiledKernel metadata and the arguments
gpuless.stages                   # "make_ir" for each time that Triton's pipeline was entered in this process
"""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import triton

from headstart.adapters.triton.dry_run import DryRunDriver
from headstart.model.target import Target


class Launch(NamedTuple):
    metadata: Any
    arguments: tuple[Any, ...]


launches: list[Launch] = []
stages: list[str] = []


class _Dtype:
    def __init__(self, name: str) -> None:
        self._name = name
        self.itemsize = int("".join(filter(str.isdecimal, name))) // 8

    def __repr__(self) -> str:
        return f"torch.{self._name}"


class Tensor:
    """What Triton looks at in a tensor."""

    def __init__(self, dtype: str = "float32", address: int = 1 << 20) -> None:
        self.dtype = _Dtype(dtype)
        self.address = address
        self.zeroed = 0

    def data_ptr(self) -> int:
        return self.address

    def ptr_range(self) -> int:
        return 0

    def zero_(self) -> None:
        self.zeroed += 1


class Driver(DryRunDriver):
    """Notes launches, and takes more warps to be faster."""

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        def launch(x: int, y: int, z: int, stream: int, function: Any, packed: Any, *rest: Any) -> None:
            _, _enter, _exit, *arguments = rest
            launches.append(Launch(metadata, tuple(arguments)))

        return launch

    def get_benchmarker(self) -> Any:
        return benchmark


def benchmark(call: Any, quantiles: Any) -> list[float]:
    """More warps are faster."""
    call()
    return [1.0 / launches[-1].metadata.num_warps] * 3


def _watch_pipeline() -> None:
    """Note each context of MLIR: the pipeline begins with one, and nothing else makes any.

    Triton's own Python stays as it is, since a program that changes that is compiled in process.
    """
    ir = importlib.import_module("triton._C.libtriton").ir
    context = ir.context

    def watched() -> Any:
        stages.append("make_ir")
        return context()

    ir.context = watched


triton.runtime.driver.set_active(Driver(Target.parse("cuda:90")))
_watch_pipeline()
