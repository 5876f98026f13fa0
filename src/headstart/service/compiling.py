"""One compile with Triton, inside a worker. The only module that knows Triton's insides (3.6 to 3.9).

What is relied on, beyond `triton.compile`, `ASTSource`, `GPUTarget` and `triton.knobs`:

* `knobs.cache.manager_class` is asked for every file and given every artifact; ours keeps them in memory.
* `knobs.runtime.add_stages_inspection_hook` is called with the backend's stages, which are wrapped to know which runs.
* `triton.runtime.cache.triton_key` hashes Triton's whole install, 0.3 s in every process, for Triton's own cache key;
  here headstart's key does that work, so it is replaced where it exists.
* `JITFunction.arg_names`, and `BaseBackend.parse_options` returning a dataclass of all options.

A function defined by a request's source has the request's file name, and finds its text in linecache, so that
debug lines and tracebacks read as they would in the client. One that was captured live is made again (`rebuilding`).
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import importlib
import inspect
import json
import linecache
import os
import re
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from headstart.captured import CapturedSource
from headstart.environment import TOOL_VARIABLES
from headstart.request import CompileRequest
from headstart.service import standins
from headstart.service.cutoff import Cut
from headstart.service.rebuilding import rebuilt
from headstart.target import Target
from headstart.wire import Failure

KNOWN_VERSIONS = ("3.6", "3.7", "3.8", "3.9")


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
    """

    artifacts: dict[str, bytes]
    metadata: dict[str, Any]
    reaches: list[str]


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
        with contextlib.ExitStack() as shown:  # errors are told while the source's lines can be looked up
            try:
                functions, reaches = _functions(request, shown)
                self._watcher = None if reaches else watcher
                return self._compile(request, functions, reaches)
            except (Refused, Cut):
                raise
            except Exception as error:
                raise Refused(self._failure(error)) from error

    def _compile(self, request: CompileRequest, functions: list[Any], reaches: list[str]) -> Compiled:
        triton = importlib.import_module("triton")
        self._enter("signature")
        target = _gpu_target(request.target)
        source = triton.compiler.ASTSource(functions[0], *_specialization(request, functions))
        self._enter("options")
        backend = triton.compiler.make_backend(target)
        options = _options(request, backend)
        backend.parse_options(dict(options))  # for its verdict; triton.compile does it again
        _MemoryCache.held.clear()
        self._enter("ttir")
        triton.compile(source, target=target, options=options)
        files = _MemoryCache.artifacts()
        metadata = json.loads(files.pop("json"))
        return Compiled(files, metadata, reaches)

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
        return self._environment == os.environ and all(vars(group) == values for group, values in self._pristine)

    def _failure(self, error: Exception) -> Failure:
        kind, summary = "compile", f"{type(error).__name__}: {_first_line(error)}"
        if self._stage in ("source", "signature", "options") or type(error).__module__ == "triton.compiler.errors":
            kind = "source"
        advice = ""
        if self._stage in ("cubin", "hsaco"):
            advice = "the assembler refused what Triton gave it; is it new enough for the target? See headstart doctor"
        return Failure(
            kind,
            summary,
            stage=self._stage,
            detail=_user_traceback(error),
            advice=advice,
            raised=f"{type(error).__module__}.{type(error).__qualname__}",
            message=str(error),
        )


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
        backend = triton.compiler.make_backend(_gpu_target("cuda:90"))
        context = ir.context()
        ir.load_dialects(context)
        backend.load_dialects(context)
        backend.get_module_map()
        if not TOOL_VARIABLES & os.environ.keys():
            # Asks ptxas for its version. A tool of the user's own may hang, and must then hang a worker instead.
            backend.hash()
    return str(triton.__version__)


# The source


def _functions(request: CompileRequest, shown: contextlib.ExitStack) -> tuple[list[Any], list[str]]:
    """The kernel, then others that were captured with it; and the modules that it reaches beyond its key."""
    if isinstance(request.source, CapturedSource):
        # Names are bound to data and to what Triton has: nothing is beyond the key.
        return shown.enter_context(rebuilt(request.source)), []
    module = shown.enter_context(_module_of(request, request.source))
    tree = ast.parse(request.source, request.filename)
    return [_define(request, tree, module)], _foreign_modules(tree)


@contextlib.contextmanager
def _module_of(request: CompileRequest, source: str) -> Iterator[types.ModuleType]:
    module = types.ModuleType(request.module or request.name)
    module.__file__ = request.filename
    lines = source.splitlines(keepends=True)
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
        defined = sorted(name for name, value in module.__dict__.items() if type(value).__name__ == "JITFunction")
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
    known = {"triton", "headstart", *sys.stdlib_module_names}
    if standins.installed():
        known.add("torch")  # what of it is real is part of the toolchain
    return sorted({name for name in imported if name.partition(".")[0] not in known})


# Signature, constants, attributes, options


def _specialization(
    request: CompileRequest, functions: list[Any]
) -> tuple[dict[str, str], dict[tuple[int, ...], Any], dict[tuple[int, ...], list[list[Any]]]]:
    function = functions[0]
    names: list[str] = list(function.arg_names)
    constants = {_path(key, names): _constant(value, functions) for key, value in request.constants.items()}
    attributes = {_path(key, names): [list(fact) for fact in facts] for key, facts in request.attributes.items()}
    if isinstance(request.signature, str):
        types_by_name, literals, hints = _ahead_of_time(request.signature, names)
        constants, attributes = {**literals, **constants}, {**hints, **attributes}
    else:
        types_by_name = dict(request.signature)
    for name in types_by_name:
        if name not in names:
            raise _signature_failure(f"the signature types {name!r}, no parameter of {_parameters(request, names)}")
    for index, parameter in enumerate(function.params):
        given = (index,) in constants or parameter.name in types_by_name
        if not given and parameter.default is not inspect.Parameter.empty:
            constants[(index,)] = parameter.default
    signature = {}
    for index, name in enumerate(names):
        if (index,) in constants:
            signature[name] = "constexpr"
        elif name in types_by_name:
            signature[name] = _type(types_by_name[name], name)
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
            raise _signature_failure(f"position {path[0]} is no parameter; there are {len(names)}: {', '.join(names)}")
        return path
    if key not in names:
        raise _signature_failure(f"{key!r} is no parameter; the parameters are {', '.join(names)}")
    return (names.index(key),)


def _ahead_of_time(
    text: str, names: list[str]
) -> tuple[dict[str, str], dict[tuple[int, ...], Any], dict[tuple[int, ...], list[list[Any]]]]:
    """Read `"*fp32:16, i32, 1024"` as `triton.tools.compile` does."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != len(names):
        raise _signature_failure(
            f"the signature has {len(parts)} entries and the kernel {len(names)} parameters: {', '.join(names)}"
        )
    types_by_name: dict[str, str] = {}
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


def _constant(value: Any, functions: list[Any]) -> Any:
    if isinstance(value, list):
        return tuple(_constant(member, functions) for member in value)
    if isinstance(value, Mapping):
        if "function" in value:
            return functions[value["function"]]
        language = importlib.import_module("triton.language")
        return language.dtype(value["dtype"])
    return value


def _type(name: str, parameter: str) -> str:
    """The type as Triton writes it, once it is one that Triton knows."""
    canonical = importlib.import_module("triton._utils").type_canonicalisation_dict
    match = re.fullmatch(r"(\*k?)?(\w+)", name)
    if match is None:
        if name.startswith("tensordesc") or name == "nvTmaDesc":
            return name
    elif match[2] in canonical:
        return (match[1] or "") + str(canonical[match[2]])
    raise _signature_failure(
        f"{name!r} of parameter {parameter!r} is no type that Triton knows; types are *fp32, *bf16, i32, i64, u1, …"
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


def _gpu_target(text: str) -> Any:
    target = Target.parse(text)
    arch = int(target.arch) if target.backend == "cuda" else target.arch
    return importlib.import_module("triton.backends.compiler").GPUTarget(target.backend, arch, target.warp_size)


# Errors


def _source_failure(summary: str) -> Refused:
    return Refused(Failure("source", summary, stage="source"))


def _signature_failure(summary: str) -> Refused:
    return Refused(Failure("source", summary, stage="signature"))


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if type(error).__name__ == "CompilationError" and lines else (lines[0] if lines else "no message")


def _user_traceback(error: Exception) -> str:
    """The traceback without headstart's own frames."""
    frames = traceback.TracebackException.from_exception(error)
    here = str(Path(__file__).parent)
    current: traceback.TracebackException | None = frames
    while current is not None:
        current.stack = traceback.StackSummary.from_list([f for f in current.stack if not f.filename.startswith(here)])
        current = current.__cause__ or current.__context__
    return "".join(frames.format())
