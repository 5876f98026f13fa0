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

import contextlib
import dataclasses
import errno
import importlib
import json
import os
import re
import subprocess
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from headstart.model.captured import CapturedSource
from headstart.model.environment import TOOL_VARIABLES
from headstart.model.request import CompileRequest
from headstart.model.standin_driver import TargetDriver, gpu_target
from headstart.model.target import Target
from headstart.system.deaths import describe_status
from headstart.wire import Failure
from headstart.worker.arguments import _options, _specialization, _Values
from headstart.worker.cutoff import Cut
from headstart.worker.defining import _defined
from headstart.worker.rebuilding import NamedTuples, Rebuilt, rebuilt
from headstart.worker.refusing import Refused

KNOWN_VERSIONS = ("3.6", "3.7", "3.8", "3.9")
_NO_PROCESS = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE})

Watcher = Callable[[str, Mapping[str, bytes], Mapping[str, Any]], None]  # stage, artifacts so far, metadata


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
        return self._environment == os.environ and all(vars(group) == values for group, values in self._pristine)

    def _failure(self, error: Exception, unbound: Mapping[str, str]) -> Failure:
        tool = _dead_tool(error)
        kind, summary = "compile", f"{type(error).__name__}: {_summary(error)}"
        if tool is not None:
            kind, summary = "crash", tool
        elif self._stage in ("source", "signature", "options") or type(error).__module__ == "triton.compiler.errors":
            kind = "source"
        advice = ""
        missing = next(
            (name for name in unbound if f"'{name}'" in str(error) or f"{name} is not defined" in str(error)),
            "",
        )
        if missing:
            advice = f"{missing} means something in the program that no worker can be given: {unbound[missing]}"
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


# Signature, constants, attributes, options


# Errors


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
        current.stack = traceback.StackSummary.from_list([f for f in current.stack if not f.filename.startswith(here)])
        current = current.__cause__ or current.__context__
    return "".join(frames.format())
