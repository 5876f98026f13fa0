"""Recipes that outlive the process: entries in the store and in bundles, beside the kernels that they are for.

What a recipe depends on is in its key: the source, torch, Triton and Python by content, and the settings that
Inductor's decorators read. The folder of Inductor's cache is not: recipes name a source by its key in that cache.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from headstart.adapters.inductor.ownership import are_own, is_own
from headstart.artifacts.entry import Entry, pack_entry
from headstart.client.policy import Policy
from headstart.describe import facts
from headstart.describe.recipe import Describe, Recipe, RecipeJob
from headstart.errors import DamagedError, ServiceError, StoreUnavailable
from headstart.model import keys
from headstart.model.environment import TOOL_VARIABLES
from headstart.stores import open_store
from headstart.system.settings import trusts_cache_dir

FORMAT = "recipe 5"  # raised whenever a recipe changes its meaning
KIND = "recipe"  # of such an entry, and what its artifact is called

_log = logging.getLogger("headstart")
_encoder = msgspec.msgpack.Encoder()
_recipe_decoder = msgspec.msgpack.Decoder(Recipe)
_jobs_decoder = msgspec.msgpack.Decoder(list[RecipeJob])


class Recipes:
    """Finds and keeps recipes. Belongs to the adapter's thread.

    Args:
        policy: says what compiles.
        cache_dir: headstart's cache folder.
        find_bundled: an entry of one of the bundles in use.
        note: has an entry written into the next bundle.
        later: runs what nobody waits for.
    """

    def __init__(
        self,
        policy: Policy,
        cache_dir: Path,
        find_bundled: Callable[[str], Entry | None],
        note: Callable[[str, Callable[[], Entry]], None],
        later: Callable[..., None],
    ) -> None:
        self._policy = policy
        self._cache_dir = cache_dir
        self._store = open_store(cache_dir, trusted=trusts_cache_dir())
        self._find_bundled = find_bundled
        self._note = note
        self._later = later

    def prepare(self) -> None:
        """Do early what the first key needs: reading a toolchain that was never read before takes seconds."""
        with contextlib.suppress(ServiceError):
            self._toolchain_digest()

    def find(self, described: Describe) -> Recipe | None:
        """The recipe of a source, if it was described before by the same torch and Triton."""
        key = self._key(described)
        entry = self._find(key)
        if entry is None:
            return None
        with contextlib.suppress(msgspec.DecodeError, DamagedError, OSError):
            recipe = _recipe_decoder.decode(entry.artifact(KIND))
            if is_own(recipe, described):
                self._note(key, lambda: entry)
                return recipe
            _log.warning("%s: what a bundle or the store says is not what its source says; unused", described.name)
        return None

    def keep(self, described: Describe, recipe: Recipe) -> None:
        """Keep a recipe for other processes. A store that cannot be written costs them the describing."""
        self._keep(self._key(described), described.name, _encoder.encode(recipe))

    def scaled(self, described: Describe, recipe: Recipe, registers: tuple[int | None, ...]) -> list[RecipeJob] | None:
        """What `Rescale` answered earlier."""
        key = self._scaled_key(recipe, registers)
        entry = self._find(key)
        if entry is None:
            return None
        with contextlib.suppress(msgspec.DecodeError, DamagedError, OSError):
            jobs = _jobs_decoder.decode(entry.artifact(KIND))
            if are_own(jobs, described):
                self._note(key, lambda: entry)
                return jobs
        return None

    def keep_scaled(self, recipe: Recipe, registers: tuple[int | None, ...], jobs: list[RecipeJob]) -> None:
        """As `keep`, for the answer to `Rescale`."""
        self._keep(self._scaled_key(recipe, registers), recipe.function.name, _encoder.encode(jobs))

    def _find(self, key: str) -> Entry | None:
        bundled = self._find_bundled(key)
        if bundled is not None and bundled.answers(KIND, key):
            return bundled
        return self._store.find(key, kind=KIND, request_digest=key)

    def _keep(self, key: str, name: str, content: bytes) -> None:
        parts = pack_entry(
            key=key,
            kind=KIND,
            name=name,
            request_digest=key,
            toolchain=self._toolchain_digest(),
            target="",
            components=[("format", FORMAT)],
            metadata={},
            artifacts={KIND: content},
            compile_wall_s=0.0,
            compile_cpu_s=0.0,
            triton_version="",
            request=b"",
            output="",
        )
        data = b"".join(parts)
        self._note(key, lambda: Entry.from_bytes(data))
        self._later(self._publish, key, parts)

    def _publish(self, key: str, parts: list[bytes]) -> None:
        try:
            self._store.publish(key, parts)
        except StoreUnavailable as error:
            _log.debug("a recipe is not kept: %s", error)

    def _key(self, described: Describe) -> str:
        return keys.digest(
            [
                ("format", FORMAT),
                ("toolchain", self._toolchain_digest(described.variables)),
                ("torch", facts.torch_key()),
                ("kernel", described.name),
                ("config", repr(described.config)),
                *sorted(described.settings.items()),
                *((name, value) for name, value in sorted(described.variables.items()) if name not in TOOL_VARIABLES),
                ("source", described.source),
            ]
        )

    def _scaled_key(self, recipe: Recipe, registers: tuple[int | None, ...]) -> str:
        jobs = "\n".join(job.key for job in recipe.jobs)
        return keys.digest(
            [
                ("format", FORMAT),
                ("toolchain", self._toolchain_digest()),
                ("torch", facts.torch_key()),
                ("registers", repr(registers)),
                ("jobs", jobs),
            ]
        )

    def _toolchain_digest(self, variables: Mapping[str, str] | None = None) -> str:
        """Of the toolchain with the tools that `variables` name; by default this process's."""
        return self._policy.toolchain_digest(self._cache_dir, variables)
