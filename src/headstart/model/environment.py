"""Which environment variables change what a compile yields.

The list is explicit: `knobs.py` and the cache-invalidating variables of libtriton (`GetEnv.hpp`), Triton 3.6 to 3.9. A
request carries the ones that are set (its *fingerprint*); a worker is given exactly these and serves one fingerprint in
its life. A variable that is not listed here does not reach the identity of a kernel.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from headstart.errors import UsageError

# Tools and libraries that Triton calls or links: what counts is their content, so they belong to the toolchain's
# digest and not to the request.
TOOL_VARIABLES = frozenset(
    {
        "TRITON_PTXAS_PATH",
        "TRITON_PTXAS_BLACKWELL_PATH",
        "TRITON_LIBDEVICE_PATH",
        "TRITON_AMD_CODEGEN_PATH",
        "LLVM_PASS_PLUGIN_PATH",
        "TRITON_PLUGIN_PATHS",
    }
)

OUTCOME_VARIABLES = frozenset(
    {
        "ALLOW_LHS_TMEM_LAYOUT_CONVERSION",
        "AMDGCN_ANALYZE_SMALL_TENSOR_RANGE",
        "AMDGCN_SCALARIZE_PACKED_FOPS",
        "AMDGCN_USE_BUFFER_ATOMICS",
        "AMDGCN_USE_BUFFER_OPS",
        "DISABLE_LLVM_OPT",
        "DISABLE_MMA_V3",
        "DISABLE_MMA_V5",
        "DISABLE_PTXAS_OPT",
        "LLVM_EXTRACT_DI_LOCAL_VARIABLES",
        "PTXAS_OPTIONS",
        "TRITON_ALLOW_NON_CONSTEXPR_GLOBALS",
        "TRITON_CONSAN_INIT_ALLOCATIONS",
        "TRITON_DEBUG",
        "TRITON_DEFAULT_BACKEND",
        "TRITON_DEFAULT_FP_FUSION",
        "TRITON_DISABLE_LINE_INFO",
        "TRITON_ENABLE_ASAN",
        "TRITON_ENABLE_EXPERIMENTAL_CONSAN",
        "TRITON_F32_DEFAULT",
        "TRITON_FORCE_DISABLE_FP_FUSION",
        "TRITON_FPSAN_HOMOMORPHIC_CASTS",
        "TRITON_FRONT_END_DEBUGGING",
        "TRITON_HIP_USE_ASYNC_COPY",
        "TRITON_HIP_USE_BLOCK_PINGPONG",
        "TRITON_HIP_USE_COEXEC_SCHEDULER",
        "TRITON_HIP_USE_EXPERT_SCHEDULING",
        "TRITON_HIP_USE_IN_THREAD_TRANSPOSE",
        "TRITON_INSTRUMENTATION_MODE",
        "TRITON_MOCK_PTX_VERSION",
        "TRITON_OVERRIDE_ARCH",
        "TRITON_PLUGIN_VERSION_CHECK",
        "TRITON_PREFER_TMEM_16x256_LAYOUT",
        "TRITON_STORE_BINARY_ONLY",
        "USE_IR_LOC",
    }
)

# Asking for one of these means wanting to see a compile happen, or to change it from outside: such results are neither
# looked up nor kept.
BYPASS_VARIABLES = frozenset(
    {
        "AMDGCN_ENABLE_DUMP",
        "LLVM_ENABLE_TIMING",
        "LLVM_IR_ENABLE_DUMP",
        "MLIR_DUMP_PATH",
        "MLIR_ENABLE_DIAGNOSTICS",
        "MLIR_ENABLE_DUMP",
        "MLIR_ENABLE_TIMING",
        "NVPTX_ENABLE_DUMP",
        "TRITON_ALWAYS_COMPILE",
        "TRITON_DUMP_DIR",
        "TRITON_DUMP_MIR",
        "TRITON_DUMP_PTXAS_LOG",
        "TRITON_ENABLE_LLVM_DEBUG",
        "TRITON_KERNEL_DUMP",
        "TRITON_KERNEL_OVERRIDE",
        "TRITON_LLVM_DEBUG_ONLY",
        "TRITON_PARTITION_SCHEDULING_DUMP_DATA_ONLY",
        "TRITON_PARTITION_SCHEDULING_DUMP_LOOP_ONLY",
        "TRITON_PARTITION_SCHEDULING_ENABLE_DUMP_DOT",
        "TRITON_OVERRIDE_DIR",
        "TRITON_REPRODUCER_PATH",
        "TRITON_SWAP_MIR",
        "TRITON_SWAP_MIR_ENABLE_MISCHED",
    }
)

FINGERPRINT_VARIABLES = TOOL_VARIABLES | OUTCOME_VARIABLES | BYPASS_VARIABLES

# Groups of `triton.knobs` that the front end and the back ends read.
_KNOBS = ("compilation", "language", "nvidia", "amd", "runtime")

# These only name places, and mean nothing unless one of their siblings is set.
_PLACES = frozenset({"TRITON_DUMP_DIR", "TRITON_OVERRIDE_DIR"})
_PATHS = (TOOL_VARIABLES - {"TRITON_PLUGIN_PATHS"}) | _PLACES | {"MLIR_DUMP_PATH", "TRITON_REPRODUCER_PATH"}


def fingerprint() -> dict[str, str]:
    """The variables of `FINGERPRINT_VARIABLES` that are set in this process, relative paths made absolute.

    A knob that was set in Python (`triton.knobs`) counts as the variable that it stands for: mostly it sets that as
    well, but not with `propagate_env` off, nor if the variable was changed since.

    Raises:
        UsageError: a knob was set to something that no variable could say, or a variable to no text.
    """
    # Going over what is set is several times cheaper than asking for each name, and this runs at every kick-off.
    found: dict[str, str | None] = {name: os.environ.get(name) for name in os.environ if name in FINGERPRINT_VARIABLES}
    found.update(_knobs_set())
    values = {}
    for name in sorted(found):
        value = found[name]
        if value:
            if name in _PATHS:
                value = os.path.abspath(value)
            elif name == "TRITON_PLUGIN_PATHS":
                value = os.pathsep.join(os.path.abspath(part) for part in value.split(os.pathsep) if part)
            if not _is_text(value):
                raise UsageError(f"{name} is set to {value!r}, which is no text, and cannot be told to a worker")
            values[name] = value
    return values


def _is_text(value: str) -> bool:
    try:
        return value.isascii() or bool(value.encode())
    except UnicodeEncodeError:  # bytes that are none in this locale
        return False


def _knobs_set() -> dict[str, str | None]:
    """The variables that knobs stand for which were set in Python; None: as if the variable were not set."""
    knobs: Any = sys.modules.get("triton.knobs")
    if knobs is None:
        return {}
    found: dict[str, str | None] = {}
    # Another thread may be importing that module just now; then nothing was set yet.
    for group in filter(None, map(vars(knobs).get, _KNOBS)):
        for name, value in vars(group).items():
            variable = getattr(vars(type(group)).get(name), "key", None)
            if variable in FINGERPRINT_VARIABLES:
                found[variable] = _as_variable(name, value)
    return found


def _as_variable(knob: str, value: Any) -> str | None:
    if value is None or type(value) is str:
        return value
    if type(value) in (bool, int):
        return str(int(value))
    raise UsageError(f"the knob {knob} of Triton is set to {value!r}, which cannot be told to a worker")


def bypass_reason(environment: Mapping[str, str]) -> str | None:
    """The first variable in `environment` for whose sake caches are bypassed, or None."""
    if not environment:
        return None
    asked_for = (name for name in sorted(environment) if name in BYPASS_VARIABLES - _PLACES)
    return next((name for name in asked_for if environment[name].lower() not in ("0", "false", "off")), None)


def step_aside_reason(environment: Mapping[str, str] | None = None) -> str | None:
    """Why Triton must compile in this process just now, or None; adapters ask at every kick-off.

    `environment` is this process's `fingerprint()`, for those who have it already.
    """
    if os.environ.get("TRITON_INTERPRET", "0") == "1":
        return "TRITON_INTERPRET"
    if (variable := bypass_reason(fingerprint() if environment is None else environment)) is not None:
        return variable
    knobs = sys.modules.get("triton.knobs")
    if knobs is None:
        return None
    if getattr(knobs.runtime, "add_stages_inspection_hook", None) is not None:
        return "an add_stages_inspection_hook"
    if getattr(knobs.compilation, "instrumentation_mode", ""):
        return "Proton instrumentation, or TRITON_INSTRUMENTATION_MODE"
    return None
