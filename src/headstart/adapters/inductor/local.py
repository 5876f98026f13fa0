"""The compiles of a source whose recipe this process has, each asked for by itself: out of a bundle, or of the service.

    recipe ─▶ which configurations are wanted? ─▶ one compile each ─▶ Triton's cache, registers
    all there, may scale, does the bundle say what is added? ─▶ these are kicked off ─▶ settled

All but `want` runs in the adapter's thread.
"""

from __future__ import annotations

import functools

from headstart.adapters.inductor import compat
from headstart.adapters.inductor.host import Described
from headstart.artifacts.cubin import registers
from headstart.client.future import LambdaFuture
from headstart.client.kernel import CompiledKernel
from headstart.describe import plain
from headstart.describe.recipe import Recipe, RecipeJob
from headstart.errors import CompileError, ServiceError

KernelFuture = LambdaFuture[CompiledKernel]


class LocalCompiles:
    """Those of one source."""

    def __init__(self, source: Described, recipe: Recipe) -> None:
        self._source = source
        self._adapter = source.adapter
        self._recipe = recipe
        self._futures: list[tuple[RecipeJob, KernelFuture]] = []
        self._left = 0

    def want(self) -> None:
        """Somebody is blocked on them."""
        for _, future in list(self._futures):
            future.want()

    def begin(self) -> None:
        """Kick them off."""
        wanted = self._wanted_jobs()
        self._left = len(wanted)
        if not wanted:
            self._source.settle()
        for job in wanted:
            future = self._kick_off(job)
            self._source.asking.is_for(future.log)
            if not future.done():
                # ptxas writes the file's time and size into debug lines. No worker gets that far before it is there.
                self._source.ensure_file()
            self._futures.append((job, future))
        for job, future in list(self._futures):
            future.add_done_callback(functools.partial(self._soon_compiled, job))

    def _wanted_jobs(self) -> list[RecipeJob]:
        """All, unless an earlier run has found out which one is best."""
        if len(self._recipe.jobs) == 1:
            return self._recipe.jobs
        configs, _, _ = compat.check_autotune_cache(self._source.arguments())
        left = {compat.config_hash(config) for config in configs}
        return [job for job in self._recipe.jobs if compat.config_hash(plain.decode(job.config)) in left]

    def _kick_off(self, job: RecipeJob) -> KernelFuture:
        return self._adapter.compile_job(
            job,
            text=self._recipe.text,
            path=self._source.path(),
            module=self._recipe.function.module,
            device=self._source.index(),
            root=self._source.root(),
            variables=self._source.variables,
            use_store=self._source.use_store,
        )

    def _soon_compiled(self, job: RecipeJob, future: KernelFuture) -> None:
        step = self._source.guarded(self._one_compiled)
        if not self._adapter.soon(step, job, future):
            step(job, future)

    def _one_compiled(self, job: RecipeJob, future: KernelFuture) -> None:
        self._adapter.heard()
        if self._adapter.made(job, self._source.variables) is None and future.exception() is None:
            write = functools.partial(self._adapter.materialize, job, future.result(), self._source.root())
            # Before anybody asks: a process that benchmarks looks in Triton's cache, not here.
            if compat.benchmarks_elsewhere():
                write()
            else:
                self._adapter.later(write)
        self._left -= 1
        if self._left == 0:
            self._all_compiled()

    def _all_compiled(self) -> None:
        error = next((error for started in self._futures if (error := self._fatal(*started)) is not None), None)
        if error is not None:
            self._source.settle(str(error) if isinstance(error, ServiceError) else error)
            return
        if self._recipe.may_scale and len(self._futures) == len(self._recipe.jobs) and self._source.use_store:
            counts = [self._registers(*started) for started in self._futures]
            # What no bundle says the consumer waits for a worker for when Inductor asks.
            for job in self._adapter.recipes.added(self._source.described, self._recipe, counts) or ():
                self._kick_off(job)
        self._source.settle()

    def _fatal(self, job: RecipeJob, future: KernelFuture) -> BaseException | None:
        """What fails the whole source; a configuration that the assembler refuses is one less."""
        error = None if self._adapter.made(job, self._source.variables) else future.exception()
        return None if error is None or is_refused_by_assembler(error) else error

    def _registers(self, job: RecipeJob, future: KernelFuture) -> int | None:
        made = self._adapter.made(job, self._source.variables)
        if made is not None:
            return made.registers
        if future.exception() is not None:
            return None
        kernel = future.result()
        return registers(kernel.asm["cubin"], kernel.metadata["name"]) if "cubin" in kernel.asm else None


def is_refused_by_assembler(error: BaseException | None) -> bool:
    """Whether an autotuner takes this failure as one configuration less."""
    return isinstance(error, CompileError) and error.summary.startswith("PTXASError")
