"""One generated source on its way: kicked off once, answered once.

    kick-off ─▶ in a bundle? ──no──▶ SubmitSource ─▶ service: recipe, compiles, rescaling ─▶ SourceCompiled ─▶ done
                    └─yes─▶ LocalCompiles, in the adapter's thread: one compile per configuration ─────────────▶ done

`begin` runs in the program's thread and waits for nothing. The connection's thread says what the service is told, and
hears what it says.
"""

from __future__ import annotations

import concurrent.futures
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from headstart import wire
from headstart.adapters.inductor import caches, compat, layout
from headstart.adapters.inductor.asking import Asking
from headstart.adapters.inductor.host import Host
from headstart.adapters.inductor.jobs import Expected
from headstart.adapters.inductor.local import LocalCompiles
from headstart.adapters.inductor.recorded import generated
from headstart.describe import devices, facts, plain
from headstart.describe.recipe import Describe, Recipe, RecipeJob, decode_jobs, decode_recipe, request_of
from headstart.errors import CompileError, HeadstartError, ServiceError

if TYPE_CHECKING:
    from headstart.client.asked import SourceKickoff

_MOMENT = 1.0  # seconds that the service has to say whether it knows a source

_log = logging.getLogger("headstart")
_encoder = msgspec.msgpack.Encoder()


class Source:
    """One source that was kicked off, however often.

    Args:
        adapter: whose it is.
        name: of its kernel.
        text: as Inductor will load it; see `recipe.as_loaded`.
        environment, config: what Inductor would give its own worker.
        variables: those that change what a compile yields, when it was kicked off.
        settings: Inductor's own variables, as its describer is to have them.

    Attributes:
        name: the same.
        stem: its key in Inductor's code cache; empty until it is known.
        variables: the same.
        use_store: whether anything of it may come from, or be put into, a store or a bundle.
        described: what its describer is asked.
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
        self.name = name
        self.stem = ""
        self.variables = variables
        self.use_store = not compat.caches_disabled()  # in the program's thread, whose configuration it is
        self.described: Describe
        self.done: concurrent.futures.Future[str | None] = concurrent.futures.Future()
        self._text = text
        self._environment = environment
        self._config = config
        self._settings = settings
        self._describing = adapter.describing_with(settings)
        self._shared_stem = ""  # of what is described, which is for device 0
        self._started = time.monotonic()
        self.asking = Asking()
        self._finished = 0.0
        self._device: int | None = None  # what its recipe does not say: on which GPU it runs; None: its recipe says so
        self._recipe: Recipe | None = None  # for any GPU of this kind
        self._kickoff: SourceKickoff | None = None
        self._local: LocalCompiles | None = None
        self._located = threading.Event()  # it has a recipe, or is asked of a describer that is not there yet
        self._undescribed = False
        self._wanted = False
        self._added_keys: list[str] = []  # of the jobs that rescaling adds
        self._added: dict[str, Expected] = {}  # those that are not compiled yet

    def want(self) -> None:
        """Somebody is blocked on it."""
        self._wanted = True
        if self._local is not None:
            self._local.want()
        if self._kickoff is not None:
            self._kickoff.want()

    def waits_for_describer(self, patience: float | None) -> bool:
        """Whether it is asked of a describer that is not there yet, which may take seconds; or nobody can say.

        Args:
            patience: seconds that this may wait to find out; None: a moment.
        """
        if self.done.done() or self._describing.awake.is_set():
            return False
        is_located = self._located.wait(_MOMENT if patience is None else min(patience, _MOMENT))
        return (self._undescribed or not is_located) and not self._describing.awake.is_set()

    def autotuner(self) -> tuple[Any, int]:
        """A CachingAutotuner of the consumer's own, and the microseconds that everything took.

        Raises:
            UnusableError: torch cannot make anything of its recipe.
        """
        recipe = self._known_recipe()
        try:
            arguments = self.arguments()
        except Exception as error:
            raise UnusableError(f"its recipe cannot be used: {error}") from error
        self.ensure_file()
        function = compat.lean_function(devices.renamed(recipe.function, facts.module_of_stem(self.stem)))
        return compat.new_autotuner(function, arguments), int((self._finished - self._started) * 1e6)

    def begin(self, *, is_bundled: bool) -> None:
        """Ask for all that it needs; `is_bundled`: a bundle may have its recipe. In the program's thread."""
        if not (is_bundled and self.adapter.soon(self.guarded(self._look_into_bundle))):
            self.guarded(self._submit)()

    def _submit(self) -> None:
        self._kickoff = self._describing.submit(self.name, self)
        if self._wanted:
            self._kickoff.want()

    def _describe(self) -> None:
        """Not in the program's thread: it takes longer than a kick-off may."""
        if self.stem:
            return
        stem = facts.code_key(self._text)
        shared, self._device = devices.split(self._text)
        self._shared_stem = stem if shared is self._text else facts.code_key(shared)
        try:
            config = plain.encode(self._config)
        except plain.NotPlainDataError as error:
            raise ServiceError(f"its configuration has {error}") from None
        self.described = Describe(self.name, shared, self._environment, config, self.variables, self._settings)
        self.stem = stem

    def _look_into_bundle(self) -> None:
        """In the adapter's thread."""
        self._describe()
        found = self.adapter.recipes.find(self.described, self._shared_stem) if self.use_store else None
        if found is None:
            self._submit()
        else:
            key, content, recipe = found
            self._note(wire.SourceCompiled(0, key, content), recipe)
            self._begin_locally(recipe)

    def _begin_locally(self, recipe: Recipe) -> None:
        """In the adapter's thread: the service knows nothing of this source, or not which configurations are wanted."""
        self._recipe = recipe
        self._local = LocalCompiles(self, recipe)
        self._located.set()
        self._local.begin()
        if self._wanted:
            self._local.want()

    def _fan_out(self) -> wire.FanOut | None:
        """Where everything is to be; None: only this process knows, or which configurations are wanted."""
        path = self.path()
        folder, per_device = caches.triton_root(self._environment)
        if not (os.path.isabs(path) and os.path.isabs(folder) and layout.are_as_the_service_makes_them()):
            return None
        if caches.may_be_tuned(path):
            return None
        return wire.FanOut(path, self._device, folder, per_device)

    # What the service is told, and says

    def message(self, ticket: int) -> wire.SubmitSource:
        """See `SourceTaker`."""
        try:
            self._describe()
            return wire.SubmitSource(
                ticket,
                self._describing.spec(),
                _encoder.encode(self.described),
                self._shared_stem,
                facts.torch_key() if self.use_store else "",
                self.use_store and self.adapter.keeps,
                self._fan_out(),
            )
        except ServiceError:
            raise
        except Exception as error:
            raise ServiceError(f"it cannot be told to the service: {type(error).__name__}: {error}") from error

    def located(self, has_recipe: bool) -> None:
        """See `SourceTaker`."""
        self._undescribed = not has_recipe
        self._located.set()
        if has_recipe:
            self.adapter.queued()

    def compiled(self, message: wire.SourceCompiled) -> None:
        """See `SourceTaker`."""
        self.guarded(self._take)(message)

    def _take(self, message: wire.SourceCompiled) -> None:
        self._undescribed = False
        recipe = decode_recipe(message.recipe)
        if message.key:
            self.adapter.recipes.note(message.key, self.name, message.recipe)
        self._note(message, recipe)
        if not message.has_more:
            self._give_up_added()  # an answer before, of a service that has died, said that there are some
        if not message.jobs and recipe.jobs:
            if self.done.done():
                return
            if not self.adapter.soon(self.guarded(self._begin_locally), recipe):
                self.settle("this process can start no thread; is there a limit on its processes?")
            return
        self._recipe = recipe
        self.adapter.heard()
        self._finished = time.monotonic()
        error: BaseException | None = None
        for job, outcome in zip(recipe.jobs, message.jobs, strict=True):
            expected = self._expect(job)
            if expected is not None:
                expected.settle(outcome)
                if isinstance(outcome.answer, wire.Result) and not outcome.answer.in_triton_cache:
                    self._write_early(job)
            if isinstance(outcome.answer, wire.Failed) and not outcome.answer.failure.is_refused_by_assembler:
                error = error or self._error(job, outcome.answer.failure)
        if message.added:
            self._take_added(message)
        if isinstance(error, ServiceError):
            self.settle(str(error))
        else:
            self.settle(error)

    def _note(self, message: wire.SourceCompiled, recipe: Recipe) -> None:
        """For the next run: what was asked, and what was said of it."""
        failures = [each.answer.failure for each in message.jobs if isinstance(each.answer, wire.Failed)]
        if self.adapter.recorder is None or not message.key:
            return
        if not all(failure.is_refused_by_assembler for failure in failures):
            return  # it fails the source
        try:
            self.adapter.recorder.note_generated(generated(self.described, self._shared_stem, message, recipe))
        except Exception:  # noqa: BLE001 - a kernel must not be lost because it is not written down
            _log.exception("%s is not recorded; this is a bug", self.name)

    def _write_early(self, job: RecipeJob) -> None:
        """Nobody could put a kernel into Triton's cache, where a process that benchmarks looks, and not here."""
        started = self.adapter.find_job(job.key, self.variables)
        if started is not None and started.future is not None and compat.benchmarks_elsewhere():
            future, root = started.future, self.root()
            self.adapter.soon(lambda: self.adapter.materialize(job, future.result(), root))

    def _take_added(self, message: wire.SourceCompiled) -> None:
        if message.added_key:
            self.adapter.recipes.note(message.added_key, self.name, message.added)
        added = decode_jobs(message.added)
        self._added_keys = [job.key for job in added]
        for job in added:
            expected = self._expect(job)
            if expected is not None:
                self._added[job.key] = expected

    def added(self, message: wire.AddedCompiled) -> None:
        """See `SourceTaker`."""
        try:
            for key, outcome in zip(self._added_keys, message.jobs, strict=True):
                expected = self._added.pop(key, None)
                if expected is not None:
                    expected.settle(outcome)
        except Exception:  # noqa: BLE001 - others are waiting for what this thread hears
            _log.exception("headstart's torch.compile adapter failed at %s; this is a bug", self.name)
        self._give_up_added()

    def _give_up_added(self, error: HeadstartError | None = None) -> None:
        """Nobody will say any more what became of what rescaling was to add: who waits compiles it in this process."""
        while self._added:
            _, expected = self._added.popitem()
            expected.fail(error or ServiceError("the service says no more of what rescaling adds"))

    def failed(self, error: HeadstartError) -> None:
        """See `SourceTaker`."""
        self._give_up_added(error)
        self.settle(error if isinstance(error, CompileError) else str(error))

    def _error(self, job: RecipeJob, failure: wire.Failure) -> HeadstartError:
        from headstart.client.asked import error_of

        recipe = self._known_recipe()
        return error_of(
            failure,
            request_of(
                job, text=recipe.text, path=self.path(), module=recipe.function.module, variables=self.variables
            ),
        )

    def _expect(self, job: RecipeJob) -> Expected | None:
        expected = self.adapter.expect_job(
            job,
            text=self._known_recipe().text,
            path=self.path(),
            module=self._known_recipe().function.module,
            device=self.index(),
            variables=self.variables,
            use_store=self.use_store,
            want=self.want,
        )
        if expected is not None:
            self.asking.is_for(expected.delivered.log)
        return expected

    # What its compiles need

    def guarded(self, step: Callable[..., None]) -> Callable[..., None]:
        """`step`, whose failures are the kernel's."""

        def run(*arguments: Any) -> None:
            try:
                step(*arguments)
            except (HeadstartError, plain.NotPlainDataError) as error:
                self.settle(str(error))
            except Exception as error:  # noqa: BLE001 - nobody is to wait for ever, or fail, for a bug of ours
                _log.exception("headstart's torch.compile adapter failed at %s; this is a bug", self.name)
                self.settle(f"{type(error).__name__}: {error}")

        return run

    def arguments(self) -> dict[str, Any]:
        """Those of CachingAutotuner, for this device."""
        arguments: dict[str, Any] = plain.decode(self._known_recipe().arguments)
        if arguments.get("filename"):
            arguments["filename"] = self.path()
        if self._device is not None:
            meta = arguments["triton_meta"]
            meta["device"] = meta["device"]._replace(index=self._device)
        return arguments

    def ensure_file(self) -> None:
        """Have the source where Inductor loads it from."""
        recipe = self._known_recipe()
        caches.ensure_source(
            self.path(), recipe.text if self._device is None else devices.on(recipe.text, self._device)
        )

    def index(self) -> int:
        """Of its device."""
        return self._known_recipe().device if self._device is None else self._device

    def root(self) -> str:
        """Triton's cache folder for that device."""
        return caches.triton_folder(self.index(), self._environment)

    def path(self) -> str:
        """Its file."""
        return facts.path_of_stem(self.stem, self._environment.get("TORCHINDUCTOR_CACHE_DIR"))

    def settle(self, outcome: str | BaseException | None = None) -> None:
        """It is over: compiled; or why it has to be compiled in this process; or what its compile has raised."""
        self._located.set()
        if self.done.done():
            return
        if outcome is not None:
            self.adapter.forget(self)
        self._finished = time.monotonic()
        if isinstance(outcome, BaseException):
            self.done.set_exception(outcome)
        else:
            self.done.set_result(outcome)

    def _known_recipe(self) -> Recipe:
        assert self._recipe is not None
        return self._recipe


class UnusableError(Exception):
    """A source has a recipe that this torch can make nothing of."""
