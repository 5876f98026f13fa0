"""Some client processes ask one service for the same kernels at once."""

import os
import sys
import time

import headstart
from benchmarks.subjects.common import BINARY, TARGET, load, report
from benchmarks.subjects.sharing import shared_service, state


def ask_for_all(kernels: list) -> None:
    """Be one client."""
    with headstart.AsyncCompile(TARGET) as client:
        scope = dict(enumerate(client.triton(name, source, **how) for name, source, how in kernels))
        client.wait(scope)
        assert all(kernel.asm[BINARY] for kernel in scope.values())


kernels, clients = load(sys.argv[1]), int(sys.argv[2])
with shared_service(int(sys.argv[3])):
    before = state().compiled
    gate, opener = os.pipe()
    children = []
    for _ in range(clients):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.close(opener)
                os.read(gate, 1)
                ask_for_all(kernels)
                status = 0
            finally:
                os._exit(status)
        children.append(pid)
    begun = time.monotonic()
    os.close(opener)
    assert all(os.waitpid(pid, 0)[1] == 0 for pid in children)
    took = time.monotonic() - begun
    report(kernels=len(kernels), ask_s=took, compiles=state().compiled - before)
