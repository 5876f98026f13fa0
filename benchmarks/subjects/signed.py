"""Opens a bundle, as a program does that starts from one, and finds out whether it is trusted."""

import sys
import time

from benchmarks.subjects.common import loaded, report
from headstart.client import client  # all that a program that has a bundle loads anyway

started, cpu = time.perf_counter(), time.process_time()
bundler = client.TritonBundler(len)
kernels = bundler.read_and_emit(sys.argv[1])
opening_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu
(source,) = bundler._sources.values()
report(
    opening_s=opening_s,
    cpu_s=cpu_s,
    kernels=kernels,
    trusted=source.verdict.trusted,
    loaded=loaded("cryptography", "platformdirs"),
)
