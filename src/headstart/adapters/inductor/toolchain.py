"""What compiles torch.compile's kernels: this Triton, for this torch, in an environment as its own workers have it."""

from __future__ import annotations

import functools

import msgspec

from headstart.adapters.inductor import compat
from headstart.describe import facts
from headstart.errors import ServiceError
from headstart.model.toolchain import Toolchain, find_toolchain


@functools.cache
def torch() -> facts.Torch:
    """Raises `ServiceError`: there is none."""
    found = facts.find_torch()
    if found is None:
        raise ServiceError("there is no torch")
    return found


def toolchain() -> Toolchain:
    """Raises `ServiceError`: there is no torch, or no Triton."""
    return msgspec.structs.replace(find_toolchain(), torch_dir=torch().folder)


def environment() -> dict[str, str]:
    """The variables that change what a compile yields, as they are now."""
    return compat.environment(torch())
