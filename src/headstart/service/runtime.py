"""The folder that lives as long as a service: worker folders, and (shared services) the socket.

A service holds a lock on its folder while it lives. The kernel releases the lock however the service ends, so whoever
starts next can tell which folders nobody owns any more, and removes them.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from headstart.errors import ServiceError
from headstart.folders import FULL, runtime_dir, work_dirs

PATIENCE = 20.0  # seconds to wait for others, who hold a lock while they start a service
_LITTLE = 4 << 20  # bytes that a worker's folder must have room for
_FEW_FILES = 64
_PREFIX = "service-"
_POLL = 0.01  # seconds

_log = logging.getLogger("headstart")


class Workplace:
    """Where the workers of a service have their folders: a folder of its own, and another elsewhere when that is full.

    Attributes:
        warn: told what a person should know.

    Raises:
        ServiceError: there is no place for it.
    """

    def __init__(self) -> None:
        runtime_dir()  # what is wrong with it, but for a lack of space, is said and not passed over
        for place in work_dirs(make=False):
            _remove_abandoned(place)  # wherever others had to go
        self._held = contextlib.ExitStack()
        self._folders: dict[Path, Path] = {}  # by place
        self.folder = Path()
        self.warn: Callable[[str], None] = _log.warning
        if not self._move(""):
            raise ServiceError("no folder for workers can be made; set XDG_RUNTIME_DIR to a folder of your own")

    def new_folder(self, name: str) -> Path:
        """A new folder for one worker.

        Raises:
            OSError: it cannot be made.
        """
        if is_short_of_space(self.folder, _LITTLE):
            self._move(f"hardly any space is left in {self.folder}")
        try:
            return self._made(name)
        except OSError as error:
            if error.errno not in FULL or not self._move(str(error)):
                raise
        return self._made(name)

    def move_from(self, folder: Path) -> None:
        """There was no space left in a worker's folder: its successors shall have theirs elsewhere, if they can."""
        if folder.parent == self.folder:
            self._move(f"no space is left in {self.folder}")

    def close(self) -> None:
        """Remove all."""
        self._held.close()

    def _made(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir(mode=0o700)
        return folder

    def _move(self, why: str) -> bool:
        """To the first other place that has space; at the start (no `why`) to the first that can be used at all."""
        for needed in (_LITTLE,) if why else (_LITTLE, 0):
            for place in work_dirs():  # no more of them are made than are needed
                if self._folders.get(place) == self.folder or is_short_of_space(place, needed):
                    continue
                with contextlib.suppress(OSError):
                    if place not in self._folders:
                        self._folders[place] = self._held.enter_context(service_folder(place))
                    self.folder = self._folders[place]
                    if why:
                        self.warn(f"{why}: workers have their folders in {place} from now on")
                    return True
        return False


def is_short_of_space(folder: str | os.PathLike[str], needed: int) -> bool:
    """Whether fewer than `needed` bytes, or hardly any files, can be added to a folder, as far as can be told."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return False
    # Some file systems do not count files, and say that there may be none.
    few = found.f_files > 0 and found.f_favail < _FEW_FILES
    return needed > 0 and (few or found.f_bavail * found.f_frsize < needed)


@contextlib.contextmanager
def service_folder(parent: Path | None = None) -> Iterator[Path]:
    """A fresh folder in `parent`, removed at the end; abandoned ones are removed first.

    Args:
        parent: one of `work_dirs`; None: the user's runtime folder.

    Raises:
        ServiceError: the runtime folder cannot be used.
        OSError: nothing can be made in it.
    """
    parent = runtime_dir() if parent is None else parent
    with contextlib.ExitStack() as mine:
        # Held while a folder is made and locked, so that nobody takes a folder for abandoned in between.
        with contextlib.ExitStack() as turn:
            with contextlib.suppress(TimeoutError):  # whoever has it is stuck, and removes nothing
                turn.enter_context(locked(parent))
                _remove_folders_of_nobody(parent)
            folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
            mine.enter_context(locked(folder))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned(place: Path) -> None:
    if any(place.glob(f"{_PREFIX}*")):
        with contextlib.suppress(OSError), locked(place):
            _remove_folders_of_nobody(place)


def _remove_folders_of_nobody(parent: Path) -> None:
    for other in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError), locked(other, wait=False):
            shutil.rmtree(other, ignore_errors=True)


@contextlib.contextmanager
def locked(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock on a folder, which ends with this process if not before.

    Raises:
        OSError: there is no such folder, or somebody has it and we do not `wait`.
        TimeoutError: somebody has had it for `PATIENCE` seconds: they are stopped, or their disk is.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        deadline = time.monotonic() + PATIENCE
        while not _try_flock(fd):
            if not wait:
                raise BlockingIOError(f"somebody has locked {folder}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"another process has kept {folder} locked for {PATIENCE:.0f} s; is it stopped?")
            time.sleep(_POLL)
        try:
            yield
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)  # a fork made meanwhile has a copy of the fd
    finally:
        os.close(fd)


def _try_flock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
