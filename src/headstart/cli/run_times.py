"""Where the seconds of runs went: what was compiled, who was blocked meanwhile, and what of the compiling was hidden.

One compile may answer several processes (ranks that ask one service for the same kernel); it is counted once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from headstart.artifacts import runs
from headstart.artifacts.run_records import TICK, Head

Span = tuple[float, float]  # from, to; seconds
Identity = tuple[str, str, int, int]  # host, key and digest, worker, and which of those

_SAME = 3 * TICK  # seconds: two processes count ticks from different beginnings on


class Compile(NamedTuple):
    """What a worker did once.

    Attributes:
        kernel: of the process that asked first.
        process: its place in the run; `askers`: those of all that it answered.
        span: on the run's clock.
    """

    kernel: runs.Kernel
    process: int
    askers: set[int]
    span: Span


class Compiles:
    """Tells compiles apart, over processes and runs."""

    def __init__(self) -> None:
        self._begun: dict[tuple[str, str, int], list[float]] = {}

    def told(self, kernel: runs.Kernel, head: Head) -> tuple[Identity, bool]:
        """What tells the compile that answered `kernel` from others, and whether this is the first time."""
        which = (head.host, f"{kernel.key} {kernel.digest}", kernel.worker)
        began = head.zero + (kernel.began or 0.0)
        known = self._begun.setdefault(which, [])
        number = next((n for n, each in enumerate(known) if kernel.key and abs(each - began) < _SAME), len(known))
        if number == len(known):
            known.append(began)
            return (*which, number), True
        return (*which, number), False


def compiles(run: runs.Run) -> list[Compile]:
    """Of one run, each once."""
    known = Compiles()
    found: list[Compile] = []
    places: dict[Identity, int] = {}
    for number, process in enumerate(run.processes):
        offset = offset_of(process.head, run.head)
        for kernel in process.kernels.values():
            if kernel.began is None or not kernel.compile_s:
                continue
            identity, is_new = known.told(kernel, process.head)
            if not is_new:
                found[places[identity]].askers.add(number)
                continue
            places[identity] = len(found)
            began = offset + kernel.began
            found.append(Compile(kernel, number, {number}, (began, began + kernel.compile_s)))
    return found


def offset_of(head: Head, first: Head) -> float:
    """Seconds from a run's beginning to that of a process; one of another host is placed by its own clock."""
    return head.zero - first.zero if head.host == first.host else head.began - first.began


def blocked(process: runs.Process) -> list[Span]:
    """When any of its threads was blocked on a kernel."""
    return union((begun, begun + took) for kernel in process.kernels.values() for begun, took, _ in kernel.waits)


def blocked_s(process: runs.Process) -> float:
    """Seconds in which any of its threads was blocked on a kernel."""
    return total_s(blocked(process))


def hidden_s(run: runs.Run, made: list[Compile]) -> float:
    """Seconds in which something was compiled and nobody who had asked for it was blocked, on any kernel.

    What is compiled side by side is hidden once: so many seconds would the program have taken longer at least.
    """
    waits = [
        [(offset + begun, offset + ended) for begun, ended in blocked(process)]
        for process, offset in ((each, offset_of(each.head, run.head)) for each in run.processes)
    ]
    groups: dict[frozenset[int], list[Span]] = {}
    for each in made:
        groups.setdefault(frozenset(each.askers), []).append(each.span)
    return total_s(
        union(
            span
            for askers, spans in groups.items()
            for span in without(union(spans), union(wait for asker in askers for wait in waits[asker]))
        )
    )


def union(spans: Iterable[Span]) -> list[Span]:
    """The same time in spans that do not touch, in order."""
    found: list[Span] = []
    for begun, ended in sorted(spans):
        if found and begun <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], ended)
        else:
            found.append((begun, ended))
    return found


def without(spans: list[Span], others: list[Span]) -> Iterator[Span]:
    """What of `spans` is in none of `others`; of both, none touch, and they are in order."""
    first = 0
    for begun, ended in spans:
        at = begun
        while first < len(others) and others[first][1] <= at:
            first += 1
        for other_begun, other_ended in others[first:]:
            if other_begun >= ended:
                break
            if other_begun > at:
                yield at, other_begun
            at = max(at, other_ended)
        if at < ended:
            yield at, ended


def total_s(spans: Iterable[Span]) -> float:
    """How long all of them are."""
    return sum(ended - begun for begun, ended in spans)
