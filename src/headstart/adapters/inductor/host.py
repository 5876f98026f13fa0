"""What sources and the pool need of the adapter that made them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from headstart.adapters.inductor.asking import Asking
from headstart.adapters.inductor.describing import Describing
from headstart.adapters.inductor.jobs import Expected, StartedJob
from headstart.adapters.inductor.layout import Made
from headstart.adapters.inductor.recipes import Recipes
from headstart.adapters.recording import Recorder
from headstart.client.future import LambdaFuture
from headstart.client.kernel import CompiledKernel
from headstart.describe.recipe import Describe, RecipeJob


class Host(Protocol):
    """The adapter, as its sources and its pool know it; `Adapter` says what each method does."""

    recipes: Recipes
    recorder: Recorder | None

    @property
    def keeps(self) -> bool: ...

    def describing_with(self, settings: dict[str, str]) -> Describing: ...

    def forget(self, source: Any) -> None: ...

    def soon(self, step: Callable[..., None], *arguments: Any) -> bool: ...

    def later(self, step: Callable[..., None], *arguments: Any) -> None: ...

    def compile_job(
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
    ) -> LambdaFuture[CompiledKernel]: ...

    def expect_job(
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
    ) -> Expected | None: ...

    def find_job(self, key: str, variables: dict[str, str]) -> StartedJob | None: ...

    def made(self, job: RecipeJob, variables: dict[str, str]) -> Made | None: ...

    def materialize(self, job: RecipeJob, kernel: CompiledKernel, root: str) -> None: ...

    def heard(self) -> None: ...

    def queued(self) -> None: ...

    def patience_left(self) -> float | None: ...

    def load_here(self, load: Callable[[], Any]) -> Any: ...

    def steps_aside(self, name: str, stem: str, reason: str) -> None: ...

    def log_once(self, text: str) -> None: ...


class Described(Protocol):
    """A source, as those know it who do its compiles; `Source` says what each method does."""

    adapter: Host
    described: Describe
    variables: dict[str, str]
    use_store: bool
    asking: Asking

    def arguments(self) -> dict[str, Any]: ...

    def ensure_file(self) -> None: ...

    def guarded(self, step: Callable[..., None]) -> Callable[..., None]: ...

    def index(self) -> int: ...

    def path(self) -> str: ...

    def root(self) -> str: ...

    def settle(self, outcome: str | BaseException | None = None) -> None: ...


class PoolHost(Host, Protocol):
    """The same for the pool, which kicks sources off."""

    def kick_off(
        self, name: str, text: str, environment: dict[str, str], config: dict[str, Any], settings: dict[str, str]
    ) -> Any: ...
