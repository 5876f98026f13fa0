"""Whether the program has changed what of Inductor decides what is compiled: the describer imports it as installed.

Programs replace decorators (`triton_heuristics.pointwise = mine`), methods of CachingAutotuner, or that class by one of
their own. Inductor's own workers do not see that, but Inductor's process does, where it compiles, and where it gives
the class to what its workers send. Which of them it is, is stock's business: headstart then leaves torch.compile alone.

Looked at are functions, methods and classes by where they come from. What headstart itself puts there is none of
the program's.
"""

from __future__ import annotations

import functools
import operator
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

_RUNTIME = "torch._inductor.runtime."
_MODULES = tuple(
    _RUNTIME + name
    for name in ("triton_heuristics", "compile_tasks", "hints", "runtime_utils", "triton_compat", "triton_helpers")
)
# Packages from which these modules have what they were made with.
_KNOWN = sys.stdlib_module_names | {"headstart", "numpy", "sympy", "torch", "triton", "typing_extensions"}


# Methods that only this process calls, on objects of its own, whoever compiled: to launch, to measure, and to decide
# what else is to be compiled (the describer only guesses that).
_HERE = frozenset(
    {"_dynamic_scale_rblock", "_make_launchers", "make_launcher", "bench", "benchmark_all_configs", "run"}
)

# Where something lies, what of it, and what that was.
_Scope = tuple[Mapping[str, Any], Callable[[Mapping[str, Any]], Any], Any]


class Integrity:
    """What Inductor's decorators were like when they were looked at last."""

    def __init__(self) -> None:
        self._seen: dict[str, list[_Scope]] = {}  # by module; what is all torch's

    def changed(self) -> str | None:
        """The first thing that somebody has put in place of torch's own; None if there is none.

        Costs some ten microseconds unless something has changed.
        """
        for name in _MODULES:
            module = sys.modules.get(name)
            if module is None or _is_as(self._seen.get(name)):
                continue
            scopes: list[tuple[str, Mapping[str, Any]]] = [(name, vars(module))]
            for each, value in list(vars(module).items()):
                if isinstance(value, type) and value.__module__ == name:
                    scopes.append((f"{name}.{each}", vars(value)))
            for label, scope in scopes:
                for each, value in list(scope.items()):
                    if each not in _HERE and not _is_known(value):
                        return f"{label}.{each}"
            self._seen[name] = [taken for _, scope in scopes if (taken := _taken(scope)) is not None]
        return None


def _taken(scope: Mapping[str, Any]) -> _Scope | None:
    names = [each for each, value in scope.items() if each not in _HERE and _may_be_called(value)]
    if not names:
        return None
    take = operator.itemgetter(*names)  # quicker than a loop, and this runs at each kick-off
    return scope, take, take(scope)


def _may_be_called(value: Any) -> bool:
    return callable(value) or isinstance(value, (staticmethod, classmethod, property, functools.cached_property))


def _is_as(seen: list[_Scope] | None) -> bool:
    if seen is None:
        return False
    try:
        return all(take(scope) == values for scope, take, values in seen)
    except KeyError:  # something is gone
        return False


def _is_known(value: Any) -> bool:
    """Whether it comes from torch, or from what torch is made with, as far as it could be called."""
    while True:
        if isinstance(value, (staticmethod, classmethod, types.MethodType)):
            value = value.__func__
        elif isinstance(value, property):
            value = value.fget
        elif isinstance(value, functools.partial):
            value = value.func
        elif isinstance(value, functools._lru_cache_wrapper | functools.cached_property):
            value = value.__wrapped__ if hasattr(value, "__wrapped__") else value.func
        else:
            break
    if isinstance(value, types.FunctionType):
        home = value.__globals__.get("__name__")
    elif isinstance(value, type):
        home = value.__module__
    elif callable(value):
        home = type(value).__module__
    else:
        return True
    # What `collections.namedtuple` makes has a home of its own.
    package = str(home).partition(".")[0]
    return package.startswith("namedtuple_") or (package in _KNOWN and package != "unittest")
