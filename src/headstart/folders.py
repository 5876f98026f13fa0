"""Where headstart keeps things.

The cache folder holds what outlives a process (entries, bundles, remembered digests); the runtime folder holds what
belongs to a running service (sockets, worker folders) and is private to its user.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from headstart.errors import ServiceError


def cache_dir() -> Path:
    """`HEADSTART_CACHE_DIR`, or the platform's cache folder. Absolute; may not exist yet."""
    configured = os.environ.get("HEADSTART_CACHE_DIR")
    if configured:
        return Path(configured).expanduser().absolute()
    import platformdirs  # clients that know their folder start faster without

    return platformdirs.user_cache_path("headstart", appauthor=False)


def runtime_dir() -> Path:
    """The user's runtime folder, made if need be, mode 0700: `XDG_RUNTIME_DIR`, or else in /dev/shm or /tmp.

    Raises:
        ServiceError: it cannot be made, or belongs to somebody else.
    """
    configured = os.environ.get("XDG_RUNTIME_DIR")
    if configured:
        path = Path(configured, "headstart")
    else:
        # Each compile makes a dozen short-lived files, which cost milliseconds on a disk and microseconds in memory.
        # These folders are shared with other users, so the uid is in the name and the owner is checked below.
        memory = "/dev/shm"
        path = Path(memory if os.access(memory, os.W_OK | os.X_OK) else "/tmp", f"headstart-{os.getuid()}")
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        status = path.lstat()
    except OSError as error:
        raise ServiceError(
            f"cannot make the runtime folder {path}: {error.strerror}; set XDG_RUNTIME_DIR to a folder of your own"
        ) from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise ServiceError(
            f"the runtime folder {path} is not a folder that only you can enter (owner {status.st_uid}, mode "
            f"{stat.S_IMODE(status.st_mode):o}); remove it, or set XDG_RUNTIME_DIR to a folder of your own"
        )
    return path
