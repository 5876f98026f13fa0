"""The second look: a function as Triton parsed it, in the process that compiles it."""

from __future__ import annotations

import ast
import sys
import types
from collections.abc import Mapping
from typing import Any

from headstart.artifacts.vetting_syntax import (
    Scope,
    SourceRefused,
    check_parameters,
    check_statements,
    is_tritons,
    may_import,
    may_take,
)
from headstart.artifacts.vetting_words import (
    BUILTINS,
    DEEPEST,
    LANGUAGE,
    OF_EVERY_CLASS,
    READS_A_FILE,
)
from headstart.model import captured
from headstart.model.captured import Binding


def check_parsed(tree: ast.Module, bound: Mapping[str, Any]) -> str | None:
    """Why Triton may not compile this function, one line; None if it may.

    Args:
        tree: what Triton has made of its text, its decorators left out.
        bound: what the names mean that it does not define itself: its globals, and its closure's.
    """
    try:
        match tree.body:
            case [ast.FunctionDef(decorator_list=[]) as definition]:
                pass
            case _:
                raise SourceRefused("what Triton parsed is not one function")
        scope = Scope(definition, closed=True)
        for name in {node.id for node in ast.walk(definition) if isinstance(node, ast.Name)}:
            if name not in bound:
                continue
            meaning = _meaning(bound[name], name)
            if meaning is None:
                scope.know(name)
            else:
                scope.stand_for(name, meaning)
        check_parameters(definition, scope)
        check_statements(definition, scope)
    except SourceRefused as refused:
        return str(refused)
    except RecursionError:
        return "its source is nested too deeply"
    return None


def _meaning(value: Any, name: str, depth: int = 0) -> str | captured.Namespace | None:
    """What `Scope.stand_for` is told of a value; None: it is only a value, and harmless."""
    if isinstance(value, types.ModuleType):
        if sys.modules.get(value.__name__) is value:
            if not may_import(value.__name__):
                raise SourceRefused(f"it uses the module {value.__name__}")
            return value.__name__
        if is_tritons(value.__name__) or value.__name__ == "math":
            raise SourceRefused(f"what it calls the module {value.__name__} is not that module")
    elif not _is_place(value):
        _check_value(value, name, depth)
        return None
    if depth >= DEEPEST:
        raise SourceRefused(f"{name} is nested too deeply")
    members: dict[str, Binding] = {}
    for member, each in vars(value).items():
        if not member.startswith("__"):
            meaning = _meaning(each, f"{name}.{member}", depth + 1)
            if isinstance(meaning, str):
                members[member] = captured.Import(meaning)
            else:
                members[member] = captured.Constant(None) if meaning is None else meaning
    return captured.Namespace(name, members)


def _is_place(value: Any) -> bool:
    """Whether this is a class that does nothing of its own: a place for constants and functions."""
    return (
        type(value) is type
        and value.__bases__ == (object,)
        and not is_tritons(value.__module__)
        and all(member in OF_EVERY_CLASS for member in vars(value) if member.startswith("__"))
    )


def _check_value(value: Any, name: str, depth: int = 0) -> None:
    """What a name, not of a module, is bound to."""
    cls = type(value)
    if value is None or cls in (bool, int, float, complex, str, bytes, slice, type(...)):
        if cls is str and READS_A_FILE.search(value):
            raise SourceRefused(f"{name} is assembly that reads a file")
        return
    if depth < DEEPEST:
        if cls in (list, tuple, set, frozenset) or (issubclass(cls, tuple) and hasattr(cls, "_fields")):
            for member in value:
                _check_value(member, name, depth + 1)
            return
        if cls is dict:
            for pair in value.items():
                _check_value(pair, name, depth + 1)
            return
        if cls.__module__ == f"{LANGUAGE}.core" and cls.__name__ == "constexpr":
            _check_value(value.value, name, depth + 1)
            return
    if cls.__module__ == "triton.runtime.jit" and cls.__name__ in ("JITFunction", "ConstexprFunction"):
        return  # which is looked at when Triton comes to it, or was when it was defined
    if cls.__module__ == f"{LANGUAGE}.core" and not callable(value):
        return  # a type
    if isinstance(value, type) and issubclass(value, tuple) and hasattr(value, "_fields"):
        return
    if isinstance(value, (types.FunctionType, types.BuiltinFunctionType, type)):
        module, path = value.__module__ or "", value.__qualname__
        if may_take(module, path) or (module == "builtins" and path in BUILTINS):
            return
    raise SourceRefused(f"{name} is {_described_value(value)}, which no kernel needs")


def _described_value(value: Any) -> str:
    cls = type(value)
    return f"a {cls.__module__}.{cls.__qualname__}"
