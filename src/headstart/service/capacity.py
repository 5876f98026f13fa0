"""How many workers there is room for. Pure: what was measured comes in."""

from __future__ import annotations

from collections.abc import Sequence

WORKER_MEMORY = 256 << 20  # bytes that a worker is expected to need until one has needed more
RESERVE = 256 << 20  # bytes of the machine's memory that are left to others


class Capacity:
    """What workers were seen to need, and how many of them fit.

    Args:
        most: how many workers there may be where there is memory.
        allowance: bytes that all workers together may use; None: what the machine has.
    """

    def __init__(self, most: int, allowance: int | None = None) -> None:
        self.most = most
        self.allowance = allowance
        self._each = WORKER_MEMORY

    def fitting(self, used: Sequence[int], available: int | None) -> int:
        """How many workers there may be now; at least one.

        Args:
            used: bytes, of each worker that there is.
            available: bytes that the machine has left; None: unknown.
        """
        self._each = max(self._each, *used, 0)
        rooms = []
        if available is not None:
            rooms.append(available - RESERVE)
        if self.allowance is not None:
            # A worker that has just been forked has used nothing yet, and will.
            rooms.append(self.allowance - sum(max(one, self._each) for one in used))
        if not rooms:
            return self.most
        return max(1, min(self.most, len(used) + min(rooms) // self._each))
