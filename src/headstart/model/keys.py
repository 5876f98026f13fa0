"""Identity: what makes two compiles the same, and what made them differ.

A key is SHA-256 over named components in a fixed order, each name and value length-prefixed, so that no two lists of
components can run together into the same bytes. Names and values are text, and are kept in each entry: a key can
always be explained.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Sequence
from itertools import zip_longest

KEY_FORMAT = "2"  # raised whenever the meaning of a component changes

Component = tuple[str, str]


def digest(components: Iterable[Component]) -> str:
    """SHA-256 of `components`, hexadecimal."""
    parts: list[bytes] = []
    for name, value in components:
        for text in (name, value):
            data = text.encode()
            parts.append(len(data).to_bytes(8, "little"))
            parts.append(data)
    return hashlib.sha256(b"".join(parts)).hexdigest()


def entry_key(toolchain: str, request: str) -> str:
    """The key of the entry that `toolchain` makes of `request`; both are digests."""
    return digest((("format", KEY_FORMAT), ("toolchain", toolchain), ("request", request)))


def explain(before: Sequence[Component], after: Sequence[Component]) -> list[str]:
    """Why the key of `after` is not the key of `before`: one line per difference, none if they are the same.

    >>> explain([("options.num_warps", "4")], [("options.num_warps", "8")])
    ['options.num_warps was 4, now 8']
    """
    old, new = dict(before), dict(after)
    names = list(dict.fromkeys([*old, *new]))
    return [_difference(name, old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)]


def _difference(name: str, old: str | None, new: str | None) -> str:
    if old is None:
        return f"{name} was not given, now {new}"
    if new is None:
        return f"{name} was {old}, now not given"
    if "\n" not in old + new:
        return f"{name} was {old}, now {new}"
    lines = zip_longest(_lines(old), _lines(new))
    for number, (left, right) in enumerate(lines, start=1):
        if left != right:
            was, now = ("nothing" if side is None else repr(side) for side in (left, right))
            return f"{name} differs first at line {number}: was {was}, now {now}"
    return f"{name} differs in its line endings"


def _lines(text: str) -> list[str]:
    """As Python reads a file: a form feed, or U+2028, ends no line."""
    return [line.rstrip("\n") for line in io.StringIO(text, newline=None)]
