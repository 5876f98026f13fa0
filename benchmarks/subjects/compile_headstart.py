"""Cold: AsyncCompile."""

import sys

import headstart
from benchmarks.subjects.common import BINARY, TARGET, digest, load, report

kernels = load(sys.argv[1])
with headstart.AsyncCompile(target=TARGET, workers=int(sys.argv[2])) as async_compile:
    futures = [async_compile.triton(name, source, **how) for name, source, how in kernels]
    scope = dict(enumerate(futures))
    async_compile.wait(scope)
    binaries = [scope[i].asm[BINARY] for i in range(len(futures))]
    statistics = async_compile.statistics
report(
    kernels=len(kernels),
    digest=digest(binaries),
    compiled=statistics.compiled,
    compile_cpu_s=statistics.cpu_s,
    bound_s=max(statistics.cpu_s / statistics.workers, statistics.longest_s),
)
