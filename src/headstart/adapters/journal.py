"""What a process notes that may be killed at any moment: appended as it goes, merged into the record by the next.

    child of multiprocessing: note ─▶ write(2) ─▶ .NAME.PID-RANDOM.journal      (with Pool() ends by SIGTERM)
    anybody who updates NAME:  is it locked? its writer lives ─▶ left alone
                               else ─▶ merged, and removed

A journal holds one small manifest after another. Its writer holds a lock (flock) on it while it lives, which the kernel
gives back however it ends. What was appended survives the process, not a power cut; a manifest that is cut short, and
what follows it, is left out.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from headstart.errors import DamagedError

if TYPE_CHECKING:
    from headstart.artifacts.manifest import Manifest

_SUFFIX = ".journal"


class Journal:
    """This process's journal for the record at `record`, whose folder is there.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, record: Path) -> None:
        stem = f".{record.name}.{os.getpid()}-{os.urandom(4).hex()}"
        self._path = record.with_name(stem + _SUFFIX)
        made = record.with_name(f"{stem}.new")
        self._fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            # Nobody sees it under its name before it is locked.
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            made.rename(self._path)
        except OSError:
            os.close(self._fd)
            made.unlink(missing_ok=True)
            raise
        self.size = 0  # bytes

    def append(self, manifest: Manifest) -> None:
        """Add what `manifest` says.

        Raises:
            OSError: it cannot be written. The journal is as it was.
        """
        data = manifest.encode()
        try:
            written = os.write(self._fd, data)
            if written < len(data):
                raise OSError(f"{self._path}: only {written} of {len(data)} bytes could be written")
        except OSError:
            os.ftruncate(self._fd, self.size)
            raise
        self.size += len(data)

    def saved(self, size: int) -> None:
        """The record has what was in the journal when it had `size` bytes."""
        if size == self.size:
            os.ftruncate(self._fd, 0)
            self.size = 0

    def remove(self) -> None:
        """The record has all of it."""
        self._path.unlink(missing_ok=True)
        self.let_go()

    def let_go(self) -> None:
        """Leave it to others, or (in a fork) to its writer."""
        os.close(self._fd)


def exists_for(record: Path) -> bool:
    """Whether there is any journal for a record."""
    return any(_journals(record))


def left_behind(record: Path) -> list[tuple[Path, list[Manifest]]]:
    """The journals whose writers are gone, and what they say. To be called, and they removed, by one at a time."""
    found = []
    for path in _journals(record):
        try:
            # A pipe of that name would have us wait for a writer.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            continue
        with open(fd, "rb") as file:
            try:
                status = os.fstat(fd)
                if status.st_uid != os.getuid() or not stat.S_ISREG(status.st_mode):
                    continue
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                data = file.read()
            except OSError:
                continue
        if not data or _is_ours(data):
            found.append((path, list(_whole(path, data))))
    return found


def _journals(record: Path) -> Iterator[Path]:
    prefix = f".{record.name}."
    try:
        names = os.listdir(record.parent)
    except OSError:
        return
    yield from (record.parent / name for name in names if name.startswith(prefix) and name.endswith(_SUFFIX))


def _is_ours(data: bytes) -> bool:
    from headstart.artifacts.manifest import MAGIC

    return data.startswith(MAGIC[: len(data)])


def _whole(path: Path, data: bytes) -> Iterator[Manifest]:
    from headstart.artifacts.manifest import decode_each

    try:
        yield from decode_each(path, data)
    except DamagedError:
        return
