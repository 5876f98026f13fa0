"""Which entries carry code, and what is said of a bundle that has some: what is loaded of them runs as the user.

A kind that is not known here counts as code: what a newer headstart put into a bundle must not be signed by this one as
if it had made it.
"""

from __future__ import annotations

from typing import NamedTuple

from headstart.model import request

GRAPHS = "graphs"  # torch's portable compile artifacts, which are pickles
LAUNCHER = request.LAUNCHER  # shared libraries

# Read as plain data, whoever wrote them: kernels and what is kept beside them.
_PLAIN = frozenset({"kernel", "failure", "recipe", "tail"})


def carries_code(kind: str) -> bool:
    """Whether entries of this kind are loaded from a trusted bundle only."""
    return kind not in _PLAIN


class Verdict(NamedTuple):
    """Whether what carries code may be loaded.

    Attributes:
        trusted: whether it may.
        by: on whose word.
        why_not: otherwise, as the end of "…, because".
        relies_on: `signing.key_id` of the keys without which it would not be.
    """

    trusted: bool
    by: str = ""
    why_not: str = ""
    relies_on: tuple[bytes, ...] = ()
