"""How long kernels take to compile, as far as a service has seen or heard: it decides who goes first, and who is late.

Pure. Of all configurations of a kernel the longest counts.
"""

from __future__ import annotations

from headstart.model.request import CompileRequest

# Seconds. What an entry says that another host made, or might have, is its maker's word: it must not hold the front of
# the queue, nor the patience with a farm, for as long as that likes.
MOST_BELIEVED = 120.0
_MOST = 20_000  # kernels that are remembered


class Estimates:
    """Of one service."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, str], float] = {}  # by the kernel's name and source

    def of(self, request: CompileRequest) -> float | None:
        """Seconds that a request may take; None: nothing is known."""
        return self._seconds.get(request.kernel)

    def seen(self, request: CompileRequest, seconds: float) -> None:
        """A compile here took so long."""
        self._seconds[request.kernel] = max(seconds, self._seconds.pop(request.kernel, 0.0))
        if len(self._seconds) > _MOST:
            del self._seconds[next(iter(self._seconds))]

    def heard(self, request: CompileRequest, seconds: float) -> None:
        """An entry, from wherever, says that it took so long."""
        self.seen(request, min(MOST_BELIEVED, seconds))
