"""What a confined worker says, taken for bytes that anybody may have written.

    confined worker ── Finished, with the entry ──▶ service: read, check, pack anew, publish
                    ── Failure ──▶                  service: what it says to people, and nothing that is acted on

The worker has run what nobody vouches for, and may not be the program any more that it was. What it can decide is what
becomes of its own request: artifacts, Triton's metadata, text. All else of an entry the service knows by itself.
"""

from __future__ import annotations

import math
import os
import re

import msgspec

from headstart.artifacts.entry import Entry, pack_entry
from headstart.errors import DamagedError
from headstart.model import keys
from headstart.model.captured import CapturedSource
from headstart.model.request import CompileRequest, check_plain
from headstart.wire import CompileLog, Failure, Finished, Warned, encode

_SHOWN = 64 << 10  # characters of each text that are passed on
_MAX_SHARED = 1 << 31  # bytes of shared memory that anybody believes
_MAX_CPU = 1e6  # seconds
_KINDS = frozenset({"source", "compile", "crash", "service", "timeout", "memory"})
_MOST = 100  # warnings, and stages
_WARNING = re.compile(r"builtins\.\w*Warning", re.ASCII)
_ARTIFACT = re.compile(r"[a-z][a-z0-9_]{0,31}")
_KERNEL = re.compile(r"[\w.$]{1,1024}", re.ASCII)
_CLASS = re.compile(r"(builtins|triton\.compiler\.errors|triton\.runtime\.errors)\.\w+", re.ASCII)


class NotBelieved(Exception):
    """What a worker sent is not what a compile makes; the text says why."""


def without_what_is_not_identity(request: CompileRequest) -> CompileRequest:
    """The request that a confined worker is given: of requests with one key always the same.

    File names are not part of a key. They decide debug lines, and, if somebody means harm, where `inspect` looks for a
    source.
    """
    source = request.source
    if isinstance(source, CapturedSource):
        functions = [msgspec.structs.replace(function, filename=f"{function.name}.py") for function in source.functions]
        source = msgspec.structs.replace(source, functions=functions)
    return msgspec.structs.replace(request, source=source, filename=f"{request.name}.py")


def entry_parts(
    key: str, toolchain: str, request: CompileRequest, outcome: Finished, log: CompileLog, wall_s: float
) -> tuple[list[bytes], int]:
    """The entry of what was compiled, packed here, and the bytes of shared memory that the kernel needs.

    Raises:
        NotBelieved: the worker did not send one.
    """
    try:
        entry = Entry.from_bytes(outcome.entry)
        artifacts = {name: entry.artifact(name) for name in entry.artifact_names}
        check_plain(entry.metadata, "metadata")
    except (DamagedError, ValueError) as error:
        raise NotBelieved(str(error)) from None
    for name in artifacts:
        if not _ARTIFACT.fullmatch(name):
            raise NotBelieved(f"{name[:40]!r} is no name of an artifact")
    kernel = entry.metadata.get("name")
    if not isinstance(kernel, str) or not _KERNEL.fullmatch(kernel):
        raise NotBelieved("its metadata names no kernel")
    shared = entry.metadata.get("shared") or 0
    if type(shared) is not int or not 0 <= shared < _MAX_SHARED:
        raise NotBelieved("its metadata says that it needs an impossible amount of shared memory")
    try:
        parts = pack_entry(
            key=key,
            name=request.name,
            request_digest=request.digest(),
            toolchain=toolchain,
            target=request.target,
            components=[("format", keys.KEY_FORMAT), ("toolchain", toolchain), *request.components()],
            metadata=entry.metadata,
            artifacts=artifacts,
            compile_wall_s=wall_s,
            compile_cpu_s=cpu_seconds(outcome),
            triton_version=shown(str(entry.metadata.get("triton_version", "")))[:64],
            request=encode(request),
            output=log.text,
        )
    except (ValueError, TypeError, OverflowError) as error:
        raise NotBelieved(str(error)) from None
    return parts, shared


def cpu_seconds(outcome: Finished) -> float:
    """What it says that it took, as far as that can be."""
    return min(max(outcome.cpu_s, 0.0), _MAX_CPU) if math.isfinite(outcome.cpu_s) else 0.0


def log_of(log: CompileLog | None) -> CompileLog:
    """What was printed, as text, and warnings of Python's own kinds. A program that shows one looks for its file."""
    if log is None:
        return CompileLog()
    warned = [
        Warned(each.category, shown(each.text), f"<{shown(os.path.basename(each.filename))[:80]}>", 1, each.once)
        for each in log.warnings[:_MOST]
        if _WARNING.fullmatch(each.category)
    ]
    times = [(stage, took) for stage, took in log.times[:_MOST] if _ARTIFACT.fullmatch(stage) and 0 <= took < 1 << 40]
    return CompileLog(shown(log.stdout), shown(log.stderr), warned, times)


def failure_of(failure: Failure) -> Failure:
    """The same failure without what a client would act on: files to write, classes to import, commands to run."""
    return Failure(
        failure.kind if failure.kind in _KINDS else "compile",
        shown(failure.summary).replace("\n", " "),
        stage=shown(failure.stage)[:40],
        detail=shown(failure.detail),
        output=shown(failure.output),
        advice=shown(failure.advice),
        raised=failure.raised if _CLASS.fullmatch(failure.raised) else "",
        message=shown(failure.message),
        log=None if failure.log is None else log_of(failure.log),
    )


def shown(text: str) -> str:
    """Text for a terminal: it moves no cursor, and has an end."""
    text = text[:_SHOWN]
    odd = {each for each in set(text) if not (each.isprintable() or each in "\n\t")}
    return text.translate(dict.fromkeys(map(ord, odd), "\N{REPLACEMENT CHARACTER}"))
