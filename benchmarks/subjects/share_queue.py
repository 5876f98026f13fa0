"""Many requests that wait: CPU of the server per request, while nothing is compiled."""

import os
import sys
from pathlib import Path

import headstart
from benchmarks.subjects.common import TARGET, report
from benchmarks.subjects.sharing import shared_service, small, state
from headstart.client import control, sharing

TICKS = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """Of one process, children not counted, to a hundredth of a second."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


count = int(sys.argv[1])
with shared_service(1) as keeper:
    control.ask(sharing.user_socket(), "quiesce")
    service = state().pid
    before = cpu_s(service)
    with headstart.AsyncCompile(TARGET) as client:
        for number in range(count):
            client.triton(**small(f"kernel{number}"))
        while sum(state().queued) < count:
            pass
        used = cpu_s(service) - before
        client.close()
    control.ask(sharing.user_socket(), "resume")
report(request_s=used / count)
