"""What a node made, before anybody uses it: verified to its last byte, then put into a local store.

A sealed entry counts if it is whole, and of the key, kind, request and toolchain that were asked for; and, where the
user wants signatures (`HEADSTART_REMOTE_TRUST=signed`), if a key that the user trusts signed it. What carries code
needs a signature in any case, and is never asked for.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from hashlib import sha256

from headstart.artifacts.entry import Entry
from headstart.errors import DamagedError, StoreUnavailable
from headstart.farm.routing import Routed
from headstart.model.request import KERNEL
from headstart.stores import open_store
from headstart.stores.disk import DiskStore
from headstart.stores.remote.base import plain
from headstart.stores.remote.sealing import NotTrusted, Verifier, keyring_in, unseal
from headstart.wire.farm import FarmSettings, MadeEntry, NodeResult

_log = logging.getLogger("headstart.farm")


class NotAccepted(Exception):
    """A node's answer is of no use; the text says why, for people."""


class Accepting:
    """For one bridge; used by one thread.

    Args:
        settings: whose signatures count.
        warn: told what a person should know.
    """

    def __init__(self, settings: FarmSettings, warn: Callable[[str], None]) -> None:
        self._signed = settings.signed
        self._verifier = Verifier(keyring_in(settings.config_dir), warn)
        self._warn = warn
        self._stores: dict[tuple[bytes, bool], DiskStore] = {}

    def accept(self, routed: Routed, node: str, blob: bytes) -> MadeEntry:
        """Verify a sealed entry, and publish it in the local store of whoever asked.

        Raises:
            NotAccepted: it is not what was asked for.
        """
        job = routed.job
        try:
            data = unseal(
                job.key,
                blob,
                self._verifier,
                signed=self._signed,
                kind=KERNEL,
                request_digest=job.request_digest,
            )
            made_by = Entry.from_bytes(data).header.toolchain
        except DamagedError as error:
            raise NotAccepted(
                f"what it sent for {job.key[:12]} is damaged, or another kernel's ({plain(error.reason)})"
            ) from None
        except NotTrusted as error:
            raise NotAccepted(
                f"HEADSTART_REMOTE_TRUST=signed, and what it sends does not count: {plain(error)}; "
                "headstart key trust, with the public key of the nodes, has it count"
            ) from None
        if made_by != job.toolchain:
            raise NotAccepted(f"it made {job.key[:12]} with another toolchain")
        digest = sha256(data).digest()
        try:
            self._store(routed.cache_dir, routed.trusted).publish(job.key, [data])
        except StoreUnavailable:
            return MadeEntry(job.ticket, node, digest, data)
        return MadeEntry(job.ticket, node, digest)

    def accept_all(
        self, node: str, results: list[tuple[NodeResult, Routed]]
    ) -> tuple[list[MadeEntry], list[tuple[Routed, str]]]:
        """What is of use, and what is not, with the reason."""
        made: list[MadeEntry] = []
        refused: list[tuple[Routed, str]] = []
        for result, routed in results:
            try:
                made.append(self.accept(routed, node, result.blob))
            except NotAccepted as error:
                refused.append((routed, str(error)))
            except Exception as error:  # noqa: BLE001 - the others are to be told of
                _log.exception("an entry is lost; this is a bug")
                refused.append((routed, f"{type(error).__name__}: {error}"))
        return made, refused

    def _store(self, cache_dir: bytes, trusted: bool) -> DiskStore:
        store = self._stores.get((cache_dir, trusted))
        if store is None:
            store = self._stores[cache_dir, trusted] = open_store(
                os.fsdecode(cache_dir), trusted=trusted, warn=self._warn
            )
        return store
