"""Opens a bundle, as a program does that starts from one, and finds out whether it is trusted."""

import sys
import time

from benchmarks.subjects.common import loaded, report
from headstart.client import client  # all that a program that has a bundle loads anyway

started = time.perf_counter()
bundler = client.TritonBundler(len)
kernels = bundler.read_and_emit(sys.argv[1])
opening_s = time.perf_counter() - started
(source,) = bundler._sources.values()
report(
    opening_s=opening_s,
    kernels=kernels,
    trusted=source.verdict.trusted,
    loaded=loaded("cryptography", "platformdirs"),
)
