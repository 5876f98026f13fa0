"""Values of constexpr parameters as plain data, and back only into what they were: a value keeps its class."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from headstart.errors import UsageError

MAX_DEPTH = 64  # of values in one another


class Encoded(msgspec.Struct, frozen=True):
    """A value that is plain data already, as `constant` makes it: `{"function": 2}` is the one at index 2."""

    plain: Any


def constant(value: Any, where: str, depth: int = 1) -> Any:
    """The value of a constexpr as plain data: a tuple as a list, whatever else has members as a dict that says what.

    Raises:
        UsageError: it is of a class that a worker could not make again. Subclasses (numpy.float64, members of an
            IntEnum) are such: they would be something else there.
    """
    if depth > MAX_DEPTH:
        raise UsageError(f"{where}: nested more than {MAX_DEPTH} deep")
    kind = type(value)
    if kind is tuple:
        return [constant(member, where, depth + 1) for member in value]
    if kind is list:
        return {"list": [constant(member, where, depth + 1) for member in value]}
    if kind is Encoded:
        return value.plain
    if isinstance(value, tuple) and (fields := named_tuple_fields(kind)) is not None:
        members = [constant(member, where, depth + 1) for member in value]
        return {"namedtuple": [kind.__module__, kind.__qualname__, fields, members]}
    if kind.__module__ == "triton.language.core":
        if kind.__name__ == "constexpr":
            return constant(value.value, where, depth)
        if kind.__name__ == "dtype":
            return {"dtype": value.name}
    return scalar(value, where)


def scalar(value: Any, where: str) -> Any:
    """A number, a string, a truth value or None, of exactly that class. Raises as `constant` does."""
    kind = type(value)
    if value is None or kind in (bool, float, str):
        return value
    if kind is int:
        if not -(2**63) <= value < 2**64:
            raise UsageError(f"{where}: {value} does not fit 64 bits")
        return value
    raise UsageError(
        f"{where}: a {kind.__module__}.{kind.__qualname__} cannot travel to a worker; numbers, strings, None, tl "
        "dtypes and tuples of these can, if they are of exactly these classes"
    )


def named_tuple_fields(cls: type) -> list[str] | None:
    """The fields of a class that `collections.namedtuple` or `typing.NamedTuple` made, if it has nothing of its own.

    Methods, properties and attributes beside the fields are more than a worker would give a class of these fields.
    """
    if type(cls) is not type or cls.__bases__ != (tuple,):
        return None
    fields = vars(cls).get("_fields")
    if not isinstance(fields, tuple) or not all(type(field) is str for field in fields):
        return None
    own = vars(cls).keys() - _BARE - set(fields)
    of_collections = getattr(vars(cls).get("__repr__"), "__module__", "") == "collections"
    return list(fields) if not own and of_collections else None


class _Typed(NamedTuple):
    field: int = 0


# Named tuples with nothing of their own, to compare others with: `typing.NamedTuple` adds to what the other makes.
# A copy of an instance leaves `__slotnames__` on the class.
_BARE = (vars(namedtuple("_Bare", ["field"])).keys() | vars(_Typed).keys() | {"__slotnames__"}) - {"field"}


def replace_in_tuples(value: Any, replace: Callable[[Any], Any]) -> Any:
    """`value`, or each member of a tuple or list however deep, as `replace` has it; named tuples keep their class."""
    if isinstance(value, tuple) and type(value) is not tuple and named_tuple_fields(type(value)) is not None:
        return type(value)(*(replace_in_tuples(member, replace) for member in value))
    if type(value) in (tuple, list):
        return type(value)(replace_in_tuples(member, replace) for member in value)
    return replace(value)
