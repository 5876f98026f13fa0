"""The code generator of `examples/`, from nothing to all binaries: compiles kicked off `during` or `after` generation.

Both ways the service starts first, so that what differs is only when the requests are made.
"""

import sys
import time

from examples import codegen

import headstart
from benchmarks.subjects.common import BINARY, TARGET, report

when, workers = sys.argv[1], int(sys.argv[2])
with headstart.AsyncCompile(target=TARGET, workers=workers) as async_compile:
    cpu = time.thread_time()
    if when == "during":
        text = codegen.generate(async_compile)
        generate_cpu_s = time.thread_time() - cpu
    else:
        collected = []
        text = codegen.generate(async_compile, define_kernel=lambda *kernel: collected.append(kernel))
        generate_cpu_s = time.thread_time() - cpu
        for name, source, how in collected:
            async_compile.triton(name, source, **how)
    generated = time.monotonic()
    scope = codegen.run_module(text, async_compile)
    kernels = [value for value in scope.values() if isinstance(value, headstart.CompiledKernel)]
    size = sum(len(kernel.asm[BINARY]) for kernel in kernels)
    statistics, timeline = async_compile.statistics, async_compile.timeline
report(
    kernels=len(kernels),
    binary_bytes=size,
    compiled=statistics.compiled,
    generate_cpu_s=generate_cpu_s,
    compile_cpu_s=statistics.cpu_s,
    done_when_generated=sum(span.finished <= generated for span in timeline),
)
