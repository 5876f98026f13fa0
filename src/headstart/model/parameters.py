"""The names of a kernel's parameters, for people: a request may know them by position only."""

from __future__ import annotations

import ast
import functools
import warnings
from collections.abc import Callable, Sequence

from headstart.model.captured import CapturedSource
from headstart.model.keys import Component
from headstart.model.request import CompileRequest

PARSED = "<only parsed>"  # the file name under which a source is parsed, for whoever watches that none is run
_MAX_LABEL = 100  # characters: of what a log keeps for each kernel
_LONG = 24  # characters of a value
_POSITIONAL = ("constants.#", "attributes.#")  # beginnings of components that name a parameter by its position


def parameters_of(request: CompileRequest) -> tuple[str, ...]:
    """The kernel's parameters in order, as its source names them; none if that cannot be told. Runs none of it."""
    if isinstance(request.source, CapturedSource):
        return tuple(each.name for each in request.source.kernel.parameters)
    return _parameters(request.name, request.source)


@functools.lru_cache(maxsize=256)
def _parameters(name: str, text: str) -> tuple[str, ...]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in strings, say: nobody asked about them
            tree = ast.parse(text, PARSED)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ()
    # The latest definition is the one that has the name when the text has run.
    for node in reversed(tree.body):
        if isinstance(node, ast.FunctionDef) and node.name == name:
            given = node.args
            rest = [] if given.vararg is None else [given.vararg]
            return tuple(each.arg for each in (*given.posonlyargs, *given.args, *rest, *given.kwonlyargs))
    return ()


def named(path: str, parameters: Sequence[str]) -> str:
    """`"#2.0"` as `"x.0"`, if the third parameter is `x`; a path that names a parameter stays as it is."""
    position, dot, rest = path.removeprefix("#").partition(".")
    if not path.startswith("#") or not position.isdecimal() or int(position) >= len(parameters):
        return path
    return f"{parameters[int(position)]}{dot}{rest}"


def label_of(request: CompileRequest) -> str:
    """A kernel and what tells its configurations apart: `"matmul BLOCK_M=128 BLOCK_N=64 warps=8 stages=3"`."""
    return " ".join(filter(None, [request.name, configuration_of(request)]))


def configuration_of(request: CompileRequest) -> str:
    """What tells a kernel from others of its name: `"BLOCK_M=128 BLOCK_N=64 warps=8"`; cut short if it is long."""
    constants = dict(request.constants)
    if isinstance(request.signature, str):  # Triton's ahead-of-time form, with values among the types
        parts = enumerate(part.strip() for part in request.signature.split(","))
        constants |= {f"#{position}": _Literal(part) for position, part in parts if _is_literal(part)}
    names = parameters_of(request) if any(path.startswith("#") for path in constants) else ()
    constants = {named(path, names): value for path, value in constants.items()}
    # Switches and texts are alike in all configurations of a sweep, almost always.
    numbers = {name: value for name, value in request.options.items() if type(value) is int}
    options = {_SHORTER.get(name, name): value for name, value in numbers.items()}
    text = " ".join(f"{name}={_shown(value)}" for name, value in {**constants, **options}.items())
    return text if len(text) <= _MAX_LABEL else f"{text[: _MAX_LABEL - 1]}…"


_SHORTER = {"num_warps": "warps", "num_stages": "stages", "num_ctas": "ctas"}


class _Literal(str):
    """A value as it was written."""

    __slots__ = ()


def _is_literal(part: str) -> bool:
    return part[:1].isdigit() or part[:1] in ("-", "'", '"') or part in ("True", "False", "None")


def _shown(value: object) -> str:
    text = value if isinstance(value, _Literal) else repr(value)
    return text if len(text) <= _LONG else f"{text[: _LONG - 1]}…"


def with_names(components: Sequence[Component], parameters: Callable[[], Sequence[str]]) -> list[Component]:
    """Components of a key, as people read them. Their names stay different from one another.

    Args:
        parameters: gives the parameters' names; called once, if any is missing.
    """
    taken = {name for name, _ in components}
    known = parameters() if any(name.startswith(_POSITIONAL) for name in taken) else ()
    found = []
    for name, value in components:
        if name.startswith(_POSITIONAL):
            kind, _, path = name.partition(".")
            better = f"{kind}.{named(path, known)}"
            name = name if better in taken else better
        found.append((name, value))
    return found
