"""Where the user's own configuration is: below everything that asks what is configured."""

from __future__ import annotations

import os
from pathlib import Path

from headstart.errors import ServiceError, UsageError


def config_dir() -> Path:
    """`HEADSTART_CONFIG_DIR`, or the platform's configuration folder. Absolute; may not exist yet.

    Raises:
        UsageError: `HEADSTART_CONFIG_DIR` begins with `~`, and there is no such home.
        ServiceError: this user has no home.
    """
    configured = os.environ.get("HEADSTART_CONFIG_DIR")
    if configured:
        return expanded(configured, "HEADSTART_CONFIG_DIR")
    # What `platformdirs.user_config_path` says on Linux: importing it takes longer than to verify a signature.
    base = os.environ.get("XDG_CONFIG_HOME", "").strip()
    if not os.path.isabs(base):  # nor does the standard heed a relative one
        base = os.path.expanduser("~/.config")
    if not os.path.isabs(base):
        raise ServiceError(f"user {os.getuid()} has no home folder: set HEADSTART_CONFIG_DIR to a folder that is kept")
    return Path(base, "headstart")


def expanded(path: str | os.PathLike[str], name: str) -> Path:
    """An absolute path, `~` replaced by its home.

    Args:
        path: given by the user.
        name: of the setting, for the message.

    Raises:
        UsageError: there is no such home.
    """
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise UsageError(f"{name}: {os.fspath(path)!r} begins with ~, and that has no home folder here") from error
