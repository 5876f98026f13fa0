"""Recipes of torch.compile's sources in the stores of clients. All of it reads and writes files: errands."""

from __future__ import annotations

import logging
from collections import OrderedDict

import msgspec

from headstart import wire
from headstart.artifacts import triton_cache
from headstart.artifacts.cubin import registers
from headstart.artifacts.entry import Entry, entry_digest
from headstart.describe import recipe_entries
from headstart.describe.recipe import Describe, Recipe, RecipeJob
from headstart.errors import DamagedError, ServiceError, StoreUnavailable
from headstart.model.request import CompileRequest
from headstart.service.look_ups import Sought
from headstart.service.lookup import Lookup

_MOST_KNOWN = 2000  # recipes that are kept in memory, some KiB each

_encoder = msgspec.msgpack.Encoder()
_log = logging.getLogger("headstart.service")


class Found(msgspec.Struct, frozen=True):
    """What a store says of a source; `strange`: why what it has there is not used."""

    key: str
    recipe: Recipe | None = None
    strange: str = ""


class Recipes:
    """Finds and keeps recipes.

    Args:
        lookup: has the stores, and knows the toolchains.
    """

    def __init__(self, lookup: Lookup) -> None:
        self._lookup = lookup
        self._known: OrderedDict[tuple[bytes, str], Recipe] = OrderedDict()  # by cache folder and key, the latest last

    def find(self, asked: wire.SubmitSource, described: Describe, preferences: wire.Preferences) -> Found:
        """The key of a source's recipe, and that, if the source was described before by the same torch and Triton.

        Raises:
            ServiceError: the toolchain cannot be read.
        """
        key = recipe_entries.recipe_key(described, self._toolchain(asked, described, preferences), asked.torch)
        if not asked.use_store:
            return Found(key)
        known = self._known.get((preferences.cache_dir, key))  # of another rank, most likely
        if known is not None:
            return Found(key, known)
        entry = self._entry(key, preferences)
        if entry is None:
            return Found(key, self._recorded(asked, described, key, preferences))
        try:
            recipe = recipe_entries.recipe_of(entry, described, asked.stem)
        except recipe_entries.NotOwn as error:
            return Found(key, strange=str(error))
        self._remember(key, recipe, preferences)
        return Found(key, recipe)

    def _recorded(
        self, asked: wire.SubmitSource, described: Describe, key: str, preferences: wire.Preferences
    ) -> Recipe | None:
        """The recipe that an earlier run made of the source, if that was under the same key; it is kept."""
        said = asked.recorded
        if said is None or said.key != key:
            return None
        recipe = recipe_entries.decoded(said.recipe, described, asked.stem)
        if recipe is not None:
            self.keep(key, asked, described, recipe, preferences)
        return recipe

    def added(
        self,
        asked: wire.SubmitSource,
        described: Describe,
        recipe: Recipe,
        counts: list[int | None],
        preferences: wire.Preferences,
    ) -> tuple[str, list[RecipeJob] | None]:
        """The key of what rescaling adds, and that, if it is known; `counts`: registers per thread of each job.

        Raises:
            ServiceError: as `find`.
        """
        toolchain = self._toolchain(asked, described, preferences)
        key = recipe_entries.added_key(recipe, counts, toolchain, asked.torch)
        entry = self._entry(key, preferences) if asked.use_store else None
        if entry is not None:
            return key, recipe_entries.added_of(entry, described)
        said = asked.recorded
        jobs = None
        if said is not None and said.added_key == key:
            jobs = recipe_entries.decoded_jobs(said.added, described)
            if jobs is not None and asked.use_store:
                self.keep(key, asked, described, jobs, preferences)
        return key, jobs

    def keep(
        self,
        key: str,
        asked: wire.SubmitSource,
        described: Describe,
        content: Recipe | list[RecipeJob],
        preferences: wire.Preferences,
    ) -> bytes:
        """Keep a recipe, or what rescaling adds.

        Returns:
            SHA-256 of the entry; empty if it could not be kept, which costs others the describing.
        """
        if isinstance(content, Recipe):
            self._remember(key, content, preferences)
        try:
            toolchain = self._toolchain(asked, described, preferences)
            parts = recipe_entries.pack(key, described.name, _encoder.encode(content), toolchain)
            self._lookup.store(preferences).publish(key, parts)
        except (StoreUnavailable, ServiceError) as error:
            _log.debug("a recipe is not kept: %s", error)
            return b""
        return entry_digest(parts)

    @staticmethod
    def sought(key: str, preferences: wire.Preferences) -> Sought:
        """What other hosts are asked for, or offered."""
        return Sought(key, recipe_entries.KIND, key, preferences.cache_dir, preferences.trusts_cache_dir)

    def made_known(
        self,
        result: wire.Result,
        request: CompileRequest,
        place: wire.TritonCache | None,
        preferences: wire.Preferences,
    ) -> wire.Result:
        """What a client is told of a kernel that its worker has not put where the client wants it.

        Args:
            place: where that is; the kernel is put there, if it can be. None: only its registers are wanted.
        """
        try:
            entry = Entry.from_bytes(result.entry) if result.entry else None
            if entry is None:
                store = self._lookup.store(preferences)
                entry = store.find(result.key, kind="kernel", request_digest=request.digest())
            if entry is None:
                return result
            artifacts = {name: entry.artifact(name) for name in entry.artifact_names}
            count = registers(artifacts["cubin"], entry.metadata["name"]) if "cubin" in artifacts else None
            result = msgspec.structs.replace(result, registers=count)
            if place is None:
                return result
            triton_cache.keep(place, artifacts, entry.metadata)
        except (DamagedError, OSError):
            return result  # the client sees to it, and finds out why
        return msgspec.structs.replace(result, in_triton_cache=True)

    def _remember(self, key: str, recipe: Recipe, preferences: wire.Preferences) -> None:
        self._known[preferences.cache_dir, key] = recipe
        if len(self._known) > _MOST_KNOWN:
            self._known.popitem(last=False)

    def _entry(self, key: str, preferences: wire.Preferences) -> Entry | None:
        return self._lookup.store(preferences).find(key, kind=recipe_entries.KIND, request_digest=key)

    def _toolchain(self, asked: wire.SubmitSource, described: Describe, preferences: wire.Preferences) -> str:
        return self._lookup.digest(asked.spec.toolchain, described.variables, preferences)
