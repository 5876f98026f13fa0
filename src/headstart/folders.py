"""Where headstart keeps things.

The cache folder holds what outlives a process (entries, bundles, remembered digests); the runtime folder holds what
belongs to a running service (sockets, worker folders) and is private to its user.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path

from headstart.errors import ServiceError
from headstart.private import refusal


REMEDY = (
    "Empty it and have nobody else write there (chmod go-w), set HEADSTART_CACHE_DIR to a folder that only you can write, "
    "or HEADSTART_TRUST_CACHE_DIR=1 if you trust them"
)


def cache_dir() -> Path:
    """`HEADSTART_CACHE_DIR`, or the platform's cache folder. Absolute; may not exist yet."""
    configured = os.environ.get("HEADSTART_CACHE_DIR")
    if configured:
        return Path(configured).expanduser().absolute()
    import platformdirs  # clients that know their folder start faster without

    return platformdirs.user_cache_path("headstart", appauthor=False)


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

    Raises:
        ServiceError: it cannot be made, or belongs to somebody else.
    """
    configured = os.environ.get("XDG_RUNTIME_DIR")
    if not configured or _is_another_user_s(configured):
        # Each compile makes a dozen short-lived files, which cost milliseconds on a disk and microseconds in memory.
        memory = "/dev/shm"
        return _folder_among_others(Path(memory if os.access(memory, os.W_OK | os.X_OK) else "/tmp"))
    path = Path(configured, "headstart")
    try:
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


def _folder_among_others(shared: Path) -> Path:
    """A folder of this user's in one that all users share, the same for all of their processes.

    Anybody may take the name that we would take first. So any folder will do that is called so and goes on with
    something that cannot be guessed: those of others are told by their owner.
    """
    name = f"headstart-{os.getuid()}"
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(shared / name, 0o700)
        if _is_private((shared / name).lstat()):
            return shared / name
        found = _private_folders(shared, f"{name}-")
        if not found:
            mine = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=shared))
            found = _private_folders(shared, f"{name}-") or [mine]  # another process may have been at it too
        return found[0]
    except OSError as error:
        raise ServiceError(
            f"cannot make the runtime folder {shared / name}: {error.strerror}; "
            "set XDG_RUNTIME_DIR to a folder of your own"
        ) from error


def _private_folders(shared: Path, prefix: str) -> list[Path]:
    """Of this user's, in an order that is the same for all who look."""
    found = []
    for entry in os.scandir(shared):
        with contextlib.suppress(FileNotFoundError):
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
