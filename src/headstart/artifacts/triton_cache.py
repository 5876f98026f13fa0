"""A kernel as an entry of Triton's own cache: what Inductor's launchers, its bundler and other processes look for.

A folder is written whole or not at all, whatever else writes it at the same time, Triton included.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from headstart.artifacts.cubin import registers
from headstart.errors import DamagedError
from headstart.wire import TritonCache

# What Triton's back ends make of a kernel. In Triton's cache lie launchers and drivers too, as libraries that whoever
# finds them loads: what comes out of a bundle becomes none of these.
KINDS = frozenset(
    {"source", "ttir", "ttgir", "ttgir_opt", "llir", "ptx", "cubin", "sass", "amdgcn", "hsaco", "asm", "spv", "zebin"}
)
_MAX_NAME = 150  # characters of a kernel's name that Triton uses for files


def folder_name(hash: str) -> str:
    """The name of the folder of an entry in Triton's cache; `hash`: Triton's own, hexadecimal."""
    return base64.b32encode(bytes.fromhex(hash)).decode().rstrip("=")


def find(folder: str, name: str) -> dict[str, str] | None:
    """The files of the entry in `folder`, by name; None if it is not there.

    Args:
        folder: of the entry, in Triton's cache folder.
        name: of the kernel, as it is in the binary.
    """
    try:
        text = Path(folder, _group_file(name)).read_text(encoding="utf-8")
        files: dict[str, str] = json.loads(text)["child_paths"]
    except (OSError, ValueError, KeyError):
        return None
    return files if all(map(os.path.exists, files.values())) else None


def write(
    folder: str, hash: str, name: str, artifacts: Mapping[str, str | bytes], metadata: Mapping[str, Any]
) -> dict[str, str]:
    """Make the entry in `folder`, unless it is there; returns its files.

    Args:
        folder, name: as for `find`.
        hash: Triton's own, by which it knows the entry.
        artifacts: by kind: `"cubin"`, `"ptx"`, …
        metadata: Triton's, plain data.

    Raises:
        DamagedError: what is to be written is no kernel.
        OSError: it cannot be written.
    """
    if strange := set(artifacts) - KINDS:
        raise DamagedError(name, f"it holds {sorted(strange)!r:.80}, which is no part of a kernel of Triton's")
    found = find(folder, name)
    if found is not None:
        return found
    stem = name[:_MAX_NAME]
    contents = {
        f"{stem}.{kind}": data if isinstance(data, bytes) else data.encode() for kind, data in artifacts.items()
    }
    contents[f"{stem}.json"] = json.dumps({**metadata, "hash": hash}).encode()
    files = {member: os.path.join(folder, member) for member in contents}
    contents[_group_file(name)] = json.dumps({"child_paths": files}).encode()
    part = os.path.join(os.path.dirname(folder), f"tmp.{uuid.uuid4()}")
    os.makedirs(part)
    try:
        for member, data in contents.items():
            Path(part, member).write_bytes(data)
        try:
            os.rename(part, folder)
        except OSError:
            if find(folder, name) is None:  # half of one was there: complete it
                for member in contents:
                    os.replace(os.path.join(part, member), os.path.join(folder, member))
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return files


def keep(place: TritonCache, artifacts: Mapping[str, bytes], metadata: Mapping[str, Any]) -> tuple[bytes, int | None]:
    """Make a kernel an entry where a client wants it. Returns the folder, and registers per thread if they are known.

    Raises:
        DamagedError, OSError: as `write`.
    """
    # As a reader of the entry has it: the files are the same, whichever process writes them.
    plain = msgspec.msgpack.decode(msgspec.msgpack.encode(metadata))
    write(os.fsdecode(place.folder), place.hash, place.name, artifacts, plain)
    return place.folder, registers(artifacts["cubin"], plain["name"]) if "cubin" in artifacts else None


def _group_file(name: str) -> str:
    return f"__grp__{name[:_MAX_NAME]}.json"
