"""From making a client to its first compile's start, where a service runs that has workers."""

import sys
import time

import headstart
from benchmarks.subjects.common import TARGET, report
from benchmarks.subjects.sharing import shared_service, small

TIMES = 20

took = []
with shared_service(int(sys.argv[1])):
    for number in range(TIMES):
        begun = time.monotonic()
        with headstart.AsyncCompile(TARGET) as client:
            client.triton(**small(f"kernel{number}")).result()
            started = client.timeline[0].started
            assert started is not None
            took.append(started - begun)
report(connect_s=sorted(took)[TIMES // 2], longest_s=max(took))
