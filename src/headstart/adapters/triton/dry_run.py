"""A driver for a machine with no GPU: it answers what the device would be, and launches nothing.

    headstart run --dry-run --target cuda:90 app.py

For programs that only call `kernel.warmup(…)`, or that run on fake or meta tensors. Everything that Triton decides by
the target is decided as on the device; a launch compiles its kernel and returns. Benchmarks take no time, so that what
an autotuner chooses means nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from headstart.adapters.triton import compat
from headstart.model.target import Target

_MAX_THREADS = 1024  # of one block, on every device that Triton knows
_PLENTY = 1 << 20  # bytes of shared memory, for a device whose limit is not known
_DURATION = 1000.0  # ms, of whatever is measured: so long that no benchmark runs it twice


def install(target: Target) -> None:
    """Make a dry run of what this process launches from now on. Triton has been imported."""
    compat.set_driver(DryRunDriver(target))


class DryRunDriver:
    """Takes the place of Triton's driver for a device.

    Args:
        target: the device to answer.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self.utils = _Utilities(target)

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        """What launches one kernel."""
        return lambda *arguments, **keywords: None

    def get_current_target(self) -> Any:
        return compat.gpu_target(self._target.backend, self._target.arch, self._target.warp_size)

    def get_current_device(self) -> int:
        return 0

    def set_current_device(self, device: int) -> None:
        pass

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_capability(self, device: int = 0) -> tuple[int, int]:
        major, minor = divmod(int(self._target.arch), 10) if self._target.backend == "cuda" else (0, 0)
        return major, minor

    def get_active_torch_device(self) -> Any:
        """Tensors made there have shapes and types, and no memory."""
        return import_module("torch").device("meta")

    def get_benchmarker(self) -> Callable[..., Sequence[float]]:
        def benchmark(launch: Callable[[], Any], quantiles: Sequence[float] = (0.5,), **how: Any) -> Sequence[float]:
            launch()
            return [_DURATION] * len(quantiles)

        return benchmark

    def get_device_interface(self) -> Any:
        """What `triton.testing.do_bench` measures with."""
        return _Interface

    def get_empty_cache_for_benchmark(self) -> None:
        pass

    def clear_cache(self, cache: Any) -> None:
        pass


class _Event:
    """Of the interface's events: nothing happens between two of them."""

    def __init__(self, enable_timing: bool = False) -> None:
        pass

    def record(self, stream: Any = None) -> None:
        pass

    def elapsed_time(self, end: _Event) -> float:
        """ms."""
        return _DURATION


class _Interface:
    """The part of `torch.cuda` that Triton's own benchmarks use."""

    Event = _Event

    @staticmethod
    def synchronize(device: Any = None) -> None:
        pass

    @staticmethod
    def current_device() -> int:
        return 0


class _Utilities:
    """What Triton asks its driver's compiled part."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {
            "max_shared_mem": self._target.shared_memory_limit or _PLENTY,
            "max_num_regs": 65536,
            "multiprocessor_count": 1,
            "warpSize": self._target.warp_size,
            "sm_clock_rate": 1,
            "mem_clock_rate": 1,
            "mem_bus_width": 1,
        }

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[None, None, int, int, int]:
        return None, None, 0, 0, _MAX_THREADS  # module, function, registers, spills, threads

    def unload_module(self, module: None) -> None:
        pass
