"""Recipes in the bundles of this process: found there, and noted for the next one. The service searches stores."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path

from headstart.artifacts.bundle import Bundle
from headstart.artifacts.entry import Entry
from headstart.client.bundler import TritonBundler
from headstart.client.policy import Policy
from headstart.describe import facts, recipe_entries
from headstart.describe.recipe import Describe, Recipe, RecipeJob
from headstart.errors import ServiceError

_log = logging.getLogger("headstart")


class Recipes:
    """Those of one process.

    Args:
        policy: says what compiles.
        cache_dir: headstart's cache folder.
        bundler: has the bundles.

    Attributes:
        are_bundled: whether there are any in the bundles that were read.
        noted: keys of those that the program's sources have.
    """

    def __init__(self, policy: Policy, cache_dir: Path, bundler: TritonBundler) -> None:
        self._policy = policy
        self._cache_dir = cache_dir
        self._bundler = bundler
        self.are_bundled = False
        self.noted: set[str] = set()
        bundler.offer_to(self._emit)

    def prepare(self) -> None:
        """Do early what the first key needs: reading a toolchain that was never read before takes seconds."""
        with contextlib.suppress(ServiceError):
            self._toolchain()

    def find(self, described: Describe, stem: str) -> tuple[str, bytes, Recipe] | None:
        """The recipe of a source, its key and its encoding, if a bundle has it.

        Args:
            described: the source.
            stem: its key in Inductor's code cache.

        Raises:
            ServiceError: the toolchain cannot be read.
        """
        key = recipe_entries.recipe_key(described, self._toolchain(described.variables), facts.torch_key())
        entry = self._find(key)
        if entry is None:
            return None
        try:
            recipe = recipe_entries.recipe_of(entry, described, stem)
        except recipe_entries.NotOwn as error:
            _log.warning("%s", error)
            return None
        self._bundler.put(key, lambda: entry)
        self.noted.add(key)
        return key, entry.artifact(recipe_entries.KIND), recipe

    def has(self, key: str) -> bool:
        """Whether a bundle has the recipe with this key."""
        return self._find(key) is not None

    def added(self, described: Describe, recipe: Recipe, registers: list[int | None]) -> list[RecipeJob] | None:
        """What rescaling adds, given registers per thread of each of a recipe's jobs, if a bundle has it."""
        toolchain = self._toolchain(described.variables)
        key = recipe_entries.added_key(recipe, registers, toolchain, facts.torch_key())
        entry = self._find(key)
        jobs = None if entry is None else recipe_entries.added_of(entry, described)
        if entry is not None and jobs is not None:
            self._bundler.put(key, lambda: entry)
        return jobs

    def note(self, key: str, name: str, content: bytes) -> None:
        """Have a recipe, or what rescaling adds, written into the next bundle; see `recipe_entries.pack`."""

        def make() -> Entry:
            return Entry.from_bytes(b"".join(recipe_entries.pack(key, name, content, self._toolchain())))

        self._bundler.put(key, make)
        self.noted.add(key)

    def _emit(self, bundle: Bundle) -> int:
        self.are_bundled = self.are_bundled or any(item.kind == recipe_entries.KIND for item in bundle)
        return 0  # none of them is a kernel

    def _find(self, key: str) -> Entry | None:
        entry = self._bundler.find(key, recipe_entries.KIND)
        return entry if entry is not None and entry.answers(recipe_entries.KIND, key) else None

    def _toolchain(self, variables: Mapping[str, str] | None = None) -> str:
        """Digest of the toolchain with the tools that `variables` name; by default this process's."""
        return self._policy.toolchain_digest(self._cache_dir, variables)
