"""Warm: every kernel from Triton's own cache on disk.

A kernel's time is that of executing its source, `triton.compile`, and its binary's bytes.
"""

import os
import sys
import time
from itertools import pairwise

from benchmarks.subjects.common import BINARY, digest, load, report, since_spawned


def cached() -> int:
    return sum(len(files) for _, _, files in os.walk(os.environ["TRITON_CACHE_DIR"]))


kernels = load(sys.argv[1])
files = cached()
before = time.perf_counter()

from benchmarks.subjects import plain  # noqa: E402 - imports triton

binaries, times, compiling = [], [], []
for kernel in kernels:
    function = plain.define(kernel)
    defined = time.perf_counter()
    binaries.append(plain.compile_function(function, kernel).asm[BINARY])
    times.append(time.perf_counter())
    compiling.append(times[-1] - defined)
    if len(times) == 1:
        first_from_spawn = since_spawned()
assert cached() == files, "not every kernel was in Triton's cache"
further = sorted(after - at for at, after in pairwise(times))
report(
    kernels=len(kernels),
    digest=digest(binaries),
    first_s=times[0] - before,
    first_from_spawn_s=first_from_spawn,
    further_s=further[len(further) // 2],
    further_compile_s=sorted(compiling[1:])[len(further) // 2],
    total_s=times[-1] - before,
)
