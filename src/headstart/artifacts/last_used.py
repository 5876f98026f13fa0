"""When what a bundle holds was last used by a run of this user's, for whoever wants to make it smaller.

    a program ends ─▶ note: lock, read, merge, rename        headstart bundle prune --unused-since ─▶ last_used

A bundle is not written again because it was used: it may be signed, read-only, or shared by machines. So each has a
record in headstart's cache folder, named for the bundle's path as a program's record is for the program's.

Layout of a record; numbers are little-endian:

    offset  bytes  what
    0       8      magic: 89 "HSU" 0D 0A 1A 0A
    8       2      format version
    10      32     SHA-256 of the body
    42      …      body: msgpack map of days (1 is 0001-01-01, UTC) to the keys of that day, 32 bytes each

Guarantees:

An entry that is not in the record is one that no run has met. One that a run met and did not use has the day on which
it was met first. So what has an early day was there, and was not used, since then; and a record that is gone or damaged
makes nothing look unused.

A record is no longer than its bundle asks for: it forgets what the bundle has no longer. There are at most
`MOST_RECORDS`. Nothing here makes a program fail.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import os
import struct
from collections.abc import Collection, Iterable
from hashlib import sha256
from pathlib import Path

import msgspec

from headstart.artifacts.container import check_version, decode, snapshot_of
from headstart.errors import DamagedError
from headstart.system.files import replace
from headstart.system.locks import locked
from headstart.system.private import make_folder, refusal, vet

MAGIC = b"\x89HSU\r\n\x1a\n"
VERSION = 1
MOST_RECORDS = 500
MAX_BYTES = 64 * 2**20  # of a record
_FOLDER = "bundles"
_GRACE = 2  # days for which an entry is kept that is not in the bundle: another process may have added it just now
_MAX_NAME = 60  # characters of the bundle's name in that of its record
_KEY = 32  # bytes

_PREFIX = struct.Struct("<8sH32s")
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(dict[int, bytes])
_log = logging.getLogger("headstart")


def record_path(bundle: str | os.PathLike[str], cache_dir: Path) -> Path:
    """Where the record of a bundle lies; symbolic links to the bundle are followed."""
    place = os.path.realpath(bundle)
    stem = Path(place).stem
    shown = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in stem)[:_MAX_NAME]
    return cache_dir / _FOLDER / f"{shown}-{sha256(os.fsencode(place)).hexdigest()[:16]}.used"


def last_used(bundle: str | os.PathLike[str], cache_dir: Path, *, trusted: bool = False) -> dict[str, dt.date]:
    """For each key that a run has met in this bundle: the day (UTC) of its last use, or on which it was met first.

    Args:
        trusted: whether the user trusts the cache folder whoever can write it.

    Raises:
        DamagedError: the record is none, or others could have written it.
        FileNotFoundError: there is none.
        OSError: it cannot be read.
    """
    path = record_path(bundle, cache_dir)
    if not trusted and (why := refusal(path.parent)):
        raise DamagedError(path, why)
    return _read(path, trusted)


def note(
    bundle: str | os.PathLike[str],
    cache_dir: Path,
    held: Collection[str],
    used: Iterable[str],
    *,
    trusted: bool = False,
    today: dt.date | None = None,
) -> None:
    """A run ends. What cannot be written costs a line in the log, and what it would have said.

    Args:
        bundle: the file.
        cache_dir: headstart's cache folder.
        held: keys of the bundle's entries, as far as this process knows them.
        used: those that it used or made.
        trusted: as for `last_used`.
        today: UTC.
    """
    path = record_path(bundle, cache_dir)
    day = today or dt.datetime.now(dt.timezone.utc).date()
    try:
        if not trusted and (why := refusal(path.parent)):
            raise DamagedError(path, why)
        if not path.exists():
            make_folder(path.parent)
            _make_room(path.parent)
        with locked(path):
            known: dict[str, dt.date] = {}
            with contextlib.suppress(FileNotFoundError, DamagedError):
                known = _read(path, trusted)
            # A clock that was ahead once would keep an entry for years.
            days = {key: min(known.get(key, day), day) for key in held}
            days |= dict.fromkeys(used, day)
            recent = day - min(dt.timedelta(_GRACE), day - dt.date.min)
            days |= {key: min(last, day) for key, last in known.items() if key not in days and last >= recent}
            if days != known:
                replace(path, _encode(days), mode=0o600)
    except (DamagedError, OSError) as error:
        _log.info("what was used of %s is not noted: %s", bundle, error)


def _read(path: Path, trusted: bool) -> dict[str, dt.date]:
    with snapshot_of(path, None if trusted else vet) as snapshot:
        data = snapshot.read(0, min(snapshot.size, MAX_BYTES))
    if not data.startswith(MAGIC) or len(data) < _PREFIX.size:
        raise DamagedError(path, "it is no record of what was used")
    _, version, digest = _PREFIX.unpack_from(data)
    check_version(path, version, VERSION)
    body = data[_PREFIX.size :]
    if sha256(body).digest() != digest:
        raise DamagedError(path, "its checksum is wrong")
    found = {}
    try:
        for day, keys in decode(path, _decoder, body).items():
            date = dt.date.fromordinal(day)
            found.update({keys[at : at + _KEY].hex(): date for at in range(0, len(keys), _KEY)})
    except (ValueError, OverflowError) as error:
        raise DamagedError(path, f"cannot be decoded: {error}") from error
    return found


def _encode(days: dict[str, dt.date]) -> bytes:
    by_day: dict[int, list[str]] = {}
    for key in sorted(days):
        by_day.setdefault(days[key].toordinal(), []).append(key)
    body = _encoder.encode({day: bytes.fromhex("".join(keys)) for day, keys in sorted(by_day.items())})
    return _PREFIX.pack(MAGIC, VERSION, sha256(body).digest()) + body


def _make_room(folder: Path) -> None:
    """Before a record is made: those of bundles that were used longest ago make room."""
    records = []
    with os.scandir(folder) as found:
        for each in found:
            with contextlib.suppress(OSError):  # another process makes room as well
                if each.name.endswith(".used"):
                    records.append((each.stat(follow_symlinks=False).st_mtime, each.name))
    for _, name in sorted(records)[: max(0, len(records) - MOST_RECORDS + 1)]:
        for gone in (name, f".{name}.lock"):
            with contextlib.suppress(OSError):
                (folder / gone).unlink()
