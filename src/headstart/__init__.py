"""Compile Triton kernels before the program needs them.

The rooms, lowest first; each imports only from those above it. docs/architecture.md says what runs in which process.

    errors      what can go wrong
    system/     what the machine and the user give: folders, files, locks, processes, confinement, settings
    model/      what is compiled, and by what, as plain data
    wire/       the messages between the processes, and how they are framed
    artifacts/  files that outlive a process and travel; what of one from elsewhere may be used
    stores/     many entries by key
    capture/    a live `@triton.jit` function as plain data
    describe/   what Inductor's decorators make of a source; the process that has torch
    worker/     the processes that have Triton
    remote/     the process that has the stores of other hosts
    service/    the process between clients and workers: it queues, finds, answers
    client/     what runs in the user's process: AsyncCompile, futures, the connection
    farm/       the process that has a Ray cluster, and what runs on its nodes
    adapters/   how programs come by it without asking: torch.compile, `@triton.jit` programs, `headstart run`
    cli/        the `headstart` command, `__main__` too

`captured`, `inductor`, `keys`, `request` and `values` are public names of what lies in the rooms.

Importing this package loads none of them: names are looked up when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "AsyncCompile",
    "BundleUse",
    "CannotTravel",
    "CompileError",
    "CompileErrors",
    "CompileOutOfMemory",
    "CompileTimeout",
    "CompiledKernel",
    "CompiledTritonKernels",
    "CompilerCrashed",
    "DamagedError",
    "FutureVersionError",
    "HeadstartError",
    "KernelSpec",
    "LambdaFuture",
    "OutOfResources",
    "PastVersionError",
    "ServiceError",
    "SourceError",
    "Span",
    "Statistics",
    "StoreUnavailable",
    "Target",
    "TritonBundler",
    "UsageError",
    "as_completed",
    "cache_dir",
    "disable",
    "enable",
    "keys",
    "report",
]

_HOME = {
    "BundleUse": "client.use",
    "AsyncCompile": "client.async_compile",
    "CompiledTritonKernels": "client.async_compile",
    "Span": "client.timeline",
    "Statistics": "client.timeline",
    "TritonBundler": "client.bundler",
    "CompiledKernel": "client.kernel",
    "LambdaFuture": "client.future",
    "as_completed": "client.future",
    "KernelSpec": "cli.plans",
    "Target": "model.target",
    "cache_dir": "system.folders",
    "disable": "adapters.process",
    "enable": "adapters.process",
    "report": "adapters.process",
}

if TYPE_CHECKING:
    from headstart.adapters.process import disable, enable, report
    from headstart.cli.plans import KernelSpec
    from headstart.client.async_compile import AsyncCompile
    from headstart.client.bundler import TritonBundler
    from headstart.client.future import LambdaFuture, as_completed
    from headstart.client.kernel import CompiledKernel
    from headstart.client.kernels import CompiledTritonKernels
    from headstart.client.timeline import Span, Statistics
    from headstart.client.use import BundleUse
    from headstart.errors import (
        CannotTravel,
        CompileError,
        CompileErrors,
        CompileOutOfMemory,
        CompilerCrashed,
        CompileTimeout,
        DamagedError,
        FutureVersionError,
        HeadstartError,
        OutOfResources,
        PastVersionError,
        ServiceError,
        SourceError,
        StoreUnavailable,
        UsageError,
    )
    from headstart.model import keys
    from headstart.model.target import Target
    from headstart.system.folders import cache_dir


def __getattr__(name: str) -> Any:
    if name == "keys":
        return import_module("headstart.model.keys")
    if name in __all__:
        return getattr(import_module(f"headstart.{_HOME.get(name, 'errors')}"), name)
    raise AttributeError(f"module 'headstart' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
