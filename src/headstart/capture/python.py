"""Constexpr functions: Python that Triton runs while it compiles, and that a worker is to run as the program would.

A worker makes such a function from its text. That is the same function if the text is what the code was compiled from,
and it does the same if nothing has a say in it but what it is given: no state of the process.
"""

from __future__ import annotations

import ast
import sys
import textwrap
import types
from collections.abc import Iterable
from typing import Any

from headstart.capture.names import Use, imports_of

# Modules of the standard library whose functions depend on their arguments alone.
PURE_MODULES = frozenset(
    {
        "__future__", "bisect", "builtins", "cmath", "collections", "collections.abc", "copy", "dataclasses", "enum",
        "fractions", "functools", "heapq", "itertools", "math", "numbers", "operator", "re", "string", "struct",
        "textwrap", "types", "typing",
    }
)  # fmt: skip
# Builtins that see more than their arguments, or something that no two processes have alike.
_IMPURE_BUILTINS = frozenset(
    {
        "__import__", "breakpoint", "compile", "dir", "eval", "exec", "exit", "globals", "hash", "help", "id", "input",
        "locals", "open", "quit", "vars",
    }
)  # fmt: skip
_IGNORED_FLAGS = 0x10 | 0x1FE0000  # CO_NESTED, and what `from __future__ import …` sets


def why_not(function: types.FunctionType, text: str, uses: Iterable[Use], bound: Iterable[str]) -> str | None:
    """Why a worker could not run this function as the program does, or None.

    Args:
        function: the Python function.
        text: that it is to be made of, decorators included.
        uses: of names in it, as `headstart.capture.names` finds them.
        bound: those that stand for something in the program; all others are builtins.
    """
    if sys.flags.optimize:
        return "it is Python, which runs with -O here and without in a worker"
    if not is_of(function.__code__, text):
        return "its code is not that of its text"
    for module in imports_of(text):
        if module not in PURE_MODULES and module.partition(".")[0] != "triton":
            return f"it imports {module} when it runs"
    if any(isinstance(node, ast.Global) for node in ast.walk(ast.parse(textwrap.dedent(text)))):
        return "it sets global variables"
    impure = {use.path[0] for use in uses} & _IMPURE_BUILTINS - set(bound)
    return f"it calls {min(impure)}, which sees more than it is given" if impure else None


def is_of(code: types.CodeType, text: str) -> bool:
    """Whether compiling `text`, the text of one function, gives `code`, wherever in its file it stands."""
    try:
        tree = ast.parse(textwrap.dedent(text))
        (definition,) = tree.body
        assert isinstance(definition, ast.FunctionDef)
    except (SyntaxError, ValueError, AssertionError):
        return False
    # Decorators and defaults belong to the code around it; in a function that has its free variables, they are free.
    definition.decorator_list = []
    if code.co_freevars:
        outer = ast.parse(f"def around():\n    {' = '.join(code.co_freevars)} = None").body[0]
        assert isinstance(outer, ast.FunctionDef)
        outer.body.append(definition)
        tree.body = [outer]
    compiled: types.CodeType | None = compile(tree, code.co_filename, "exec", dont_inherit=True)
    for name in (["around"] if code.co_freevars else []) + [definition.name]:
        compiled = next((each for each in _codes(compiled) if each.co_name == name), None)
    return compiled is not None and _facts(compiled) == _facts(code)


def _codes(code: types.CodeType | None) -> list[types.CodeType]:
    return [each for each in (code.co_consts if code else ()) if isinstance(each, types.CodeType)]


def _facts(code: types.CodeType) -> tuple[Any, ...]:
    """What a code does, its place in a file left out."""
    return (
        code.co_code,
        tuple(_facts(each) if isinstance(each, types.CodeType) else _constant(each) for each in code.co_consts),
        code.co_names,
        code.co_varnames,
        code.co_freevars,
        code.co_cellvars,
        (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount),
        code.co_flags & ~_IGNORED_FLAGS,
    )


def _constant(value: Any) -> tuple[Any, ...]:
    """A constant so that equal ones are the same: `1`, `1.0` and `True` are not, nor `0.0` and `-0.0`."""
    if isinstance(value, tuple):
        return (tuple, *map(_constant, value))
    if isinstance(value, frozenset):
        return (frozenset, *sorted(map(repr, map(_constant, value))))
    if isinstance(value, str):
        value = value.rpartition("<locals>.")[2]  # Python 3.10 keeps qualified names of inner functions among constants
    return type(value), repr(value)


def defaults_of(function: types.FunctionType) -> list[tuple[str, Any]]:
    """The values of parameters that have a default, as they are now."""
    code = function.__code__
    positional = code.co_varnames[: code.co_argcount]
    defaults = function.__defaults__ or ()
    given = list(zip(positional[len(positional) - len(defaults) :], defaults, strict=True))
    return [*given, *(function.__kwdefaults__ or {}).items()]
