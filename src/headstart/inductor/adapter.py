"""The adapter: what Inductor's replaced names lead to, and the thread in which everything but waiting happens.

    your threads                     headstart-inductor                    service
    Pool.submit ── queue ──────────▶ Source.begin ── Describe, triton() ──▶
    PoolFuture.result (waits) ◀───── Source.done ◀── queue ◀── callbacks ───
    CachingAutotuner.precompile (stock) ─▶ compile: the job's result, in Triton's own form
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from headstart import machine
from headstart.async_compile import AsyncCompile
from headstart.client import Client
from headstart.environment import fingerprint
from headstart.errors import CompileError, DamagedError, HeadstartError, ServiceError
from headstart.future import LambdaFuture
from headstart.imports import when_imported
from headstart.inductor import compat, layout, plain
from headstart.inductor.describing import Describing
from headstart.inductor.integrity import Integrity as InductorIntegrity
from headstart.inductor.pool import NO_WORKER, Pool
from headstart.inductor.recipe import Job, job_key, job_of
from headstart.inductor.recipes import Recipes
from headstart.inductor.source import Source, is_refused_by_assembler
from headstart.jit.integrity import Integrity
from headstart.kernel import CompiledKernel
from headstart.policy import Policy
from headstart.request import CompileRequest
from headstart.settings import patience
from headstart.target import Target
from headstart.toolchain import Toolchain, find_toolchain
from headstart.variables import Mode, mode

_FAREWELL = 5.0  # seconds for what is still to be written
_MOMENT = 1.0  # seconds that a job has until a worker begins it

_log = logging.getLogger("headstart")


@functools.cache
def _torch() -> compat.Torch:
    found = compat.find_torch()
    if found is None:
        raise ServiceError("there is no torch")
    return found


def _toolchain() -> Toolchain:
    return msgspec.structs.replace(find_toolchain(), torch_dir=_torch().folder)


def _environment() -> dict[str, str]:
    return compat.environment(_torch())


class _Started(NamedTuple):
    job: Job
    future: LambdaFuture[CompiledKernel] | None  # None: it was in Triton's cache
    device: int


def _under(key: str, variables: dict[str, str]) -> tuple[str, str]:
    """What tells a job from one that is the same but for the variables: its kernel may be another one."""
    return key, repr(variables)


class _Foreseeing(threading.local):
    on = False  # what this thread asks `compile` for is kicked off and not waited for


class Adapter:
    """One per process.

    Args:
        client: asks the service; whoever made it closes it.

    Attributes:
        counts: for tests and people: sources kicked off, jobs, jobs that were wanted before they were foreseen
            (`late`), kernels left to Inductor's own process (`in_process`).
    """

    def __init__(self, client: Client) -> None:
        # Its workers know what generated sources import of torch. A kernel that needs too much shared memory is
        # Inductor's to refuse: it then tries another configuration.
        policy = Policy(find=_toolchain, environment=_environment, shows_output=True)
        self.compiler = AsyncCompile(client=client, policy=policy, start=False)
        self._policy = policy
        self.recipes = Recipes(
            policy,
            self.compiler.cache_dir,
            self.compiler.bundler.find,
            self.compiler.bundler.put,
            self.later,
        )
        self.counts = {"sources": 0, "jobs": 0, "late": 0, "in_process": 0}
        self._integrity = Integrity()
        self._inductor_integrity = InductorIntegrity()
        self._patience = patience()
        self._foreseeing = _Foreseeing()
        self._said: set[str] = set()
        self._replacement = compat.Replacement(self._choose_pool, self.forget_pool, self.compile)
        self._forget_imports: list[Callable[[], None]] = []
        self._reset()
        _adapters.add(self)
        # Where there is no GPU, most programs compile for the CPU, which is none of our business.
        if machine.has_gpu():
            self._start_early()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._describing_lock = threading.Lock()
        self.describing = Describing(self.compiler.client, self._policy, compat.settings())
        self._describing = [self.describing]
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._idle: deque[Callable[[], None]] = deque()
        self._thread: threading.Thread | None = None
        self._sources: dict[Any, Source] = {}
        self._twins: dict[Any, Source] = {}
        self._jobs: dict[tuple[str, str], _Started] = {}
        self._devices: dict[str, int] = {}
        self._loaded_here: set[str] = set()  # stems of sources that were imported before the describer was there
        self._left_alone: set[str] = set()  # stems of sources that this process compiles itself
        self._started_early = False  # workers and describer, before anything was kicked off
        self._started: float | None = None  # when the workers were: early, or with the first kick-off
        self._first_job: float | None = None
        self._heard = False
        self._pool: Pool | None = None

    def install(self) -> None:
        """Replace what is imported already; the rest when it is."""
        self._forget_imports = [
            when_imported(compat.ASYNC_COMPILE, self._replacement.replace_pool),
            when_imported(compat.HEURISTICS, self._replacement.replace_compile),
        ]
        if machine.has_gpu():
            self._forget_imports.append(when_imported(compat.COMPILE_FX, lambda: self.soon(compat.compute_keys)))

    def close(self) -> None:
        """Put everything back."""
        for forget in self._forget_imports:
            forget()
        self._replacement.remove()
        self._queue.put(None)
        if self._thread is not None:
            self._thread.join(_FAREWELL)
        if self.counts["in_process"]:
            _log.warning("%d kernels were compiled in this process", self.counts["in_process"])

    # What Inductor calls

    def _choose_pool(self, stock: Callable[[], Any]) -> Any:
        reason = self._step_aside_reason() or self._unusable()
        if reason is not None:
            self._stay_away(reason)
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
        variables = _environment()  # now, in the program's thread: it may be another one in a moment
        key = (name, text, *map(repr, (environment, config, variables, settings)))
        with self._lock:
            source = self._sources.get(key)
            if source is not None:
                return source
            source = self._sources[key] = Source(self, name, text, environment, config, variables, settings)
            self.counts["sources"] += 1
            self._workers_start()
        if self._has_thread():
            self.soon(source.guarded_begin)
        else:
            self.forget(source)
            source.leave("this process can start no thread; is there a limit on its processes?")
        return source

    def compile(
        self, real: Callable[..., Any], src: Any, target: Any = None, options: Any = None, **more: Any
    ) -> Any:
        """In place of `triton.compile`, for Inductor."""
        stem = compat.source_stem(src)
        in_process = functools.partial(real, src, target=target, options=options, **more)
        if more or stem is None or stem in self._left_alone or self.patience_left() == 0.0:
            return in_process()
        if (reason := self._step_aside_reason()) is not None:
            self._stay_away(reason)
            return in_process()
        try:
            key = job_key(src, target, options)
            # Inductor's workers prefer torch's assembler. This process, whose Triton names what is late, does not.
            foreseen, late = _under(key, _environment()), fingerprint()
            started = self._jobs.get(foreseen) or self._jobs.get(_under(key, late))
            started = started or self._start_late(stem, src, target, options, late)
            if self._foreseeing.on:
                raise compat.Foreseen
            files = self._files(started)
        except CompileError as error:
            if is_refused_by_assembler(error):
                raise compat.ptxas_error(str(error)) from None
            if stem in self._loaded_here:  # only because the describer was late: stock compiles it in a worker
                raise compat.worker_error(str(error), error, src.name) from None
            if error.raised:
                return in_process()  # which raises it, as stock would here
            raise
        except (HeadstartError, plain.CannotTravelError, OSError) as error:
            self.steps_aside(src.name, stem, str(error))
            return in_process()
        return compat.compiled_kernel(src, files, started.job.hash)

    def load_here(self, load: Callable[[], Any]) -> Any:
        """Import a source in this process, since the describer is not there yet, and kick its compiles off."""
        autotuner = load()
        self._loaded_here.add(compat.stem_of(autotuner))
        self._foreseeing.on = True
        try:
            compat.foresee(autotuner)
        finally:
            self._foreseeing.on = False
        return autotuner

    def _files(self, started: _Started) -> dict[str, str]:
        job = started.job
        root = compat.triton_folder(started.device)
        found = layout.find(root, job.hash, job.name)
        if found is None:
            if started.future is None:
                raise FileNotFoundError(f"Triton's cache folder {root} is being emptied")
            found = layout.write(root, job.hash, job.name, self._result(started.future))
        return found

    def _result(self, future: LambdaFuture[CompiledKernel]) -> CompiledKernel:
        while True:
            try:
                return future.result(self.patience_left())
            except TimeoutError:
                if self.patience_left() == 0.0:
                    raise ServiceError(NO_WORKER) from None

    def _start_late(self, stem: str, src: Any, target: Any, options: Any, variables: dict[str, str]) -> _Started:
        """Not foreseen: a fusion benchmarked by itself, coordinate descent, a launch that failed, no describer yet."""
        job = job_of(src, target, options)
        device = self._devices.get(stem, 0)
        if layout.find(compat.triton_folder(device), job.hash, job.name) is not None:
            return _Started(job, None, device)
        with self._lock:
            self.counts["late"] += 1
        path = compat.path_of(src)
        future = self.compile_job(
            job,
            text=compat.read_source(path),
            path=path,
            module=src.fn.__module__,
            device=device,
            variables=variables,
            use_store=not compat.caches_disabled(),
        )
        future.add_done_callback(lambda _: self.heard())
        return _Started(job, future, device)

    # What sources call

    def twin(self, key: Any, source: Source) -> Source:
        """The first source that turned out to have this text."""
        return self._twins.setdefault(key, source)

    def forget(self, source: Source) -> None:
        """The next kick-off of it begins anew."""
        with self._lock:
            for known in (self._sources, self._twins):
                for key in [key for key, value in known.items() if value is source]:
                    del known[key]

    def soon(self, step: Callable[..., None], *arguments: Any) -> None:
        """Run `step` in the adapter's thread."""
        self._queue.put(functools.partial(step, *arguments))
        self._has_thread()  # if there is none now, the next who finds one has this run as well

    def compile_job(
        self,
        job: Job,
        *,
        text: str,
        path: str,
        module: str,
        device: int,
        variables: dict[str, str],
        use_store: bool,
    ) -> LambdaFuture[CompiledKernel]:
        """Kick one compile off, unless it is on its way.

        Raises:
            HeadstartError: it cannot be asked for.
        """
        with self._lock:
            key = _under(job.key, variables)
            started = self._jobs.get(key)
            if started is None:
                request = CompileRequest.make(
                    job.name,
                    text,
                    signature=job.signature,
                    constants=plain.decode(job.constants),
                    attrs=plain.decode(job.attrs),
                    options=job.options,
                    target=str(Target.parse(job.target)),
                    filename=path,
                    module=module,
                    environment=variables,
                )
                future = self.compiler.submit(request, use_store=use_store)
                started = self._jobs[key] = _Started(job, future, device)
                self._devices[Path(path).stem] = device
                self._first_job = self._first_job or time.monotonic()
                self.counts["jobs"] += 1
        assert started.future is not None
        return started.future

    def later(self, step: Callable[..., None], *arguments: Any) -> None:
        """Run `step` in the adapter's thread, from which it is called, once nothing that somebody may wait for is left.

        While Inductor generates code, each call into the system costs this thread a wait for the interpreter's lock.
        """
        self._idle.append(functools.partial(step, *arguments))

    def materialize(self, job: Job, kernel: CompiledKernel, root: str) -> None:
        """Write Triton's cache entry, if it can be. Whoever asks for the kernel before does so himself."""
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
        if self._first_job is None:
            return self._patience
        if self.compiler.in_flight():
            self._heard = True
            return None
        started = self._first_job if self._started is None else self._started
        return max(0.0, max(started + self._patience, self._first_job + _MOMENT) - time.monotonic())

    def steps_aside(self, name: str, stem: str, reason: str) -> None:
        """One kernel is left to Inductor's own process.

        Raises:
            ServiceError: `HEADSTART=require`.
        """
        if mode() is Mode.REQUIRE:
            raise ServiceError(f"{name} would have to be compiled in this process: {reason}")
        with self._lock:
            known = stem in self._left_alone
            self._left_alone.add(stem)
            self.counts["in_process"] += not known
        if not known:
            _log.warning("%s is compiled in this process: %s", name, reason)

    def log_once(self, text: str) -> None:
        """Tell a person."""
        if text not in self._said:
            self._said.add(text)
            _log.warning("%s", text)

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
        return f"torch {_torch().version} has no {self._missing}, which headstart relies on"

    def _stay_away(self, reason: str) -> None:
        if mode() is Mode.REQUIRE:
            raise ServiceError(f"headstart would have to step aside: {reason}")
        self.log_once(f"headstart leaves torch.compile alone: {reason}")

    def _start_early(self) -> None:
        """Have everything ready before the first kernel."""
        self.compiler.start()
        if self.compiler.starts_service:
            self._workers_start()
            self._started_early = True
            self.soon(self._start_describer, self.describing)
        self.soon(self.recipes.prepare)

    def _workers_start(self) -> None:
        if self._started is None:
            self._started = time.monotonic()

    @staticmethod
    def _start_describer(describing: Describing) -> None:
        with contextlib.suppress(ServiceError):  # the program has ended, or whoever asks is told
            describing.start()

    def _has_thread(self) -> bool:
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    thread = threading.Thread(target=self._run, name="headstart-inductor", daemon=True)
                    try:
                        thread.start()
                        self._thread = thread
                    except RuntimeError as error:
                        _log.info("the torch.compile adapter has no thread: %s", error)
        return self._thread is not None

    def _run(self) -> None:
        while True:
            try:
                step = self._queue.get(block=not self._idle)
            except queue.Empty:
                step = self._idle.popleft()
            if step is None:
                break
            self._guarded(step)
        for step in self._idle:
            self._guarded(step)

    @staticmethod
    def _guarded(step: Callable[[], None]) -> None:
        try:
            step()
        except Exception:  # noqa: BLE001 - one source's trouble must not become the others'
            _log.exception("headstart's torch.compile adapter failed; this is a bug")

    def _after_fork(self) -> None:
        self._reset()


_adapters: weakref.WeakSet[Adapter] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for adapter in list(_adapters):
        adapter._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
