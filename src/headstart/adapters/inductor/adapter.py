"""The adapter: what Inductor's replaced names lead to.

    your threads                                              service
    Pool.submit ─▶ Source.begin ── SubmitSource ─────────────▶ recipe, compiles
    PoolFuture.result (waits) ◀── Source.done ◀── connection's thread ◀── SourceCompiled
    CachingAutotuner.precompile (stock) ─▶ compile: the job's result, in Triton's own form

From there on everything is Inductor's.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from headstart.adapters.fallback import Fallback
from headstart.adapters.inductor import compat, compat_artifacts, layout, toolchain
from headstart.adapters.inductor.describing import Describing
from headstart.adapters.inductor.graphs import Graphs
from headstart.adapters.inductor.integrity import Integrity as InductorIntegrity
from headstart.adapters.inductor.jobs import Jobs
from headstart.adapters.inductor.local import is_refused_by_assembler
from headstart.adapters.inductor.pool import Pool
from headstart.adapters.inductor.recipes import Recipes
from headstart.adapters.inductor.recorded import RecordedSource
from headstart.adapters.inductor.source import Source
from headstart.adapters.inductor.thread import AdapterThread
from headstart.adapters.recording import Recorder
from headstart.adapters.triton.integrity import Integrity
from headstart.artifacts.generated import GeneratedSource
from headstart.artifacts.specialization import Specialization
from headstart.client.async_compile import AsyncCompile
from headstart.client.client import Client
from headstart.client.kernel import CompiledKernel
from headstart.client.policy import Policy
from headstart.client.use import BundleUse
from headstart.describe import facts, plain
from headstart.describe.recipe import RecipeJob, as_loaded, job_key
from headstart.errors import CompileError, DamagedError, HeadstartError, ServiceError
from headstart.model.environment import fingerprint
from headstart.model.request import CompileRequest
from headstart.system import machine
from headstart.system.forks import renew_in_forks
from headstart.system.imports import when_imported
from headstart.system.settings import patience

_MOMENT = 1.0  # seconds that a job has until a worker begins it

_log = logging.getLogger("headstart")


class _Prefetching(threading.local):
    on = False  # what this thread asks `compile` for is kicked off and not waited for


class Adapter:
    """One per process.

    Args:
        client: asks the service; its maker closes it.
        recorder: writes down what is compiled.

    Attributes:
        counts: for tests and people: sources kicked off, jobs, jobs that were wanted before they were foreseen
            (`late`), kernels left to Inductor's own process (`in_process`).
    """

    def __init__(self, client: Client, recorder: Recorder | None = None) -> None:
        self.recorder = recorder
        # Its workers know what generated sources import of torch. A kernel that needs too much shared memory is
        # Inductor's to refuse: it then tries another configuration.
        policy = Policy(
            find=toolchain.toolchain,
            environment=toolchain.environment,
            answered=lambda request, result: self._jobs.answered(request, result),
            shows_output=True,
        )
        self.compiler = AsyncCompile(client=client, policy=policy, start=False)
        self._policy = policy
        self.recipes = Recipes(policy, self.compiler.cache_dir, self.compiler.bundler)
        self._graphs = Graphs(self.compiler.bundler, policy, self.compiler.cache_dir, toolchain.torch())
        self._graphs_use = BundleUse()
        self.counts = {"sources": 0, "jobs": 0, "late": 0, "in_process": 0}
        self._integrity = Integrity()
        self._inductor_integrity = InductorIntegrity()
        self._patience = patience()
        self._prefetching = _Prefetching()
        self._fallback = Fallback("torch.compile", self.counts)
        self.log_once = self._fallback.say
        self._replacement = compat.Replacement(self._choose_pool, self.forget_pool, self.compile)
        self._forget_imports: list[Callable[[], None]] = []
        self._reset()
        renew_in_forks(self)
        # Where there is no GPU, most programs compile for the CPU, which is none of our business.
        if machine.has_gpu():
            self._start_early()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._describing_lock = threading.Lock()
        self.describing = Describing(self.compiler.client, self._policy, compat.settings())
        self._describing = [self.describing]
        self._thread = AdapterThread()
        self.soon, self.later = self._thread.soon, self._thread.later
        self._sources: dict[Any, Source] = {}
        self._jobs = Jobs(self.compiler, self.counts, self.patience_left, self.heard, self._note_late)
        self.compile_job, self.expect_job = self._jobs.compile, self._jobs.expect
        self.made, self.queued, self.find_job = self._jobs.made, self._jobs.queued, self._jobs.find
        self._loaded_here: set[str] = set()  # stems of sources that were imported before the describer was there
        self._left_alone: set[str] = set()  # stems of sources that this process compiles itself
        self._started_early = False  # workers and describer, before anything was kicked off
        self._started: float | None = None  # when the workers were: early, or with the first kick-off
        self._heard = False
        self._pool: Pool | None = None

    def install(self) -> None:
        """Replace what is imported already; the rest when it is."""
        self._forget_imports = [
            when_imported(compat.ASYNC_COMPILE, self._replacement.replace_pool),
            when_imported(facts.HEURISTICS, self._replacement.replace_compile),
            when_imported(compat_artifacts.DYNAMO, self._graphs.load_profiles),
            when_imported(compat.COMPILE_FX, self._graphs.load),
        ]
        if self._graphs.is_expected:
            self.soon(self._graphs.read)  # while the program imports torch

    def close(self) -> None:
        """Put everything back."""
        for forget in self._forget_imports:
            forget()
        self._replacement.remove()
        try:
            self._graphs_use = self._graphs.save()
        except Exception:  # noqa: BLE001 - the bundle is written all the same, without them
            _log.exception("torch.compile's graphs are not put into the bundle; this is a bug")
        self._thread.close()
        self._fallback.report()

    def used(self, *, why: bool = True) -> BundleUse:
        """What this process took out of bundles, and what it did not and why; of graphs, once it is closed."""
        return self.compiler.used(why=why) + self._graphs_use + self._fallback.use

    # What Inductor calls

    def _choose_pool(self, stock: Callable[[], Any]) -> Any:
        reason = self._step_aside_reason() or self._unusable()
        if reason is not None:
            self._fallback.steps_aside(reason)
            return stock()
        if self._pool is None:
            settings = compat.settings()
            self._pool = Pool(self, stock, settings)
            self.describing_with(settings)
        return self._pool

    def describing_with(self, settings: dict[str, str]) -> Describing:
        """A describer with these settings: one that is there, or a new one, as a new pool of Inductor's would be."""
        with self._describing_lock:
            found = next((each for each in self._describing if each.settings == settings), None)
            if found is not None:
                return found
            found = self.describing = Describing(self.compiler.client, self._policy, settings)
            self._describing.append(found)
        if self._started_early:
            self.soon(self._start_describer, found)
        return found

    def forget_pool(self) -> None:
        """Inductor has forgotten its own: the next one has the variables of then."""
        self._pool = None

    def kick_off(
        self, name: str, text: str, environment: dict[str, str], config: dict[str, Any], settings: dict[str, str]
    ) -> Source:
        """The source's way begins, unless it has."""
        variables = toolchain.environment()  # now, in the program's thread: it may be another one in a moment
        text = as_loaded(name, text)
        key = (name, text, compat.caches_disabled(), *map(repr, (environment, config, variables, settings)))
        with self._lock:
            source = self._sources.get(key)
            if source is not None:
                return source
            source = self._sources[key] = Source(self, name, text, environment, config, variables, settings)
            self.counts["sources"] += 1
            self._workers_start()
        source.begin(is_bundled=self.recipes.are_bundled)
        return source

    def prefetch(self, recorded: GeneratedSource) -> bool:
        """Have a source of an earlier run compiled in the background.

        Returns:
            False: there is nothing to do, or it would be in vain.

        Raises:
            DamagedError: the record says too little.
            ServiceError: the client is closed, or there is no toolchain.
        """
        if recorded.generation != facts.generation() or not self.keeps or self.recipes.has(recorded.key):
            return False
        source = RecordedSource(recorded, self._policy.toolchain)
        self.compiler.client.submit_source(recorded.name, self._policy, source)
        return True

    def prefetch_late(self, recorded: Specialization) -> bool:
        """The same of a kernel that no source foresaw."""
        if recorded.torch != facts.generation() or not self.keeps:
            return False
        self.compiler.submit(recorded.request, background=True)
        return True

    def _note_late(self, stem: str, request: CompileRequest, seconds: float) -> None:
        # A source that was imported here, since the describer was late, is recorded as one.
        if self.recorder is not None and stem not in self._loaded_here and not compat.caches_disabled():
            self.recorder.note(request, request.digest(), duration_s=seconds, torch=facts.generation())

    def compile(self, real: Callable[..., Any], src: Any, target: Any = None, options: Any = None, **more: Any) -> Any:
        """In place of `triton.compile`, for Inductor."""
        stem = compat.source_stem(src)
        in_process = functools.partial(real, src, target=target, options=options, **more)
        if more or stem is None or stem in self._left_alone or self.patience_left() == 0.0:
            return in_process()
        if (reason := self._step_aside_reason()) is not None:
            self._fallback.steps_aside(reason)
            return in_process()
        try:
            key = job_key(src, target, options)
            # Inductor's workers prefer torch's assembler. This process, whose Triton names what is late, does not.
            late = fingerprint()
            started = self._jobs.find(key, toolchain.environment()) or self._jobs.find(key, late)
            started = started or self._jobs.start_late(stem, src, target, options, late)
            if self._prefetching.on:
                raise compat.Prefetched
            files = self._jobs.files(started)
        except CompileError as error:
            if is_refused_by_assembler(error):
                raise compat.ptxas_error(str(error)) from None
            if stem in self._loaded_here:  # only because the describer was late: stock compiles it in a worker
                raise compat.worker_error(str(error), error, src.name) from None
            if error.raised:
                return in_process()  # which raises it, as stock would here
            raise
        except (HeadstartError, plain.NotPlainDataError, OSError) as error:
            self.steps_aside(src.name, stem, str(error))
            return in_process()
        return compat.compiled_kernel(src, files, started.job.hash)

    def load_here(self, load: Callable[[], Any]) -> Any:
        """Import a source in this process, since the describer is not there yet, and kick its compiles off."""
        autotuner = load()
        self._loaded_here.add(compat.stem_of(autotuner))
        self._prefetching.on = True
        try:
            compat.prefetch(autotuner)
        finally:
            self._prefetching.on = False
        return autotuner

    # What sources call

    @property
    def keeps(self) -> bool:
        """Whether anything is looked up and kept in the store: not in one that others can write."""
        return self.compiler.client.keeps

    def forget(self, source: Source) -> None:
        """The next kick-off of it begins anew."""
        with self._lock:
            for key in [key for key, value in self._sources.items() if value is source]:
                del self._sources[key]

    def materialize(self, job: RecipeJob, kernel: CompiledKernel, root: str) -> None:
        """Write Triton's cache entry, if it can be. `compile` does so itself if it is asked before."""
        try:
            layout.write(root, job.hash, job.name, kernel)
        except (OSError, DamagedError) as error:
            self.log_once(f"Triton's cache folder {root} cannot be written: {error}")

    def heard(self) -> None:
        """A worker has answered."""
        self._heard = True

    def patience_left(self) -> float | None:
        """Seconds until this process compiles by itself while it waits, because no worker has ever begun; None: never.

        Counted from when the workers were started, so that they cost no more than the patience in all, however long the
        program traces; but a first job has a moment.
        """
        if self._heard:
            return None
        first = self._jobs.first
        if first is None:
            return self._patience
        if self.compiler.in_flight():
            self._heard = True
            return None
        started = first if self._started is None else self._started
        return max(0.0, max(started + self._patience, first + _MOMENT) - time.monotonic())

    def steps_aside(self, name: str, stem: str, reason: str) -> None:
        """One kernel is left to Inductor's own process.

        Raises:
            ServiceError: `HEADSTART=require`.
        """
        with self._lock:
            known = stem in self._left_alone
            self._left_alone.add(stem)
        self._fallback.in_process(name, reason, counted=not known)

    # Inside

    def _step_aside_reason(self) -> str | None:
        reason = compat.step_aside_reason()
        if reason is None and (name := self._integrity.changed()) is not None:
            # A worker and the describer import Triton as it was installed.
            reason = f"{name} is not Triton's own"
        if reason is None and (name := self._inductor_integrity.changed()) is not None:
            reason = f"{name} is not torch's own"
        return reason

    @functools.cached_property
    def _missing(self) -> str | None:
        return compat.missing()

    def _unusable(self) -> str | None:
        if self._missing is None:
            return None
        return f"torch {toolchain.torch().version} has no {self._missing}, which headstart relies on"

    def _start_early(self) -> None:
        """Have everything ready before the first kernel."""
        self.compiler.start()
        if self.compiler.starts_service:
            self._workers_start()
            self._started_early = True
            self.soon(self._start_describer, self.describing)
        if self.recipes.are_bundled:
            self.soon(self.recipes.prepare)

    def _workers_start(self) -> None:
        if self._started is None:
            self._started = time.monotonic()

    @staticmethod
    def _start_describer(describing: Describing) -> None:
        with contextlib.suppress(ServiceError):  # the program has ended, or the source that asks is told
            describing.start()

    def after_fork(self) -> None:
        """See `renew_in_forks`."""
        self._fallback.after_fork()
        self._graphs.after_fork()
        self._reset()
