"""What headstart keeps in its cache folder beside kernels, and how each kind is known by its name.

A cache folder may be one that the user chose, with files of others in it: what has no name of headstart's is not
counted and never removed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from headstart.cli import count, human_bytes
from headstart.system.private import Swept


class Kind(NamedTuple):
    """One kind of file.

    Attributes:
        noun: of one.
        folder: where they are, below the cache folder; a star stands for folders of headstart's own naming.
        pattern: what their names are like.
        beside: names of what goes with them, as locks, and does not count.
    """

    noun: str
    folder: str
    pattern: re.Pattern[str]
    beside: re.Pattern[str] | None = None


_LOCK = r"\..+\.lock"
RECORD = Kind(
    "record of programs",
    "manifests",
    re.compile(r".+-[0-9a-f]{16}\.manifest"),
    re.compile(rf".+-[0-9a-f]{{16}}\.manifest\.damaged|\..+\.manifest\.\d+-[0-9a-f]{{8}}\.journal|{_LOCK}"),
)
KINDS = (
    RECORD,
    Kind("failure remembered", "failed", re.compile(r"[0-9a-f]{64}\.json")),
    Kind("plan to reproduce a failure", "failed", re.compile(r".+-[0-9a-f]{12}\.py")),
    Kind("bundle pulled", "pulled/*", re.compile(r"[0-9a-f]{64}\.bundle"), re.compile(_LOCK)),
    Kind("note on what bundles were used for", "bundles", re.compile(r".+-[0-9a-f]{16}\.used"), re.compile(_LOCK)),
    Kind("log of runs", "runs/*", re.compile(r"[0-9]+-[0-9a-f]{8}\.run")),
    Kind("digest of toolchains", "toolchains", re.compile(r"[0-9a-f]{64}\.sha256")),
    Kind("stand-in for torch's CUDA", "torch", re.compile(r"shim-[0-9a-f]+\.so")),
)
_OWN_FOLDER = re.compile(r"[0-9a-f]{8}([0-9a-f]{8})?")


class Kept(NamedTuple):
    """How much there is of one kind. `bytes` are those of its files, not of what goes with them."""

    kind: Kind
    files: int
    bytes: int

    def __str__(self) -> str:
        noun, _, rest = self.kind.noun.partition(" ")
        return f"{count(self.files, noun)} {rest} ({human_bytes(self.bytes)})"


def kept(cache_dir: Path) -> list[Kept]:
    """What is there, of each kind that there is anything of."""
    found = []
    for kind in KINDS:
        sizes = []
        for swept in _folders(cache_dir, kind):
            with swept:
                sizes += [status.st_size for name, status in swept.files() if kind.pattern.fullmatch(name)]
        if sizes:
            found.append(Kept(kind, len(sizes), sum(sizes)))
    return found


def remove(cache_dir: Path, kinds: Sequence[Kind] = KINDS) -> list[Kept]:
    """Remove all of these kinds, and folders that are empty then. Returns what was removed.

    Raises:
        OSError: something cannot be removed; what was removed before is gone.
    """
    removed = []
    for kind in kinds:
        sizes = []
        for swept in _folders(cache_dir, kind):
            with swept:
                for name, status in list(swept.files()):
                    if kind.pattern.fullmatch(name):
                        sizes.append(status.st_size)
                    elif kind.beside is None or not kind.beside.fullmatch(name):
                        continue
                    swept.remove(name)
            with suppress(OSError):  # there is something else in it
                swept.folder.rmdir()
        if kind.folder.endswith("/*"):
            with suppress(OSError):
                Path(cache_dir, kind.folder[:-2]).rmdir()
        if sizes:
            removed.append(Kept(kind, len(sizes), sum(sizes)))
    return removed


def _folders(cache_dir: Path, kind: Kind) -> Iterator[Swept]:
    if not kind.folder.endswith("/*"):
        yield Swept(cache_dir / kind.folder)
        return
    parent = cache_dir / kind.folder[:-2]
    names = []
    with suppress(OSError):
        names = sorted(os.listdir(parent))
    yield from (Swept(parent / name) for name in names if _OWN_FOLDER.fullmatch(name))
