"""Entries of kernels that nobody has compiled, for tests that look at what becomes of them."""

from __future__ import annotations

from typing import Any

from headstart.artifacts.entry import pack_entry


def packed(key: str, request_digest: str, **changes: Any) -> bytes:
    """The bytes of one; `changes` are arguments of `pack_entry`."""
    fields: dict[str, Any] = {
        "key": key,
        "name": "pointwise",
        "request_digest": request_digest,
        "toolchain": "ef" * 32,
        "target": "cuda:90",
        "components": [],
        "metadata": {"name": "pointwise", "shared": 512},
        "artifacts": {"cubin": b"code"},
        "compile_wall_s": 0.25,
        "compile_cpu_s": 0.25,
        "triton_version": "3.9.0",
        "request": b"",
        "output": "",
    }
    return b"".join(pack_entry(**{**fields, **changes}))
