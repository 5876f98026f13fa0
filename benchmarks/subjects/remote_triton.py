"""Every kernel of a workload, through the cache manager that Triton's own variables name.

Its time begins once Triton is imported and every source executed, and ends once every binary's bytes are there.

`RedisRemoteCacheBackend` of Triton 3.9 asks for `knobs.cache.redis`, and what it means is called `knobs.redis`: so it
raises AttributeError, unless somebody gives it the name that it asks for.
"""

import sys
import time

from triton import knobs

from benchmarks.subjects import plain
from benchmarks.subjects.common import BINARY, digest, load, report

if not hasattr(knobs.cache, "redis"):
    type(knobs.cache).redis = knobs.redis
compiled = []


def note(*, src, metadata, metadata_group, times, cache_hit):
    if not cache_hit:
        compiled.append(src)


knobs.compilation.listener = note
kernels = load(sys.argv[1])
functions = [plain.define(kernel) for kernel in kernels]
begun = time.monotonic()
binaries = [plain.compile_function(*each).asm[BINARY] for each in zip(functions, kernels, strict=True)]
took = time.monotonic() - begun
report(
    took_s=took,
    kernels=len(kernels),
    digest=digest(binaries),
    compiled=len(compiled),
    remote=len(kernels) - len(compiled),
)
