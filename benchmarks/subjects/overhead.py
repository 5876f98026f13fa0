"""What a kick-off costs its caller, and what headstart adds to a compile: one worker, a queue that never runs empty.

A few kernels are asked for while the service still starts. When the first of them has come back, the rest are: so
kick-offs are timed both before there is a socket to write to and while the service is at work.

Overhead per job is the time from the worker's start on its first job until the answer of the last one is here, less
the sum of what all compiles took inside the worker, divided by the number of jobs. It holds everything that happens
between two compiles: the entry packed and published, the answer sent and passed on, the next job chosen, sent and
read. On a machine that others use as well it holds their share too.

The same in CPU time is what worker, service and client used for these jobs, less what the worker counted for the
compiles alone; the worker's own start is in it.
"""

import sys
import time

import psutil

import headstart
from benchmarks.subjects.common import TARGET, load, report

EARLY = 8  # kernels that are asked for at once


def cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system + times.children_user + times.children_system


kernels = load(sys.argv[1])
kickoffs = []
with headstart.AsyncCompile(target=TARGET, workers=1) as async_compile:

    def kick_off(kernel):
        name, source, how = kernel
        before = time.perf_counter()
        future = async_compile.triton(name, source, **how)
        kickoffs.append(time.perf_counter() - before)
        return future

    futures = [kick_off(kernel) for kernel in kernels[:EARLY]]
    futures[0].result()
    (service,) = psutil.Process().children()
    (zygote,) = service.children()
    (worker,) = zygote.children()
    service_before, client_before = cpu(service), time.process_time()
    futures += [kick_off(kernel) for kernel in kernels[EARLY:]]
    compiled = [future.result() for future in futures]
    client_s, service_s, worker_s = (
        time.process_time() - client_before,
        cpu(service) - service_before,
        cpu(worker),
    )
    spans = async_compile.timeline
headers = [kernel.entry.header for kernel in compiled]
compiling = sum(header.compile_wall_s for header in headers)
worker_s -= sum(header.compile_cpu_s for header in headers)
elapsed = max(span.finished for span in spans) - min(span.started for span in spans)
report(
    jobs=len(spans),
    kickoff_s=sorted(kickoffs)[len(kickoffs) // 2],
    kickoff_starting_s=sorted(kickoffs[1:EARLY])[EARLY // 2 - 1],
    kickoff_first_s=kickoffs[0],
    kickoff_longest_s=max(kickoffs[1:]),
    overhead_s=(elapsed - compiling) / len(spans),
    worker_cpu_s=worker_s / len(spans),
    service_cpu_s=service_s / len(spans),
    client_cpu_s=client_s / len(spans),
    cpu_s=(worker_s + service_s + client_s) / len(spans),
)
