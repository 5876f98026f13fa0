"""What a manifest holds: specializations that were compiled, with where they came from, and what autotuners chose."""

from __future__ import annotations

import datetime as dt
import math
from typing import Any

import msgspec

from headstart.artifacts.entry import Key
from headstart.model import keys
from headstart.model.request import CompileRequest, check_plain

_encoder = msgspec.msgpack.Encoder(order="deterministic")
_END_OF_TIME = 253402300800.0  # the year 10000, seconds since 1970


_MAX_CLASS_NAME = 200  # characters


def _check_time(seconds: float) -> None:
    if not 0.0 <= seconds < _END_OF_TIME:
        raise ValueError(f"recorded_at: {seconds} is no time")


class Origin(msgspec.Struct, frozen=True, order=True, kw_only=True):
    """Where (part of) a manifest comes from.

    Attributes:
        program: what ran, as `headstart.adapters.recording` names programs; empty if unknown.
        headstart_version: that recorded it.
        triton_version: that the program had, e.g. `"3.6.0"`; empty if unknown.
        toolchain: digest of the toolchain that compiled; empty if unknown.
        torch_version: of the program's torch, if it used torch.compile; else empty.
        recorded_at: when it was last written, seconds since 1970.
    """

    program: str = ""
    headstart_version: str = ""
    triton_version: str = ""
    toolchain: str = ""
    torch_version: str = ""
    recorded_at: float = 0.0

    def __post_init__(self) -> None:
        _check_time(self.recorded_at)

    def undated(self) -> tuple[str, str, str, str, str]:
        """Everything but the time: what makes two origins the same."""
        return self.program, self.headstart_version, self.triton_version, self.toolchain, self.torch_version


class Specialization(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One kernel, as one run needed it.

    Attributes:
        request: what to compile.
        digest: `request.digest()`.
        duration_s: seconds from start to end of its compile; 0 if it was served without one and nobody knows.
        winner: an autotuner chose it in a sweep.
        failed: class of what Triton raised, if it did not compile, as
            `"triton.compiler.errors.CompileTimeAssertionFailure"`; sweeps have such configurations. Empty: it did, or
            nobody knows.
        asked_by: where the program asked for it, `"file:line"`; empty if unknown.
        last_seen: the day (UTC) on which a program last asked for it.
        torch: of a kernel that torch.compile asked for by itself, and not as part of a generated source
            (`headstart.artifacts.generated`): which torch, as `headstart.describe.facts.generation` says it.
            Empty: it is a kernel of the program's own.
    """

    request: CompileRequest
    digest: Key
    duration_s: float = 0.0
    winner: bool = False
    asked_by: str = ""
    last_seen: dt.date = dt.date.min
    failed: str = ""
    torch: str = ""

    def __post_init__(self) -> None:
        if len(self.failed) > _MAX_CLASS_NAME:
            raise ValueError(f"failed: a name of {len(self.failed)} characters")
        if not 0.0 <= self.duration_s < math.inf:
            raise ValueError(f"duration_s: {self.duration_s} is no number of seconds")

    def merged(self, other: Specialization) -> Specialization:
        """The same kernel with what both know."""
        if self == other:
            return self
        later = max(self, other, key=_rank_of_specialization)
        return msgspec.structs.replace(
            later,
            duration_s=max(self.duration_s, other.duration_s),
            winner=self.winner or other.winner,
            failed=max(self.failed, other.failed),
            torch=max(self.torch, other.torch),
        )


class Tuning(msgspec.Struct, frozen=True, kw_only=True):
    """What an autotuner chose for one key.

    Attributes:
        autotuner: which one; whoever records decides how it is told.
        key: the arguments, types and the like that the choice was made for, plain data.
        target: e.g. `"cuda:90"`; another device chooses differently.
        configuration: the choice, plain data, e.g. `{"kwargs": {"BLOCK": 64}, "num_warps": 8}`.
        recorded_at: when the sweep ended, seconds since 1970.
    """

    autotuner: str
    key: Any
    target: str
    configuration: dict[str, Any]
    recorded_at: float = 0.0

    def __post_init__(self) -> None:
        _check_time(self.recorded_at)
        check_plain([self.key], "key")
        check_plain(self.configuration, "configuration")

    def digest(self) -> str:
        """Identity of what was tuned: SHA-256 over autotuner, key and target, hexadecimal."""
        return tuning_digest(self.autotuner, self.key, self.target)

    def merged(self, other: Tuning) -> Tuning:
        """The later choice."""
        return max(self, other, key=lambda tuning: (tuning.recorded_at, _encoder.encode(tuning)))


def tuning_digest(autotuner: str, key: Any, target: str) -> str:
    """Under which a manifest keeps the choice of `autotuner` for `key` on `target`."""
    canonical = _encoder.encode(key).hex()
    return keys.digest((("autotuner", autotuner), ("key", canonical), ("target", target)))


def _rank_of_specialization(each: Specialization) -> tuple[dt.date, str, bytes]:
    return each.last_seen, each.asked_by, _encoder.encode(each.request)
