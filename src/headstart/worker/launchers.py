"""The C modules that Triton up to 3.6 has built for what it launches, built in a worker: gcc takes 0.4 s for each.

What is relied on of Triton: `triton.runtime.build._build`, which calls the compiler that CC names, and what a backend's
`driver` says of its headers and libraries (`include_dirs`, `library_dirs()`, `libraries`).
"""

from __future__ import annotations

import contextlib
import importlib
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from headstart.model.request import CompileRequest
from headstart.wire import Failure
from headstart.worker.compiling import Compiled
from headstart.worker.refusing import Refused

ARTIFACT = "so"


def build(request: CompileRequest) -> Compiled:
    """Build one, as Triton would in the program.

    Raises:
        Refused: it cannot be built here; the program then has Triton try.
    """
    started = time.monotonic()
    try:
        driver: Any = importlib.import_module(f"triton.backends.{request.options['backend']}.driver")
        builder: Any = importlib.import_module("triton.runtime.build")
        library_dirs = driver.library_dirs() if hasattr(driver, "library_dirs") else []
        with tempfile.TemporaryDirectory() as folder, _compiler(request.compiler):
            source = Path(folder, f"{request.name}.c")
            source.write_text(str(request.source), encoding="utf-8")
            made = builder._build(
                request.name,
                str(source),
                folder,
                list(library_dirs),
                list(driver.include_dirs),
                list(getattr(driver, "libraries", [])),
                [],
            )
            content = Path(made).read_bytes()
    except (ImportError, AttributeError, AssertionError, RuntimeError, OSError, subprocess.SubprocessError) as error:
        raise Refused(Failure("service", f"{request.name} is not built in a worker: {error}")) from error
    return Compiled({ARTIFACT: content}, {}, [], [("cc", round((time.monotonic() - started) * 1e6))])


@contextlib.contextmanager
def _compiler(path: str) -> Iterator[None]:
    before = os.environ.get("CC")
    os.environ["CC"] = path
    try:
        yield
    finally:
        if before is None:
            del os.environ["CC"]
        else:
            os.environ["CC"] = before
