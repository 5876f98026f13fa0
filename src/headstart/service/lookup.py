"""What is known of a request before anything is compiled: its key, its entry in the store, or that it failed before.

All of it reads files, in the errands' thread. Only `key` may be called from the loop: it knows what was read before.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import msgspec

from headstart import wire
from headstart.artifacts import triton_cache
from headstart.artifacts.entry import Entry
from headstart.errors import DamagedError, ServiceError
from headstart.model import keys
from headstart.model.request import CompileRequest
from headstart.model.toolchain import Toolchain
from headstart.service.limits import effective_time_limit
from headstart.service.queue import Kind, Urgency
from headstart.service.toolchains import Toolchains
from headstart.stores import open_store
from headstart.stores.disk import DiskStore
from headstart.stores.failures import Failures


class Found(msgspec.Struct, frozen=True):
    """What was found.

    Attributes:
        digest: of the toolchain; empty if it cannot be read, as `failure` says.
        key: of the entry.
        kind: of the workers that compile it.
        shared: bytes of shared memory that the stored kernel needs; None: it is not in the store.
        seconds: that it took to compile.
        in_triton_cache, registers: as in `wire.Finished`.
        failure: why it is not to be tried.
        remote: whether another host had compiled it.
        entry: its bytes, where the store cannot be written.
        farm: whether a farm has compiled it for this service.
        sha256: then, of the entry as it was put into the store.
    """

    digest: str = ""
    key: str = ""
    kind: Kind | None = None
    shared: int | None = None
    seconds: float = 0.0
    in_triton_cache: bytes = b""
    registers: int | None = None
    failure: wire.Failure | None = None
    remote: bool = False
    entry: bytes = b""
    farm: bool = False
    sha256: bytes = b""


class Lookup:
    """Toolchains and stores, as far as a service has looked at them.

    Args:
        warn: told what a person should know, and of which cache folder.
    """

    def __init__(self, warn: Callable[[str, str], None]) -> None:
        self._warn = warn
        self._toolchains = Toolchains()
        self._stores: dict[str, DiskStore] = {}

    def store(self, preferences: wire.Preferences) -> DiskStore:
        """Of a client's cache folder."""
        cache_dir = os.fsdecode(preferences.cache_dir)
        store = self._stores.get(cache_dir)
        limit, trusted = preferences.store_limit, preferences.trusts_cache_dir
        if store is None or (store.limit_bytes, store.trusted) != (limit, trusted):
            warn = self._warn
            store = self._stores[cache_dir] = open_store(
                cache_dir, limit_bytes=limit, trusted=trusted, warn=lambda text: warn(text, cache_dir)
            )
        return store

    def look_at(self, toolchain: Toolchain, preferences: wire.Preferences) -> None:
        """Notice what of a toolchain was rebuilt or edited since somebody looked."""
        self._toolchains.look_again(toolchain, os.fsdecode(preferences.cache_dir))

    def digest(self, toolchain: Toolchain, variables: Mapping[str, str], preferences: wire.Preferences) -> str:
        """Of a toolchain with the tools that `variables` name. Raises as `Toolchain.digest`."""
        return self._toolchains.digest(toolchain, variables, os.fsdecode(preferences.cache_dir))

    def generation(self, toolchain: Toolchain) -> int:
        """How often it has changed on disk."""
        return self._toolchains.generation(toolchain)

    def kind(self, toolchain: Toolchain, environment: Mapping[str, str], confined: bool) -> Kind:
        """Of the workers that compile with a toolchain in an environment."""
        variables = tuple(sorted(environment.items()))
        # What generated kernels import of torch is shown to them alone, whichever process compiles them.
        plain = msgspec.structs.replace(toolchain, torch_dir="")
        return Kind((plain, self.generation(toolchain)), variables, confined)

    def key(self, toolchain: Toolchain, request: CompileRequest) -> tuple[str, str] | None:
        """Digest of the toolchain and key of the entry, if that needs no look at a file."""
        digest = self._toolchains.known(toolchain, request.environment)
        return None if digest is None else (digest, keys.entry_key(digest, request.digest()))

    def find(
        self,
        message: wire.Submit,
        request: CompileRequest,
        preferences: wire.Preferences,
        *,
        use_store: bool,
        look_again: bool,
    ) -> Found:
        """Look a request up."""
        cache_dir = os.fsdecode(preferences.cache_dir)
        if look_again:
            self.look_at(message.toolchain, preferences)
        try:
            digest = self._toolchains.digest(message.toolchain, request.environment, cache_dir)
        except ServiceError as error:
            return Found(failure=wire.Failure("service", str(error)))
        key = keys.entry_key(digest, request.digest())
        kind = self.kind(message.toolchain, request.environment, not message.vouched)
        found = Found(digest, key, kind)
        if not use_store:
            return found
        entry = self.store(preferences).find(key, kind=request.kind, request_digest=request.digest())
        if entry is not None:
            return _with(found, entry, message.triton_cache if message.vouched else None)
        urgency = Urgency.BACKGROUND if message.background else Urgency.EARLY
        time_limit = effective_time_limit(preferences.time_limit, urgency)
        failure = Failures(cache_dir).find(key, time_limit, preferences.memory_limit)
        return msgspec.structs.replace(found, failure=failure)

    def find_made(
        self,
        key: str,
        request: CompileRequest,
        preferences: wire.Preferences,
        cache: wire.TritonCache | None,
        data: bytes,
    ) -> Found:
        """Look up what has just been put into a store, or, where that cannot be written, is `data`.

        Args:
            key, request: of the entry.
            preferences: whose store.
            cache: where it is to be as well.
            data: the entry; empty: it is in the store.
        """
        entry: Entry | None
        if data:
            entry = Entry.from_bytes(data)
        else:
            entry = self.store(preferences).find(key, kind=request.kind, request_digest=request.digest())
        found = Found(key=key, entry=data)
        return found if entry is None else _with(found, entry, cache)


def _with(found: Found, entry: Entry, cache: wire.TritonCache | None) -> Found:
    """What is told of an entry, which is put into Triton's own cache as well if that is named."""
    shared = int(entry.metadata.get("shared") or 0)
    found = msgspec.structs.replace(found, shared=shared, seconds=entry.header.compile_wall_s)
    if cache is None:
        return found
    try:
        artifacts = {name: entry.artifact(name) for name in entry.artifact_names}
        folder, registers = triton_cache.keep(cache, artifacts, entry.metadata)
    except (DamagedError, OSError):
        return found  # the client sees to it, and finds out why
    return msgspec.structs.replace(found, in_triton_cache=folder, registers=registers)
