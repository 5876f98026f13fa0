"""Where headstart keeps things.

The cache folder holds what outlives a process (entries, bundles, remembered digests); the runtime folder holds what
belongs to a running service (sockets, worker folders) and is private to its user. The one for keys is in `places`.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from headstart.errors import ServiceError, UsageError
from headstart.system.configuration import lookup, origin
from headstart.system.places import expanded
from headstart.system.private import make_folder, refusal

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})  # of a disk, a tmpfs or somebody's share of it

REMEDY = (
    "Set HEADSTART_CACHE_DIR to a folder that only you can write; or have nobody else write this one (chown, chmod "
    "go-w) and start with an empty cache there; or set HEADSTART_TRUST_CACHE_DIR=1 if you trust them"
)

_log = logging.getLogger("headstart")
told: set[Path] = set()  # cache folders of which the user of this process knows that they are not used


def cache_dir() -> Path:
    """`HEADSTART_CACHE_DIR`, or the platform's cache folder. Absolute; may not exist yet.

    Where this user has no home (no `HOME`, and no entry in passwd), a private folder among the temporary ones, which is
    made.

    Raises:
        UsageError: `HEADSTART_CACHE_DIR` begins with `~`, and there is no such home.
    """
    configured = lookup("HEADSTART_CACHE_DIR")
    if configured:
        return expanded(configured, origin("HEADSTART_CACHE_DIR"))
    import platformdirs  # clients that know their folder start faster without

    try:
        found = platformdirs.user_cache_path("headstart", appauthor=False)
    except RuntimeError:  # no home; older versions make a path that begins with ~
        return _cache_of_the_homeless()
    return found if found.is_absolute() else _cache_of_the_homeless()


def readable(path: str | os.PathLike[str]) -> str:
    """A path for people and for messages: bytes that are no text in this locale are shown as such."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


@functools.cache
def _cache_of_the_homeless() -> Path:
    """Made now, so that nobody else makes it: its name can be guessed."""
    who = f"user {os.getuid()} has no home folder (no HOME, and no entry in passwd)"
    name = f"headstart-cache-{os.getuid()}"
    try:
        path = _made(Path(tempfile.gettempdir(), name))
    except ServiceError as error:
        try:
            path = Path(tempfile.mkdtemp(prefix="headstart-cache-"))
        except OSError:
            raise ServiceError(f"{who}, and {error}") from error
        _log.warning("%s", error)
    except OSError as error:  # there is no folder for temporary files at all
        raise UsageError(f"{who}: set HEADSTART_CACHE_DIR to a folder that you can write") from error
    _log.warning("%s: kernels are kept in %s; set HEADSTART_CACHE_DIR to have them elsewhere", who, path)
    return path


def distrust(folder: str | os.PathLike[str], *, trusted: bool) -> str:
    """Why headstart leaves a cache folder alone, with the remedy; empty if it does not.

    Args:
        folder: the cache folder, or one in it.
        trusted: whether the user trusts it whoever can write it.
    """
    why = "" if trusted else refusal(folder)
    return why and f"{folder} is not used: {why}; who can change a cache can have their code run as you. {REMEDY}"


def runtime_dir() -> Path:
    """The user's runtime folder, made if need be, mode 0700: `XDG_RUNTIME_DIR`, or else in /dev/shm or /tmp.

    A session's folder that is relative, or not there (as in a container that was given the variable), does not count.
    Where that cannot be made because there is no space left, it is the next of `work_dirs`.

    Raises:
        ServiceError: it cannot be made, or belongs to somebody else.
    """
    refused: ServiceError | None = None
    for path in _runtime_places():  # most processes need only the first
        try:
            return _made(path)
        except ServiceError as error:
            if not isinstance(error.__cause__, OSError) or error.__cause__.errno not in FULL:
                raise refused or error from None
            refused = refused or error
    assert refused is not None
    raise refused


def work_dirs(*, make: bool = True) -> Iterator[Path]:
    """Folders for what lives no longer than a service, the fastest first, each made if need be as `runtime_dir` is.

    `XDG_RUNTIME_DIR`, /dev/shm, `TMPDIR` or /tmp, and the cache folder. What cannot be used is left out.

    Args:
        make: whether those are made that are not there.
    """
    seen: set[Path] = set()
    for path in _runtime_places(make=make):  # one at a time: the last is made only where it is needed
        try:
            if path not in seen and (make or path.exists()):
                seen.add(path)
                yield _made(path)
        except (ServiceError, OSError):
            continue


def _runtime_places(*, make: bool = True) -> Iterator[Path]:
    configured = os.environ.get("XDG_RUNTIME_DIR")
    if configured and os.path.isabs(configured) and os.path.isdir(configured) and not _is_another_user_s(configured):
        yield Path(configured, "headstart")
    # Each compile makes a dozen short-lived files, which cost milliseconds on a disk and microseconds in memory.
    # These folders are shared with other users, so the uid is in the name.
    name = f"headstart-{os.getuid()}"
    memory = "/dev/shm"
    if os.access(memory, os.W_OK | os.X_OK):
        yield Path(memory, name)
    yield from (Path(folder, name) for folder in (os.environ.get("TMPDIR"), "/tmp") if folder)
    kept = cache_dir()
    if make:
        with suppress(OSError):
            make_folder(kept)
    if not refusal(kept):
        yield kept / "run"


def _made(path: Path) -> Path:
    """The folder, which only this user can enter.

    Raises:
        ServiceError: it cannot be made, or belongs to somebody else.
    """
    try:
        if _is_shared(path.parent):
            return _made_among_others(path)
        path.mkdir(mode=0o700, exist_ok=True)
        status = path.lstat()
    except OSError as error:
        raise ServiceError(
            f"cannot make the runtime folder {path}: {error.strerror}; set XDG_RUNTIME_DIR to a folder of your own"
        ) from error
    if not _is_private(status):
        raise ServiceError(
            f"the runtime folder {path} is not a folder that only you can enter (owner {status.st_uid}, mode "
            f"{stat.S_IMODE(status.st_mode):o}); remove it, or set XDG_RUNTIME_DIR to a folder of your own"
        )
    return path


def _made_among_others(path: Path) -> Path:
    """A folder of this user's in one where everybody may make some, the same for all of their processes.

    Anybody may take the name that we would take first. So any folder will do that is called so and goes on with
    something that cannot be guessed: those of others are told by their owner.

    Raises:
        OSError: it cannot be made.
    """
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    if _is_private(path.lstat()):
        return path
    prefix = f"{path.name}-"
    found = _private_folders(path.parent, prefix)
    if not found:
        mine = Path(tempfile.mkdtemp(prefix=prefix, dir=path.parent))
        found = _private_folders(path.parent, prefix) or [mine]  # another process may have been at it too
    return found[0]


def _is_shared(folder: Path) -> bool:
    """Whether everybody may make files there and nobody remove those of others, as in /tmp."""
    return stat.S_IMODE(folder.stat().st_mode) & 0o1002 == 0o1002


def _private_folders(shared: Path, prefix: str) -> list[Path]:
    """Of this user's, in an order that is the same for all who look."""
    found = []
    for entry in os.scandir(shared):
        with suppress(FileNotFoundError):
            if entry.name.startswith(prefix) and _is_private(entry.stat(follow_symlinks=False)):
                found.append(Path(entry.path))
    return sorted(found)


def _is_private(status: os.stat_result) -> bool:
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077


def _is_another_user_s(folder: str) -> bool:
    """As after `sudo`, which may leave the variable as it was."""
    try:
        return os.stat(folder).st_uid not in (0, os.getuid())
    except OSError:
        return False
