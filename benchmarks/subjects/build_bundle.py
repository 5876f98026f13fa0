"""Not timed: compile a workload into a bundle."""

import sys

import headstart
from benchmarks.subjects.common import TARGET, load, report

with headstart.AsyncCompile(target=TARGET, workers=int(sys.argv[2]), bundle=sys.argv[3]) as async_compile:
    futures = {str(i): async_compile.triton(n, s, **how) for i, (n, s, how) in enumerate(load(sys.argv[1]))}
    async_compile.wait(futures)
report(kernels=len(futures))
