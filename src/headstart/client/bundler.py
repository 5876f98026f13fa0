"""TritonBundler: notes what comes back during a compile, writes it to a bundle, and fills the future cache from one.

    begin_compile ─▶ put, put, put … (one per result of the service) ─▶ collect(path) ─▶ end_compile
    read_and_emit(path): what an earlier compile collected is there before anybody asks

The life cycle is that of Inductor's TritonBundler; here a bundle is one file (see `headstart.artifacts.bundle`).

Entries that carry code (`headstart.artifacts.kinds`) are given out, and passed on to what is written, only from a
bundle that this user trusts. What is written is signed by the user's local key. A bundle that is used at the user's own
risk (`trust=True`) gives them out whoever signed it: then nothing that is written is signed, so that it is trusted no
longer than the user says so.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from headstart.artifacts.bundle import Bundle, BundleWriter
from headstart.artifacts.entry import Entry
from headstart.artifacts.kinds import carries_code
from headstart.client import vouching
from headstart.client.vouching import Source
from headstart.errors import DamagedError
from headstart.system.locks import locked

_log = logging.getLogger("headstart")

Opener = Callable[[], Entry]


class TritonBundler:
    """Notes the kernels of one compile.

    Args:
        emits: see `offer_to`.
    """

    def __init__(self, *emits: Callable[[Bundle], int]) -> None:
        self._emits = list(emits)
        self._lock = threading.Lock()
        self._noted: dict[str, Opener] | None = None
        self._sources: dict[Path, Source] = {}
        self._used: set[str] = set()  # keys
        self._relied_on: set[bytes] = set()  # ids of the keys on whose word code was given out

    def offer_to(self, emit: Callable[[Bundle], int]) -> int:
        """Have `emit` called with each bundle that was read or will be; it returns how many of its kernels it can use.

        Returns:
            How many it can use of those that were read.
        """
        self._emits.append(emit)
        return sum(map(emit, self.bundles))

    @property
    def bundles(self) -> list[Bundle]:
        """Those that were read."""
        return [source.bundle for source in self._sources.values()]

    def holds_any(self) -> bool:
        """Whether there is anything in the bundles that were read."""
        return any(map(len, self.bundles))

    def holds(self, kind: str) -> bool:
        """Whether there is an entry of this kind in the bundles that were read."""
        return any(item.kind == kind for bundle in self.bundles for item in bundle)

    def triton_version(self) -> str:
        """That made the bundles that were read, by the first kernel that says it; empty if none can be read."""
        for bundle in self.bundles:
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

    def note_use(self, key: str) -> None:
        """The program uses an entry that one of the bundles has."""
        self._used.add(key)

    def note_days(self, path: str | os.PathLike[str], cache_dir: Path, *, trusted: bool) -> None:
        """Write down, for `headstart bundle prune`, what of the bundle `path` was used; see `artifacts.last_used`.

        Args:
            cache_dir: headstart's cache folder.
            trusted: whether the user trusts it whoever can write it.
        """
        from headstart.artifacts import last_used  # at the end, when nobody waits for what it imports

        with self._lock:
            noted = set(self._noted or ())
        held = {item.key for bundle in self.bundles for item in bundle} | noted
        if held:
            last_used.note(path, cache_dir, held, (self._used & held) | noted, trusted=trusted)

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
        return self._write(path, list(self._sources.values()))

    def extend(self, path: str | os.PathLike[str]) -> Path:
        """As `collect`, and keep what `path` holds by now: several clients, ranks of a job say, may extend one bundle.

        A bundle that lacks nothing is left alone, with its signatures.

        Raises:
            OSError: as `collect`; or others that write there take too long.
        """
        place = Path(os.path.realpath(path))
        place.parent.mkdir(parents=True, exist_ok=True)
        with locked(place):
            sources = list(self._sources.values())
            try:
                there = vouching.judge(Bundle.open(place))
                if not self._adds_to(there):
                    return Path(path)
                sources.insert(0, there)
            except FileNotFoundError:
                pass
            except DamagedError as error:
                _log.info("the bundle is written anew: %s", error)  # the client that read it has warned
            return self._write(path, sources)

    def _adds_to(self, there: Source) -> bool:
        """Whether anything noted or read is not in a bundle, or not as it was noted, or damaged there."""
        with self._lock:
            noted = dict(self._noted or {})
        read = {
            item.key: item.kind
            for source in self._sources.values()
            for item in source.bundle
            if _may_copy(item.kind, source)
        }
        if not all(key in there.bundle for key in noted):
            return True
        if not all(key in there.bundle and there.bundle.item(key).kind == kind for key, kind in read.items()):
            return True
        for key, open_entry in noted.items():
            has_code = carries_code(there.bundle.item(key).kind)
            if has_code and not (there.verdict.trusted or self._takes_risks):
                return True
            try:
                found = there.bundle.entry(key)
                found.verify()
                # A kernel is another one with another key; what carries code may have grown, or be called a kernel.
                if (has_code or carries_code(open_entry().header.kind)) and found.raw() != open_entry().raw():
                    return True
            except DamagedError:
                return True
        return False

    @property
    def _takes_risks(self) -> bool:
        return any(source.is_a_risk for source in self._sources.values())

    def _write(self, path: str | os.PathLike[str], sources: list[Source]) -> Path:
        with self._lock:
            noted = dict(self._noted or {})
        place = Path(path)
        relies_on: set[bytes] = set()
        takes_risks = self._takes_risks
        sign = None if takes_risks else functools.partial(vouching.sign, place, relies_on)
        with BundleWriter(path, sign) as writer:
            # What was noted comes first: it may replace what was found damaged in a bundle.
            for open_entry in noted.values():
                entry = open_entry()
                writer.add(entry)
                if carries_code(entry.header.kind):  # it may have been made with what was given out
                    relies_on |= self._relied_on
            for source in sources:
                left_out = []
                for item in source.bundle:
                    if item.key in writer:
                        continue
                    if not (takes_risks or _may_copy(item.kind, source)):
                        left_out.append(item)
                        continue
                    if carries_code(item.kind):
                        relies_on.update(source.verdict.relies_on)
                    _add_if_whole(writer, source.bundle, item.key)
                if left_out:
                    vouching.say_left_out(place, source, left_out)
        if takes_risks:
            _log.info("%s is written without a signature, since code in it is used at your own risk", place)
        return place

    def after_fork(self) -> None:
        """In a fork of the process: the thread that held this lock, if any did, is not here."""
        self._lock = threading.Lock()

    def end_compile(self) -> None:
        """Stop noting, and forget."""
        with self._lock:
            self._noted = None

    def find(self, key: str, kind: str) -> Entry | None:
        """The entry of a bundle that was read, by key; None if it is in none of them, damaged, or held back as code.

        Args:
            kind: what it is asked for as. An entry that calls itself another is none: what a bundle says of itself
                must not decide whether code is looked upon as code.
        """
        for source in list(self._sources.values()):
            is_there = key in source.bundle and source.bundle.item(key).kind == kind
            if is_there and (entry := self._given_out(source, key)) is not None:
                self.note_use(key)
                return entry
        return None

    def entries_of(self, kind: str) -> Iterator[Entry]:
        """Whole entries of a kind in the bundles that were read, of those with the same key the first.

        Those of a kind that carries code come from trusted bundles only; that others are held back is a warning.
        """
        seen: set[str] = set()
        for source in list(self._sources.values()):
            for item in source.bundle:
                if item.kind == kind and item.key not in seen:
                    entry = self._given_out(source, item.key)
                    if entry is not None:
                        seen.add(item.key)
                        yield entry

    def _given_out(self, source: Source, key: str) -> Entry | None:
        has_code = carries_code(source.bundle.item(key).kind)
        if has_code and not source.gives_code:
            vouching.say_held_back(source)
            return None
        try:
            entry = source.bundle.entry(key)
            if has_code:
                entry.verify()
                self._relied_on.update(source.verdict.relies_on)
        except (DamagedError, OSError) as error:
            _log.warning("%s: %s", source.bundle.path, error)
            return None
        return entry

    def read_and_emit(self, path: str | os.PathLike[str], *, trust: bool = False) -> int:
        """Fill the future cache from a bundle, and find out whether it is trusted.

        Args:
            trust: whether what carries code in it may be loaded whatever its signatures say.

        Returns:
            How many of its kernels fit this toolchain and environment.

        Raises:
            DamagedError: it is not a whole bundle.
            OSError: it cannot be read.
        """
        bundle = Bundle.open(path)
        self._sources[Path(path).absolute()] = vouching.judge(bundle, at_own_risk=trust)
        return sum(emit(bundle) for emit in self._emits)


def _may_copy(kind: str, source: Source) -> bool:
    """Whether what this user signs may have entries of that kind from there."""
    return source.verdict.trusted or not carries_code(kind)


def _add_if_whole(writer: BundleWriter, bundle: Bundle, key: str) -> None:
    try:
        writer.add(bundle.entry(key))
    except DamagedError as error:
        _log.warning("left out of %s: %s", writer.path, error)
