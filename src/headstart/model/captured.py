"""A live kernel as plain data: the texts of its functions, and what each name in them stands for.

A text alone does not say what its names mean: that depends on the module, the closure or the notebook it was defined
in. Here every name that a function uses is bound by data. Nothing in it can run but the functions' bodies: a module is
named, a value is written down, decorators and default expressions stay text and are not evaluated again.

`capture/functions.py` makes it where the function lives; a worker rebuilds the functions (`worker/rebuilding.py`).
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import msgspec


class Import(msgspec.Struct, frozen=True, tag="import"):
    """A module of Triton; `submodules` are those reached through its attributes."""

    module: str
    submodules: list[str] = []


class Member(msgspec.Struct, frozen=True, tag="member"):
    """What `path`, a qualified name, leads to in a module of Triton or of the standard library: a function, a type."""

    module: str
    path: str


class Constant(msgspec.Struct, frozen=True, tag="constant"):
    """A number, a string, a truth value or None."""

    value: bool | int | float | str | None


class Dtype(msgspec.Struct, frozen=True, tag="dtype"):
    """`triton.language.dtype(name)`."""

    name: str


class Items(msgspec.Struct, frozen=True, tag="items"):
    """A tuple or a list."""

    kind: Literal["tuple", "list"]
    items: list[Binding]


class Table(msgspec.Struct, frozen=True, tag="table"):
    """A dict, in its order."""

    items: list[tuple[Binding, Binding]]


class Constexpr(msgspec.Struct, frozen=True, tag="constexpr"):
    """`triton.language.constexpr(value)`."""

    value: Binding


class FunctionRef(msgspec.Struct, frozen=True, tag="function"):
    """The captured function at `index`."""

    index: int


class Namespace(msgspec.Struct, frozen=True, tag="namespace"):
    """A module (or a class) that is not Triton's, of which only the attributes that are used are there.

    `module` is the `__module__` of a class, whose name is qualified; that of a module is empty.
    """

    name: str
    members: dict[str, Binding]
    is_class: bool = False
    module: str = ""


class NamedTuple(msgspec.Struct, frozen=True, tag="namedtuple"):
    """A class made by `collections.namedtuple`, or its typed form, with nothing of its own besides."""

    module: str
    name: str
    fields: list[str]
    defaults: list[Binding] = []


class NamedTupleValue(msgspec.Struct, frozen=True, tag="namedtuple value"):
    """An instance of such a class."""

    cls: NamedTuple
    items: list[Binding]


class Unbound(msgspec.Struct, frozen=True, tag="unbound"):
    """What cannot be described, in one line. A function that turns out to need it does not compile in a worker."""

    why: str


Binding = (
    Import
    | Member
    | Constant
    | Dtype
    | Items
    | Table
    | Constexpr
    | FunctionRef
    | Namespace
    | NamedTuple
    | NamedTupleValue
    | Unbound
)


class Parameter(msgspec.Struct, frozen=True):
    """A parameter of a jit function.

    Attributes:
        kind: as `inspect.Parameter` names it, in lower case.
        annotation: in Triton's form: `"constexpr"`, a type's name, or empty.
        specialize, align: False if `do_not_specialize`, or `do_not_specialize_on_alignment`, names it.
    """

    name: str
    kind: Literal["positional_only", "positional_or_keyword", "var_positional", "keyword_only"]
    annotation: str = ""
    specialize: bool = True
    align: bool = True

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"{self.name!r} is no name of a parameter")


class CapturedFunction(msgspec.Struct, frozen=True):
    """One function.

    Attributes:
        kind: `"jit"`, or `"constexpr_function"`: Python, which Triton runs while it compiles.
        module: its `__module__`; like `qualname` part of the names that Triton gives to compiled functions.
        qualname: its `__qualname__`, which may hold `<locals>`.
        filename: of its code. Not part of the identity: it changes debug lines and nothing else.
        first_line: in that file, of `text`, decorators included.
        text: as it stands in the file.
        replaced: what Triton parses in place of `text`, if somebody has replaced it; else empty.
        parameters: of a jit function; a constexpr function's are those of its text.
        names: what the names that it does not define itself stand for: globals and closure variables alike.
        defaults: values of parameters that have a default.
        noinline: as given to `@triton.jit`.
    """

    kind: Literal["jit", "constexpr_function"]
    module: str
    qualname: str
    filename: str
    first_line: int
    text: str
    names: dict[str, Binding]
    defaults: dict[str, Binding]
    noinline: bool | None = None
    replaced: str = ""
    parameters: list[Parameter] = []

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"{self.qualname!r} is no name of a function")
        if self.first_line < 1:
            raise ValueError(f"{self.first_line} is no line")

    @property
    def name(self) -> str:
        """`__name__`."""
        return self.qualname.rpartition(".")[2]


class CapturedSource(msgspec.Struct, frozen=True, tag="captured", dict=True):
    """A kernel and everything that it calls.

    Attributes:
        functions: the kernel first. A constant `{"function": 2}` of the request is the one at index 2.
        entry_name: what the compiled kernel is called, where the kernel has a `repr` of its own, which makes that of
            a specialization; empty: its `__name__`.
    """

    functions: list[CapturedFunction]
    entry_name: str = ""

    def __post_init__(self) -> None:
        if not self.functions:
            raise ValueError("functions: there is no kernel")

    @property
    def kernel(self) -> CapturedFunction:
        """The function that is compiled."""
        return self.functions[0]

    @functools.cached_property
    def identity(self) -> str:
        """All of it but file names, as text: what is hashed, and what is shown to explain a miss.

        Different sources have different texts: each function's text comes with its length, and all else is one line in
        which names are quoted.
        """
        lines = []
        for index, function in enumerate(self.functions):
            lines.append(
                f"# {index}: {function.kind} {function.module!r} {function.qualname!r}, line {function.first_line}, "
                f"{len(function.text)} characters{_noinline(function)}\n"
            )
            lines += [f"# ({_parameter(each)})\n" for each in function.parameters]
            bound = [(name, function.names[name]) for name in sorted(function.names)]
            bound += [(f"{name}=", function.defaults[name]) for name in sorted(function.defaults)]
            lines += [f"# {name!r} {_text(binding)}\n" for name, binding in bound]
            lines.append(function.text)
            if function.replaced:
                lines += [f"# replaced by {len(function.replaced)} characters\n", function.replaced]
        return "".join(lines)

    def named(self, entry_name: str) -> CapturedSource:
        """The same, to be compiled under another name."""
        source = msgspec.structs.replace(self, entry_name=entry_name)
        source.__dict__.update(self.__dict__)  # what is cached does not depend on the name
        return source

    def shown_in(self, filename: str) -> CapturedSource:
        """The same, with the kernel in another file."""
        kernel = msgspec.structs.replace(self.kernel, filename=filename)
        return msgspec.structs.replace(self, functions=[kernel, *self.functions[1:]])

    def plain(self) -> dict[str, Any]:
        """As dicts, lists, strings and numbers; `from_plain` reads it back."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> CapturedSource:
        """The source that `plain` was made of.

        Raises:
            msgspec.ValidationError: it was made of none.
        """
        return msgspec.convert(plain, cls)


def _noinline(function: CapturedFunction) -> str:
    return "" if function.noinline is None else f", noinline={function.noinline}"


def _parameter(parameter: Parameter) -> str:
    annotation = f": {parameter.annotation!r}" if parameter.annotation else ""
    facts = [
        parameter.kind,
        "" if parameter.specialize else "not specialized",
        "" if parameter.align else "not aligned",
    ]
    return f"{parameter.name!r}{annotation}, {', '.join(filter(None, facts))}"


def _text(binding: Binding) -> str:
    # An alias of a long table is not worth its own form; `repr` of plain data is one line and tells types apart.
    return repr(_ordered(msgspec.to_builtins(binding)))


def _ordered(value: Any) -> Any:
    """Plain data in one order: a mapping's is not kept by every encoding that a source travels in."""
    if isinstance(value, dict):
        return {name: _ordered(value[name]) for name in sorted(value)}
    return [_ordered(member) for member in value] if isinstance(value, (list, tuple)) else value
