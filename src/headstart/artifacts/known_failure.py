"""A failure that a bundle carries: the kernel does not compile, and need not be tried again to know that.

Sweeps are full of configurations that fail a `static_assert` or that the assembler refuses. Only failures that the same
toolchain finds again are carried: not a crash, a limit, or a machine's trouble. Whoever is told one knows what a worker
would say; what the program is to see, Triton says in the program's process (see `headstart.adapters.triton.adapter`).
"""

from __future__ import annotations

import msgspec

from headstart.artifacts.entry import Entry, pack_entry
from headstart.errors import COMPILE_ERRORS, CompileError, DamagedError
from headstart.model import keys
from headstart.model.request import CompileRequest

KIND = "failure"  # of such an entry, and what its artifact is called
_KINDS = ("source", "compile")
_MOST = 4096  # characters of each text


class _Known(msgspec.Struct, frozen=True):
    kind: str
    summary: str
    stage: str
    raised: str
    message: str
    detail: str


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Known)


def is_known(error: BaseException | None) -> bool:
    """Whether the same toolchain would fail so again, whatever the machine."""
    return isinstance(error, CompileError) and error.kind in _KINDS and bool(error.raised) and not error.needs_program


def pack(request: CompileRequest, digest: str, toolchain: str, error: CompileError) -> Entry:
    """The entry for a bundle.

    Args:
        request: what does not compile; `digest` is its.
        toolchain: digest of the one that does not compile it.
        error: see `is_known`.
    """
    known = _Known(
        error.kind, error.summary[:_MOST], error.stage, error.raised, error.message[:_MOST], error.detail[:_MOST]
    )
    parts = pack_entry(
        key=keys.entry_key(toolchain, digest),
        kind=KIND,
        name=request.name,
        request_digest=digest,
        toolchain=toolchain,
        target=request.target,
        components=[],
        metadata={},
        artifacts={KIND: _encoder.encode(known)},
        compile_wall_s=0.0,
        compile_cpu_s=0.0,
        triton_version="",
        request=b"",
        output="",
    )
    return Entry.from_bytes(b"".join(parts))


def unpack(entry: Entry, request: CompileRequest) -> CompileError:
    """What `pack` was given.

    Raises:
        DamagedError: it is something else.
    """
    try:
        known = _decoder.decode(entry.artifact(KIND))
        cls = COMPILE_ERRORS[known.kind]
    except (msgspec.DecodeError, KeyError) as error:
        raise DamagedError(entry.path or "", f"{request.name}: what is said of its failure cannot be read") from error
    return cls(
        known.summary,
        kernel=request.name,
        target=request.target,
        options=request.options,
        stage=known.stage,
        raised=known.raised,
        message=known.message,
        detail=known.detail,
        advice="a bundle says so: it did not compile when that was made, with the same toolchain",
    )
