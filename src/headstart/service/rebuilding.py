"""Makes the functions of a captured source again, so that Triton sees what it would see in the client.

Each function gets globals of its own, which hold what its names stand for and nothing else. Its code is compiled from
its text under its file name, at its lines; the code of the module around it, which would evaluate decorators and
defaults, is thrown away. Triton looks a function's text up in linecache, where it stands at its lines.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import linecache
import textwrap
import types
from collections import namedtuple
from collections.abc import Iterator
from typing import Any

from headstart import captured
from headstart.captured import Binding, CapturedFunction, CapturedSource


@contextlib.contextmanager
def rebuilt(source: CapturedSource) -> Iterator[list[Any]]:
    """The functions, as Triton's objects; their texts can be looked up while the context lasts.

    Raises:
        ImportError: a module of Triton that it uses is not there.
        AttributeError: a member of such a module is not there.
        SyntaxError: the text of a function is not that of a function.
    """
    files = {function.filename for function in source.functions}
    kept = {file: linecache.cache[file] for file in files if file in linecache.cache}
    try:
        rebuilding = _Rebuilding(source)
        functions = [rebuilding.function(index) for index in range(len(source.functions))]
        rebuilding.bind()
        _show(source.functions)
        yield functions
    finally:
        for file in files:
            linecache.cache.pop(file, None)
        linecache.cache.update(kept)


class _Rebuilding:
    def __init__(self, source: CapturedSource) -> None:
        self._source = source
        self._made: dict[int, Any] = {}
        self._triton = importlib.import_module("triton")
        self._language = importlib.import_module("triton.language")

    def function(self, index: int) -> Any:
        """The function at `index`. Its names come later (`bind`), because functions may call each other."""
        if index not in self._made:
            self._made[index] = self._make(self._source.functions[index])
        return self._made[index]

    def bind(self) -> None:
        """Give all functions their names."""
        for index, made in self._made.items():
            names = self._source.functions[index].names
            made.fn.__globals__.update({name: self._value(binding) for name, binding in names.items()})

    def _make(self, captured_function: CapturedFunction) -> Any:
        function = self._python(captured_function)
        _show([captured_function])
        if captured_function.kind == "constexpr_function":
            return self._triton.constexpr_function(function)
        entry_name = self._source.entry_name if captured_function is self._source.kernel else ""
        own_name = (lambda specialization: entry_name) if entry_name else None
        return self._triton.jit(function, noinline=captured_function.noinline, repr=own_name)

    def _python(self, function: CapturedFunction) -> types.FunctionType:
        tree = ast.parse(textwrap.dedent(function.text), function.filename)
        ast.increment_lineno(tree, function.first_line - 1)
        (definition,) = tree.body
        if not isinstance(definition, ast.FunctionDef):
            raise SyntaxError(f"the text of {function.qualname} is not one function")
        # Annotations are not evaluated where the function is made, and so do not matter.
        module = compile(tree, function.filename, "exec", dont_inherit=True)
        codes = [code for code in module.co_consts if isinstance(code, types.CodeType)]
        code = next(code for code in codes if code.co_name == definition.name)
        made = types.FunctionType(code, {"__name__": function.module})
        made.__qualname__ = function.qualname
        parameters = definition.args
        defaults = {name: self._value(binding) for name, binding in function.defaults.items()}
        positional = [argument.arg for argument in (*parameters.posonlyargs, *parameters.args)]
        made.__defaults__ = tuple(defaults[name] for name in positional if name in defaults) or None
        by_keyword = [argument.arg for argument in parameters.kwonlyargs]
        made.__kwdefaults__ = {name: defaults[name] for name in by_keyword if name in defaults} or None
        return made

    def _value(self, binding: Binding) -> Any:
        match binding:
            case captured.Import(module, submodules):
                for submodule in submodules:
                    importlib.import_module(submodule)
                return importlib.import_module(module)
            case captured.Member(module, path):
                value: Any = importlib.import_module(module)
                for attribute in path.split("."):
                    value = getattr(value, attribute)
                return value
            case captured.Constant(value):
                return value
            case captured.Dtype(name):
                return self._language.dtype(name)
            case captured.Items(kind, items):
                values = [self._value(item) for item in items]
                return values if kind == "list" else tuple(values)
            case captured.Table(items):
                return {self._value(key): self._value(item) for key, item in items}
            case captured.Constexpr(value):
                return self._language.constexpr(self._value(value))
            case captured.FunctionRef(index):
                return self.function(index)
            case captured.NamedTuple(module, name, fields, defaults):
                return namedtuple(
                    name, fields, defaults=[self._value(default) for default in defaults], module=module
                )
            case captured.Namespace(name, members, is_class):
                values_by_name = {attribute: self._value(member) for attribute, member in members.items()}
                if is_class:
                    return type(name, (), values_by_name)
                namespace = types.ModuleType(name)
                namespace.__dict__.update(values_by_name)
                return namespace


def _show(functions: list[CapturedFunction]) -> None:
    """Put functions where `inspect` and tracebacks find them; lines between them are empty."""
    lines: dict[str, list[str]] = {}
    for function in functions:
        file = lines.setdefault(function.filename, [])
        text = list(io.StringIO(function.text))  # split as a file is: at line ends only
        end = function.first_line - 1 + len(text)
        file.extend("\n" for _ in range(end - len(file)))
        file[function.first_line - 1 : end] = text
    for filename, file in lines.items():
        # An entry without a modification time is never checked against the disk.
        linecache.cache[filename] = (sum(map(len, file)), None, file, filename)
