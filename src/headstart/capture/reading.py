"""What is read of a live Triton's functions, 3.6 to 3.9. Who has a kernel has Triton imported: nothing here does so.

* `@triton.jit` makes a `JITFunction`, `@triton.constexpr_function` a `ConstexprFunction`; both keep the Python function
  in `fn`, its lines with decorators in `raw_src`, the number of the first in `starting_line_number`, and in `_src` what
  will be compiled. `Autotuner` and `Heuristics` keep what they wrap in `fn`.
* `JITFunction.noinline`; `JITFunction._repr`, which names the compiled kernel, given a specialization.
* `triton.language.core`: `constexpr.value`, `dtype.name`, and the mark of an aggregate.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections import namedtuple
from collections.abc import Mapping
from types import FunctionType, ModuleType
from typing import Any, Literal

from headstart.errors import UsageError
from headstart.model.captured import Parameter

Kind = Literal["jit", "constexpr_function"]


_WRAPPERS = ("Autotuner", "Heuristics")


_MAX_NAME = 150  # characters of a kernel's name that Triton uses for files


# What of a function is looked at to describe it, and of which another value makes another function of it.
CAPTURED_ATTRIBUTES = (
    "_src",
    "raw_src",
    "starting_line_number",
    "fn",
    "signature",
    "params",
    "noinline",
    "__globals__",
)


# Names that mean something in a kernel without being defined (`CodeGenerator.builtin_namespace`, 3.6 to 3.9).
BUILTIN_NAMES = frozenset(
    {"float", "getattr", "hasattr", "int", "isinstance", "len", "list", "max", "min", "print", "range"}
)


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
        raise UsageError("TRITON_INTERPRET is set, so @triton.jit makes functions that cannot be compiled; unset it")
    if type(function).__name__ == "GluonJITFunction":
        raise UsageError(f"{function.__name__} is a Gluon function, which headstart cannot compile yet")
    raise UsageError(f"expected source text or a @triton.jit function, not {type(kernel).__name__} ({kernel!r:.80})")


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


def lines(function: Any) -> list[str]:
    """The function as it stands in its file, decorators included, line by line."""
    return list(function.raw_src)


def text_that_triton_takes(text: str) -> str | None:
    """What Triton parses of a function with this text, unless somebody replaces it; None if it finds no function."""
    dedented = textwrap.dedent(text)
    found = re.search(r"^def\s+\w+\s*\(", dedented, re.MULTILINE)  # Triton's own pattern
    return None if found is None else dedented[found.start() :]


def is_replaced(function: Any) -> bool:
    """Whether somebody has given a function another text to compile than it was made with."""
    return compiled_text(function) != text_that_triton_takes("".join(function.raw_src))


def parameters(function: Any) -> list[Parameter]:
    """What Triton knows of a jit function's parameters."""
    found = []
    for parameter, given in zip(function.params, function.signature.parameters.values(), strict=True):
        found.append(
            Parameter(
                name=parameter.name,
                kind=given.kind.name.lower(),
                annotation=parameter.annotation,
                specialize=not parameter.do_not_specialize,
                align=not parameter.do_not_specialize_on_alignment,
            )
        )
    return found


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
