"""Programs that launch @triton.jit kernels on a machine without a GPU: an H100 that runs nothing.

    import gpuless                   # makes the driver active
    kernel[(1,)](gpuless.Tensor(), …)
    gpuless.launches                 # what would have run, in order: Triton's CompiledKernel metadata and the arguments
    gpuless.stages                   # what of Triton's pipeline was entered in this process: "make_ir", "ttir", …
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from headstart.jit.dry_run import DryRunDriver
from headstart.target import Target


class Launch(NamedTuple):
    metadata: Any
    arguments: tuple[Any, ...]


launches: list[Launch] = []
stages: list[str] = []


class _Dtype:
    def __init__(self, name: str) -> None:
        self._name = name
        self.itemsize = int(name.removeprefix("float")) // 8

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
    backend = type(triton.compiler.make_backend(GPUTarget("cuda", 90, 32)))
    add_stages, make_ir = backend.add_stages, ASTSource.make_ir

    def watched(name: str, stage: Any) -> Any:
        def run(*arguments: Any) -> Any:
            stages.append(name)
            return stage(*arguments)

        return run

    def add(self: Any, found: dict[str, Any], *arguments: Any) -> None:
        add_stages(self, found, *arguments)
        found.update({name: watched(name, stage) for name, stage in found.items()})

    backend.add_stages = add
    ASTSource.make_ir = watched("make_ir", make_ir)


triton.runtime.driver.set_active(Driver(Target.parse("cuda:90")))
_watch_pipeline()
