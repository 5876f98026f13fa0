"""zstd (RFC 8878) as bundles use it: one frame per entry, with another entry as its dictionary or none.

`zstandard` is imported by the functions: only those who write or read what is packed need it.
"""

from __future__ import annotations

from typing import Any

MAX_BYTES = 512 * 2**20  # that anything may take unpacked
_LEVEL = 9  # more takes much longer and saves little


def dictionary_of(data: bytes) -> Any:
    """For `pack` and `unpack`, with `data` as it is for content."""
    import zstandard

    return zstandard.ZstdCompressionDict(data, dict_type=zstandard.DICT_TYPE_RAWCONTENT)


def pack(data: bytes, dictionary: Any) -> bytes:
    """One frame. The same data and dictionary give the same bytes with the same version of zstd."""
    import zstandard

    return zstandard.ZstdCompressor(level=_LEVEL, dict_data=dictionary, write_dict_id=False).compress(data)


def unpack(packed: bytes, size: int, dictionary: Any) -> bytes | None:
    """What `pack` packed into exactly `size` bytes; None if it is nothing of the kind."""
    import zstandard

    try:
        # Whatever else it says, no frame gets more room than the caller was promised that it needs.
        if size > MAX_BYTES or zstandard.frame_content_size(packed) != size:
            return None
        data: bytes = zstandard.ZstdDecompressor(dict_data=dictionary).decompress(packed, max_output_size=size)
    except (zstandard.ZstdError, MemoryError):
        return None
    return data if len(data) == size else None
