"""Runs one program's work once and again, and prints one line of JSON about it. Knows nothing of headstart."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import torch


def run(work: Callable[[], list[torch.Tensor]], begun: float) -> None:
    """`work` launches kernels and returns what they computed; `begun`: `time.perf_counter()` at the start."""
    from triton import knobs

    compiles: list[tuple[bool, float]] = []

    def listener(*, times: Any, cache_hit: bool, **_: Any) -> None:
        compiles.append((cache_hit, times.total / 1e6))

    knobs.compilation.listener = listener
    torch.cuda.synchronize()
    started = time.perf_counter()
    outputs = work()
    torch.cuda.synchronize()
    first = time.perf_counter() - started
    again = time.perf_counter()
    work()
    torch.cuda.synchronize()
    print(
        json.dumps(
            {
                "first_call_s": first,
                "second_call_s": time.perf_counter() - again,
                "before_s": started - begun,
                "compiled_in_process": sum(not hit for hit, _ in compiles),
                "compiled_in_process_s": sum(seconds for hit, seconds in compiles if not hit),
                "hits_in_process": sum(hit for hit, _ in compiles),
                "hits_in_process_s": sum(seconds for hit, seconds in compiles if hit),
                "norms": [float(output.float().norm()) for output in outputs],
                "gpu": torch.cuda.get_device_name(),
                "torch": torch.__version__,
            }
        ),
        flush=True,
    )
