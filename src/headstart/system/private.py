"""Which folders and files nobody but their user can change.

    refusal(folder)     why a folder is not to be relied on: who else could put something there, or swap it
    make_folder(folder) for nobody else
    vet(fd)             the same question for a file that is open already
    vet_secret(fd)      and whether nobody else can read it
    read(path)          a file that nobody else can have written
    Swept(folder)       a folder to remove old files from: no link is followed, and nothing outside is touched

Trusted are this user and root, who can do everything anyway. Anybody else who may write a folder may put files there
and replace what is there; who may write a folder above may put another one in its place, unless the sticky bit keeps
them from it (/tmp).

A group that may write is harmless if nobody else is in it: where the umask is 0002 each user has a group of their own,
and all their folders are writable by it.

Not looked at: access control lists beyond what they show in the mode, and what a file server lets others do.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_LINKS = 40  # as many as Linux follows
_ALL_USERS = ("0", "0", "4294967295")  # /proc/self/uid_map where all of the host's users are known


def refusal(folder: str | os.PathLike[str]) -> str:
    """Who else could change what is in `folder`, as the middle of a sentence; empty if nobody.

    A folder that does not exist yet is as good as those above it. Symbolic links are followed if they are trusted.
    """
    try:
        return _refusal(Path(folder).absolute())
    except OSError as error:
        return "" if isinstance(error, (FileNotFoundError, NotADirectoryError)) else f"{folder}: {error.strerror}"


def _refusal(folder: Path) -> str:
    """Every folder on the way, from the root on, links resolved as the kernel would."""
    todo = list(reversed(folder.parts))
    place = Path(todo.pop())
    links = 0
    above = place.lstat()
    if why := _folder_refusal(place, above, is_last=not todo):
        return why
    while todo:
        name = todo.pop()
        if name == "..":
            place = place.parent
            above = place.lstat()
            continue
        place /= name
        status = place.lstat()
        if stat.S_ISLNK(status.st_mode):
            links += 1
            # In a folder with the sticky bit anybody may make links; elsewhere the folder has been looked at.
            if not _is_trusted(status.st_uid, parent=True):
                return f"{place} is a link of {_user(status.st_uid)}"
            if links > _MAX_LINKS:
                return f"{place} is one of too many links"
            target = Path(os.readlink(place))
            todo += reversed(target.parts)
            place = place.parent
            if target.is_absolute():
                place = Path(todo.pop())
                status = place.lstat()
            continue
        if why := _folder_refusal(place, status, is_last=not todo):
            return why
    return ""


def _folder_refusal(place: Path, status: os.stat_result, *, is_last: bool) -> str:
    if not _is_trusted(status.st_uid, parent=not is_last):
        return f"{place} belongs to {_user(status.st_uid)}"
    mode = stat.S_IMODE(status.st_mode)
    if not is_last and mode & stat.S_ISVTX:
        return ""  # who may write there cannot rename what is not theirs; whose it is, is looked at next
    return _mode_refusal(place, mode, status.st_gid)


def _mode_refusal(place: str | Path, mode: int, gid: int) -> str:
    if mode & stat.S_IWOTH:
        return f"{place} can be written by everybody (mode {mode:04o})"
    if mode & stat.S_IWGRP and not _is_private_group(gid, os.geteuid()):
        return f"{place} can be written by its group {_group(gid)} (mode {mode:04o})"
    return ""


def vet(fd: int) -> str:
    """As `refusal`, for an open file: only a regular one that belongs to this user or root can be relied on."""
    status = os.fstat(fd)
    if stat.S_ISDIR(status.st_mode):
        return ""  # which cannot be read
    if not stat.S_ISREG(status.st_mode):
        return "it is not a regular file"
    if not _is_trusted(status.st_uid, parent=False):
        return f"it belongs to {_user(status.st_uid)}"
    return _mode_refusal("it", stat.S_IMODE(status.st_mode), status.st_gid)


def vet_secret(fd: int) -> str:
    """As `vet`, for a file that nobody but this user and root may read."""
    mode = stat.S_IMODE(os.fstat(fd).st_mode)
    if mode & 0o077:
        return vet(fd) or f"others may read it (mode {mode:04o}); have it be yours alone: chmod 600"
    return vet(fd)


def read(path: Path) -> bytes:
    """All of a file.

    Raises:
        OSError: it cannot be read, is a link, or somebody else could have written it.
    """
    fd = os.open(path, _FILE)
    with os.fdopen(fd, "rb") as file:
        if why := vet(fd):
            raise PermissionError(errno.EPERM, why, str(path))
        return file.read()


def make_folder(folder: Path, mode: int = 0o700) -> None:
    """Make a folder, and those above it that are missing; by default for this user alone.

    Raises:
        OSError: it cannot be made, or something else has its name.
    """
    if not folder.is_dir():
        if not folder.parent.is_dir():
            make_folder(folder.parent, mode)
        try:
            os.mkdir(folder, mode)
        except FileExistsError:
            if not folder.is_dir():
                raise


class Swept:
    """A folder of headstart's own, to look at files and remove them; empty if it is a link, or not there.

    Everything goes through one file descriptor, so that nobody can put another folder in its place meanwhile.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._fd = -1
        with contextlib.suppress(OSError):
            self._fd = os.open(folder, _FOLDER)

    def files(self) -> Iterator[tuple[str, os.stat_result]]:
        """Names and what they are, links not followed; regular files only."""
        for name in os.listdir(self._fd) if self._fd >= 0 else ():
            with contextlib.suppress(FileNotFoundError):
                status = os.stat(name, dir_fd=self._fd, follow_symlinks=False)
                if stat.S_ISREG(status.st_mode):
                    yield name, status

    def remove(self, name: str) -> None:
        """Remove a file of this folder; fine if it is gone.

        Raises:
            OSError: it cannot be removed.
        """
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._fd)

    def touch(self, name: str) -> None:
        """Have a file of this folder be used last now.

        Raises:
            OSError: it cannot be written down.
        """
        os.utime(name, dir_fd=self._fd, follow_symlinks=False)

    def __enter__(self) -> Swept:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _is_trusted(uid: int, *, parent: bool) -> bool:
    # In a container of an unprivileged user the host's root has no number, and stands as nobody above all folders.
    return uid in (0, os.geteuid()) or (parent and uid == _unknown_user())


@functools.lru_cache(maxsize=1)
def _unknown_user() -> int | None:
    """Whom users of the host are shown as whom this user namespace does not know; None if it knows all."""
    try:
        if tuple(Path("/proc/self/uid_map").read_text(encoding="ascii").split()) == _ALL_USERS:
            return None
        return int(Path("/proc/sys/kernel/overflowuid").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


@functools.lru_cache(maxsize=64)
def _is_private_group(gid: int, uid: int) -> bool:
    """Whether nobody but this user and root is in a group: it is named after one of them, and has no other members."""
    import grp
    import pwd

    try:
        names = {pwd.getpwuid(each).pw_name for each in (0, uid)}
        group = grp.getgrgid(gid)
    except KeyError:
        return False
    return group.gr_name in names and names.issuperset(group.gr_mem)


def _user(uid: int) -> str:
    import pwd

    try:
        return f"the user {pwd.getpwuid(uid).pw_name} ({uid})"
    except KeyError:
        return f"the user {uid}"


def _group(gid: int) -> str:
    import grp

    try:
        return f"{grp.getgrgid(gid).gr_name} ({gid})"
    except KeyError:
        return str(gid)
