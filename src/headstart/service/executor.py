"""What runs compiles: a cut point. `process_pool.ProcessPool` does it here, with zygotes and workers.

An executor is told by actions and answers by events (`actions.py`, `events.py`); it decides nothing, and knows no
scheduler.
`tests/test_executor.py` holds the contract, and a fake that compiles nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from headstart import wire
from headstart.service.actions import ForExecutor


class Running(Protocol):
    """A worker, for those who report on it. `pid` is 0 until it runs; `started`: its job, monotonic seconds."""

    @property
    def pid(self) -> int: ...

    @property
    def started(self) -> float: ...


class Executor(Protocol):
    """Runs compiles. What becomes of them it reports as events, at once or later, in its service's thread."""

    @property
    def workers(self) -> Mapping[int, Running]:
        """Those that were forked and are not gone, by number."""

    @property
    def deadline(self) -> float | None:
        """Seconds until `look_around` is to be called at the latest; None: nothing is due."""

    def carry_out(self, action: ForExecutor) -> None:
        """Do what the scheduler says; never raises. `Assign`'s payload has a `message()` for the worker."""

    def memory(self) -> list[int]:
        """Bytes that each worker uses."""

    def check_memory(self, limits: Mapping[int, int]) -> None:
        """Report workers that use more than their limit, in bytes."""

    def replace_stopped(self, now: float) -> None:
        """Report, and replace, what somebody has stopped (SIGSTOP) and left so."""

    def look_around(self) -> None:
        """Do what is due."""

    def end(self) -> None:
        """End every process."""


class Payload(Protocol):
    """What a job carries for its executor."""

    def message(self, prefix: bytes, *, whole: bool) -> wire.Assign:
        """What the worker is told; `prefix` and `whole` are as in `queue.Job`."""
