"""One compiled kernel as one file: its artifacts, and everything needed to trust, explain and reproduce them.

Layout; numbers are little-endian:

    offset  bytes  what
    0       8      magic: 89 "HSE" 0D 0A 1A 0A
    8       2      format version; it follows the magic in every version
    10      4      length of the header, H
    14      32     SHA-256 of the header
    46      H      header: msgpack map, `EntryHeader`
    46 + H  …      the artifacts, back to back, in the header's order; the last one ends the entry

Guarantees:

Opening verifies the magic, the version, the header's digest, and that the length is exactly what the header
promises, so a truncated entry shows at once. An artifact is verified whenever it is read. Every byte is
covered: what a reader gets is what was packed, or `DamagedError`.

Nothing is executed or unpickled, whatever the bytes are, and nothing larger than the file is read.

An `Entry` holds no file descriptor and no mapping between calls: it may be kept for long, used from several
threads and across a fork, and nobody who truncates the file can crash its reader.

This code assumes that:

- files are replaced by rename and never written in place, so a file descriptor sees one version of a file;

- unknown header fields may be skipped: a change that an older reader must notice raises `VERSION`.

An entry that is replaced while in use (two workers published the same key, a bundle was written anew) goes
on working as long as the new file holds the same artifacts.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import msgspec

from headstart.artifacts.container import InMemory, Snapshot, _place, check_version, decode, snapshot_of
from headstart.errors import DamagedError
from headstart.system.files import ENTRY

MAGIC = ENTRY.begins[0]
VERSION = 2  # what is of before may hold kernels that are not Triton's
MAX_HEADER_BYTES = 64 * 2**20

_PREFIX = struct.Struct("<8sHI32s")
_VERSION = struct.Struct("<8sH")

Key = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Size = Annotated[int, msgspec.Meta(ge=0)]  # bytes
Sha256 = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class ArtifactInfo(msgspec.Struct, frozen=True):
    """What the header says about one artifact, e.g. `cubin`."""

    name: str
    length: Size
    sha256: Sha256


class EntryHeader(msgspec.Struct, frozen=True, kw_only=True):
    """Everything in an entry but its artifacts.

    Attributes:
        key: SHA-256 of the entry's identity, hexadecimal.
        kind: what it is: a `"kernel"`, or something that is kept beside kernels.
        name: the kernel's name.
        request_digest: digest of the request, toolchain left out.
        toolchain: digest of the toolchain that compiled it.
        target: e.g. `"cuda:90"`.
        components: the identity as named parts, in order, so that keys can be compared and explained.
        metadata: Triton's own metadata of the compiled kernel, plain data.
        artifacts: in the order in which they lie in the entry.
        compile_wall_s: seconds from start to end of the compile.
        compile_cpu_s: processor seconds, the compiler's child processes included.
        triton_version: for people; the toolchain's digest decides.
        request: the request, encoded, so that the compile can be reproduced.
        output: what the compiler printed.
    """

    key: Key
    kind: str
    name: str
    request_digest: str
    toolchain: str
    target: str
    components: list[tuple[str, str]]
    metadata: dict[str, Any]
    artifacts: list[ArtifactInfo]
    compile_wall_s: float
    compile_cpu_s: float
    triton_version: str
    request: bytes
    output: str


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(EntryHeader)


def entry_digest(parts: Iterable[bytes]) -> bytes:
    """SHA-256 of the entry that `pack_entry` made."""
    digest = sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()


def pack_entry(
    *,
    key: str,
    kind: str = "kernel",
    name: str,
    request_digest: str,
    toolchain: str,
    target: str,
    components: Sequence[tuple[str, str]],
    metadata: Mapping[str, Any],
    artifacts: Mapping[str, bytes],
    compile_wall_s: float,
    compile_cpu_s: float,
    triton_version: str,
    request: bytes,
    output: str,
) -> list[bytes]:
    """The bytes of an entry, as parts to be written one after another. See `EntryHeader` for the fields.

    Raises:
        TypeError: `metadata` holds something that is not plain data.
        ValueError: the header would exceed `MAX_HEADER_BYTES`.
    """
    header = _encoder.encode(
        EntryHeader(
            key=key,
            kind=kind,
            name=name,
            request_digest=request_digest,
            toolchain=toolchain,
            target=target,
            components=list(components),
            metadata=dict(metadata),
            artifacts=[
                ArtifactInfo(artifact, len(data), sha256(data).digest()) for artifact, data in artifacts.items()
            ],
            compile_wall_s=compile_wall_s,
            compile_cpu_s=compile_cpu_s,
            triton_version=triton_version,
            request=request,
            output=output,
        )
    )
    if len(header) > MAX_HEADER_BYTES:
        raise ValueError(
            f"{name}: source, metadata and output take {len(header)} bytes; an entry has room for {MAX_HEADER_BYTES}"
        )
    return [_PREFIX.pack(MAGIC, VERSION, len(header), sha256(header).digest()), header, *artifacts.values()]


class Entry:
    """A read-only view of one entry, in a file, inside a bundle, or in memory.

    Attributes:
        header: verified when the entry was opened.
        size: length of the whole entry, bytes.
        path: the file it lies in; None in memory.
    """

    __slots__ = ("_layout", "_locate", "_snapshot", "header", "path", "size")

    def __init__(
        self,
        path: Path | None,
        layout: _Layout,
        snapshot: Callable[[], AbstractContextManager[Snapshot]],
        locate: Callable[[Snapshot], tuple[int, int]],
    ) -> None:
        """Use `open` or `from_bytes`."""
        self.path = path
        self.header = layout.header
        self.size = layout.size
        self._layout = layout
        self._snapshot = snapshot
        self._locate = locate

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        offset: int = 0,
        length: int | None = None,
        locate: Callable[[Snapshot], tuple[int, int]] | None = None,
        vet: Callable[[int], str] | None = None,
    ) -> Entry:
        """The entry in `length` bytes of a file, from `offset`; the whole file by default.

        `locate` tells offset and length once more if the file was replaced; it may raise `DamagedError`. By
        default the entry is expected at the same place. `vet`: as for `snapshot_of`.

        Raises:
            DamagedError: there is no whole entry; `FutureVersionError` if a newer headstart wrote it.
            OSError: the file cannot be read.
        """
        file = Path(path).absolute()

        def same_place(snapshot: Snapshot) -> tuple[int, int]:
            return offset, max(0, snapshot.size - offset) if length is None else length

        with snapshot_of(file, vet) as snapshot:
            layout = _parse(file, snapshot, *same_place(snapshot))
        return cls(file, layout, lambda: snapshot_of(file, vet), locate or same_place)

    def answers(self, kind: str, request_digest: str) -> bool:
        """Whether this is an entry of that kind, and of the request with that digest; empty ones are not compared."""
        header = self.header
        return kind in ("", header.kind) and request_digest in ("", header.request_digest)

    @classmethod
    def from_bytes(cls, data: bytes) -> Entry:
        """The entry that is all of `data`.

        Raises:
            DamagedError: as `open` does.
        """
        snapshot = InMemory(data)
        layout = _parse(None, snapshot, 0, snapshot.size)
        return cls(None, layout, lambda: nullcontext(snapshot), lambda snapshot: (0, snapshot.size))

    @classmethod
    def of(cls, path: Path, snapshot: Callable[[], AbstractContextManager[Snapshot]]) -> Entry:
        """The entry that is all of what `snapshot` gives, whenever it is called; `path` is where that comes from.

        Raises:
            DamagedError: as `open` does, and whatever `snapshot` raises.
        """
        with snapshot() as now:
            layout = _parse(path, now, 0, now.size)
        return cls(path, layout, snapshot, lambda now: (0, now.size))

    @property
    def key(self) -> str:
        """SHA-256 of the entry's identity, hexadecimal."""
        return self.header.key

    @property
    def name(self) -> str:
        """The kernel's name."""
        return self.header.name

    @property
    def metadata(self) -> dict[str, Any]:
        """Triton's metadata of the compiled kernel."""
        return self.header.metadata

    @property
    def artifact_names(self) -> tuple[str, ...]:
        """E.g. `("ttir", "ttgir", "llir", "ptx", "cubin")`."""
        return tuple(info.name for info in self.header.artifacts)

    def artifact(self, name: str) -> bytes:
        """Read one artifact and verify it.

        Raises:
            KeyError: there is none of this name.
            DamagedError: it is not what the header says, or the entry is gone.
            OSError: the file cannot be read.
        """
        info, _ = self._layout.artifacts[name]
        return self._read(lambda layout, snapshot: layout.artifact(snapshot, info), f"artifact {name!r}")

    def verify(self) -> None:
        """Read and verify every artifact.

        Raises:
            DamagedError, OSError: as `artifact` does.
        """
        for name in self.artifact_names:
            self.artifact(name)

    def raw(self) -> bytes:
        """The entry's own bytes, artifacts unverified: to be copied to where a reader will verify them.

        Raises:
            DamagedError: the entry is truncated or gone.
            OSError: the file cannot be read.
        """
        return self._read(lambda layout, snapshot: layout.entry(snapshot), "the entry")

    def __repr__(self) -> str:
        return f"<Entry {self.name} {self.key[:12]} for {self.header.target}, {self.size} bytes>"

    def _read(self, what: Callable[[_Layout, Snapshot], bytes | None], description: str) -> bytes:
        try:
            with self._snapshot() as snapshot:
                data = what(self._layout, snapshot)
                if data is None:
                    data = what(self._layout_now(snapshot), snapshot)
        except FileNotFoundError:
            raise self._damaged("removed while in use") from None
        if data is None:
            raise self._damaged(f"{description} is not what the header says")
        return data

    def _layout_now(self, snapshot: Snapshot) -> _Layout:
        layout = _parse(self.path, snapshot, *self._locate(snapshot))
        if layout.header.key != self.key:
            raise self._damaged(f"replaced while in use by {layout.header.name} ({layout.header.key[:12]})")
        return layout

    def _damaged(self, reason: str) -> DamagedError:
        return DamagedError(_place(self.path), f"kernel {self.name} ({self.key[:12]}): {reason}")


class _Layout:
    """Where the parts of an entry lie in a snapshot, according to its header."""

    __slots__ = ("artifacts", "header", "offset", "prefix", "size")

    def __init__(self, prefix: bytes, header: EntryHeader, offset: int, size: int) -> None:
        self.prefix = prefix
        self.header = header
        self.offset = offset
        self.size = size
        self.artifacts: dict[str, tuple[ArtifactInfo, int]] = {}
        position = offset + size - sum(info.length for info in header.artifacts)
        for info in header.artifacts:
            self.artifacts[info.name] = info, position
            position += info.length

    def artifact(self, snapshot: Snapshot, wanted: ArtifactInfo) -> bytes | None:
        info, position = self.artifacts.get(wanted.name, (None, 0))
        if info != wanted:
            return None
        data = snapshot.read(position, wanted.length)
        return data if sha256(data).digest() == wanted.sha256 else None

    def entry(self, snapshot: Snapshot) -> bytes | None:
        data = snapshot.read(self.offset, self.size)
        return data if len(data) == self.size and data.startswith(self.prefix) else None


def _parse(path: Path | None, snapshot: Snapshot, offset: int, size: int) -> _Layout:
    place = _place(path)
    if offset + size > snapshot.size:
        raise DamagedError(place, f"truncated: {snapshot.size} bytes, should be at least {offset + size}")
    prefix = snapshot.read(offset, min(size, _PREFIX.size))
    if not prefix.startswith(MAGIC):
        raise DamagedError(place, "not an entry: it does not begin like one")
    if len(prefix) >= _VERSION.size:
        check_version(place, _VERSION.unpack_from(prefix)[1], VERSION)
    if len(prefix) < _PREFIX.size:
        raise DamagedError(place, f"truncated: {len(prefix)} bytes")

    _, _, header_length, digest = _PREFIX.unpack(prefix)
    if header_length > min(MAX_HEADER_BYTES, size - _PREFIX.size):
        raise DamagedError(place, f"truncated or altered: {size} bytes, with a header of {header_length}")
    encoded = snapshot.read(offset + _PREFIX.size, header_length)
    if sha256(encoded).digest() != digest:
        raise DamagedError(place, "the header's checksum is wrong")
    header = decode(place, _decoder, encoded)
    promised = _PREFIX.size + header_length + sum(info.length for info in header.artifacts)
    if promised != size:
        raise DamagedError(place, f"truncated or altered: {size} bytes, should be {promised}")
    layout = _Layout(prefix, header, offset, size)
    if len(layout.artifacts) != len(header.artifacts):
        raise DamagedError(place, "two artifacts have the same name")
    return layout
