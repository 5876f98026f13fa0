"""What headstart relies on in the objects of a live Triton, 3.6 to 3.9, that is not public. Whoever has a kernel has
Triton imported: nothing here does so.

* `@triton.jit` makes a `JITFunction`, `@triton.constexpr_function` a `ConstexprFunction`; both keep the Python function
  in `fn`, its lines with decorators in `raw_src`, the number of the first in `starting_line_number`, and in `_src` what
  will be compiled. `Autotuner` and `Heuristics` keep what they wrap in `fn`.
* `JITFunction.noinline`; `JITFunction._repr`, which names the compiled kernel, given a specialization.
* `triton.language.core`: `constexpr.value`, `dtype.name`, and the mark of an aggregate.
"""

from __future__ import annotations

import sys
from collections import namedtuple
from collections.abc import Mapping
from types import FunctionType, ModuleType
from typing import Any, Literal

from headstart.errors import UsageError

Kind = Literal["jit", "constexpr_function"]

_WRAPPERS = ("Autotuner", "Heuristics")

# By the name and the fields that Triton gives it.
SpecializationProxy = namedtuple("SpecializationProxy", ["constants", "signature"])


def jit_function(kernel: Any) -> Any:
    """The `JITFunction` that is, or lies under, `kernel`.

    Raises:
        UsageError: there is none.
    """
    function = kernel
    while type(function).__name__ in _WRAPPERS and is_triton(type(function).__module__):
        function = function.fn
    if kind(function) == "jit":
        return function
    if isinstance(kernel, FunctionType):
        raise UsageError(f"{kernel.__name__} is a plain Python function: @triton.jit is missing")
    if type(function).__name__ == "InterpretedFunction":
        raise UsageError(
            "TRITON_INTERPRET is set, so @triton.jit makes functions that cannot be compiled; unset it"
        )
    if type(function).__name__ == "GluonJITFunction":
        raise UsageError(f"{function.__name__} is a Gluon function, which headstart cannot compile yet")
    raise UsageError(
        f"expected source text or a @triton.jit function, not {type(kernel).__name__} ({kernel!r:.80})"
    )


def kind(value: Any) -> Kind | None:
    """Which of Triton's functions `value` is, if it is one that can be described. A subclass is something else."""
    jit = sys.modules.get("triton.runtime.jit")
    if jit is None:
        return None
    if type(value) is jit.JITFunction:
        return "jit"
    return "constexpr_function" if type(value) is getattr(jit, "ConstexprFunction", None) else None


def is_triton(module: Any) -> bool:
    """Whether `module` is the name of Triton, or of one of its modules."""
    return isinstance(module, str) and (module == "triton" or module.startswith("triton."))


def text(function: Any) -> str:
    """The function as it stands in its file, decorators included."""
    return "".join(function.raw_src)


def first_line(function: Any) -> int:
    """Number of the first line of `text`."""
    return int(function.starting_line_number)


def compiled_text(function: Any) -> str:
    """What Triton parses: from `def` on, without indentation. The same string object until somebody replaces it."""
    compiled: str = function._src
    return compiled


def noinline(function: Any) -> bool | None:
    """As it was given to `@triton.jit`; None for a constexpr function."""
    value = getattr(function, "noinline", None)
    return None if value is None else bool(value)


def has_own_name(function: Any) -> bool:
    """Whether the compiled kernel's name is made by a `repr` of its own."""
    return function._repr is not None


def entry_name(function: Any, constants: Mapping[str, Any], signature: Mapping[str, str]) -> str:
    """The compiled kernel's name for a specialization; empty if it is the function's.

    Args:
        function: a `JITFunction`.
        constants: all of them, by name, defaults included.
        signature: type of each parameter in order, `"constexpr"` for constants.
    """
    if not has_own_name(function):
        return ""
    name: str = function._repr(SpecializationProxy(dict(constants), dict(signature)))
    return name.rpartition(".")[2]


def core() -> ModuleType | None:
    """`triton.language.core`, if it is imported."""
    return sys.modules.get("triton.language.core")


def is_aggregate(value: Any) -> bool:
    """Whether `value` is a class made by `triton.language.core._aggregate`."""
    return bool(getattr(value, "__triton_aggregate__", False))


# Drivers


def set_driver(driver: Any) -> None:
    """Have Triton ask `driver` about the device, and launch by it."""
    sys.modules["triton"].runtime.driver.set_active(driver)


def gpu_target(backend: str, arch: str, warp_size: int) -> Any:
    """Triton's own form of a target."""
    target = sys.modules["triton"].backends.compiler.GPUTarget
    return target(backend, int(arch) if backend == "cuda" else arch, warp_size)
