"""What subjects share. Imports as little as it can: a subject's own start is part of what is measured."""

import marshal
import os
import sys
import time

TARGET = "cuda:90"
BINARY = "cubin"

Kernel = tuple[str, str, dict]  # name, source, arguments of AsyncCompile.triton


def load(path: str) -> list[Kernel]:
    """A workload written by `benchmarks.workloads`."""
    with open(path, "rb") as stream:
        return marshal.load(stream)  # noqa: S302 - made by the benchmark itself a moment ago


def report(**said: object) -> None:
    """End with what the benchmark reads."""
    import json

    print(json.dumps(said))


def since_spawned() -> float:
    """Seconds since the benchmark started this process."""
    return time.clock_gettime(time.CLOCK_MONOTONIC) - float(os.environ["BENCHMARKS_SPAWNED"])


def digest(binaries: list[bytes]) -> str:
    """Of all binaries, in the order of the workload: equal if two subjects made the same."""
    from hashlib import sha256

    whole = sha256()
    for binary in binaries:
        whole.update(sha256(binary).digest())
    return whole.hexdigest()[:16]


def loaded(*modules: str) -> list[str]:
    """Which of these have been imported."""
    return [module for module in modules if module in sys.modules]
