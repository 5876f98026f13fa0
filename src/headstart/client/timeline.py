"""What became of the requests: counts, and when each kernel was compiled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from headstart import wire
    from headstart.client.asked import Kickoff
    from headstart.client.kernel_log import KernelLog
    from headstart.client.run_log import RunLog
    from headstart.model.request import CompileRequest

Origin = Literal["worker", "store", "bundle", "failed", "cancelled", "pending"]


class Statistics(msgspec.Struct, frozen=True):
    """What became of the requests so far. What is pending or cancelled is in the first count only.

    Attributes:
        requested: calls of `triton`.
        compiled: answered by a worker.
        cached: answered by the store or a bundle.
        deduplicated: answered by the future of an earlier request.
        failed: answered by an error.
        cpu_s: CPU seconds of all compiles, tools included.
        longest_s: CPU seconds of the longest one.
        workers: how many compiles may run at once.
        remote: of the cached ones, those that other hosts had compiled (`HEADSTART_REMOTE`).
        farm: of the cached ones, those that a farm has compiled for this request (`HEADSTART_FARM`).
    """

    requested: int
    compiled: int
    cached: int
    deduplicated: int
    failed: int
    cpu_s: float
    longest_s: float
    workers: int
    remote: int = 0
    farm: int = 0

    def __add__(self, other: Statistics) -> Statistics:
        """Of both, which have the same workers."""
        return Statistics(
            requested=self.requested + other.requested,
            compiled=self.compiled + other.compiled,
            cached=self.cached + other.cached,
            deduplicated=self.deduplicated + other.deduplicated,
            failed=self.failed + other.failed,
            cpu_s=self.cpu_s + other.cpu_s,
            longest_s=max(self.longest_s, other.longest_s),
            workers=self.workers,
            remote=self.remote + other.remote,
            farm=self.farm + other.farm,
        )


class Span(msgspec.Struct, frozen=True):
    """One kernel on the timeline; times are `time.monotonic()` seconds, None where it did not happen (yet).

    Attributes:
        name: of the kernel.
        kicked_off: when `triton` was called.
        started: when a worker began; None if it came from a cache.
        finished: when the result was there.
        worker: which worker compiled it, or -1.
        origin: who had it, or `"failed"`, `"cancelled"` or `"pending"`.
    """

    name: str
    kicked_off: float
    started: float | None
    finished: float | None
    worker: int
    origin: Origin


class TimelineEntry(msgspec.Struct, frozen=True):
    """One distinct request, and what has become of it.

    Attributes:
        name: of the kernel.
        kicked_off: `time.monotonic()` seconds.
        kickoff: its way through the service; None: a bundle had the kernel.
        request: of one that a bundle had, for the run's log.
    """

    name: str
    kicked_off: float
    kickoff: Kickoff | None
    request: CompileRequest | None = None

    @property
    def result(self) -> wire.Result | None:
        """What the service answered, unless it failed or is pending."""
        answer = None if self.kickoff is None else self.kickoff.answer
        if answer is None or not answer.done() or answer.cancelled() or answer.exception() is not None:
            return None
        return answer.result()

    @property
    def origin(self) -> Origin:
        """See `Span`."""
        if self.kickoff is None:
            return "bundle"
        if not self.kickoff.answer.done():
            return "pending"
        if self.result is None:
            return "cancelled" if self.kickoff.answer.cancelled() else "failed"
        return "store" if self.result.cached else "worker"

    def span(self) -> Span:
        kickoff, result = self.kickoff, self.result
        if kickoff is None:
            return Span(self.name, self.kicked_off, None, self.kicked_off, -1, "bundle")
        started = result.started if result is not None and not result.cached else kickoff.started
        return Span(self.name, self.kicked_off, started, kickoff.finished, kickoff.worker, self.origin)


class Requests(list[TimelineEntry]):
    """The distinct requests of one AsyncCompile, in order. The run's log is told of each.

    Args:
        log: that of the client.
    """

    def __init__(self, log: RunLog) -> None:
        super().__init__()
        self._log = log

    def note(self, entry: TimelineEntry) -> KernelLog | None:
        """One more; returns whom to tell more of it, if anything is written down."""
        # A bundled kernel's request, with its source, is for the log alone: it need not be kept as long as this list.
        self.append(entry if entry.request is None else msgspec.structs.replace(entry, request=None))
        return self._log.asked(entry)


def statistics(asked: Sequence[TimelineEntry], deduplicated: int, workers: int) -> Statistics:
    """The counts over `asked`, of which each is distinct, and over `deduplicated` requests that were not."""
    origins = [request.origin for request in asked]
    results = [result for request in asked if (result := request.result) is not None]
    seconds = [result.cpu_s for result in results]
    return Statistics(
        requested=len(asked) + deduplicated,
        compiled=origins.count("worker"),
        cached=origins.count("store") + origins.count("bundle"),
        deduplicated=deduplicated,
        failed=origins.count("failed"),
        cpu_s=sum(seconds),
        longest_s=max(seconds, default=0.0),
        workers=workers,
        remote=sum(result.remote for result in results),
        farm=sum(result.farm for result in results),
    )
