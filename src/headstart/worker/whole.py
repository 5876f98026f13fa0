"""Whether an assembler's output is all there: on a full disk ptxas exits with 0, and leaves half a file, or none."""

from __future__ import annotations

import struct
from collections.abc import Mapping

_ELF_64_LITTLE = b"\x7fELF\x02\x01"
_HEADER = struct.Struct("<16x2H I 3Q I 6H")  # elf(5): from e_type on
_SECTION = struct.Struct("<2I 4Q 2I 2Q")
_SEGMENT = struct.Struct("<2I 6Q")
_NO_BITS = 8  # sh_type of a section that takes no room in the file


def cut_short(artifacts: Mapping[str, bytes]) -> str:
    """The name of an artifact of which something is missing; empty if there is none."""
    for name in ("cubin", "hsaco"):
        data = artifacts.get(name)
        if data is not None and not is_whole(data):
            return name
    return ""


def is_whole(data: bytes) -> bool:
    """Whether all that an ELF file speaks of is in it. Any other file is taken for whole, unless it is empty."""
    if not data.startswith(_ELF_64_LITTLE[: len(data)]):
        return True
    if len(data) < _HEADER.size:
        return False
    fields = _HEADER.unpack_from(data)
    segments_at, sections_at = fields[4], fields[5]
    segments, sections = fields[9], fields[11]
    if segments_at + segments * _SEGMENT.size > len(data) or sections_at + sections * _SECTION.size > len(data):
        return False
    for number in range(sections):
        _, kind, _, _, offset, size, *_ = _SECTION.unpack_from(data, sections_at + number * _SECTION.size)
        if kind != _NO_BITS and offset + size > len(data):
            return False
    return True
