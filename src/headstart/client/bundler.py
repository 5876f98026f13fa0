"""TritonBundler: notes what comes back during a compile, writes it to a bundle, and fills the future cache from one.

    begin_compile ─▶ put, put, put … (one per result of the service) ─▶ collect(path) ─▶ end_compile
    read_and_emit(path): what an earlier compile collected is there before anybody asks

The life cycle is that of Inductor's TritonBundler; here a bundle is one file (see `headstart.artifacts.bundle`).
"""

from __future__ import annotations

import contextlib
import logging
import operator
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from headstart.artifacts.bundle import Bundle, BundleWriter
from headstart.artifacts.entry import Entry
from headstart.errors import DamagedError
from headstart.system.locks import locked

_log = logging.getLogger("headstart")

Opener = Callable[[], Entry]


class BundleUse(msgspec.Struct):
    """What came out of bundles.

    Attributes:
        kernels: that were asked for and not compiled.
        compiled: how many were compiled all the same.
        cached: how many came from headstart's cache instead.
        saved_s: seconds that `kernels` took to compile, as far as they have been looked at.
        graphs: of torch.compile that were asked for and not made.
        made_graphs: how many were made all the same, or came from torch's own cache.
    """

    kernels: int = 0
    compiled: int = 0
    cached: int = 0
    saved_s: float = 0.0
    graphs: int = 0
    made_graphs: int = 0

    def __add__(self, other: BundleUse) -> BundleUse:
        mine, others = msgspec.structs.astuple(self), msgspec.structs.astuple(other)
        return BundleUse(*map(operator.add, mine, others))


class TritonBundler:
    """Notes the kernels of one compile.

    Args:
        emits: see `offer_to`.
    """

    def __init__(self, *emits: Callable[[Bundle], int]) -> None:
        self._emits = list(emits)
        self._lock = threading.Lock()
        self._noted: dict[str, Opener] | None = None
        self._bundles: dict[Path, Bundle] = {}

    def offer_to(self, emit: Callable[[Bundle], int]) -> int:
        """Have `emit` called with each bundle that was read or will be; it returns how many of its kernels it can use.

        Returns:
            How many it can use of those that were read.
        """
        self._emits.append(emit)
        return sum(emit(bundle) for bundle in list(self._bundles.values()))

    def holds_any(self) -> bool:
        """Whether there is anything in the bundles that were read."""
        return any(map(len, self._bundles.values()))

    def holds(self, kind: str) -> bool:
        """Whether there is an entry of this kind in the bundles that were read."""
        return any(item.kind == kind for bundle in self._bundles.values() for item in bundle)

    def entries_of(self, kind: str) -> Iterator[Entry]:
        """The entries of this kind in the bundles that were read, but for damaged ones."""
        for bundle in list(self._bundles.values()):
            for item in bundle:
                if item.kind == kind and (entry := self.find(item.key)) is not None:
                    yield entry

    def triton_version(self) -> str:
        """That made the bundles that were read, by the first kernel that says it; empty if none can be read."""
        for bundle in self._bundles.values():
            for item in bundle:
                with contextlib.suppress(DamagedError, OSError):
                    if version := bundle.entry(item.key).header.triton_version:
                        return version
        return ""

    def begin_compile(self) -> None:
        """Start noting. What was noted before is forgotten."""
        with self._lock:
            self._noted = {}

    def put(self, key: str, open_entry: Opener) -> None:
        """Note one kernel that came back. Cheap: `open_entry` is called by `collect`. Ignored outside a compile."""
        with self._lock:
            if self._noted is not None:
                self._noted[key] = open_entry

    @property
    def is_noting(self) -> bool:
        """Whether what is `put` is kept."""
        with self._lock:
            return self._noted is not None

    @property
    def noted(self) -> int:
        """How many different kernels have been noted in this compile."""
        with self._lock:
            return len(self._noted or ())

    def collect(self, path: str | os.PathLike[str]) -> Path:
        """Write all that was noted, and what was read by `read_and_emit`, into a bundle that replaces `path` at once.

        Raises:
            OSError: it cannot be written; `path` is then as it was.
        """
        return self._write(path, list(self._bundles.values()))

    def extend(self, path: str | os.PathLike[str]) -> Path:
        """As `collect`, and keep what `path` holds by now: several clients, ranks of a job say, may extend one bundle.

        Raises:
            OSError: as `collect`; or others that write there take too long.
        """
        place = Path(os.path.realpath(path))
        place.parent.mkdir(parents=True, exist_ok=True)
        with locked(place):
            bundles = list(self._bundles.values())
            try:
                bundles.insert(0, Bundle.open(place))
            except FileNotFoundError:
                pass
            except DamagedError as error:
                _log.info("the bundle is written anew: %s", error)  # the client that read it has warned
            return self._write(path, bundles)

    def _write(self, path: str | os.PathLike[str], bundles: list[Bundle]) -> Path:
        with self._lock:
            noted = dict(self._noted or {})
        with BundleWriter(path) as writer:
            # What was noted comes first: it may replace what was found damaged in a bundle.
            for open_entry in noted.values():
                writer.add(open_entry())
            for bundle in bundles:
                for item in bundle:
                    if item.key not in writer:
                        _add_if_whole(writer, bundle, item.key)
        return Path(path)

    def after_fork(self) -> None:
        """In a fork of the process: the thread that held this lock, if any did, is not here."""
        self._lock = threading.Lock()

    def end_compile(self) -> None:
        """Stop noting, and forget."""
        with self._lock:
            self._noted = None

    def find(self, key: str) -> Entry | None:
        """The entry of a bundle that was read, by key; None if it is in none of them, or damaged."""
        for bundle in self._bundles.values():
            if key in bundle:
                try:
                    return bundle.entry(key)
                except (DamagedError, OSError) as error:
                    _log.warning("%s: %s", bundle.path, error)
        return None

    def read_and_emit(self, path: str | os.PathLike[str]) -> int:
        """Fill the future cache from a bundle.

        Returns:
            How many of its kernels fit this toolchain and environment.

        Raises:
            DamagedError: it is not a whole bundle.
            OSError: it cannot be read.
        """
        bundle = self._bundles[Path(path).absolute()] = Bundle.open(path)
        return sum(emit(bundle) for emit in self._emits)


def _add_if_whole(writer: BundleWriter, bundle: Bundle, key: str) -> None:
    try:
        writer.add(bundle.entry(key))
    except DamagedError as error:
        _log.warning("left out of %s: %s", writer.path, error)
