"""What sources and the pool need of the adapter that made them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from headstart.adapters.inductor.describing import Describing
from headstart.adapters.inductor.layout import Made
from headstart.adapters.inductor.recipes import Recipes
from headstart.client.future import LambdaFuture
from headstart.client.kernel import CompiledKernel
from headstart.describe.recipe import RecipeJob


class Host(Protocol):
    """The adapter, as its sources and its pool know it; `Adapter` says what each method does."""

    recipes: Recipes

    def describing_with(self, settings: dict[str, str]) -> Describing: ...

    def canonical(self, key: Any, source: Any) -> Any: ...

    def forget(self, source: Any) -> None: ...

    def soon(self, step: Callable[..., None], *arguments: Any) -> None: ...

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

    def made(self, job: RecipeJob, variables: dict[str, str]) -> Made | None: ...

    def materialize(self, job: RecipeJob, kernel: CompiledKernel, root: str) -> None: ...

    def heard(self) -> None: ...

    def patience_left(self) -> float | None: ...

    def load_here(self, load: Callable[[], Any]) -> Any: ...

    def steps_aside(self, name: str, stem: str, reason: str) -> None: ...

    def log_once(self, text: str) -> None: ...


class PoolHost(Host, Protocol):
    """The same for the pool, which kicks sources off."""

    def kick_off(
        self, name: str, text: str, environment: dict[str, str], config: dict[str, Any], settings: dict[str, str]
    ) -> Any: ...
