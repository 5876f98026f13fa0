"""The lines that key files are, and what a key may be called."""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import re

from headstart.artifacts import signing
from headstart.errors import UsageError

LOCAL_WORD = "headstart-local"
SECRET_WORD = "headstart-ed25519-secret"
PUBLIC_WORD = "headstart-ed25519"
IDENTITY_WORD = "headstart-sigstore"

_NAME = re.compile(signing.NAME)


def is_name(name: str) -> bool:
    """Whether a key may be called so: a file can be, and it is none of headstart's own names."""
    return _NAME.fullmatch(name) is not None and not name.endswith(".pub") and name != signing.LOCAL


def checked_name(name: str) -> str:
    """That name.

    Raises:
        UsageError: no key may be called so.
    """
    if not is_name(name):
        raise UsageError(
            f"{name!r} is no name for a key: letters, digits and . _ @ + - make one, 63 at most; not local, nor ….pub"
        )
    return name


def line_of(word: str, key: bytes, name: str = "", until: dt.date | None = None) -> bytes:
    """Of a key; only the local one has no name."""
    words = [word, base64.b64encode(key).decode(), *filter(None, [name]), *_end(until)]
    return (" ".join(words) + "\n").encode()


def _end(until: dt.date | None) -> list[str]:
    return [] if until is None else [f"until={until.isoformat()}"]


def parse(data: bytes, word: str) -> tuple[bytes, str, dt.date | None] | None:
    """Key, name and last day in what `line_of` made; None if it did not: an end that cannot be read would be none."""
    try:
        lines = data.decode("ascii").splitlines()
        words = lines[0].split(" ") if len(lines) == 1 else []
        key = base64.b64decode(words[1], validate=True) if words and words[0] == word else b""
        until = None
        if len(words) == 4 and word == PUBLIC_WORD and words[3].startswith("until="):
            until = dt.date.fromisoformat(words.pop().removeprefix("until="))
        name = words[2] if len(words) == 3 else ""
    except (ValueError, IndexError, binascii.Error):
        return None
    if len(key) != signing.KEY_BYTES or len(words) != (2 if word == LOCAL_WORD else 3):
        return None
    return (key, name, until) if word == LOCAL_WORD or is_name(name) else None


def identity_line(identity: str, issuer: str, name: str, has_root: bool, until: dt.date | None) -> bytes:
    """Of an identity of Sigstore's; the words are one each."""
    words = [IDENTITY_WORD, identity, issuer, name, "own" if has_root else "public"]
    return (" ".join([*words, *_end(until)]) + "\n").encode()


def parse_identity(data: bytes) -> tuple[str, str, bool, dt.date | None] | None:
    """Identity, issuer, whether there is a root of its own, and the last day; None if something else is there."""
    try:
        lines = data.decode("ascii").splitlines()
        words = lines[0].split(" ") if len(lines) == 1 else []
        until = None
        if len(words) == 6 and words[5].startswith("until="):
            until = dt.date.fromisoformat(words.pop().removeprefix("until="))
    except ValueError:
        return None
    if len(words) != 5 or words[0] != IDENTITY_WORD or words[4] not in ("own", "public"):
        return None
    return (words[1], words[2], words[4] == "own", until) if words[1] and words[2] else None
