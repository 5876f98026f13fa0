"""What Triton is given besides a function: signature, constants, attributes and options, out of a request."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import re
from collections.abc import Mapping
from typing import Any

from headstart.model.request import CompileRequest, TupleType
from headstart.wire import Failure
from headstart.worker.rebuilding import NamedTuples
from headstart.worker.refusing import Refused, signature_failure


def _specialization(
    request: CompileRequest, function: Any, values: _Values
) -> tuple[dict[str, Any], dict[tuple[int, ...], Any], dict[tuple[int, ...], list[list[Any]]]]:
    names: list[str] = list(function.arg_names)
    constants = {_path(key, names): values.constant(value) for key, value in request.constants.items()}
    attributes = {_path(key, names): [list(fact) for fact in facts] for key, facts in request.attributes.items()}
    if isinstance(request.signature, str):
        types_by_name: dict[str, str | TupleType]
        types_by_name, literals, hints = _ahead_of_time(request.signature, names)
        constants, attributes = {**literals, **constants}, {**hints, **attributes}
    else:
        types_by_name = dict(request.signature)
    for name in types_by_name:
        if name not in names:
            raise signature_failure(f"the signature types {name!r}, no parameter of {_parameters(request, names)}")
    for index, parameter in enumerate(function.params):
        given = (index,) in constants or parameter.name in types_by_name
        if not given and parameter.default is not inspect.Parameter.empty:
            constants[(index,)] = parameter.default
    signature: dict[str, Any] = {}
    for index, name in enumerate(names):
        if (index,) in constants:
            signature[name] = "constexpr"
        elif name in types_by_name:
            signature[name] = values.type(types_by_name[name], name)
        else:
            raise signature_failure(
                f"parameter {name!r} has neither a type nor a constant; it is {_parameters(request, names)}"
            )
    return signature, constants, attributes


def _parameters(request: CompileRequest, names: list[str]) -> str:
    return f"{request.name}({', '.join(names)})"


def _path(key: str, names: list[str]) -> tuple[int, ...]:
    if key.startswith("#"):
        path = tuple(int(index) for index in key[1:].split("."))
        if not 0 <= path[0] < len(names):
            raise signature_failure(f"position {path[0]} is no parameter; there are {len(names)}: {', '.join(names)}")
        return path
    if key not in names:
        raise signature_failure(f"{key!r} is no parameter; the parameters are {', '.join(names)}")
    return (names.index(key),)


def _ahead_of_time(
    text: str, names: list[str]
) -> tuple[dict[str, str | TupleType], dict[tuple[int, ...], Any], dict[tuple[int, ...], list[list[Any]]]]:
    """Read `"*fp32:16, i32, 1024"` as `triton.tools.compile` does."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != len(names):
        raise signature_failure(
            f"the signature has {len(parts)} entries and the kernel {len(names)} parameters: {', '.join(names)}"
        )
    types_by_name: dict[str, str | TupleType] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for index, (name, part) in enumerate(zip(names, parts, strict=True)):
        type_name, _, hint = part.partition(":")
        literal = _number(part)
        if literal is not None:
            constants[(index,)] = literal
        elif hint == "1":
            constants[(index,)] = 1
        elif hint in ("", "16"):
            types_by_name[name] = type_name
            if hint:
                attributes[(index,)] = [["tt.divisibility", 16]]
        else:
            raise signature_failure(f"{part!r}: a hint is 1 or 16, as in '*fp32:16'")
    return types_by_name, constants, attributes


def _number(text: str) -> int | float | None:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return None


class _Values:
    """Makes values and types of what a request says of them.

    Args:
        functions: those of a captured source.
        named_tuples: makes the classes of named tuples.
    """

    def __init__(self, functions: list[Any], named_tuples: NamedTuples) -> None:
        self._functions = functions
        self._named_tuples = named_tuples

    def constant(self, value: Any) -> Any:
        """The value that `headstart.model.request` made plain data of."""
        if isinstance(value, list):
            return tuple(map(self.constant, value))
        if not isinstance(value, Mapping):
            return value
        match value:
            case {"function": int(index)} if 0 <= index < len(self._functions):
                return self._functions[index]
            case {"list": [*members]}:
                return list(map(self.constant, members))
            case {"namedtuple": [str(module), str(name), [*fields], [*members]]}:
                return self._named_tuples(module, name, fields)(*map(self.constant, members))
            case {"dtype": str(name)}:
                return importlib.import_module("triton.language").dtype(name)
        raise signature_failure(f"{value!r} is no constant")

    def type(self, given: str | TupleType, parameter: str) -> Any:
        """The type as Triton writes it, once it is one that Triton knows."""
        if isinstance(given, TupleType):
            members = [each if each == "constexpr" else self.type(each, parameter) for each in given.types]
            # Of a named tuple's class Triton only looks at the fields here.
            return tuple(members) if given.fields is None else self._named_tuples("", "Type", given.fields)(*members)
        canonical = importlib.import_module("triton._utils").type_canonicalisation_dict
        match = re.fullmatch(r"(\*k?)?(\w+)", given)
        if match is None:
            if given.startswith("tensordesc") or given == "nvTmaDesc":
                return given
        elif match[2] in canonical:
            return (match[1] or "") + str(canonical[match[2]])
        raise signature_failure(
            f"{given!r} of parameter {parameter!r} is no type that Triton knows; types are *fp32, *bf16, i32, u1, …"
        )


def _options(request: CompileRequest, backend: Any) -> dict[str, Any]:
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in request.options.items()}
    known = {field.name for field in dataclasses.fields(backend.parse_options({}))}
    # Triton ignores options that it does not know, and would compile something else than was asked for.
    for name in options:
        if name not in known:
            similar = sorted(known, key=lambda other: (not other.startswith(name[:4]), other))
            raise Refused(
                Failure(
                    "source",
                    f"{name!r} is no option of this backend; it has {', '.join(similar)}",
                    stage="options",
                )
            )
    return options
