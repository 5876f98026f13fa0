"""torch.compile's part of `headstart build app.manifest`: what it generated, described and compiled again. Takes torch.

    recorded source ─▶ SubmitSource ─▶ service: the recorded recipe, or a describer's ─▶ compiles ─▶ the bundle has both

Neither a GPU nor the model's code is needed: what a describer runs are the sources' own decorators.
"""

from __future__ import annotations

import functools
import queue
from collections.abc import Callable, Collection, Sequence

import msgspec

from headstart import wire
from headstart.adapters.inductor import toolchain
from headstart.adapters.inductor.recipes import Recipes
from headstart.adapters.inductor.recorded import Answer, RecordedSource
from headstart.artifacts.generated import GeneratedSource
from headstart.artifacts.manifest import Manifest
from headstart.cli import count
from headstart.client.async_compile import AsyncCompile
from headstart.client.client import Client
from headstart.client.future import LambdaFuture
from headstart.client.kernel import CompiledKernel
from headstart.client.policy import Policy
from headstart.client.timeline import Statistics
from headstart.describe import facts
from headstart.describe.recipe import Recipe, RecipeJob, decode_jobs, decode_recipe, request_of
from headstart.errors import DamagedError, HeadstartError, UsageError
from headstart.model.environment import TOOL_VARIABLES, fingerprint
from headstart.model.target import Target


def why_not(*, vouched: bool) -> str | None:
    """Why what torch.compile generated cannot be built here; None: it can."""
    if not vouched:
        return "torch's decorators run what a source says; if you know where the manifest comes from, pass --trust"
    torch = facts.find_torch()
    if torch is None:
        return "there is no torch here"
    if not torch.known:
        return f"headstart does not know torch {torch.version}: it knows {', '.join(facts.KNOWN_VERSIONS)}"
    return None


class SourcesBuild:
    """What torch.compile generated, of one manifest.

    Args:
        client: asks the service, and has the bundle.
        manifest: what was recorded.
        devices: to build for; empty: those that it was generated for.
        watch: told of each kernel's future; refuse: of what is left out, and why.
        quiet: whether what compiles print is left out.
    """

    def __init__(
        self,
        client: Client,
        manifest: Manifest,
        devices: Collection[Target],
        watch: Callable[[LambdaFuture[CompiledKernel]], None],
        refuse: Callable[[str], None],
        *,
        quiet: bool = False,
    ) -> None:
        self._sources = manifest.generated_in_order()
        self._late = [each for each in manifest.in_compile_order() if each.torch]
        self._devices = devices
        self._watch = watch
        self._refuse = refuse
        self._policy = Policy(find=toolchain.toolchain, environment=toolchain.environment, shows_output=not quiet)
        self._compiler = AsyncCompile(client=client, policy=self._policy, start=False)
        self._recipes = Recipes(self._policy, self._compiler.cache_dir, self._compiler.bundler)
        self._answers: queue.SimpleQueue[tuple[GeneratedSource, Answer]] = queue.SimpleQueue()
        self._asked: dict[str, RecordedSource] = {}
        self._recipe: dict[str, Recipe] = {}
        self._added: dict[str, list[RecipeJob]] = {}
        self._handed_over: set[tuple[RecordedSource, str]] = set()
        self._built: set[Target] = set()
        self._told: set[str] = set()  # targets that nothing is built for

    @property
    def targets(self) -> list[Target]:
        """What is built for."""
        return sorted(self._built, key=str)

    @property
    def statistics(self) -> Statistics:
        """What became of its kernels."""
        return self._compiler.statistics

    def kick_off(self) -> None:
        """Ask for everything, without waiting."""
        torch = _torch_key() if self._sources else ""
        if isinstance(torch, Exception):
            sources = count(len(self._sources), "source")
            self._refuse(f"{sources} of torch.compile's left out: torch cannot be used: {torch}")
            self._sources = []
        for each in self._sources:
            if not self._is_for(each.name, each.target):
                continue
            name = f"{each.name} ({each.target})"
            try:
                source = RecordedSource(
                    msgspec.structs.replace(each, torch=torch),
                    self._policy.toolchain,
                    functools.partial(self._answered, each),
                    background=False,
                    variables=lambda recorded: _with_tools(recorded, self._policy.environment()),
                )
            except DamagedError as error:
                self._refuse(f"{name} was left out: {error.reason}")
                continue
            self._asked[each.key] = source
            self._compiler.client.submit_source(each.name, self._policy, source)
        for late in self._late:
            request = late.request
            if self._is_for(request.name, request.target):
                # As the program will ask for it: in its own process, which does not know torch's assembler.
                environment = _with_tools(request.environment, fingerprint())
                request = msgspec.structs.replace(request, environment=environment)
                try:
                    self._watch(self._compiler.submit(request))
                except UsageError as error:
                    self._refuse(f"{request.name} ({request.target}) was left out: {error}")

    def finish(self) -> None:
        """Wait until it is known of every source which kernels it has, and hand these over."""
        while self._asked:
            recorded, answer = self._answers.get()
            source = self._asked.get(recorded.key)
            if source is None:
                continue  # a service that died had said all of it
            if isinstance(answer, HeadstartError):
                self._refuse(f"{recorded.name} ({recorded.target}) failed: {answer}")
            elif isinstance(answer, wire.AddedCompiled):
                self._hand_over(source, self._recipe[recorded.key], self._added[recorded.key], answer.jobs)
            else:
                self._compiled(source, recorded, answer)
                if answer.has_more:
                    continue
            del self._asked[recorded.key]

    def _answered(self, recorded: GeneratedSource, answer: Answer) -> None:
        """In the connection's thread."""
        self._answers.put((recorded, answer))

    def _is_for(self, name: str, target: str) -> bool:
        """What Inductor generates is for one device, and nothing else can be made of it."""
        try:
            device = Target.parse(target)
        except UsageError as error:
            self._refuse(f"{name} was left out: {error}")
            return False
        if not self._devices or device in self._devices:
            self._built.add(device)
            return True
        if target not in self._told:
            self._told.add(target)
            wanted = ", ".join(map(str, self._devices))
            self._refuse(
                f"what torch.compile generated for {target} was left out: nothing can be made of it for {wanted}; "
                "record a run there"
            )
        return False

    def _compiled(self, source: RecordedSource, recorded: GeneratedSource, said: wire.SourceCompiled) -> None:
        recipe = self._recipe[recorded.key] = decode_recipe(said.recipe)
        if said.key:
            self._recipes.note(said.key, recorded.name, said.recipe)
        if said.added:
            self._added[recorded.key] = decode_jobs(said.added)
            if said.added_key:
                self._recipes.note(said.added_key, recorded.name, said.added)
        self._hand_over(source, recipe, recipe.jobs, said.jobs)

    def _hand_over(
        self,
        source: RecordedSource,
        recipe: Recipe,
        jobs: Sequence[RecipeJob],
        outcomes: Sequence[wire.JobOutcome],
    ) -> None:
        for job, outcome in zip(jobs, outcomes, strict=True):
            if (source, job.key) in self._handed_over:
                continue  # a service that died had said it
            self._handed_over.add((source, job.key))
            if isinstance(outcome.answer, wire.Failed) and outcome.answer.failure.is_refused_by_assembler:
                continue  # to Inductor's autotuners, one configuration less
            make = functools.partial(
                request_of,
                job,
                text=recipe.text,
                path=source.path,
                module=recipe.function.module,
                variables=source.described.variables,
            )
            future, delivered = self._compiler.expect(job.name, make, use_store=True, want=lambda: None)
            delivered.settle(outcome)
            self._watch(future)


def _torch_key() -> str | Exception:
    """Inductor's digest of this torch's files, which only torch itself says."""
    try:
        return facts.torch_key()
    except Exception as error:  # noqa: BLE001 - whatever an import raises
        return error


def _with_tools(recorded: dict[str, str], here: dict[str, str]) -> dict[str, str]:
    """The recorded variables, with the tools of this machine: these count by content."""
    others = {name: value for name, value in recorded.items() if name not in TOOL_VARIABLES}
    return {**others, **{name: value for name, value in here.items() if name in TOOL_VARIABLES}}
