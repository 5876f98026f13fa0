"""How much of a compile is the front end: `triton.compile` of a workload, the time up to TTGIR taken apart."""

import os
import sys
import time

import triton

from benchmarks.subjects.common import load, report
from benchmarks.subjects.plain import compile_kernel


def watch(*arguments: object) -> object:
    if not arguments:
        return "", ""
    stages = arguments[1]
    lower = stages["llir"]

    def llir(source: object, metadata: object) -> object:
        marks.append(time.process_time())
        return lower(source, metadata)

    stages["llir"] = llir
    return None


marks: list[float] = []
triton.knobs.runtime.add_stages_inspection_hook = watch
front_s = whole_s = 0.0
for number, kernel in enumerate(load(sys.argv[1])):
    began, before = time.process_time(), os.times()
    marks.clear()
    compile_kernel(kernel)
    if number:  # the first one loads what all others find
        front_s += marks[0] - began
        whole_s += sum(os.times()[:4]) - sum(before[:4])
report(front=front_s / whole_s)
