"""Cold: Triton's own AsyncCompileMode over a pool of threads, through `JITFunction.warmup` as its users call it."""

import sys
from concurrent.futures import ThreadPoolExecutor

import triton
from triton.runtime._async_compile import AsyncCompileMode
from triton.runtime.jit import MockTensor

from benchmarks.subjects.common import BINARY, Kernel, digest, load, report
from benchmarks.subjects.plain import TARGET, define


class Driver:
    """A GPU that is not there: what `warmup` asks of one."""

    def get_current_target(self):
        return TARGET

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def warm_up(kernel: Kernel):
    """Kick off one compile. Arguments are made up so that Triton specializes to just what the workload says."""
    how = kernel[2]
    arguments = {}
    for index, (name, kind) in enumerate(how["signature"].items()):
        aligned = (index,) in how["attrs"]
        if kind == "constexpr":
            arguments[name] = how["constants"][name]
        elif kind.startswith("*"):
            arguments[name] = MockTensor(kind[1:])
        else:
            arguments[name] = 16 if aligned else 17
    return define(kernel).warmup(**arguments, grid=(1,), **how["options"])


kernels = load(sys.argv[1])
triton.runtime.driver.set_active(Driver())
with ThreadPoolExecutor(int(sys.argv[2])) as executor:
    with AsyncCompileMode(executor):
        futures = [warm_up(kernel) for kernel in kernels]
    binaries = [future.result().asm[BINARY] for future in futures]
report(kernels=len(kernels), digest=digest(binaries))
