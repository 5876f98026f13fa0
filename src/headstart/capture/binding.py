"""What a name of a live function stands for, as data; and what that depends on.

    Binder.bind(value, uses) ─▶ Binding          the value itself, or the attributes along the paths that are used
                             └▶ Dependencies     everything that was looked at on the way: while it is the same, so is
                                                 the binding

A value is described if a worker can make exactly it: of its own class, with its own attributes. Subclasses, descriptors
and modules that make their attributes when asked are something else, and are refused.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from headstart.capture import reading
from headstart.capture.names import Use
from headstart.capture.python import PURE_MODULES
from headstart.errors import CannotTravel
from headstart.model.captured import (
    Binding,
    Constant,
    Constexpr,
    Dtype,
    FunctionRef,
    Import,
    Items,
    Member,
    NamedTuple,
    NamedTupleValue,
    Namespace,
    Table,
)
from headstart.model.values import named_tuple_fields
from headstart.system.imports import is_standard

ABSENT: Any = object()
ITSELF = [Use(())]


class Dependencies:
    """What was looked at, and what was found there."""

    def __init__(self) -> None:
        self._looked_up: list[tuple[Mapping[str, Any], str, Any]] = []
        self._attributes: list[tuple[Any, str, Any]] = []
        self._cells: list[tuple[types.CellType, Any]] = []
        self._contents: list[tuple[Any, tuple[Any, ...]]] = []

    def look_up(self, mapping: Mapping[str, Any], name: str) -> Any:
        """`mapping.get(name)`, or `ABSENT`."""
        value = mapping.get(name, ABSENT)
        self._looked_up.append((mapping, name, value))
        return value

    def attribute(self, owner: Any, name: str) -> Any:
        """`getattr(owner, name)`, or `ABSENT`."""
        value = getattr(owner, name, ABSENT)
        self._attributes.append((owner, name, value))
        return value

    def cell(self, cell: types.CellType) -> Any:
        """The contents of a closure variable, or `ABSENT`."""
        value = _cell_contents(cell)
        self._cells.append((cell, value))
        return value

    def contents(self, container: list[Any] | dict[Any, Any]) -> tuple[Any, ...]:
        """What is in a list; keys and values of a dict, in its order."""
        found = _members_of(container)
        self._contents.append((container, found))
        return found

    def hold(self) -> bool:
        """Whether all of it is still the same."""
        for mapping, name, value in self._looked_up:
            if mapping.get(name, ABSENT) is not value:
                return False
        for owner, name, value in self._attributes:
            if getattr(owner, name, ABSENT) is not value:
                return False
        for cell, value in self._cells:
            if _cell_contents(cell) is not value:
                return False
        for container, found in self._contents:
            now = _members_of(container)
            if len(now) != len(found) or any(a is not b for a, b in zip(now, found, strict=True)):
                return False
        return True


def _cell_contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return ABSENT


def _members_of(container: list[Any] | dict[Any, Any]) -> tuple[Any, ...]:
    return (*container, *container.values()) if isinstance(container, dict) else tuple(container)


class User:
    """The function whose names are being looked at, for what is said about them."""

    def __init__(self, function: Any) -> None:
        self._function = function

    def refuse(self, name: str, why: str) -> CannotTravel:
        """The error for one of its names; an empty one means the function itself."""
        function = self._function
        where = f"{function.fn.__code__.co_filename}:{reading.first_line(function)}"
        return CannotTravel(f"{function.__module__}.{function.__qualname__}", name, why, where)


class Binder:
    """Describes values.

    Args:
        dependencies: told of everything that is looked at.
        function: captures one of Triton's functions, unless it is, and returns its index.
    """

    def __init__(self, dependencies: Dependencies, function: Callable[[Any], int]) -> None:
        self._dependencies = dependencies
        self._function = function

    def bind(self, value: Any, uses: Sequence[Use], name: str, user: User) -> Binding:
        """What `value`, which `user` knows as `name`, is to be in the worker.

        Args:
            uses: what is used of it: itself (no path), or the attributes along a path.

        Raises:
            CannotTravel: it cannot be described.
        """
        if any(use.matters for use in uses):
            return self._binding(value, uses, name, user)
        try:
            return self._binding(value, uses, name, user)
        except CannotTravel:
            return Constant(None)  # of an annotation it only matters whether it is constexpr

    def _binding(self, value: Any, uses: Sequence[Use], name: str, user: User) -> Binding:
        if isinstance(value, types.ModuleType):
            return self._module(value, uses, name, user)
        if reading.kind(value) is not None:
            return _member(value) or FunctionRef(self._function(value))
        plain = self._plain(value, name, user)
        if plain is not None:
            return plain
        member = _member(value)
        if member is not None:
            return member
        if isinstance(value, type):
            return self._class(value, uses, name, user)
        raise user.refuse(name, _why_not(value))

    def _plain(self, value: Any, name: str, user: User) -> Binding | None:
        # Subclasses (numpy.float64, members of an IntEnum) would be something else on the other side.
        kind = type(value)
        if value is None or kind in (bool, float, str):
            return Constant(value)
        if kind is int:
            if not -(2**63) <= value < 2**64:
                raise user.refuse(name, f"{value}, which does not fit 64 bits")
            return Constant(value)
        if kind is tuple:
            return Items("tuple", self._each(value, name, user))
        if kind is list:
            return Items("list", self._each(self._dependencies.contents(value), name, user))
        if kind is dict:
            members = self._each(self._dependencies.contents(value), name, user)
            return Table(list(zip(members[: len(value)], members[len(value) :], strict=True)))
        core = reading.core()
        if core is not None:
            if kind is core.constexpr:
                return Constexpr(self.bind(self._dependencies.look_up(vars(value), "value"), ITSELF, name, user))
            if kind is core.dtype:
                return Dtype(value.name)
        if isinstance(value, tuple) and (fields := named_tuple_fields(kind)) is not None:
            cls = NamedTuple(kind.__module__, kind.__qualname__, fields)
            return NamedTupleValue(cls, self._each(tuple(value), name, user))
        return None

    def _each(self, values: Sequence[Any], name: str, user: User) -> list[Binding]:
        return [self.bind(value, ITSELF, name, user) for value in values]

    def _module(self, module: types.ModuleType, uses: Sequence[Use], name: str, user: User) -> Binding:
        if reading.is_triton(module.__name__):
            submodules = {self._follow(module, use.path, name, user) for use in uses} - {""}
            return Import(module.__name__, sorted(submodules))
        if type(module) is not types.ModuleType:
            raise user.refuse(
                name, f"a {type(module).__name__}, which may make its attributes when it is asked for them"
            )
        return Namespace(module.__name__, self._members(module, uses, name, user))

    def _follow(self, module: Any, path: tuple[str, ...], name: str, user: User) -> str:
        """The last module of Triton's along a path; importing the first need not import it. Empty if there is none."""
        found = ""
        for attribute in path:
            value = self._dependencies.look_up(vars(module), attribute)
            if value is ABSENT:
                break
            if isinstance(value, types.ModuleType):
                if not reading.is_triton(value.__name__):
                    break  # Triton's own import of something; where it leads is Triton's matter
                found, module = value.__name__, value
                continue
            if not _belongs_to_triton(value):
                what = f"{module.__name__}.{attribute}"
                raise user.refuse(name, f"{what}, which somebody has put there in place of Triton's own")
            break
        return found

    def _class(self, value: type, uses: Sequence[Use], name: str, user: User) -> Binding:
        if issubclass(value, tuple) and hasattr(value, "_fields"):
            fields = named_tuple_fields(value)
            if fields is None:
                raise user.refuse(name, "a named tuple's class with more in it than fields")
            given: dict[str, Any] = getattr(value, "_field_defaults", {})
            defaults = [self.bind(default, ITSELF, name, user) for default in given.values()]
            return NamedTuple(value.__module__, value.__qualname__, fields, defaults)
        if not any(use.path or use.matters for use in uses):
            return Constant(None)
        if reading.is_aggregate(value):
            raise user.refuse(name, "an aggregate, which headstart cannot describe yet")
        if type(value) is not type:
            raise user.refuse(name, f"a class made by {type(value).__name__}, not by type")
        members = self._members(value, uses, name, user)
        return Namespace(value.__qualname__, members, is_class=True, module=value.__module__)

    def _members(self, owner: Any, uses: Sequence[Use], name: str, user: User) -> dict[str, Binding]:
        grouped: dict[str, list[Use]] = {}
        for use in uses:
            if use.path:
                grouped.setdefault(use.path[0], []).append(use.rest())
            elif use.matters:
                kind = "class" if isinstance(owner, type) else "module"
                raise user.refuse(name, f"a {kind} of which not only attributes are used")
        members = {}
        find = self._of_class if isinstance(owner, type) else self._of_module
        for attribute in sorted(grouped):
            value = find(owner, attribute, name, user)
            if value is not ABSENT:
                members[attribute] = self.bind(value, grouped[attribute], f"{name}.{attribute}", user)
        return members

    def _of_module(self, module: types.ModuleType, attribute: str, name: str, user: User) -> Any:
        value = self._dependencies.look_up(vars(module), attribute)
        if value is ABSENT and self._dependencies.look_up(vars(module), "__getattr__") is not ABSENT:
            raise user.refuse(f"{name}.{attribute}", "which its module makes when it is asked for it")
        return value

    def _of_class(self, cls: type, attribute: str, name: str, user: User) -> Any:
        for base in cls.__mro__:
            value = self._dependencies.look_up(vars(base), attribute)
            if value is ABSENT:
                continue
            if isinstance(value, staticmethod):
                return value.__func__
            if reading.kind(value) is None and hasattr(type(value), "__get__"):
                raise user.refuse(f"{name}.{attribute}", f"a {type(value).__name__}, not a value")
            return value
        return ABSENT


def _belongs_to_triton(value: Any) -> bool:
    """Whether what a module of Triton's holds can be its own: it is defined there, or is a plain value."""
    home = getattr(value, "__module__", None)
    if home is None:
        return True
    if reading.kind(value) is not None and reading.is_replaced(value):
        return False
    return reading.is_triton(home) or str(home).partition(".")[0] in sys.stdlib_module_names


def _member(value: Any) -> Member | None:
    """Where in Triton, or in the standard library, `value` is to be found."""
    home = str(getattr(value, "__module__", None))
    if not reading.is_triton(home):
        # Many a function says that it is of the module that implements it: `_operator`, `_functools`.
        home = home if home in PURE_MODULES else home.lstrip("_")
        if not is_pure(home) or not callable(value):
            return None
    elif reading.kind(value) is not None and reading.is_replaced(value):
        return None
    module = sys.modules.get(home)
    if module is None:
        return None
    path = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    if isinstance(path, str) and _at(module, path) is value:
        return Member(module.__name__, path)
    if not reading.is_triton(home):
        return None
    return next((Member(module.__name__, name) for name, member in vars(module).items() if member is value), None)


def _at(module: types.ModuleType, path: str) -> Any:
    value: Any = module
    for attribute in path.split("."):
        value = getattr(value, attribute, None)
    return value


def is_pure(module: str) -> bool:
    """Whether `module` is one of `PURE_MODULES`, and not a file of the user's with that name."""
    return module in PURE_MODULES and is_standard(module)


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
