"""What entries, bundles and manifests have in common as files.

One version of a file is read, bounds are checked, and a version that is not known is told apart from damage.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from headstart.errors import DamagedError, FutureVersionError, PastVersionError

T = TypeVar("T")


class Snapshot(Protocol):
    """One version of a file's bytes: whatever takes the file's name meanwhile, this stays the same."""

    @property
    def size(self) -> int:
        """Bytes."""

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset`, fewer only at the end."""


@contextmanager
def snapshot_of(path: str | os.PathLike[str], vet: Callable[[int], str] | None = None) -> Iterator[Snapshot]:
    """The file that has this name now; it can be read until the context ends.

    Args:
        vet: given the open file, says why it is not to be relied on, or nothing. A symbolic link is not followed then.

    Raises:
        OSError: it cannot be opened.
        DamagedError: `vet` says something, or it is no file but a pipe or a device.
    """
    # A pipe that somebody has put there would have us wait for a writer.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if vet is None else os.O_NOFOLLOW)
    try:
        fd = os.open(path, flags)
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        fd = os.open(path, flags)  # on a file server it was replaced by another, which has the name now
    try:
        if not stat.S_ISREG(mode := os.fstat(fd).st_mode) and not stat.S_ISDIR(mode):  # a folder is an error of `read`
            raise DamagedError(path, "it is not a regular file")
        if vet is not None and (why := vet(fd)):
            raise DamagedError(path, why)
        yield _OpenFile(fd)
    finally:
        os.close(fd)


class _OpenFile:
    __slots__ = ("_fd", "size")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.size = os.fstat(fd).st_size

    def read(self, offset: int, count: int) -> bytes:
        data = os.pread(self._fd, count, offset)
        # A single read stops at 2 GiB, or earlier on some network file systems.
        while len(data) < count and (more := os.pread(self._fd, count - len(data), offset + len(data))):
            data += more
        return data


class InMemory:
    __slots__ = ("_data", "size")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def read(self, offset: int, count: int) -> bytes:
        return self._data[offset : offset + count]


def check_version(path: str | os.PathLike[str], found: int, supported: int) -> None:
    """Refuse every format version but `supported`.

    Raises:
        DamagedError: there is no such version; `FutureVersionError` if there may be one some day, `PastVersionError` if
            there was one.
    """
    if found > supported:
        raise FutureVersionError(path, f"format {found} is newer than {supported}, which this headstart reads")
    if 0 < found < supported:
        raise PastVersionError(
            path, f"format {found} is of an older headstart, which could make other kernels than Triton: make it anew"
        )
    if found < supported:
        raise DamagedError(path, f"format {found} is not one that headstart ever wrote")


def decode(path: str | os.PathLike[str], decoder: msgspec.msgpack.Decoder[T], data: bytes) -> T:
    """What `decoder` makes of `data`, read from `path`.

    Raises:
        DamagedError: it is not what the decoder expects.
    """
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise DamagedError(path, f"cannot be decoded: {error}") from error


def _place(path: Path | None) -> Path | str:
    return path or "an entry in memory"
