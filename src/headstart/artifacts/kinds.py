"""Which entries carry code: what is loaded of them runs as the user, so only a trusted bundle's are.

A kind that is not known here counts as code: what a newer headstart put into a bundle must not be signed by this one as
if it had made it.
"""

from __future__ import annotations

GRAPHS = "graphs"  # torch's portable compile artifacts, which are pickles
LAUNCHER = "launcher"  # shared libraries

# Read as plain data, whoever wrote them: kernels and what is kept beside them.
_PLAIN = frozenset({"kernel", "failure", "recipe", "tail"})


def carries_code(kind: str) -> bool:
    """Whether entries of this kind are loaded from a trusted bundle only."""
    return kind not in _PLAIN
