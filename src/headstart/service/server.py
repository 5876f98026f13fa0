"""The process that owns the queue and the other processes, and answers clients.

    client ── Submit ──▶ Server ── Lookup: is it in the store? ──▶ Result
                           └─ Requested ─▶ Engine ─▶ Scheduler ─▶ actions ─▶ ProcessPool: zygotes fork, workers compile
                           └─ Remotes ── LookUp ─▶ a process that has the stores of other hosts
    client ── SubmitSource ─▶ Server ─▶ Sources: a recipe, and from it such Submits
    worker ── Finished ─▶ ProcessPool ─▶ Engine ─▶ Scheduler ─▶ Deliver ─▶ Results ─▶ Result to everyone who asked

One thread and one selector, and a second thread for what may take long (`errands.py`). The server turns what clients
say into events and answers them; it decides nothing itself. It ends when its last client is gone (EOF or pidfd), unless
it was started to stay, and takes everything below it along.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from headstart import wire
from headstart.errors import ServiceError
from headstart.model.toolchain import Toolchain
from headstart.service import events, history
from headstart.service.actions import Action, Assign, Claim, Deliver, ForExecutor, Lend
from headstart.service.capacity import Capacity
from headstart.service.claiming import Claiming
from headstart.service.describers import DescriberKind, Describers
from headstart.service.engine import Engine
from headstart.service.errands import Errands
from headstart.service.executor import Executor
from headstart.service.farms import Farms, wanted_by
from headstart.service.lookup import Lookup
from headstart.service.loop import Loop
from headstart.service.process_pool import ProcessPool
from headstart.service.recipes import Recipes
from headstart.service.remotes import Remotes
from headstart.service.reporting import report
from headstart.service.requests import Requests
from headstart.service.runtime import Owned, Workplace
from headstart.service.scheduler import IDLE_TIMEOUT, Scheduler
from headstart.service.sessions import QUIESCED, Session, Sessions
from headstart.service.sources import Sources
from headstart.system import machine
from headstart.system.confinement import unavailable
from headstart.system.spawn import prefer_standard_library
from headstart.system.titles import set_title
from headstart.wire.config import Config

_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
_GREETING_TIMEOUT = 30.0  # seconds for which a shared service waits for its first client
_MEASURE_INTERVAL = 1.0  # seconds, at least, between two looks at the memory that is left
_STOPPED_INTERVAL = 5.0  # seconds between two looks for processes that somebody has stopped
_MEMORY_INTERVAL = 0.1  # seconds between two looks at the memory of a compile that has a limit
_SHOWN_EVENTS = 50  # of those before a bug

_log = logging.getLogger("headstart.service")

MakeExecutor = Callable[[Loop, Callable[[events.FromExecutor], None], Callable[[], set[int]]], Executor]


class Server:
    """Serves one client, or all that come through a door.

    Args:
        config: see there.
        make_executor: makes what runs compiles, given the loop, whom to tell of events, and the children of this
            process that are none of its own.
    """

    def __init__(self, config: Config, make_executor: MakeExecutor) -> None:
        self._config = config
        self._capacity = Capacity(config.workers, config.memory)
        self._scheduler = Scheduler(config.workers, idle_timeout=config.idle or IDLE_TIMEOUT)
        self._loop = Loop()
        self._engine = Engine(self._scheduler, self._carry_out)
        self._sessions = Sessions(self._loop, self._answer, self._left)
        self._describers = Describers(self._loop, self._sessions.tell)
        self._remotes = Remotes(self._loop, self._sessions.warn_users_of)
        self._executor = make_executor(
            self._loop,
            self._engine.happened,
            lambda: self._describers.pids | self._remotes.pids | self._farms.pids,
        )
        self._farms = Farms(
            self._loop,
            self._engine.happened,
            lambda *made: self._requests.made_elsewhere(*made),
            self._sessions.warn_users_of,
        )
        self._errands = Errands(self._loop)
        self._lookup = Lookup(self.warn)
        self._claiming = Claiming(self._scheduler, self._engine.happened, self._remotes)
        self._requests = Requests(
            self._scheduler,
            self._engine.happened,
            self._executor,
            self._sessions,
            lambda client, message: self._sources.tell(client, message),
            self._errands,
            self._lookup,
            self._remotes,
            self._claiming,
        )
        self._sources = Sources(
            self._sessions, self._describers, Recipes(self._lookup), self._requests, self._errands, self._remotes
        )
        self._draining: list[Session] = []  # those who asked to be told when there are no workers any more
        self._started = time.monotonic()
        self._measured = float("-inf")
        self._watched = float("-inf")
        self._inspected = time.monotonic()
        self._persistent = config.persistent
        self._running = True

    def warn(self, text: str, cache_dir: str | None = None) -> None:
        """Have the clients that use a cache folder, or all, told something. May be called in any thread."""
        self._errands.post(lambda: self._sessions.warn(text, cache_dir))

    def run(self) -> None:
        """Until the last client is gone, or somebody says so."""
        self._sessions.open(self._config)
        try:
            while self._running:
                self._loop.once(self._timeout())
                self._look_around(time.monotonic())
                self._remotes.flush()
                self._farms.flush()
                self._loop.flush()
                if self._sessions.hang_up_on_slow():
                    self._loop.flush()
                self._executor.look_around()
            self._sessions.say_goodbye()
        except SystemExit:
            self._sessions.say_goodbye()
            raise
        except Exception:
            shown = history.lines(self._engine.history.latest(_SHOWN_EVENTS), time.monotonic())
            _log.error("the compile service failed, which is a bug. What happened before:\n%s", "\n".join(shown))
            raise
        finally:
            self._sessions.close()
            self._describers.end()
            self._executor.end()
            self._remotes.end()
            self._farms.end()
            self._errands.close()

    def _look_around(self, now: float) -> None:
        if now - self._measured >= _MEASURE_INTERVAL and self._scheduler.workers:
            self._measured = now
            fitting = self._capacity.fitting(self._executor.memory(), machine.available_memory())
            if fitting != self._scheduler.limit:
                self._engine.happened(events.Resized(fitting, now))
        self._sessions.look_around(now)
        if now - self._watched >= _MEMORY_INTERVAL:
            self._watched = now
            self._executor.check_memory(self._scheduler.memory_limits())
        self._remotes.look_around(now)
        self._farms.look_around(now, lambda: wanted_by(self._scheduler.jobs()))
        if now - self._inspected >= _STOPPED_INTERVAL and (self._scheduler.jobs() or self._others_busy):
            self._inspected = now
            self._executor.replace_stopped(now)
            self._describers.replace_stopped(now)
            self._remotes.replace_stopped(now)
            self._farms.replace_stopped(now)
        self._engine.happened(events.Ticked(now))
        if not (self._scheduler.quiesced and self._scheduler.workers):
            for session in self._draining:
                self._loop.send(session.channel, self._report(now))
            self._draining.clear()
        if self._waits_for_first_client() and now > self._started + _GREETING_TIMEOUT:
            self._running = False

    def _waits_for_first_client(self) -> bool:
        return self._sessions.is_shared and not self._sessions.had_members and not self._persistent

    @property
    def _others_busy(self) -> bool:
        return self._describers.busy or self._remotes.busy or self._farms.busy

    def _timeout(self) -> float | None:
        deadline = self._scheduler.next_deadline()
        waits = [] if deadline is None else [max(0.0, deadline - time.monotonic())]
        dues = (self._executor.deadline, self._sessions.deadline, self._remotes.deadline, self._farms.deadline)
        waits += [due for due in dues if due is not None]
        if self._scheduler.memory_limits():
            waits.append(_MEMORY_INTERVAL)
        if (self._scheduler.jobs() and not self._scheduler.quiesced) or self._others_busy:
            waits.append(_STOPPED_INTERVAL)
        if self._waits_for_first_client():
            waits.append(_GREETING_TIMEOUT)
        return min(waits, default=None)

    # What clients say

    def _left(self, session: Session) -> None:
        """Somebody is gone; more than once does no harm."""
        if session in self._draining:
            self._draining.remove(session)
        self._describers.client_left(session.number)
        self._sources.client_left(session.number)
        self._engine.happened(events.ClientLeft(session.number, time.monotonic()))
        self._give_up_dropped()
        self._stop_if_alone()

    def _give_up_dropped(self) -> None:
        """What nobody wants any more, others need not make, or wait for."""
        self._claiming.drop()
        self._farms.unwanted(lambda key: self._scheduler.in_flight(key) is not None)

    def _stop_if_alone(self) -> None:
        if not self._persistent and self._sessions.nobody:
            self._running = False

    def _answer(self, session: Session, message: Any) -> None:
        match message:
            case wire.Hello():
                self._sessions.greet(session, message)
            case wire.Control(command):
                self._obey(session, command)
            case wire.Supersede():
                self._persistent = False
                self._stop_if_alone()
            case _ if session.hello is None:
                self._sessions.dismiss(session)
            case wire.CountRemotes():
                # What is on its way to be offered is before it in the line.
                self._errands.do(lambda: None, lambda _: self._count_remotes(session))
            case wire.Submit(ticket=ticket) | wire.SubmitSource(ticket=ticket) if ticket < 0:
                self._sessions.dismiss(session)  # these are `Sources`' own
            case wire.Submit():
                self._farms.prepare(session.preferences.farm)  # it may have ended when nothing was lent
                self._requests.submit(session, message)
            case wire.Await(tickets, withdrawn):
                if tickets and self._scheduler.quiesced:
                    self._sessions.notify(session, QUIESCED)
                for number in tickets:
                    if not self._sources.awaited(session, number):
                        self._requests.awaited(session, number)
                if withdrawn:
                    self._requests.withdraw(session, withdrawn)
                    self._give_up_dropped()
            case wire.Prepare(toolchain, vouched=vouched):
                if session.preferences.remote is not None:
                    self._remotes.prepare(session.preferences.remote)
                self._farms.prepare(session.preferences.farm)
                if vouched or not unavailable():
                    self._after_a_look(session, toolchain, lambda: self._prepare(session, message))
            case wire.PrepareDescriber(spec):
                self._after_a_look(
                    session,
                    spec.toolchain,
                    lambda: self._describers.prepare(session.number, self._describer_kind(spec)),
                )
            case wire.SubmitSource(spec=spec):
                self._sources.expect(session, message)
                self._after_a_look(
                    session,
                    spec.toolchain,
                    lambda: self._sources.submit(session, message, self._describer_kind(spec)),
                )

    def _count_remotes(self, session: Session) -> None:
        remote = session.preferences.remote
        counts = wire.RemoteCounts() if remote is None else self._remotes.counts_of(remote)
        self._sessions.tell(session.number, counts)

    def _after_a_look(self, session: Session, toolchain: Toolchain, then: Callable[[], None]) -> None:
        """Once for each client: the toolchain may have been changed since another client came."""
        if session.toolchains.get(toolchain):
            then()
            return
        preferences = session.preferences
        look_again = toolchain not in session.toolchains
        session.toolchains.setdefault(toolchain, False)

        def go_on(_: object) -> None:
            session.toolchains[toolchain] = True
            if self._sessions.has(session):
                then()

        def look() -> None:
            if look_again:
                self._lookup.look_at(toolchain, preferences)

        self._errands.do(look, go_on, functools.partial(self._sessions.dismiss, session))

    def _prepare(self, session: Session, asked: wire.Prepare) -> None:
        kind = self._lookup.kind(asked.toolchain, asked.environment, not asked.vouched)
        self._engine.happened(events.Announced(kind, session.number))

    def _describer_kind(self, spec: wire.DescriberSpec) -> DescriberKind:
        return DescriberKind(spec, self._lookup.generation(spec.toolchain))

    def _obey(self, session: Session, command: str) -> None:
        now = time.monotonic()
        if command in ("quiesce", "quiesce now"):
            self._draining.append(session)  # it is answered when there are no workers any more
            self._engine.happened(events.Quiesced(command == "quiesce now"))
            self._sessions.say_quiesced()
            self._describers.end_idle()
            return
        if command == "events":
            self._loop.send(session.channel, wire.Events(now, self._engine.history.latest()))
            return
        if command == "resume":
            self._sessions.forget_quiesced()
            self._engine.happened(events.Resumed(now))
        elif command == "stop":
            self._running = False
        self._loop.send(session.channel, self._report(now))

    def _report(self, now: float) -> wire.Report:
        return report(
            self._scheduler,
            self._sessions.members(),
            self._executor.workers,
            self._requests.tally,
            now=now,
            started=self._started,
            persistent=self._persistent,
            describers=len(self._describers),
            remotes=self._remotes.counts(),
            farms=self._farms.reports(),
        )

    # Actions

    def _carry_out(self, action: Action) -> None:
        if isinstance(action, Deliver):
            self._requests.deliver(action.job, action.outcome)
            self._farms.settled(action.job.key)
            return
        if isinstance(action, Lend):
            self._farms.lend(action.job)
            return
        if isinstance(action, Claim):
            self._claiming.claim(action.job)
            return
        for_executor: ForExecutor = action
        self._executor.carry_out(for_executor)
        if isinstance(action, Assign):
            self._farms.begun_here(action.job.key)
            started = self._executor.workers[action.worker].started
            for ticket in action.job.tickets:
                self._sources.tell(ticket.client, wire.Started(ticket.number, action.worker, started))


def main(argument: str) -> None:
    """Run a service; `argument` is a `Config` in JSON."""
    prefer_standard_library()
    config = Config.read(argument)
    for fd in (config.client, config.client_pidfd, config.listener):
        if fd >= 0:
            os.set_inheritable(fd, False)
    if config.listener >= 0 and os.fork():
        os._exit(0)  # so that a shared service is no child of the client that happened to be first
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the client decides what Ctrl-C means
    try:
        serve(config)
    except ServiceError as error:
        sys.exit(str(error))  # the last words that a client shows


def serve(config: Config) -> None:
    """Run a service in this process, until it has to end.

    Raises:
        ServiceError: the runtime folder cannot be used.
    """
    logging.basicConfig(stream=sys.stderr, format="%(name)s: %(message)s")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # Two fds for each client, two for each worker.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with contextlib.closing(Workplace()) as workplace:
        if config.listener < 0:
            workplace.note(Owned(os.getpid(), os.getppid()))
        set_title(f"service of {os.getppid()}" if config.listener < 0 else f"service at {config.socket}")
        server = Server(config, functools.partial(_process_pool, workplace))
        workplace.warn = server.warn
        server.run()


def _process_pool(
    workplace: Workplace, loop: Loop, happened: Callable[[events.FromExecutor], None], others: Callable[[], set[int]]
) -> Executor:
    return ProcessPool(loop, happened, workplace, others)
