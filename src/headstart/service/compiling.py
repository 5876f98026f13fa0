"""One compile with Triton, inside a worker, and what is relied on of Triton's insides there (3.6 to 3.9).

What is relied on, beyond `triton.compile`, `ASTSource`, `GPUTarget` and `triton.knobs`:

* `knobs.cache.manager_class` is asked for every file and given every artifact; ours keeps them in memory.
* `knobs.runtime.add_stages_inspection_hook` is called with the backend's stages, which are wrapped to know which runs.
* `triton.runtime.cache.triton_key` hashes Triton's whole install, 0.3 s in every process, for Triton's own cache key;
  here headstart's key does that work, so it is replaced where it exists.
* `JITFunction.arg_names`, and `BaseBackend.parse_options` returning a dataclass of all options.
* `triton.runtime.driver` has `set_active`; which driver is the default one it keeps in `_default`; a backend's driver
  says by `is_active` whether there is such a device.
* `knobs.compilation.listener` is told how long each stage took.

A function defined by a request's source has the request's file name, and finds its text in linecache, so that
debug lines and tracebacks read as they would in the client. One that was captured live is made again (`rebuilding`).
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import errno
import importlib
import inspect
import io
import json
import linecache
import os
import re
import subprocess
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from headstart.captured import CapturedSource
from headstart.environment import FINGERPRINT_VARIABLES, TOOL_VARIABLES
from headstart.imports import is_standard
from headstart.request import CompileRequest, TupleType
from headstart.service import standins
from headstart.service.cutoff import Cut
from headstart.service.deaths import describe_status
from headstart.service.rebuilding import NamedTuples, Rebuilt, rebuilt
from headstart.standin_driver import TargetDriver, gpu_target
from headstart.target import Target
from headstart.wire import Failure

KNOWN_VERSIONS = ("3.6", "3.7", "3.8", "3.9")
_ENVIRONMENT = frozenset({"environ", "environb", "getenv", "getenvb"})  # of `os`
_NO_PROCESS = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE})

Watcher = Callable[[str, Mapping[str, bytes], Mapping[str, Any]], None]  # stage, artifacts so far, metadata


class Refused(Exception):
    """A compile that cannot succeed; carries the failure to report."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.summary)
        self.failure = failure


@dataclasses.dataclass
class Compiled:
    """What Triton made of a request.

    Attributes:
        artifacts: by the names that Triton gives them: `"ttir"`, `"ptx"`, `"cubin"`, …
        metadata: Triton's own, plain data.
        reaches: modules that the source imports and that its key does not cover.
        times: microseconds by stage, as Triton measures them, `"ir_initialization"` and `"store_results"` included.
    """

    artifacts: dict[str, bytes]
    metadata: dict[str, Any]
    reaches: list[str]
    times: list[tuple[str, int]]


class _MemoryCache:
    """Triton's `CacheManager`, keeping what it is given in memory and never finding what was compiled before."""

    held: ClassVar[dict[str, bytes]] = {}
    folder: ClassVar[str] = ""

    def __init__(self, key: str, override: bool = False, dump: bool = False) -> None:
        pass

    def get_file(self, filename: str) -> str | None:
        return str(Path(self.folder, filename)) if self.has_file(filename) else None

    def has_file(self, filename: str) -> bool:
        return filename in self.held

    def get_group(self, filename: str) -> dict[str, str] | None:
        return None

    def put(self, data: Any, filename: str, binary: bool = True) -> str:
        content = data if isinstance(data, bytes) else str(data).encode()
        self.held[filename] = content
        # Triton reads every file back when it makes its CompiledKernel.
        path = Path(self.folder, filename)
        path.write_bytes(content)
        return str(path)

    def put_group(self, filename: str, group: dict[str, str]) -> None:
        pass

    @classmethod
    def artifacts(cls) -> dict[str, bytes]:
        """What has been made so far, by the names of the artifacts."""
        return {name.rpartition(".")[2]: content for name, content in cls.held.items()}


class Compiler:
    """Triton, imported and set up for compiling one request after another. Make one per process.

    Args:
        folder: for the files that Triton insists on; private to the process.
        entered: told the name of each stage as it begins, so that a death in it can be explained.
    """

    def __init__(self, folder: str, entered: Callable[[str], object]) -> None:
        self._stage = ""
        self._entered = entered
        self._watcher: Watcher | None = None
        self._environment = dict(os.environ)
        self._knobs = importlib.import_module("triton.knobs")
        _MemoryCache.folder = folder
        self._knobs.cache.manager_class = _MemoryCache
        self._knobs.runtime.add_stages_inspection_hook = self._watch_stages
        self._knobs.compilation.listener = self._listen
        self._times: list[tuple[str, int]] = []
        groups = [group for group in vars(self._knobs).values() if isinstance(group, self._knobs.base_knobs)]
        self._pristine = [(group, dict(vars(group))) for group in groups]

    def compile(self, request: CompileRequest, watcher: Watcher | None = None) -> Compiled:
        """Compile one request.

        Args:
            request: what.
            watcher: told of each stage before it begins, and may end the compile there by `Cut`. It is not told where
                anything but request, toolchain and environment may have a say: the source reaches beyond its key,
                or has set a knob or a variable.

        Raises:
            Refused: it cannot be compiled; carries stage, evidence and class of the failure.
            Cut: the watcher's.
        """
        self._enter("source")
        for group, values in self._pristine:
            if vars(group) != values:
                # An earlier kernel's source has set a knob, which must not reach this one.
                vars(group).clear()
                vars(group).update(values)
        driver = _use_driver(Target.parse(request.target))
        with contextlib.ExitStack() as shown:  # errors are told while the source's lines can be looked up
            made: Rebuilt | None = None
            named_tuples = NamedTuples()
            try:
                if isinstance(request.source, CapturedSource):
                    # Names are bound to data and to what Triton has: nothing is beyond the key.
                    made = shown.enter_context(rebuilt(request.source, named_tuples))
                    kernel, reaches = made.functions[0], list[str]()
                else:
                    kernel, reaches = _defined(request, request.source, shown)
                self._watcher = None if reaches else watcher
                given = _Values([] if made is None else made.functions, named_tuples)
                compiled = self._compile(request, kernel, given, reaches)
            except (Refused, Cut):
                raise
            except Exception as error:
                self._check_that_nothing_else_had_a_say(driver, made)  # it may have failed for that
                raise Refused(self._failure(error, {} if made is None else made.unbound())) from error
            self._check_that_nothing_else_had_a_say(driver, made)
            return compiled

    @staticmethod
    def _check_that_nothing_else_had_a_say(driver: TargetDriver, made: Rebuilt | None) -> None:
        """Refuse what came of something that is not in the request."""
        why = ""
        if driver.asked:
            why = f"it asks the driver for {driver.asked[0]}, which only a process with the device knows"
        elif made is not None and made.changed():
            why = "a constexpr function changes a list or a dict of the program"
        if why:
            raise Refused(Failure("source", why, stage="ttir", needs_program=True))

    def _compile(self, request: CompileRequest, kernel: Any, values: _Values, reaches: list[str]) -> Compiled:
        triton = importlib.import_module("triton")
        self._enter("signature")
        target = gpu_target(Target.parse(request.target))
        source = triton.compiler.ASTSource(kernel, *_specialization(request, kernel, values))
        self._enter("options")
        backend = triton.compiler.make_backend(target)
        options = _options(request, backend)
        backend.parse_options(dict(options))  # for its verdict; triton.compile does it again
        _MemoryCache.held.clear()
        self._enter("ttir")
        self._times = []
        triton.compile(source, target=target, options=options)
        files = _MemoryCache.artifacts()
        metadata = json.loads(files.pop("json"))
        return Compiled(files, metadata, reaches, self._times)

    def _listen(self, *, times: Any, **_: Any) -> None:
        self._times = [
            ("ir_initialization", times.ir_initialization),
            *((stage, duration) for stage, duration in times.lowering_stages),
            ("store_results", times.store_results),
        ]

    def _enter(self, stage: str) -> None:
        self._stage = stage
        self._entered(stage)

    def _watch_stages(self, *arguments: Any) -> tuple[str, str] | None:
        if not arguments:
            return "", ""  # asked for what it adds to Triton's cache key
        stages = arguments[1]
        for name, run in list(stages.items()):
            stages[name] = self._watched(name, run)
        return None

    def _watched(self, name: str, run: Any) -> Any:
        def stage(source: Any, metadata: Any) -> Any:
            self._enter(name)
            if self._watcher is not None and self._untouched():
                self._watcher(name, _MemoryCache.artifacts(), metadata)
            return run(source, metadata)

        return stage

    def _untouched(self) -> bool:
        return self._environment == os.environ and all(
            vars(group) == values for group, values in self._pristine
        )

    def _failure(self, error: Exception, unbound: Mapping[str, str]) -> Failure:
        tool = _dead_tool(error)
        kind, summary = "compile", f"{type(error).__name__}: {_summary(error)}"
        if tool is not None:
            kind, summary = "crash", tool
        elif (
            self._stage in ("source", "signature", "options")
            or type(error).__module__ == "triton.compiler.errors"
        ):
            kind = "source"
        advice = ""
        missing = next(
            (name for name in unbound if f"'{name}'" in str(error) or f"{name} is not defined" in str(error)),
            "",
        )
        if missing:
            advice = (
                f"{missing} means something in the program that no worker can be given: {unbound[missing]}"
            )
        elif self._stage in ("cubin", "hsaco") and tool is None:
            advice = "the assembler refused what Triton gave it; is it new enough for the target? See headstart doctor"
        return Failure(
            kind,
            summary,
            stage=self._stage,
            detail=_user_traceback(error),
            advice=advice,
            raised=f"{type(error).__module__}.{type(error).__qualname__}",
            message=str(error),
            files=self._files_named(str(error)),
        )

    def _files_named(self, text: str) -> dict[str, bytes]:
        """Files of this process that an error names: they are not to be lost with its folder."""
        found = {}
        for path in set(re.findall(rf"{re.escape(_MemoryCache.folder)}/[\w.-]+\.ptx\b", text)):
            with contextlib.suppress(OSError):
                found[path] = Path(path).read_bytes()
        return found


def prepare() -> str:
    """Import Triton and load what a first compile would, without compiling. Returns Triton's version.

    Raises:
        ImportError: there is no Triton, or it cannot be loaded.
    """
    triton = importlib.import_module("triton")
    importlib.import_module("triton.compiler.code_generator")
    with contextlib.suppress(ImportError):
        cache: Any = importlib.import_module("triton.runtime.cache")
        if hasattr(cache, "triton_key"):
            cache.triton_key = lambda: "headstart"
    with contextlib.suppress(Exception):
        # Only a head start: whatever is missing here is loaded, or reported, by the first compile.
        ir: Any = importlib.import_module("triton._C.libtriton").ir
        backend = triton.compiler.make_backend(gpu_target(Target.parse("cuda:90")))
        context = ir.context()
        ir.load_dialects(context)
        backend.load_dialects(context)
        backend.get_module_map()
        if not TOOL_VARIABLES & os.environ.keys():
            # Asks ptxas for its version. A tool of the user's own may hang, and must then hang a worker instead.
            backend.hash()
    return str(triton.__version__)


# The source


def _use_driver(target: Target) -> TargetDriver:
    """Have everything that asks Triton which device there is find `target`."""
    driver = importlib.import_module("triton").runtime.driver
    standin = TargetDriver(target)
    driver.set_active(standin)
    vars(driver)["_default"] = standin  # which `reset_active` would go back to
    for name, backend in importlib.import_module("triton.backends").backends.items():
        active = {"nvidia": "cuda", "amd": "hip"}.get(name) == target.backend
        backend.driver.is_active = staticmethod(lambda active=active: active)
    return standin


def _defined(request: CompileRequest, source: str, shown: contextlib.ExitStack) -> tuple[Any, list[str]]:
    """The kernel that a text defines, and the modules that it reaches beyond its key."""
    module = shown.enter_context(_module_of(request, source))
    tree = ast.parse(source, request.filename)
    reader = _EnvironmentReader()
    reader.visit(tree)
    if reader.read is not None:
        raise _source_failure(
            f"line {reader.read} of the source reads environment variables: those of the worker are not those of your "
            "program; write their values into the source"
        )
    return _define(request, tree, module), _foreign_modules(tree)


class _EnvironmentReader(ast.NodeVisitor):
    """Finds where a source reads variables other than those that the request carries; it may set any.

    Attributes:
        read: the first line; None: nowhere.
    """

    def __init__(self) -> None:
        self.read: int | None = None

    def visit(self, node: ast.AST) -> None:
        match node:
            case ast.Subscript(value=ast.Attribute(value=ast.Name(), attr="environ"), slice=ast.Constant(value=name)):
                self._note(node, isinstance(node.ctx, ast.Load) and name not in FINGERPRINT_VARIABLES)
            case ast.Call(
                func=(
                    ast.Attribute(value=ast.Attribute(value=ast.Name(), attr="environ"), attr="get" | "pop")
                    | ast.Attribute(value=ast.Name(), attr="getenv")
                ),
                args=[ast.Constant(value=name), *_],
            ):
                self._note(node, name not in FINGERPRINT_VARIABLES)
            case ast.Attribute(value=ast.Name(), attr=attribute) if attribute in _ENVIRONMENT:
                self._note(node, True)
            case ast.ImportFrom(module="os", names=names):
                self._note(node, any(alias.name in _ENVIRONMENT for alias in names))
            case _:
                self.generic_visit(node)

    def _note(self, node: ast.expr | ast.stmt, reads: bool) -> None:
        if reads and self.read is None:
            self.read = node.lineno


@contextlib.contextmanager
def _module_of(request: CompileRequest, source: str) -> Iterator[types.ModuleType]:
    module = types.ModuleType(request.module or request.name)
    module.__file__ = request.filename
    # Python ends lines as a file is read: at "\n", "\r\n" and "\r". A form feed, or U+2028, does not end one.
    lines = list(io.StringIO(source, newline=None))
    # An entry without a modification time is never checked against the disk.
    linecache.cache[request.filename] = (len(source), None, lines, request.filename)
    previous = sys.modules.get(module.__name__)
    if previous is None:
        sys.modules[module.__name__] = module
    try:
        yield module
    finally:
        linecache.cache.pop(request.filename, None)
        if previous is None:
            sys.modules.pop(module.__name__, None)


def _define(request: CompileRequest, tree: ast.Module, module: types.ModuleType) -> Any:
    code = compile(tree, request.filename, "exec", dont_inherit=True)
    exec(code, module.__dict__)  # noqa: S102 - compiling a kernel means defining it
    function: Any = module.__dict__.get(request.name)
    # @triton.autotune and @triton.heuristics wrap the function; what is compiled is inside.
    while type(function).__name__ in ("Autotuner", "Heuristics"):
        function = function.fn
    if type(function).__name__ != "JITFunction":
        defined = sorted(
            name for name, value in module.__dict__.items() if type(value).__name__ == "JITFunction"
        )
        found = f"it defines {', '.join(defined)}" if defined else "it defines no @triton.jit function at all"
        raise _source_failure(f"the source does not define a @triton.jit function {request.name!r}; {found}")
    return function


def _foreign_modules(tree: ast.Module) -> list[str]:
    """What a source imports that is neither the toolchain nor its own text, and so is not in its key."""
    imported = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imported.append("." * node.level + (node.module or ""))
    known = {"triton", "headstart"}
    if standins.are_shown():
        known.add("torch")  # what of it is real is part of the toolchain
    foreign = {name for name in imported if name.partition(".")[0] not in known}
    return sorted(name for name in foreign if not is_standard(name))


# Signature, constants, attributes, options


def _specialization(
    request: CompileRequest, function: Any, values: _Values
) -> tuple[dict[str, Any], dict[tuple[int, ...], Any], dict[tuple[int, ...], list[list[Any]]]]:
    names: list[str] = list(function.arg_names)
    constants = {_path(key, names): values.constant(value) for key, value in request.constants.items()}
    attributes = {
        _path(key, names): [list(fact) for fact in facts] for key, facts in request.attributes.items()
    }
    if isinstance(request.signature, str):
        types_by_name: dict[str, str | TupleType]
        types_by_name, literals, hints = _ahead_of_time(request.signature, names)
        constants, attributes = {**literals, **constants}, {**hints, **attributes}
    else:
        types_by_name = dict(request.signature)
    for name in types_by_name:
        if name not in names:
            raise _signature_failure(
                f"the signature types {name!r}, no parameter of {_parameters(request, names)}"
            )
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
            raise _signature_failure(
                f"parameter {name!r} has neither a type nor a constant; it is {_parameters(request, names)}"
            )
    return signature, constants, attributes


def _parameters(request: CompileRequest, names: list[str]) -> str:
    return f"{request.name}({', '.join(names)})"


def _path(key: str, names: list[str]) -> tuple[int, ...]:
    if key.startswith("#"):
        path = tuple(int(index) for index in key[1:].split("."))
        if not 0 <= path[0] < len(names):
            raise _signature_failure(
                f"position {path[0]} is no parameter; there are {len(names)}: {', '.join(names)}"
            )
        return path
    if key not in names:
        raise _signature_failure(f"{key!r} is no parameter; the parameters are {', '.join(names)}")
    return (names.index(key),)


def _ahead_of_time(
    text: str, names: list[str]
) -> tuple[dict[str, str | TupleType], dict[tuple[int, ...], Any], dict[tuple[int, ...], list[list[Any]]]]:
    """Read `"*fp32:16, i32, 1024"` as `triton.tools.compile` does."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != len(names):
        raise _signature_failure(
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
            raise _signature_failure(f"{part!r}: a hint is 1 or 16, as in '*fp32:16'")
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
        """The value that `headstart.request` made plain data of."""
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
        raise _signature_failure(f"{value!r} is no constant")

    def type(self, given: str | TupleType, parameter: str) -> Any:
        """The type as Triton writes it, once it is one that Triton knows."""
        if isinstance(given, TupleType):
            members = [each if each == "constexpr" else self.type(each, parameter) for each in given.types]
            # Of a named tuple's class Triton only looks at the fields here.
            return (
                tuple(members)
                if given.fields is None
                else self._named_tuples("", "Type", given.fields)(*members)
            )
        canonical = importlib.import_module("triton._utils").type_canonicalisation_dict
        match = re.fullmatch(r"(\*k?)?(\w+)", given)
        if match is None:
            if given.startswith("tensordesc") or given == "nvTmaDesc":
                return given
        elif match[2] in canonical:
            return (match[1] or "") + str(canonical[match[2]])
        raise _signature_failure(
            f"{given!r} of parameter {parameter!r} is no type that Triton knows; types are *fp32, *bf16, i32, u1, …"
        )


def _options(request: CompileRequest, backend: Any) -> dict[str, Any]:
    options = {
        name: tuple(value) if isinstance(value, list) else value for name, value in request.options.items()
    }
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


# Errors


def _source_failure(summary: str, stage: str = "source") -> Refused:
    return Refused(Failure("source", summary, stage=stage))


def _signature_failure(summary: str) -> Refused:
    return Refused(Failure("source", summary, stage="signature"))


def _dead_tool(error: BaseException) -> str | None:
    """How a tool of the compiler's died, or why it could not be started, if that is what is behind `error`.

    That is no fault of the kernel's: the kernel's OOM killer, somebody's kill -9, a limit on processes.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, subprocess.CalledProcessError) and seen.returncode < 0:
            tool = os.path.basename(str(seen.cmd[0] if isinstance(seen.cmd, (list, tuple)) else seen.cmd))
            return f"{tool}, which Triton calls, {describe_status(seen.returncode)}"
        if isinstance(seen, OSError) and seen.errno in _NO_PROCESS:
            return f"a tool that Triton calls could not be started: {seen.strerror}"
        seen = seen.__cause__ or seen.__context__
    return None


def _summary(error: BaseException) -> str:
    """What happened, in one line."""
    text = str(error)
    if type(error).__module__ == "triton.compiler.errors":
        # Its text is a place, lines of source, a mark below the last, and a message, if there is any.
        message = str(getattr(error, "error_message", None) or "").strip()
        cause = error.__cause__
        if not message and cause is not None:
            return f"{type(cause).__name__}: {_summary(cause)}"
        text = message or text.partition("\n")[0]
    return next((line.strip() for line in text.split("\n") if line.strip()), "no message")


def _user_traceback(error: Exception) -> str:
    """The traceback without headstart's own frames."""
    frames = traceback.TracebackException.from_exception(error)
    here = str(Path(__file__).parent)
    current: traceback.TracebackException | None = frames
    while current is not None:
        current.stack = traceback.StackSummary.from_list(
            [f for f in current.stack if not f.filename.startswith(here)]
        )
        current = current.__cause__ or current.__context__
    return "".join(frames.format())
