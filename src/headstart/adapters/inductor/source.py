"""One generated source on its way: recipe, then one compile per configuration, then those that scaling adds.

    kicked off ─▶ recipe from bundle or store? ──no──▶ describer
                        └──────────yes──────────┬──────────┘
                   one job per configuration ◀──┘ ─▶ workers ─▶ each: Triton's cache layout, registers
                   all there, may scale? ─▶ describer: which more? ─▶ their jobs are kicked off ─▶ done

All but `want` and `autotuner` runs in the adapter's thread.
"""

from __future__ import annotations

import concurrent.futures
import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from headstart.adapters.inductor import compat, devices
from headstart.adapters.inductor.describing import UndescribedError, described, jobs
from headstart.adapters.inductor.host import Host
from headstart.adapters.inductor.ownership import is_of_source
from headstart.artifacts.cubin import registers
from headstart.client.future import LambdaFuture
from headstart.client.kernel import CompiledKernel
from headstart.describe import facts, plain
from headstart.describe.recipe import Describe, Recipe, RecipeJob, Rescale, as_loaded
from headstart.errors import CompileError, HeadstartError, ServiceError

if TYPE_CHECKING:
    from headstart.client.asked import DescriberQuestion


class Source:
    """One source that was kicked off, however often.

    Attributes:
        name: of its kernel.
        stem: its key in Inductor's code cache; empty until it is known.
        done: None once all configurations are compiled; or why it has to be compiled in this process.
    """

    def __init__(
        self,
        adapter: Host,
        name: str,
        text: str,
        environment: dict[str, str],
        config: dict[str, Any],
        variables: dict[str, str],
        settings: dict[str, str],
    ) -> None:
        self.adapter = adapter
        self._describing = adapter.describing_with(settings)
        self._settings = settings
        self.name = name
        self.stem = ""
        self.done: concurrent.futures.Future[str | None] = concurrent.futures.Future()
        self._text = text
        self._environment = environment
        self._config = config
        self._variables = variables
        self._started = time.monotonic()
        self._finished = 0.0
        self._device: int | None = None  # what its recipe does not say: on which GPU it runs; None: its recipe says so
        self._recipe: Recipe | None = None  # for any GPU of this kind
        self._module = ""  # what Inductor loads, for this GPU
        self._described: Describe | None = None
        self._question: DescriberQuestion | None = None  # the latest to the describer
        self._futures: list[tuple[RecipeJob, LambdaFuture[CompiledKernel]]] = []
        self._left = 0
        self._wanted = False
        self._undescribed = False
        self._use_store = True
        self._canonical = self  # the first source with the same text, once white space is as in the module

    def want(self) -> None:
        """Somebody is blocked on it."""
        self._wanted = True
        if self._canonical is not self:
            self._canonical.want()
        if self._question is not None:
            self._question.want()
        for _, future in list(self._futures):
            future.want()

    @property
    def waits_for_describer(self) -> bool:
        """Whether it is asked of a describer that is not there yet, which may take seconds."""
        source = self._canonical
        return source._undescribed and not source._describing.awake.is_set()

    def autotuner(self) -> tuple[Any, int]:
        """A CachingAutotuner of the consumer's own, and the microseconds that everything took."""
        if self._canonical is not self:
            return self._canonical.autotuner()
        assert self._recipe is not None
        compat.ensure_source(self._path(), self._module)
        function = compat.lean_function(devices.renamed(self._recipe.function, facts.module_of_stem(self.stem)))
        made = compat.new_autotuner(function, self._arguments())
        return made, int((self._finished - self._started) * 1e6)

    def leave(self, reason: str) -> None:
        """Have it compiled in this process; called instead of `begin`."""
        self._settle(reason)

    def begin(self) -> None:
        """Find the recipe, or ask for it."""
        self._use_store = not compat.caches_disabled()
        text = as_loaded(self.name, self._text)
        self.stem = facts.code_key(text)
        shared, self._device = devices.split(text)
        key = (self.name, text, *map(repr, (self._environment, self._config, self._variables, self._settings)))
        self._canonical = self.adapter.canonical(key, self)
        if self._canonical is not self:
            self._canonical.done.add_done_callback(lambda done: self._settle(done.exception() or done.result()))
            if self._wanted:
                self._canonical.want()
            return
        try:
            config = plain.encode(self._config)
        except plain.NotPlainDataError as error:
            self._settle(f"its configuration has {error}")
            return
        describe = Describe(self.name, shared, self._environment, config, self._variables, self._settings)
        self._described = describe
        recipe = self.adapter.recipes.find(describe) if self._use_store else None
        if recipe is not None:
            self._begin_jobs(recipe)
            return
        self._undescribed = True
        self._ask(describe, self._heard)

    def guarded_begin(self) -> None:
        """`begin`, whose failures are the kernel's."""
        self._guarded(self.begin)()

    def _guarded(self, step: Callable[..., None]) -> Callable[..., None]:
        def run(*arguments: Any) -> None:
            try:
                step(*arguments)
            except (UndescribedError, HeadstartError, plain.NotPlainDataError) as error:
                self._settle(str(error))
            except Exception as error:  # noqa: BLE001 - those who wait must hear of it
                self._settle(error)

        return run

    def _ask(self, message: Describe | Rescale, hear: Callable[..., None]) -> None:
        self._question = self._describing.ask(self.name, message)
        if self._wanted:
            self._question.want()
        self._question.answer.add_done_callback(lambda answer: self.adapter.soon(self._guarded(hear), answer))

    def _heard(self, answer: concurrent.futures.Future[bytes]) -> None:
        self._undescribed = False
        recipe = described(answer).recipe
        assert self._described is not None
        if not is_of_source(recipe, self._described.source):
            self._settle(f"{self._path()} is there already and holds something else")
            return
        if self._use_store:
            self.adapter.recipes.keep(self._described, recipe)
        self._begin_jobs(recipe)

    def _begin_jobs(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._module = recipe.text if self._device is None else devices.on(recipe.text, self._device)
        wanted = self._wanted_jobs(recipe)
        self._left = len(wanted)
        if not wanted:
            self._settle()
        for job in wanted:
            future = self._kick_off(job)
            if not future.done():
                # ptxas writes the file's time and size into debug lines. No worker gets that far before it is there.
                compat.ensure_source(self._path(), self._module)
            self._futures.append((job, future))
            if self._wanted:
                future.want()
        for job, future in list(self._futures):
            future.add_done_callback(functools.partial(self._soon_compiled, job))

    def _soon_compiled(self, job: RecipeJob, future: LambdaFuture[CompiledKernel]) -> None:
        self.adapter.soon(self._guarded(self._one_compiled), job, future)

    def _wanted_jobs(self, recipe: Recipe) -> list[RecipeJob]:
        """All, unless an earlier run has found out which one is best."""
        if len(recipe.jobs) == 1:
            return recipe.jobs
        configs, _, _ = compat.check_autotune_cache(self._arguments())
        left = {compat.config_hash(config) for config in configs}
        return [job for job in recipe.jobs if compat.config_hash(plain.decode(job.config)) in left]

    def _kick_off(self, job: RecipeJob) -> LambdaFuture[CompiledKernel]:
        assert self._recipe is not None
        return self.adapter.compile_job(
            job,
            text=self._recipe.text,
            path=self._path(),
            module=self._recipe.function.module,
            device=self._index(),
            root=self._root(),
            variables=self._variables,
            use_store=self._use_store,
        )

    def _one_compiled(self, job: RecipeJob, future: LambdaFuture[CompiledKernel]) -> None:
        self.adapter.heard()
        # Most are in Triton's cache by now. Opening and copying what is not takes this process time.
        if self.adapter.made(job, self._variables) is None and future.exception() is None:
            # Before anybody asks: a process that benchmarks looks in Triton's cache, not here.
            write = functools.partial(self.adapter.materialize, job, future.result(), self._root())
            if compat.benchmarks_elsewhere():
                write()
            else:
                self.adapter.later(write)
        self._left -= 1
        if self._left == 0:
            self._all_compiled()

    def _all_compiled(self) -> None:
        self._finished = time.monotonic()
        error = next((error for started in self._futures if (error := self._fatal(*started)) is not None), None)
        if error is not None:
            self._settle(error)
            return
        assert self._recipe is not None
        if not self._recipe.may_scale or len(self._futures) != len(self._recipe.jobs):
            self._settle()
            return
        counts = tuple(self._registers(*started) for started in self._futures)
        assert self._described is not None
        known = self.adapter.recipes.scaled(self._described, self._recipe, counts) if self._use_store else None
        if known is not None:
            self._rescaled(known)
            return
        self._ask(Rescale(self._described, list(counts)), functools.partial(self._heard_rescaled, counts))

    def _heard_rescaled(self, counts: tuple[int | None, ...], answer: concurrent.futures.Future[bytes]) -> None:
        assert self._recipe is not None
        try:
            added = jobs(answer).jobs
        except (UndescribedError, ServiceError):
            self._settle()  # then the consumer waits for a worker when Inductor asks
            return
        if self._use_store:
            self.adapter.recipes.keep_scaled(self._recipe, counts, added)
        self._rescaled(added)

    def _rescaled(self, added: list[RecipeJob]) -> None:
        for job in added:
            self._kick_off(job)
        self._settle()

    def _arguments(self) -> dict[str, Any]:
        assert self._recipe is not None
        arguments: dict[str, Any] = plain.decode(self._recipe.arguments)
        if arguments.get("filename"):
            arguments["filename"] = self._path()
        if self._device is not None:
            meta = arguments["triton_meta"]
            meta["device"] = meta["device"]._replace(index=self._device)
        return arguments

    def _fatal(self, job: RecipeJob, future: LambdaFuture[CompiledKernel]) -> BaseException | None:
        """What fails the whole source; a configuration that the assembler refuses is one less."""
        error = None if self.adapter.made(job, self._variables) else future.exception()
        return None if error is None or is_refused_by_assembler(error) else error

    def _registers(self, job: RecipeJob, future: LambdaFuture[CompiledKernel]) -> int | None:
        made = self.adapter.made(job, self._variables)
        if made is not None:
            return made.registers
        if future.exception() is not None:
            return None
        kernel = future.result()
        return registers(kernel.asm["cubin"], kernel.metadata["name"]) if "cubin" in kernel.asm else None

    def _root(self) -> str:
        return compat.triton_folder(self._index(), self._environment)

    def _index(self) -> int:
        assert self._recipe is not None
        return self._recipe.device if self._device is None else self._device

    def _path(self) -> str:
        return facts.path_of_stem(self.stem, self._environment.get("TORCHINDUCTOR_CACHE_DIR"))

    def _settle(self, outcome: str | BaseException | None = None) -> None:
        if self.done.done():
            return
        if outcome is not None:
            self.adapter.forget(self)
        self._finished = time.monotonic()
        if isinstance(outcome, BaseException):
            self.done.set_exception(outcome)
        else:
            self.done.set_result(outcome)


def is_refused_by_assembler(error: BaseException | None) -> bool:
    """Whether an autotuner takes this failure as one configuration less."""
    return isinstance(error, CompileError) and error.summary.startswith("PTXASError")
