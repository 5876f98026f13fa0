"""A folder that several hosts have mounted: NFS, Lustre, a volume.

What lies where, under the folder:

    v1/3f/3f…e2.blob             what is under a key; its mtime says when it was last of use, to the day
    v1/3f/.3f…e2.<random>.tmp    being written

Guarantees:

A blob is visible whole or not at all: it is written under a name of its own beside its place, and renamed. No lock is
taken and no listing relied on, since neither works everywhere. A file that a server has replaced meanwhile (ESTALE) is
not there.

No link below the folder is followed, and nothing but files of these names is removed.

In a folder that only this user can write, a file that somebody else owns or can write is not there. In any other folder
all are given, and the caller must ask for signatures (`trusted`).

This code assumes that:

- names and times are the file server's: the age of a file is told from a file that was written just now;

- losing blobs in a power cut is fine: one whose data never reached the disk is damaged, which its reader finds out.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from headstart.stores.remote.base import (
    MAX_BLOB_BYTES,
    MAX_REPLY_BYTES,
    Pruned,
    RemoteError,
    check_blob,
    check_key,
)
from headstart.system.private import Swept, refusal, vet

ABANDONED_AGE = 3600.0  # seconds after which a temporary has no writer any more
USED_AGAIN = 86400.0  # seconds within which another use of a blob is not written down
FORMAT = "v1"

_BLOB = re.compile(r"[0-9a-f]{64}\.blob")
_TEMPORARY = re.compile(r"\.[0-9a-f]{64}\.[0-9a-f]{16}\.tmp")
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ELOOP, errno.EISDIR})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_REFUSED = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


class FolderRemote:
    """Blobs as files below `folder`, which is made when something is put.

    Args:
        folder: an absolute path.
        trust_all: whoever can write there, all counts without a signature.
        signed_only: nothing does.
    """

    writable = True

    def __init__(self, folder: str | os.PathLike[str], *, trust_all: bool = False, signed_only: bool = False) -> None:
        self._root = Path(folder)
        self._folder = self._root / FORMAT
        self._trust_all = trust_all
        self._signed_only = signed_only
        self._is_private = False
        self.name = f"file://{self._root}"

    @property
    def trusted(self) -> bool:
        """Whether nobody but this user can write there, or all who can are trusted."""
        return self._trust_all or self._is_for_us_alone()

    def get_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        """See `Remote`. A use is written down by touching the file, at most once in `USED_AGAIN`."""
        for key in keys:
            check_key(key)
        is_private = not self._trust_all and self._is_for_us_alone()
        found: dict[str, bytes] = {}
        room = MAX_REPLY_BYTES
        try:
            with ExitStack() as stack:
                shards: dict[str, int] = {}
                for key in keys:
                    with _absent_is_fine():
                        shard = key[:2]
                        if shard not in shards:
                            shards[shard] = stack.enter_context(self._shard(shard))
                        blob = _read(shards[shard], _name(key), min(MAX_BLOB_BYTES, room), is_private=is_private)
                        if blob is not None:
                            found[key] = blob
                            room -= len(blob)
        except OSError as error:
            raise self._error("read", error) from error
        if not found:
            self._check_mounted()
        return found

    def put(self, key: str, blob: bytes) -> None:
        """See `Remote`."""
        check_key(key)
        check_blob(blob)
        try:
            try:
                self._write(key, blob)
            except OSError as error:
                if error.errno not in (errno.ESTALE, errno.ENOENT) or not self._root.parent.is_dir():
                    raise
                self._write(key, blob)  # its folder went away, or what this host knew of it was old
        except OSError as error:
            raise self._error("write", error) from error

    def claim(self, key: str, seconds: float) -> bool | None:
        """There are none: whether somebody's is over could only be told by clocks, and locks do not work everywhere."""
        return None

    def release(self, key: str) -> None:
        """See `Remote`."""

    def delete(self, key: str) -> None:
        """See `Remote`."""
        check_key(key)
        try:
            with _absent_is_fine(), self._shard(key[:2]) as shard:
                os.unlink(_name(key), dir_fd=shard)
        except OSError as error:
            raise self._error("write", error) from error

    def close(self) -> None:
        """See `Remote`."""

    def prune(self, older_than: float) -> Pruned:
        """See `Prunable`. Also removes what crashed writers left."""
        removed = freed = kept = kept_bytes = 0
        try:
            shards = self._shards()
            now = self._now() if shards else 0.0
            for shard in shards:
                with Swept(shard) as swept:
                    for name, status in list(swept.files()):
                        age = now - status.st_mtime
                        if _TEMPORARY.fullmatch(name) and age > ABANDONED_AGE:
                            swept.remove(name)
                        if not _BLOB.fullmatch(name):
                            continue
                        if age > older_than:
                            swept.remove(name)
                            removed, freed = removed + 1, freed + status.st_size
                        else:
                            kept, kept_bytes = kept + 1, kept_bytes + status.st_size
        except OSError as error:
            raise self._error("prune", error) from error
        return Pruned(removed, freed, kept, kept_bytes)

    def _is_for_us_alone(self) -> bool:
        """One that is safe, others cannot make unsafe; one that is not there, they can make."""
        if not self._is_private and not self._signed_only:
            self._is_private = not refusal(self._folder) and _is_folder(self._folder)
        return self._is_private

    def _check_mounted(self) -> None:
        """Raises RemoteError if not even the folder above is there: it is a typo, or the volume is missing."""
        if not self._root.parent.is_dir():
            raise RemoteError(
                f"{self.name}: there is no folder {self._root.parent}",
                advice="mount it, or correct the path",
                lasting=True,
            )

    @contextmanager
    def _shard(self, name: str, *, make: bool = False) -> Iterator[int]:
        """The folder of keys that begin so, open, no link followed. Raises OSError if it is not there."""
        if make:
            # As open as the umask says, since others may be meant to write here too.
            with contextlib.suppress(FileExistsError):
                self._root.mkdir()
        root = os.open(self._root, _FOLDER & ~os.O_NOFOLLOW)  # which is the user's word
        try:
            whole = _opened(FORMAT, root, make=make)
        finally:
            os.close(root)
        try:
            shard = _opened(name, whole, make=make)
        finally:
            os.close(whole)
        try:
            yield shard
        finally:
            os.close(shard)

    def _write(self, key: str, blob: bytes) -> None:
        temporary = f".{key}.{os.urandom(8).hex()}.tmp"
        with self._shard(key[:2], make=True) as shard:
            try:
                with os.fdopen(os.open(temporary, _NEW, 0o666, dir_fd=shard), "wb") as file:
                    file.write(blob)
                os.replace(temporary, _name(key), src_dir_fd=shard, dst_dir_fd=shard)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary, dir_fd=shard)
                raise

    def _shards(self) -> list[Path]:
        try:
            names = sorted(os.listdir(self._folder))
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [self._folder / name for name in names if re.fullmatch(r"[0-9a-f]{2}", name)]

    def _now(self) -> float:
        """What time the file server has: hosts and servers whose clocks differ write times beside one another here."""
        probe = self._folder / f".{'0' * 64}.{os.urandom(8).hex()}.tmp"
        try:
            with os.fdopen(os.open(probe, _NEW, 0o600), "wb") as file:
                file.write(b"now")
            return probe.lstat().st_mtime  # once it is closed: until then it may be this host's time
        finally:
            with contextlib.suppress(OSError):
                probe.unlink()

    def _error(self, verb: str, error: OSError) -> RemoteError:
        summary = f"{self.name}: cannot {verb}: {error.strerror or error}"
        if error.errno in _FULL:
            return RemoteError(summary, advice="make room: headstart cache prune --remote --older-than 30d")
        if error.errno in _REFUSED:
            return RemoteError(summary, advice="have this user write there, or add ?read-only to its URL", lasting=True)
        if error.errno in _ABSENT:
            return RemoteError(summary, advice="mount it, or correct the path", lasting=True)
        return RemoteError(summary, advice="see whether the file server can be reached")


@contextmanager
def _absent_is_fine() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _ABSENT:
            raise


def _opened(name: str, above: int, *, make: bool) -> int:
    if make:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, dir_fd=above)
    return os.open(name, _FOLDER, dir_fd=above)


def _name(key: str) -> str:
    return f"{key}.blob"


def _read(shard: int, name: str, most: int, *, is_private: bool) -> bytes | None:
    """A file's bytes; None if it is larger than `most`, no regular file, or another's among private ones.

    Raises:
        OSError: it cannot be read.
    """
    fd = os.open(name, _READ, dir_fd=shard)
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > most or (is_private and vet(fd)):
            return None
        blob = file.read(status.st_size + 1)
        if len(blob) != status.st_size:
            return None  # it grew or shrank meanwhile, which what is renamed into place does not
        # In either direction: a time in the future is one of a clock that was wrong.
        if abs(time.time() - status.st_mtime) > USED_AGAIN:
            with contextlib.suppress(OSError):
                os.utime(name, dir_fd=shard, follow_symlinks=False)
        return blob


def _is_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False
