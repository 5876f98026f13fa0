"""What a run's log leaves to be looked up: what a kernel was made of, and what was made of it.

a kernel of a run ── key ──▶ its entry in the store ──────▶ request, identity, metadata, artifacts
                  ├─ digest ─▶ an item of the run's bundle ─▶ the same
                  └─ digest ─▶ the program's manifest ──────▶ request, identity
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from headstart.artifacts import runs
from headstart.artifacts.bundle import Bundle
from headstart.artifacts.entry import Entry
from headstart.artifacts.manifest import Manifest
from headstart.artifacts.run_records import Head
from headstart.errors import HeadstartError
from headstart.model import keys
from headstart.model.parameters import parameters_of, with_names
from headstart.model.request import CompileRequest
from headstart.stores import open_store

_SHORT_DIGEST = 12  # hexadecimal digits that tell toolchains apart
_MAX_PLAN_NAME = 60  # characters of the kernel's name in that of a plan; see `artifacts.reproduce`
_MOST_LINES = 5000  # of two sources that are compared line by line

_request_decoder = msgspec.msgpack.Decoder(CompileRequest)


class Facts(NamedTuple):
    """What is known of one kernel.

    Attributes:
        name: of the kernel.
        components: its identity, parameters by their names; the toolchain's among them if it is known.
        digest: of the request.
        found_in: for people: `"the cache"`, or the name of a bundle or a manifest.
        request: None: it cannot be read.
        entry: None: it is only known what it was made of.
    """

    name: str
    components: list[keys.Component]
    digest: str
    found_in: str
    request: CompileRequest | None = None
    entry: Entry | None = None


class Library:
    """Where kernels of runs are looked up. Nothing is written, and no entry's last use either.

    Args:
        cache_dir: with the runs, the store and the programs' manifests in it.
    """

    def __init__(self, cache_dir: Path) -> None:
        self._cache_dir = cache_dir
        self._store = open_store(cache_dir)
        self._manifests: dict[str, dict[str, tuple[str, CompileRequest]]] = {}
        self._bundles: dict[str, Bundle | None] = {}
        self._shards: dict[str, list[Path]] = {}

    def facts(self, kernel: runs.Kernel, head: Head) -> Facts | None:
        """Of a kernel of a run; None: there is no trace of it but its name."""
        return self.entry_facts(kernel.key) or self._in_bundle(kernel, head) or self._in_manifest(kernel, head)

    @functools.lru_cache(maxsize=4096)  # noqa: B019 - one for each command
    def entry_facts(self, key: str) -> Facts | None:
        """Of the store's entry whose key begins so."""
        for path in self._paths(key):
            with contextlib.suppress(HeadstartError, OSError, ValueError):
                return _of_entry(Entry.open(path), "the cache")
        return None

    def there_since(self, key: str) -> float | None:
        """When the store's entry was last used or made, seconds since 1970: it was there then. None: it has none."""
        for path in self._paths(key):
            with contextlib.suppress(OSError):
                return path.lstat().st_mtime
        return None

    def recorded(self, head: Head, name: str) -> Iterator[Facts]:
        """All that the manifest of a run's program has of that name."""
        for digest, (recorded_as, request) in self._manifest(head.record).items():
            if recorded_as == name:
                yield _of_request(request, digest, Path(head.record).name)

    def bundled(self, head: Head, name: str) -> Iterator[Facts]:
        """All that the run's bundle has of that name, unless the run has written it: then it was not there before."""
        with contextlib.suppress(OSError, ValueError):  # no file, no name of one
            if os.stat(head.bundle).st_mtime >= head.began:
                return
        bundle = self._bundle(head.bundle)
        for item in bundle or ():
            if item.name == name and item.kind == "kernel" and bundle is not None:
                with contextlib.suppress(HeadstartError, OSError, ValueError):
                    yield _of_entry(bundle.entry(item.key), bundle.path.name)

    def commands(self, kernel: runs.Kernel, head: Head) -> list[dict[str, str]]:
        """What compiles a kernel again, and what for."""
        if kernel.origin == "failed":
            digest = kernel.digest[:_SHORT_DIGEST]
            file = f"{kernel.name[:_MAX_PLAN_NAME]}-{digest}.py"
            plan = self._cache_dir / "failed" / file
            # The log may say anything; a kernel's name is one of Python's.
            if digest and kernel.name.isidentifier() and os.path.isfile(plan):
                return [{"why": "Compiles it again:", "command": f"headstart build {shlex.quote(str(plan))}"}]
        if kernel.digest and any(digest.startswith(kernel.digest) for digest in self._manifest(head.record)):
            command = f"headstart build --trust {shlex.quote(head.record)}"
            return [{"why": "Compiles it again, with all of its record, unless the cache has it:", "command": command}]
        return []

    def _paths(self, key: str) -> list[Path]:
        if len(key) < 2:
            return []
        shard = self._store.path_of(key).parent
        if key[:2] not in self._shards:
            self._shards[key[:2]] = sorted(shard.glob("*.hse"))
        return [path for path in self._shards[key[:2]] if path.name.startswith(key)]

    def _in_bundle(self, kernel: runs.Kernel, head: Head) -> Facts | None:
        bundle = self._bundle(head.bundle)
        if bundle is None or not kernel.digest:
            return None
        for item in bundle:
            if item.request_digest.startswith(kernel.digest):
                with contextlib.suppress(HeadstartError, OSError, ValueError):
                    return _of_entry(bundle.entry(item.key), bundle.path.name)
        return None

    def _in_manifest(self, kernel: runs.Kernel, head: Head) -> Facts | None:
        if not kernel.digest:
            return None
        for digest, (_, request) in self._manifest(head.record).items():
            if digest.startswith(kernel.digest):
                return _of_request(request, digest, Path(head.record).name)
        return None

    def _bundle(self, path: str) -> Bundle | None:
        if path not in self._bundles:
            self._bundles[path] = None
            if path:
                with contextlib.suppress(HeadstartError, OSError, ValueError):
                    self._bundles[path] = Bundle.open(path)
        return self._bundles[path]

    def _manifest(self, path: str) -> dict[str, tuple[str, CompileRequest]]:
        if path not in self._manifests:
            self._manifests[path] = {}
            if path:
                with contextlib.suppress(HeadstartError, OSError, ValueError):
                    found = Manifest.open(path).specializations
                    self._manifests[path] = {
                        digest: (each.request.name, each.request) for digest, each in found.items()
                    }
        return self._manifests[path]


def explain(before: Facts, after: Facts) -> list[str]:
    """Why the kernel of `after` is not that of `before`, one line a difference; what one of them does not say is none.

    >>> "options.num_warps was 4 in app.bundle, now 8"
    'options.num_warps was 4 in app.bundle, now 8'
    """
    old, new = dict(before.components), dict(after.components)
    place = "" if before.found_in in ("", "the cache") else f" in {before.found_in}"
    lines = []
    if "toolchain" in old and "toolchain" in new and old["toolchain"] != new["toolchain"]:
        lines.append(_toolchains(old["toolchain"], new["toolchain"]))
    for name in dict.fromkeys([*old, *new]):
        was, now = old.get(name), new.get(name)
        if was == now or name in ("toolchain", "format"):
            continue
        if name == "source" and was is not None and now is not None:
            lines.append(_sources(was, now))
        elif was is None:
            lines.append(f"{name} was not given{place}, now {now}")
        elif now is None:
            lines.append(f"{name} was {was}{place}, now not given")
        else:
            lines += [
                each.replace(f" was {was}, now", f" was {was}{place}, now")
                for each in keys.explain([(name, was)], [(name, now)])
            ]
    return lines


def nearest(candidates: Iterator[Facts] | list[Facts], after: Facts) -> Facts | None:
    """The one that differs in the fewest components; the first of several."""
    new = dict(after.components)

    def distance(each: Facts) -> int:
        old = dict(each.components)
        return sum(old.get(name) != new.get(name) for name in old.keys() | new.keys() if name != "toolchain")

    return min(candidates, key=distance, default=None)


def source_of(request: CompileRequest) -> str:
    """The text of what was compiled, for people: of a live kernel, of each of its functions."""
    source = request.source
    return source if isinstance(source, str) else "\n".join(function.text for function in source.functions)


def _of_entry(entry: Entry, found_in: str) -> Facts:
    header = entry.header
    request: CompileRequest | None = None
    components = list(header.components)
    with contextlib.suppress(msgspec.MsgspecError, ValueError):  # of another headstart
        request = decoded = _request_decoder.decode(header.request)
        components = with_names(components, lambda: parameters_of(decoded))
    version = f"{header.triton_version} ({header.toolchain[:_SHORT_DIGEST]})"
    components = [(name, value) for name, value in components if name != "toolchain"]
    components.append(("toolchain", version))
    return Facts(header.name, components, header.request_digest, found_in, request, entry)


def _of_request(request: CompileRequest, digest: str, found_in: str) -> Facts:
    components = with_names(request.components(), lambda: parameters_of(request))
    return Facts(request.name, components, digest, found_in, request)


def _toolchains(was: str, now: str) -> str:
    """`3.6.0 (ab12…)` and the like."""
    old, new = was.partition(" ")[0], now.partition(" ")[0]
    if old == new:
        return f"toolchain: another build of Triton {new}, or another Python ({was} → {now})"
    return f"toolchain: Triton {old} → {new}"


def _sources(was: str, now: str) -> str:
    old, new = was.splitlines(), now.splitlines()
    first = next((n for n, (a, b) in enumerate(zip(old, new, strict=False), 1) if a != b), min(len(old), len(new)) + 1)
    if max(len(old), len(new)) > _MOST_LINES:
        return f"source changed, first at line {first}"
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    changed = sum(
        max(old_end - old_start, new_end - new_start)
        for tag, old_start, old_end, new_start, new_end in matcher.get_opcodes()
        if tag != "equal"
    )
    if not changed:
        return "source changed in its line endings"
    return f"source changed, {changed} {'line' if changed == 1 else 'lines'}, the first at line {first}"
