"""torch.compile's graphs in the bundle: each artifact that torch's own portable cache would save is an entry.

    bundle ─▶ Graphs.read: in the adapter's thread, while the program still imports torch
                 └─▶ load_profiles, once torch._dynamo is imported ─┐
                 └─▶ load, once Inductor is ────────────────────────┴─▶ files in torch's cache ─▶ torch looks them up
    torch makes a graph, or finds one ─▶ torch notes it ─▶ Graphs.save: at the end, what the bundle lacks

torch looks each up by its own key: of the graph, torch's files, the settings, the GPU. Most are pickles, which run code
when torch reads them: `TritonBundler.entries_of` gives them only out of a bundle that this user trusts.
"""

from __future__ import annotations

import functools
import logging
import platform
import threading
import time
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Any

from headstart.adapters.inductor import compat, compat_artifacts
from headstart.adapters.inductor.compat_artifacts import Artifact, LookUps
from headstart.artifacts.entry import Entry, pack_entry
from headstart.artifacts.kinds import GRAPHS
from headstart.client.bundler import TritonBundler
from headstart.client.policy import Policy
from headstart.client.use import BundleUse, Missed
from headstart.describe.facts import Torch
from headstart.errors import DamagedError, ServiceError
from headstart.model import keys
from headstart.system import machine

KIND = GRAPHS  # of such an entry, and what its artifact is called
_MOST_RIVALS = 8  # artifacts of one type and key of torch's that a bundle gets; they differ in guards, or by chance
FORMAT = "graphs 1"  # raised whenever such an entry changes its meaning

_log = logging.getLogger("headstart")


class Graphs:
    """Of one process.

    Args:
        bundler: reads and writes the bundle.
        policy: says what compiles.
        cache_dir: headstart's cache folder.
        torch: the program's.
    """

    def __init__(self, bundler: TritonBundler, policy: Policy, cache_dir: Path, torch: Torch) -> None:
        self._bundler = bundler
        self._policy = policy
        self._cache_dir = cache_dir
        self._torch = torch
        self._identity = self._toolchain = ""  # once they are known
        self._why_missed = "it is not in the bundle"
        self._held: dict[str, bytes] = {}  # what the bundle has for this torch: entry's key, digest of the content
        self._rivals: Counter[tuple[str, str]] = Counter()  # how many the bundle has of one type and key of torch's
        self._read: dict[str, Artifact] | None = None  # by the entry's key; emptied as they are put where torch looks
        self._lock = threading.Lock()
        self._since = time.monotonic()
        self._before = LookUps()  # what the process that this is a fork of had torch count, and note
        self._noted_before = 0

    @property
    def is_expected(self) -> bool:
        """Whether the bundle has any."""
        return self._bundler.holds(KIND)

    def read(self) -> None:
        """Do early, and in another thread, what takes no torch."""
        self._artifacts()

    def load_profiles(self) -> None:
        """Once torch._dynamo is imported: the first function that is traced is to know which sizes change.

        In the middle of torch's imports: nothing is imported here but what profiles take.
        """
        try:
            if not compat_artifacts.are_caches_off():
                known = self._artifacts().items()
                self._put([key for key, each in known if each.type == compat_artifacts.PROFILE])
        except Exception:  # noqa: BLE001 - as below
            _log.exception("headstart's profiles for torch failed; this is a bug")

    def load(self) -> None:
        """Once Inductor is imported, and before it is called. Never raises, as the program imports it."""
        try:
            if not self._artifacts() or compat.caches_disabled():
                return
            lacking = compat_artifacts.missing()
            if lacking is None:
                self._put(list(self._artifacts()))
                return
            self._why_missed = f"torch has no {lacking}"
            _log.warning("torch.compile's graphs are not taken from the bundle: torch has no %s", lacking)
        except Exception:  # noqa: BLE001 - torch makes its own
            _log.exception("headstart's graphs for torch failed; this is a bug")

    def save(self) -> BundleUse:
        """Note what the bundle lacks of what this process made or found; says how many graphs came out of it."""
        if not self._bundler.is_noting:
            return BundleUse()
        noted = compat_artifacts.noted()
        noted = noted[self._noted_before :] if len(noted) >= self._noted_before else noted  # it has been emptied
        if noted:
            self._artifacts()  # which says what the bundle has
        try:
            found = {} if noted and compat.caches_disabled() else {self._key(each): each for each in noted}
        except ServiceError as error:
            _log.warning("torch.compile's graphs are not put into the bundle: %s", error)
            return BundleUse()
        for key, artifact in found.items():
            if key in self._held:
                self._bundler.note_use(key)
            if self._lacks(key, artifact):
                self._bundler.put(key, functools.partial(self._entry, key, artifact))
        return self._use({key: each for key, each in found.items() if each.type == compat_artifacts.GRAPH})

    def _lacks(self, key: str, artifact: Artifact) -> bool:
        if key in self._held:
            return self._held[key] != sha256(artifact.content).digest()
        rivals = self._rivals[artifact.type, artifact.key]
        # torch's content differs each time it is made: without a bound the bundle of a program whose torch cache is
        # emptied would grow with each run.
        return not artifact.has_rivals or rivals < _MOST_RIVALS

    def _use(self, graphs: dict[str, Artifact]) -> BundleUse:
        """Counted as torch counts, since it is torch that looks up; by what it noted, if its counters were set back."""
        counted = compat_artifacts.looked_up().since(self._before)
        uptime = time.monotonic() - self._since
        others = sorted((compat_artifacts.age(each), each) for key, each in graphs.items() if key not in self._held)
        use = BundleUse(graphs=len(graphs) - len(others), made_graphs=counted.made)
        if counted.found + counted.made < len(graphs):
            use.made_graphs = sum(age <= uptime for age, _ in others)
        use.cached_graphs = max(0, len(others) - use.made_graphs)
        use.missed = [Missed(f"graph {each.key[:12]}", self._why(each)) for _, each in others[: use.made_graphs]]
        if use.made_graphs > len(others):
            use.missed.append(Missed("graphs", f"{use.made_graphs - len(others)} were made that torch does not keep"))
        if counted.traced and not (graphs or counted.found or counted.made) and not compat_artifacts.keeps_graphs():
            use.missed.append(Missed("graphs", "torch's cache of graphs is switched off, so that all were made"))
        return use

    def _why(self, artifact: Artifact) -> str:
        if self._rivals[artifact.type, artifact.key]:
            return "torch did not take the bundle's: it has other guards, or torch's cache folder is another one by now"
        return self._why_missed

    def _artifacts(self) -> dict[str, Artifact]:
        """What the bundle has for this torch, Triton and Python; read once."""
        with self._lock:
            if self._read is None:
                self._read = {}
                try:
                    self._read_bundle(self._read)
                except (ServiceError, OSError) as error:
                    _log.warning("torch.compile's graphs in the bundle are not used: %s", error)
            return self._read

    def _read_bundle(self, found: dict[str, Artifact]) -> None:
        others: dict[str, Any] = {}
        for entry in self._bundler.entries_of(KIND):
            about = entry.header.metadata
            if about.get("identity") != self._know_identity():
                others = about
                continue
            try:
                artifact = Artifact(str(about["type"]), str(about["key"]), entry.artifact(KIND))
            except (DamagedError, KeyError, OSError) as error:
                _log.warning("a graph of torch.compile in the bundle is not used: %s", error)
                continue
            if self._key(artifact) == entry.key:
                self._rivals[artifact.type, artifact.key] += 1
                self._held[entry.key] = sha256(artifact.content).digest()
                found[entry.key] = artifact
        if others and not self._held:
            made, here = str(others.get("torch", "another torch")), self._torch.version
            why = f"torch {made} (this is {here})" if made != here else "another Triton, Python or kind of CPU"
            self._why_missed = f"the bundle's graphs were made for {why}"
            _log.warning("torch.compile's graphs in the bundle were not used: made for %s", why)
        elif self.is_expected and not self._held:
            self._why_missed = "the bundle's graphs are held back, or damaged"

    def _put(self, wanted: list[str]) -> None:
        failed: list[BaseException] = []
        for key in wanted:
            artifact = self._artifacts().pop(key, None)
            if artifact is None:
                continue
            try:
                compat_artifacts.put(artifact)
            except Exception as error:  # noqa: BLE001 - torch's, which then makes its own
                failed.append(error)
        if failed:
            _log.warning(
                "%d of torch.compile's artifacts in the bundle cannot be used (%s: %s)",
                len(failed),
                type(failed[0]).__name__,
                failed[0],
            )

    def _entry(self, key: str, artifact: Artifact) -> Entry:
        parts = pack_entry(
            key=key,
            kind=KIND,
            name=f"torch.compile {artifact.type}",  # entries of one name are packed together
            request_digest=key,
            toolchain=self._toolchain,
            target="",
            components=[("format", FORMAT)],
            metadata={
                "identity": self._identity,
                "torch": self._torch.version,
                "python": platform.python_version(),
                "type": artifact.type,
                "key": artifact.key,
            },
            artifacts={KIND: artifact.content},
            compile_wall_s=0.0,
            compile_cpu_s=0.0,
            triton_version=self._policy.toolchain().triton_version,
            request=b"",
            output="",
        )
        return Entry.from_bytes(b"".join(parts))

    def _key(self, artifact: Artifact) -> str:
        return keys.digest(
            [
                ("identity", self._know_identity()),
                ("type", artifact.type),
                ("key", artifact.key),
                ("content", sha256(artifact.content).hexdigest() if artifact.has_rivals else ""),
            ]
        )

    def _know_identity(self) -> str:
        """Of what may read such an artifact. The rest of what it depends on is in the key that torch gave it."""
        # Two threads may do this at once, and a fork may come between: it takes no lock.
        if not self._identity:
            self._toolchain = self._policy.toolchain_digest(self._cache_dir)
            # torch's own key does not name the CPU, for whose vectors a graph's parts in C++ are written: with others
            # they would leave out elements, and nothing would say so.
            self._identity = keys.digest(
                [
                    ("format", FORMAT),
                    ("torch", self._torch.version),
                    ("toolchain", self._toolchain),
                    ("vectors", machine.vector_instructions()),
                ]
            )
        return self._identity

    def after_fork(self) -> None:
        """In a fork of the process: a thread that was reading is not here."""
        if self._lock.locked():
            self._read = None
        self._lock = threading.Lock()
        self._since = time.monotonic()
        self._before = compat_artifacts.looked_up()
        self._noted_before = len(compat_artifacts.noted())
