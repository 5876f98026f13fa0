"""Where Inductor keeps a kernel in Triton's cache; `artifacts/triton_cache.py` says how it lies there."""

from __future__ import annotations

import functools
import os
from typing import NamedTuple

from headstart import wire
from headstart.artifacts import triton_cache
from headstart.client.kernel import CompiledKernel
from headstart.describe import facts

_SAMPLE = "0123456789abcdef" * 4  # a hash


class Made(NamedTuple):
    """What the service said of a kernel that is in Triton's cache already.

    `registers`: per thread, if its binary says.
    """

    registers: int | None


@functools.cache
def are_as_the_service_makes_them() -> bool:
    """Whether Inductor calls the folders of entries as a service does, which cannot ask it."""
    return facts.hash_folder(_SAMPLE) == triton_cache.folder_name(_SAMPLE)


def place(root: str, hash: str, name: str) -> wire.TritonCache | None:
    """Where the entry of `hash` in Triton's cache folder `root` is to be, for a worker to write it.

    None if only this process knows where that is: a relative folder is where the program is by then.
    """
    if not os.path.isabs(root):
        return None
    return wire.TritonCache(os.fsencode(_folder(root, hash)), hash, name)


def find(root: str, hash: str, name: str) -> dict[str, str] | None:
    """The files of an entry in Triton's cache folder `root`, by name; None if it is not there."""
    return triton_cache.find(_folder(root, hash), name)


def write(root: str, hash: str, name: str, kernel: CompiledKernel) -> dict[str, str]:
    """Make the entry of `hash`, unless it is there; returns its files.

    Raises:
        DamagedError: what is to be written is not whole.
        OSError: it cannot be written.
    """
    if (found := find(root, hash, name)) is not None:
        return found
    return triton_cache.write(_folder(root, hash), hash, name, dict(kernel.asm), kernel.entry.metadata)


def _folder(root: str, hash: str) -> str:
    return os.path.join(root, facts.hash_folder(hash))
