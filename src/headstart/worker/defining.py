"""How a worker runs a source that is text, and finds the kernel that it defines."""

from __future__ import annotations

import ast
import contextlib
import io
import linecache
import sys
import types
from collections.abc import Iterator
from typing import Any

from headstart.model.environment import FINGERPRINT_VARIABLES
from headstart.model.request import CompileRequest
from headstart.system.imports import is_standard
from headstart.worker import standins
from headstart.worker.refusing import source_failure

_ENVIRONMENT = frozenset({"environ", "environb", "getenv", "getenvb"})  # of `os`


def _defined(request: CompileRequest, source: str, shown: contextlib.ExitStack) -> tuple[Any, list[str]]:
    """The kernel that a text defines, and the modules that it reaches beyond its key."""
    module = shown.enter_context(_module_of(request, source))
    tree = ast.parse(source, request.filename)
    reader = _EnvironmentReader()
    reader.visit(tree)
    if reader.read is not None:
        raise source_failure(
            f"line {reader.read} of the source reads environment variables: those of the worker are not those of your "
            "program; write their values into the source"
        )
    return _define(request, tree, module), _foreign_modules(tree)


class _EnvironmentReader(ast.NodeVisitor):
    """Finds where a source reads variables other than those that the request carries; it may set any.

    Attributes:
        read: the first line; None: nowhere.
    """

    def __init__(self) -> None:
        self.read: int | None = None

    def visit(self, node: ast.AST) -> None:
        match node:
            case ast.Subscript(value=ast.Attribute(value=ast.Name(), attr="environ"), slice=ast.Constant(value=name)):
                self._note(node, isinstance(node.ctx, ast.Load) and name not in FINGERPRINT_VARIABLES)
            case ast.Call(
                func=(
                    ast.Attribute(value=ast.Attribute(value=ast.Name(), attr="environ"), attr="get" | "pop")
                    | ast.Attribute(value=ast.Name(), attr="getenv")
                ),
                args=[ast.Constant(value=name), *_],
            ):
                self._note(node, name not in FINGERPRINT_VARIABLES)
            case ast.Attribute(value=ast.Name(), attr=attribute) if attribute in _ENVIRONMENT:
                self._note(node, True)
            case ast.ImportFrom(module="os", names=names):
                self._note(node, any(alias.name in _ENVIRONMENT for alias in names))
            case _:
                self.generic_visit(node)

    def _note(self, node: ast.expr | ast.stmt, reads: bool) -> None:
        if reads and self.read is None:
            self.read = node.lineno


@contextlib.contextmanager
def _module_of(request: CompileRequest, source: str) -> Iterator[types.ModuleType]:
    module = types.ModuleType(request.module or request.name)
    module.__file__ = request.filename
    # Python ends lines as a file is read: at "\n", "\r\n" and "\r". A form feed, or U+2028, does not end one.
    lines = list(io.StringIO(source, newline=None))
    # An entry without a modification time is never checked against the disk.
    linecache.cache[request.filename] = (len(source), None, lines, request.filename)
    previous = sys.modules.get(module.__name__)
    if previous is None:
        sys.modules[module.__name__] = module
    try:
        yield module
    finally:
        linecache.cache.pop(request.filename, None)
        if previous is None:
            sys.modules.pop(module.__name__, None)


def _define(request: CompileRequest, tree: ast.Module, module: types.ModuleType) -> Any:
    code = compile(tree, request.filename, "exec", dont_inherit=True)
    exec(code, module.__dict__)  # noqa: S102 - compiling a kernel means defining it
    function: Any = module.__dict__.get(request.name)
    # @triton.autotune and @triton.heuristics wrap the function; what is compiled is inside.
    while type(function).__name__ in ("Autotuner", "Heuristics"):
        function = function.fn
    if type(function).__name__ != "JITFunction":
        defined = sorted(name for name, value in module.__dict__.items() if type(value).__name__ == "JITFunction")
        found = f"it defines {', '.join(defined)}" if defined else "it defines no @triton.jit function at all"
        raise source_failure(f"the source does not define a @triton.jit function {request.name!r}; {found}")
    return function


def _foreign_modules(tree: ast.Module) -> list[str]:
    """What a source imports that is neither the toolchain nor its own text, and so is not in its key."""
    imported = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imported.append("." * node.level + (node.module or ""))
    known = {"triton", "headstart"}
    if standins.are_shown():
        known.add("torch")  # what of it is real is part of the toolchain
    foreign = {name for name in imported if name.partition(".")[0] not in known}
    return sorted(name for name in foreign if not is_standard(name))
