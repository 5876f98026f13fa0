"""What a fork of the process (multiprocessing, a DataLoader) has to let go of, or to make anew.

Another thread may have held a lock at the moment of the fork, and nobody in the fork will ever let go of it; sockets
and child processes are the parent's.
"""

from __future__ import annotations

import itertools
import os
import weakref
from typing import Protocol


class Renewed(Protocol):
    """Something that a fork has a copy of."""

    def after_fork(self) -> None:
        """Called in the fork, before anything else runs in it."""


_numbers = itertools.count()
_parts: weakref.WeakValueDictionary[int, Renewed] = weakref.WeakValueDictionary()  # in the order in which they came


def renew_in_forks(part: Renewed) -> None:
    """Have `part.after_fork()` called in every fork, for as long as there is such a part."""
    _parts[next(_numbers)] = part


def _renew() -> None:
    for part in list(_parts.values()):
        part.after_fork()


os.register_at_fork(after_in_child=_renew)
