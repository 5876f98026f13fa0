"""An executor that compiles nothing: workers are entries in a dict, and outcomes what a test says."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from headstart import wire
from headstart.service import actions, events
from headstart.service.executor import Payload
from headstart.service.loop import Loop
from headstart.service.queue import Kind

Outcome = Callable[[wire.Assign], wire.Finished | wire.Failure | None]


def echo(order: wire.Assign) -> wire.Finished:
    """A compile whose entry is the key, as text."""
    now = time.monotonic()
    return wire.Finished(stored=False, started=now, finished=now, entry=order.key.encode())


@dataclass
class FakeWorker:
    kind: Kind
    pid: int = 1
    started: float = 0.0


class FakeExecutor:
    """See `headstart.service.executor.Executor`.

    Args:
        happened: is told of events, always at once.
        outcome: of each compile; None: it goes on until it is killed.
        usable: whether workers of a kind can be had.
    """

    def __init__(
        self,
        loop: Loop,
        happened: Callable[[events.FromExecutor], None],
        others: Callable[[], set[int]] = set,
        *,
        outcome: Outcome = echo,
        usable: Callable[[Kind], bool] = lambda kind: True,
    ) -> None:
        self._happened = happened
        self._outcome = outcome
        self._usable = usable
        self._zygotes: set[Kind] = set()
        self._workers: dict[int, FakeWorker] = {}
        self.orders: list[wire.Assign] = []

    @property
    def workers(self) -> Mapping[int, FakeWorker]:
        return self._workers

    @property
    def deadline(self) -> float | None:
        return None

    def carry_out(self, action: actions.ForExecutor) -> None:
        now = time.monotonic()
        match action:
            case actions.StartZygote(kind) if self._usable(kind):
                self._zygotes.add(kind)
                self._happened(events.ZygoteReady(kind, now))
            case actions.StartZygote(kind):
                self._happened(events.ZygoteUnable(kind, "it is of no use", now))
            case actions.EndZygote(kind):
                self._zygotes.discard(kind)
                self._workers = {number: each for number, each in self._workers.items() if each.kind != kind}
            case actions.Fork(number, kind) if kind in self._zygotes:
                self._workers[number] = FakeWorker(kind)
                self._happened(events.WorkerForked(number, now))
            case actions.Assign(number, job):
                self._workers[number].started = now
                payload: Payload = job.payload  # type: ignore[assignment]
                self.orders.append(payload.message(job.prefix, whole=job.whole))
                outcome = self._outcome(self.orders[-1])
                if outcome is not None:
                    self._happened(events.Finished(number, outcome, now))
            case actions.Retire(number) | actions.Kill(number):
                del self._workers[number]
                status = 0 if isinstance(action, actions.Retire) else -9
                self._happened(events.WorkerGone(number, status, "", "", now))

    def memory(self) -> list[int]:
        return [0] * len(self._workers)

    def check_memory(self, limits: Mapping[int, int]) -> None:
        pass

    def replace_stopped(self, now: float) -> None:
        pass

    def look_around(self) -> None:
        pass

    def end(self) -> None:
        self._zygotes.clear()
        self._workers.clear()
