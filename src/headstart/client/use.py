"""What a process took out of its bundle, and what it did not: plain data, added up over processes."""

from __future__ import annotations

import operator
from collections.abc import Callable

import msgspec

MOST_MISSED = 1000  # that one process names


_hear: Callable[[], None] | None = None


def hear_of_misses(hear: Callable[[], None]) -> None:
    """Have `hear` called whenever a process compiles, or makes, what no bundle had: it may not live to say so."""
    global _hear
    _hear = hear


def miss() -> None:
    """Something is about to be compiled or made."""
    if _hear is not None:
        _hear()


class Missed(msgspec.Struct, frozen=True, order=True):
    """What a bundle would have saved and did not.

    Attributes:
        name: of the kernel, or `"graph "` and the beginning of torch's key.
        why: it was compiled, or made, all the same; for people.
    """

    name: str
    why: str


class BundleUse(msgspec.Struct):
    """What came out of bundles.

    Attributes:
        kernels: that were asked for and not compiled.
        compiled: how many were compiled all the same.
        cached: how many came from headstart's cache instead.
        saved_s: seconds that `kernels` took to compile, as far as they have been looked at.
        graphs: of torch.compile that were asked for and not made.
        made_graphs: how many were made all the same.
        cached_graphs: how many came from torch's own cache instead.
        remote: how many of the `cached` ones other hosts had compiled (`HEADSTART_REMOTE`).
        in_process: how many kernels Triton compiled in the program's own process.
        missed: what was compiled or made, of each process the first `MOST_MISSED`.
        compiling_s: seconds that the compiles took which workers did for this process.
        waited_s: seconds for which threads were blocked on kernels, added up; 0 where no run's log is kept.
        fell_back: what was left to the program's own process, and why; among `missed` too.
    """

    kernels: int = 0
    compiled: int = 0
    cached: int = 0
    saved_s: float = 0.0
    graphs: int = 0
    made_graphs: int = 0
    cached_graphs: int = 0
    in_process: int = 0
    remote: int = 0
    missed: list[Missed] = msgspec.field(default_factory=list)
    compiling_s: float = 0.0
    waited_s: float = 0.0
    fell_back: list[Missed] = msgspec.field(default_factory=list)

    def __add__(self, other: BundleUse) -> BundleUse:
        mine, others = msgspec.structs.astuple(self), msgspec.structs.astuple(other)
        return BundleUse(*map(operator.add, mine, others))

    @property
    def missed_nothing(self) -> bool:
        """Whether no kernel was compiled and no graph made, wherever."""
        return not (self.compiled or self.made_graphs or self.in_process or self.missed)
