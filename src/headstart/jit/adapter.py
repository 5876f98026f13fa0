"""The adapter: compiles that `@triton.jit` asks for go to workers, and come back as hits of Triton's own cache.

    your thread                                            connection            worker
    kernel[grid](…): a new specialization
      jit_cache_hook ── in Triton's cache? else request ──▶ submit ────────────▶ triton.compile
      triton.compile                                                               │
        cache manager: get_group ── waits ◀─────────────────────────────── entry ◀─┘
          writes it through the program's own manager
        a hit: no stage of the pipeline is entered

The two are joined by Triton's hash of the compile, since they may run in different threads. Guarantees:

* A kernel that was compiled before is launched without any of this.
* What is asked for while foreseeing (see `Autotuning`) is only kicked off: the hook returns True, and Triton goes no
  further. For everything else it returns what the earlier hook returned.
* Where a kernel cannot be had from a worker, Triton compiles it here, with one warning; with `HEADSTART=require` that
  is an error.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import shutil
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from headstart.async_compile import AsyncCompile
from headstart.environment import fingerprint, step_aside_reason
from headstart.errors import CompileError, HeadstartError, ServiceError, UsageError
from headstart.future import LambdaFuture
from headstart.imports import when_imported
from headstart.jit import compat
from headstart.jit.autotune import Autotuning
from headstart.jit.capture import capture_call
from headstart.kernel import CompiledKernel
from headstart.manifest import Tuning
from headstart.recording import Recorder
from headstart.request import CompileRequest
from headstart.settings import Mode, mode
from headstart.target import Target

# Where a worker fails before Triton looks at the kernel's text, it could not be given what this process has.
_BEFORE_TRITON = frozenset({"source", "signature", "options"})
# Options that name files: what these hold is in no key.
_FILES = frozenset({"extern_libs", "ir_override"})

_log = logging.getLogger("headstart")


class _Compiler(AsyncCompile):
    """AsyncCompile for a program's kernels.

    Args:
        finished: told each request that a worker or the store has answered, and the seconds that its compile took.
    """

    _shares_bundle = True

    def __init__(self, finished: Callable[[CompileRequest, float], None], **arguments: Any) -> None:
        super().__init__(**arguments)
        self._finished = finished

    def _note(self, kickoff: Any, result: Any) -> None:
        # Too much shared memory is for Triton to refuse, when it loads the kernel: autotuners count on that.
        if kickoff.use_store:
            self.bundler.put(result.key, lambda: self._entry(kickoff.request, result))
        self._finished(kickoff.request, max(0.0, result.finished - result.started))


class Ask:
    """One compile that the program asked for, or will.

    Attributes:
        what: as Triton told it; `environment`: variables that change the outcome, as they were then.
        request: the same for a worker, once somebody needs it; `digest` is its.
        future: of the worker's answer; None: Triton's own cache had it.
    """

    def __init__(self, what: compat.Specialized, environment: dict[str, str]) -> None:
        self.what = what
        self.environment = environment
        self.file = f"{what.stem}.json"
        self.request: CompileRequest | None = None
        self.digest = ""
        self.future: LambdaFuture[CompiledKernel] | None = None
        self.found: dict[str, str] | None = None  # in Triton's cache, for whoever asks next
        self.written = False
        self.lock = threading.Lock()


class Adapter:
    """One per process.

    Args:
        recorder: told what the program asks for; whoever made it closes it.
        bundle, workers, cache_dir: as for `AsyncCompile`.
        tunings: choices of autotuners to be reused, by `Tuning.digest()`.

    Attributes:
        compiler: `compiler.submit(request)` kicks a compile off before the program asks for it.
        counts: for tests and people. `asked`: compiles that the program asked for, of which `from_cache`: found in
            Triton's own cache, `late`: kicked off only then, and not in a bundle, `in_process`: left to Triton;
            `kicked_off`: requests made by this adapter; `autotuned`: sweeps; `reused`: sweeps that were spared.

    Raises:
        UsageError: an argument or one of headstart's environment variables is not valid.
    """

    def __init__(
        self,
        *,
        recorder: Recorder | None = None,
        bundle: str | os.PathLike[str] | None = None,
        workers: int | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        tunings: Mapping[str, Tuning] | None = None,
    ) -> None:
        self.recorder = recorder
        self.compiler: AsyncCompile = _Compiler(
            self._finished, bundle=bundle, workers=workers, cache_dir=cache_dir, start=False
        )
        self.counts = dict.fromkeys(
            ("asked", "kicked_off", "from_cache", "late", "in_process", "autotuned", "reused"), 0
        )
        self.autotuning = Autotuning(self, tunings or {})
        self._hooks = compat.Hooks(self._before_compile, self._get_group)
        self._asks: dict[str, Ask] = {}  # by the key of Triton's cache manager
        self._durations: dict[str, float] = {}  # of requests, by digest; only while recording
        self._recorded: set[str] = set()  # digests
        self._said: set[str] = set()
        self._forget_import: Callable[[], None] = lambda: None
        self._here = threading.local()  # foreseen: asks made in this thread while foreseeing
        self._reset()
        _adapters.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._folder: Path | None = None
        self._key_thread: threading.Thread | None = None

    def install(self) -> None:
        """Act on Triton: now if it is imported, else when it is.

        Raises:
            ServiceError: headstart would have to step aside, and `HEADSTART=require`.
        """
        if mode() is not Mode.OFF:
            self._forget_import = when_imported("triton", self._install)

    def _install(self) -> None:
        reason = compat.unusable() or ("TRITON_INTERPRET" if step_aside_reason() == "TRITON_INTERPRET" else None)
        if reason is not None:
            self._stay_away(reason)
            return
        self._hooks.install()
        self.autotuning.install()
        self.compiler.start()
        # Whoever asks Triton's cache first waits for this, in a program without headstart too.
        self._key_thread = threading.Thread(target=compat.compute_key, name="headstart-jit", daemon=True)
        self._key_thread.start()

    def close(self) -> None:
        """Put everything back, write the bundle, and end all processes. What was compiled goes on working."""
        self._forget_import()
        self._hooks.remove()
        self.autotuning.remove()
        self.compiler.close()
        with self._lock:
            folder, self._folder = self._folder, None
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        if self.counts["in_process"]:
            _log.warning("%d kernels were compiled in this process", self.counts["in_process"])

    @contextmanager
    def foreseeing(self) -> Iterator[list[Ask]]:
        """What this thread launches in the context is kicked off, and goes no further. Yields what was asked for."""
        asks: list[Ask] = []
        outer, self._here.foreseen = getattr(self._here, "foreseen", None), asks
        try:
            yield asks
        finally:
            self._here.foreseen = outer

    def asked(self) -> set[str]:
        """Digests of what the program has asked for. What Triton's own cache had is among them only while recording."""
        return {ask.digest for ask in list(self._asks.values())}

    def ask_of(self, kernel: Any) -> Ask | None:
        """The ask that one of Triton's compiled kernels comes from."""
        return None if kernel is None else self._asks.get(compat.manager_key(kernel.hash))

    def note(self, ask: Ask, *, winner: bool = False) -> None:
        """Have an ask recorded, if anything is."""
        if self.recorder is None:
            return
        try:
            request = self._request(ask)
        except UsageError:
            return  # what cannot travel cannot be recorded; who launches it is told
        self._recorded.add(ask.digest)
        self.recorder.note(
            request,
            ask.digest,
            duration_s=self._durations.get(ask.digest, 0.0),
            asked_by=_asked_by(sys._getframe()),
            winner=winner,
        )

    # What Triton calls

    def _before_compile(self, earlier: Callable[..., Any] | None, told: dict[str, Any]) -> Any:
        """In place of `jit_cache_hook`. Returns whether Triton shall not compile."""
        foreseen: list[Ask] | None = getattr(self._here, "foreseen", None)
        answer = earlier(**told) if earlier is not None and foreseen is None else None
        if answer or told["already_compiled"]:
            return answer
        function = told["fn"].jit_function
        ask = None
        try:
            environment = fingerprint()
            if (reason := step_aside_reason(environment)) is not None:
                self._stay_away(reason)
                self.count("in_process", foreseen is None)
            else:
                self._hooks.wrap_manager()
                self._wait_for_key()
                what = compat.specialized(function, told["compile"], environment)
                ask = self._ask(what, environment, foreseen is None)
        except UsageError as error:
            if foreseen is None:
                self._in_process(function, str(error))
        except ServiceError as error:
            if mode() is Mode.REQUIRE:
                raise
            self._without_service(error)
        except Exception:  # noqa: BLE001 - the program must not fail for our mistakes
            _log.exception("headstart's adapter for @triton.jit failed; this is a bug")
            self.count("in_process", foreseen is None)
        if foreseen is not None:
            if ask is not None:
                foreseen.append(ask)
            return True
        self._here.expected = "" if ask is None else ask.file
        if ask is not None:
            self.autotuning.launched(function, ask)
        return answer

    def _get_group(self, key: str, filename: str, manager: Any) -> dict[str, str] | None:
        """In place of a cache manager's `get_group`: None makes Triton compile."""
        ask = self._asks.get(key)
        expected, self._here.expected = getattr(self._here, "expected", ""), ""
        if ask is None or filename != ask.file:
            if filename == expected:
                self.count("in_process")
                self._say(f"Triton looks for {filename} elsewhere than headstart foresaw, and compiles it here")
            group: dict[str, str] | None = manager.get_group(filename)
            return group
        found, ask.found = ask.found, None
        if found is not None:
            return found
        try:
            with ask.lock:  # several threads may launch it at once
                if ask.written or ask.future is None:
                    found = _whole(manager.get_group(filename), filename)
                return found or self._answer(ask, manager)
        except CompileError as error:
            if error.stage not in _BEFORE_TRITON:
                raise (compat.as_tritons(error) or error) from error
            self._in_process(ask.what.function, str(error))
        except ServiceError as error:
            self._without_service(error)
        except (HeadstartError, OSError) as error:
            self._in_process(ask.what.function, str(error))
        return None

    # Inside

    def _wait_for_key(self) -> None:
        # Computing it twice at once would take longer.
        thread = self._key_thread
        if thread is not None:
            thread.join()
            self._key_thread = None

    def _ask(self, what: compat.Specialized, environment: dict[str, str], launched: bool) -> Ask:
        self.count("asked", launched)
        known = self._asks.get(what.key)
        if known is not None:
            return known
        ask = Ask(what, environment)
        found = self._find(what.key, ask.file)
        if found is None:
            future = self._submit(ask)
            self.count("late", launched and not future.done())
        elif launched:  # until one that was foreseen is launched it may be gone
            ask.found = found
        self.count("from_cache", launched and found is not None)
        ask = self._asks.setdefault(what.key, ask)
        self.note(ask)
        return ask

    def _find(self, key: str, file: str) -> dict[str, str] | None:
        try:
            return _whole(self._hooks.manager(key).get_group(file), file)
        except (OSError, ValueError):  # Triton 3.6 and a damaged group
            return None

    def _submit(self, ask: Ask) -> LambdaFuture[CompiledKernel]:
        request = self._request(ask)
        known = self.compiler.kernels.get(ask.digest) is not None
        ask.future = future = self.compiler.submit(request, digest=ask.digest)
        self.count("kicked_off", not known)
        return future

    def _request(self, ask: Ask) -> CompileRequest:
        """The ask for a worker.

        Raises:
            UsageError: it cannot travel.
        """
        if ask.request is None:
            what = ask.what
            if files := _FILES & what.options.keys():
                raise UsageError(f"its option {', '.join(sorted(files))} names a file")
            source, constants = capture_call(what.function, what.constants, what.signature)
            request = CompileRequest.make(
                source.kernel.name,
                source,
                signature=what.signature,
                constants=constants,
                attrs={path: facts for path, facts in what.attributes.items() if facts},
                options=what.options,
                target=str(Target.parse(what.target)),
                environment=ask.environment,
            )
            ask.digest = request.digest()
            ask.request = request
        return ask.request

    def _answer(self, ask: Ask, manager: Any) -> dict[str, str]:
        """Wait for the worker, and make its kernel an entry of Triton's cache.

        Raises:
            HeadstartError: there is no kernel.
            OSError: it can be written nowhere.
        """
        future = ask.future or self._submit(ask)  # Triton's cache had it, and has it no more
        kernel = future.result()
        metadata = json.dumps({**kernel.entry.metadata, "hash": ask.what.hash})
        contents = {f"{ask.what.stem}.{kind}": data for kind, data in kernel.asm.items()} | {ask.file: metadata}
        try:
            group = {name: manager.put(data, name, binary=isinstance(data, bytes)) for name, data in contents.items()}
            manager.put_group(ask.file, group)
        except OSError as error:
            self._say(f"Triton's cache cannot be written: {error}")
            group = self._write_aside(ask, contents)
        else:
            ask.written = True
        return group

    def _write_aside(self, ask: Ask, contents: dict[str, Any]) -> dict[str, str]:
        with self._lock:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="headstart-"))
                weakref.finalize(self, _remove, self._folder, os.getpid())
            folder = self._folder / ask.what.key
        folder.mkdir(exist_ok=True)
        for name, data in contents.items():
            (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
        return {name: str(folder / name) for name in contents}

    def _finished(self, request: CompileRequest, seconds: float) -> None:
        """In the connection's thread."""
        if self.recorder is not None and seconds > 0.0:
            digest = request.digest()
            self._durations[digest] = seconds
            if digest in self._recorded:
                self.recorder.note(request, digest, duration_s=seconds)

    def _in_process(self, function: Any, reason: str) -> None:
        """Triton compiles one kernel here.

        Raises:
            ServiceError: `HEADSTART=require`.
        """
        name = f"{function.__module__}.{function.__qualname__}"
        if mode() is Mode.REQUIRE:
            raise ServiceError(f"{name} would have to be compiled in this process: {reason}")
        self.count("in_process")
        if name not in self._said:
            self._said.add(name)
            _log.warning("%s is compiled in this process: %s", name, reason)

    def _without_service(self, error: ServiceError) -> None:
        if mode() is Mode.REQUIRE:
            raise error
        self.count("in_process")
        self._say(f"kernels are compiled in this process: {error}")

    def _stay_away(self, reason: str) -> None:
        if mode() is Mode.REQUIRE:
            raise ServiceError(f"headstart would have to step aside: {reason}")
        self._say(f"headstart leaves Triton's kernels alone: {reason}")

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            _log.warning("%s", text)

    def count(self, what: str, whether: bool = True) -> None:
        """One more of `counts`."""
        if whether:
            with self._lock:
                self.counts[what] += 1

    def _after_fork(self) -> None:
        self._reset()
        for ask in self._asks.values():
            ask.lock = threading.Lock()


def _whole(group: dict[str, str] | None, file: str) -> dict[str, str] | None:
    return group if group and file in group else None


@functools.lru_cache(maxsize=1024)
def _is_ours(module: str) -> bool:
    return compat.is_triton(module) or module == "headstart" or module.startswith("headstart.")


def _asked_by(frame: FrameType | None) -> str:
    """The first frame that is neither Triton's nor headstart's, `"file:line"`."""
    while frame is not None:
        module = frame.f_globals.get("__name__")
        # Triton makes a function per kernel, and contextlib calls ours.
        if not (isinstance(module, str) and (_is_ours(module) or module == "contextlib")):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # a fork has the same finalizer, and not the same folder
        shutil.rmtree(folder, ignore_errors=True)


_adapters: weakref.WeakSet[Adapter] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for adapter in list(_adapters):
        adapter._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
