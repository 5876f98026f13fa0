"""Makes the functions of a captured source again, so that Triton sees what it would see in the client.

Each function gets globals of its own, which hold what its names stand for and nothing else. Triton is given its lines,
as they were given to it in the client, in place of what `inspect` would find in a file.

Of a jit function Triton reads text, parameters and names; the Python function below it is a bare one with these
parameters, and is never called. A constexpr function is called: its code is compiled from its text under its file
name, at its lines, and the code of the module around it, which would evaluate decorators and defaults, is thrown away.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import io
import linecache
import textwrap
import types
from collections import namedtuple
from collections.abc import Iterator, Sequence
from typing import Any

from headstart.model import captured
from headstart.model.captured import Binding, CapturedFunction, CapturedSource, Parameter


class NamedTuples:
    """Classes of named tuples, each made once for its names."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, str, tuple[str, ...]], Any] = {}

    def __call__(self, module: str, name: str, fields: Sequence[str], defaults: Sequence[Any] = ()) -> Any:
        """The class with these fields."""
        key = (module, name, tuple(fields))
        made = self._made.get(key)
        if made is None:
            bare_name = name.rpartition(".")[2]
            cls: Any = namedtuple(bare_name, fields, module=module)  # type: ignore[misc]
            cls.__qualname__ = name
            made = self._made[key] = cls
        if defaults:  # they are described with the class, and not with its instances
            made.__new__.__defaults__ = tuple(defaults)
            made._field_defaults = dict(zip(fields[len(fields) - len(defaults) :], defaults, strict=True))
        return made


class Rebuilt:
    """The functions of a source as Triton's objects.

    Attributes:
        functions: in the source's order.

    Args:
        named_tuples: makes the classes of named tuples.
    """

    def __init__(self, source: CapturedSource, named_tuples: NamedTuples) -> None:
        self.functions: list[Any] = []
        self._source = source
        self._named_tuples = named_tuples
        self._made: dict[int, Any] = {}
        self._containers: list[tuple[Any, str]] = []
        self._triton = importlib.import_module("triton")
        self._language = importlib.import_module("triton.language")

    def make(self) -> None:
        """Make all functions, then give them their names, because functions may call each other.

        Raises:
            ImportError: a module that it uses is not there.
            AttributeError: a member of such a module is not there.
            SyntaxError: the text of a function is not that of a function.
        """
        self.functions = [self._function(index) for index in range(len(self._source.functions))]
        for index, made in self._made.items():
            names = self._source.functions[index].names.items()
            scope = {name: self._value(binding) for name, binding in names if not isinstance(binding, captured.Unbound)}
            made.fn.__globals__.update(scope)

    def unbound(self) -> dict[str, str]:
        """Names that could not be described, each with why."""
        named = (item for function in self._source.functions for item in function.names.items())
        return {name: binding.why for name, binding in named if isinstance(binding, captured.Unbound)}

    def changed(self) -> bool:
        """Whether a constexpr function has changed a list or a dict, of which the client would know nothing."""
        return any(repr(container) != shown for container, shown in self._containers)

    def _function(self, index: int) -> Any:
        if index not in self._made:
            self._made[index] = self._make(self._source.functions[index])
        return self._made[index]

    def _make(self, function: CapturedFunction) -> Any:
        with _lines_are(list(io.StringIO(function.text)), function.first_line):
            if function.kind == "constexpr_function":
                return self._triton.constexpr_function(self._python(function))
            entry_name = self._source.entry_name if function is self._source.kernel else ""
            made = self._triton.jit(
                self._bare(function),
                noinline=function.noinline,
                repr=(lambda specialization: entry_name) if entry_name else None,
                do_not_specialize=[each.name for each in function.parameters if not each.specialize],
                do_not_specialize_on_alignment=[each.name for each in function.parameters if not each.align],
            )
        if function.replaced:
            vars(made)["_src"] = function.replaced  # what `_unsafe_update_src` sets
        return made

    def _bare(self, function: CapturedFunction) -> types.FunctionType:
        """A Python function of which only the signature and the place mean anything."""
        code = compile(f"def {function.name}({_signature(function.parameters)}): pass", function.filename, "exec")
        made = self._around(function, _only_code(code).replace(co_firstlineno=function.first_line))
        defaults = {name: self._value(binding) for name, binding in function.defaults.items()}
        by_keyword = {each.name for each in function.parameters if each.kind == "keyword_only"}
        made.__defaults__ = tuple(value for name, value in defaults.items() if name not in by_keyword) or None
        made.__kwdefaults__ = {name: value for name, value in defaults.items() if name in by_keyword} or None
        made.__annotations__ = {each.name: each.annotation for each in function.parameters if each.annotation}
        return made

    def _python(self, function: CapturedFunction) -> types.FunctionType:
        tree = ast.parse(textwrap.dedent(function.text), function.filename)
        ast.increment_lineno(tree, function.first_line - 1)
        (definition,) = tree.body
        if not isinstance(definition, ast.FunctionDef):
            raise SyntaxError(f"the text of {function.qualname} is not one function")
        parameters = definition.args
        positional = [argument.arg for argument in (*parameters.posonlyargs, *parameters.args)]
        by_keyword = [argument.arg for argument in parameters.kwonlyargs]
        _strip(definition)
        made = self._around(function, _only_code(compile(tree, function.filename, "exec", dont_inherit=True)))
        defaults = {name: self._value(binding) for name, binding in function.defaults.items()}
        made.__defaults__ = tuple(defaults[name] for name in positional if name in defaults) or None
        made.__kwdefaults__ = {name: defaults[name] for name in by_keyword if name in defaults} or None
        return made

    @staticmethod
    def _around(function: CapturedFunction, code: types.CodeType) -> types.FunctionType:
        made = types.FunctionType(code, {"__name__": function.module})
        made.__qualname__ = function.qualname
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
                return self._watched(values) if kind == "list" else tuple(values)
            case captured.Table(items):
                return self._watched({self._value(key): self._value(item) for key, item in items})
            case captured.Constexpr(value):
                return self._language.constexpr(self._value(value))
            case captured.FunctionRef(index):
                return self._function(index)
            case captured.NamedTuple(module, name, fields, defaults):
                return self._named_tuples(module, name, fields, [self._value(default) for default in defaults])
            case captured.NamedTupleValue(cls, items):
                return self._value(cls)(*(self._value(item) for item in items))
            case captured.Namespace(name, members, is_class, module):
                members_ = {attribute: self._value(member) for attribute, member in members.items()}
                if is_class:
                    names = {"__module__": module, "__qualname__": name}
                    return type(name.rpartition(".")[2], (), {**members_, **names})
                namespace = types.ModuleType(name)
                namespace.__dict__.update(members_)
                return namespace
        raise TypeError(f"{binding} stands for nothing")

    def _watched(self, container: Any) -> Any:
        self._containers.append((container, repr(container)))
        return container


@contextlib.contextmanager
def rebuilt(source: CapturedSource, named_tuples: NamedTuples) -> Iterator[Rebuilt]:
    """The functions; tracebacks find their texts while the context lasts. Raises as `Rebuilt.make`."""
    files = {function.filename for function in source.functions}
    kept = {file: linecache.cache[file] for file in files if file in linecache.cache}
    made = Rebuilt(source, named_tuples)
    try:
        made.make()
        _show(source.functions)
        yield made
    finally:
        for file in files:
            linecache.cache.pop(file, None)
        linecache.cache.update(kept)


def _signature(parameters: Sequence[Parameter]) -> str:
    """Parameters as they stand in a `def`, each without its default."""
    parts: list[str] = []
    kinds = [parameter.kind for parameter in parameters]
    for index, parameter in enumerate(parameters):
        if parameter.kind == "keyword_only" and "keyword_only" not in kinds[:index] and "var_positional" not in kinds:
            parts.append("*")
        parts.append(f"*{parameter.name}" if parameter.kind == "var_positional" else parameter.name)
        if parameter.kind == "positional_only" and "positional_only" not in kinds[index + 1 :]:
            parts.append("/")
    return ", ".join(parts)


def _strip(definition: ast.FunctionDef) -> None:
    """Leave out what is evaluated in the scope around a function: it is given to it, or does not matter."""
    definition.decorator_list = []
    definition.returns = None
    arguments = definition.args
    arguments.defaults, arguments.kw_defaults = [], [None] * len(arguments.kwonlyargs)
    every = [
        *arguments.posonlyargs,
        *arguments.args,
        *arguments.kwonlyargs,
        arguments.vararg,
        arguments.kwarg,
    ]
    for argument in every:
        if argument is not None:
            argument.annotation = None


def _only_code(module: types.CodeType) -> types.CodeType:
    (code,) = [each for each in module.co_consts if isinstance(each, types.CodeType)]
    return code


@contextlib.contextmanager
def _lines_are(lines: list[str], first_line: int) -> Iterator[None]:
    """Have Triton take these lines for those of the function that it is given. It asks `inspect`, which reads files."""
    of_inspect: dict[str, Any] = vars(inspect)
    real = of_inspect["getsourcelines"]
    of_inspect["getsourcelines"] = lambda function: (list(lines), first_line)
    try:
        yield
    finally:
        of_inspect["getsourcelines"] = real


def _show(functions: Sequence[CapturedFunction]) -> None:
    """Put functions where tracebacks find them; lines between them are empty."""
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
