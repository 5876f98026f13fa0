"""The folder that lives as long as a service: worker folders, and (shared services) the socket.

A service holds a lock on its folder while it lives. The kernel releases the lock however the service ends, so whoever
starts next can tell which folders nobody owns any more, and removes them.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from headstart.errors import ServiceError
from headstart.system.files import replace
from headstart.system.folders import FULL, runtime_dir, work_dirs
from headstart.system.locks import locked_folder
from headstart.system.private import read
from headstart.system.space import is_short_of_space

_LITTLE = 4 << 20  # bytes that a worker's folder must have room for
_PREFIX = "service-"
_OWNER = "owner.json"  # in the folder of a private service

_log = logging.getLogger("headstart")


class Owned(msgspec.Struct, frozen=True):
    """A private service, by process, and the client that it belongs to."""

    pid: int
    client: int


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

    def note(self, owned: Owned) -> None:
        """Have `owners` find this service."""
        with contextlib.suppress(OSError):  # it is not shown then
            replace(self.folder / _OWNER, msgspec.json.encode(owned), mode=0o600)

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
            with contextlib.suppress(TimeoutError):  # its holder is stuck, and removes nothing
                turn.enter_context(locked_folder(parent))
                _remove_folders_of_nobody(parent)
            folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
            mine.enter_context(locked_folder(folder))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def owners() -> list[tuple[Owned, int]]:
    """The private services of this user that live, and how many workers each has."""
    found = []
    for place in work_dirs(make=False):
        for folder in sorted(place.glob(f"{_PREFIX}*")):
            with contextlib.suppress(OSError, msgspec.DecodeError):
                owned = msgspec.json.decode(read(folder / _OWNER), type=Owned)
                try:
                    with locked_folder(folder, wait=False):
                        continue  # nobody holds it: that service is gone
                except BlockingIOError:
                    found.append((owned, sum(each.is_dir() for each in folder.iterdir())))
    return found


def _remove_abandoned(place: Path) -> None:
    if any(place.glob(f"{_PREFIX}*")):
        with contextlib.suppress(OSError), locked_folder(place):
            _remove_folders_of_nobody(place)


def _remove_folders_of_nobody(parent: Path) -> None:
    for other in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError), locked_folder(other, wait=False):
            shutil.rmtree(other, ignore_errors=True)
