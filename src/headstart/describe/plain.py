"""What Inductor's decorators are given, as plain data and back: no pickle, and no types but those named here.

A value that is neither a number, a text, None nor a list becomes a mapping with one member, whose name says what it
was.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

from headstart.describe import facts
from headstart.model.values import Encoded


class NotPlainDataError(Exception):
    """A kernel is described by something that is not plain data."""


def encode(value: Any) -> Any:
    """`value` as numbers, texts, None, lists and mappings of these.

    Raises:
        NotPlainDataError: it is, or contains, something else.
    """
    if value is None or isinstance(value, (bool, str)) or type(value) in (int, float):
        return value
    if isinstance(value, enum.Enum):
        return {"enum": [type(value).__name__, value.name]}
    if isinstance(value, int):  # a subclass, as sympy's and numpy's are not
        return int(value)
    kind = type(value).__name__
    if kind == "DeviceProperties":
        return {"device": [encode(member) for member in value]}
    if isinstance(value, list):
        return [encode(member) for member in value]
    if type(value) is tuple:
        return {"tuple": [encode(member) for member in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(member)] for key, member in value.items()]}
    if kind in ("OrderedSet", "set", "frozenset"):
        return {"set": [encode(member) for member in value]}
    if kind in ("Config", "InductorConfig"):
        return {"config": [kind, encode(dict(vars(value)))]}
    if type(value).__module__.startswith("triton.language") and kind in ("dtype", "constexpr"):
        return {kind: value.name if kind == "dtype" else encode(value.value)}
    raise NotPlainDataError(f"a {type(value).__module__}.{kind} ({value!r:.80})")


def is_encoded(value: Any) -> bool:
    """Whether `value` has the form of what `encode` makes; whether torch knows the names in it, only torch can say."""
    if isinstance(value, list):
        return all(map(is_encoded, value))
    if not isinstance(value, dict):
        return value is None or isinstance(value, (bool, str, int, float))
    if len(value) != 1:
        return False
    ((tag, content),) = value.items()
    return tag in _FORMS and _FORMS[tag](content)


def as_constant(value: Any) -> Any:
    """What `encode` was given, as `CompileRequest.make` takes it; without torch and Triton.

    Raises:
        NotPlainDataError: it is of a kind that no compile is given.
    """
    if isinstance(value, list):
        return [as_constant(member) for member in value]
    if not isinstance(value, dict):
        return value
    ((tag, content),) = value.items()
    if tag == "tuple":
        return tuple(as_constant(member) for member in content)
    if tag == "dict":
        return {as_constant(key): as_constant(member) for key, member in content}
    if tag == "dtype":
        return Encoded({"dtype": content})
    if tag == "constexpr":
        return as_constant(content)
    raise NotPlainDataError(f"a {tag}")


def decode(value: Any) -> Any:
    """What `encode` was given; `set`s come back as Inductor's OrderedSet.

    Raises:
        ValueError: it is nothing that `encode` makes.
    """
    if isinstance(value, list):
        return [decode(member) for member in value]
    if not isinstance(value, dict):
        return value
    ((tag, content),) = value.items()
    if tag not in _DECODERS:
        raise ValueError(f"unknown tag {tag!r}")
    return _DECODERS[tag](content)


_DECODERS: dict[str, Callable[[Any], Any]] = {
    "enum": lambda content: facts.hint(*content),
    "device": lambda content: facts.device_properties(decode(content)),
    "tuple": lambda content: tuple(decode(member) for member in content),
    "dict": lambda content: {decode(key): decode(member) for key, member in content},
    "set": lambda content: facts.ordered_set([decode(member) for member in content]),
    "config": lambda content: facts.config(content[0], decode(content[1])),
    "dtype": lambda content: facts.triton_language().dtype(content),
    "constexpr": lambda content: facts.triton_language().constexpr(decode(content)),
}


def _is_list(content: Any) -> bool:
    return isinstance(content, list) and is_encoded(content)


def _is_dict(content: Any) -> bool:
    return isinstance(content, list) and all(
        isinstance(pair, list) and len(pair) == 2 and is_encoded(pair) for pair in content
    )


_CONFIGS = ("Config", "InductorConfig")

_FORMS: dict[str, Callable[[Any], bool]] = {
    "enum": lambda content: (
        isinstance(content, list)
        and len(content) == 2
        and all(isinstance(each, str) for each in content)
        and content[0].isidentifier()
        and content[0][0].isupper()  # a class of `runtime.hints`: whether it is an enumeration, `facts.hint` looks
        and content[1].isidentifier()
    ),
    "device": _is_list,
    "tuple": _is_list,
    "dict": _is_dict,
    "set": _is_list,
    "config": lambda content: (
        isinstance(content, list)
        and len(content) == 2
        and content[0] in _CONFIGS
        and isinstance(content[1], dict)
        and set(content[1]) == {"dict"}
        and is_encoded(content[1])
    ),
    "dtype": lambda content: isinstance(content, str) and content.isidentifier(),
    "constexpr": is_encoded,
}
