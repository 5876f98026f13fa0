"""What a kernel's cubin says of it: registers per thread, as `cuFuncGetAttribute(NUM_REGS)` does once it is loaded, and
bytes of local memory per thread, which are what did not fit into registers (spills), and arrays.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

_LONG_RECORD = 4  # EIFMT_SVAL: a record of .nv.info with a value of its own
_REGCOUNT = 0x2F  # EIATTR_REGCOUNT: index of a function's symbol, registers
_FRAME_SIZE = 0x11  # EIATTR_FRAME_SIZE: index of a function's symbol, bytes
_SYMBOL_SIZE = 24  # bytes of an Elf64_Sym


class Section(NamedTuple):
    """Where a section of an ELF file lies, in bytes."""

    offset: int
    size: int


def registers(cubin: bytes, kernel: str) -> int | None:
    """Registers per thread of the function named `kernel`; None if the file does not say, or is no cubin."""
    return _value(cubin, _REGCOUNT, kernel)


def local_bytes(cubin: bytes, kernel: str) -> int | None:
    """Bytes of local memory per thread of the function named `kernel`; None as for `registers`."""
    return _value(cubin, _FRAME_SIZE, kernel)


def _value(cubin: bytes, attribute: int, kernel: str) -> int | None:
    try:
        return _found(cubin, dict(sections(cubin)), attribute, kernel)
    except (struct.error, ValueError, KeyError, IndexError):
        return None


def sections(elf: bytes) -> Iterator[tuple[str, Section]]:
    """Names and places of the sections of a 64-bit little-endian ELF file."""
    (offset,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQIIQQ", elf, offset + i * size) for i in range(count)]
    strings = headers[names][4]
    for header in headers:
        yield _text(elf, strings + header[0]), Section(header[4], header[5])


def _found(cubin: bytes, found: dict[str, Section], wanted: int, kernel: str) -> int | None:
    info, symbols, strings = found[".nv.info"], found[".symtab"], found[".strtab"]
    at, end = info.offset, info.offset + info.size
    while at + 4 <= end:
        form, attribute, size = struct.unpack_from("<BBH", cubin, at)
        if form == _LONG_RECORD and attribute == wanted:
            symbol, count = struct.unpack_from("<II", cubin, at + 4)
            (name,) = struct.unpack_from("<I", cubin, symbols.offset + symbol * _SYMBOL_SIZE)
            if _text(cubin, strings.offset + name) == kernel:
                return int(count)
        at += 4 + (size if form == _LONG_RECORD else 0)
    return None


def _text(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode()
