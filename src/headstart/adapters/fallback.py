"""Falling back: what an adapter leaves to the program's own process, counted and said once."""

from __future__ import annotations

import logging
import threading

from headstart.client.run_log import fell_back
from headstart.client.use import MOST_MISSED, BundleUse, Missed, miss
from headstart.errors import ServiceError
from headstart.system.variables import Mode, mode

_log = logging.getLogger("headstart")


class Fallback:
    """Of one adapter.

    Args:
        whose: what is left alone where headstart steps aside, for people: `"torch.compile"`.
        counts: of the adapter; `in_process` is among them.
    """

    def __init__(self, whose: str, counts: dict[str, int]) -> None:
        self._whose = whose
        self.counts = counts
        self._said: set[str] = set()
        self._left: dict[Missed, None] = {}  # to the program's process, in order
        self._before = 0  # of `in_process`, what the process that this is a fork of has counted
        self._lock = threading.Lock()

    def count(self, what: str, whether: bool = True) -> None:
        """One more of `counts`."""
        if whether:
            with self._lock:
                self.counts[what] += 1

    def say(self, text: str, once_for: str = "") -> None:
        """Tell a person: each text once, or only the first about `once_for`."""
        if (once_for or text) not in self._said:
            self._said.add(once_for or text)
            _log.warning("%s", text)

    def steps_aside(self, reason: str) -> None:
        """Headstart does nothing while there is a reason.

        Raises:
            ServiceError: `HEADSTART=require`.
        """
        if mode() is Mode.REQUIRE:
            raise ServiceError(f"headstart would have to step aside: {reason}")
        self._leave(self._whose, f"headstart leaves them alone: {reason}")
        self.say(f"headstart leaves {self._whose} alone: {reason}")

    def in_process(self, name: str, reason: str, *, counted: bool = True) -> None:
        """One kernel is compiled in this process.

        Raises:
            ServiceError: `HEADSTART=require`.
        """
        if mode() is Mode.REQUIRE:
            raise ServiceError(f"{name} would have to be compiled in this process: {reason}")
        self.count("in_process", counted)
        self._leave(name, f"compiled in the program's process: {reason}")
        self.say(f"{name} is compiled in this process: {reason}", once_for=name)

    def without_service(self, error: ServiceError) -> None:
        """Nothing can be compiled elsewhere just now.

        Raises:
            ServiceError: `HEADSTART=require`.
        """
        if mode() is Mode.REQUIRE:
            raise error
        self.count("in_process")
        self._leave(self._whose, f"compiled in the program's process: {error}")
        self.say(f"kernels are compiled in this process: {error}")

    def our_mistake(self, error: Exception | None = None) -> None:
        """A bug of ours must not be the program's."""
        self.count("in_process")
        self._leave(self._whose, f"compiled in the program's process: headstart failed ({error})")
        _log.error("headstart's adapter for %s failed; this is a bug", self._whose, exc_info=error or True)

    @property
    def use(self) -> BundleUse:
        """What no bundle could save."""
        left = list(self._left)
        return BundleUse(in_process=self.counts["in_process"] - self._before, missed=left, fell_back=left)

    def _leave(self, name: str, why: str) -> None:
        miss()
        if len(self._left) < MOST_MISSED:
            self._left[Missed(name, why)] = None
            fell_back(name, why)

    def report(self) -> None:
        """At the end: how many were left."""
        if self.counts["in_process"]:
            _log.warning("%d kernels were compiled in this process", self.counts["in_process"])

    def after_fork(self) -> None:
        """In a fork, which tells only its own; another thread may have held the lock."""
        self._lock = threading.Lock()
        self._left = {}
        self._before = self.counts["in_process"]
