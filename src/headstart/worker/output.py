"""What a worker, Triton and its tools print while one kernel is compiled.

Standard output and standard error each go to a file in the worker's folder, which the service reads if the worker
dies. Warnings of Python's are kept as what they are: the program has filters of its own for them.
"""

from __future__ import annotations

import contextlib
import linecache
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from headstart.wire import CompileLog, Warned
from headstart.wire.worker_folder import STREAMS

_MOST = 16 << 20  # bytes of each that are passed on


class Output:
    """The output of this process. Make one per process: it takes over its descriptors.

    Args:
        folder: the worker's.
    """

    def __init__(self, folder: str) -> None:
        for fd, name in STREAMS.items():
            file = os.open(os.path.join(folder, name), os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(file, fd)
            os.close(file)
        self._warned: list[Warned] = []

    def begin(self) -> None:
        """Forget what was printed."""
        for fd in STREAMS:
            os.ftruncate(fd, 0)
        self._warned = []

    @contextlib.contextmanager
    def warnings(self) -> Iterator[None]:
        """Keep the warnings that are given meanwhile, all of them."""
        _forget_warnings_given_once()
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            vars(warnings)["showwarning"] = self._note  # which `catch_warnings` puts back
            yield

    def _note(self, message: Any, category: type[Warning], filename: str, lineno: int, *_: Any) -> None:
        self._warned.append(
            Warned(
                category=f"{category.__module__}.{category.__qualname__}",
                text=str(message),
                filename=filename,
                line=lineno,
                # Where it is given says how: `warn_once` has it point at its caller.
                once="warn_once" in linecache.getline(filename, lineno),
            )
        )

    def printed(self) -> int:
        """Bytes, in all, and warnings as a byte each: whether more was said."""
        _flush()
        return sum(os.fstat(fd).st_size for fd in STREAMS) + len(self._warned)

    def log(self, times: list[tuple[str, int]]) -> CompileLog:
        """What was printed since `begin`."""
        _flush()
        stdout, stderr = (_beginning(fd) for fd in STREAMS)
        return CompileLog(stdout, stderr, self._warned, times)


def _beginning(fd: int) -> str:
    size = os.fstat(fd).st_size
    text = os.pread(fd, min(size, _MOST), 0).decode(errors="replace")
    return text if size <= _MOST else f"{text}\n[headstart leaves out {size - _MOST} bytes]\n"


def _forget_warnings_given_once() -> None:
    """Triton gives some warnings once in a process, and a worker compiles for many."""
    once: Any = getattr(sys.modules.get("triton._utils"), "warn_once", None)
    if once is not None:
        once.cache_clear()


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
