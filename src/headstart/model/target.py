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

# What people call these devices: by product, as their vendors name them.
ALIASES = {
    **dict.fromkeys(("v100",), "cuda:70"),
    **dict.fromkeys(("t4", "rtx2080"), "cuda:75"),
    **dict.fromkeys(("a100", "a30"), "cuda:80"),
    **dict.fromkeys(("a10", "a10g", "a40", "rtx3090", "a6000"), "cuda:86"),
    **dict.fromkeys(("orin",), "cuda:87"),
    **dict.fromkeys(("l4", "l40", "l40s", "rtx4090"), "cuda:89"),
    **dict.fromkeys(("h100", "h200", "h20", "h800", "gh200"), "cuda:90"),
    **dict.fromkeys(("b200", "b100", "gb200"), "cuda:100"),
    **dict.fromkeys(("b300", "gb300"), "cuda:103"),
    **dict.fromkeys(("rtx5090",), "cuda:120"),
    **dict.fromkeys(("gb10",), "cuda:121"),
    **dict.fromkeys(("mi210", "mi250", "mi250x"), "hip:gfx90a"),
    **dict.fromkeys(("mi300x", "mi300", "mi300a", "mi325x"), "hip:gfx942"),
    **dict.fromkeys(("mi350x", "mi355x"), "hip:gfx950"),
    **dict.fromkeys(("rx7900xtx",), "hip:gfx1100"),
    **dict.fromkeys(("rx9070xt",), "hip:gfx1201"),
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

        What compilers and people say will do as well: `"sm_90"`, `"gfx942"`, `"h100"`, in upper case too.

        Raises:
            UsageError: it is none of these.
        """
        if isinstance(text, Target):
            return text
        match = _TARGET.fullmatch(_canonical(str(text)))
        if match is None:
            raise UsageError(f"unknown target {text!r}: {_expected(str(text))}")
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


# Compute capabilities 5.0 to 19.9, and generations gfx9 to gfx19: those that tools know, and some that are to come.
_TARGET = re.compile(r"(cuda):([5-9]\d|1\d\d)(?::(\d+))?|(hip):(gfx9[0-9a-f]{2}|gfx1[0-9a-f]{3})(?::(\d+))?", re.ASCII)


def _canonical(text: str) -> str:
    """What people and compilers say, as Triton names it; any other text as it is."""
    if not text.isascii():  # digits of other scripts are digits to no compiler
        return text
    lower = text.lower()
    if (named := ALIASES.get(re.sub(r"[ _-]", "", lower))) is not None:
        return named
    if match := re.fullmatch(r"(?:sm|compute)_?(\d+)[af]?", lower):
        return f"cuda:{match[1]}"
    return f"hip:{lower}" if re.fullmatch(r"gfx[0-9a-f]+", lower) else text


def _expected(text: str) -> str:
    """What there is instead of a target that is none."""
    import difflib  # for mistakes only

    backend = text.partition(":")[0]
    if backend in KNOWN_BACKENDS:
        known = ", ".join(each.partition(":")[2] for each in SHARED_MEMORY_LIMIT if each.startswith(f"{backend}:"))
        return f"expected an architecture of {backend} ({known}), as in cuda:90 (H100) or hip:gfx942 (MI300)"
    if close := difflib.get_close_matches(text.lower(), ALIASES, n=3, cutoff=0.7):
        return f"did you mean {' or '.join(close)}? As targets there are GPUs by name, cuda:90, hip:gfx942"
    return (
        "expected a backend of cuda or hip, as in cuda:90 (H100) or hip:gfx942 (MI300), or a GPU's name (a100, h100, "
        "b200, mi300x, …)"
    )
