"""The end of a bundle: its index, the signatures over that, and the footer that both are found by.

Layout, from the end of the last entry on; numbers are little-endian, offsets count from the start of the file:

    bytes  what
    N      index: msgpack array of `BundleItem`, in the order of the entries
    S      signatures: msgpack array of `signing.Signature`; nothing if there are none
    footer, 94 bytes:
      8    offset of the index
      8    length of the index, N
      32   SHA-256 of the index
      4    length of the signatures, S
      32   SHA-256 of the signatures
      2    format version; it and the magic end the file in every version
      8    magic: 89 "HSB" 0D 0A 1A 0A

Versions 2 and 3 have no signatures, and nothing of them in the footer, which is of 58 bytes. In version 2 nothing is
compressed, and the index says no SHA-256 of what lies there.

Signatures are outside what they sign, so that another can be added; the footer's checksum holds them like every other
byte of a bundle. A block of them that is cut, altered or no list of signatures is damage, and such a file is not read.
Whether one counts is not looked at here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import msgspec

from headstart.artifacts import signing
from headstart.artifacts.container import Snapshot, check_version, decode
from headstart.artifacts.entry import EntryHeader, Key, Size
from headstart.artifacts.signing import MAX_SIGNATURES_BYTES, Signature
from headstart.errors import DamagedError
from headstart.system.files import BUNDLE

MAGIC = BUNDLE.ends[0]
VERSION = 4  # of what is written
UNSIGNED_VERSION = 3  # without signatures
UNPACKED_VERSION = 2  # without zstd; what is of before may hold kernels that are not Triton's
MAX_INDEX_BYTES = 256 * 2**20  # about 700,000 kernels

_FOOTER = struct.Struct("<QQ32sL32sH8s")
_FOOTER_OF_BEFORE = struct.Struct("<QQ32sH8s")
_ENDING = struct.Struct("<H8s")


class BundleItem(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One line of the index: a kernel, named as in `EntryHeader`, and the bytes at which its entry lies."""

    key: Key
    name: str
    request_digest: str
    toolchain: str
    target: str
    offset: Size
    length: Size
    kind: str = "kernel"
    size: Size = 0  # of the entry, if `length` is what it takes as a frame of zstd; 0: it lies there as it is
    dictionary: str = ""  # key of the entry that is its dictionary, if any
    sha256: bytes = b""  # of the bytes there; empty in version 2

    @property
    def entry_size(self) -> int:
        """Bytes of the entry, unpacked."""
        return self.size or self.length

    @classmethod
    def of(
        cls,
        header: EntryHeader,
        offset: int,
        length: int,
        size: int = 0,
        dictionary: str = "",
        sha256: bytes = b"",
    ) -> BundleItem:
        """The line for the entry with this header, at `offset`."""
        return cls(
            header.key,
            header.name,
            header.request_digest,
            header.toolchain,
            header.target,
            offset,
            length,
            header.kind,
            size,
            dictionary,
            sha256,
        )


class Index(NamedTuple):
    """What the end of a bundle says.

    Attributes:
        items: by key, in the order of the entries.
        version: of the file's format.
        offset: where the index begins, bytes; entries lie before it.
        length: bytes of the index.
        digest: its SHA-256.
        signatures: as they lie there; whether they count is another question.
    """

    items: dict[str, BundleItem]
    version: int
    offset: int
    length: int
    digest: bytes
    signatures: tuple[Signature, ...]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[BundleItem])


def encode_items(items: Iterable[BundleItem]) -> bytes:
    """The index of a bundle.

    Raises:
        ValueError: it would exceed `MAX_INDEX_BYTES`.
    """
    lines = list(items)
    index = _encoder.encode(lines)
    if len(index) > MAX_INDEX_BYTES:
        raise ValueError(f"{len(lines)} kernels are too many for one bundle")
    return index


def ending(offset: int, length: int, digest: bytes, signatures: Sequence[Signature]) -> bytes:
    """What follows the index that lies at `offset` and has this SHA-256: signatures and footer.

    Raises:
        ValueError: there are more signatures than a bundle may have.
    """
    block = signing.encode(signatures)
    return block + _FOOTER.pack(offset, length, digest, len(block), sha256(block).digest(), VERSION, MAGIC)


def read_index(path: Path, snapshot: Snapshot) -> Index:
    """What the end of a bundle says, all of it verified but the signatures.

    Raises:
        DamagedError: it is not a whole bundle; `FutureVersionError` if a newer headstart wrote it.
        OSError: the file cannot be read.
    """
    size = snapshot.size
    footer = snapshot.read(max(0, size - _FOOTER.size), _FOOTER.size)
    if not footer.endswith(MAGIC):
        raise DamagedError(path, "truncated, or not a bundle: it does not end like one")
    version = 0
    if len(footer) >= _ENDING.size:
        version = _ENDING.unpack(footer[-_ENDING.size :])[0]
        if version not in (UNPACKED_VERSION, UNSIGNED_VERSION):
            check_version(path, version, VERSION)
        if version != UNPACKED_VERSION and snapshot.read(0, len(MAGIC)) != MAGIC:
            raise DamagedError(path, "altered, or not a bundle: it does not begin like one")
    layout = _FOOTER if version == VERSION else _FOOTER_OF_BEFORE
    if len(footer) < layout.size:
        raise DamagedError(path, f"truncated: {size} bytes")

    block_length, block_digest = 0, sha256().digest()
    if version == VERSION:
        offset, length, digest, block_length, block_digest, _, _ = _FOOTER.unpack(footer)
    else:
        offset, length, digest, _, _ = _FOOTER_OF_BEFORE.unpack(footer[-_FOOTER_OF_BEFORE.size :])
    if offset + length + block_length + layout.size != size or length > MAX_INDEX_BYTES:
        raise DamagedError(path, f"truncated or altered: its index does not fit its {size} bytes")
    if block_length > MAX_SIGNATURES_BYTES:
        raise DamagedError(path, f"altered: {block_length} bytes of signatures are more than any bundle has")
    data = snapshot.read(offset, length + block_length)
    index, block = data[:length], data[length:]
    if sha256(index).digest() != digest:
        raise DamagedError(path, "the index's checksum is wrong")
    if sha256(block).digest() != block_digest:
        raise DamagedError(path, "the checksum of its signatures is wrong")
    signatures: list[Signature] = decode(path, signing.decoder, block) if block else []
    items = _by_key(path, decode(path, _decoder, index), version)
    return Index(items, version, offset, length, digest, tuple(signatures))


def _by_key(path: Path, lines: list[BundleItem], version: int) -> dict[str, BundleItem]:
    items: dict[str, BundleItem] = {}
    for item in lines:
        if items.setdefault(item.key, item) is not item:
            raise DamagedError(path, f"its index lists {item.name} ({item.key[:12]}) twice")
    if version == VERSION and not all(len(item.sha256) == 32 for item in lines):
        # What is signed is the index: without this it would say nothing about the entries.
        raise DamagedError(path, "its index lacks the SHA-256 of an entry")
    return items
