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

import functools
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from headstart.adapters.fallback import Fallback
from headstart.adapters.recording import Recorder
from headstart.adapters.triton import compat, relay
from headstart.adapters.triton.asks import PendingCompile, asked_by
from headstart.adapters.triton.autotune import Autotuning
from headstart.adapters.triton.durations import Durations
from headstart.adapters.triton.entries import Entries
from headstart.adapters.triton.for_bundle import ForBundle
from headstart.adapters.triton.integrity import Integrity
from headstart.adapters.triton.launchers import Launchers
from headstart.adapters.triton.patches import Compiles
from headstart.artifacts import known_failure
from headstart.artifacts.specialization import Tuning
from headstart.client.async_compile import AsyncCompile
from headstart.client.client import Client
from headstart.client.future import LambdaFuture
from headstart.client.kernel import CompiledKernel
from headstart.client.policy import Policy
from headstart.client.use import BundleUse
from headstart.errors import (
    CompileError,
    CompileOutOfMemory,
    CompilerCrashed,
    CompileTimeout,
    HeadstartError,
    ServiceError,
    UsageError,
)
from headstart.model.environment import fingerprint, step_aside_reason
from headstart.model.request import CompileRequest
from headstart.system import machine
from headstart.system.forks import renew_in_forks
from headstart.system.imports import when_imported
from headstart.system.variables import Mode, mode

_COUNTS = ["asked", "kicked_off", "from_cache", "late", "in_process", "failed", "refuted", "autotuned", "reused"]
# What a compile in this process would not survive, or that has no end here either.
_NOT_HERE = (CompilerCrashed, CompileTimeout, CompileOutOfMemory)

_log = logging.getLogger("headstart")


class Adapter:
    """One per process.

    Args:
        client: asks the service; its maker closes it.
        recorder: told what the program asks for; its maker closes it.
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
        self._durations = Durations(lambda: self.recorder)
        # Limits are checked, and output is printed, where Triton would: see `relay`.
        self.compiler = AsyncCompile(client=client, policy=Policy(answered=self._durations.answered), start=False)
        self.counts = dict.fromkeys(_COUNTS, 0)
        self._fallback = Fallback("Triton's kernels", self.counts)
        self.count = self._fallback.count
        self._entries = Entries(self._fallback.say)
        self._for_bundle = ForBundle(self.compiler, client.bundle is not None)
        self.autotuning = Autotuning(self, tunings or {})
        self.launchers = Launchers(self.compiler)
        self._patch = Compiles(self._compile, self._is_prefetching, self._prefetch)
        self._integrity = Integrity()
        self._asks: dict[str, PendingCompile] = {}  # by Triton's hash
        self._immobile: dict[int, tuple[Any, str]] = {}  # functions by `id`, which no worker can compile, and why
        self._broken: dict[int, tuple[Any, Exception]] = {}  # by `id`, those of which hashing raised while prefetching
        self._forget_import: Callable[[], None] = lambda: None
        self._here = threading.local()  # prefetched: asks made in this thread while prefetching
        renew_in_forks(self)

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
            self._fallback.steps_aside(reason)
            return
        self._patch.install()
        self.launchers.install()
        self.autotuning.install()
        # A program that has no GPU imports Triton because torch does; if it asks for a kernel, everything starts then.
        if machine.has_gpu():
            self.start_early()

    def start_early(self) -> None:
        """Have everything ready before the first kernel."""
        self.compiler.start()
        self.launchers.foresee_utilities()
        self._entries.compute_key_early()

    def close(self) -> None:
        """Put everything back, and wait for what only the bundle needs. What was compiled goes on working."""
        self._forget_import()
        self._patch.remove()
        self.launchers.remove()
        self.autotuning.remove()
        self._for_bundle.complete()
        self._entries.close()
        self._fallback.report()

    @contextmanager
    def prefetching(self) -> Iterator[list[PendingCompile]]:
        """What this thread launches in the context is kicked off, and goes no further. Yields what was asked for."""
        asks: list[PendingCompile] = []
        outer, self._here.prefetched = getattr(self._here, "prefetched", None), asks
        try:
            yield asks
        finally:
            self._here.prefetched = outer

    def had(self) -> set[str]:
        """Digests of what the program has asked for and Triton's own cache had; known only while recording."""
        return {ask.digest for ask in list(self._asks.values()) if ask.future is None}

    def ask_of(self, kernel: Any) -> PendingCompile | None:
        """The ask that one of Triton's compiled kernels comes from."""
        return None if kernel is None else self._asks.get(kernel.hash)

    def note(self, ask: PendingCompile, *, winner: bool = False) -> None:
        """Have an ask recorded, if anything is."""
        if self.recorder is None:
            return
        try:
            request = self._request(ask)
        except UsageError:
            return  # what cannot travel cannot be recorded; who launches it is told
        duration = self._durations.noted(ask.digest)
        asked_from = asked_by(sys._getframe())
        self.recorder.note(request, ask.digest, duration_s=duration, asked_by=asked_from, winner=winner)

    # What Triton calls

    def _is_prefetching(self) -> bool:
        return getattr(self._here, "prefetched", None) is not None

    def _prefetch(self, source: Any, target: Any, options: dict[str, Any]) -> None:
        """Kick a compile off. Never raises."""
        try:
            if not compat.is_jit_source(source) or self._why_not(source.fn, fingerprint()) is not None:
                return
            what = compat.compile_of(source, target, options)
            ask = self._asks.get(what.hash) or self._ask(what, self._entries.has(what), launched=False)
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
            self._fallback.without_service(error)
            return in_process()
        except UsageError as error:
            self._in_process(source.fn, str(error))
            return in_process()
        except Exception:  # noqa: BLE001 - the program must not fail for our mistakes
            self._fallback.our_mistake()
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
            self.count("in_process", reason is not None)
            return reason is None
        except UsageError as error:
            self._fallback.steps_aside(str(error))
            self.count("in_process")
        except ServiceError:
            if mode() is Mode.REQUIRE:
                raise
            self.count("in_process")
        except Exception:  # noqa: BLE001 - as above
            self._fallback.our_mistake()
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
            self._fallback.steps_aside(reason)
        return reason

    def _look_up(self, what: compat.CompileCall) -> tuple[PendingCompile, bool]:
        """The ask of a launch, and whether Triton's own cache has what it asks for."""
        self.count("asked")
        found = self._entries.has(what)
        known = self._asks.get(what.hash)
        if known is None:
            self.count("from_cache", found)
            known = self._ask(what, found, launched=True)
            if found:
                self._for_bundle.add(known)
        elif not found and known.future is None:
            self._submit(known)  # Triton's cache had it, and has it no more
        self.autotuning.launched(what.function, known)
        return known, found

    def used(self, *, why: bool = True) -> BundleUse:
        """What this process took out of bundles, and what it did not and why."""
        return self.compiler.used(why=why) + self.launchers.use + self._fallback.use

    # Inside

    def _ask(self, what: compat.CompileCall, found: bool, *, launched: bool) -> PendingCompile:
        ask = PendingCompile(what, fingerprint())
        if not found:
            future = self._submit(ask)
            if not future.done():
                self.launchers.foresee(what)
            self.count("late", launched and not future.done())
        ask = self._asks.setdefault(what.hash, ask)
        self.note(ask)
        return ask

    def _submit(self, ask: PendingCompile) -> LambdaFuture[CompiledKernel]:
        request = self._request(ask)
        known = self.compiler.kernels.get(ask.digest) is not None
        ask.future = future = self.compiler.submit(request, digest=ask.digest)
        self.count("kicked_off", not known)
        return future

    def _request(self, ask: PendingCompile) -> CompileRequest:
        """Raises `UsageError`: it cannot travel."""
        if (immobile := self._immobile.get(id(ask.what.function))) is not None:
            raise UsageError(immobile[1])
        return ask.make_request()

    def _fetch(self, ask: PendingCompile) -> relay.Fetched | Exception:
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
                group = ask.group or self._entries.write(ask, kernel)
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

    def _compile_here(self, ask: PendingCompile, failure: Exception, in_process: Callable[[], Any]) -> Any:
        """Triton compiles once more what could not be had from a worker: what it raises is what the program is to see.

        Raises:
            ServiceError: `HEADSTART=require`.
        """
        if isinstance(failure, ServiceError):
            self._fallback.without_service(failure)
            return in_process()
        if not isinstance(failure, CompileError):
            if not isinstance(failure, (HeadstartError, OSError, Warning)):
                self._fallback.our_mistake(failure)
            self._in_process(ask.what.function, str(failure))
            return in_process()
        needed = failure.summary if failure.needs_program else ask.unbound_in(failure)
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

    def _note_failure(self, ask: PendingCompile, error: CompileError) -> None:
        """It fails here as in a worker: record and bundle say so. Never raises."""
        try:
            request = self._request(ask)
            self.compiler.note_failure(request, ask.digest, error)
            if self.recorder is not None and known_failure.is_known(error):
                self.recorder.note(request, ask.digest, failed=error.raised)
        except Exception:  # noqa: BLE001 - what the program sees is its kernel's failure
            _log.debug("a failure is not noted", exc_info=True)

    def _in_process(self, function: Any, reason: str) -> None:
        """Triton compiles one kernel here. Raises `ServiceError`: `HEADSTART=require`."""
        self._fallback.in_process(f"{function.__module__}.{function.__qualname__}", reason)

    def after_fork(self) -> None:
        """See `renew_in_forks`."""
        for part in (self._fallback, self._entries, self._for_bundle):
            part.after_fork()
        for ask in self._asks.values():
            ask.lock = threading.Lock()
