"""Kernels that crash the compiler or never end, remembered, so that they are not tried again by every program.

One file per kernel, `failed/<key>.json` in the cache folder, beside the plans that reproduce failures. The key contains
the toolchain: another Triton tries again by itself.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

from headstart.system.files import replace
from headstart.system.private import Swept, make_folder, read, refusal
from headstart.wire import Failure

REMEMBERED_KINDS = ("crash", "timeout", "memory")  # of failures; all others are found out again in no time


class RememberedFailure(msgspec.Struct):
    """Why a kernel is not tried again: it ran out of `time_limit`, seconds, or of `memory_limit`, bytes, or crashed."""

    key: str
    kernel: str
    target: str
    failure: Failure
    time_limit: float | None = None
    memory_limit: int | None = None


_decoder = msgspec.json.Decoder(RememberedFailure)


class Failures:
    """What is remembered in one cache folder."""

    def __init__(self, cache_dir: str | os.PathLike[str]) -> None:
        self._folder = Path(cache_dir, "failed")

    def find(self, key: str, time_limit: float | None, memory_limit: int | None = None) -> Failure | None:
        """Why `key` would fail within these limits, or None if it should be tried."""
        remembered = self._read(self._folder / f"{key}.json")
        if remembered is None or remembered.key != key or not self._is_private():
            return None
        if _has_more(time_limit, remembered.time_limit) or _has_more(memory_limit, remembered.memory_limit):
            return None
        return remembered.failure

    def remember(self, what: RememberedFailure) -> None:
        """Write it down; a folder that cannot be written remembers nothing."""
        with contextlib.suppress(OSError):
            make_folder(self._folder)
            if self._is_private():
                replace(self._folder / f"{what.key}.json", msgspec.json.encode(what))

    def forget(self, kernel: str) -> list[RememberedFailure]:
        """Have kernels tried again: by name, or by the beginning of a key. Returns what was remembered of them."""
        forgotten = []
        with Swept(self._folder) as swept:
            for name in sorted(name for name, _ in swept.files() if name.endswith(".json")):
                remembered = self._read(self._folder / name)
                if remembered is None or name != f"{remembered.key}.json":
                    continue
                if remembered.kernel == kernel or remembered.key.startswith(kernel):
                    swept.remove(name)
                    forgotten.append(remembered)
        return forgotten

    @staticmethod
    def decode(data: bytes) -> RememberedFailure | None:
        """What a file holds; None if it is none of these."""
        try:
            return _decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None

    def _read(self, path: Path) -> RememberedFailure | None:
        try:
            return self.decode(read(path))
        except OSError:
            return None

    def _is_private(self) -> bool:
        """Anybody else who could write there could have made a failure up, or have us write elsewhere."""
        return not refusal(self._folder)


def _has_more(limit: float | None, ran_out_of: float | None) -> bool:
    return ran_out_of is not None and (limit is None or limit > ran_out_of)
