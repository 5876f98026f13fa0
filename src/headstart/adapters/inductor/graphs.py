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
from hashlib import sha256
from pathlib import Path
from typing import Any

from headstart.adapters.inductor import compat, compat_artifacts
from headstart.adapters.inductor.compat_artifacts import Artifact
from headstart.artifacts.entry import Entry, pack_entry
from headstart.artifacts.kinds import GRAPHS
from headstart.client.bundler import TritonBundler
from headstart.client.policy import Policy
from headstart.client.use import BundleUse, Missed
from headstart.describe.facts import Torch
from headstart.errors import DamagedError, ServiceError
from headstart.model import keys

KIND = GRAPHS  # of such an entry, and what its artifact is called
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
        self._lock = threading.Lock()
        self._since = time.monotonic()
        self._why_missed = "it is not in the bundle"
        self._read: dict[str, Artifact] | None = None  # by the entry's key; emptied as they are put where torch looks
        self._held: dict[str, bytes] = {}  # what the bundle has for this torch: entry's key, digest of the content

    @property
    def is_expected(self) -> bool:
        """Whether the bundle has any."""
        return self._bundler.holds(KIND)

    def read(self) -> None:
        """Do early, and in another thread, what takes no torch."""
        self._artifacts()

    def load_profiles(self) -> None:
        """Once torch._dynamo is imported: the first function that is traced is to know which sizes change."""
        self._put([key for key, artifact in self._artifacts().items() if artifact.type == compat_artifacts.PROFILE])

    def load(self) -> None:
        """Once Inductor is imported, and before it is called."""
        self._put(list(self._artifacts()))

    def save(self) -> BundleUse:
        """Note what the bundle lacks of what this process made or found; says how many graphs came out of it."""
        use = BundleUse()
        uptime = time.monotonic() - self._since
        artifacts = compat_artifacts.noted() if self._bundler.is_noting else []
        for artifact in [] if artifacts and compat.caches_disabled() else artifacts:
            try:
                key = self._key(artifact)
            except ServiceError as error:
                _log.warning("torch.compile's graphs are not put into the bundle: %s", error)
                break
            if key in self._held:
                self._bundler.note_use(key)
            if artifact.type == compat_artifacts.GRAPH:
                if key in self._held:
                    use.graphs += 1
                elif compat_artifacts.age(artifact) > uptime:
                    use.cached_graphs += 1
                else:
                    use.made_graphs += 1
                    use.missed.append(Missed(f"graph {artifact.key[:12]}", self._why_missed))
            if self._held.get(key) != sha256(artifact.content).digest():
                self._bundler.put(key, functools.partial(self._entry, key, artifact))
        return use

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
            if about.get("identity") != self._identity:
                others = about
                continue
            try:
                artifact = Artifact(str(about["type"]), str(about["key"]), entry.artifact(KIND))
            except (DamagedError, KeyError, OSError) as error:
                _log.warning("a graph of torch.compile in the bundle is not used: %s", error)
                continue
            if self._key(artifact) == entry.key:
                self._held[entry.key] = sha256(artifact.content).digest()
                found[entry.key] = artifact
        if others and not self._held:
            made, here = str(others.get("torch", "another torch")), self._torch.version
            why = f"torch {made} (this is {here})" if made != here else "another Triton or Python"
            self._why_missed = f"the bundle's graphs were made for {why}"
            _log.warning("torch.compile's graphs in the bundle were not used: made for %s", why)
        elif self.is_expected and not self._held:
            self._why_missed = "the bundle's graphs are held back, or damaged"

    def _put(self, wanted: list[str]) -> None:
        """In a thread of the program's, which must not notice."""
        if not wanted or compat.caches_disabled():
            return
        lacking = compat_artifacts.missing()
        if lacking is not None:
            self._why_missed = f"torch has no {lacking}"
            _log.warning("torch.compile's graphs are not taken from the bundle: torch has no %s", lacking)
            return
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
                ("identity", self._identity),
                ("type", artifact.type),
                ("key", artifact.key),
                ("content", sha256(artifact.content).hexdigest() if artifact.has_rivals else ""),
            ]
        )

    @functools.cached_property
    def _toolchain(self) -> str:
        return self._policy.toolchain_digest(self._cache_dir)

    @functools.cached_property
    def _identity(self) -> str:
        """Of what may read such an artifact. The rest of what it depends on is in the key that torch gave it."""
        return keys.digest([("format", FORMAT), ("torch", self._torch.version), ("toolchain", self._toolchain)])

    def after_fork(self) -> None:
        """In a fork of the process: a thread that was reading is not here."""
        if self._lock.locked():
            self._read = None
        self._lock = threading.Lock()
