"""What a worker leaves in its folder, for its service to read if it dies."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

STAGE_FILE = "stage"
STAGE_WIDTH = 20  # characters
STREAMS = {1: "stdout", 2: "stderr"}  # file descriptor: file in the worker's folder
_LAST_WORDS = 16 << 10  # bytes of each that are shown of a worker that died


def last_words(folder: str) -> str:
    """The end of what a worker and its tools printed."""
    return "\n".join(filter(None, (_end(Path(folder, name)) for name in STREAMS.values())))


def _end(path: Path) -> str:
    with contextlib.suppress(OSError), path.open("rb") as stream:
        stream.seek(max(0, os.fstat(stream.fileno()).st_size - _LAST_WORDS))
        return stream.read().decode(errors="replace").strip()
    return ""


def last_stage(folder: str) -> str:
    """The stage of the compile that a worker was at. The worker may have written anything."""
    try:
        with Path(folder, STAGE_FILE).open("rb") as file:
            return file.read(STAGE_WIDTH).decode(errors="replace").strip()
    except OSError:
        return ""
