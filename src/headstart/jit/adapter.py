"""The adapter: compiles that `@triton.jit` asks for go to workers, and come back as entries of Triton's own cache.

    your thread                                            connection            worker
    kernel[grid](…): a new specialization
      JITFunction._do_compile: hooks of others, ASTSource
      compile, in place of triton.compile
        in Triton's cache? ──yes──▶ triton.compile
        request ───────────────────────────────────────────▶ submit ────────────▶ triton.compile
        waits ◀────────────────────────────────────────────────────────── entry ◀─┘
        writes it through the program's cache manager, tells listeners, makes the CompiledKernel

Guarantees:

* A kernel that was compiled before is launched without any of this.
* What is launched while prefetching (see `Autotuning`) is only kicked off, and Triton goes no further.
* Where a kernel cannot be had from a worker, Triton compiles it here, with one warning; with `HEADSTART=require` that
  is an error.
* What a worker could not compile Triton compiles here once, whatever the reason: so the program sees the error that it
  would see without headstart. If it compiles here, the worker was wrong: the program gets what was made here.
* A failure of our own is a line in the log, and the kernel is compiled here.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import shutil
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from headstart import known_failure, machine
from headstart.async_compile import AsyncCompile
from headstart.captured import CapturedSource, Unbound
from headstart.client import Client
from headstart.environment import fingerprint, step_aside_reason
from headstart.errors import (
    CompileError,
    CompileOutOfMemory,
    CompilerCrashed,
    CompileTimeout,
    HeadstartError,
    ServiceError,
    UsageError,
)
from headstart.future import LambdaFuture
from headstart.imports import when_imported
from headstart.jit import compat, relay
from headstart.jit.autotune import Autotuning
from headstart.jit.capture import capture_call
from headstart.jit.integrity import Integrity
from headstart.jit.patches import Compiles
from headstart.kernel import CompiledKernel
from headstart.manifest import Tuning
from headstart.policy import Policy
from headstart.recording import Recorder
from headstart.request import CompileRequest
from headstart.target import Target
from headstart.variables import Mode, mode

if TYPE_CHECKING:
    from headstart import wire

_BUNDLE_PATIENCE = 120.0  # seconds at the end for kernels that only the bundle needs
# Options that name files: what these hold is in no key.
_FILES = frozenset({"extern_libs", "ir_override"})
# What a compile in this process would not survive, or that has no end here either.
_NOT_HERE = (CompilerCrashed, CompileTimeout, CompileOutOfMemory)

_log = logging.getLogger("headstart")


class Ask:
    """One compile that the program asked for, or will.

    Attributes:
        what: as Triton told it; `environment`: variables that change the outcome, as they were then.
        request: the same for a worker, once somebody needs it; `digest` is its.
        future: of the worker's answer; None: Triton's own cache had it.
        group: files that were written where Triton's cache could not be.
    """

    def __init__(self, what: compat.Compile, environment: dict[str, str]) -> None:
        self.what = what
        self.environment = environment
        self.request: CompileRequest | None = None
        self.digest = ""
        self.future: LambdaFuture[CompiledKernel] | None = None
        self.group: dict[str, str] | None = None
        self.told = False  # what its compile printed
        self.lock = threading.Lock()


class Adapter:
    """One per process.

    Args:
        client: asks the service; whoever made it closes it.
        recorder: told what the program asks for; whoever made it closes it.
        tunings: choices of autotuners to be reused, by `Tuning.digest()`.

    Attributes:
        compiler: `compiler.submit(request)` kicks a compile off before the program asks for it.
        counts: for tests and people. `asked`: compiles that the program asked for, of which `from_cache`: found in
            Triton's own cache, `late`: kicked off only then, and not in a bundle, `in_process`: left to Triton,
            `failed`: failed here as in a worker, `refuted`: compiled here after all, so that the worker was wrong;
            `kicked_off`: requests made by this adapter; `autotuned`: sweeps; `reused`: sweeps that were spared.

    Raises:
        UsageError: an argument or one of headstart's environment variables is not valid.
    """

    def __init__(
        self,
        client: Client,
        *,
        recorder: Recorder | None = None,
        tunings: Mapping[str, Tuning] | None = None,
    ) -> None:
        self.recorder = recorder
        self._for_bundle: list[LambdaFuture[CompiledKernel]] | None = None if client.bundle is None else []
        # Limits are checked, and output is printed, where Triton would: see `relay`.
        self.compiler = AsyncCompile(client=client, policy=Policy(answered=self._finished), start=False)
        self.counts = dict.fromkeys(
            (
                *("asked", "kicked_off", "from_cache", "late", "in_process", "failed", "refuted"),
                *("autotuned", "reused"),
            ),
            0,
        )
        self.autotuning = Autotuning(self, tunings or {})
        self._patch = Compiles(self._compile, self._is_prefetching, self._prefetch)
        self._integrity = Integrity()
        self._asks: dict[str, Ask] = {}  # by Triton's hash
        self._durations: dict[str, float] = {}  # of requests, by digest; only while recording
        self._recorded: set[str] = set()  # digests
        self._said: set[str] = set()
        self._immobile: dict[int, tuple[Any, str]] = {}  # functions by `id`, which no worker can compile, and why
        self._broken: dict[int, tuple[Any, Exception]] = {}  # by `id`, those of which hashing raised while prefetching
        self._forget_import: Callable[[], None] = lambda: None
        self._here = threading.local()  # prefetched: asks made in this thread while prefetching
        self._reset()
        _adapters.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        if self._for_bundle is not None:
            self._for_bundle = []
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
        self._patch.install()
        self.autotuning.install()
        # A program that has no GPU imports Triton because torch does; if it asks for a kernel, everything starts then.
        if machine.has_gpu():
            self.start_early()

    def start_early(self) -> None:
        """Have everything ready before the first kernel."""
        self.compiler.start()
        # Whoever asks Triton's cache first waits for this, in a program without headstart too.
        self._key_thread = threading.Thread(target=compat.compute_key, name="headstart-jit", daemon=True)
        with contextlib.suppress(RuntimeError):  # no more threads: then it is computed when it is needed
            self._key_thread.start()

    def close(self) -> None:
        """Put everything back, and wait for what only the bundle needs. What was compiled goes on working."""
        self._forget_import()
        self._patch.remove()
        self.autotuning.remove()
        self._complete_bundle()
        with self._lock:
            folder, self._folder = self._folder, None
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        if self.counts["in_process"]:
            _log.warning("%d kernels were compiled in this process", self.counts["in_process"])

    @contextmanager
    def prefetching(self) -> Iterator[list[Ask]]:
        """What this thread launches in the context is kicked off, and goes no further. Yields what was asked for."""
        asks: list[Ask] = []
        outer, self._here.prefetched = getattr(self._here, "prefetched", None), asks
        try:
            yield asks
        finally:
            self._here.prefetched = outer

    def had(self) -> set[str]:
        """Digests of what the program has asked for and Triton's own cache had; known only while recording."""
        return {ask.digest for ask in list(self._asks.values()) if ask.future is None}

    def ask_of(self, kernel: Any) -> Ask | None:
        """The ask that one of Triton's compiled kernels comes from."""
        return None if kernel is None else self._asks.get(kernel.hash)

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

    def _is_prefetching(self) -> bool:
        return getattr(self._here, "prefetched", None) is not None

    def _prefetch(self, source: Any, target: Any, options: dict[str, Any]) -> None:
        """Kick a compile off. Never raises."""
        try:
            if not compat.is_jit_source(source) or self._why_not(source.fn, fingerprint()) is not None:
                return
            what = compat.compile_of(source, target, options)
            ask = self._asks.get(what.hash) or self._ask(what, self._find(what), launched=False)
        except Exception as error:  # noqa: BLE001 - the launch will fail in the same way, where it counts
            _log.debug("a configuration is not kicked off early", exc_info=True)
            if compat.has_broken_hash(source.fn):
                self._broken[id(source.fn)] = source.fn, error
            return
        if self._is_prefetching():
            self._here.prefetched.append(ask)

    def _compile(
        self, real: Callable[..., Any], source: Any, target: Any, options: dict[str, Any] | None, more: dict[str, Any]
    ) -> Any:
        """In place of `triton.compile`."""
        in_process = functools.partial(real, source, target=target, options=options, **more)
        if not self._may_be_compiled_elsewhere(source, more):
            return in_process()
        if (broken := self._broken.pop(id(source.fn), None)) is not None:
            raise broken[1]
        # What Triton raises here is the program's error.
        what = compat.compile_of(source, target, options, more.get("_env_vars"))
        try:
            ask, found = self._look_up(what)
        except ServiceError as error:
            if mode() is Mode.REQUIRE:
                raise
            self._without_service(error)
            return in_process()
        except UsageError as error:
            self._in_process(source.fn, str(error))
            return in_process()
        except Exception:  # noqa: BLE001 - the program must not fail for our mistakes
            self._our_mistake()
            return in_process()
        if found:
            return in_process()  # a hit, which is Triton's own matter
        failure: Any = self._fetch(ask)
        if compat.is_tritons(failure):
            raise failure
        if isinstance(failure, relay.Fetched):
            kernel = compat.compiled_kernel(what, failure.group)
            compat.tell_listener(what, kernel, failure.group, failure.times)
            return kernel
        return self._compile_here(ask, failure, in_process)

    def _may_be_compiled_elsewhere(self, source: Any, more: dict[str, Any]) -> bool:
        """Never raises, but with `HEADSTART=require`."""
        try:
            if more.keys() - {"_env_vars"}:
                return False
            if not compat.is_jit_source(source):
                self._in_process(source.fn, "a kernel written in Gluon, or in a language of somebody else's")
                return False
            reason = self._why_not(source.fn, fingerprint())
            if reason is not None:
                self.count("in_process")
            return reason is None
        except UsageError as error:
            self._stay_away(str(error))
            self.count("in_process")
        except ServiceError:
            if mode() is Mode.REQUIRE:
                raise
            self.count("in_process")
        except Exception:  # noqa: BLE001 - as above
            self._our_mistake()
        return False

    def _why_not(self, function: Any, environment: dict[str, str]) -> str | None:
        """Why Triton must compile here just now, whatever the kernel.

        Raises:
            ServiceError: `HEADSTART=require`.
        """
        reason = step_aside_reason(environment)
        if reason is None and (changed := self._integrity.changed()) is not None:
            reason = f"{changed} is not Triton's own any more"
        if reason is not None:
            self._stay_away(reason)
        return reason

    def _look_up(self, what: compat.Compile) -> tuple[Ask, bool]:
        """The ask of a launch, and whether Triton's own cache has what it asks for."""
        self.count("asked")
        found = self._find(what)
        known = self._asks.get(what.hash)
        if known is None:
            self.count("from_cache", found)
            known = self._ask(what, found, launched=True)
            if found:
                self._bundle_too(known)
        elif not found and known.future is None:
            self._submit(known)  # Triton's cache had it, and has it no more
        self.autotuning.launched(what.function, known)
        return known, found

    def _bundle_too(self, ask: Ask) -> None:
        """Have what Triton's own cache had in the bundle that was asked for as well."""
        if self._for_bundle is None:
            return
        try:
            request = self._request(ask)
            future = self.compiler.submit(request, background=True, digest=ask.digest)
        except HeadstartError as error:
            _log.debug("%s is not bundled: %s", ask.what.function, error)
            return
        if not future.done():
            with self._lock:
                self._for_bundle.append(future)

    def _complete_bundle(self) -> None:
        """Wait for what is to be in the bundle and was not needed until now."""
        deadline = time.monotonic() + _BUNDLE_PATIENCE
        left = list(self._for_bundle or ())
        for future in left:
            future.want()
        while left and time.monotonic() < deadline:
            try:
                left[-1].exception(max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                break
            left.pop()
        if left:
            _log.warning("the bundle lacks %d kernels, which were not compiled in time", len(left))

    # Inside

    def _wait_for_key(self) -> None:
        # Computing it twice at once would take longer.
        thread = self._key_thread
        if thread is not None and thread.ident is not None:
            thread.join()
            self._key_thread = None

    def _ask(self, what: compat.Compile, found: bool, *, launched: bool) -> Ask:
        ask = Ask(what, fingerprint())
        if not found:
            future = self._submit(ask)
            self.count("late", launched and not future.done())
        ask = self._asks.setdefault(what.hash, ask)
        self.note(ask)
        return ask

    def _find(self, what: compat.Compile) -> bool:
        """Whether Triton's cache has all of it."""
        self._wait_for_key()
        try:
            return bool((compat.cache_manager(what.hash).get_group(what.file) or {}).get(what.file))
        except (OSError, ValueError):  # it cannot be made; Triton 3.6 and a damaged group
            return False

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
            if (immobile := self._immobile.get(id(what.function))) is not None:
                raise UsageError(immobile[1])
            if files := _FILES & what.options.keys():
                raise UsageError(f"its option {', '.join(sorted(files))} names a file")
            signature = what.source.signature
            source, constants = capture_call(what.function, what.source.constants, signature, lenient=True)
            request = CompileRequest.make(
                source.kernel.name,
                source,
                signature=signature,
                constants=constants,
                attrs={path: facts for path, facts in what.source.attrs.items() if facts},
                options=what.options,
                target=str(Target.parse(what.target)),
                environment=ask.environment,
            )
            ask.digest = request.digest()
            ask.request = request
        return ask.request

    def _fetch(self, ask: Ask) -> relay.Fetched | Exception:
        """Wait for the worker, and make its kernel an entry of Triton's cache. What went wrong is returned.

        Raises:
            CompileError: a crash, or a limit of time or memory: Triton is not to try the same here.
        """
        try:
            assert ask.future is not None
            kernel = ask.future.result()
            with ask.lock:  # several threads may launch it at once
                log, ask.told = (None, True) if ask.told else (kernel.log, True)
            # Before it is an entry: where the program makes a warning an error, Triton keeps none.
            relay.show(log)
            with ask.lock:
                group = ask.group or self._write(ask, kernel)
            return relay.Fetched(group, None if kernel.log is None else dict(kernel.log.times))
        except _NOT_HERE:
            raise
        except CompileError as error:
            tritons = compat.as_tritons(relay.with_files(error))
            if tritons is None:
                return error
            relay.show(error.log)
            self._note_failure(ask, error)
            tritons.__context__ = error
            return tritons
        except Exception as error:  # noqa: BLE001 - the kernel can be had from Triton
            return error

    def _compile_here(self, ask: Ask, failure: Exception, in_process: Callable[[], Any]) -> Any:
        """Triton compiles once more what could not be had from a worker: what it raises is what the program is to see.

        Raises:
            ServiceError: `HEADSTART=require`.
        """
        if isinstance(failure, ServiceError):
            self._without_service(failure)
            return in_process()
        if not isinstance(failure, CompileError):
            if not isinstance(failure, (HeadstartError, OSError, Warning)):
                self._our_mistake(failure)
            self._in_process(ask.what.function, str(failure))
            return in_process()
        needed = failure.summary if failure.needs_program else _unbound_in(failure, ask)
        if needed:
            self._immobile[id(ask.what.function)] = ask.what.function, needed
            self._in_process(ask.what.function, needed)
            return in_process()
        try:
            kernel = in_process()
        except BaseException:
            self.count("failed")
            self._note_failure(ask, failure)
            raise
        self.count("refuted")
        self._in_process(ask.what.function, f"a worker failed, and this process did not: {failure.summary}")
        return kernel

    def _note_failure(self, ask: Ask, error: CompileError) -> None:
        """It fails here as in a worker: record and bundle say so. Never raises."""
        try:
            request = self._request(ask)
            self.compiler.note_failure(request, ask.digest, error)
            if self.recorder is not None and known_failure.is_known(error):
                self.recorder.note(request, ask.digest, failed=error.raised)
        except Exception:  # noqa: BLE001 - what the program sees is its kernel's failure
            _log.debug("a failure is not noted", exc_info=True)

    def _write(self, ask: Ask, kernel: CompiledKernel) -> dict[str, str]:
        """Make a kernel an entry of Triton's cache, or, where that cannot be written, a folder of our own."""
        what = ask.what
        metadata = json.dumps({**kernel.entry.metadata, "hash": what.hash})
        contents = {f"{what.stem}.{kind}": data for kind, data in kernel.asm.items()} | {what.file: metadata}
        try:
            manager = compat.cache_manager(what.hash)
            group = {name: manager.put(data, name, binary=isinstance(data, bytes)) for name, data in contents.items()}
            manager.put_group(what.file, group)
        except OSError as error:
            self._say(f"Triton's cache cannot be written: {error}")
            group = ask.group = self._write_aside(ask, contents)
        return group

    def _write_aside(self, ask: Ask, contents: dict[str, Any]) -> dict[str, str]:
        with self._lock:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="headstart-"))
                weakref.finalize(self, _remove, self._folder, os.getpid())
            folder = self._folder / ask.what.hash
        folder.mkdir(exist_ok=True)
        for name, data in contents.items():
            (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
        return {name: str(folder / name) for name in contents}

    def _finished(self, request: CompileRequest, result: wire.Result) -> None:
        """In the connection's thread."""
        seconds = result.finished - result.started
        if self.recorder is not None and seconds > 0.0:
            digest = request.digest()
            self._durations[digest] = seconds
            if digest in self._recorded:
                self.recorder.note(request, digest, duration_s=seconds)

    # What a person is told

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

    def _our_mistake(self, error: Exception | None = None) -> None:
        self.count("in_process")
        _log.error("headstart's adapter for @triton.jit failed; this is a bug", exc_info=error or True)

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


def _unbound_in(error: CompileError, ask: Ask) -> str:
    """What the kernel turned out to need and could not be given, if that is why it failed in a worker."""
    source = None if ask.request is None else ask.request.source
    if isinstance(source, CapturedSource):
        for function in source.functions:
            for name, binding in function.names.items():
                if isinstance(binding, Unbound) and f"{name} is not defined" in error.message + error.detail:
                    return f"it uses {name}, {binding.why}"
    return ""


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
