"""Cold: `triton.compile`, one kernel after another, in this process."""

import sys

from benchmarks.subjects.common import BINARY, digest, load, report
from benchmarks.subjects.plain import compile_kernel

kernels = load(sys.argv[1])
binaries = [compile_kernel(kernel).asm[BINARY] for kernel in kernels]
report(kernels=len(kernels), digest=digest(binaries))
