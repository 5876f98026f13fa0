"""This user's keys, as files: those they sign with, those they trust, and the local one.

    HEADSTART_CONFIG_DIR/
      local.key           0600   headstart-local SECRET             signs what this user's own runs write
      keys/NAME           0600   headstart-ed25519-secret SECRET NAME
      keys/NAME.pub              headstart-ed25519 PUBLIC NAME      to be given away
      trusted/NAME.pub           headstart-ed25519 PUBLIC NAME [until=2027-01-31]

Each is one line of text; SECRET and PUBLIC are 32 bytes in base64.

Guarantees:

A key file is there whole or not at all. Of several processes that make the local key at once, one does, and all get
that one. No secret is ever written over, and no file that is not headstart's.

A folder that others can write has no keys, and neither have files that are links, others' own, or writable by them; of
secrets also none that others can read. So whose signatures count nobody else can decide.

This code assumes that who can read this user's files may sign as them: secrets are not encrypted.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from headstart.artifacts import signing
from headstart.artifacts.container import snapshot_of
from headstart.errors import DamagedError, UsageError
from headstart.system import private
from headstart.system.files import KEY, check_replaceable, create, replace
from headstart.system.folders import config_dir

_LOCAL_WORD = "headstart-local"
_SECRET_WORD = "headstart-ed25519-secret"
_PUBLIC_WORD = "headstart-ed25519"
_MAX_FILE_BYTES = 1024
_NAME = re.compile(signing.NAME)


class TrustedKey(NamedTuple):
    """A public key whose signatures count.

    Attributes:
        name: what this user calls it.
        public: the key.
        until: the last day on which they do, in UTC; None: no end.
    """

    name: str
    public: bytes
    until: dt.date | None

    @property
    def has_expired(self) -> bool:
        """Whether that day is over."""
        return self.until is not None and today() > self.until


class OwnKey(NamedTuple):
    """A pair of keys of this user's; the secret one is read when something is to be signed."""

    name: str
    public: bytes
    path: Path


class Keyring:
    """The keys in one folder, read whenever they are asked for.

    Args:
        folder: default: the user's `config_dir`.

    Attributes:
        local_file: where the local key is, if there is one.

    Raises:
        UsageError, ServiceError: as `config_dir`.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = config_dir() if folder is None else folder
        self._own = self.folder / "keys"
        self._trusted = self.folder / "trusted"
        self.local_file = self.folder / "local.key"

    def refusal(self) -> str:
        """Why no key in this folder counts, as a sentence without its full stop; empty if they do."""
        for folder in (self.folder, self._own, self._trusted):
            if why := private.refusal(folder):
                return f"no key in {self.folder} counts: {why}, who could add or replace keys"
        return ""

    # The local key

    def local(self, *, make: bool = False) -> bytes | None:
        """The secret of this user's own runs; None if there is none yet.

        Args:
            make: whether it is made then.

        Raises:
            DamagedError: it is no such file, or others can read or write it.
            OSError: it cannot be read or made.
        """
        if why := self.refusal():
            raise DamagedError(self.local_file, why)
        try:
            return self._read(self.local_file, _LOCAL_WORD, private.vet_secret)[0]
        except FileNotFoundError:
            if not make:
                return None
        private.make_folder(self.folder)
        with suppress(FileExistsError):
            create(self.local_file, _line(_LOCAL_WORD, signing.new_secret()), 0o600)
        return self._read(self.local_file, _LOCAL_WORD, private.vet_secret)[0]

    # Own pairs

    def new(self, name: str) -> Path:
        """Make a pair of Ed25519 keys.

        Returns:
            The file of the public one.

        Raises:
            UsageError: that is no name for a key, or one of this user's has it.
            DamagedError: others can write the folder.
            ServiceError: there is no package for it.
            OSError: it cannot be written.
        """
        path, public_path = self._pair(name)
        self._check_folder()
        secret = signing.new_secret()
        public = signing.public_of(secret)
        private.make_folder(self._own)
        try:
            create(path, _line(_SECRET_WORD, secret, name), 0o600)
        except FileExistsError:
            raise UsageError(f"there is a key {name} already: {path}; choose another name") from None
        try:
            replace(public_path, _line(_PUBLIC_WORD, public, name), KEY)
        except BaseException:
            path.unlink()  # half a pair would be in the way of the next attempt
            raise
        return public_path

    def secret(self, name: str) -> bytes:
        """Of a pair of this user's.

        Raises:
            UsageError: there is none of that name.
            DamagedError: it is no such file, or others can read or write it.
            OSError: it cannot be read.
        """
        path, _ = self._pair(name)
        self._check_folder()
        try:
            return self._read(path, _SECRET_WORD, private.vet_secret)[0]
        except FileNotFoundError:
            raise UsageError(f"there is no key {name} of yours: headstart key new {name} makes one") from None

    def own(self, problem: Callable[[str], None] = lambda text: None) -> list[OwnKey]:
        """Pairs of which the public file is there, by name. `problem`, and what is raised: as for `trusted`."""
        return [OwnKey(path.stem, public, path) for path, public, _ in self._publics(self._own, problem)]

    # Trusted ones

    def trust(self, file: Path, name: str = "", until: dt.date | None = None) -> TrustedKey:
        """Have signatures by the public key in `file` count from now on.

        Args:
            name: what it is called here; default: as in the file.
            until: the last day on which they do.

        Raises:
            UsageError: that is no name for a key, another one has it, or this key is trusted under another.
            DamagedError: `file` is no public key, or others can write the folder.
            OSError: it cannot be read or written.
        """
        public, called, _ = self._read(file, _PUBLIC_WORD, None)
        name = _checked(name or called)
        self._check_folder()
        for known in self.trusted():
            if known.name == name and known.public != public:
                raise UsageError(
                    f"another key is trusted as {name}: headstart key forget {name}, or choose another name by --name"
                )
            if known.public == public and known.name != name:
                raise UsageError(f"this key is trusted already, as {known.name}")
        private.make_folder(self._trusted)
        path = self.trusted_file(name)
        check_replaceable(path, KEY)
        replace(path, _line(_PUBLIC_WORD, public, name, until), KEY)
        return TrustedKey(name, public, until)

    def trusted(self, problem: Callable[[str], None] = lambda text: None) -> list[TrustedKey]:
        """Whose signatures count, and counted until some day, by name.

        Args:
            problem: told of each file that is left out, and why.

        Raises:
            DamagedError: others can write the folder.
            OSError: it cannot be read.
        """
        return [TrustedKey(path.stem, public, until) for path, public, until in self._publics(self._trusted, problem)]

    def forget(self, name: str) -> Path:
        """Have signatures by this key count no longer; `local`: those by this user's own runs.

        Returns:
            The file that was removed.

        Raises:
            UsageError: no such key is trusted.
            OSError: the file cannot be removed.
        """
        path = self.local_file if name == signing.LOCAL else self.trusted_file(_checked(name))
        try:
            path.unlink()
        except FileNotFoundError:
            raise UsageError(f"no key {name} is trusted; headstart key list shows those that are") from None
        return path

    def _publics(self, folder: Path, problem: Callable[[str], None]) -> Iterator[tuple[Path, bytes, dt.date | None]]:
        self._check_folder()
        for path in _files(folder):
            try:
                public, _, until = self._read(path, _PUBLIC_WORD, private.vet)
            except (DamagedError, OSError) as error:
                problem(f"a key is left out: {error}")
            else:
                yield path, public, until

    def trusted_file(self, name: str) -> Path:
        """Where a trusted key of that name is, if there is one."""
        return self._trusted / f"{name}.pub"

    def _check_folder(self) -> None:
        if why := self.refusal():
            raise DamagedError(self.folder, why)

    def _pair(self, name: str) -> tuple[Path, Path]:
        _checked(name)
        return self._own / name, self._own / f"{name}.pub"

    @staticmethod
    def _read(path: Path, word: str, vet: Callable[[int], str] | None) -> tuple[bytes, str, dt.date | None]:
        """Key, name and last day in a file."""
        with snapshot_of(path, vet) as snapshot:
            data = snapshot.read(0, _MAX_FILE_BYTES + 1)
        found = None if len(data) > _MAX_FILE_BYTES else _parse(data, word)
        if found is None:
            shape = f"{word} BASE64" if word == _LOCAL_WORD else f"{word} BASE64 NAME"
            raise DamagedError(path, f"this is no key file: expected one line, {shape}")
        return found


def today() -> dt.date:
    """In UTC, so that trust ends everywhere at once."""
    return dt.datetime.now(dt.timezone.utc).date()


def is_name(name: str) -> bool:
    """Whether a key may be called so: a file can be, and it is none of headstart's own names."""
    return _NAME.fullmatch(name) is not None and not name.endswith(".pub") and name != signing.LOCAL


def _checked(name: str) -> str:
    if not is_name(name):
        raise UsageError(
            f"{name!r} is no name for a key: letters, digits and . _ @ + - make one, 63 at most; not local, nor ….pub"
        )
    return name


def _files(folder: Path) -> Iterator[Path]:
    """Those of public keys, hidden ones (which are being written) left out."""
    with suppress(FileNotFoundError):
        for path in sorted(folder.iterdir()):
            if path.suffix == ".pub" and is_name(path.stem):
                yield path


def _line(word: str, key: bytes, name: str = "", until: dt.date | None = None) -> bytes:
    words = [word, base64.b64encode(key).decode(), name, "" if until is None else f"until={until.isoformat()}"]
    return (" ".join(filter(None, words)) + "\n").encode()


def _parse(data: bytes, word: str) -> tuple[bytes, str, dt.date | None] | None:
    """What `_line` made; None if something else is there: a key with an end that cannot be read would have none."""
    try:
        lines = data.decode("ascii").splitlines()
        words = lines[0].split(" ") if len(lines) == 1 else []
        key = base64.b64decode(words[1], validate=True) if words and words[0] == word else b""
        until = None
        if len(words) == 4 and word == _PUBLIC_WORD and words[3].startswith("until="):
            until = dt.date.fromisoformat(words.pop().removeprefix("until="))
        name = words[2] if len(words) == 3 else ""
    except (ValueError, IndexError, binascii.Error):
        return None
    if len(key) != signing.KEY_BYTES or len(words) != (2 if word == _LOCAL_WORD else 3):
        return None
    return (key, name, until) if word == _LOCAL_WORD or is_name(name) else None
