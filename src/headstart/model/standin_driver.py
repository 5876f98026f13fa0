"""A driver for Triton that knows which device is compiled for, and nothing else of it.

Triton's front end asks the active driver: `tl.target_info.is_cuda()`, `tl.target_info.current_target()`, some builtins.
Where there is no driver it takes other branches without a word. In a process that compiles for a target that it does
not have (a worker, a plan) this driver answers the target. Whatever else it is asked it notes and refuses: nobody
there knows, and what a compile made of a guess would be another kernel.
"""

from __future__ import annotations

import sys
from typing import Any, NoReturn

from headstart.model.target import Target


class TargetDriver:
    """Takes the place of `triton.runtime.driver.active`.

    Attributes:
        asked: what it was asked and could not answer.

    Args:
        target: the device that is compiled for.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self.asked: list[str] = []

    def get_current_target(self) -> Any:
        """Triton's own form of the target."""
        return gpu_target(self._target)

    def __getattr__(self, name: str) -> NoReturn:
        if not name.startswith("__"):
            self.asked.append(name)
        raise AttributeError(
            f"{name}: only the target {self._target} is known where this kernel is compiled, and nothing of a device"
        )


def gpu_target(target: Target) -> Any:
    """A `GPUTarget` of the Triton that is imported."""
    arch = int(target.arch) if target.backend == "cuda" else target.arch
    return sys.modules["triton.backends.compiler"].GPUTarget(target.backend, arch, target.warp_size)
