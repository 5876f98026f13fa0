"""A live `@triton.jit` function as plain data that a worker can rebuild it from.

    capture(fn):  fn's text ─▶ the names it uses ─▶ what each of them is now ─▶ the functions among these, likewise

Texts come from Triton, which took them when the function was made: no file is read again, and a text that somebody has
replaced since is the one that counts. Values are looked up when the capture is asked for, so that a function sees what
it would see if it were compiled now. What was captured is kept on the function, with everything that was looked at:
while that is the same, the capture is good.
"""

from __future__ import annotations

import inspect
import io
import textwrap
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from headstart.capture import python, reading
from headstart.capture.binding import ABSENT, ITSELF, Binder, Dependencies, User
from headstart.capture.names import Use, assigned_names, names_used, names_used_in_python
from headstart.errors import CannotTravel, UsageError
from headstart.model.captured import Binding, CapturedFunction, CapturedSource, Unbound
from headstart.model.values import Encoded, replace_in_tuples

_NOTES = "__headstart__"  # in a function's __dict__


def capture(kernel: Any, arguments: Sequence[Any] = (), *, lenient: bool = False) -> CapturedSource:
    """The source of a live kernel.

    Args:
        kernel: a `@triton.jit` function, or one wrapped by `@triton.autotune` or `@triton.heuristics`.
        arguments: functions that it is given as constexpr arguments.
        lenient: leave out what cannot be described instead of raising. A kernel that turns out to need it does not
            compile in a worker; one that only names it on a branch that is not taken does.

    Raises:
        UsageError: it is no such function.
        CannotTravel: it uses something that cannot be described as data.
    """
    return _take(reading.jit_function(kernel), arguments, lenient).source


def capture_call(
    kernel: Any,
    constants: Mapping[Any, Any] | None,
    signature: Mapping[str, Any] | str,
    *,
    lenient: bool = False,
) -> tuple[CapturedSource, dict[Any, Any]]:
    """The source of a live kernel for one specialization, and the constants of that as a request takes them.

    The source is named as the kernel names itself (`@triton.jit(repr=…)`), and holds the functions among the constants.

    Raises:
        UsageError: as `capture`; or the kernel has a name of its own, and the signature is not a mapping.
    """
    function = reading.jit_function(kernel)
    given = dict(constants or {})
    functions: dict[int, Any] = {}

    def note(value: Any) -> Any:
        if reading.kind(value) is not None:
            functions[id(value)] = value
        return value

    for value in given.values():
        replace_in_tuples(value, note)
    taken = _take(function, list(functions.values()), lenient)

    def replaced(value: Any) -> Any:
        return Encoded({"function": taken.indices[id(value)]}) if id(value) in functions else value

    plain = {key: replace_in_tuples(value, replaced) for key, value in given.items()} if functions else given
    if not reading.has_own_name(function):
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
    return taken.source.named(reading.entry_name(function, values, types_)), plain


def _take(function: Any, arguments: Sequence[Any], lenient: bool) -> _Taken:
    notes = _notes(function)
    key = (lenient, *map(id, arguments))
    taken = notes.taken.get(key)
    if taken is None or not taken.dependencies.hold():
        taken = notes.taken[key] = _Capturing(lenient).take(function, arguments)
    return taken


def _parameter(key: Any, order: list[str]) -> Any:
    index = key[0] if isinstance(key, tuple) and len(key) == 1 else key
    return order[index] if isinstance(index, int) and 0 <= index < len(order) else key


class _Notes:
    """What is kept on a function; it is of no use to a copy of it, in this process or another."""

    def __init__(self, owner: dict[str, Any] | None = None) -> None:
        self.owner = owner
        self.parsed: _Parsed | None = None
        self.taken: dict[tuple[Any, ...], _Taken] = {}  # by how, and by the functions given as arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return _Notes, ()


class _Parsed:
    """What a function's text says, whatever its names stand for.

    Attributes:
        compiled: what Triton parses; `text`: as it stands in the file.
        assigned: names that are assigned somewhere in it, and so may not be the global of that name.
    """

    def __init__(self, function: Any) -> None:
        self.compiled = reading.compiled_text(function)
        self.lines = reading.lines(function)
        self.text = "".join(self.lines)
        is_python = reading.kind(function) == "constexpr_function"
        self.uses: list[Use] = (
            names_used_in_python(textwrap.dedent(self.text)) if is_python else names_used(self.compiled)
        )
        self.assigned = assigned_names(self.text if is_python else self.compiled)
        self.grouped: dict[str, list[Use]] = {}
        for use in self.uses:
            self.grouped.setdefault(use.path[0], []).append(use.rest())


class _Taken:
    """One capture, and what it depends on.

    Attributes:
        indices: of the functions in it, by `id`.
        arguments: held, so that no other function gets their `id`.
    """

    def __init__(self) -> None:
        self.source: CapturedSource
        self.indices: dict[int, int] = {}
        self.arguments: list[Any] = []
        self.dependencies = Dependencies()


def _notes(function: Any) -> _Notes:
    attributes = vars(function)
    notes: _Notes | None = attributes.get(_NOTES)
    if notes is None or notes.owner is not attributes:
        notes = attributes[_NOTES] = _Notes(attributes)
    return notes


def _parsed(function: Any, user: User) -> _Parsed:
    notes = _notes(function)
    if notes.parsed is None or notes.parsed.compiled is not reading.compiled_text(function):
        try:
            notes.parsed = _Parsed(function)
        except (SyntaxError, ValueError) as error:
            raise user.refuse("", f"its text is not that of one function: {error}") from None
    return notes.parsed


class _Capturing:
    """One walk over a kernel and what it calls."""

    def __init__(self, lenient: bool) -> None:
        self._lenient = lenient
        self._taken = _Taken()
        self._dependencies = self._taken.dependencies
        self._functions: list[CapturedFunction | None] = []
        self._indices = self._taken.indices
        self._binder = Binder(self._dependencies, self._function)

    def take(self, kernel: Any, arguments: Sequence[Any]) -> _Taken:
        for function in (kernel, *arguments):
            self._function(function)
        self._taken.arguments = list(arguments)
        self._taken.source = CapturedSource([function for function in self._functions if function is not None])
        return self._taken

    def _function(self, function: Any) -> int:
        """The index of a function, which is captured if it was not yet."""
        known = self._indices.get(id(function))
        if known is not None:
            return known
        index = self._indices[id(function)] = len(self._functions)
        self._functions.append(None)  # a function may call itself
        try:
            self._functions[index] = self._describe(function)
        except CannotTravel:
            # The caller may go on without it: nothing of it is to stay.
            del self._functions[index:]
            for each in [each for each, other in self._indices.items() if other >= index]:
                del self._indices[each]
            raise
        return index

    def _describe(self, function: Any) -> CapturedFunction:
        user = User(function)
        parsed = _parsed(function, user)
        for attribute in reading.CAPTURED_ATTRIBUTES:
            self._dependencies.attribute(function, attribute)
        if list(io.StringIO(parsed.text)) != parsed.lines:
            raise user.refuse("", "its lines are not lines of a text")
        kind = reading.kind(function) or "jit"
        names = self._names(function, parsed, kind == "jit", user)
        if kind == "constexpr_function":
            code = self._dependencies.attribute(function.fn, "__code__")
            assert isinstance(code, types.CodeType)
            why = python.why_not(function.fn, parsed.text, parsed.uses, names)
            if why is not None:
                raise user.refuse("", why)
        replaced = parsed.compiled != reading.text_that_triton_takes(parsed.text)
        if replaced and kind == "constexpr_function":
            raise user.refuse("", "its source was replaced after it was defined")
        return CapturedFunction(
            kind=kind,
            module=str(function.__module__),
            qualname=function.__qualname__,
            filename=function.fn.__code__.co_filename.encode(errors="replace").decode(),
            first_line=reading.first_line(function),
            text=parsed.text,
            names=names,
            defaults=self._defaults(function, kind == "jit", user),
            noinline=reading.noinline(function),
            replaced=parsed.compiled if replaced else "",
            parameters=reading.parameters(function) if kind == "jit" else [],
        )

    def _names(self, function: Any, parsed: _Parsed, is_jit: bool, user: User) -> dict[str, Binding]:
        code: types.CodeType = function.fn.__code__
        cells = dict(zip(code.co_freevars, function.fn.__closure__ or (), strict=True))
        names: dict[str, Binding] = {}
        for name, uses in parsed.grouped.items():
            if name in cells:
                value = self._dependencies.cell(cells[name])
            else:
                value = self._dependencies.look_up(function.__globals__, name)
            if value is ABSENT:
                continue
            try:
                names[name] = self._binder.bind(value, uses, name, user)
            except CannotTravel as error:
                # In Triton a name without a meaning is an error, always; Python may have a builtin of it, or catch it.
                may_go = is_jit and name not in reading.BUILTIN_NAMES and (self._lenient or name in parsed.assigned)
                if not may_go:
                    raise
                names[name] = Unbound(error.why if error.name == name else str(error))
        return names

    def _defaults(self, function: Any, is_jit: bool, user: User) -> dict[str, Binding]:
        given: Iterable[tuple[str, Any]]
        if is_jit:
            parameters = function.signature.parameters.values()
            given = [(each.name, each.default) for each in parameters if each.default is not inspect.Parameter.empty]
        else:
            given = python.defaults_of(function.fn)
            for attribute in ("__defaults__", "__kwdefaults__"):
                self._dependencies.attribute(function.fn, attribute)
        return {name: self._binder.bind(value, ITSELF, name, user) for name, value in given}
