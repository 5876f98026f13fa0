"""This user's keys, as files: those they sign with, those they trust, and the local one.

    HEADSTART_CONFIG_DIR/
      local.key           0600   headstart-local SECRET             signs what this user's own runs write
      keys/NAME           0600   headstart-ed25519-secret SECRET NAME
      keys/NAME.pub              headstart-ed25519 PUBLIC NAME      to be given away
      trusted/NAME.pub           headstart-ed25519 PUBLIC NAME [until=2027-01-31]
      trusted/NAME.identity      headstart-sigstore IDENTITY ISSUER NAME ROOT [until=2027-01-31]
      trusted/NAME.root.json     that ROOT is "own": the trusted root by which the identity is verified

Each but the last is one line of text; SECRET and PUBLIC are 32 bytes in base64, ROOT is "own" or "public".

Guarantees:

A key file is there whole or not at all. Of several processes that make the local key at once, one does, and all get
that one. No secret is ever written over, and no file that is not headstart's.

A folder that others can write has no keys, and neither have files that are links, others' own, or writable by them; of
secrets also none that others can read. So whose signatures count nobody else can decide.

This code assumes that who can read this user's files may sign as them: secrets are not encrypted.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from headstart.artifacts import signing
from headstart.artifacts.container import snapshot_of
from headstart.artifacts.identities import check_root, identity_id
from headstart.artifacts.key_files import (
    IDENTITY_WORD,
    LOCAL_WORD,
    PUBLIC_WORD,
    SECRET_WORD,
    checked_name,
    identity_line,
    is_name,
    line_of,
    parse,
    parse_identity,
)
from headstart.errors import DamagedError, UsageError
from headstart.system import private
from headstart.system.files import KEY, check_replaceable, create, replace
from headstart.system.places import config_dir

_MAX_FILE_BYTES = 2048
_MAX_ROOT_BYTES = 1 << 20
_WORD = re.compile(r"[!-~]{1,500}")  # an identity, or an issuer


class TrustedKey(NamedTuple):
    """A public key whose signatures count, or an identity of Sigstore's.

    Attributes:
        name: what this user calls it.
        public: the key; of an identity its `identity_id`.
        until: the last day on which they do, in UTC; None: no end.
        identity: an e-mail address, or the address of a workflow; empty if this is a key.
        issuer: who vouches for it.
        root: the trusted root by which it is verified; None: that of Sigstore's public service.
    """

    name: str
    public: bytes
    until: dt.date | None
    identity: str = ""
    issuer: str = ""
    root: Path | None = None

    @property
    def kind(self) -> str:
        """Of its signatures."""
        return signing.SIGSTORE if self.identity else signing.ED25519

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
            return self._read(self.local_file, LOCAL_WORD, private.vet_secret)[0]
        except FileNotFoundError:
            if not make:
                return None
        private.make_folder(self.folder)
        with suppress(FileExistsError):
            create(self.local_file, line_of(LOCAL_WORD, signing.new_secret()), 0o600)
        return self._read(self.local_file, LOCAL_WORD, private.vet_secret)[0]

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
            create(path, line_of(SECRET_WORD, secret, name), 0o600)
        except FileExistsError:
            raise UsageError(f"there is a key {name} already: {path}; choose another name") from None
        try:
            replace(public_path, line_of(PUBLIC_WORD, public, name), KEY)
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
            return self._read(path, SECRET_WORD, private.vet_secret)[0]
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
        public, called, _ = self._read(file, PUBLIC_WORD, None)
        trusted = TrustedKey(checked_name(name or called), public, until)
        self._make_room_for(trusted)
        replace(self.trusted_file(trusted), line_of(PUBLIC_WORD, public, trusted.name, until), KEY)
        return trusted

    def trust_identity(
        self, identity: str, issuer: str, name: str, until: dt.date | None = None, root: Path | None = None
    ) -> TrustedKey:
        """Have signatures count from now on that Sigstore says are by this identity, which this issuer vouches for.

        Args:
            root: a trusted root of Sigstore's, of which a copy is kept; default: that of its public service.

        Raises:
            UsageError: as `trust`; or `identity` or `issuer` is not one word.
            DamagedError: `root` is no such file, or others can write the folder.
            ServiceError: there is no package for it.
            OSError: it cannot be read or written.
        """
        if not (_WORD.fullmatch(identity) and _WORD.fullmatch(issuer)):
            raise UsageError(
                "an identity and its issuer are one word each, as me@example.com and https://accounts.example"
            )
        trusted = TrustedKey(checked_name(name), identity_id(identity, issuer), until, identity, issuer)
        self._make_room_for(trusted)
        if root is not None:
            check_root(root)
            with snapshot_of(root) as snapshot:
                data = snapshot.read(0, _MAX_ROOT_BYTES)
            trusted = trusted._replace(root=self._trusted / f"{name}.root.json")
            replace(self._trusted / f"{name}.root.json", data)
        line = identity_line(identity, issuer, name, root is not None, until)
        replace(self.trusted_file(trusted), line, KEY)
        return trusted

    def trusted(self, problem: Callable[[str], None] = lambda text: None) -> list[TrustedKey]:
        """Whose signatures count, and counted until some day, by name.

        Args:
            problem: told of each file that is left out, and why.

        Raises:
            DamagedError: others can write the folder.
            OSError: it cannot be read.
        """
        found = [TrustedKey(path.stem, public, until) for path, public, until in self._publics(self._trusted, problem)]
        for path in _files(self._trusted, ".identity"):
            try:
                found.append(self._read_identity(path))
            except (DamagedError, OSError) as error:
                problem(f"an identity is left out: {error}")
        return sorted(found, key=lambda each: each.name)

    def forget(self, name: str) -> Path:
        """Have signatures by this key count no longer; `local`: those by this user's own runs.

        Returns:
            The file that was removed.

        Raises:
            UsageError: no such key is trusted.
            OSError: the file cannot be removed.
        """
        if name == signing.LOCAL:
            paths = [self.local_file]
        else:
            paths = [self._trusted / f"{checked_name(name)}{end}" for end in (".pub", ".identity", ".root.json")]
        removed = []
        for path in paths:
            with suppress(FileNotFoundError):
                path.unlink()
                removed.append(path)
        if not removed:
            raise UsageError(f"no key {name} is trusted; headstart key list shows those that are")
        return removed[0]

    def _publics(self, folder: Path, problem: Callable[[str], None]) -> Iterator[tuple[Path, bytes, dt.date | None]]:
        self._check_folder()
        for path in _files(folder):
            try:
                public, _, until = self._read(path, PUBLIC_WORD, private.vet)
            except (DamagedError, OSError) as error:
                problem(f"a key is left out: {error}")
            else:
                yield path, public, until

    def trusted_file(self, key: TrustedKey) -> Path:
        """Where that is written down."""
        return self._trusted / f"{key.name}{'.identity' if key.identity else '.pub'}"

    def _make_room_for(self, wanted: TrustedKey) -> None:
        """Find out whether nothing else has that name, and it no other."""
        self._check_folder()
        for known in self.trusted():
            if known.name == wanted.name and known.public != wanted.public:
                raise UsageError(
                    f"another key is trusted as {known.name}: headstart key forget {known.name}, or choose another "
                    "name by --name"
                )
            if known.public == wanted.public and known.name != wanted.name:
                raise UsageError(f"this key is trusted already, as {known.name}")
        private.make_folder(self._trusted)
        check_replaceable(self.trusted_file(wanted), KEY)

    def _read_identity(self, path: Path) -> TrustedKey:
        with snapshot_of(path, private.vet) as snapshot:
            found = parse_identity(snapshot.read(0, _MAX_FILE_BYTES + 1))
        if found is None:
            raise DamagedError(
                path, f"this is no identity: expected one line, {IDENTITY_WORD} IDENTITY ISSUER NAME ROOT"
            )
        identity, issuer, has_root, until = found
        root = path.with_suffix(".root.json") if has_root else None
        if root is not None:
            with snapshot_of(root, private.vet):  # by another root it would be another identity
                pass
        return TrustedKey(path.stem, identity_id(identity, issuer), until, identity, issuer, root)

    def _check_folder(self) -> None:
        if why := self.refusal():
            raise DamagedError(self.folder, why)

    def _pair(self, name: str) -> tuple[Path, Path]:
        checked_name(name)
        return self._own / name, self._own / f"{name}.pub"

    @staticmethod
    def _read(path: Path, word: str, vet: Callable[[int], str] | None) -> tuple[bytes, str, dt.date | None]:
        """Key, name and last day in a file."""
        with snapshot_of(path, vet) as snapshot:
            data = snapshot.read(0, _MAX_FILE_BYTES + 1)
        found = None if len(data) > _MAX_FILE_BYTES else parse(data, word)
        if found is None:
            shape = f"{word} BASE64" if word == LOCAL_WORD else f"{word} BASE64 NAME"
            raise DamagedError(path, f"this is no key file: expected one line, {shape}")
        return found


def today() -> dt.date:
    """In UTC, so that trust ends everywhere at once."""
    return dt.datetime.now(dt.timezone.utc).date()


def _files(folder: Path, end: str = ".pub") -> Iterator[Path]:
    """Those of public keys, hidden ones (which are being written) left out."""
    with suppress(FileNotFoundError):
        for path in sorted(folder.iterdir()):
            if path.suffix == end and is_name(path.stem):
                yield path
