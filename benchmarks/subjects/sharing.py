"""What the subjects that share a service have in common."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import headstart
from benchmarks.subjects.common import TARGET
from headstart import wire
from headstart.client import control, sharing


@contextmanager
def shared_service(workers: int) -> Iterator[headstart.AsyncCompile]:
    """A service of this benchmark's own, warm, and the client that keeps it."""
    folder = tempfile.mkdtemp(prefix="benchmarks-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    os.environ.update(XDG_RUNTIME_DIR=folder, HEADSTART_SERVICE="shared")
    try:
        with headstart.AsyncCompile(TARGET, workers=workers) as keeper:
            for number in range(workers):
                keeper.triton(**small(f"warm{number}")).result()
            yield keeper
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def state() -> wire.Report:
    """Of that service."""
    report = control.ask(sharing.user_socket(), "status")
    assert report is not None
    return report


def small(name: str) -> dict:
    """Arguments of `AsyncCompile.triton` for a kernel that compiles in milliseconds."""
    source = f"import triton\nimport triton.language as tl\n\n@triton.jit\ndef {name}(x):\n    tl.store(x, 1)\n"
    return {"name": name, "source": source, "signature": {"x": "*i32"}}
