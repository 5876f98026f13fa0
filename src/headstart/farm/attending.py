"""A bridge's talk with one node: what it is told, what it says, and for how long it may say nothing.

    send ── Exchange(jobs, dropped, wait 0) ─▶ node     at once, whatever else is under way
    poll ── Exchange(wait POLL) ─────────────▶          one at a time, while the node has something of ours

Ray says when a node is gone. That one is stopped it does not: a call that is not answered in time makes the node
silent, and it is given nothing until it answers. The call goes on: what it brings in the end counts.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from headstart.errors import HeadstartError
from headstart.farm.routing import Routed
from headstart.wire.farm import MAX_SAID, Exchange, Exchanged, NodeJob, pack, unpack

POLL = 2.0  # seconds after which a node says that it has nothing to say
SILENCE = 3.0  # seconds more, after which it is silent
STARTING = 60.0  # seconds that a node's first answer may take: it looks at its toolchain
TRIPS = 9  # calls whose median is what one takes
FIRST_PAUSE = 5.0  # seconds until a node whose greetings fail is greeted a third time; then twice as many each time
MAX_PAUSE = 300.0  # seconds
MOST = 8 << 20  # bytes of results that are asked for in one call
SMALL = 64 << 10  # bytes of results that need no object store
FULL = 60.0  # seconds for which no more are asked for after a call has failed


class FarmError(HeadstartError):
    """A cluster, or a node of it, cannot be used; the text says why, for people."""


class ConnectionLost(FarmError):
    """This process has no connection to the cluster any more, and Ray makes no second one in a process that lives."""


class Cluster(Protocol):
    """What a bridge needs of Ray; `ray_cluster.RayCluster`, and the tests' fake. Each method may take long."""

    def join(self) -> None:
        """Raises FarmError."""

    def nodes(self) -> list[str]:
        """Names of the nodes' actors that there are. Raises FarmError; ConnectionLost."""

    def bring_up(self) -> bool:
        """Start actors that end with this process, if the user has asked for that. Raises FarmError."""

    def exchange(self, name: str, data: bytes) -> concurrent.futures.Future[bytes]:
        """Call a node. The future, or the call, raises FarmError."""

    def leave(self) -> None:
        """End the connection."""


class Attendant:
    """For one node.

    Args:
        name: of the node.
        cluster: where it is.
        signed: whether its entries are to be signed.
        said: told what it says.
        silent: told when it is, and `lost`, with the reason, when a call has failed.
        restarted: told that it knows nothing any more of what it was given.
    """

    def __init__(
        self,
        name: str,
        cluster: Cluster,
        *,
        signed: bool,
        said: Callable[[Attendant, Exchanged], None],
        silent: Callable[[Attendant], None],
        lost: Callable[[Attendant, str], None],
        restarted: Callable[[Attendant], None],
    ) -> None:
        self.name = name
        self.wrong = 0  # answers that were not what was asked for
        self._cluster = cluster
        self._signed = signed
        self._said, self._silent, self._lost, self._restarted = said, silent, lost, restarted
        self._session = os.urandom(8).hex()
        self._incarnation = ""
        self._acked = 0
        self._small_until = float("-inf")  # loop time
        self._polling: asyncio.Task[None] | None = None
        self._sending: set[asyncio.Task[None]] = set()
        self._trips: deque[float] = deque(maxlen=TRIPS)  # seconds, of calls that told it something
        self._pause = 0.0  # seconds that the next greeting is put off if this one fails, too
        self._greet_after = float("-inf")  # loop time

    @property
    def is_busy(self) -> bool:
        """Whether a call waits for its answer."""
        return bool(self._sending) or self._polling is not None

    @property
    def round_trip(self) -> float | None:
        """Seconds that it takes to tell it something, lately; None: it has not been told anything."""
        trips = sorted(self._trips)
        return trips[len(trips) // 2] if trips else None

    def greet(self) -> None:
        """Ask how it is, unless a call waits, or greetings have failed and it is too early for another."""
        now = asyncio.get_running_loop().time()
        if self.is_busy or now < self._greet_after:
            return
        # After the first one it is not: an actor that has just died is soon started again.
        self._greet_after = now + self._pause
        self._pause = min(max(FIRST_PAUSE, 2 * self._pause), MAX_PAUSE)
        self._start(self._exchange([], [], 0.0, STARTING))

    def send(self, jobs: Sequence[Routed] = (), dropped: Sequence[int] = ()) -> None:
        """Tell it of new jobs, or of what is not to begin."""
        told = [
            NodeJob(
                each.job.ticket,
                each.job.key,
                each.job.toolchain,
                each.job.request,
                each.job.vouched,
                each.job.background,
            )
            for each in jobs
        ]
        self._start(self._exchange(told, list(dropped), 0.0, SILENCE))

    def poll(self, wanted: Callable[[], bool]) -> None:
        """Hear what it has to say, as long as that is `wanted`."""
        if self._polling is None:
            self._polling = asyncio.get_running_loop().create_task(self._poll(wanted))

    def leave(self) -> None:
        """Listen no longer."""
        for task in (*self._sending, *filter(None, [self._polling])):
            task.cancel()

    async def said_all(self, seconds: float) -> None:
        """Wait until what was to be sent is answered, for a while."""
        if self._sending:
            await asyncio.wait(set(self._sending), timeout=seconds)

    def _start(self, exchange: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(self._report(exchange))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _poll(self, wanted: Callable[[], bool]) -> None:
        try:
            while wanted():
                await self._exchange([], [], POLL, SILENCE)
        except FarmError as error:
            self._lost(self, str(error))
        finally:
            self._polling = None

    async def _report(self, exchange: Coroutine[Any, Any, None]) -> None:
        try:
            await exchange
        except FarmError as error:
            self._lost(self, str(error))

    async def _exchange(self, jobs: list[NodeJob], dropped: list[int], wait: float, patience: float) -> None:
        """Raises FarmError."""
        loop = asyncio.get_running_loop()
        told = loop.time()
        session = self._session
        most = SMALL if told < self._small_until else MOST
        message = Exchange(session, self._acked, jobs, dropped, wait, most, self._signed)
        # In a thread: Ray may have to write a large argument into an object store that is full.
        call = loop.run_in_executor(None, self._cluster.exchange, self.name, pack(message))
        answer = asyncio.ensure_future(_answer(call))
        try:
            await asyncio.wait({answer}, timeout=wait + patience)
            is_late = not answer.done()
            if is_late:
                self._silent(self)
            data = await answer
        except FarmError:
            if most == SMALL:
                raise
            self._small_until = loop.time() + FULL  # the object store may be full: what is small needs none
            if jobs or dropped or not wait:
                raise
            return
        except asyncio.CancelledError:
            answer.cancel()
            raise
        try:
            said = unpack(data, Exchanged, MAX_SAID)
        except ValueError as error:
            raise FarmError(str(error)) from None
        self._pause, self._greet_after = 0.0, float("-inf")
        if (jobs or dropped) and not is_late:  # a greeting may take as long as the node looks at its toolchain
            self._trips.append(loop.time() - told)
        if said.incarnation != self._incarnation:
            known, self._incarnation = self._incarnation, said.incarnation
            if known:
                self._session, self._acked = os.urandom(8).hex(), 0
                self._restarted(self)
        if session == self._session:
            self._acked = max(self._acked, said.serial)
        self._said(self, said)


async def _answer(call: asyncio.Future[concurrent.futures.Future[bytes]]) -> bytes:
    return await asyncio.wrap_future(await call)
