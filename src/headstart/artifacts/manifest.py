"""What a run compiled: sources, what they were specialized for, how long each took. One file.

Beside kernels it holds the sources that torch.compile generated, each with the recipe that was made of it
(`generated.py`).

Layout; numbers are little-endian:

    offset  bytes  what
    0       8      magic: 89 "HSM" 0D 0A 1A 0A
    8       2      format version; it follows the magic in every version
    10      8      length of the body, N
    18      32     SHA-256 of the body
    50      N      body: msgpack map, `_Body`

Guarantees:

A manifest has its name by rename, so it is there whole or not at all. Opening verifies every byte: what a reader gets
is what was written, or `DamagedError`. Nothing is executed or unpickled, whatever the bytes are. That is about reading:
compiling a kernel out of a manifest runs Python that it carries, and `vetting` says what of it may be.

Merging is idempotent, commutative and associative: manifests of many ranks and of many runs may be merged in any order,
and twice. So nothing is counted, and every field of one kernel has a rule by which one of two values wins:

    duration_s           the longer: zero is "unknown", and a compile on an idle machine is no reason to start it late
    winner               either
    failed               any: it is the failure that a build takes for granted, and a success never hides
    last_seen            the later
    asked_by, request    of the one seen last, then the greater: of requests with one digest only file names differ
    generated sources    by the same rules; of what rescaling added, the greater
    origins              all; of the same program and versions the last recording
    tunings              the one recorded later, then the greater

This code assumes that:

- digests of requests are right: they are written down, not computed anew. A wrong one costs a compile in vain; what
  is served for a request is found by the digest that its own client computes.

- what a request holds is plain data without cycles, so that tens of thousands need not burden the garbage collector;

- unknown fields may be skipped: a change that an older reader must notice raises `VERSION`.
"""

from __future__ import annotations

import datetime as dt
import os
import struct
from collections.abc import Container, Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from headstart.artifacts.container import check_version, decode, snapshot_of
from headstart.artifacts.entry import Key, Size
from headstart.artifacts.generated import GeneratedSource
from headstart.artifacts.specialization import Origin, Specialization, Tuning
from headstart.errors import DamagedError
from headstart.model.request import CompileRequest, Source
from headstart.system.files import MANIFEST, replace

MAGIC = MANIFEST.begins[0]
VERSION = 2  # what is of before may hold kernels that are not Triton's
MAX_BODY_BYTES = 1 << 30

_PREFIX = struct.Struct("<8sHQ32s")
_VERSION = struct.Struct("<8sH")


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What one run, or several, compiled. Compares equal if it says the same.

    Attributes:
        origins: programs and versions that it was recorded with, in order.
        specializations: by digest of the request.
        tunings: by `Tuning.digest()`.
        generated: by the keys of their recipes.
    """

    origins: tuple[Origin, ...] = ()
    specializations: dict[str, Specialization] = {}
    tunings: dict[str, Tuning] = {}
    generated: dict[str, GeneratedSource] = {}

    @classmethod
    def of(
        cls,
        specializations: Iterable[Specialization],
        tunings: Iterable[Tuning] = (),
        origins: Iterable[Origin] = (),
        generated: Iterable[GeneratedSource] = (),
    ) -> Manifest:
        """Put a manifest together; what is given twice is merged."""
        return cls(
            origins=_merged_origins(origins),
            specializations=_merged((each.digest, each) for each in specializations),
            tunings=_merged((each.digest(), each) for each in tunings),
            generated=_merged((each.key, each) for each in generated),
        )

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Manifest:
        """Read and verify a manifest.

        Raises:
            DamagedError: it is not a whole manifest; `FutureVersionError` if a newer headstart wrote it.
            OSError: it cannot be read.
        """
        file = Path(path).absolute()
        with snapshot_of(file) as snapshot:
            return _parse(file, snapshot.read(0, _PREFIX.size + MAX_BODY_BYTES + 1))

    def encode(self) -> bytes:
        """The bytes of the file. Equal manifests give equal bytes."""
        shared = _Sources()
        body = _encoder.encode(
            _Body(
                origins=list(self.origins),
                specializations=[_Record.of(self.specializations[key], shared) for key in sorted(self.specializations)],
                tunings=[self.tunings[key] for key in sorted(self.tunings)],
                sources=shared.table,
                generated=[self.generated[key] for key in sorted(self.generated)],
            )
        )
        return _PREFIX.pack(MAGIC, VERSION, len(body), sha256(body).digest()) + body

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the manifest; one that exists is replaced at once or not at all.

        Raises:
            UsageError: another file than a manifest has that name.
            OSError: it cannot be written. Nothing is left behind.
        """
        replace(path, self.encode(), MANIFEST)

    @property
    def targets(self) -> list[str]:
        """What its kernels were compiled for, in order."""
        generated = {each.target for each in self.generated.values()}
        return sorted({each.request.target for each in self.specializations.values()} | generated - {""})

    @property
    def uses_torch_compile(self) -> bool:
        """Whether a program that it was recorded with used torch.compile, be it one that was killed."""
        return any(origin.torch_version for origin in self.origins) or self.torch_compiles > 0

    @property
    def torch_compiles(self) -> int:
        """How many sources and kernels in it are torch.compile's."""
        return len(self.generated) + sum(bool(each.torch) for each in self.specializations.values())

    @property
    def kernels(self) -> int:
        """How many kernels in it are the programs' own."""
        return sum(not each.torch for each in self.specializations.values())

    @property
    def triton_versions(self) -> list[str]:
        """Those that it was recorded with, as far as known."""
        return sorted({origin.triton_version for origin in self.origins} - {""})

    def in_compile_order(self, known: Container[str] = ()) -> list[Specialization]:
        """What is not among the digests `known`, in the order in which to compile it: winners first, longest first."""
        found = [each for digest, each in self.specializations.items() if digest not in known]
        return sorted(found, key=lambda each: (not each.winner, -each.duration_s))

    def generated_in_order(self) -> list[GeneratedSource]:
        """torch.compile's sources in the order in which to compile them: longest first."""
        return sorted(self.generated.values(), key=lambda each: -each.duration_s)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing in it to compile."""
        return not (self.specializations or self.generated)

    def last_seen(self) -> Iterator[dt.date]:
        """The days on which what is in it was last asked for."""
        yield from (each.last_seen for each in self.specializations.values())
        yield from (each.last_seen for each in self.generated.values())

    def seen_since(self, day: dt.date) -> Manifest:
        """Without what nobody has asked for since `day`."""
        kept = {digest: each for digest, each in self.specializations.items() if each.last_seen >= day}
        generated = {key: each for key, each in self.generated.items() if each.last_seen >= day}
        return msgspec.structs.replace(self, specializations=kept, generated=generated)


def merge(*manifests: Manifest) -> Manifest:
    """What all of them say; see the top of this module for the rules."""
    return Manifest(
        origins=_merged_origins(origin for each in manifests for origin in each.origins),
        specializations=_merged(item for each in manifests for item in each.specializations.items()),
        tunings=_merged(item for each in manifests for item in each.tunings.items()),
        generated=_merged(item for each in manifests for item in each.generated.items()),
    )


def is_manifest(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins like a manifest; False if it cannot be read."""
    try:
        with snapshot_of(path) as snapshot:
            return snapshot.read(0, len(MAGIC)) == MAGIC
    except (OSError, DamagedError):
        return False


# The file


class _Record(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A `Specialization` whose source lies in a table, since many kernels share one."""

    request: CompileRequest  # its source is empty
    source: Size  # index into the table
    digest: Key
    duration_s: float
    winner: bool
    asked_by: str
    last_seen: dt.date
    failed: str = ""
    torch: str = ""

    @classmethod
    def of(cls, each: Specialization, sources: _Sources) -> _Record:
        return cls(
            msgspec.structs.replace(each.request, source=""),
            sources.index(each.request.source),
            each.digest,
            each.duration_s,
            each.winner,
            each.asked_by,
            each.last_seen,
            each.failed,
            each.torch,
        )

    def specialization(self, sources: Sequence[Source]) -> Specialization:
        return Specialization(
            request=msgspec.structs.replace(self.request, source=sources[self.source]),
            digest=self.digest,
            duration_s=self.duration_s,
            winner=self.winner,
            asked_by=self.asked_by,
            last_seen=self.last_seen,
            failed=self.failed,
            torch=self.torch,
        )


class _Body(msgspec.Struct, frozen=True, kw_only=True):
    origins: list[Origin]
    specializations: list[_Record]
    tunings: list[Tuning]
    sources: list[Source]
    generated: list[GeneratedSource] = []


class _Sources:
    """The table of sources while a manifest is written: each once, in the order of first use."""

    def __init__(self) -> None:
        self.table: list[Source] = []
        self._index: dict[bytes, int] = {}

    def index(self, source: Source) -> int:
        found = self._index.setdefault(_encoder.encode(source), len(self.table))
        if found == len(self.table):
            self.table.append(source)
        return found


# Equal manifests are equal bytes, whatever the order in which their dicts were filled.
_encoder = msgspec.msgpack.Encoder(order="deterministic")
_decoder = msgspec.msgpack.Decoder(_Body)


def _parse(path: Path, data: bytes) -> Manifest:
    if not data.startswith(MAGIC):
        raise DamagedError(path, "not a manifest: it does not begin like one")
    if len(data) >= _VERSION.size:
        check_version(path, _VERSION.unpack_from(data)[1], VERSION)
    if len(data) < _PREFIX.size:
        raise DamagedError(path, f"truncated: {len(data)} bytes")
    _, _, length, digest = _PREFIX.unpack_from(data)
    body = memoryview(data)[_PREFIX.size :]
    if length > MAX_BODY_BYTES or length != len(body):
        raise DamagedError(path, f"truncated or altered: {len(data)} bytes, should be {_PREFIX.size + length}")
    if sha256(body).digest() != digest:
        raise DamagedError(path, "its checksum is wrong")
    decoded = decode(path, _decoder, bytes(body))
    try:
        found = [record.specialization(decoded.sources) for record in decoded.specializations]
    except (IndexError, ValueError) as error:
        raise DamagedError(path, f"cannot be decoded: {error}") from error
    return Manifest.of(found, decoded.tunings, decoded.origins, decoded.generated)


def decode_each(path: Path, data: bytes) -> Iterator[Manifest]:
    """The manifests that lie one after another in `data`; the last one may be cut short, and is then left out.

    Raises:
        DamagedError: what follows is none.
    """
    start = 0
    while len(data) - start >= _PREFIX.size:
        end = start + _PREFIX.size + _PREFIX.unpack_from(data, start)[2]
        if end > len(data):
            return
        yield _parse(path, data[start:end])
        start = end


# Merging


def _merged(items: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for digest, each in items:
        other = found.get(digest)
        found[digest] = each if other is None else other.merged(each)
    return found


def _merged_origins(origins: Iterable[Origin]) -> tuple[Origin, ...]:
    return tuple(sorted({origin.undated(): origin for origin in sorted(origins)}.values()))
