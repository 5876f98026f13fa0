"""A live `@triton.jit` function as plain data that a worker can rebuild it from.

    capture(fn):  fn's text ─▶ the names it uses ─▶ what each of them is now ─▶ the functions among these, likewise

Texts come from Triton, which took them when the function was made: no file is read again. Values are looked up when the
capture is asked for, so that a function sees what it would see if it were compiled now. What was captured is kept on
the function, with every value that was looked at: while these are the same objects, the capture is good.
"""

from __future__ import annotations

import inspect
import sys
import textwrap
import types
from collections.abc import Mapping, Sequence
from typing import Any

from headstart.captured import (
    Binding,
    CapturedFunction,
    CapturedSource,
    Constant,
    Constexpr,
    Dtype,
    FunctionRef,
    Import,
    Items,
    Member,
    NamedTuple,
    Namespace,
    Table,
)
from headstart.errors import CannotTravel, UsageError
from headstart.jit import compat
from headstart.jit.names import Use, names_used

_NOTES = "__headstart__"  # in a function's __dict__
_ABSENT: Any = object()


def capture(kernel: Any, arguments: Sequence[Any] = ()) -> CapturedSource:
    """The source of a live kernel.

    Args:
        kernel: a `@triton.jit` function, or one wrapped by `@triton.autotune` or `@triton.heuristics`.
        arguments: functions that it is given as constexpr arguments.

    Raises:
        UsageError: it is no such function.
        CannotTravel: it uses something that cannot be described as data.
    """
    return _take(compat.jit_function(kernel), arguments).source


def capture_call(
    kernel: Any, constants: Mapping[Any, Any] | None, signature: Mapping[str, str] | str
) -> tuple[CapturedSource, dict[Any, Any]]:
    """The source of a live kernel for one specialization, and the constants of that as a request takes them.

    The source is named as the kernel names itself (`@triton.jit(repr=…)`), and holds the functions among the constants.

    Raises:
        UsageError: as `capture`; or the kernel has a name of its own, and the signature is not a mapping.
    """
    function = compat.jit_function(kernel)
    given = dict(constants or {})
    functions = {key: value for key, value in given.items() if compat.kind(value) is not None}
    taken = _take(function, list(functions.values()))
    plain = given | {key: {"function": taken.indices[id(value)]} for key, value in functions.items()}
    if not compat.has_own_name(function):
        return taken.source, plain
    if isinstance(signature, str):
        raise UsageError(
            f"{function.__name__} has a repr of its own, which needs the signature as a mapping: {{'x': '*fp32'}}"
        )
    parameters = function.signature.parameters
    order = list(parameters)
    by_name = {_parameter(key, order): value for key, value in given.items()}
    values = {
        name: by_name.get(name, parameter.default)
        for name, parameter in parameters.items()
        if name in by_name or (name not in signature and parameter.default is not inspect.Parameter.empty)
    }
    types_ = {name: "constexpr" if name in values else signature.get(name, "") for name in order}
    return taken.source.named(compat.entry_name(function, values, types_)), plain


def _take(function: Any, arguments: Sequence[Any]) -> _Taken:
    notes = _notes(function)
    key = tuple(map(id, arguments))
    taken = notes.taken.get(key)
    if taken is None or not taken.is_current():
        taken = notes.taken[key] = _Capturing().take(function, arguments)
    return taken


def _parameter(key: Any, order: list[str]) -> Any:
    index = key[0] if isinstance(key, tuple) and len(key) == 1 else key
    return order[index] if isinstance(index, int) and 0 <= index < len(order) else key


class _Notes:
    """What is kept on a function; it is of no use to a copy of it, in this process or another."""

    def __init__(self, owner: dict[str, Any] | None = None) -> None:
        self.owner = owner
        self.parsed: _Parsed | None = None
        self.taken: dict[tuple[int, ...], _Taken] = {}  # by the functions given as arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return _Notes, ()


class _Parsed:
    """What a function's text says, whatever its names stand for."""

    def __init__(self, function: Any) -> None:
        self.compiled = compat.compiled_text(function)
        self.text = compat.text(function)
        self.uses: list[Use] = names_used(self.compiled)


class _Taken:
    """One capture, and what it depends on.

    Attributes:
        indices: of the functions in it, by `id`.
        arguments: held, so that no other function gets their `id`.
        looked_up: `mapping.get(name)` was `value`.
        cells: `cell.cell_contents` was `value`.
        mutable: `repr(value)` was `shown`.
    """

    def __init__(self) -> None:
        self.source: CapturedSource
        self.indices: dict[int, int] = {}
        self.arguments: list[Any] = []
        self.looked_up: list[tuple[Mapping[str, Any], str, Any]] = []
        self.cells: list[tuple[types.CellType, Any]] = []
        self.mutable: list[tuple[Any, str]] = []

    def is_current(self) -> bool:
        for mapping, name, value in self.looked_up:
            if mapping.get(name, _ABSENT) is not value:
                return False
        return all(_contents(cell) is value for cell, value in self.cells) and all(
            repr(value) == shown for value, shown in self.mutable
        )


def _notes(function: Any) -> _Notes:
    attributes = vars(function)
    notes: _Notes | None = attributes.get(_NOTES)
    if notes is None or notes.owner is not attributes:
        notes = attributes[_NOTES] = _Notes(attributes)
    return notes


def _parsed(function: Any) -> _Parsed:
    notes = _notes(function)
    if notes.parsed is None or notes.parsed.compiled is not compat.compiled_text(function):
        notes.parsed = _Parsed(function)
    return notes.parsed


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _ABSENT


class _Capturing:
    """One walk over a kernel and what it calls."""

    def __init__(self) -> None:
        self._taken = _Taken()
        self._functions: list[CapturedFunction | None] = []
        self._indices = self._taken.indices

    def take(self, kernel: Any, arguments: Sequence[Any]) -> _Taken:
        for function in (kernel, *arguments):
            self._function(function)
        self._taken.arguments = list(arguments)
        self._taken.source = CapturedSource(
            [function for function in self._functions if function is not None]
        )
        return self._taken

    def _function(self, function: Any) -> int:
        """The index of a function, which is captured if it was not yet."""
        known = self._indices.get(id(function))
        if known is not None:
            return known
        index = self._indices[id(function)] = len(self._functions)
        self._functions.append(None)  # a function may call itself
        self._functions[index] = self._describe(function)
        return index

    def _describe(self, function: Any) -> CapturedFunction:
        parsed = _parsed(function)
        python: types.FunctionType = function.fn
        user = _User(function)
        if not _is_of(parsed.compiled, parsed.text):
            raise user.refuse("", "its source was replaced after it was defined")
        attributes = vars(function)
        noinline = compat.noinline(function)
        self._taken.looked_up.append((attributes, "_src", parsed.compiled))
        if "noinline" in attributes:
            self._taken.looked_up.append((attributes, "noinline", attributes["noinline"]))
        cells = dict(zip(python.__code__.co_freevars, python.__closure__ or (), strict=True))
        names: dict[str, Binding] = {}
        grouped: dict[str, list[Use]] = {}
        for use in parsed.uses:
            grouped.setdefault(use.path[0], []).append(use.rest())
        for name, uses in grouped.items():
            value = self._look_up(name, python.__globals__, cells)
            if value is not _ABSENT:
                names[name] = self._bind(value, uses, name, user)
        defaults = {
            parameter.name: self._bind(parameter.default, [Use(())], parameter.name, user)
            for parameter in function.signature.parameters.values()
            if parameter.default is not inspect.Parameter.empty
        }
        return CapturedFunction(
            kind=compat.kind(function) or "jit",
            module=str(function.__module__),
            qualname=function.__qualname__,
            filename=python.__code__.co_filename.encode(errors="replace").decode(),
            first_line=compat.first_line(function),
            text=parsed.text,
            names=names,
            defaults=defaults,
            noinline=noinline,
        )

    def _look_up(self, name: str, scope: dict[str, Any], cells: dict[str, types.CellType]) -> Any:
        if name in cells:
            value = _contents(cells[name])
            self._taken.cells.append((cells[name], value))
            return value
        value = scope.get(name, _ABSENT)
        self._taken.looked_up.append((scope, name, value))
        return value

    def _bind(self, value: Any, uses: list[Use], name: str, user: _User) -> Binding:
        """What `value`, which `user` knows as `name`, is to be in the worker.

        Args:
            uses: what is used of it: itself (no path), or the attributes along a path.
        """
        if any(use.matters for use in uses):
            return self._binding(value, uses, name, user)
        try:
            return self._binding(value, uses, name, user)
        except CannotTravel:
            return Constant(None)  # of an annotation it only matters whether it is constexpr

    def _binding(self, value: Any, uses: list[Use], name: str, user: _User) -> Binding:
        if isinstance(value, types.ModuleType):
            return self._module(value, uses, name, user)
        if compat.kind(value) is not None:
            return _member_of_triton(value) or FunctionRef(self._function(value))
        plain = self._plain(value, name, user)
        if plain is not None:
            return plain
        member = _member_of_triton(value)
        if member is not None:
            return member
        if isinstance(value, type):
            return self._class(value, uses, name, user)
        raise user.refuse(name, _why_not(value))

    def _plain(self, value: Any, name: str, user: _User) -> Binding | None:
        # Subclasses (numpy.float64, members of an IntEnum) would be something else on the other side.
        kind = type(value)
        if value is None or kind in (bool, float, str):
            return Constant(value)
        if kind is int:
            if not -(2**63) <= value < 2**64:
                raise user.refuse(name, f"{value}, which does not fit 64 bits")
            return Constant(value)
        if kind in (tuple, list):
            if kind is list:
                self._taken.mutable.append((value, repr(value)))
            items = [self._bind(item, [Use(())], name, user) for item in value]
            return Items("list" if kind is list else "tuple", items)
        if kind is dict:
            self._taken.mutable.append((value, repr(value)))
            pairs = [[self._bind(item, [Use(())], name, user) for item in pair] for pair in value.items()]
            return Table([(key, item) for key, item in pairs])
        core = compat.core()
        if core is not None:
            if kind is core.constexpr:
                self._taken.looked_up.append((vars(value), "value", value.value))
                return Constexpr(self._bind(value.value, [Use(())], name, user))
            if kind is core.dtype:
                return Dtype(value.name)
        return None

    def _module(self, module: types.ModuleType, uses: list[Use], name: str, user: _User) -> Binding:
        if compat.is_triton(module.__name__):
            return Import(module.__name__, _submodules(module, uses))
        if module.__name__.partition(".")[0] in sys.stdlib_module_names:
            return Import(module.__name__)
        return Namespace(module.__name__, self._members(module, uses, name, user))

    def _class(self, value: type, uses: list[Use], name: str, user: _User) -> Binding:
        if issubclass(value, tuple) and hasattr(value, "_fields"):
            given: dict[str, Any] = getattr(value, "_field_defaults", {})
            defaults = [self._bind(default, [Use(())], name, user) for default in given.values()]
            return NamedTuple(value.__module__, value.__name__, list(value._fields), defaults)
        if not any(use.path or use.matters for use in uses):
            return Constant(None)
        if compat.is_aggregate(value):
            raise user.refuse(name, "an aggregate, which headstart cannot describe yet")
        return Namespace(value.__qualname__, self._members(value, uses, name, user), is_class=True)

    def _members(self, owner: Any, uses: list[Use], name: str, user: _User) -> dict[str, Binding]:
        grouped: dict[str, list[Use]] = {}
        for use in uses:
            if use.path:
                grouped.setdefault(use.path[0], []).append(use.rest())
            elif use.matters:
                kind = "class" if isinstance(owner, type) else "module"
                raise user.refuse(name, f"a {kind} of which not only attributes are used")
        members = {}
        for attribute, rests in grouped.items():
            value = vars(owner).get(attribute, _ABSENT)
            self._taken.looked_up.append((vars(owner), attribute, value))
            if value is _ABSENT or isinstance(owner, type):
                value = getattr(owner, attribute, _ABSENT)  # inherited, or made by the module when asked for
            if value is not _ABSENT:
                members[attribute] = self._bind(value, rests, f"{name}.{attribute}", user)
        return members


class _User:
    """The function whose names are being looked at, for what is said about them."""

    def __init__(self, function: Any) -> None:
        self._function = function

    def refuse(self, name: str, why: str) -> CannotTravel:
        function = self._function
        where = f"{function.fn.__code__.co_filename}:{compat.first_line(function)}"
        return CannotTravel(f"{function.__module__}.{function.__qualname__}", name, why, where)


def _is_of(compiled: str, text: str) -> bool:
    """Whether what Triton compiles is still what stands in the file."""
    return text.endswith(compiled) or textwrap.dedent(text).endswith(compiled)


def _submodules(module: types.ModuleType, uses: list[Use]) -> list[str]:
    """Modules that are reached through attributes of a module of Triton: importing it need not import these."""
    found = set()
    for use in uses:
        value: Any = module
        for attribute in use.path:
            value = getattr(value, attribute, None)
            if not isinstance(value, types.ModuleType):
                break
            if compat.is_triton(value.__name__):
                found.add(value.__name__)
    return sorted(found)


def _member_of_triton(value: Any) -> Member | None:
    """Where in Triton `value` is to be found, if there."""
    home = getattr(value, "__module__", None)
    module = sys.modules.get(str(home)) if compat.is_triton(home) else None
    if module is None:
        return None
    path = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    if isinstance(path, str) and _follow(module, path) is value:
        return Member(module.__name__, path)
    for name, member in vars(module).items():
        if member is value:
            return Member(module.__name__, name)
    return None


def _follow(module: types.ModuleType, path: str) -> Any:
    value: Any = module
    for attribute in path.split("."):
        value = getattr(value, attribute, None)
    return value


def _why_not(value: Any) -> str:
    kind = type(value).__name__
    if kind in ("Autotuner", "Heuristics"):
        return "which is tuned by Triton when it is launched, and cannot be called from a kernel"
    if kind == "GluonJITFunction":
        return "a Gluon function, which headstart cannot compile yet"
    if getattr(value, "__triton_builtin__", False):
        return "a Python function that takes part in compiling, from outside of Triton"
    if isinstance(value, (types.FunctionType, types.BuiltinFunctionType, types.MethodType)):
        return "a Python function that is not decorated with @triton.jit or @triton.constexpr_function"
    return f"a {type(value).__module__}.{kind}; numbers, strings, None, dtypes and tuples of these can travel"
