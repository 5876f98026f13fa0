"""How much room a folder has."""

from __future__ import annotations

import os

_FEW_FILES = 64


def is_short_of_space(folder: str | os.PathLike[str], needed: int) -> bool:
    """Whether fewer than `needed` bytes, or hardly any files, can be added to a folder, as far as can be told."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return False
    # Some file systems do not count files, and say that there may be none.
    few = found.f_files > 0 and found.f_favail < _FEW_FILES
    return needed > 0 and (few or found.f_bavail * found.f_frsize < needed)
