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
_MAX_LABEL = 60  # characters
_MAX_VALUE = 20  # characters of a constant in a label
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


def label_of(request: CompileRequest) -> str:
    """What tells a kernel from others of its name: `"BLOCK_M=128 BLOCK_N=64 warps=8"`; cut short if it is long."""
    constants = request.constants
    known = parameters_of(request) if any(name.startswith("#") for name in constants) else ()
    words = [
        f"{named(name, known)}={str(value)[:_MAX_VALUE]}"
        for name, value in constants.items()
        if value is None or isinstance(value, (bool, int, float, str))
    ]
    for option, short in (("num_warps", "warps"), ("num_stages", "stages")):
        if option in request.options:
            words.append(f"{short}={str(request.options[option])[:_MAX_VALUE]}")
    text = " ".join(words)
    return text if len(text) <= _MAX_LABEL else f"{text[: _MAX_LABEL - 1]}…"
