"""Every kernel of a workload, from a host's local store, from a store of other hosts, or compiled.

Its time begins before there is a service, and ends once every binary's bytes are there. With a third argument, "up", it
begins once a kernel more, the last of the workload, has come the same way, so that all processes are there.
"""

import os
import sys
import time

import headstart
from benchmarks.subjects.common import BINARY, TARGET, digest, load, report
from headstart.client import control

kernels = load(sys.argv[1])
is_up = sys.argv[3:] == ["up"]
begun = time.monotonic()
with headstart.AsyncCompile(TARGET, workers=int(sys.argv[2])) as async_compile:
    if is_up:
        name, source, how = kernels.pop()
        async_compile.triton(name, source, **how).result(240)
        begun = time.monotonic()
    futures = [async_compile.triton(name, source, **how) for name, source, how in kernels]
    binaries = [future.result(240).asm[BINARY] for future in futures]
    took = time.monotonic() - begun
    by_service = 0
    if os.environ.get("HEADSTART_SERVICE") == "shared":
        ((_, state),) = control.reports(async_compile.client.settings)
        by_service = state.compiled
    statistics = async_compile.statistics
    report(
        took_s=took,
        kernels=len(kernels),
        digest=digest(binaries),
        compiled=statistics.compiled,
        compiled_by_service=by_service,
        remote=async_compile.used().remote,
    )
