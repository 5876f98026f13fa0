"""Warm: every kernel from a bundle. A kernel's time is `triton()`, `result()` and its binary's bytes."""

import sys
import time
from itertools import pairwise

from benchmarks.subjects.common import BINARY, TARGET, digest, load, loaded, report, since_spawned

kernels = load(sys.argv[1])
before = time.perf_counter()

import headstart  # noqa: E402

async_compile = headstart.AsyncCompile(target=TARGET, bundle=sys.argv[2])
binaries, times = [], []
for name, source, how in kernels:
    binaries.append(async_compile.triton(name, source, **how).result().asm[BINARY])
    times.append(time.perf_counter())
    if len(times) == 1:
        first_from_spawn = since_spawned()
async_compile.close()
further = sorted(after - at for at, after in pairwise(times))
assert async_compile.services_started == 0
assert not loaded("triton", "torch"), loaded("triton", "torch")
report(
    kernels=len(kernels),
    digest=digest(binaries),
    first_s=times[0] - before,
    first_from_spawn_s=first_from_spawn,
    further_s=further[len(further) // 2],
    total_s=times[-1] - before,
)
