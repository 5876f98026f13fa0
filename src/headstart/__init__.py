"""Compile Triton kernels before the program needs them.

The modules, lowest first; each imports only from those above it:

    errors, target, folders     what can go wrong; what to compile for; where things lie
    machine                     what CPUs and memory there are
    variables                   which environment variables there are, and what HEADSTART says
    locking, imports            taking turns at a file; acting on a module once the program imports it
    replacing, private          writing files, and never over somebody else's; who else can change them
    standin_driver, values      a driver that knows a target; values of constexprs as plain data
    settings                    what the user set
    environment, keys           what changes a compile's outcome; how identity is told
    captured                    a live kernel, as plain data
    request                     one compile, as plain data
    trust                       which requests from elsewhere may be compiled
    entry                       one compiled kernel, as one file
    manifest                    what a run compiled, as one file
    store, bundle, toolchain    many entries; many entries in one file; which Triton compiles
    journal                     what a process notes that may be killed at any moment
    recording                   writes a manifest while a program runs
    wire                        the messages between the processes
    kernel, future              what a caller gets
    known_failure               a failure that a bundle carries
    service/                    the other processes: server, plan, zygote, worker
    connection                  the client's end of the socket
    bundler, timeline           notes results, writes and reads bundles; what became of the requests
    client, policy              what all of a process share, and what differs between them
    async_compile               AsyncCompile: what a code generator calls
    inductor/, jit/             the adapters for torch.compile, and for programs that use @triton.jit
    enabling                    enable() and disable(): both adapters in one process
    running, startup/           what `headstart run` tells the program's processes, and how
    spec                        KernelSpec and plan files
    cli/, __main__              the `headstart` command

Importing this package loads none of them: names are looked up when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "AsyncCompile",
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
]

_HOME = {
    "AsyncCompile": "async_compile",
    "CompiledTritonKernels": "async_compile",
    "Span": "timeline",
    "Statistics": "timeline",
    "TritonBundler": "bundler",
    "CompiledKernel": "kernel",
    "LambdaFuture": "future",
    "as_completed": "future",
    "KernelSpec": "spec",
    "Target": "target",
    "cache_dir": "folders",
    "disable": "enabling",
    "enable": "enabling",
}

if TYPE_CHECKING:
    from headstart import keys
    from headstart.async_compile import AsyncCompile, CompiledTritonKernels
    from headstart.bundler import TritonBundler
    from headstart.enabling import disable, enable
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
    from headstart.folders import cache_dir
    from headstart.future import LambdaFuture, as_completed
    from headstart.kernel import CompiledKernel
    from headstart.spec import KernelSpec
    from headstart.target import Target
    from headstart.timeline import Span, Statistics


def __getattr__(name: str) -> Any:
    if name == "keys":
        return import_module("headstart.keys")
    if name in __all__:
        return getattr(import_module(f"headstart.{_HOME.get(name, 'errors')}"), name)
    raise AttributeError(f"module 'headstart' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
