"""A confined worker looks at each function once more, as Triton parsed it.

What was checked is a text; what Triton compiles is what `inspect`, and a search for `def`, make of a function object.
So `JITFunction.parse`, by which Triton comes to every function (3.6 to 3.9), is followed by `trust.check_parsed`.
Triton's own functions, as they lie in its modules, are left out.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from typing import Any

from headstart.artifacts.vetting import unvouched
from headstart.artifacts.vetting_parsed import check_parsed


class Unvouched(Exception):
    """Triton came to a function that is not compiled without trust."""


def install() -> None:
    """From now on, for good.

    Raises:
        AttributeError: this Triton parses by another way.
    """
    cls: Any = importlib.import_module("triton.runtime.jit").JITFunction
    parse = cls.parse
    triton_dir = str(importlib.import_module("triton").__path__[0])

    def checked(function: Any) -> ast.Module:
        tree: ast.Module = parse(function)
        if not _is_tritons(function, triton_dir):
            reason = check_parsed(tree, _bound(function.fn))
            if reason is not None:
                raise Unvouched(unvouched(f"{function.fn.__qualname__}: {reason}"))
        return tree

    cls.parse = checked


def _is_tritons(function: Any, triton_dir: str) -> bool:
    module = sys.modules.get(function.fn.__module__)
    return (
        module is not None
        and str(getattr(module, "__file__", "")).startswith(f"{triton_dir}/")
        and getattr(module, function.fn.__name__, None) is function
    )


def _bound(function: Any) -> dict[str, Any]:
    return {**function.__globals__, **inspect.getclosurevars(function).nonlocals}
