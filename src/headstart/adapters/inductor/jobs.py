"""The compiles that Inductor asks for: each is asked of the service once, and handed over as Triton's cache entry."""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from headstart import wire
from headstart.adapters.inductor import caches, compat, layout
from headstart.adapters.inductor.layout import Made
from headstart.client.async_compile import AsyncCompile
from headstart.client.future import LambdaFuture
from headstart.client.kernel import CompiledKernel
from headstart.describe import facts
from headstart.describe.recipe import RecipeJob, job_of, request_of
from headstart.errors import HeadstartError, ServiceError
from headstart.model.request import CompileRequest

if TYPE_CHECKING:
    from headstart.client.delivered import Delivered


class StartedJob(NamedTuple):
    """One of them.

    Attributes:
        future: None: it was in Triton's cache.
        token: whose `id` says what is known of it; see `Jobs.made`.
    """

    job: RecipeJob
    future: LambdaFuture[CompiledKernel] | None
    device: int
    token: object = None


class Expected(NamedTuple):
    """A compile that the service does as part of a source; told what became of it.

    `note`: told where the kernel is by now, before those who wait.
    """

    delivered: Delivered
    note: Callable[[wire.Result], None]

    def settle(self, outcome: wire.JobOutcome) -> None:
        """The service has said what became of it."""
        if isinstance(outcome.answer, wire.Result):
            self.note(outcome.answer)
        self.delivered.settle(outcome)

    def fail(self, error: HeadstartError) -> None:
        """There is no kernel."""
        self.delivered.fail(error)


NO_WORKER = "no worker has answered yet"


def under(key: str, variables: dict[str, str]) -> tuple[str, str]:
    """What tells a job from one that is the same but for the variables: its kernel may be another one."""
    return key, repr(variables)


class Jobs:
    """All of one process.

    Args:
        compiler: asks the service.
        counts: the adapter's.
        patience_left: seconds until this process compiles by itself; None: it waits.
        heard: called once a worker has answered.
        note: told of each compile that no source foresaw, once it is there: the source's stem, what was asked for, and
            its seconds.

    Attributes:
        first: when the first was kicked off; monotonic seconds.
    """

    def __init__(
        self,
        compiler: AsyncCompile,
        counts: dict[str, int],
        patience_left: Callable[[], float | None],
        heard: Callable[[], None],
        note: Callable[[str, CompileRequest, float], None],
    ) -> None:
        self._note_late = note
        self._compiler = compiler
        self._counts = counts
        self._patience_left = patience_left
        self._heard = heard
        self._lock = threading.Lock()
        self._jobs: dict[tuple[str, str], StartedJob] = {}
        self._devices: dict[str, int] = {}
        self._made: dict[int, Made] = {}  # by `id` of the job's token
        self._late: dict[int, str] = {}  # the same: stems of those that no source foresaw
        self._seconds: dict[int, float] = {}  # the same: what the service has answered and nobody has looked at
        self.first: float | None = None

    def find(self, key: str, variables: dict[str, str]) -> StartedJob | None:
        """One that was kicked off."""
        return self._jobs.get(under(key, variables))

    def made(self, job: RecipeJob, variables: dict[str, str]) -> Made | None:
        """What is known of a kernel that a worker has put into Triton's cache; None: it may not be there."""
        started = self.find(job.key, variables)
        return None if started is None else self._made.get(id(started.token))

    def answered(self, request: CompileRequest, result: wire.Result) -> None:
        """The service has answered; called in the connection's thread, before the future is done."""
        self._note(request, request.name, result)
        seconds = 0.0 if result.cached else max(0.0, result.finished - result.started)
        with self._lock:
            stem = self._late.get(id(request))
            if stem is None:
                self._seconds[id(request)] = seconds
        if stem is not None:
            self._note_late(stem, request, seconds)

    def _note(self, token: object, name: str, result: wire.Result) -> None:
        if result.in_triton_cache:
            self._made[id(token)] = Made(result.registers)
            if result.log is not None:  # nobody may ask for the kernel itself, and then nobody else would say it
                self._compiler.client.show(name, result.log)

    def compile(
        self,
        job: RecipeJob,
        *,
        text: str,
        path: str,
        module: str,
        device: int,
        root: str,
        variables: dict[str, str],
        use_store: bool,
    ) -> LambdaFuture[CompiledKernel]:
        """Kick one compile off, unless it is on its way; its worker puts the kernel into Triton's cache folder `root`.

        Raises:
            HeadstartError: it cannot be asked for.
        """
        with self._lock:
            key = under(job.key, variables)
            started = self._jobs.get(key)
            if started is None:
                request = request_of(job, text=text, path=path, module=module, variables=variables)
                place = layout.place(root, job.hash, job.name)
                future = self._compiler.submit(request, use_store=use_store, triton_cache=place)
                started = self._jobs[key] = StartedJob(job, future, device, request)
                self._devices[os.path.basename(path).removesuffix(".py")] = device
                self.first = self.first or time.monotonic()
                self._counts["jobs"] += 1
        assert started.future is not None
        return started.future

    def expect(
        self,
        job: RecipeJob,
        *,
        text: str,
        path: str,
        module: str,
        device: int,
        variables: dict[str, str],
        use_store: bool,
        want: Callable[[], None],
    ) -> Expected | None:
        """A compile that the service does as part of a source; None: it was asked for before.

        Args:
            want: called when somebody begins to wait for it; the rest as for `compile`.
        """
        with self._lock:
            key = under(job.key, variables)
            if key in self._jobs:
                return None
            make = functools.partial(request_of, job, text=text, path=path, module=module, variables=variables)
            future, delivered = self._compiler.expect(job.name, make, use_store=use_store, want=want)
            self._jobs[key] = StartedJob(job, future, device, delivered)
            self._devices[os.path.basename(path).removesuffix(".py")] = device
            self._counts["jobs"] += 1
        return Expected(delivered, functools.partial(self._note, delivered, job.name))

    def queued(self) -> None:
        """Something waits for a worker now."""
        self.first = self.first or time.monotonic()

    def files(self, started: StartedJob) -> dict[str, str]:
        """Triton's cache entry of a job; waits for it.

        Raises:
            HeadstartError: it failed, or no worker has answered.
            OSError: the cache folder cannot be used.
        """
        job = started.job
        root = caches.triton_folder(started.device)
        found = layout.find(root, job.hash, job.name)
        if found is None:
            if started.future is None:
                raise FileNotFoundError(f"Triton's cache folder {root} is being emptied")
            found = layout.write(root, job.hash, job.name, self._result(started.future))
        return found

    def _result(self, future: LambdaFuture[CompiledKernel]) -> CompiledKernel:
        while True:
            try:
                return future.result(self._patience_left())
            except TimeoutError:
                if self._patience_left() == 0.0:
                    raise ServiceError(NO_WORKER) from None

    def start_late(self, stem: str, src: Any, target: Any, options: Any, variables: dict[str, str]) -> StartedJob:
        """Not foreseen: a fusion benchmarked by itself, coordinate descent, a launch that failed, no describer yet."""
        job = job_of(src, target, options)
        device = self._devices.get(stem, 0)
        root = caches.triton_folder(device)
        if layout.find(root, job.hash, job.name) is not None:
            return StartedJob(job, None, device)
        with self._lock:
            self._counts["late"] += 1
        path = compat.path_of(src)
        future = self.compile(
            job,
            text=facts.read_source(path),
            path=path,
            module=src.fn.__module__,
            device=device,
            root=root,
            variables=variables,
            use_store=not compat.caches_disabled(),
        )
        future.add_done_callback(lambda _: self._heard())
        request = self._jobs[under(job.key, variables)].token
        if isinstance(request, CompileRequest):
            with self._lock:
                self._late[id(request)] = stem
                seconds = self._seconds.pop(id(request), 0.0 if future.done() else None)
            if seconds is not None:  # it was answered already, or a bundle had it
                self._note_late(stem, request, seconds)
        return StartedJob(job, future, device)
