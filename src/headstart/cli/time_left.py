"""How long what is asked for will take: from durations on record, and from what has been compiled meanwhile. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

_COMPARED = 2  # compiles that say how much slower, or faster, this machine is than the one that recorded
_LEAST_KNOWN = 0.5  # of what is pending, the part whose duration has to be known for a guess about all of it


@dataclass
class _Known:
    """Durations of one kernel's configurations."""

    seconds: float = 0.0
    number: int = 0

    def add(self, seconds: float) -> None:
        self.seconds += seconds
        self.number += 1


@dataclass
class TimeLeft:
    """Of one build. Its methods may be called by any thread: at worst a guess is a moment old.

    Attributes:
        workers: compiles at a time.
    """

    workers: int
    _pending: dict[int, tuple[str, float]] = field(default_factory=dict)
    _known: dict[str, _Known] = field(default_factory=dict)
    _recorded: _Known = field(default_factory=_Known)  # what was expected of those that are there
    _took: float = 0.0  # seconds, and what they took

    def asked(self, which: int, kernel: str, seconds: float = 0.0) -> None:
        """A compile is asked for.

        Args:
            which: it, for `answered`.
            kernel: its name: configurations of one kernel tell of each other.
            seconds: that it took when it was recorded; 0: nobody knows.
        """
        self._pending[which] = kernel, seconds

    def answered(self, which: int, seconds: float = 0.0) -> None:
        """It is there, or has failed. It took so many seconds, now or when it was compiled first; 0: nobody knows."""
        kernel, expected = self._pending.pop(which, ("", 0.0))
        if expected > 0.0 and seconds > 0.0:
            self._recorded.add(expected)
            self._took += seconds
        if kernel and seconds > 0.0:
            self._known.setdefault(kernel, _Known()).add(seconds)

    def left(self, running: Sequence[tuple[str, float]]) -> float | None:
        """Seconds until everything that is asked for by now is there; None: too little is known.

        Args:
            running: what workers compile now: the kernel's name, and for how many seconds it has been at it.
        """
        pending = list(self._pending.values())
        slower = self._took / self._recorded.seconds if self._recorded.number >= _COMPARED else 1.0
        expected = [seconds * slower or self._mean(kernel) for kernel, seconds in pending]
        known = [seconds for seconds in expected if seconds is not None]
        if not pending or len(known) < _LEAST_KNOWN * len(pending):
            return None
        mean = sum(known) / len(known)
        work = sum(mean if seconds is None else seconds for seconds in expected)
        spent = sum(min(age, self._mean(kernel) or mean) for kernel, age in running)
        # No schedule ends before the longest one does, which may be what runs now.
        longest = max(known)
        oldest = max((age for _, age in running), default=0.0)
        return max((work - spent) / max(1, self.workers), longest - oldest, 0.0)

    def _mean(self, kernel: str) -> float | None:
        known = self._known.get(kernel)
        return known.seconds / known.number if known else None


def words(seconds: float) -> str:
    """A guess for people: `"about 40 s left"`, `"about 3 min left"`."""
    if seconds < 1.5:
        return "a moment left"
    if seconds < 90:
        return f"about {seconds if seconds < 10 else round(seconds, -1 if seconds > 20 else 0):.0f} s left"
    return f"about {seconds / 60:.0f} min left"
