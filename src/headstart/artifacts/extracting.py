"""What is in an entry as files, for people and their tools."""

from __future__ import annotations

from pathlib import Path

from headstart.artifacts.entry import Entry
from headstart.system.files import write_new

_MAX_NAME = 100  # characters of a kernel's or an artifact's name in the name of an extracted file


def extract_entry(entry: Entry, folder: Path) -> Path:
    """Write artifacts and metadata into a folder `NAME-KEY` in `folder`, and return that folder.

    Raises:
        UsageError: a file of that name is another one; it stays.
        DamagedError: the entry is damaged.
        OSError: a file cannot be written.
    """
    name = _file_name(entry.name)
    destination = folder / f"{name}-{entry.key[:12]}"
    destination.mkdir(parents=True, exist_ok=True)
    for artifact in entry.artifact_names:
        write_new(destination / f"{name}.{_file_name(artifact)}", entry.artifact(artifact))
    import json  # only those who extract need it

    metadata = json.dumps(entry.metadata, indent=2, skipkeys=True, default=repr)
    write_new(destination / "metadata.json", f"{metadata}\n".encode())
    return destination


def _file_name(text: str) -> str:
    from urllib.parse import quote  # not worth loading for those who only look kernels up

    return quote(text, safe="")[:_MAX_NAME] or "_"
