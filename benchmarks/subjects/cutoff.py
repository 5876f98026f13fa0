"""One sweep with a warm service, with or without early cutoff: `cutoff.py WORKLOAD WORKERS 0|1`."""

import hashlib
import json
import os
import sys
from pathlib import Path

import headstart
from benchmarks.subjects.common import TARGET, load, report
from benchmarks.subjects.sharing import small

_FRONT_END = ("source", "ttir")
_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_s() -> float:
    """CPU seconds of this process and all below it, the dead included; to a hundredth for each that lives."""
    times, children = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, fields = int(stat.parent.name), stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(pid)
        times[pid] = sum(map(int, fields[11:15]))
    family = [os.getpid()]
    for pid in family:
        family += children.get(pid, [])
    return sum(times[pid] for pid in family) / _TICKS


os.environ["HEADSTART_EARLY_CUTOFF"] = sys.argv[3]
workers = int(sys.argv[2])
kernels = load(sys.argv[1])
with headstart.AsyncCompile(target=TARGET, workers=workers) as async_compile:
    warm = [async_compile.triton(**small(f"warm{number}")) for number in range(4 * workers)]
    for future in warm:
        future.result()
    began = cpu_s()
    futures = [async_compile.triton(name, source, **how) for name, source, how in kernels]
    made = [future.result() for future in futures]
    took = cpu_s() - began

whole = hashlib.sha256()
programs = set()
for kernel in made:
    kernel.entry.verify()
    header = kernel.entry.header
    artifacts = [(artifact.name, artifact.sha256.hex()) for artifact in header.artifacts]
    whole.update(json.dumps([header.key, artifacts, list(header.metadata.items())]).encode())
    programs.add(tuple(digest for name, digest in artifacts if name not in _FRONT_END))
report(cpu_s=took, configurations=len(kernels), programs=len(programs), digest=whole.hexdigest())
