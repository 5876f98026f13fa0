"""The bridge between one service and one Ray cluster, for one set of farm settings.

    service ── Join, then Lend, TakeBack ─▶ Bridge ── Router ─▶ Attendant × nodes ── exchange(bytes) ─▶ nodes
            ◀─ FarmState, Begun, Made, Unmade ─┘          Accepting ◀── results ──┘

It ends when its service is gone, which it hears by EOF however that ended; and when nothing has been lent for a while.
On its way out it takes back what has not begun, for `FINISHING` seconds. Nobody waits for that.

Ray itself runs what other members of the cluster send (pickles): whoever can run code on the cluster can run code in
this process, as this user. docs/security.md says what that means.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from headstart import wire
from headstart.farm.accepting import Accepting
from headstart.farm.attending import Attendant, Cluster, ConnectionLost, FarmError
from headstart.farm.routing import Routed, Router
from headstart.stores.remote.base import plain
from headstart.system.spawn import begin_helper
from headstart.wire.farm import (
    Begun,
    Exchanged,
    FarmNode,
    FarmSays,
    FarmSettings,
    FarmState,
    Join,
    Lend,
    Made,
    MadeEntry,
    TakeBack,
    Unmade,
)

IDLE_TIMEOUT = 300.0  # seconds
FINISHING = 2.0  # seconds, at the service's end, to take back what has not begun
DISCOVERY = 5.0  # seconds between two looks for nodes that have come or gone, while something is out
QUIET_DISCOVERY = 60.0  # seconds, while nothing is
REJOIN = 30.0  # seconds until a cluster that could not be joined is tried again; twice as many each time
MAX_REJOIN = 300.0  # seconds
STATE_INTERVAL = 0.02  # seconds between two words on what there is room for
LIST_INTERVAL = 1.0  # seconds for which the list of nodes, which is long, is not made anew
MOST_WRONG = 3  # answers that were not what was asked for, after which a node is given nothing more
_READ = 1 << 18  # bytes
_MOST_SAID = 1000  # characters of one line to a person


class Bridge:
    """What is done about each message, and about each answer of a node's.

    Args:
        settings: what is served.
        cluster: where nodes are.
        say: tells the service something.
    """

    def __init__(self, settings: FarmSettings, cluster: Cluster, say: Callable[[msgspec.Struct], None]) -> None:
        self._settings = settings
        self._cluster = cluster
        self._say = say
        self._router = Router()
        self._attendants: dict[str, Attendant] = {}
        self._accepting = Accepting(settings, self.tell_quietly)
        self._files = ThreadPoolExecutor(1, "headstart-files")
        self._seen = 0
        self._told: set[str] = set()
        self._said = FarmState()
        self._state_due = False
        self._look = asyncio.Event()
        self._joined = False
        self._is_own = False  # the nodes' actors were started from here, and end with this process
        self._used = 0.0
        self._nodes: list[FarmNode] = []
        self._listed = float("-inf")

    # To the service

    def tell(self, kind: str, text: str) -> None:
        """Have a person told, once for each `kind` of trouble; the log, each time."""
        quiet = kind in self._told
        self._told.add(kind)
        self._say(FarmSays(plain(text, most=_MOST_SAID), quiet))

    def tell_quietly(self, text: str) -> None:
        """Have the log told. May be called in any thread."""
        self._say(FarmSays(plain(text, most=_MOST_SAID), quiet=True))

    def _say_state(self) -> None:
        """Soon: not for each of many answers that come at once."""
        if not self._state_due:
            self._state_due = True
            asyncio.get_running_loop().call_later(STATE_INTERVAL, self._say_state_now)

    def _say_state_now(self) -> None:
        self._state_due = False
        router = self._router
        now = asyncio.get_running_loop().time()
        if now - self._listed > LIST_INTERVAL:
            self._listed = now
            self._nodes = [node.report() for node in router.nodes.values()]
        idle, room = router.offers()
        state = FarmState(
            self._seen,
            idle,
            room,
            self._delay(),
            self._nodes,
        )
        if state != self._said:
            self._said = state
            self._say(state)

    def _delay(self) -> float:
        """Seconds that most nodes take to be told something."""
        usable = [self._attendants[name] for name, node in self._router.nodes.items() if node.usable]
        trips = sorted(trip for each in usable if (trip := each.round_trip) is not None)
        return trips[len(trips) // 2] if trips else 0.0

    # From the service

    def take(self, message: Any) -> None:
        """Do what the service says."""
        self._used = asyncio.get_running_loop().time()
        match message:
            case Lend(jobs, cache_dir, trusted):
                self._seen = max([self._seen, *(job.ticket for job in jobs)])
                self._router.lend(Routed(job, cache_dir, trusted) for job in jobs)
                self._look.set()
                self._route()
            case TakeBack(tickets, late):
                self._take_back(tickets, late)

    def _take_back(self, tickets: Sequence[int], late: bool) -> None:
        dropped: dict[str, list[int]] = {}
        for ticket in tickets:
            for name in self._router.take_back(ticket, wanted=late):
                dropped.setdefault(name, []).append(ticket)
        for name, some in dropped.items():
            self._attendants[name].send(dropped=some)
        self._say_state()

    def _route(self) -> None:
        for name, jobs in self._router.route().items():
            attendant = self._attendants[name]
            attendant.send(jobs)
            attendant.poll(lambda name=name: self._has_something(name))  # type: ignore[misc]
        self._unmade([routed.job.ticket for routed in self._router.hopeless()])
        self._say_state()

    def _has_something(self, name: str) -> bool:
        node = self._router.nodes.get(name)
        return node is not None and bool(node.out)

    # From nodes

    def _hear(self, attendant: Attendant, said: Exchanged) -> None:
        name = attendant.name
        if self._attendants.get(name) is not attendant:
            return
        if said.state.unable:
            self.tell(f"unable {name}", f"{name} compiles nothing: {said.state.unable}")
        if attendant.wrong >= MOST_WRONG:
            why = "it has sent what was not asked for"
            said = msgspec.structs.replace(said, state=msgspec.structs.replace(said.state, toolchains=[], unable=why))
        node = self._router.heard(name, said.state)
        begun = [ticket for ticket in said.begun if ticket in node.out and not node.out[ticket].begun]
        if begun:
            for ticket in begun:
                node.out[ticket].begun = True
            self._say(Begun(begun))
        arrived = [(each, routed) for each in said.results if (routed := self._router.answered(name, each.ticket))]
        wanted = []
        for result, routed in arrived:
            if not routed.wanted:
                continue
            if result.refused:
                self._router.refuse(name, routed.job.toolchain, result.why)
                self.tell(f"refused {name}", f"{name} is not used for this toolchain: {result.why}")
                routed.tries -= 1
                if not self._router.is_under_way(routed):
                    self._router.lend([routed])
            elif result.blob:
                wanted.append((result, routed))
            else:
                self.tell_quietly(f"{name} did not make {routed.job.key[:12]}: {result.why}")
                if not self._router.is_under_way(routed):
                    self._unmade([result.ticket])
        if wanted:
            accepted = asyncio.get_running_loop().run_in_executor(self._files, self._accepting.accept_all, name, wanted)
            accepted.add_done_callback(lambda future: self._accepted(attendant, *future.result()))
        self._route()

    def _accepted(self, attendant: Attendant, made: list[MadeEntry], refused: list[tuple[Routed, str]]) -> None:
        if made:
            self._say(Made(made))
            self._take_back([each.ticket for each in made], late=False)  # where else it was sent
        for routed, why in refused:
            attendant.wrong += 1
            more = "" if attendant.wrong < MOST_WRONG else ". It is given nothing more"
            self.tell(f"wrong {attendant.name}", f"{attendant.name}: {why}{more}")
            node = self._router.nodes.get(attendant.name)
            if node is not None and attendant.wrong >= MOST_WRONG:
                self._router.lose(attendant.name, why, forget=False)
            self._unmade([each.job.ticket for each in self._router.retry([routed])])
        self._route()

    def _silent(self, attendant: Attendant) -> None:
        node = self._router.nodes.get(attendant.name)
        if self._attendants.get(attendant.name) is not attendant or (node is not None and not node.usable):
            return  # another call of it was late before this one
        self.tell(f"silent {attendant.name}", f"{attendant.name} does not answer, and is given nothing until it does")
        over = self._router.lose(attendant.name, "it does not answer", forget=False)
        self._unmade([each.job.ticket for each in over])
        self._route()

    def _lost(self, attendant: Attendant, why: str) -> None:
        if self._attendants.get(attendant.name) is attendant:
            self.tell_quietly(f"{attendant.name}: {why}")
            had_something = self._has_something(attendant.name)
            over = self._router.lose(attendant.name, why, forget=True)
            self._unmade([each.job.ticket for each in over])
            self._route()
            if had_something:
                self._look.set()

    def _restarted(self, attendant: Attendant) -> None:
        over = self._router.lose(attendant.name, "it was started again", forget=True)
        self._unmade([each.job.ticket for each in over])

    def _unmade(self, tickets: list[int]) -> None:
        if tickets:
            self._say(Unmade(tickets))

    # The process

    async def serve(self) -> None:
        """Join the cluster, and look for nodes, until cancelled. Raises ConnectionLost."""
        loop = asyncio.get_running_loop()
        self._used = loop.time()
        pause = REJOIN
        while not self._joined:
            try:
                await loop.run_in_executor(None, self._cluster.join)
                self._joined = True
            except FarmError as error:
                self.tell("join", f"the farm is not used: {error}")
            self._say(wire.Awake())
            if not self._joined:
                await asyncio.sleep(pause)
                pause = min(2 * pause, MAX_REJOIN)
        while True:
            self._look.clear()
            try:
                names = await loop.run_in_executor(None, self._cluster.nodes)
                if self._is_own or not names:  # nodes that come later, too
                    self._is_own = await loop.run_in_executor(None, self._cluster.bring_up)
                    names = await loop.run_in_executor(None, self._cluster.nodes)
                await self._discover(names)
            except ConnectionLost:
                raise
            except FarmError as error:
                self.tell("nodes", f"the farm's nodes cannot be found: {error}")
            pause = DISCOVERY if loop.time() - self._used < QUIET_DISCOVERY else QUIET_DISCOVERY
            await asyncio.sleep(min(1.0, pause))
            try:
                await asyncio.wait_for(self._look.wait(), pause)
            except asyncio.TimeoutError:
                pass

    async def _discover(self, names: list[str]) -> None:
        for name in sorted(set(self._attendants) - set(names)):
            attendant = self._attendants.pop(name)
            attendant.leave()
            over = self._router.lose(name, "it is gone", forget=True)
            self._router.remove(name)
            self._unmade([each.job.ticket for each in over])
        for name in names:
            if name not in self._attendants:
                self._attendants[name] = Attendant(
                    name,
                    self._cluster,
                    signed=self._settings.signed,
                    said=self._hear,
                    silent=self._silent,
                    lost=self._lost,
                    restarted=self._restarted,
                )
            node = self._router.nodes.get(name)
            if node is None or not (node.usable or node.out):
                self._attendants[name].greet()
        if not names:
            self.tell("none", f"the farm at {self._settings.address} has no nodes: headstart farm up starts them")
        self._route()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is out, and has not been for a while."""
        out = any(node.out for node in self._router.nodes.values()) or self._router.waiting
        return not out and asyncio.get_running_loop().time() - self._used > IDLE_TIMEOUT

    async def finish(self) -> None:
        """The service is gone: take back what has not begun, so that nobody compiles it."""
        for name, node in self._router.nodes.items():
            if node.out:
                self._attendants[name].send(dropped=list(node.out))
        await asyncio.gather(*(each.said_all(FINISHING) for each in self._attendants.values()))
        for each in self._attendants.values():
            each.leave()


async def serve(sock: socket.socket, make_cluster: Callable[[FarmSettings], Cluster]) -> None:
    """Until the service is gone, or has lent nothing for a while. Raises ConnectionLost."""
    loop = asyncio.get_running_loop()
    reader, writer = await asyncio.open_connection(sock=sock)
    bridge: Bridge | None = None
    serving: asyncio.Task[None] | None = None
    deframer = wire.Deframer(wire.ToBridge)

    def say(message: msgspec.Struct) -> None:
        data = wire.frame(message)
        try:
            loop.call_soon_threadsafe(writer.write, data)
        except RuntimeError:
            pass  # it ends

    try:
        while True:
            try:
                data = await asyncio.wait_for(reader.read(_READ), IDLE_TIMEOUT)
            except asyncio.TimeoutError:
                if bridge is None or bridge.is_idle:
                    return
                continue
            except ConnectionError:
                data = b""
            if not data:
                break
            for message in deframer.feed(data):
                if isinstance(message, Join):
                    bridge = Bridge(message.settings, make_cluster(message.settings), say)
                    serving = loop.create_task(bridge.serve())
                    serving.add_done_callback(lambda _: reader.feed_eof())
                elif bridge is not None:
                    bridge.take(message)
        if serving is not None and serving.done():
            serving.result()
    finally:
        if serving is not None:
            serving.cancel()
        if bridge is not None:
            await bridge.finish()
        writer.close()


def _ray(settings: FarmSettings) -> Cluster:
    from headstart.farm.ray_cluster import RayCluster

    return RayCluster(settings.address)


def main(argument: str) -> None:
    """Run a bridge process; `argument`: the fd of its socket."""
    sock = begin_helper(argument, "bridge to a farm")
    status = 0
    try:
        asyncio.new_event_loop().run_until_complete(serve(sock, _ray))
    except ConnectionLost as error:
        sys.stderr.write(str(error))  # a new bridge is started, by and by
        status = 1
    sys.stderr.flush()
    os._exit(status)  # threads that wait for Ray are waited for by nobody
