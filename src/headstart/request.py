"""One compile, as plain data: what travels to the service, and what is hashed.

A request is made once, in the caller, at every kick-off, and must cost little: nothing here parses the source or
imports Triton. What only Triton can tell (whether an option exists, whether a type is one) the worker says later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import msgspec

from headstart import keys
from headstart.captured import CapturedSource
from headstart.environment import TOOL_VARIABLES, fingerprint
from headstart.errors import UsageError
from headstart.target import Target

Attributes = dict[str, list[tuple[str, int | str]]]
Source: TypeAlias = str | CapturedSource  # what defines a kernel: Python text, or a live function as plain data


class CompileRequest(msgspec.Struct, frozen=True):
    """Everything that a worker needs in order to compile one kernel.

    Parameters are named by their name, or by their position as Triton does: `(2,)` travels as `"#2"`, and
    `(2, 0)`, the first member of a tuple, as `"#2.0"`.

    Attributes:
        name: the `@triton.jit` function to compile.
        source: Python text that defines it; or a live kernel as data.
        signature: types by parameter name, without the constexprs; or Triton's ahead-of-time string.
        constants: values of constexpr parameters.
        attributes: facts about arguments, e.g. `{"x": [("tt.divisibility", 16)]}`.
        options: backend options as given, e.g. `{"num_warps": 8}`.
        target: `str(Target)`.
        environment: variables that change the outcome (`headstart.environment`).
        filename: the file name that debug lines will show. Not part of the identity.
        module: `__name__` of the module that a text becomes; empty: `name`. Triton writes it into
            the names of the functions that a kernel calls.
    """

    name: str
    source: Source
    signature: dict[str, str] | str
    constants: dict[str, Any]
    attributes: Attributes
    options: dict[str, Any]
    target: str
    environment: dict[str, str]
    filename: str
    module: str = ""

    @classmethod
    def make(
        cls,
        name: str,
        source: Source,
        *,
        signature: Mapping[str, str] | str,
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
                _parameter(name, "constants", key): _plain(value, f"{name}: constants[{key!r}]")
                for key, value in (constants or {}).items()
            },
            attributes={
                _parameter(name, "attrs", key): _facts(value, f"{name}: attrs[{key!r}]")
                for key, value in (attrs or {}).items()
            },
            options={
                str(key): _plain(value, f"{name}: options[{key!r}]") for key, value in (options or {}).items()
            },
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

    def components(self) -> list[keys.Component]:
        """The named parts of this request's identity, in order."""
        if isinstance(self.signature, str):
            signature = [("signature", self.signature)]
        else:
            signature = [(f"signature.{name}", self.signature[name]) for name in sorted(self.signature)]
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

    def digest(self) -> str:
        """Identity of the request, toolchain left out: SHA-256, hexadecimal."""
        return keys.digest(self.components())


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


def _signature(kernel: str, signature: Mapping[str, str] | str) -> dict[str, str] | str:
    if isinstance(signature, str):
        return ", ".join(part.strip() for part in signature.split(","))
    if not isinstance(signature, Mapping):
        raise UsageError(
            f"{kernel}: signature: expected a mapping such as {{'x': '*fp32', 'n': 'i32'}} or a string such as "
            f"'*fp32:16, i32, 1024', got {signature!r}"
        )
    for parameter, type_name in signature.items():
        if not isinstance(parameter, str) or not isinstance(type_name, str):
            raise UsageError(f"{kernel}: signature: {parameter!r}: {type_name!r} is not a name and a type")
    # That a parameter is a constexpr says its constant; naming it here too changes nothing.
    return {parameter: type_name for parameter, type_name in signature.items() if type_name != "constexpr"}


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


def _plain(value: Any, where: str) -> Any:
    # Subclasses (numpy.float64, enums) have a repr of their own, and msgpack does not know them.
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            raise UsageError(f"{where}: {value} does not fit 64 bits")
        return int(value)
    if isinstance(value, (list, tuple)):
        return [_plain(member, where) for member in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(member, where) for key, member in value.items()}
    if type(value).__name__ == "constexpr" and hasattr(value, "value"):
        return _plain(value.value, where)
    if type(value).__module__.startswith("triton.") and type(value).__name__ == "dtype":
        return {"dtype": value.name}
    raise UsageError(
        f"{where}: a {type(value).__name__} cannot travel to a worker; numbers, strings, None, tl dtypes and tuples of "
        "these can"
    )


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_text(value[key])}" for key in sorted(value)) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "(" + ", ".join(_text(member) for member in value) + ")"
    return repr(value)
