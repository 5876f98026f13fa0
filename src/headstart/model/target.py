"""What a kernel is compiled for, and what that device can hold."""

from __future__ import annotations

import re

import msgspec

from headstart.errors import UsageError

KNOWN_BACKENDS = ("cuda", "hip")

# Shared memory that one block may use after opting in, bytes. CUDA C++ Programming Guide, "Technical specifications per
# compute capability" (maximum amount of shared memory per thread block); LDS of the AMD CDNA and RDNA ISA guides.
SHARED_MEMORY_LIMIT = {
    "cuda:70": 98304,
    "cuda:75": 65536,
    "cuda:80": 166912,
    "cuda:86": 101376,
    "cuda:87": 166912,
    "cuda:89": 101376,
    "cuda:90": 232448,
    "cuda:100": 232448,
    "cuda:103": 232448,
    "cuda:120": 101376,
    "cuda:121": 101376,
    "hip:gfx90a": 65536,
    "hip:gfx942": 65536,
    "hip:gfx950": 163840,
    "hip:gfx1100": 65536,
    "hip:gfx1200": 65536,
    "hip:gfx1201": 65536,
}

# Options that one backend alone has, or that mean another thing to each: `CUDAOptions` and `HIPOptions` of Triton 3.6
# to 3.9. A kernel that is compiled for the other backend goes without them.
_BOUND_TO_BACKEND = frozenset(
    {
        "allowed_dot_input_precisions",
        "backend_name",
        "default_dot_input_precision",
        "deprecated_fp8_dot_operand_dtypes",
        "extern_libs",
        "max_num_imprecise_acc_default",
        "supported_fp8_dtypes",
        "warp_size",
    }
)
OPTIONS_OF_BACKEND = {
    "cuda": _BOUND_TO_BACKEND
    | {
        "clc",
        "enable_reflect_ftz",
        "ir_override",
        "launch_pdl",
        "maxnreg",
        "min_shared_mem",
        "ptx_options",
        "ptx_version",
        "sched4reg",
    },
    "hip": _BOUND_TO_BACKEND
    | {
        "allow_flush_denorm",
        "kpack",
        "llvm_fn_attrs",
        "matrix_instr_nonkdim",
        "schedule_hint",
        "waves_per_eu",
        "wgp_cu_mode",
    },
}


class Target(msgspec.Struct, frozen=True):
    """A device family as Triton names it: `GPUTarget(backend, arch, warp_size)`.

    Attributes:
        backend: `"cuda"` or `"hip"`.
        arch: compute capability times ten for cuda (`"90"`), the gfx name for hip (`"gfx942"`).
        warp_size: threads per warp (wavefront).
    """

    backend: str
    arch: str
    warp_size: int

    @classmethod
    def parse(cls, text: str | Target) -> Target:
        """Read `"cuda:90"`, `"hip:gfx942"` or, as Triton's own tools write it, `"cuda:90:32"`.

        Raises:
            UsageError: it is none of these.
        """
        if isinstance(text, Target):
            return text
        match = re.fullmatch(r"(cuda):(\d{2,3})(?::(\d+))?|(hip):(gfx[0-9a-f]{3,5})(?::(\d+))?", str(text), re.ASCII)
        if match is None:
            backend = str(text).partition(":")[0]
            known = "a backend of cuda or hip" if backend not in KNOWN_BACKENDS else f"an architecture of {backend}"
            raise UsageError(f"unknown target {text!r}: expected {known}, as in cuda:90 (H100) or hip:gfx942 (MI300)")
        if match[1]:
            return cls("cuda", match[2], int(match[3] or 32))
        # GCN and CDNA run wavefronts of 64, RDNA (gfx10 and later) of 32.
        default = 32 if re.fullmatch(r"gfx1[0-9a-f]{3}", match[5]) else 64
        return cls("hip", match[5], int(match[6] or default))

    def __str__(self) -> str:
        default = Target.parse(f"{self.backend}:{self.arch}").warp_size
        return f"{self.backend}:{self.arch}" + ("" if self.warp_size == default else f":{self.warp_size}")

    @property
    def binary(self) -> str:
        """Name of the artifact that the driver loads."""
        return "cubin" if self.backend == "cuda" else "hsaco"

    @property
    def shared_memory_limit(self) -> int | None:
        """Bytes of shared memory that one block may use, or None where headstart does not know."""
        return SHARED_MEMORY_LIMIT.get(f"{self.backend}:{self.arch}")
