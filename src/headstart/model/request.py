"""One compile, as plain data: what travels to the service, and what is hashed.

A request is made once, in the caller, at every kick-off, and must cost little: nothing here parses the source or
imports Triton. What only Triton can tell (whether an option exists, whether a type is one) the worker says later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import msgspec

from headstart.errors import UsageError
from headstart.model import keys
from headstart.model.captured import CapturedSource
from headstart.model.environment import TOOL_VARIABLES, fingerprint
from headstart.model.target import Target
from headstart.model.values import MAX_DEPTH, constant, named_tuple_fields, scalar

HOST = "host"  # the target of a launcher
KERNEL, LAUNCHER = "kernel", "launcher"

Attributes = dict[str, list[tuple[str, int | str]]]
Source: TypeAlias = str | CapturedSource  # what defines a kernel: Python text, or a live function as plain data


class TupleType(msgspec.Struct, frozen=True):
    """The type of a parameter that is a tuple.

    Attributes:
        types: of its members; `"constexpr"` for constants.
        fields: of a named tuple; else None.
    """

    types: list[str | TupleType]
    fields: list[str] | None = None


class CompileRequest(msgspec.Struct, frozen=True):
    """Everything that a worker needs in order to compile one kernel; or one launcher, see `make_launcher`.

    Parameters are named by their name, or by their position as Triton does: `(2,)` travels as `"#2"`, and
    `(2, 0)`, the first member of a tuple, as `"#2.0"`.

    Attributes:
        name: the `@triton.jit` function to compile.
        source: Python text that defines it; or a live kernel as data.
        signature: types by parameter name, without the constexprs; or Triton's ahead-of-time string.
        constants: values of constexpr parameters, as `headstart.model.values.constant` makes them.
        attributes: facts about arguments, e.g. `{"x": [("tt.divisibility", 16)]}`.
        options: backend options as given, e.g. `{"num_warps": 8}`.
        target: `str(Target)`.
        environment: variables that change the outcome (`headstart.model.environment`).
        filename: the file name that debug lines will show. Not part of the identity.
        module: `__name__` of the module that a text becomes; empty: `name`. Triton writes it into
            the names of the functions that a kernel calls.
        compiler: of a launcher, the path of the C compiler. Not part of the identity, as it is none of Triton's.
    """

    name: str
    source: Source
    signature: dict[str, str | TupleType] | str
    constants: dict[str, Any]
    attributes: Attributes
    options: dict[str, Any]
    target: str
    environment: dict[str, str]
    filename: str
    module: str = ""
    compiler: str = ""

    def __post_init__(self) -> None:
        # The process that receives it computes its identity: a stranger's data must not bring that down.
        if not self.name.isidentifier():  # it becomes part of file names
            raise ValueError(f"name: {self.name!r} is no name of a function")
        check_plain(self.constants, "constants")
        check_plain(self.options, "options")
        if isinstance(self.signature, dict):
            for each in self.signature.values():
                _check_depth(each)

    @classmethod
    def make(
        cls,
        name: str,
        source: Source,
        *,
        signature: Mapping[str, Any] | str,
        constants: Mapping[Any, Any] | None = None,
        attrs: Mapping[Any, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        target: str,
        filename: str | None = None,
        module: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> CompileRequest:
        """Bring a caller's arguments into the one form that is hashed; `environment` is by default this process's.

        Raises:
            UsageError: an argument has the wrong form.
        """
        if not isinstance(name, str) or not name.isidentifier():
            raise UsageError(f"name: expected the name of a @triton.jit function, got {name!r}")
        if isinstance(source, CapturedSource):
            filename = filename or source.kernel.filename
        elif not isinstance(source, str):
            raise UsageError(f"{name}: source: expected Python text, got {type(source).__name__}")
        request = cls(
            name=name,
            source=source,
            signature=_signature(name, signature),
            constants={
                _parameter(name, "constants", key): constant(value, f"{name}: constants[{key!r}]")
                for key, value in (constants or {}).items()
            },
            attributes={
                _parameter(name, "attrs", key): _facts(value, f"{name}: attrs[{key!r}]")
                for key, value in (attrs or {}).items()
            },
            options={str(key): _option(value, f"{name}: options[{key!r}]") for key, value in (options or {}).items()},
            target=target,
            environment=fingerprint() if environment is None else dict(environment),
            # Only shown; a path that is no text must not cost the kernel.
            filename=(filename or f"{name}.py").encode(errors="replace").decode(),
            module=module,
        )
        try:
            msgspec.msgpack.encode(request)
        except UnicodeEncodeError as error:
            field = next(field for field in msgspec.structs.fields(cls) if not _is_text(getattr(request, field.name)))
            raise UsageError(f"{name}: {field.name}: not valid text: {error.reason}") from None
        return request

    @classmethod
    def make_launcher(
        cls, name: str, text: str, *, backend: str, platform: str, compiler: str, environment: Mapping[str, str]
    ) -> CompileRequest:
        """A C module that Triton up to 3.6 has built for what it launches: a stub for a signature, or its utilities.

        Args:
            name: of the Python module.
            text: in C.
            backend: of Triton's whose libraries and headers it needs: `"nvidia"`, `"amd"`.
            platform: what a file of machine code is good for: the machine, and Python's suffix for such modules.
            compiler: path of the C compiler.
            environment: of the kernels that it launches, so that the same workers make both.
        """
        options = {"backend": backend, "platform": platform}
        return cls(name, text, {}, {}, {}, options, HOST, dict(environment), f"{name}.c", compiler=compiler)

    @property
    def kind(self) -> str:
        """What its entry is: `"kernel"` or `"launcher"`."""
        return LAUNCHER if self.target == HOST else KERNEL

    def components(self) -> list[keys.Component]:
        """The named parts of this request's identity, in order."""
        if isinstance(self.signature, str):
            signature = [("signature", self.signature)]
        else:
            signature = [(f"signature.{name}", type_text(self.signature[name])) for name in sorted(self.signature)]
        return [
            ("name", self.name),
            ("target", self.target),
            *signature,
            *((f"constants.{name}", _text(self.constants[name])) for name in sorted(self.constants)),
            *((f"attributes.{name}", _text(self.attributes[name])) for name in sorted(self.attributes)),
            *((f"options.{name}", _text(self.options[name])) for name in sorted(self.options)),
            *(
                (f"environment.{name}", value)
                for name, value in sorted(self.environment.items())
                if name not in TOOL_VARIABLES
            ),
            *([("module", self.module)] if self.module else []),
            *_source(self.source),
        ]

    @property
    def kernel(self) -> tuple[str, str]:
        """What all configurations of one kernel have in common: its name and source."""
        return self.name, self.source if isinstance(self.source, str) else self.source.identity

    def digest(self) -> str:
        """Identity of the request, toolchain left out: SHA-256, hexadecimal."""
        return keys.digest(self.components())


def check_plain(value: Any, where: str, depth: int = 0) -> None:
    """Whether a dict or list that was decoded has names for keys and an end, as computing its identity expects.

    Raises:
        ValueError: it is not.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"{where}: nested more than {MAX_DEPTH} deep")
    if isinstance(value, dict):
        for key, member in value.items():
            if type(key) is not str:
                raise ValueError(f"{where}: {key!r} is no name")
            if isinstance(member, (dict, list)):
                check_plain(member, where, depth + 1)
    else:
        for member in value:
            if isinstance(member, (dict, list)):
                check_plain(member, where, depth + 1)


def _check_depth(given: str | TupleType, depth: int = 0) -> None:
    if depth > MAX_DEPTH:
        raise ValueError(f"signature: nested more than {MAX_DEPTH} deep")
    if isinstance(given, TupleType):
        for member in given.types:
            _check_depth(member, depth + 1)


def _source(source: Source) -> list[keys.Component]:
    if isinstance(source, str):
        return [("source", source)]
    named = [("entry name", source.entry_name)] if source.entry_name else []
    return [*named, ("functions", source.identity)]


def _is_text(value: Any) -> bool:
    try:
        msgspec.msgpack.encode(value)
    except UnicodeEncodeError:
        return False
    return True


def to_target(target: str | Target | None, default: Target | None) -> Target:
    """The target of one request.

    Raises:
        UsageError: there is none, or it is not one that headstart knows.
    """
    if target is not None:
        return Target.parse(target)
    if default is None:
        raise UsageError("no target: pass target=, as in AsyncCompile(target='cuda:90')")
    return default


def _signature(kernel: str, signature: Mapping[str, Any] | str) -> dict[str, str | TupleType] | str:
    if isinstance(signature, str):
        return ", ".join(part.strip() for part in signature.split(","))
    if not isinstance(signature, Mapping):
        raise UsageError(
            f"{kernel}: signature: expected a mapping such as {{'x': '*fp32', 'n': 'i32'}} or a string such as "
            f"'*fp32:16, i32, 1024', got {signature!r}"
        )
    for parameter in signature:
        if not isinstance(parameter, str):
            raise UsageError(f"{kernel}: signature: {parameter!r} is not the name of a parameter")
    # That a parameter is a constexpr says its constant; naming it here too changes nothing.
    return {
        parameter: _type(kernel, parameter, given) for parameter, given in signature.items() if given != "constexpr"
    }


def _type(kernel: str, parameter: str, given: Any) -> str | TupleType:
    if isinstance(given, (str, TupleType)):
        return given
    if isinstance(given, tuple):
        fields = None if type(given) is tuple else named_tuple_fields(type(given))
        if type(given) is tuple or fields is not None:
            return TupleType([_type(kernel, parameter, member) for member in given], fields)
    raise UsageError(f"{kernel}: signature: {parameter!r}: {given!r} is not a name and a type")


def type_text(given: str | TupleType) -> str:
    """A type for people, and for a key; different types have different texts."""
    if isinstance(given, str):
        return given
    fields = "" if given.fields is None else repr(given.fields)
    return f"({', '.join(repr(type_text(member)) for member in given.types)}){fields}"


def _parameter(kernel: str, argument: str, key: Any) -> str:
    if isinstance(key, str) and key.isidentifier():
        return key
    path = key if isinstance(key, tuple) else (key,)
    if path and all(type(index) is int for index in path):
        return "#" + ".".join(str(index) for index in path)
    raise UsageError(f"{kernel}: {argument}: expected a parameter's name or position such as (0,), got {key!r}")


def _facts(value: Any, where: str) -> list[tuple[str, int | str]]:
    if isinstance(value, int) and not isinstance(value, bool):
        return [("tt.divisibility", value)]
    try:
        return [(str(name), fact if isinstance(fact, int) else str(fact)) for name, fact in value]
    except (TypeError, ValueError):
        raise UsageError(f"{where}: expected a divisibility, 16, or Triton's [['tt.divisibility', 16]]") from None


def _option(value: Any, where: str, depth: int = 1) -> Any:
    """An option as plain data; Triton takes a list for a tuple here, and names for keys."""
    if depth > MAX_DEPTH:
        raise UsageError(f"{where}: nested more than {MAX_DEPTH} deep")
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return [_option(member, where, depth + 1) for member in value]
    if type(value) is dict:
        return {str(key): _option(member, where, depth + 1) for key, member in value.items()}
    return scalar(value, where)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_text(value[key])}" for key in sorted(value)) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "(" + ", ".join(_text(member) for member in value) + ")"
    return repr(value)
