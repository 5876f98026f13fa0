"""From before AsyncCompile() until a worker has begun the first compile; the kernel is asked for at once."""

import sys
import time

import headstart
from benchmarks.subjects.common import TARGET, load, report

name, source, how = load(sys.argv[1])[0]
before = time.monotonic()
with headstart.AsyncCompile(target=TARGET, workers=int(sys.argv[2])) as async_compile:
    async_compile.triton(name, source, **how).result()
    started = async_compile.timeline[0].started
report(until_first_compile_s=started - before)
