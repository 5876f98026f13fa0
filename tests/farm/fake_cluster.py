"""A cluster without Ray: nodes are objects that a test tells what to do, each with a thread of its own."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Callable
from typing import Any

from entries import packed
from headstart.farm.attending import ConnectionLost, FarmError
from headstart.stores.remote.sealing import Signer, seal
from headstart.wire.farm import Exchange, Exchanged, NodeJob, NodeResult, NodeState, pack, unpack

HERE = "ab" * 32  # a toolchain


def entry(key: str, *, toolchain: str = HERE, request_digest: str = "ef" * 32) -> bytes:
    return packed(key, request_digest, toolchain=toolchain)


def made(job: NodeJob) -> NodeResult:
    """What a node that works answers."""
    return NodeResult(job.ticket, seal(entry(job.key), None))


class FakeNode:
    """What `headstart.farm.node.Node` does, as far as a bridge sees it.

    Attributes:
        outcome: of each job; None: it goes on until `finish`.
        calls: what it was told.
    """

    def __init__(self, *, workers: int = 4, toolchains: tuple[str, ...] = (HERE,)) -> None:
        self.workers = workers
        self.toolchains = toolchains
        self.outcome: Callable[[NodeJob], NodeResult | None] = made
        self.signer: Signer | None = None
        self.calls: list[Exchange] = []
        self.running: dict[int, NodeJob] = {}
        self.answers_calls = threading.Event()
        self.answers_calls.set()
        self.fails = ""
        self.names: list[str] | None = None  # that it says it compiles, whatever it does
        self.is_full = False  # the next results are too much for an object store
        self._incarnation = 1
        self._sessions: dict[str, list[tuple[int, NodeResult]]] = {}
        self._serial = 0
        self._changed = threading.Condition()

    def restart(self) -> None:
        """The actor is a new one, which knows nothing."""
        with self._changed:
            self._incarnation += 1
            self._sessions.clear()
            self.running.clear()
            self._serial = 0
            self._changed.notify_all()

    def finish(self, outcome: Callable[[NodeJob], NodeResult] = made) -> None:
        """What goes on is over."""
        with self._changed:
            for ticket, job in list(self.running.items()):
                del self.running[ticket]
                for session in self._sessions.values():
                    self._answer(session, outcome(job))
            self._changed.notify_all()

    def _answer(self, session: list[tuple[int, NodeResult]], result: NodeResult) -> None:
        self._serial += 1
        session.append((self._serial, result))

    def exchange(self, data: bytes) -> bytes:
        message = unpack(data, Exchange)
        self.calls.append(message)
        assert self.answers_calls.wait(30)
        if self.fails:
            raise FarmError(self.fails)
        with self._changed:
            incarnation = self._incarnation
            session = self._sessions.setdefault(message.session, [])
            session[:] = [each for each in session if each[0] > message.acked]
            for job in message.jobs:
                result = self.outcome(job)
                if result is None:
                    self.running[job.ticket] = job
                else:
                    self._answer(session, result)
            deadline = time.monotonic() + message.wait
            while not session and self._incarnation == incarnation and time.monotonic() < deadline:
                self._changed.wait(deadline - time.monotonic())
            session = self._sessions.get(message.session, [])
            names = [job.key[:8] for job in self.running.values()] if self.names is None else self.names
            state = NodeState(self.workers, names, 0, 0, list(self.toolchains), "3.9.0")
            if session and self.is_full:
                self.is_full = False
                raise FarmError("ObjectStoreFullError")
            serial = session[-1][0] if session else 0
            results = [result for _, result in session]
            return pack(Exchanged(str(self._incarnation), serial, results, list(self.running), False, state))

    def jobs(self) -> list[NodeJob]:
        """All that it was given."""
        return [job for call in self.calls for job in call.jobs]

    def dropped(self) -> list[int]:
        return [ticket for call in self.calls for ticket in call.dropped]


class FakeCluster:
    """See `headstart.farm.attending.Cluster`."""

    def __init__(self, **nodes: FakeNode) -> None:
        self.members = dict(nodes)
        self.why_not = ""
        self.is_lost = False
        self.looks = 0
        self.own: dict[str, FakeNode] = {}  # that it may start by itself
        self.left = False
        self._threads = concurrent.futures.ThreadPoolExecutor(32)

    def join(self) -> None:
        if self.why_not:
            raise FarmError(self.why_not)

    def nodes(self) -> list[str]:
        self.looks += 1
        if self.is_lost:
            raise ConnectionLost("the connection to the cluster is lost")
        return sorted(self.members)

    def bring_up(self) -> bool:
        self.members.update(self.own)
        return bool(self.own)

    def exchange(self, name: str, data: bytes) -> concurrent.futures.Future[Any]:
        if name not in self.members:
            raise FarmError("it is gone")
        return self._threads.submit(self.members[name].exchange, data)

    def leave(self) -> None:
        self.left = True
