"""Writing files: whole or not at all, and never over a file of somebody else.

    Replacement(path, format)   check ─▶ .NAME.<random>.tmp beside it, O_EXCL ─▶ commit: check once more, rename
    replace(path, data, …)      the same for what is in memory already
    create(path, data, mode)    a file that must not be there yet; of several processes that try, one succeeds
    write_new(path, data)       for what has no mark of its own (extracted artifacts): a file that differs stays

Everything that headstart writes under a name that a user chose goes through here. What is there already is replaced
only if it is empty or carries the mark of the format that is being written, so that `-o plan.py` costs nobody a plan.

Guarantees:

A reader sees the old file or the new one. A writer that fails leaves nothing behind; one that is killed leaves a hidden
`.tmp` file, which nobody follows or opens again.

No temporary is opened that was there before, nor through a symbolic link: its name cannot be guessed, and `O_EXCL` and
`O_NOFOLLOW` see to the rest. A symbolic link at `path` itself is followed, and the file that it names replaced.

This code assumes that whoever may write the folder is not racing the rename: a file that appears between the last
check and the rename is lost.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import IO, NamedTuple

from headstart.errors import UsageError

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_SHOWN = 50  # characters of a name, of up to four bytes
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Format(NamedTuple):
    """A kind of file that headstart writes, and how one is known.

    Attributes:
        name: with its article, as `"a bundle"`.
        begins: what such a file begins with, any of these;
        ends: or ends with.
    """

    name: str
    begins: tuple[bytes, ...]
    ends: tuple[bytes, ...] = ()


# Here rather than with those who write them, so that a name is checked without loading all that writing takes.
ENTRY = Format("an entry", begins=(b"\x89HSE\r\n\x1a\n",))
_BUNDLE = b"\x89HSB\r\n\x1a\n"
# Truncated, it begins like one; those of before began like an entry.
BUNDLE = Format("a bundle", begins=(_BUNDLE, *ENTRY.begins), ends=(_BUNDLE,))
STATISTICS = Format("statistics", begins=(b'{"headstart":',))
KEY = Format("a key", begins=(b"headstart-",))
MANIFEST = Format("a manifest", begins=(b"\x89HSM\r\n\x1a\n",))


def check_replaceable(path: str | os.PathLike[str], format: Format) -> None:
    """Find out whether a file of this format may get the name `path`. A folder is left to those who write.

    Raises:
        UsageError: something else has that name: a file that headstart did not write, or a device.
    """
    place = os.path.realpath(path)
    try:
        mode = os.lstat(place).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:  # too long a name, a folder that may not be looked into
        raise UsageError(f"{path} cannot be written: {error.strerror}") from None
    if stat.S_ISDIR(mode):
        return
    if not stat.S_ISREG(mode):
        raise UsageError(f"{path} is not a regular file, so it is not replaced; choose another name")
    try:
        fd = os.open(place, _READ)
    except OSError as error:
        raise UsageError(
            f"{path} is there already and cannot be read ({error.strerror}), so that nobody can tell whether it is "
            f"{format.name}; remove it, or choose another name"
        ) from None
    try:
        size = os.fstat(fd).st_size
        if size and not _carries_mark(fd, size, format):
            raise UsageError(
                f"{path} is there already and is not {format.name} of headstart's, so it is not replaced; "
                "remove it, or choose another name"
            )
    finally:
        os.close(fd)


def carries_mark(path: str | os.PathLike[str], format: Format) -> bool:
    """Whether `path` itself, and no link to it, is a file that headstart wrote in this format."""
    try:
        fd = os.open(path, _READ)
    except OSError:
        return False
    try:
        status = os.fstat(fd)
        return stat.S_ISREG(status.st_mode) and _carries_mark(fd, status.st_size, format)
    finally:
        os.close(fd)


class Replacement:
    """A file that is being written, to replace `path` once it is complete.

    Args:
        path: where it goes. Its folder must exist.
        format: what may be replaced there; None: the place is headstart's own, and anything may.
        mode: the file's permissions, less the umask.

    Attributes:
        path: as given, symbolic links resolved.
        file: to write to.

    Raises:
        UsageError: a file of somebody else has that name.
        OSError: here and in `commit`: it cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], format: Format | None = None, mode: int = 0o666) -> None:
        self.path = Path(os.path.realpath(path))
        self._format = format
        if format is not None:
            check_replaceable(self.path, format)
        # Shortened, so that no name is too long that would not be without.
        shown = self.path.name[:_SHOWN]
        self._temporary = self.path.with_name(f".{shown}.{os.urandom(8).hex()}.tmp")
        self.file: IO[bytes] = os.fdopen(os.open(self._temporary, _NEW, mode), "wb")

    def commit(self, *, close: bool = True) -> None:
        """Give the file its name.

        Args:
            close: False: the file stays open for the caller to go on writing.

        Raises:
            UsageError: a file of somebody else has appeared there meanwhile. What was written is gone.
        """
        try:
            self.file.flush()
            if close:
                self.file.close()
            if self._format is not None:
                check_replaceable(self.path, self._format)
            os.replace(self._temporary, self.path)
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Remove what was written; does nothing after `commit`."""
        with contextlib.suppress(OSError):  # closing writes what is buffered, perhaps to a full disk
            self.file.close()
        with contextlib.suppress(OSError):
            self._temporary.unlink()


def replace(path: str | os.PathLike[str], data: bytes, format: Format | None = None, mode: int = 0o666) -> None:
    """Write `data` to `path`; see `Replacement` for arguments and errors. Nothing is left behind by a failure."""
    replacement = Replacement(path, format, mode)
    try:
        replacement.file.write(data)
    except BaseException:
        replacement.abort()
        raise
    replacement.commit()


def create(path: Path, data: bytes, mode: int) -> None:
    """Write `data` to `path`, where nothing is: whoever reads it meanwhile finds nothing, or all of it.

    Args:
        mode: the file's permissions, less the umask.

    Raises:
        FileExistsError: something has that name, or another process was faster.
        OSError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name[:_SHOWN]}.{os.urandom(8).hex()}.tmp")
    try:
        with os.fdopen(os.open(temporary, _NEW, mode), "wb") as file:
            file.write(data)
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise
        except OSError:  # a file system without links: one that is there is replaced if it comes just now
            if os.path.lexists(path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
            os.rename(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def rename_onto(part: Path, path: Path, format: Format) -> None:
    """Have the complete file `part` replace `path`, in one file system.

    Raises:
        UsageError: a file of somebody else has that name.
        OSError: it cannot be renamed.
    """
    check_replaceable(path, format)
    os.replace(part, os.path.realpath(path))


def write_new(path: Path, data: bytes) -> None:
    """Write `data` to `path`, where nothing or the very same is.

    Raises:
        UsageError: something else has that name.
        OSError: it cannot be written.
    """
    try:
        fd = os.open(path, _NEW, 0o666)
    except FileExistsError:
        if not _holds(path, data):
            raise UsageError(
                f"{path} is there already and is not the same; remove it, or choose another folder"
            ) from None
        return
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink()
        raise


def _holds(path: Path, data: bytes) -> bool:
    try:
        fd = os.open(path, _READ)
    except OSError:
        return False
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        return stat.S_ISREG(status.st_mode) and status.st_size == len(data) and file.read() == data


def _carries_mark(fd: int, size: int, format: Format) -> bool:
    beginning = os.pread(fd, max(map(len, format.begins), default=0), 0)
    if any(beginning.startswith(mark) for mark in format.begins):
        return True
    return any(os.pread(fd, len(mark), max(0, size - len(mark))) == mark for mark in format.ends)
