"""Many entries by key, as files: for all processes of this machine, and of others that share the folder.

What lies where, under the cache folder:

    store/v2/3f/3f…e2.hse    an entry; its mtime says when it was last of use
    store/v2/tmp/            being written
    store/v2/damaged/        set aside, for people to look at
    store/v2/prune.lock      the process that holds its flock prunes
    store/v2/compiling.lock  byte number `key` is locked by the process that compiles that key

Guarantees:

An entry is visible whole or not at all, however many processes publish, find and prune at once: it is written
under a name of its own and renamed. Of two that publish one key the last wins, and readers of the first go on
(`entry.py`).

A damaged entry is a miss: it is moved to damaged/ with one warning, and the next publish makes the key whole.

`find` never raises: a store that cannot be read is all misses, and its writers learn why (`StoreUnavailable`).

A store that others than its user could change is all misses too, unless it is `trusted`, and a file in it that
somebody else owns or can write is damaged. An entry is of its key by what its header says, not by its name.

Nothing is removed outside of the store's folders, and no link in them is followed.

This code assumes that:

- keys are SHA-256 in hexadecimal, made by `headstart.model.keys` and by nobody else;

- losing entries in a power cut is fine. Nothing is synced; one whose data never reached the disk is damaged;

- headstart removes entries by unlink, and no folder of this format.

A `DiskStore` may be used from several threads and processes.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import logging
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from headstart.artifacts.entry import VERSION, Entry
from headstart.errors import DamagedError, FutureVersionError, PastVersionError, StoreUnavailable
from headstart.stores.base import PruneReport, StoreInfo
from headstart.system.folders import distrust, told
from headstart.system.locks import lock_byte
from headstart.system.private import Swept, make_folder, vet

USED_AGAIN = 60.0  # seconds within which another use of an entry is not written down
ABANDONED_AGE = 3600.0  # seconds after which a file in tmp/ has no writer any more
DAMAGED_AGE = 7 * 86400.0  # seconds for which damaged entries are kept
_CLOCKS_DIFFER = 3600.0  # seconds by which the clock of another machine may be ahead
_LOCK_DIGITS = 15  # of a key, hexadecimal: a file offset has 63 bits

_log = logging.getLogger("headstart")
_SHARD = re.compile(r"[0-9a-f]{2}")
_ENTRY = re.compile(r"[0-9a-f]{64}\.hse")
_TEMPORARY = re.compile(r"[0-9a-f]{32}")
_LOCKS = re.compile(r"prune\.lock|compiling\.lock")
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LOCK = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class DiskStore:
    """Entries as files under `root`/store, shared by all processes that can write there.

    Args:
        root: the cache folder; made when something is published.
        limit_bytes: what `prune` keeps; None: everything.
        trusted: use the folder and all that is in it, whoever else can write there.
        warn: told what a person should know; by default, the log.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        limit_bytes: int | None = None,
        trusted: bool = False,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        self._root = Path(root).absolute()
        self.folder = self._root / "store" / f"v{VERSION}"
        self.limit_bytes = limit_bytes
        self.trusted = trusted
        self._is_vetted = trusted
        self._temporary = self.folder / "tmp"
        self._damaged = self.folder / "damaged"
        self._warned: set[str] = set()
        self._warn = warn or functools.partial(_log.warning, "%s")

    def find(self, key: str, *, kind: str = "", request_digest: str = "") -> Entry | None:
        """See `Store`. A use is written down by touching the file, at most once in `USED_AGAIN`."""
        entry = self._open(key)
        if entry is not None and not entry.answers(kind, request_digest):
            self.set_aside(key, f"it holds another entry, {entry!r}")
            return None
        if entry is not None:
            path = self.path_of(key)
            with suppress(OSError):
                # A time in the future is one of a clock that was wrong: the entry would stay for ever.
                if abs(time.time() - path.lstat().st_mtime) > USED_AGAIN:
                    os.utime(path, follow_symlinks=False)
        return entry

    def publish(self, key: str, parts: Sequence[bytes]) -> Entry | None:
        """See `Store`."""
        path = self.path_of(key)
        temporary = self._temporary / os.urandom(16).hex()
        with self._writing():
            self._make(path.parent)
            self._make(self._temporary)
            try:
                with os.fdopen(os.open(temporary, _NEW, 0o666 if self.trusted else 0o644), "wb") as file:
                    file.writelines(parts)
                temporary.replace(path)
            except BaseException:
                with suppress(OSError):
                    temporary.unlink()
                raise
        try:
            return Entry.open(path, vet=self._vet)
        except FileNotFoundError:
            return None

    @contextmanager
    def claim(self, key: str) -> Iterator[None]:
        """Hold the right to compile `key`, among all processes that use this store; wait for its holder.

        However its holder ends, the kernel gives the right back. Where no lock can be had, or its holder is stopped
        or takes longer than `headstart.system.locks.PATIENCE`, two may compile the same.
        """
        fd = -1
        try:
            with suppress(OSError):
                self._make(self.folder)
                fd = os.open(self.folder / "compiling.lock", _LOCK, 0o666)
                # One byte of one file stands for each key, so that no lock leaves a file of its own behind.
                lock_byte(fd, int(key[:_LOCK_DIGITS], 16))
            yield
        finally:
            if fd >= 0:
                os.close(fd)

    def set_aside(self, key: str, reason: str) -> None:
        """See `Store`. If a whole entry was published meanwhile, that one goes: a miss more, nothing worse."""
        path = self.path_of(key)
        self._warn_once(key, f"{path} is damaged and will be compiled again: {reason}")
        try:
            self._make(self._damaged)
            os.utime(path, follow_symlinks=False)  # it is kept for so long from now on
            path.replace(self._damaged / path.name)
        except OSError:
            with suppress(OSError):
                path.unlink()

    def keys(self) -> Iterator[str]:
        """See `Store`."""
        for shard in _shards(self.folder):
            with shard:
                names = [name for name, _ in _matching(shard, _ENTRY)]
            yield from (name.partition(".")[0] for name in names)

    def entries(self) -> Iterator[Entry]:
        """See `Store`."""
        for key in self.keys():
            entry = self._open(key)
            if entry is not None:
                yield entry

    def info(self) -> StoreInfo:
        """See `Store`."""
        sizes = []
        for shard in _shards(self.folder):
            with shard:
                sizes += [status.st_size for _, status in _matching(shard, _ENTRY)]
        return StoreInfo(len(sizes), sum(sizes), self.limit_bytes, self.folder)

    def prune(self, limit_bytes: int | None = None) -> PruneReport:
        """See `Store`. Also removes what crashed writers left in tmp/, and old files from damaged/."""
        return self._sweep(self.limit_bytes if limit_bytes is None else limit_bytes, DAMAGED_AGE)

    def clear(self) -> PruneReport:
        """See `Store`. What is being written at this moment stays."""
        return self._sweep(0, 0.0)

    def drop_earlier(self) -> PruneReport:
        """Remove the stores of earlier formats beside this one, which nobody reads any more, and only what is theirs.

        Raises:
            StoreUnavailable: the store is read-only.
        """
        removed = freed = 0
        for folder in self.earlier():
            with self._writing():
                for shard, pattern in _parts(folder):
                    with shard:
                        for name, status in list(_matching(shard, pattern)):
                            shard.remove(name)
                            if pattern is _ENTRY and shard.folder.name != "damaged":
                                removed, freed = removed + 1, freed + status.st_size
                    with suppress(OSError):  # there is something else in it, or it is a link
                        shard.folder.rmdir()
        return PruneReport(removed, freed)

    def earlier(self) -> list[Path]:
        """The folders of earlier formats. What they hold is not used: it may be other kernels than Triton's."""
        folders = [self.folder.with_name(f"v{version}") for version in range(1, VERSION)]
        return [folder for folder in folders if folder.is_dir() and not folder.is_symlink()]

    def _sweep(self, limit_bytes: int | None, damaged_age: float) -> PruneReport:
        if not self.folder.is_dir():
            return PruneReport()
        with self._writing(), _lock(self.folder / "prune.lock") as alone:
            if not alone:
                return PruneReport(busy=True)
            _remove_older(self._temporary, _TEMPORARY, ABANDONED_AGE)
            _remove_older(self._damaged, _ENTRY, damaged_age)
            return self._evict(limit_bytes)

    def _evict(self, limit_bytes: int | None) -> PruneReport:
        now = time.time_ns()
        with ExitStack() as stack:
            files = [
                (min(now, status.st_mtime_ns), status.st_size, shard, name)
                for shard in map(stack.enter_context, _shards(self.folder))
                for name, status in _matching(shard, _ENTRY)
            ]
            files.sort(key=lambda file: file[0])
            kept_bytes = total = sum(size for _, size, _, _ in files)
            removed = 0
            while limit_bytes is not None and kept_bytes > limit_bytes:
                _, size, shard, name = files[removed]
                shard.remove(name)
                kept_bytes -= size
                removed += 1
        return PruneReport(removed, total - kept_bytes, len(files) - removed, kept_bytes)

    # Who else can write here

    def refusal(self) -> str:
        """Why this store is not used, with the remedy; empty if it is."""
        if self._is_vetted:
            return ""
        why = distrust(self.folder, trusted=self.trusted)
        # One that is safe, others cannot make unsafe; one that is not there, they can make.
        self._is_vetted = not why and self.folder.is_dir()
        return why

    def _vet(self, fd: int) -> str:
        return "" if self.trusted else vet(fd)

    def _make(self, folder: Path) -> None:
        """Raises OSError if it is not a folder of this store's own."""
        make_folder(folder, 0o777 if self.trusted else 0o700)
        if why := self.refusal():
            raise PermissionError(errno.EPERM, why, str(folder))
        # The whole store may be elsewhere, by a link of the user's; its parts are not.
        if folder != self.folder and not stat.S_ISDIR(folder.lstat().st_mode):
            raise OSError(errno.ELOOP, "a link in its place", str(folder))

    def _open(self, key: str) -> Entry | None:
        if why := self.refusal():
            if self._root not in told:
                self._warn_once("", why)
            return None
        path = self.path_of(key)
        try:
            entry = Entry.open(path, vet=self._vet)
            if entry.key == key:
                return entry
            self.set_aside(key, f"it holds another entry, {entry!r}")
        except (FileNotFoundError, NotADirectoryError, FutureVersionError, PastVersionError):
            pass
        except DamagedError as error:
            self.set_aside(key, error.reason)
        except OSError as error:
            self._warn_once(key, f"cannot read {path}: {error.strerror}")
        return None

    def path_of(self, key: str) -> Path:
        """Where the entry of `key` is, or would be."""
        return self.folder / key[:2] / f"{key}.hse"

    def _warn_once(self, key: str, message: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            self._warn(message)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            if why := self.refusal():
                raise PermissionError(errno.EPERM, why, str(self.folder))
            yield
        except OSError as error:
            raise StoreUnavailable(self.folder, error) from error


def _parts(folder: Path) -> Iterator[tuple[Swept, re.Pattern[str]]]:
    """The folders of one format's store, the innermost first, and what the names of the files in each are like."""
    yield from ((shard, _ENTRY) for shard in _shards(folder))
    yield Swept(folder / "tmp"), _TEMPORARY
    yield Swept(folder / "damaged"), _ENTRY
    yield Swept(folder), _LOCKS


def _shards(folder: Path) -> Iterator[Swept]:
    with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        for name in sorted(os.listdir(folder)):
            if _SHARD.fullmatch(name):
                yield Swept(folder / name)


def _matching(folder: Swept, pattern: re.Pattern[str]) -> Iterator[tuple[str, os.stat_result]]:
    return ((name, status) for name, status in folder.files() if pattern.fullmatch(name))


def _remove_older(folder: Path, pattern: re.Pattern[str], age: float) -> None:
    oldest = time.time() - age
    with Swept(folder) as swept:
        for name, status in list(_matching(swept, pattern)):
            if status.st_mtime <= oldest:
                swept.remove(name)
            elif status.st_mtime > time.time() + _CLOCKS_DIFFER:
                with suppress(OSError):
                    swept.touch(name)  # of a clock that was wrong; its age counts from now on


@contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Whether this is the one process that holds `path`'s lock. It ends with the process, if not before."""
    fd = os.open(path, _LOCK, 0o666)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(fd)
