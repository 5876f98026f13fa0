"""Captures every kernel of a library of others, runs some of its operators on a CPU up to where they would launch, and
compares what workers make of these kernels with what Triton makes of them here.

    python libraries.py liger_kernel | fla

There is no GPU: Triton is told that there is one, and its hook, which sees every specialization before it is compiled,
says that nothing is to be done. Prints, as JSON: functions found, why some cannot travel, seconds that captures took,
specializations compared, those that differ, and captures that are another identity once they have travelled.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import pkgutil
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import torch
import triton
from torch.nn import functional
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import headstart
from headstart import wire
from headstart.adapters.triton.dry_run import DryRunDriver
from headstart.artifacts.vetting import check_source
from headstart.capture.functions import capture
from headstart.errors import UsageError
from headstart.model.captured import CapturedSource
from headstart.model.request import CompileRequest
from headstart.model.target import Target
from headstart.model.toolchain import find_toolchain

TARGET = GPUTarget("cuda", 90, 32)


def pretend() -> None:
    """To libraries, that there is an H100."""
    triton.runtime.driver.set_active(DryRunDriver(Target.parse("cuda:90")))
    properties = types.SimpleNamespace(
        name="NVIDIA H100 80GB HBM3",
        major=9,
        minor=0,
        multi_processor_count=132,
        warp_size=32,
        total_memory=85 << 30,
    )
    answers: dict[str, Any] = {
        "get_device_name": properties.name,
        "get_device_properties": properties,
        "get_device_capability": (9, 0),
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "synchronize": None,
        "get_arch_list": [],
        "current_stream": types.SimpleNamespace(cuda_stream=0),
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *arguments, answer=answer: answer)
    torch.cuda.device = lambda *arguments: contextlib.nullcontext()


def modules(package: str) -> Iterator[types.ModuleType]:
    found = importlib.import_module(package)
    yield found
    for info in pkgutil.walk_packages(found.__path__, f"{package}.", onerror=lambda name: None):
        try:
            yield importlib.import_module(info.name)
        except (ImportError, AttributeError, AssertionError, RuntimeError) as error:
            print(f"{info.name} cannot be imported here: {error}", file=sys.stderr)


def kernels(package: str) -> list[Any]:
    """The distinct jit functions of a package, Gluon's included."""
    found: dict[int, Any] = {}
    for module in modules(package):
        for value in list(vars(module).values()):
            function = value
            while type(function).__name__ in ("Autotuner", "Heuristics"):
                function = function.fn
            mine = str(getattr(function, "__module__", "")).startswith(package.partition(".")[0])
            if mine and type(function).__name__ in ("JITFunction", "GluonJITFunction"):
                found[id(function)] = function
    return list(found.values())


# Operators


def tensor(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.bfloat16, requires_grad=True)


def liger_kernel() -> Iterator[Callable[[], Any]]:
    from liger_kernel.ops.cross_entropy import LigerCrossEntropyFunction
    from liger_kernel.ops.geglu import LigerGELUMulFunction
    from liger_kernel.ops.kl_div import LigerKLDivLossFunction
    from liger_kernel.ops.layer_norm import LigerLayerNormFunction
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction
    from liger_kernel.ops.rope import LigerRopeFunction
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    yield lambda: LigerRMSNormFunction.apply(tensor(4, 256), tensor(256), 1e-6)
    yield lambda: LigerLayerNormFunction.apply(tensor(4, 256), tensor(256), tensor(256), 1e-6)
    yield lambda: LigerSiLUMulFunction.apply(tensor(4, 256), tensor(4, 256))
    yield lambda: LigerGELUMulFunction.apply(tensor(4, 256), tensor(4, 256))
    yield lambda: LigerCrossEntropyFunction.apply(tensor(4, 512), torch.arange(4), None)
    yield lambda: LigerKLDivLossFunction.apply(torch.randn(4, 256, requires_grad=True), torch.randn(4, 256))
    yield lambda: LigerRopeFunction.apply(
        tensor(1, 4, 8, 64), tensor(1, 4, 8, 64), torch.randn(1, 8, 64), torch.randn(1, 8, 64)
    )


def fla() -> Iterator[Callable[[], Any]]:
    importlib.import_module("fla.ops.utils.index")
    from fla.ops.delta_rule import chunk_delta_rule
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule
    from fla.ops.gla import chunk_gla, fused_recurrent_gla
    from fla.ops.kda import chunk_kda
    from fla.ops.retention import chunk_retention

    def gate(*shape: int) -> torch.Tensor:
        return functional.logsigmoid(tensor(*shape))

    def qkv() -> list[torch.Tensor]:
        return [tensor(1, 128, 2, 64) for _ in range(3)]

    yield lambda: chunk_gla(*qkv(), gate(1, 128, 2, 64))
    yield lambda: chunk_gated_delta_rule(*qkv(), gate(1, 128, 2).float(), tensor(1, 128, 2).sigmoid())
    yield lambda: chunk_delta_rule(*qkv(), tensor(1, 128, 2).sigmoid())
    yield lambda: fused_recurrent_gla(*qkv(), gate(1, 128, 2, 64))
    yield lambda: chunk_retention(*qkv())
    yield lambda: chunk_kda(*qkv(), gate(1, 128, 2, 64).float(), tensor(1, 128, 2).sigmoid())


def specializations(operators: Iterator[Callable[[], Any]]) -> list[tuple[Any, ...]]:
    """One of each kernel that the operators, forward and backward, would launch."""
    found: dict[int, tuple[Any, ...]] = {}

    def note(*, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        attributes = compile["configs"][0]
        options = {name: compile[name] for name in ("num_warps", "num_stages")}
        given = fn.jit_function, compile["signature"], compile["constants"], attributes, options
        found.setdefault(id(fn.jit_function), given)
        return True  # so nothing is compiled, and nothing launched

    triton.knobs.runtime.jit_cache_hook = note
    for operator in operators:
        try:
            result = operator()
            (result[0] if isinstance(result, tuple) else result).sum().backward()
        except RuntimeError as error:  # a library's own check, or numbers that nothing has computed
            print(f"an operator went no further: {error}", file=sys.stderr)
    triton.knobs.runtime.jit_cache_hook = None
    return list(found.values())


def compare(found: list[tuple[Any, ...]]) -> list[str]:
    """Names of kernels, and of those of their artifacts that differ."""
    differing = []
    with headstart.AsyncCompile("cuda:90", workers=2, use_store=False) as compiler:
        futures = [
            compiler.triton(kernel, signature=signature, constants=constants, attrs=attributes, options=options)
            for kernel, signature, constants, attributes, options in found
        ]
        for (kernel, signature, constants, attributes, options), future in zip(found, futures, strict=True):
            source = ASTSource(kernel, dict(signature), constants, attributes)
            here = triton.compile(source, target=TARGET, options=options).asm
            there = future.result().asm
            differing += [f"{kernel.__name__}.{name}" for name in here if name != "sass" and here[name] != there[name]]
    return differing


def travels(source: CapturedSource) -> bool:
    """Whether its identity survives the messages to a service, and the files that hold it as JSON."""
    name = source.kernel.name
    request = CompileRequest.make(name, source, signature={}, target="cuda:90:32", environment={})
    message = wire.decode(wire.decoder(wire.FromClient), wire.encode(wire.Submit(1, find_toolchain(), request, True)))
    written = msgspec.json.decode(msgspec.json.encode(request), type=CompileRequest)
    return message.request.digest() == written.digest() == request.digest()


def main(library: str) -> None:
    warnings.simplefilter("ignore")
    pretend()
    found = kernels(f"{library}.ops")
    refused, unsafe, seconds, changed = [], [], [], []
    for kernel in found:
        started = time.perf_counter()
        try:
            source = capture(kernel)
        except UsageError as error:
            refused.append(str(error))
        else:
            seconds.append(time.perf_counter() - started)
            unsafe += filter(None, [check_source(source)])
            changed += [] if travels(source) else [source.kernel.name]
    launched = specializations({"liger_kernel": liger_kernel, "fla": fla}[library]())
    print(
        json.dumps(
            {
                "functions": len(found),
                "refused": refused,
                "unsafe": unsafe,
                "changed": changed,
                "capture_s": sorted(seconds),
                "compared": len(launched),
                "differing": compare(launched),
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1])
