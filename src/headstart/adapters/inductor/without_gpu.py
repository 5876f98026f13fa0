"""Inductor's code generation for a GPU that is not there: for `headstart build --model`, and for tests.

    without_gpu.load_shim()                          # before torch is imported
    with without_gpu.pretend("cuda:90") as g:
        without_gpu.codegen(fn, *args)               # args and modules: made in here, with device="cuda"

Everything up to, and with, the import of the generated module happens as on a machine with that GPU: kick-offs, pool,
precompile. Left out is what needs a driver: launchers, benchmarking (of templates the first choice wins) and the run
itself (`CompiledFxGraph.__call__` raises `Stop`). Registers, which decide about rescaling, are read from cubins.

It changes torch's insides for as long as it lasts, and so belongs into a process of its own. Read for torch 2.11 to
2.14. The shim beside this file, which is compiled by g++ at first use, takes the place of CUDA's device guard and
hooks.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from headstart.adapters.triton.dry_run import DryRunDriver
from headstart.artifacts import cubin
from headstart.describe import facts
from headstart.errors import UsageError
from headstart.model.target import Target
from headstart.system.folders import cache_dir, distrust
from headstart.system.private import make_folder
from headstart.system.settings import trusts_cache_dir

_SHIM = Path(__file__).with_suffix(".cpp")


class Stop(Exception):
    """Raised where the compiled graph would run."""


class _Model(NamedTuple):
    """What differs from GPU to GPU of what Inductor asks for, as `torch.cuda.get_device_properties` tells it."""

    name: str
    total_memory: int  # bytes
    processors: int
    shared_memory: int  # bytes, of a multiprocessor; a block may have 1 KiB less
    l2_cache: int  # bytes
    memory_bus: int  # bits
    memory_clock: int  # kHz
    clock: int  # kHz


_MODELS = {
    "80": _Model("NVIDIA A100-SXM4-80GB", 85095874560, 108, 167936, 41943040, 5120, 1593000, 1410000),
    "90": _Model("NVIDIA H100 80GB HBM3", 85028765696, 132, 233472, 52428800, 5120, 2619000, 1980000),
}


def _model(target: Target) -> _Model:
    if target.backend != "cuda" or target.arch not in _MODELS:
        known = ", ".join(f"cuda:{arch} ({model.name})" for arch, model in _MODELS.items())
        raise UsageError(f"headstart knows too little of {target} to pretend to be one; it knows {known}")
    return _MODELS[target.arch]


def _properties(target: Target) -> types.SimpleNamespace:
    model = _model(target)
    return types.SimpleNamespace(
        name=model.name,
        major=int(target.arch) // 10,
        minor=int(target.arch) % 10,
        total_memory=model.total_memory,
        multi_processor_count=model.processors,
        regs_per_multiprocessor=65536,
        max_threads_per_multi_processor=2048,
        max_threads_per_block=1024,
        warp_size=32,
        shared_memory_per_block=49152,
        shared_memory_per_block_optin=model.shared_memory - 1024,
        shared_memory_per_multiprocessor=model.shared_memory,
        L2_cache_size=model.l2_cache,
        memory_bus_width=model.memory_bus,
        memory_clock_rate=model.memory_clock,
        clock_rate=model.clock,
        is_integrated=0,
        is_multi_gpu_board=0,
        gcnArchName="",
        uuid="",
    )


# The shim: only for builds of torch that have no CUDA

_shim: ctypes.CDLL | None = None


def _build_shim(torch: facts.Torch, folder: Path, *flags: str) -> Path:
    told = f"{torch.version} {torch.folder} {flags}"
    key = hashlib.sha256(_SHIM.read_bytes() + told.encode()).hexdigest()[:16]
    built = folder / f"shim-{key}.so"
    if built.exists():
        return built
    lib = os.path.join(torch.folder, "lib")
    make_folder(folder)
    part = built.with_suffix(f".{os.urandom(8).hex()}.tmp")
    command = [
        *("g++", "-std=c++20", "-O0", "-shared", "-fPIC", *flags),
        *(f"-I{os.path.join(torch.folder, 'include')}", str(_SHIM), "-o", str(part)),
        *(f"-L{lib}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{lib}"),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise UsageError("to pretend that there is a GPU takes g++, and there is none") from None
    if done.returncode:
        part.unlink(missing_ok=True)
        raise UsageError(f"the shim that stands for a GPU does not compile with this torch:\n{done.stderr}")
    part.rename(built)
    return built


def load_shim(folder: Path | None = None) -> None:
    """Load what stands for a GPU below torch's Python. Imports torch if it is a build with CUDA.

    Args:
        folder: where the shim is kept once it is built; default: headstart's cache folder.

    Raises:
        UsageError: there is no torch, it is imported already, or the shim cannot be built.
    """
    global _shim
    if _shim is not None:
        return
    torch = facts.find_torch()
    if torch is None:
        raise UsageError("there is no torch")
    if "torch" in sys.modules:
        raise UsageError("torch is imported already, and asks for its CUDA only once")
    folder = folder or cache_dir() / "torch"
    # It is loaded as code of this process.
    if why := distrust(folder, trusted=trusts_cache_dir()):
        raise UsageError(why)
    lib = Path(torch.folder, "lib")
    if (lib / "libtorch_cuda.so").exists():
        # CUDA's own guard and hooks are made while torch is imported, and then replaced.
        importlib.import_module("torch")
        _shim = ctypes.CDLL(str(_build_shim(torch, folder, "-DHAS_CUDA")))
        return
    for name in ("libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(lib / name), mode=ctypes.RTLD_GLOBAL)
    _shim = ctypes.CDLL(str(_build_shim(torch, folder)))


# Triton's driver


class _Driver(DryRunDriver):
    """What Inductor asks of Triton's driver besides."""

    def get_active_torch_device(self) -> Any:
        import torch

        return torch.device("cuda", 0)

    def get_device_interface(self) -> Any:
        import torch

        return torch.cuda


def install_triton_driver(target: Target) -> None:
    """Have Triton, and Inductor's `set_driver_to_gpu`, find one active GPU that nothing can run on. For good."""
    import triton.backends as backends
    from triton.runtime import driver

    class Driver(_Driver):
        def __init__(self) -> None:
            super().__init__(target)

        @classmethod
        def is_active(cls) -> bool:
            return True

    found = backends.backends["nvidia"]
    backends.backends["nvidia"] = type(found)(compiler=found.compiler, driver=Driver)
    driver.set_active(Driver())


# torch


def _registers(result: Any) -> int | None:
    """Registers per thread of one of Inductor's compile results, as loading it would tell."""
    kernel = result.kernel
    if not hasattr(kernel, "cubin_raw"):
        return cubin.registers(kernel.asm["cubin"], kernel.name)
    if kernel.cubin_raw is None:  # out of a graph cache: its launcher looks in Triton's
        result.reload_cubin_path()
    return cubin.registers(kernel.cubin_raw or Path(kernel.cubin_path).read_bytes(), kernel.name)


@contextlib.contextmanager
def pretend(target: Target) -> Iterator[None]:
    """Have torch find a GPU for the length of the block. Triton's driver stays.

    Raises:
        UsageError: too little is known of such a GPU.
    """
    import torch
    import torch._dynamo.device_interface as device_interface
    import torch._functorch.config
    import torch._inductor.fx_passes.joint_graph as joint_graph
    import torch._inductor.output_code as output_code
    import torch._inductor.runtime.triton_heuristics as triton_heuristics
    import torch._inductor.select_algorithm as select_algorithm
    import torch._subclasses.fake_tensor as fake_tensor
    import torch.cuda
    from torch._dynamo.device_interface import CudaInterface
    from torch._inductor.codecache import PyCodeCache
    from torch._inductor.codegen.triton import TritonScheduling
    from torch._inductor.select_algorithm import AlgorithmSelectorCache, TritonTemplateCaller
    from torch._subclasses.fake_tensor import FakeTensorMode

    properties = _properties(target)
    install_triton_driver(target)
    cuda: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_is_compiled": lambda: True,
        "_lazy_init": lambda: None,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "get_device_properties": lambda device=None: properties,
        "get_device_capability": lambda device=None: (properties.major, properties.minor),
        "get_device_name": lambda device=None: properties.name,
        "_exchange_device": lambda device: 0,
        "_maybe_exchange_device": lambda device: 0,
        "get_rng_state": lambda device="cuda": torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": lambda state, device="cuda": None,
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
        "synchronize": lambda device=None: None,
        "is_current_stream_capturing": lambda: False,
        "is_bf16_supported": lambda including_emulation=True: True,
        "memory_allocated": lambda device=None: 0,
        "mem_get_info": lambda device=None: (properties.total_memory, properties.total_memory),
    }

    def fold_on_cpu(self: Any, node: Any) -> Any:
        # Constants are folded by running their nodes; here that has to be somewhere else than the device.
        return original_deduce(self, _CpuNode(node) if "device" in node.kwargs else node)

    original_deduce = joint_graph.UniformValueConstantFolder._deduce_value

    def call(self: Any, inputs: Any) -> Any:
        raise Stop("code generation is complete; there is nothing to run it on")

    def make_launchers(self: Any) -> None:
        """As the real one, where a launcher only knows what the cubin says."""
        for result in self.compile_results:
            result.kernel.n_regs = _registers(result)
        self.launchers = [
            types.SimpleNamespace(config=result.config, n_regs=result.kernel.n_regs, n_spills=0, shared=0)
            for result in self.compile_results
        ]

    def make_benchmark_fn(*args: Any, **kwargs: Any) -> Any:
        """Templates before library calls, in the order in which they were made."""

        def benchmark(choices: Any) -> Any:
            for choice in choices:
                if isinstance(choice, TritonTemplateCaller):  # as a first call of it would
                    module = PyCodeCache.load_by_key_path(choice.bmreq.module_cache_key, choice.bmreq.module_path)
                    getattr(module, choice.bmreq.kernel_name).precompile()
            return {
                choice: 1.0 + number + 1000.0 * (not isinstance(choice, TritonTemplateCaller))
                for number, choice in enumerate(choices)
            }

        return benchmark

    def benchmark_module(self: Any, mod: Any, *args: Any, **kwargs: Any) -> Any:
        mod.triton_.precompile()  # as its first call would
        return 1.0, mod.__file__

    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        for name, value in cuda.items():
            enter(mock.patch.object(torch.cuda, name, value))
            static = {"_exchange_device": "exchange_device", "_maybe_exchange_device": "maybe_exchange_device"}
            if static.get(name, name) in vars(CudaInterface) or hasattr(CudaInterface, static.get(name, name)):
                enter(mock.patch.object(CudaInterface, static.get(name, name), staticmethod(value)))
        enter(mock.patch.object(torch._C, "_cuda_getCurrentRawStream", lambda device: 0, create=True))  # noqa: PT008
        enter(mock.patch.object(CudaInterface, "get_raw_stream", staticmethod(lambda device: 0)))
        enter(mock.patch.object(FakeTensorMode, "avoid_device_init", property(lambda self: True)))
        enter(mock.patch.object(joint_graph.UniformValueConstantFolder, "_deduce_value", fold_on_cpu))
        enter(mock.patch.object(fake_tensor, "init_gpu_context"))
        enter(mock.patch.object(torch._functorch.config, "force_non_lazy_backward_lowering", True))
        enter(mock.patch.object(triton_heuristics.CachingAutotuner, "_make_launchers", make_launchers))
        enter(mock.patch.object(output_code.CompiledFxGraph, "__call__", call))
        enter(mock.patch.object(AlgorithmSelectorCache, "make_benchmark_fn", make_benchmark_fn))
        # Inductor does not kick candidates off on Python 3.11.0 to 3.11.8, in whose threads there is a fault.
        newer = types.SimpleNamespace(version_info=_Version(3, 12, 0), stderr=sys.stderr)
        enter(mock.patch.object(select_algorithm, "sys", newer))
        enter(mock.patch.object(TritonScheduling, "benchmark_codegened_module", benchmark_module))
        device_interface.caching_worker_device_properties["cuda"] = [properties]
        stack.callback(device_interface.caching_worker_device_properties.pop, "cuda", None)
        for cached in _device_caches():
            cached.cache_clear()
            stack.callback(cached.cache_clear)
        enter(FakeTensorMode(allow_non_fake_inputs=True))
        yield


class _Version(NamedTuple):
    major: int
    minor: int
    micro: int


class _CpuNode:
    """An fx node whose `device` keyword says cpu."""

    def __init__(self, node: Any) -> None:
        self._node = node
        self.kwargs = {**node.kwargs, "device": "cpu"}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._node, name)


def _device_caches() -> list[Any]:
    """Answers about devices that torch remembers."""
    import torch._inductor.utils as utils
    import torch.utils._triton as triton_utils
    from torch._inductor.runtime.hints import DeviceProperties

    found = [DeviceProperties.create]
    for module in (utils, triton_utils):
        found += [value for value in vars(module).values() if hasattr(value, "__wrapped__")]
    functions = [getattr(value, "__func__", value) for value in found]
    return [function for function in functions if hasattr(function, "cache_clear")]


def codegen(function: Any, *arguments: Any, **options: Any) -> None:
    """`torch.compile(function, **options)(*arguments)`, up to where the GPU would begin to work."""
    import torch

    try:
        torch.compile(function, **options)(*arguments)
    except Stop:
        return
    raise UsageError("torch.compile ran it without compiling anything")
