"""What a worker keeps to itself after some compiles, from smaps_rollup; the zygote's and the service's beside it."""

import sys

import psutil

import headstart
from benchmarks.subjects.common import TARGET, load, report

COMPILES = 20


def rollup(pid: int, field: str) -> int:
    """Bytes."""
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{field}:"))


kernels = load(sys.argv[1])[:COMPILES]
assert len(kernels) == COMPILES
with headstart.AsyncCompile(target=TARGET, workers=1) as async_compile:
    for future in [async_compile.triton(name, source, **how) for name, source, how in kernels]:
        future.result()
    (service,) = psutil.Process().children()
    (zygote,) = service.children()
    (worker,) = zygote.children()
    report(
        compiles=async_compile.statistics.compiled,
        worker_private_dirty=rollup(worker.pid, "Private_Dirty"),
        worker_pss=rollup(worker.pid, "Pss"),
        zygote_pss=rollup(zygote.pid, "Pss"),
        service_pss=rollup(service.pid, "Pss"),
    )
