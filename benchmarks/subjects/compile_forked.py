"""Cold: a ProcessPoolExecutor forked from this process after Triton was imported."""

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor

from benchmarks.subjects.common import BINARY, Kernel, digest, load, report
from benchmarks.subjects.plain import compile_kernel


def compile_one(kernel: Kernel) -> bytes:
    return compile_kernel(kernel).asm[BINARY]


kernels = load(sys.argv[1])
with ProcessPoolExecutor(int(sys.argv[2]), mp_context=multiprocessing.get_context("fork")) as executor:
    binaries = list(executor.map(compile_one, kernels))
report(kernels=len(kernels), digest=digest(binaries))
