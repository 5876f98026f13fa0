"""Bundles as artifacts of an OCI registry: pushed under a tag, pulled by tag or by digest.

    manifest    artifactType application/vnd.headstart.bundle.v1
    └ layer     the bundle, as the file is, of the same media type

What is pulled is compared with its digests before it gets its name, and must be a bundle. Signatures are in the file:
nothing here looks at them.

A program may be waiting for what is pulled: so that takes no longer than `TAG_SECONDS`, or `PULL_SECONDS` and what
`LEAST_RATE` takes for the bytes that have come, whatever a registry does.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn, TypeVar

from headstart.artifacts.bundle import Bundle
from headstart.artifacts.container import Snapshot, snapshot_of
from headstart.artifacts.index import read_index
from headstart.errors import DamagedError, UsageError
from headstart.stores.remote.base import RemoteError
from headstart.stores.remote.oci import EMPTY, EMPTY_TYPE, MANIFEST_TYPE, Descriptor, Manifest, manifest_of
from headstart.stores.remote.references import DIGEST, reference_of
from headstart.stores.remote.registry import Registry, digest_of
from headstart.stores.remote.urls import RemoteUrl, parse_url
from headstart.system.files import BUNDLE, Replacement

BUNDLE_TYPE = "application/vnd.headstart.bundle.v1"
READ_SECONDS = 60.0  # between two pieces: registries may take long to check what was uploaded
TAG_SECONDS = 5.0  # for what a tag is now
PULL_SECONDS = 30.0  # for a bundle of no bytes
LEAST_RATE = 256 << 10  # bytes a second
MAX_BUNDLE_BYTES = 16 << 30
_PIECE = 1 << 20
_TITLE = "org.opencontainers.image.title"

T = TypeVar("T")


class Artifact(NamedTuple):
    """A bundle in a registry.

    Attributes:
        name: where it is, by digest: with it, nothing else can be pulled.
        size: of the bundle, bytes.
    """

    name: str
    size: int


def push_bundle(path: Path, where: str) -> Artifact:
    """Put a bundle into a registry, under the tag of the URL; `latest` if it has none.

    Raises:
        UsageError: the URL cannot be pushed to.
        DamagedError: the file is no bundle.
        OSError: it cannot be read.
        RemoteError: the registry does not take it.
    """
    url = _oci_url(where)
    registry = Registry(url, read_seconds=READ_SECONDS)
    reference = registry.reference
    if reference.digest:
        raise UsageError(f"{url.shown}: what is pushed gets its digest from what it is; name a tag")
    Bundle.open(path)
    try:
        with open(path, "rb") as file:
            digest, size = hashlib.sha256(), 0
            while piece := file.read(_PIECE):
                digest.update(piece)
                size += len(piece)
            name = f"sha256:{digest.hexdigest()}"
            registry.put_blob(name, size, file)
        registry.put_blob(digest_of(EMPTY), len(EMPTY), EMPTY)
        layer = Descriptor(BUNDLE_TYPE, name, size, annotations={_TITLE: path.name})
        body = manifest_of(BUNDLE_TYPE, [layer])
        return Artifact(_by_digest(url, registry.put_manifest(reference.tag or "latest", body, MANIFEST_TYPE)), size)
    finally:
        registry.close()


def pull_bundle(where: str, output: Path, tell: Callable[[int, int], object] = lambda done, total: None) -> Artifact:
    """Get a bundle from a registry into a file, which may replace a bundle and nothing else.

    Args:
        tell: told now and then, by another thread, how many bytes have come and how many there are.

    Raises:
        UsageError: the URL is wrong, or another file than a bundle has that name.
        DamagedError: what the registry has is no bundle. The file is as it was.
        OSError: the file cannot be written, or there is no room for it.
        RemoteError: the registry has it not, or something else, or takes too long.
    """
    url = _oci_url(where)
    registry = Registry(url, read_seconds=PULL_SECONDS)
    replacement = Replacement(output, BUNDLE)
    written = 0

    def write(piece: bytes) -> None:
        nonlocal written
        replacement.file.write(piece)
        written += len(piece)

    def pull() -> tuple[Descriptor, str]:
        reference = registry.reference
        found = registry.manifest(reference.digest or reference.tag or "latest", MANIFEST_TYPE)
        if found is None:
            raise _no_such_bundle(url)
        layer = _layer(url, found[0])
        _check_room(url, layer.size, replacement.path)

        def write_and_tell(piece: bytes) -> None:
            write(piece)
            tell(written, layer.size)

        registry.blob_into(layer.digest, layer.size, write_and_tell)
        return layer, found[1]

    try:
        layer, digest = _within(url, lambda: PULL_SECONDS + written / LEAST_RATE, pull)
        replacement.file.flush()
        # By descriptor: nobody else may look at it under its name yet.
        with snapshot_of(f"/proc/self/fd/{replacement.file.fileno()}") as snapshot:
            _check(url, snapshot)
        replacement.commit()
        return Artifact(_by_digest(url, digest), layer.size)
    finally:
        replacement.abort()
        registry.close()


def digest_in(where: str) -> str:
    """The digest that a URL says, or that its tag has now, as `"sha256:…"`.

    Raises:
        UsageError: the URL is wrong.
        RemoteError: the registry has no such tag, or does not answer in time.
    """
    url = _oci_url(where)
    reference = reference_of(url)
    if reference.digest:
        return reference.digest
    registry = Registry(url, read_seconds=TAG_SECONDS)
    try:
        found = _within(url, lambda: TAG_SECONDS, lambda: registry.manifest(reference.tag or "latest", MANIFEST_TYPE))
    finally:
        registry.close()
    if found is None:
        raise _no_such_bundle(url)
    return found[1]


def by_digest(where: str, digest: str) -> str:
    """The URL of one bundle in the repository of another URL, with its credentials and options.

    Raises:
        UsageError: the URL is wrong.
    """
    _oci_url(where)
    location, question, query = where.partition("?")
    head, slash, last = location.rpartition("/")
    return f"{head}{slash}{last.partition('@')[0].partition(':')[0]}@{digest}{question}{query}"


def shown(where: str) -> str:
    """A URL for people, without credentials. Raises `UsageError`: it is wrong."""
    return _oci_url(where).shown


def _within(url: RemoteUrl, seconds: Callable[[], float], what: Callable[[], T]) -> T:
    """What `what` returns or raises, unless it takes longer than `seconds`, which may grow meanwhile.

    In a thread: no time limit of a socket's bounds the look-up of a name, or an answer that trickles. One that is given
    up goes on until its next error, and what comes of it is dropped.
    """
    answer: queue.SimpleQueue[Callable[[], T]] = queue.SimpleQueue()

    def run() -> None:
        try:
            result = what()
        except BaseException as error:  # noqa: BLE001 - it is raised where it was asked for
            answer.put(functools.partial(_raise, error))
        else:
            answer.put(lambda: result)

    begun = time.monotonic()
    threading.Thread(target=run, name="headstart-bundle", daemon=True).start()
    while (left := begun + seconds() - time.monotonic()) > 0:
        try:
            given = answer.get(timeout=left)
        except queue.Empty:
            continue
        return given()
    raise RemoteError(
        f"{url.shown}: not done within {time.monotonic() - begun:.0f} s",
        advice="see whether it can be reached from this host, and how fast",
    )


def _raise(error: BaseException) -> NoReturn:
    raise error


def _check_room(url: RemoteUrl, size: int, path: Path) -> None:
    """Before anything comes: a disk that is full is everybody's trouble."""
    if not 0 <= size <= MAX_BUNDLE_BYTES:
        raise RemoteError(
            f"{url.shown}: its manifest says {size} bytes; a bundle has at most {MAX_BUNDLE_BYTES}", lasting=True
        )
    disk = os.statvfs(path.parent)
    if disk.f_blocks and size > disk.f_bavail * disk.f_frsize:  # some file systems do not say
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def _no_such_bundle(url: RemoteUrl) -> RemoteError:
    return RemoteError(f"{url.shown}: there is no such bundle", advice="see whether tag and repository are right")


def _check(url: RemoteUrl, snapshot: Snapshot) -> None:
    try:
        read_index(Path(url.shown), snapshot)
    except DamagedError as error:
        raise DamagedError(url.shown, error.reason) from error


def _layer(url: RemoteUrl, body: bytes) -> Descriptor:
    manifest = Manifest.decode(body)
    layers = [] if manifest is None else [each for each in manifest.layers if each.media_type == BUNDLE_TYPE]
    if len(layers) != 1:
        what = "" if manifest is None else manifest.artifact_type or manifest.config.media_type
        said = f" but {what}" if what.isprintable() and what not in ("", EMPTY_TYPE) else ""
        raise RemoteError(
            f"{url.shown}: this is no bundle{said}", advice="headstart bundle push makes one", lasting=True
        )
    if not DIGEST.fullmatch(layers[0].digest):  # which becomes part of an address
        raise RemoteError(f"{url.shown}: its manifest names a blob by no digest", lasting=True)
    return layers[0]


def _oci_url(where: str) -> RemoteUrl:
    url = parse_url(where)
    if url.scheme != "oci":
        raise UsageError(
            f"{url.shown}: bundles are pushed to and pulled from registries, oci://registry.example/team/app:tag"
        )
    return url


def _by_digest(url: RemoteUrl, digest: str) -> str:
    host_and_path = url.shown.partition("@")[0]
    head, slash, last = host_and_path.rpartition("/")
    return f"{head}{slash}{last.partition(':')[0]}@{digest}"
