"""Plans: Python files that say which kernels to build.

A plan has a generator `kernels()` that yields `KernelSpec`s. It is the user's program and runs in the process of the
command line; nothing is compiled here. What goes wrong in it is told in the user's terms: traceback frames of
headstart and of the import machinery are left out.
"""

from __future__ import annotations

import ast
import importlib
import importlib.machinery
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from headstart.errors import UsageError
from headstart.model.captured import CapturedSource
from headstart.model.target import Target

# The plan is not imported under its own name: a plan called json.py must not become everybody's `json`.
PLAN_MODULE = "__headstart_plan__"
_OUR_FOLDER = str(Path(__file__).parent) + os.sep


class PlanRaised(UsageError):
    """The plan's own code raised. The message carries its traceback, trimmed to the user's frames.

    Attributes:
        original: what it raised.
    """

    def __init__(self, plan: str, original: BaseException) -> None:
        self.original = original
        super().__init__(f"{plan} raised {type(original).__name__}\n\n{_users_traceback(original)}")


@dataclass(frozen=True, init=False)
class KernelSpec:
    """One kernel to build: a function and what to specialize it for.

    Args:
        source_or_fn: Python text that defines the `@triton.jit` function `name`; or such a function, which is taken as
            it is now, with what it calls and the values it reads.
        name: the function. May be left out for a function, and for a text with a single jit function.
        signature: type of each argument, `{"x": "*fp32", "n": "i32"}`, constexprs left out or `"constexpr"`; or
            Triton's ahead-of-time form, `"*fp32:16, i32, 1024"`.
        constants: values of the constexpr arguments, by name.
        attrs: what is known of the arguments: `{"x": 16}` (divisible by 16), or Triton's own form,
            `{(0,): [["tt.divisibility", 16]]}`.
        options: compiler options, `{"num_warps": 4, "num_stages": 3}`.
        target: `"cuda:90"`, `"h100"`, `"gfx942"`, …; see `Target.parse`. None leaves it to the build.
        filename: what debug lines and tracebacks show. Default: the function's file; for a text, `NAME.py`.

    Attributes:
        source: the text, or the function as data.

    Raises:
        UsageError: the function cannot be told, or the target is unknown.
        CannotTravel: the function uses something that cannot be described to another process.
    """

    source: str | CapturedSource
    name: str
    signature: Mapping[str, str] | str
    constants: Mapping[str, Any] | None
    attrs: Mapping[Any, Any] | None
    options: Mapping[str, Any] | None
    target: Target | None
    filename: str | None

    def __init__(
        self,
        source_or_fn: Any,
        *,
        name: str | None = None,
        signature: Mapping[str, str] | str,
        constants: Mapping[str, Any] | None = None,
        attrs: Mapping[Any, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        target: str | Target | None = None,
        filename: str | None = None,
    ) -> None:
        source: str | CapturedSource
        if isinstance(source_or_fn, str):
            source = source_or_fn
            name = name or _only_jit_function(source)
        else:
            source, constants = _captured(source_or_fn, constants, signature)
            if name not in (None, source.kernel.name):
                raise UsageError(f"name={name!r} was given with the function {source.kernel.name}; leave it out")
            name = source.kernel.name
            if filename is not None:
                source = source.shown_in(filename)
            filename = source.kernel.filename
        fields = {
            "source": source,
            "name": name,
            "signature": signature,
            "constants": constants,
            "attrs": attrs,
            "options": options,
            "target": None if target is None else Target.parse(target),
            "filename": filename,
        }
        for field, value in fields.items():
            object.__setattr__(self, field, value)


def _only_jit_function(source: str) -> str:
    """The one `@triton.jit` function that a source defines, where no name was given."""
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise UsageError(f"the source does not parse: {error.msg} (line {error.lineno})") from None
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and _is_jit(node)]
    if len(names) == 1:
        return names[0]
    found = f"defines several ({', '.join(names)})" if names else "defines none at its top level"
    raise UsageError(f"name= is missing: which @triton.jit function is meant? The source {found}")


def _is_jit(node: ast.FunctionDef) -> bool:
    decorators = [ast.unparse(decorator).partition("(")[0] for decorator in node.decorator_list]
    return any(decorator.rpartition(".")[2] == "jit" for decorator in decorators)


def _captured(
    source_or_fn: Any, constants: Mapping[Any, Any] | None, signature: Mapping[str, str] | str
) -> tuple[CapturedSource, Mapping[Any, Any] | None]:
    if isinstance(source_or_fn, CapturedSource):
        return source_or_fn, constants
    from headstart.capture.functions import capture_call

    source, plain = capture_call(source_or_fn, constants, signature)
    return source, plain or constants


def load_plan(plan: str) -> Iterator[KernelSpec]:
    """Import a plan and return what its `kernels()` yields, one by one, as it is yielded.

    Args:
        plan: a file, `path/to/plan.py`, or a module, `package.module` (see `add_plan_folder`).

    Raises:
        UsageError: at once: there is no such plan, it does not parse, or it has no usable `kernels()`. While iterating:
            it yields something that is not a `KernelSpec`.
        PlanRaised: its code raised, at once or while iterating. What was yielded before is good.
    """
    kernels = _kernels_function(_import(plan), plan)
    return _checked(kernels, plan)


def call_function(reference: str) -> Any:
    """Import a Python file or module and call one of its functions without arguments.

    Args:
        reference: `path/to/model.py:make`, or `package.module:make`.

    Raises:
        UsageError: there is no such file, module or function.
        PlanRaised: its code raised.
    """
    plan, colon, name = reference.rpartition(":")
    if not colon or not name.isidentifier():
        raise UsageError(f"{reference}: expected a file and a function in it, as in my_model.py:make")
    function = getattr(_import(plan), name, None)
    if not callable(function):
        raise UsageError(f"{plan} has no function {name}")
    try:
        return function()
    except Exception as error:
        raise PlanRaised(plan, error) from error


def _import(plan: str) -> ModuleType:
    add_plan_folder(plan)
    return _import_file(plan) if _looks_like_a_file(plan) else _import_module(plan)


def add_plan_folder(plan: str) -> None:
    """Make what a plan imports importable, as when Python runs it: from beside the file, or from the current folder."""
    folder = str(Path(plan).absolute().parent if _looks_like_a_file(plan) else Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)


def _looks_like_a_file(plan: str) -> bool:
    return plan.endswith(".py") or os.sep in plan or Path(plan).is_file()


def _import_file(plan: str) -> ModuleType:
    path = Path(plan).absolute()
    if path.suffix != ".py" and path.is_file():
        # Running whatever file was named would be a bad answer to a slip of the hand.
        raise UsageError(f"{plan} is neither a manifest nor a plan: a plan is a Python file, whose name ends in .py")
    try:
        code = _parse(path.read_bytes(), path, plan)
    except OSError as error:
        raise UsageError(f"cannot read the plan {plan}: {error.strerror}") from None
    module = ModuleType(PLAN_MODULE)
    module.__file__ = str(path)
    # Decorators look their function's module up by name.
    sys.modules[PLAN_MODULE] = module
    try:
        exec(code, module.__dict__)  # noqa: S102 - running the plan is what the user asked for
    except (Exception, SystemExit) as error:
        raise PlanRaised(plan, error) from error
    return module


def _parse(text: bytes, path: Path, plan: str) -> CodeType:
    try:
        return compile(text, str(path), "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        reason = "".join(traceback.format_exception_only(type(error), error)).strip()
        raise UsageError(f"the plan {plan} does not parse\n\n{reason}") from None


def _import_module(plan: str) -> ModuleType:
    missing = UsageError(f"no plan {plan!r}: there is no such file, and no such module that can be imported from here")
    if not all(part.isidentifier() for part in plan.split(".")):
        raise missing
    try:
        found = importlib.util.find_spec(plan)
        if found is None:
            raise missing
        _parse_origin(found, plan)
        return importlib.import_module(plan)
    except UsageError:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and f"{plan}.".startswith(f"{error.name}."):
            raise missing from None
        raise PlanRaised(plan, error) from error
    except (Exception, SystemExit) as error:
        raise PlanRaised(plan, error) from error


def _parse_origin(found: importlib.machinery.ModuleSpec, plan: str) -> None:
    """Tell a plan that does not parse from one that imports something that does not."""
    if found.has_location and found.origin is not None and found.origin.endswith(".py"):
        path = Path(found.origin)
        _parse(path.read_bytes(), path, plan)


def _kernels_function(module: ModuleType, plan: str) -> Callable[[], Any]:
    how = "a plan has a generator `def kernels():` that yields headstart.KernelSpec(…)"
    kernels = getattr(module, "kernels", None)
    if kernels is None:
        raise UsageError(f"{plan} has no kernels(): {how}")
    if not callable(kernels):
        raise UsageError(f"kernels in {plan} is not a function but {type(kernels).__name__}: {how}")
    try:
        inspect.signature(kernels).bind()
    except TypeError as error:
        raise UsageError(f"kernels() in {plan} must be callable without arguments: {error}") from None
    except ValueError:  # a builtin without a signature: calling it will tell
        pass
    function: Callable[[], Any] = kernels
    return function


def _checked(kernels: Callable[[], Any], plan: str) -> Iterator[KernelSpec]:
    try:
        yielded = kernels()
    except (Exception, SystemExit) as error:
        raise PlanRaised(plan, error) from error
    if not isinstance(yielded, Iterable):
        raise UsageError(
            f"kernels() in {plan} returned {type(yielded).__name__}: it must yield headstart.KernelSpec(…)"
        )
    iterator = iter(yielded)
    while True:
        try:
            spec = next(iterator)
        except StopIteration:
            return
        except (Exception, SystemExit) as error:
            raise PlanRaised(plan, error) from error
        if not isinstance(spec, KernelSpec):
            raise UsageError(
                f"kernels() in {plan} yielded {type(spec).__name__} ({spec!r:.80}), not headstart.KernelSpec(…)"
            )
        yield spec


def _users_traceback(error: BaseException) -> str:
    """The traceback of `error` and of what led to it, without frames that the user can do nothing about."""
    report = traceback.TracebackException.from_exception(error)
    todo: list[traceback.TracebackException | None] = [report]
    while todo:
        link = todo.pop()
        if link is not None:
            users = [frame for frame in link.stack if not _is_machinery(frame.filename)]
            link.stack = traceback.StackSummary.from_list(users)
            todo += [link.__cause__, link.__context__]
    return "".join(report.format()).rstrip()


def _is_machinery(filename: str) -> bool:
    return filename.startswith((_OUR_FOLDER, "<frozen importlib"))
