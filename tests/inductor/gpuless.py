"""Code generation for an H100 that is not there, with what only tests need: stock's pool, and a note of each compile.

    import gpuless                 # before torch
    with gpuless.gpuless():
        gpuless.codegen(fn, *args)      # args: made in here, device="cuda"

Subprocess workers get the same driver: `SubprocPool` starts the program that `find_compile_subproc_binary` names,
which is a script that installs the driver and then runs torch's own entry point.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from headstart.adapters.inductor import without_gpu
from headstart.model.target import Target

H100 = Target.parse("cuda:90")

codegen = without_gpu.codegen


def cache_folder() -> Path:
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "headstart-tests"
    folder = Path(os.environ.get("HEADSTART_TEST_CACHE", default))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def install() -> None:
    """The driver, and a line of JSON in the file that GPULESS_LOG names for each `triton.compile`, hit or not."""
    without_gpu.install_triton_driver(H100)
    log = os.environ.get("GPULESS_LOG")
    if not log:
        return
    from triton import knobs

    def listener(*, src: Any, metadata: Any, metadata_group: Any, times: Any, cache_hit: bool) -> None:
        line = {"pid": os.getpid(), "name": src.name, "hash": metadata["hash"], "hit": cache_hit, "us": times.total}
        with open(log, "a") as stream:
            stream.write(json.dumps(line) + "\n")

    knobs.compilation.listener = listener


def compiles(log: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """What `GPULESS_LOG` holds."""
    return [json.loads(line) for line in Path(log).read_text().splitlines()] if Path(log).exists() else []


def worker_program() -> str:
    """An executable that runs torch's compile worker with the driver installed."""
    text = (
        f"#!{sys.executable}\n"
        "import sys\n"
        f"sys.path[:0] = {[str(Path(__file__).parent), str(Path(without_gpu.__file__).parents[2])]!r}\n"
        "import gpuless\n"
        "gpuless.install()\n"
        "import torch\n"
        "from torch._inductor.compile_worker.__main__ import main\n"
        "main()\n"
    )
    path = cache_folder() / f"gpuless-worker-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    if not path.exists():
        part = path.with_suffix(f".{os.getpid()}")
        part.write_text(text)
        part.chmod(part.stat().st_mode | stat.S_IXUSR)
        part.rename(path)
    return str(path)


@contextlib.contextmanager
def gpuless() -> Iterator[None]:
    """`without_gpu.pretend`, for stock's pool too."""
    import torch._inductor.compile_worker.subproc_pool as subproc_pool

    with without_gpu.pretend(H100), mock.patch.object(subproc_pool, "find_compile_subproc_binary", worker_program):
        install()
        yield


without_gpu.load_shim(cache_folder())
