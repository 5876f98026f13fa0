"""What a run's log is made of: records, one after another, in frames that are appended as the run goes.

    magic (8) | version u16 | frame …        frame: length u32 | CRC-32 u32 | msgpack: a list of records

A process that is killed leaves what it had appended. A frame that is cut short is left out, and so is what follows one
that is damaged (`headstart.artifacts.runs` reads).

What makes a record small: texts that come often are written once and numbered (`Text`), times are whole numbers of
`TICK` from `Head.zero` on, and a digest or a key is cut to `SHORT` bytes. Whatever the store's entry or the manifest
says of a kernel (source, constants, options, registers) is looked up there, by key or digest.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import msgspec

from headstart.system.files import Format

TICK = 1e-4  # seconds
SHORT = 16  # bytes of a digest: enough to find one, and nothing is decided by it
FOLDER = "runs"  # in the cache folder
SUFFIX = ".run"
VERSION = 1

RUN = Format("a run's log", begins=(b"\x89HSR\r\n\x1a\n",))
_PREFIX = struct.Struct("<8sH")
_FRAME = struct.Struct("<II")
HEADER_BYTES = _PREFIX.size
MAX_FRAME = 64 << 20  # bytes
_MAX_RECORDS = 1_000_000  # of a frame: it is decoded as a whole

# `Done.origin`, by number: who had a kernel; or that nobody wanted it any more.
ORIGINS = ("worker", "store", "bundle", "remote", "farm", "cancelled")


class Head(msgspec.Struct, array_like=True, tag=0):
    """The first record of a process.

    Attributes:
        run: the run's name, which all of its processes have.
        kind: `"run"` (`headstart run`), `"enable"`, `"build"`, or `"api"` (an `AsyncCompile` of the program's own).
        program: what runs, as `headstart.adapters.recording` names programs, or a path.
        pid: of this process; `parent`: of which it is a fork, or 0.
        rank: among the processes of a job, as the launcher says; empty: none does.
        host: where.
        began: seconds since 1970, when `zero` was.
        zero: `time.monotonic()` of all times in here, seconds.
        headstart, python: versions.
        bundle, record: paths of the bundle and the manifest of the run; empty: none.
        workers: compiles that may run at once.
    """

    run: str
    kind: str
    program: str
    pid: int
    parent: int
    rank: str
    host: str
    began: float
    zero: float
    headstart: str
    python: str
    bundle: str
    record: str
    workers: int


class Text(msgspec.Struct, array_like=True, tag=1):
    """From here on `number` means `text`."""

    number: int
    text: str


class Asked(msgspec.Struct, array_like=True, tag=2):
    """A kernel was asked for. `name`, `thread`, `where` (`"file:line"`), `target`: texts.

    Attributes:
        kernel: its number in this process.
        at: when, in ticks.
        digest: the first bytes of the request's; empty: it was not known here.
        label: what tells it from others of its name, for people.
        background: nobody waited for it then.
    """

    kernel: int
    at: int
    name: int
    thread: int
    where: int
    target: int
    digest: bytes
    label: str
    background: bool


class Began(msgspec.Struct, array_like=True, tag=3):
    """A worker began."""

    kernel: int
    at: int
    worker: int


class Done(msgspec.Struct, array_like=True, tag=4):
    """A kernel is there.

    Attributes:
        at: when this process heard of it.
        origin: see `ORIGINS`.
        key: the first bytes of the entry's key; empty: a bundle's.
        started, finished: of the compile, in ticks; both None: there was none.
        worker: which; -1: none, or it is not known.
        cpu: ticks.
        stages: names, as texts, and ticks by turns.
    """

    kernel: int
    at: int
    origin: int
    key: bytes
    started: int | None = None
    finished: int | None = None
    worker: int = -1
    cpu: int = 0
    stages: list[int] = []


class Loaded(msgspec.Struct, array_like=True, tag=5):
    """A kernel that was compiled before was opened: it had taken so many ticks."""

    kernel: int
    took: int


class Failed(msgspec.Struct, array_like=True, tag=6):
    """There is no kernel; `kind`, `stage`: texts."""

    kernel: int
    at: int
    kind: int
    stage: int
    summary: str


class Blocked(msgspec.Struct, array_like=True, tag=7):
    """A thread (a text) began to wait for a kernel."""

    kernel: int
    at: int
    thread: int


class Unblocked(msgspec.Struct, array_like=True, tag=8):
    """It waits no longer."""

    kernel: int
    at: int
    thread: int


class FellBack(msgspec.Struct, array_like=True, tag=9):
    """Something was left to the program's own process."""

    at: int
    name: str
    why: str


class Swept(msgspec.Struct, array_like=True, tag=10):
    """An autotuner benchmarked configurations: numbers of kernels, milliseconds of each, and which it chose."""

    at: int
    name: str
    kernels: list[int]
    times: list[float]
    winner: int


class Tool(msgspec.Struct, array_like=True, tag=11):
    """A Triton that compiles."""

    triton: str


class Ended(msgspec.Struct, array_like=True, tag=12):
    """The process wrote no more, by its own will. `joined`: requests that an earlier one's future answered."""

    at: int
    joined: int


class Lost(msgspec.Struct, array_like=True, tag=13):
    """So many records could not be written."""

    count: int


class Since(msgspec.Struct, array_like=True, tag=14):
    """A kernel is part of something that was asked for earlier: when, and by which `thread`, and `where` (texts)."""

    kernel: int
    at: int
    thread: int
    where: int


Record = (
    Head
    | Text
    | Asked
    | Began
    | Done
    | Loaded
    | Failed
    | Blocked
    | Unblocked
    | FellBack
    | Swept
    | Tool
    | Ended
    | Lost
    | Since
)

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Record])


def beginning() -> bytes:
    """What a file begins with."""
    return _PREFIX.pack(RUN.begins[0], VERSION)


def frame(records: list[Record]) -> bytes:
    """Records as they are appended."""
    body = _encoder.encode(records)
    return _FRAME.pack(len(body), zlib.crc32(body)) + body


class Damage(Exception):
    """What follows in a file cannot be read."""


def records_of(data: bytes) -> Iterator[Record]:
    """The records of a file, as far as they are whole.

    Raises:
        Damage: the file is none, is of another version, or is damaged. One that is only cut short simply ends.
    """
    if len(data) < _PREFIX.size:
        return
    magic, version = _PREFIX.unpack_from(data)
    if magic != RUN.begins[0]:
        raise Damage("it is no run's log")
    if version != VERSION:
        raise Damage(f"it is of version {version}, and this headstart reads version {VERSION}")
    at = _PREFIX.size
    while at + _FRAME.size <= len(data):
        length, checksum = _FRAME.unpack_from(data, at)
        at += _FRAME.size
        if length > MAX_FRAME:
            raise Damage(f"it is damaged at byte {at}")
        body = data[at : at + length]
        if len(body) < length:
            return  # its writer was killed, or is at it
        if zlib.crc32(body) != checksum:
            raise Damage(f"it is damaged at byte {at}")
        # The first bytes of a long list say how long it is.
        if body[:1] == b"\xdd" and int.from_bytes(body[1:5], "big") > _MAX_RECORDS:
            raise Damage(f"it has too many records at byte {at}")
        at += length
        try:
            yield from _decoder.decode(body)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            raise Damage(f"it is damaged at byte {at}") from None
