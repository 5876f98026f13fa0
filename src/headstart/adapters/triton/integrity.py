"""Whether the program has changed Triton itself: a worker imports it as it was installed.

Programs replace functions of Triton's (`tl.sum = mine`, a method of its code generator, a pass of a backend). A kernel
may then become another one here than in a worker. So what makes a kernel is looked at once, when the adapter is
installed, for what is not Triton's own; and compared with that before each compile, which takes tens of microseconds.

Looked at are functions and classes in the modules below, and functions in these classes. What the front end is given
by others on purpose (knobs, hooks, drivers) is not: `headstart.model.environment` sees to that.
"""

from __future__ import annotations

import operator
import sys
import types
from collections.abc import Mapping
from typing import Any

from headstart.capture import reading

_MODULES = ("triton.language", "triton.compiler", "triton.backends", "triton._utils", "triton.runtime.jit")
_NOT_THESE = ("triton.language.extra.hip.libdevice", "triton.language.extra.cuda.libdevice")  # tables of thousands
# Replaced by the adapter; and what only launches.
_OURS = frozenset({"_do_compile", "compile_module_from_src"})
_CLASSES_THAT_LAUNCH = frozenset({"JITFunction", "KernelInterface", "CompiledKernel", "LazyDict", "AsmDict"})


class Integrity:
    """What Triton was like when it was looked at first."""

    def __init__(self) -> None:
        self._seen: list[tuple[str, Mapping[str, Any], tuple[Any, ...], tuple[Any, ...]]] = []
        self._modules: set[str] = set()
        self._loaded = 0
        self._foreign = ""

    def changed(self) -> str | None:
        """The first thing that somebody has put in place of Triton's own; None if there is none."""
        if len(sys.modules) != self._loaded:
            self._look()
        if self._foreign:
            return self._foreign
        for name, scope, names, values in self._seen:
            now = map(scope.get, names)
            if not all(map(operator.is_, now, values)):
                return next(
                    f"{name}.{each}" for each, value in zip(names, values, strict=True) if scope.get(each) is not value
                )
        return None

    def _look(self) -> None:
        """Take in modules that were imported since."""
        self._loaded = len(sys.modules)
        for name in [each for each in list(sys.modules) if each.startswith("triton.") and each not in self._modules]:
            module = sys.modules.get(name)
            if not name.startswith(_MODULES) or name in _NOT_THESE or type(module) is not types.ModuleType:
                continue
            self._modules.add(name)
            self._take(name, vars(module))
            for each, value in list(vars(module).items()):
                if isinstance(value, type) and value.__module__ == name and each not in _CLASSES_THAT_LAUNCH:
                    self._take(f"{name}.{each}", vars(value))

    def _take(self, name: str, scope: Mapping[str, Any]) -> None:
        found = {each: value for each, value in scope.items() if each not in _OURS and _matters(value)}
        for each, value in found.items():
            if not self._foreign and not _is_tritons(value):
                self._foreign = f"{name}.{each}"
        self._seen.append((name, scope, tuple(found), tuple(found.values())))


def _matters(value: Any) -> bool:
    value = getattr(value, "__func__", value)
    return isinstance(value, (types.FunctionType, type)) or reading.kind(value) is not None


def _is_tritons(value: Any) -> bool:
    """Whether a function comes out of a file of Triton's, or of the standard library, which decorates."""
    value = getattr(value, "__func__", value)
    if reading.kind(value) is not None:
        if reading.is_replaced(value):
            return False
        value = value.fn
    if isinstance(value, types.FunctionType):
        home = value.__globals__.get("__name__")
        return reading.is_triton(home) or str(home).partition(".")[0] in sys.stdlib_module_names
    return True  # a class may be anybody's, as a base or a type is; its name says nothing of who put it there
