"""Entries in a repository of an OCI registry.

    a blob                           what is under a key
    a manifest, tagged <tag>-<key>   names that blob; one that is no longer than `EMBEDDED_BYTES` is in it as well

<tag> is the URL's, or `headstart`. A descriptor's `data` is of the OCI Image Specification 1.1: it makes one request of
what would be two. Registries have no way to ask for many things at once, so keys are asked for side by side, over
connections that are kept.

Guarantees:

A blob is what the manifest has the digest of, and is read no further than the manifest says.

What is deleted is gone even where a registry lets nobody delete: its tag then names a manifest that has nothing in it.
"""

from __future__ import annotations

import base64
import binascii
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import msgspec

from headstart.errors import UsageError
from headstart.stores.remote.base import (
    MAX_BLOB_BYTES,
    MAX_REPLY_BYTES,
    Progress,
    RemoteError,
    check_blob,
    check_key,
)
from headstart.stores.remote.references import DIGEST
from headstart.stores.remote.registry import AT_ONCE, Registry, digest_of
from headstart.stores.remote.urls import RemoteUrl

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
ENTRY_TYPE = "application/vnd.headstart.entry.v1"
EMBEDDED_BYTES = 256 << 10
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
EMPTY = b"{}"
_TAG = "headstart"
_MAX_TAG = 128 - 1 - 64  # characters: a key follows

T = TypeVar("T")


class Descriptor(
    msgspec.Struct, omit_defaults=True, rename={"media_type": "mediaType", "artifact_type": "artifactType"}
):
    """What a manifest says of a blob. `size` is in bytes; `data` the blob itself, in base64."""

    media_type: str
    digest: str
    size: int
    data: str = ""
    annotations: dict[str, str] = {}


class Manifest(
    msgspec.Struct,
    omit_defaults=True,
    rename={"schema_version": "schemaVersion", "media_type": "mediaType", "artifact_type": "artifactType"},
):
    """An artifact of a registry: what kind it is, and its blobs."""

    schema_version: int
    config: Descriptor
    layers: list[Descriptor]
    media_type: str = ""
    artifact_type: str = ""
    annotations: dict[str, str] = {}

    def encode(self) -> bytes:
        """As it is kept; equal manifests are equal bytes."""
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, body: bytes) -> Manifest | None:
        """What a registry has; None if it is no manifest of an artifact."""
        try:
            return _decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None


_decoder = msgspec.json.Decoder(Manifest)


def manifest_of(media_type: str, layers: list[Descriptor], annotations: dict[str, str] | None = None) -> bytes:
    """The manifest of an artifact that has these blobs and no configuration."""
    config = Descriptor(EMPTY_TYPE, digest_of(EMPTY), len(EMPTY))
    return Manifest(2, config, layers, MANIFEST_TYPE, media_type, annotations or {}).encode()


# What a tag names whose entry was deleted. The blob it names is there, as registries demand, and is no entry.
_GONE = manifest_of(EMPTY_TYPE, [Descriptor(EMPTY_TYPE, digest_of(EMPTY), len(EMPTY))])


class OciRemote:
    """Blobs as artifacts of a repository. Nothing is connected to before the first call.

    Args:
        url: names them.
        progress: see `open_remote`.

    Raises:
        UsageError: urllib3 is not installed, or no registry could have this URL.
    """

    writable = True

    def __init__(self, url: RemoteUrl, progress: Progress | None = None) -> None:
        self.name = url.shown
        self._progress = progress or Progress()
        self.trusted = url.trust_all
        self._registry = Registry(url)
        reference = self._registry.reference
        if reference.digest:
            raise UsageError(f"{url.shown}: a digest names one artifact, where nothing more can be kept; name a tag")
        if len(reference.tag) > _MAX_TAG:
            raise UsageError(f"{url.shown}: a tag of at most {_MAX_TAG} characters leaves room for keys")
        self._tag = reference.tag or _TAG
        self._has_empty = False

    def get_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        """See `Remote`."""
        tags = {check_key(key): self._tag_of(key) for key in keys}
        room = _Room(MAX_REPLY_BYTES)
        if len(tags) < 2:
            blobs = [self._get(tag, room) for tag in tags.values()]
        else:
            blobs = _side_by_side(lambda tag: self._get(tag, room), list(tags.values()))
        return {key: blob for key, blob in zip(tags, blobs, strict=True) if blob is not None}

    def put(self, key: str, blob: bytes) -> None:
        """See `Remote`."""
        tag = self._tag_of(check_key(key))
        digest = digest_of(check_blob(blob))
        if self._registry.manifest_digest(tag, MANIFEST_TYPE) not in ("", digest_of(_GONE)):
            return
        data = base64.b64encode(blob).decode() if len(blob) <= EMBEDDED_BYTES else ""
        layer = Descriptor(ENTRY_TYPE, digest, len(blob), data)
        # With its key, so that no two keys have one manifest: it is deleted by its digest.
        body = manifest_of(ENTRY_TYPE, [layer], {"io.headstart.key": key})
        try:
            self._put_empty()
            self._registry.put_blob(digest, len(blob), blob)
            self._registry.put_manifest(tag, body, MANIFEST_TYPE)
        except RemoteError as error:
            # A registry may answer 500 to all but one of those who push the same at once.
            if error.lasting or self._registry.manifest_digest(tag, MANIFEST_TYPE) in ("", digest_of(_GONE)):
                raise

    def claim(self, key: str, seconds: float) -> bool | None:
        """There are none: a registry keeps the last tag of those that come at once."""
        return None

    def release(self, key: str) -> None:
        """See `Remote`."""

    def delete(self, key: str) -> None:
        """See `Remote`. Its blob stays until the registry collects garbage."""
        tag = self._tag_of(check_key(key))
        digest = self._registry.manifest_digest(tag, MANIFEST_TYPE)
        if digest in ("", digest_of(_GONE)) or self._registry.delete_manifest(digest):
            return
        self._put_empty()
        self._registry.put_manifest(tag, _GONE, MANIFEST_TYPE)

    def close(self) -> None:
        """See `Remote`."""
        self._registry.close()

    def _get(self, tag: str, room: _Room) -> bytes | None:
        blob = self._get_one(tag, room)
        self._progress()
        return blob

    def _get_one(self, tag: str, room: _Room) -> bytes | None:
        found = self._registry.manifest(tag, MANIFEST_TYPE)
        manifest = None if found is None else Manifest.decode(found[0])
        if manifest is None or len(manifest.layers) != 1:
            return None
        layer = manifest.layers[0]
        # The digest becomes part of an address.
        if layer.media_type != ENTRY_TYPE or not DIGEST.fullmatch(layer.digest):
            return None
        if not 0 <= layer.size <= MAX_BLOB_BYTES or not room.take(layer.size):
            return None
        if layer.data:
            blob = _decoded(layer)
            if blob is not None:
                return blob
        return self._registry.blob(layer.digest, layer.size)

    def _put_empty(self) -> None:
        """Manifests name it as their configuration, and registries demand that it is there."""
        if not self._has_empty:
            self._registry.put_blob(digest_of(EMPTY), len(EMPTY), EMPTY)
            self._has_empty = True

    def _tag_of(self, key: str) -> str:
        return f"{self._tag}-{key}"


class _Room:
    """How many bytes one reply may still take."""

    def __init__(self, left: int) -> None:
        self._left = left
        self._lock = threading.Lock()

    def take(self, size: int) -> bool:
        """False: there is not so much left."""
        with self._lock:
            if size > self._left:
                return False
            self._left -= size
            return True


def _decoded(layer: Descriptor) -> bytes | None:
    try:
        blob = base64.b64decode(layer.data, validate=True)
    except (binascii.Error, ValueError):
        return None
    return blob if len(blob) == layer.size and digest_of(blob) == layer.digest else None


def _side_by_side(what: Callable[[Any], T], arguments: Sequence[Any]) -> list[T]:
    """The first error ends it: what has not begun by then is not done."""
    with ThreadPoolExecutor(min(AT_ONCE, len(arguments)), thread_name_prefix="headstart-oci") as threads:
        futures = [threads.submit(what, each) for each in arguments]
        try:
            return [future.result() for future in futures]
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise
