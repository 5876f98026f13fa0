"""What lies under a key in a remote: an entry as on disk, and who says that it is what it was when it was made.

    offset   bytes  what
    0        8      magic: 89 "HSR" 0D 0A 1A 0A
    8        2      format version; it follows the magic in every version
    10       4      length of the signatures, S
    14       S      signatures: msgpack array of `signing.Signature`; nothing if there are none
    14 + S   …      the entry (`artifacts/entry.py`)

Signed is the SHA-256 of a line of text, which keeps these signatures apart from those over bundles, and of the entry's
bytes. The entry names its key, kind and request in its header: so one that is put under another key, cut or altered is
found whoever signed it.

Whose signatures count `headstart.artifacts.trust` says: this user's local key, which other hosts have only where they
share a configuration folder, and Ed25519 keys that this user trusts. An entry that carries code needs one wherever it
comes from. Sigstore's are left out: they take a person for each.
"""

from __future__ import annotations

import math
import re
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from headstart.artifacts import signing
from headstart.artifacts.container import check_version, decode
from headstart.artifacts.entry import Entry
from headstart.artifacts.keyring import Keyring
from headstart.artifacts.kinds import carries_code
from headstart.artifacts.signing import ED25519, LOCAL, MAX_SIGNATURES_BYTES, Signature
from headstart.artifacts.trust import Trust
from headstart.errors import DamagedError, HeadstartError, ServiceError

MAGIC = b"\x89HSR\r\n\x1a\n"
VERSION = 1
KEYS_AGE = 5.0  # seconds for which key files are not read again

_HEAD = struct.Struct("<8sHI")
_VERSION = struct.Struct("<8sH")
_CONTEXT = b"headstart sealed entry\n"
_PLACE = "a remote's entry"
_MAX_SHARED = 1 << 31  # bytes of shared memory that anybody believes
_ARTIFACT = re.compile(r"[a-z][a-z0-9_]{0,31}")


class NotTrusted(HeadstartError):
    """A sealed entry is whole, and nobody whose word counts says that it is what it says."""


class _Signed(NamedTuple):
    version: int
    digest: bytes
    signatures: tuple[Signature, ...]


class Signer:
    """Signs with this user's keys, as far as there are any. May be used from several threads.

    Args:
        keyring: those; None: the user can have none.
        key: which of the user's own pairs; empty: the only one, if there is only one.

    Attributes:
        problem: why nobody on another host will trust what is signed, for people; empty if they may.
    """

    def __init__(self, keyring: Keyring | None, key: str = "") -> None:
        self._keyring = keyring
        self._key = key
        self._read = float("-inf")
        self._pair: tuple[bytes, str] | None = None
        self._local: bytes | None = None
        self._lock = threading.Lock()
        self.problem = ""

    def sign(self, entry: bytes) -> list[Signature]:
        """Signatures over an entry; none if there is no key to sign with."""
        with self._lock:
            if time.monotonic() - self._read > KEYS_AGE:
                self._read_keys()
            local, pair = self._local, self._pair
        digest = _digest(entry)
        made = [] if local is None else [signing.sign_locally(local, VERSION, digest)]
        if pair is not None:
            secret, name = pair
            try:
                made.append(signing.sign(secret, name, VERSION, digest))
            except ServiceError as error:
                self.problem = str(error)
        return made

    def _read_keys(self) -> None:
        self._read = time.monotonic()
        self._pair = self._local = None
        self.problem = "this user can have no keys"
        if self._keyring is None:
            return
        with suppress(HeadstartError, OSError):  # it is of use to those who share the folder
            self._local = self._keyring.local(make=True)
        try:
            name = self._key or self._only_pair(self._keyring)
            if name:
                self._pair = self._keyring.secret(name), name
                self.problem = ""
        except (HeadstartError, OSError) as error:
            self.problem = str(error)

    def _only_pair(self, keyring: Keyring) -> str:
        own = keyring.own()
        if len(own) == 1:
            return own[0].name
        self.problem = (
            f"there are {len(own)} keys of yours, and HEADSTART_REMOTE_KEY names none"
            if own
            else "you have no key to sign with: headstart key new NAME makes one"
        )
        return ""


class Verifier:
    """Says whose word counts, by the keys that this user trusts now.

    Args:
        keyring: those; None: the user can have none.
        problem: told of each key file that is left out, and why.
    """

    def __init__(self, keyring: Keyring | None, problem: Callable[[str], None] = lambda text: None) -> None:
        self._keyring = keyring
        self._problem = problem
        self._read = float("-inf")
        self._trust: Trust | None = None

    def why_not(self, signatures: tuple[Signature, ...], entry: bytes) -> str:
        """Why none of them counts for an entry, as the end of "…, because"; empty if one does."""
        if self._keyring is None:
            return "this user can have no keys"
        if self._trust is None or time.monotonic() - self._read > KEYS_AGE:
            self._trust = Trust(self._keyring, self._problem)
            self._read = time.monotonic()
        known = tuple(each for each in signatures if each.kind in (LOCAL, ED25519))
        verdict = self._trust.judge(_Signed(VERSION, _digest(entry), known))
        return "" if verdict.trusted else verdict.why_not


def keyring_in(config_dir: bytes) -> Keyring | None:
    """The keys in a folder; None if that is empty: the user can have none."""
    return Keyring(Path(config_dir.decode(errors="surrogateescape"))) if config_dir else None


def seal(entry: bytes, signer: Signer | None) -> bytes:
    """What is put under the entry's key."""
    signatures = signing.encode(signer.sign(entry) if signer is not None else [])
    return _HEAD.pack(MAGIC, VERSION, len(signatures)) + signatures + entry


def unseal(
    key: str, blob: bytes, verifier: Verifier, *, signed: bool = True, kind: str = "", request_digest: str = ""
) -> bytes:
    """The entry in what `seal` made, verified to its last byte.

    Args:
        key: that it lay under.
        verifier: says whose signatures count.
        signed: whether it needs one; what carries code needs one in any case.
        kind, request_digest: that it must have; empty ones are not compared.

    Raises:
        DamagedError: it is no whole entry of that key, kind and request; `FutureVersionError` if it may be one
            some day.
        NotTrusted: nobody whose word counts has signed it.
    """
    if not blob.startswith(MAGIC) or len(blob) < _VERSION.size:
        raise DamagedError(_PLACE, "it does not begin like one")
    check_version(_PLACE, _VERSION.unpack_from(blob)[1], VERSION)
    if len(blob) < _HEAD.size:
        raise DamagedError(_PLACE, f"truncated: {len(blob)} bytes")
    length = _HEAD.unpack_from(blob)[2]
    if length > min(MAX_SIGNATURES_BYTES, len(blob) - _HEAD.size):
        raise DamagedError(_PLACE, f"truncated or altered: {len(blob)} bytes, with signatures of {length}")
    encoded, data = blob[_HEAD.size : _HEAD.size + length], blob[_HEAD.size + length :]
    signatures = decode(_PLACE, signing.decoder, encoded) if encoded else []
    entry = Entry.from_bytes(data)
    if entry.key != key or not entry.answers(kind, request_digest):
        raise DamagedError(_PLACE, f"another entry lies under {key[:12]}")
    entry.verify()
    _check(entry)
    if (signed or carries_code(entry.header.kind)) and (why := verifier.why_not(tuple(signatures), data)):
        raise NotTrusted(why)
    return data


def _digest(entry: bytes) -> bytes:
    return sha256(_CONTEXT + entry).digest()


def _check(entry: Entry) -> None:
    """What is read of an entry as if a worker of this host had written it."""
    header = entry.header
    if not (math.isfinite(header.compile_wall_s) and math.isfinite(header.compile_cpu_s)):
        raise DamagedError(_PLACE, "it says that its compile took no time that there is")
    if header.kind != "kernel":
        return
    shared = entry.metadata.get("shared") or 0
    if type(shared) is not int or not 0 <= shared < _MAX_SHARED:
        raise DamagedError(_PLACE, "its metadata says that it needs an impossible amount of shared memory")
    if not isinstance(entry.metadata.get("name"), str):
        raise DamagedError(_PLACE, "its metadata names no kernel")
    for name in entry.artifact_names:
        if not _ARTIFACT.fullmatch(name):
            raise DamagedError(_PLACE, f"{name[:40]!r} is no name of an artifact")
