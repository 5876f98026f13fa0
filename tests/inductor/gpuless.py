"""Inductor's code generation for an H100 on a machine without a GPU.

    import gpuless                 # before torch: loads the shim, if this torch is a CPU build
    with gpuless.gpuless() as g:
        compiled = gpuless.codegen(fn, *args)      # args: made under g.fake, device="cuda"

Everything up to, and with, the import of the generated module happens as on the GPU machine: kick-offs, worker pool,
unpickling, precompile. Left out is what needs a driver: launchers (`_make_launchers`), rescaling by registers
(`_dynamic_scale_rblock`, unless the caller gives register counts), benchmarking (stubbed: first choice wins) and the
run itself (`CompiledFxGraph.__call__` raises `Stop`).

Subprocess workers get the same driver: `SubprocPool` starts the program that `find_compile_subproc_binary` names,
which is a script that installs the driver and then runs torch's own entry point.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.util
import json
import os
import stat
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

SHIM = Path(__file__).with_name("shim.cpp")
CAPABILITY = (9, 0)


class Stop(Exception):
    """Raised where the compiled graph would run."""


def _properties() -> types.SimpleNamespace:
    """The figures of an H100 SXM, by the names of `torch.cuda.get_device_properties`."""
    return types.SimpleNamespace(
        name="NVIDIA H100 80GB HBM3",
        major=CAPABILITY[0],
        minor=CAPABILITY[1],
        total_memory=85028765696,
        multi_processor_count=132,
        regs_per_multiprocessor=65536,
        max_threads_per_multi_processor=2048,
        max_threads_per_block=1024,
        warp_size=32,
        shared_memory_per_block=49152,
        shared_memory_per_block_optin=232448,
        shared_memory_per_multiprocessor=233472,
        L2_cache_size=52428800,
        memory_bus_width=5120,
        memory_clock_rate=2619000,
        clock_rate=1980000,
        is_integrated=0,
        is_multi_gpu_board=0,
        gcnArchName="",
        uuid="",
    )


# The shim: only for builds of torch that have no CUDA

_shim: ctypes.CDLL | None = None


def cache_folder() -> Path:
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "headstart-tests"
    folder = Path(os.environ.get("HEADSTART_TEST_CACHE", default))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def build_shim(torch_folder: Path) -> Path:
    """Compile the shim, once per torch and source."""
    version = (torch_folder / "version.py").read_bytes()
    key = hashlib.sha256(SHIM.read_bytes() + version + str(torch_folder).encode()).hexdigest()[:16]
    built = cache_folder() / f"gpuless-{key}.so"
    if not built.exists():
        lib = torch_folder / "lib"
        part = built.with_suffix(f".{os.getpid()}")
        subprocess.run(
            [
                *("g++", "-std=c++20", "-O0", "-shared", "-fPIC"),
                *(f"-I{torch_folder / 'include'}", str(SHIM), "-o", str(part)),
                *(f"-L{lib}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{lib}"),
            ],
            check=True,
        )
        part.rename(built)
    return built


def load_shim() -> None:
    """Load the shim if this torch is a CPU build. Must run before `import torch`."""
    global _shim
    if _shim is not None:
        return
    found = importlib.util.find_spec("torch")
    assert found is not None
    assert found.origin is not None
    folder = Path(found.origin).parent
    if (folder / "lib" / "libtorch_cuda.so").exists():
        return
    if "torch" in sys.modules:
        raise RuntimeError("gpuless must be imported before torch: torch asks for its CUDA hooks once")
    for name in ("libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(folder / "lib" / name), mode=ctypes.RTLD_GLOBAL)
    _shim = ctypes.CDLL(str(build_shim(folder)))


# Triton's driver


def install_triton_driver() -> None:
    """Have Triton, and Inductor's `set_driver_to_gpu`, find one active GPU: an H100 that nothing can run on."""
    import triton.backends as backends
    from triton.backends.compiler import GPUTarget
    from triton.backends.driver import DriverBase

    target = GPUTarget("cuda", CAPABILITY[0] * 10 + CAPABILITY[1], 32)

    class Driver(DriverBase):
        utils = types.SimpleNamespace(get_device_properties=lambda device: {"max_shared_mem": 232448})

        def __init__(self) -> None:
            pass

        @classmethod
        def is_active(cls) -> bool:
            return True

        def map_python_to_cpp_type(self, ty: str) -> str:
            raise NotImplementedError

        def get_current_target(self) -> GPUTarget:
            return target

        def get_active_torch_device(self) -> Any:
            import torch

            return torch.device("cuda", 0)

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

        def get_benchmarker(self) -> Any:
            return lambda function, **keywords: 1.0

        def get_device_interface(self) -> Any:
            import torch

            return torch.cuda

    found = backends.backends["nvidia"]
    backends.backends["nvidia"] = type(found)(compiler=found.compiler, driver=Driver)
    from triton.runtime import driver

    driver.set_active(Driver())
    _log_compiles()


def _log_compiles() -> None:
    """Note each call of `triton.compile`, hit or not, as a line of JSON in the file that GPULESS_LOG names."""
    log = os.environ.get("GPULESS_LOG")
    if not log:
        return
    from triton import knobs

    def listener(*, src: Any, metadata: Any, metadata_group: Any, times: Any, cache_hit: bool) -> None:
        line = {"pid": os.getpid(), "name": src.name, "hash": metadata["hash"], "hit": cache_hit, "us": times.total}
        with open(log, "a") as stream:
            stream.write(json.dumps(line) + "\n")

    knobs.compilation.listener = listener


def compiles(log: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """What `GPULESS_LOG` holds."""
    return [json.loads(line) for line in Path(log).read_text().splitlines()] if Path(log).exists() else []


def worker_program() -> str:
    """An executable that runs torch's compile worker with the driver installed."""
    text = (
        f"#!{sys.executable}\n"
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import gpuless\n"
        "gpuless.install_triton_driver()\n"
        "import torch\n"
        "from torch._inductor.compile_worker.__main__ import main\n"
        "main()\n"
    )
    path = cache_folder() / f"gpuless-worker-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    if not path.exists():
        part = path.with_suffix(f".{os.getpid()}")
        part.write_text(text)
        part.chmod(part.stat().st_mode | stat.S_IXUSR)
        part.rename(path)
    return str(path)


# torch


def registers(result: Any) -> int | None:
    """Registers per thread of one of Inductor's compile results, as loading it would tell."""
    from headstart.inductor import cubin

    kernel = result.kernel
    return cubin.registers(getattr(kernel, "cubin_raw", None) or kernel.asm["cubin"], kernel.name)


class GPULess:
    """What is in force inside `gpuless()`.

    Attributes:
        fake: the FakeTensorMode to make arguments and modules under.
        graphs: the CompiledFxGraphs that got as far as running.
    """

    def __init__(self, fake: Any) -> None:
        self.fake = fake
        self.graphs: list[Any] = []
        self.fusion_ms = 1.0  # what benchmarking of fusions says
        self.registers: Any = None  # callable(compile result) -> registers per thread, or None


@contextlib.contextmanager
def gpuless(*, rescale: bool = False) -> Iterator[GPULess]:
    """Patch torch for the length of the block. (Triton's driver stays: it is right for the whole process.)

    Args:
        rescale: whether `_dynamic_scale_rblock` runs, with register counts read from the cubins.
    """
    import torch
    import torch._dynamo.device_interface as device_interface
    import torch._functorch.config
    import torch._inductor.compile_worker.subproc_pool as subproc_pool
    import torch._inductor.fx_passes.joint_graph as joint_graph
    import torch._inductor.output_code as output_code
    import torch._inductor.runtime.triton_heuristics as triton_heuristics
    import torch._inductor.select_algorithm as select_algorithm
    import torch.cuda
    from torch._dynamo.device_interface import CudaInterface
    from torch._inductor.codecache import PyCodeCache
    from torch._inductor.codegen.triton import TritonScheduling
    from torch._inductor.select_algorithm import AlgorithmSelectorCache, TritonTemplateCaller
    from torch._subclasses.fake_tensor import FakeTensorMode

    install_triton_driver()
    properties = _properties()
    state = GPULess(FakeTensorMode(allow_non_fake_inputs=True))
    state.registers = registers if rescale else None

    cuda = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_is_compiled": lambda: True,
        "_lazy_init": lambda: None,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "get_device_properties": lambda device=None: properties,
        "get_device_capability": lambda device=None: CAPABILITY,
        "get_device_name": lambda device=None: properties.name,
        "_exchange_device": lambda device: 0,
        "_maybe_exchange_device": lambda device: 0,
        "get_rng_state": lambda device="cuda": torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": lambda state, device="cuda": None,
        "synchronize": lambda device=None: None,
        "is_bf16_supported": lambda including_emulation=True: True,
        "memory_allocated": lambda device=None: 0,
        "mem_get_info": lambda device=None: (properties.total_memory, properties.total_memory),
    }

    def fold_on_cpu(self: Any, node: Any) -> Any:
        # Constants are folded by running their nodes; here that has to be somewhere else than the device.
        return original_deduce(self, _CpuNode(node) if "device" in node.kwargs else node)

    original_deduce = joint_graph.UniformValueConstantFolder._deduce_value

    def call(self: Any, inputs: Any) -> Any:
        state.graphs.append(self)
        raise Stop("code generation is complete; there is nothing to run it on")

    def make_launchers(self: Any) -> None:
        """As the real one, where a launcher only knows what the cubin says."""
        if state.registers is not None:
            for result in self.compile_results:
                result.kernel.n_regs = state.registers(result)

    def dynamic_scale(self: Any) -> None:
        if state.registers is not None:
            original_scale(self)

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
        return state.fusion_ms, mod.__file__

    original_scale = triton_heuristics.CachingAutotuner._dynamic_scale_rblock

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
        enter(mock.patch.object(torch._functorch.config, "force_non_lazy_backward_lowering", True))
        enter(mock.patch.object(triton_heuristics.CachingAutotuner, "_make_launchers", make_launchers))
        enter(mock.patch.object(triton_heuristics.CachingAutotuner, "_dynamic_scale_rblock", dynamic_scale))
        enter(mock.patch.object(output_code.CompiledFxGraph, "__call__", call))
        enter(mock.patch.object(subproc_pool, "find_compile_subproc_binary", worker_program))
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
        enter(state.fake)
        yield state


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
    raise AssertionError("nothing was compiled")


load_shim()
