"""Triton's cache entry, as files: what Inductor's launchers, its bundler and other processes look for.

A folder is written whole or not at all, whoever else writes it at the same time, Triton included.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from pathlib import Path

from headstart.client.kernel import CompiledKernel
from headstart.describe import facts
from headstart.errors import DamagedError

# What Triton's back ends make of a kernel. In Triton's cache lie launchers and drivers too, as libraries that whoever
# finds them loads: what comes out of a bundle becomes none of these.
_KINDS = frozenset(
    {"source", "ttir", "ttgir", "ttgir_opt", "llir", "ptx", "cubin", "sass", "amdgcn", "hsaco", "asm", "spv", "zebin"}
)
_MAX_NAME = 150  # characters of a kernel's name that Triton uses for files


def find(root: str, hash: str, name: str) -> dict[str, str] | None:
    """The files of an entry in Triton's cache folder `root`, by name; None if it is not there."""
    try:
        text = Path(root, facts.hash_folder(hash), _group_file(name)).read_text(encoding="utf-8")
        files: dict[str, str] = json.loads(text)["child_paths"]
    except (OSError, ValueError, KeyError):
        return None
    return files if all(map(os.path.exists, files.values())) else None


def write(root: str, hash: str, name: str, kernel: CompiledKernel) -> dict[str, str]:
    """Make the entry of `hash`, unless it is there; returns its files.

    Raises:
        DamagedError: what is to be written is not whole.
        OSError: it cannot be written.
    """
    if strange := set(kernel.asm) - _KINDS:
        raise DamagedError(name, f"it holds {sorted(strange)!r:.80}, which is no part of a kernel of Triton's")
    found = find(root, hash, name)
    if found is not None:
        return found
    folder = os.path.join(root, facts.hash_folder(hash))
    stem = name[:_MAX_NAME]
    contents = {
        f"{stem}.{kind}": data if isinstance(data, bytes) else data.encode() for kind, data in kernel.asm.items()
    }
    contents[f"{stem}.json"] = json.dumps({**kernel.entry.metadata, "hash": hash}).encode()
    files = {member: os.path.join(folder, member) for member in contents}
    contents[_group_file(name)] = json.dumps({"child_paths": files}).encode()
    part = os.path.join(root, f"tmp.{uuid.uuid4()}")
    os.makedirs(part)
    try:
        for member, data in contents.items():
            Path(part, member).write_bytes(data)
        try:
            os.rename(part, folder)
        except OSError:
            if find(root, hash, name) is None:  # half of one was there: complete it
                for member in contents:
                    os.replace(os.path.join(part, member), os.path.join(folder, member))
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return files


def _group_file(name: str) -> str:
    return f"__grp__{name[:_MAX_NAME]}.json"
