"""Triton's own cache, as a live program has it: what is in it, and workers' kernels as entries of it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from headstart.adapters.triton import compat
from headstart.adapters.triton.asks import PendingCompile
from headstart.client.kernel import CompiledKernel


class Entries:
    """Looks entries up and writes them, through the manager of caches that the program uses.

    Args:
        say: tells a person.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._folder: Path | None = None
        self._key_thread: threading.Thread | None = None

    def compute_key_early(self) -> None:
        """The first look into Triton's cache waits for its key, in a program without headstart too: compute it now."""
        self._key_thread = threading.Thread(target=compat.compute_key, name="headstart-jit", daemon=True)
        with contextlib.suppress(RuntimeError):  # no more threads: then it is computed when it is needed
            self._key_thread.start()

    def _wait_for_key(self) -> None:
        # Computing it twice at once would take longer.
        thread = self._key_thread
        if thread is not None and thread.ident is not None:
            thread.join()
            self._key_thread = None

    def has(self, what: compat.CompileCall) -> bool:
        """Whether Triton's cache has all of it."""
        self._wait_for_key()
        try:
            return bool((compat.cache_manager(what.hash).get_group(what.file) or {}).get(what.file))
        except (OSError, ValueError):  # it cannot be made; Triton 3.6 and a damaged group
            return False

    def write(self, ask: PendingCompile, kernel: CompiledKernel) -> dict[str, str]:
        """Make a kernel an entry of Triton's cache, or, where that cannot be written, a folder of our own."""
        what = ask.what
        metadata = json.dumps({**kernel.entry.metadata, "hash": what.hash})
        contents = {f"{what.stem}.{kind}": data for kind, data in kernel.asm.items()} | {what.file: metadata}
        try:
            manager = compat.cache_manager(what.hash)
            group = {name: manager.put(data, name, binary=isinstance(data, bytes)) for name, data in contents.items()}
            manager.put_group(what.file, group)
        except OSError as error:
            self._say(f"Triton's cache cannot be written: {error}")
            group = ask.group = self._write_aside(ask, contents)
        return group

    def _write_aside(self, ask: PendingCompile, contents: dict[str, Any]) -> dict[str, str]:
        with self._lock:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="headstart-"))
                weakref.finalize(self, _remove, self._folder, os.getpid())
            folder = self._folder / ask.what.hash
        folder.mkdir(exist_ok=True)
        for name, data in contents.items():
            (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
        return {name: str(folder / name) for name in contents}

    def close(self) -> None:
        """Remove what had to be written elsewhere."""
        with self._lock:
            folder, self._folder = self._folder, None
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def after_fork(self) -> None:
        """Let go of what is the parent's."""
        self._reset()


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # a fork has the same finalizer, and not the same folder
        shutil.rmtree(folder, ignore_errors=True)
