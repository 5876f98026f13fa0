"""What is relied on of torch's portable cache: the artifacts that `torch.compiler.save_cache_artifacts` saves.

Nothing is replaced. The public functions take and give all artifacts as one string of bytes; what is here reads and
writes each by itself. Several ranks add to one bundle what is missing there. And after a second `save_cache_artifacts`,
`load_cache_artifacts` uses only what came since the first (torch 2.11 to 2.14): a call of ours would take from a
program what it saves itself. Read for torch 2.11 to 2.14, run with `facts.KNOWN_VERSIONS`.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import time
from typing import Any, NamedTuple

from headstart.describe.facts import first_missing, inductor_config, runtime_utils

CACHE = "torch.compiler._cache"
DYNAMO = "torch._dynamo"  # once it is imported, profiles can be put where its first trace looks for them

PROFILE = "pgo"  # read when a function is traced first, before Inductor is imported
GRAPH = "inductor"
_CHOICE = "autotune"
_SEVERAL = (GRAPH, "aot_autograd")  # one key may have several, for different guards

_REQUIRED = {
    CACHE: ("CacheArtifactManager._seen_artifacts", "CacheArtifactFactory.create", "CacheArtifact.populate_cache"),
    "torch._dynamo.package": ("PrecompileCacheArtifact",),
    "torch._dynamo.pgo": ("PGOCacheArtifact._rewrite_cache_key_for_mega_cache", "code_state_path"),
    "torch._functorch._aot_autograd.autograd_cache": ("AOTAutogradCacheArtifact",),
    "torch._inductor.codecache": ("FxGraphCache._write_to_local_cache", "FxGraphCache.cache_hit_post_compile"),
    "torch._inductor.runtime.autotune_cache": ("AutotuneCacheArtifact",),
}


class LookUps(NamedTuple):
    """What torch counts of its graphs in this process: found in its cache, made, and those of Dynamo's in all."""

    found: int = 0
    made: int = 0
    traced: int = 0

    def since(self, before: LookUps) -> LookUps:
        """What has come since."""
        return LookUps(*(max(0, now - then) for now, then in zip(self, before, strict=True)))


class Artifact(NamedTuple):
    """One of torch's; `content` is a pickle, if `type` is not `autotune`."""

    type: str
    key: str
    content: bytes

    @property
    def has_rivals(self) -> bool:
        """Whether another artifact may have the same type and key, and be of use beside it."""
        return self.type in _SEVERAL


def missing() -> str | None:
    """The first thing that is relied on and not there, once Inductor is imported."""
    return first_missing(_REQUIRED)


def looked_up() -> LookUps:
    """As torch counts now; a program may set its counters back."""
    module: Any = sys.modules.get("torch._dynamo.utils")
    if module is None:
        return LookUps()
    inductor, stats = module.counters["inductor"], module.counters["stats"]
    made = inductor["fxgraph_cache_miss"] + inductor["fxgraph_cache_bypass"]
    return LookUps(inductor["fxgraph_cache_hit"], made, stats["unique_graphs"])


def keeps_graphs() -> bool:
    """Whether torch looks graphs up at all, once Inductor is imported."""
    config = inductor_config()
    return not config.force_disable_caches and bool(config.fx_graph_cache)


def are_caches_off() -> bool:
    """Whether the user wants nothing to be taken from a cache; asked while torch is still being imported."""
    config: Any = sys.modules.get("torch.compiler.config")
    return bool(getattr(config, "force_disable_caches", False))


def noted() -> list[Artifact]:
    """What torch.compile made or found in its caches in this process so far."""
    module: Any = sys.modules.get(CACHE)
    if module is None:
        return []
    # Made whole by one call into C: another thread may compile just now.
    artifacts = list(module.CacheArtifactManager._seen_artifacts)
    return [Artifact(each.type(), each.key, each.content) for each in artifacts]


def age(artifact: Artifact) -> float:
    """Seconds for which a graph has been in torch's cache on this machine; 0.0 if it is not there."""
    with contextlib.suppress(OSError, AttributeError):
        codecache = importlib.import_module("torch._inductor.codecache")
        folder = codecache.FxGraphCache._get_tmp_dir_for_key(artifact.key)
        return time.time() - os.stat(os.path.join(folder, codecache.sha256_hash(artifact.content))).st_mtime
    return 0.0


def put(artifact: Artifact) -> None:
    """Put an artifact where torch.compile will look for it, unless this machine has its own there.

    Raises:
        Exception: whatever torch raises, or its cache folder.
    """
    if artifact.type == GRAPH:
        # As `populate_cache`, which up to torch 2.13 unpickles the graph as well, to write down its kernels: so does
        # the look-up, which comes in a moment.
        importlib.import_module("torch._inductor.codecache").FxGraphCache._write_to_local_cache(
            artifact.key, artifact.content
        )
    elif not _is_there(artifact):
        factory = importlib.import_module(CACHE).CacheArtifactFactory
        factory.create(artifact.type, artifact.key, artifact.content).populate_cache()


def _is_there(artifact: Artifact) -> bool:
    """Whether a choice or a profile would take the place of what this machine found out itself."""
    if artifact.type == _CHOICE:
        return os.path.exists(os.path.join(runtime_utils().cache_dir(), artifact.key))
    if artifact.type == PROFILE:
        pgo = importlib.import_module("torch._dynamo.pgo")
        path = pgo.code_state_path(pgo.PGOCacheArtifact._rewrite_cache_key_for_mega_cache(artifact.key))
        return path is None or os.path.exists(path)  # None: local profiles are switched off
    return False
