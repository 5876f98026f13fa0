"""The process that owns the queue and the other processes, and answers clients.

    client ── Submit ──▶ server ── is it in the store? ──▶ Result
                            └─ plan.requested ─▶ actions ─▶ zygotes fork, workers compile
    worker ── Finished ─▶ server ── plan.finished ─▶ Deliver ─▶ Result to everyone who asked

One thread, one selector. The server turns what happens into events of the plan and carries out the actions that come
back; it decides nothing itself. It ends when its last client is gone (EOF or pidfd), unless it was started to stay, and
takes everything below it along.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import msgspec

from headstart import keys, machine, wire
from headstart.environment import bypass_reason
from headstart.errors import ServiceError, StoreUnavailable
from headstart.request import CompileRequest
from headstart.service import plan
from headstart.service.capacity import Capacity
from headstart.service.config import Config
from headstart.service.confinement import unavailable
from headstart.service.describers import Describers
from headstart.service.describers import Kind as DescriberKind
from headstart.service.door import Door, Peer
from headstart.service.failures import REMEMBERED_KINDS, Failures, RememberedFailure
from headstart.service.herd import Herd
from headstart.service.intake import (
    NotBelieved,
    cpu_seconds,
    entry_parts,
    failure_of,
    log_of,
    shown,
    without_what_is_not_identity,
)
from headstart.service.loop import Loop
from headstart.service.queue import Job as PlannedJob
from headstart.service.queue import Kind, Ticket, Urgency
from headstart.service.reporting import Tally, report
from headstart.service.reproduce import write_plan
from headstart.service.runtime import Workplace
from headstart.service.toolchains import Toolchains
from headstart.store import DiskStore
from headstart.toolchain import Toolchain
from headstart.trust import check_environment, unvouched

_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
_STRAY_INTERVAL = 0.05  # seconds between looks at killed tools that are not dead yet
_PRUNE_SHARE = 0.05  # of the store's limit: how much is published between looks at its size
_GREETING_PATIENCE = 30.0  # seconds for which a shared service waits for its first client
_MEASURE_INTERVAL = 1.0  # seconds, at least, between two looks at the memory that is left
_STOPPED_INTERVAL = 5.0  # seconds between two looks for processes that somebody has stopped
_SHUT_FOR = 0.5  # seconds until those outside are asked in again
_MEMORY_INTERVAL = 0.1  # seconds between two looks at the memory of a compile that has a limit
MAX_BACKLOG = 16 << 20  # bytes of answers that are kept for a client that does not read them
_MAX_ESTIMATES = 20_000  # kernels whose compile time is remembered
# Of a compile that nobody vouches for, unless the client sets limits of its own.
CONFINED_TIME_LIMIT = 120.0  # seconds
CONFINED_MEMORY_LIMIT = 4 << 30  # bytes

_log = logging.getLogger("headstart.service")


class Job(msgspec.Struct, frozen=True):
    """A plan's payload: what a worker is told, and where the entry goes."""

    key: str
    toolchain: str
    request: CompileRequest
    use_store: bool
    cache_dir: str
    early_cutoff: bool
    trusted: bool
    torch_dir: str
    confined: bool = False


class Client:
    """Somebody who has connected; one of those who ask for kernels once `hello` is there."""

    def __init__(self, number: int, peer: Peer) -> None:
        self.number = number
        self.pid = peer.pid
        self.pidfd = peer.pidfd
        self.channel = wire.Channel(peer.socket, wire.FromClient)
        self.hello: wire.Hello | None = None
        self.since = time.monotonic()
        self.jobs: dict[int, str] = {}  # ticket number: the plan's key of its job
        self.told: set[str] = set()  # notices
        self.toolchains: set[Toolchain] = set()

    @property
    def cache_dir(self) -> str | None:
        return None if self.hello is None else os.fsdecode(self.hello.preferences.cache_dir)


class Server:
    """Serves one client, or all that come through a door.

    Args:
        config: see there.
        workplace: for its workers' folders.
    """

    def __init__(self, config: Config, workplace: Workplace) -> None:
        self._config = config
        self._capacity = Capacity(config.workers, config.memory)
        self._plan = plan.Plan(config.workers, idle_timeout=config.idle or plan.IDLE_TIMEOUT)
        self._loop = Loop()
        self._describers = Describers(self._loop, self._tell)
        self._herd = Herd(self._loop, self._plan, self._carry_out, workplace, lambda: self._describers.pids)
        self._door: Door | None = None
        self._clients: dict[int, Client] = {}
        self._numbers = count()
        self._draining: list[Client] = []  # those who asked to be told when there are no workers any more
        self._stores: dict[str, DiskStore] = {}
        self._toolchains = Toolchains()
        self._estimates: dict[tuple[str, str], float] = {}  # kernel's name and source: seconds
        self._parting: set[Client] = set()  # who have been hung up on, and are still being told so
        self._looking_at: str | None = None  # the cache folder that warnings are about
        self._published: Counter[str] = Counter()  # bytes by cache folder, since its store was last pruned
        self._tally = Tally()
        self._started = time.monotonic()
        self._measured = float("-inf")
        self._watched = float("-inf")
        self._inspected = time.monotonic()
        self._door_shut = float("inf")  # since when, for lack of file descriptors
        self._lingers = config.lingers
        self._had_clients = False
        self._running = True

    def run(self) -> None:
        """Until the last client is gone, or somebody says so."""
        logging.getLogger("headstart").addHandler(_Notifier(self._warn))
        if self._config.listener >= 0:
            self._door = Door(socket.socket(fileno=self._config.listener), Path(self._config.socket))
            self._loop.watch(self._door, self._answer_the_door)
        else:
            self._admit(
                Peer(socket.socket(fileno=self._config.client), os.getppid(), self._config.client_pidfd)
            )
        try:
            while self._running:
                self._loop.once(self._patience())
                self._look_around(time.monotonic())
                self._loop.flush()
                if self._part_with_those_who_do_not_read():
                    self._loop.flush()
                self._herd.reap_strays()
            self._say_goodbye()
        except SystemExit:
            self._say_goodbye()
            raise
        finally:
            if self._door is not None:
                self._loop.unwatch(self._door)
                self._door.close(wire.frame(wire.Leaving()))
            self._describers.end()
            self._herd.end()

    def _look_around(self, now: float) -> None:
        if now - self._measured >= _MEASURE_INTERVAL and self._plan.workers:
            self._measured = now
            fitting = self._capacity.fitting(self._herd.memory(), machine.available_memory())
            if fitting != self._plan.limit:
                self._carry_out(self._plan.resize(fitting, now))
        if self._door is not None and now > self._door_shut + _SHUT_FOR:
            self._door_shut = float("inf")
            self._loop.watch(self._door, self._answer_the_door)
        if now - self._watched >= _MEMORY_INTERVAL:
            self._watched = now
            for number, evidence in self._herd.swollen(self._plan.memory_limits()):
                self._carry_out(self._plan.swollen(number, evidence))
        if now - self._inspected >= _STOPPED_INTERVAL and (self._plan.jobs() or self._describers.busy):
            self._inspected = now
            self._herd.replace_stopped(now)
            self._describers.replace_stopped(now)
        self._carry_out(self._plan.tick(now))
        if not (self._plan.quiesced and self._plan.workers):
            for client in self._draining:
                self._loop.send(client.channel, self._report(now))
            self._draining.clear()
        if self._waits_for_first_client() and now > self._started + _GREETING_PATIENCE:
            self._stop()

    def _waits_for_first_client(self) -> bool:
        return self._door is not None and not self._had_clients and not self._lingers

    def _stop(self, mask: int = 0) -> None:
        self._running = False

    def _patience(self) -> float | None:
        deadline = self._plan.next_deadline()
        waits = [] if deadline is None else [max(0.0, deadline - time.monotonic())]
        if self._herd.has_strays:
            waits.append(_STRAY_INTERVAL)
        if self._door_shut < float("inf"):
            waits.append(_SHUT_FOR)
        if self._plan.memory_limits():
            waits.append(_MEMORY_INTERVAL)
        if (self._plan.jobs() and not self._plan.quiesced) or self._describers.busy:
            waits.append(_STOPPED_INTERVAL)
        if self._waits_for_first_client():
            waits.append(_GREETING_PATIENCE)
        return min(waits, default=None)

    def _warn(self, text: str) -> None:
        """Something that a module of ours found in the cache folder that is being looked at: tell whoever uses it."""
        for client in self._members():
            if self._looking_at in (None, client.cache_dir):
                self._notify(client, text)

    def _notify(self, client: Client, text: str) -> None:
        """Tell a client, once."""
        if text and text not in client.told:
            client.told.add(text)
            self._loop.send(client.channel, wire.Notice(text))

    @contextlib.contextmanager
    def _looking(self, cache_dir: str) -> Iterator[None]:
        self._looking_at = cache_dir
        try:
            yield
        finally:
            self._looking_at = None

    def _tell(self, number: int, message: msgspec.Struct) -> None:
        """Send a message to a client, if it is there."""
        client = self._clients.get(number)
        if client is not None:
            self._loop.send(client.channel, message)

    # Clients

    def _answer_the_door(self, mask: int) -> None:
        assert self._door is not None
        try:
            peer = self._door.accept()
        except OSError:
            # Whoever is outside would wake us again and again while there is nothing that we could do.
            self._loop.unwatch(self._door)
            self._door_shut = time.monotonic()
            return
        if peer is not None:
            self._admit(peer)

    def _admit(self, peer: Peer) -> None:
        client = Client(next(self._numbers), peer)
        self._clients[client.number] = client
        self._loop.watch(client.channel, lambda mask: self._hear_client(client, mask))
        if client.pidfd >= 0:
            self._loop.watch(client.pidfd, lambda mask: self._dismiss(client))

    def _hear_client(self, client: Client, mask: int) -> None:
        try:
            messages = self._loop.receive(client.channel, mask)
        except (EOFError, ConnectionError):
            self._dismiss(client)
            return
        except wire.ProtocolError:
            _log.exception("a client was disconnected")
            self._dismiss(client)
            return
        for message in messages:
            if client.number in self._clients:
                try:
                    self._answer(client, message)
                except Exception:  # noqa: BLE001 - what one client says must not end the service for all
                    _log.exception("a client was disconnected; this is a bug")
                    self._dismiss(client)

    def _dismiss(self, client: Client) -> None:
        if client in self._parting:
            self._parting.remove(client)
        elif self._clients.pop(client.number, None) is None:
            return
        self._loop.unwatch(client.channel)
        client.channel.close()
        if client.pidfd >= 0:
            self._loop.unwatch(client.pidfd)
            os.close(client.pidfd)
        self._forget(client)
        self._stop_if_alone()

    def _forget(self, client: Client) -> None:
        """Its requests, that is; more than once does no harm."""
        if client in self._draining:
            self._draining.remove(client)
        self._describers.client_left(client.number)
        self._carry_out(self._plan.client_left(client.number, time.monotonic()))

    def _part_with_those_who_do_not_read(self) -> bool:
        """Hang up on clients whose answers pile up; they are told, come back, and ask again for what is missing."""
        slow = [client for client in self._clients.values() if client.channel.backlog > MAX_BACKLOG]
        for client in slow:
            _log.warning("client %d does not read its answers, and was hung up on", client.pid)
            del self._clients[client.number]
            self._parting.add(client)
            client.channel.drop_backlog()
            client.channel.queue(wire.Leaving(f"more than {MAX_BACKLOG >> 20} MiB of answers were not read"))
            self._loop.drain(client.channel, functools.partial(self._dismiss, client))
            self._forget(client)
        return bool(slow)

    def _members(self) -> list[Client]:
        return [client for client in self._clients.values() if client.hello is not None]

    def _stop_if_alone(self) -> None:
        # Before the first client has introduced itself there may be others who are about to.
        if self._lingers or self._members() or self._parting:
            return
        if self._had_clients or not self._clients:
            self._stop()

    def _say_goodbye(self) -> None:
        """Have the clients look for another service, and blame nobody for the end of this one."""
        for client in self._clients.values():
            self._loop.send(client.channel, wire.Leaving())
        self._loop.flush()

    def _answer(self, client: Client, message: Any) -> None:
        if isinstance(message, wire.Hello):
            self._greet(client, message)
        elif isinstance(message, wire.Prepare):
            self._prepare(client, message)
        elif isinstance(message, wire.Control):
            self._obey(client, message.command)
        elif isinstance(message, wire.Supersede):
            self._lingers = False
            self._stop_if_alone()
        elif client.hello is None:
            self._dismiss(client)
        elif isinstance(message, wire.Submit):
            self._submit(client, client.hello, message)
        elif isinstance(message, wire.PrepareDescriber):
            self._describers.prepare(client.number, self._describer_kind(client, client.hello, message.spec))
        elif isinstance(message, wire.Ask):
            kind = self._describer_kind(client, client.hello, message.spec)
            self._describers.ask(client.number, message.ticket, kind, message.question)
        else:
            for number in message.tickets:
                if number in client.jobs:
                    self._carry_out(self._plan.awaited(client.jobs[number], time.monotonic()))

    def _greet(self, client: Client, hello: wire.Hello) -> None:
        if hello.protocol != wire.PROTOCOL:
            why = f"it speaks protocol {wire.PROTOCOL}, and this client {hello.protocol}"
            self._loop.send(client.channel, wire.Unwelcome(why))
            self._loop.flush()
            self._dismiss(client)
            return
        client.hello = hello
        self._had_clients = True
        self._loop.send(client.channel, wire.Welcome(os.getpid()))

    def _prepare(self, client: Client, message: wire.Prepare) -> None:
        if client.hello is None:
            self._dismiss(client)
            return
        self._look_at_toolchain(client, client.hello, message.toolchain)
        if message.vouched or not unavailable():
            kind = self._kind(message.toolchain, message.environment, not message.vouched)
            self._carry_out(self._plan.announced(kind, client.number))

    def _look_at_toolchain(self, client: Client, hello: wire.Hello, toolchain: Toolchain) -> None:
        """Once for each client: the toolchain may have been changed since another client came."""
        if toolchain not in client.toolchains:
            client.toolchains.add(toolchain)
            self._toolchains.look_again(toolchain, os.fsdecode(hello.preferences.cache_dir))

    def _kind(self, toolchain: Toolchain, environment: Mapping[str, str], confined: bool) -> Kind:
        variables = tuple(sorted(environment.items()))
        generation = self._toolchains.generation(toolchain)
        # What generated kernels import of torch is shown to them alone, whichever process compiles them.
        return Kind((msgspec.structs.replace(toolchain, torch_dir=""), generation), variables, confined)

    def _describer_kind(self, client: Client, hello: wire.Hello, spec: wire.DescriberSpec) -> DescriberKind:
        self._look_at_toolchain(client, hello, spec.toolchain)
        return DescriberKind(spec, self._toolchains.generation(spec.toolchain))

    def _obey(self, client: Client, command: str) -> None:
        now = time.monotonic()
        if command in ("quiesce", "quiesce now"):
            self._draining.append(client)  # it is answered when there are no workers any more
            self._carry_out(self._plan.quiesce(kill=command == "quiesce now"))
            return
        if command == "resume":
            self._carry_out(self._plan.resume(now))
        elif command == "stop":
            self._stop()
        self._loop.send(client.channel, self._report(now))

    def _report(self, now: float) -> wire.Report:
        return report(
            self._plan,
            self._members(),
            self._herd.workers,
            self._tally,
            now=now,
            started=self._started,
            lingers=self._lingers,
            describers=len(self._describers),
        )

    def _submit(self, client: Client, hello: wire.Hello, message: wire.Submit) -> None:
        request = message.request if message.vouched else without_what_is_not_identity(message.request)
        self._tally.requests += 1
        # Before anything is read that it names.
        refused = None if message.vouched else check_environment(request, tools=hello.preferences.tools)
        if refused is not None:
            self._loop.send(client.channel, wire.Failed(message.ticket, wire.Failure("source", unvouched(refused))))
            return
        use_store = message.use_store and bypass_reason(request.environment) is None
        cache_dir = os.fsdecode(hello.preferences.cache_dir)
        self._look_at_toolchain(client, hello, message.toolchain)
        try:
            digest = self._toolchains.digest(message.toolchain, request.environment, cache_dir)
        except ServiceError as error:
            self._loop.send(client.channel, wire.Failed(message.ticket, wire.Failure("service", str(error))))
            return
        key = keys.entry_key(digest, request.digest())
        # Whoever vouches for a source is not served by what somebody has under way who does not.
        job_key = f"{key} {cache_dir if use_store else 'unstored'}{'' if message.vouched else ' confined'}"
        running = self._plan.in_flight(job_key)
        urgency = Urgency.BACKGROUND if message.background else Urgency.EARLY
        if running is None and use_store and self._answer_from_store(client, hello, message, key, urgency):
            return
        if not message.vouched and (why := unavailable()):
            failure = wire.Failure("service", unvouched(f"its worker cannot be confined here: {why}"))
            self._loop.send(client.channel, wire.Failed(message.ticket, failure))
            return
        client.jobs[message.ticket] = job_key
        self._tally.joined += running is not None
        if running is not None and running.worker is not None:
            started = self._herd.workers[running.worker].started
            self._loop.send(client.channel, wire.Started(message.ticket, running.worker, started))
        actions = self._plan.requested(
            Ticket(client.number, message.ticket),
            job_key,
            self._kind(message.toolchain, request.environment, not message.vouched),
            Job(
                key,
                digest,
                request,
                use_store,
                cache_dir,
                use_store and hello.preferences.early_cutoff and message.vouched,
                hello.preferences.trusts_cache_dir,
                message.toolchain.torch_dir,
                not message.vouched,
            ),
            urgency,
            time.monotonic(),
            estimate=self._estimates.get(request.kernel),
            time_limit=hello.preferences.time_limit or (None if message.vouched else CONFINED_TIME_LIMIT),
            memory_limit=hello.preferences.memory_limit or (None if message.vouched else CONFINED_MEMORY_LIMIT),
        )
        self._carry_out(actions)

    def _answer_from_store(
        self, client: Client, hello: wire.Hello, message: wire.Submit, key: str, urgency: Urgency
    ) -> bool:
        cache_dir = os.fsdecode(hello.preferences.cache_dir)
        with self._looking(cache_dir):
            entry = self._store(hello).find(key, kind="kernel", request_digest=message.request.digest())
        if entry is not None:
            self._tally.stored += 1
            self._learn(message.request, entry.header.compile_wall_s)
            shared = int(entry.metadata.get("shared") or 0)
            self._loop.send(client.channel, wire.Result(message.ticket, key, cached=True, shared=shared))
            return True
        failure = Failures(cache_dir).find(
            key,
            plan.effective_time_limit(hello.preferences.time_limit, urgency),
            hello.preferences.memory_limit,
        )
        if failure is not None:
            self._tally.failed += 1
            self._loop.send(client.channel, wire.Failed(message.ticket, failure))
        return failure is not None

    def _store(self, hello: wire.Hello) -> DiskStore:
        cache_dir = os.fsdecode(hello.preferences.cache_dir)
        store = self._stores.get(cache_dir)
        limit_bytes, trusted = hello.preferences.store_limit, hello.preferences.trusts_cache_dir
        if store is None or (store.limit_bytes, store.trusted) != (limit_bytes, trusted):
            store = self._stores[cache_dir] = DiskStore(cache_dir, limit_bytes=limit_bytes, trusted=trusted)
        return store

    def _learn(self, request: CompileRequest, seconds: float) -> None:
        """Remember how long a kernel took, whatever its configuration; the longest counts."""
        kernel = request.kernel
        self._estimates[kernel] = max(seconds, self._estimates.pop(kernel, 0.0))
        if len(self._estimates) > _MAX_ESTIMATES:
            del self._estimates[next(iter(self._estimates))]

    # Actions

    def _carry_out(self, actions: Iterable[plan.Action]) -> None:
        for action in actions:
            match action:
                case plan.StartZygote(kind):
                    self._herd.start_zygote(kind)
                case plan.EndZygote(kind):
                    self._herd.end_zygote(kind)
                case plan.Fork(number, kind):
                    self._herd.fork(number, kind)
                case plan.Assign(number, job):
                    self._assign(number, job)
                case plan.Proceed(number):
                    self._loop.send(self._herd.workers[number].channel, wire.Proceed())
                case plan.StandAside(number):
                    self._loop.send(self._herd.workers[number].channel, wire.StandAside())
                case plan.Retire(number):
                    self._herd.retire(number)
                case plan.MoveOn(number):
                    self._herd.move_on(number)
                case plan.Kill(number):
                    self._herd.kill(number)
                case plan.Deliver(job, outcome):
                    self._deliver(job, outcome)

    def _assign(self, number: int, job: PlannedJob) -> None:
        worker = self._herd.workers[number]
        worker.started = time.monotonic()
        payload = job.payload
        assert isinstance(payload, Job)
        # A confined worker can write no store: what it makes it sends.
        store = os.fsencode(payload.cache_dir) if payload.use_store and not payload.confined else b""
        early_cutoff = payload.early_cutoff and not job.whole
        self._loop.send(
            worker.channel,
            wire.Assign(
                payload.key,
                payload.toolchain,
                payload.request,
                store,
                early_cutoff,
                job.front,
                payload.trusted,
                payload.torch_dir,
            ),
        )
        for ticket in job.tickets:
            if ticket.client in self._clients:
                started = wire.Started(ticket.number, number, worker.started)
                self._loop.send(self._clients[ticket.client].channel, started)

    def _deliver(self, job: PlannedJob, outcome: object) -> None:
        payload = job.payload
        assert isinstance(payload, Job)
        if payload.confined:
            outcome = self._taken_in(job, payload, outcome)
        if isinstance(outcome, wire.Finished):
            self._tally.compiled += 1
            self._note_published(outcome, payload)
            self._tally.taken_over += outcome.taken_over
            if not (outcome.cached or outcome.taken_over):
                self._learn(payload.request, outcome.finished - outcome.started)
        elif isinstance(outcome, wire.Failure):
            self._tally.failed += 1
            # Whoever ran a plan with a strange source would vouch for it.
            if outcome.kind != "service" and not payload.confined:
                self._write_down(job, payload, outcome)
        for ticket in job.tickets:
            client = self._clients.get(ticket.client)
            if client is not None:
                client.jobs.pop(ticket.number, None)
                if isinstance(outcome, wire.Finished):
                    self._notify(client, outcome.notice)
                self._loop.send(client.channel, self._message(ticket.number, payload.key, outcome))

    def _taken_in(self, job: PlannedJob, payload: Job, outcome: object) -> wire.Finished | wire.Failure:
        """What a confined worker made, checked, and put into the store."""
        if not isinstance(outcome, wire.Finished):
            assert isinstance(outcome, wire.Failure)
            return failure_of(outcome)
        now = time.monotonic()
        worker = self._herd.workers.get(-1 if job.worker is None else job.worker)
        started = now if worker is None else worker.started
        log = log_of(outcome.log)
        try:
            parts, shared = entry_parts(payload.key, payload.toolchain, payload.request, outcome, log, now - started)
        except NotBelieved as error:
            return wire.Failure("crash", shown(f"its worker did not send what a compile makes: {error}"))
        stored, notice = False, ""
        if payload.use_store:
            try:
                DiskStore(payload.cache_dir, trusted=payload.trusted).publish(payload.key, parts)
                stored = True
            except StoreUnavailable as error:
                notice = f"{error}; kernels are kept in memory only"
        return wire.Finished(
            stored=stored,
            started=started,
            finished=now,
            entry=b"" if stored else b"".join(parts),
            cpu_s=cpu_seconds(outcome),
            shared=shared,
            log=log,
            notice=notice,
        )

    def _write_down(self, job: PlannedJob, payload: Job, failure: wire.Failure) -> None:
        request = payload.request
        failure.reproduce = write_plan(Path(payload.cache_dir, "failed"), request)
        if payload.use_store and failure.kind in REMEMBERED_KINDS:
            retry = f"headstart cache retry {payload.key[:12]}"
            limit = (
                plan.effective_time_limit(job.time_limit, job.urgency) if failure.kind == "timeout" else None
            )
            remembered = msgspec.structs.replace(
                failure, advice=f"it failed before and was not tried again; `{retry}` has it tried again"
            )
            Failures(payload.cache_dir).remember(
                RememberedFailure(
                    payload.key,
                    request.name,
                    request.target,
                    remembered,
                    limit,
                    job.memory_limit if failure.kind == "memory" else None,
                )
            )
            if failure.reproduce:
                failure.reproduce = remembered.reproduce = f"{retry}; {failure.reproduce}"

    def _message(self, ticket: int, key: str, outcome: object) -> wire.Result | wire.Failed:
        if isinstance(outcome, wire.Failure):
            return wire.Failed(ticket, outcome)
        assert isinstance(outcome, wire.Finished)
        return wire.Result(
            ticket,
            key,
            entry=outcome.entry,
            cached=outcome.cached,
            started=outcome.started,
            finished=outcome.finished,
            cpu_s=outcome.cpu_s,
            shared=outcome.shared,
            log=outcome.log,
        )

    def _note_published(self, outcome: wire.Finished, job: Job) -> None:
        store = self._stores.get(job.cache_dir)
        if store is None or store.limit_bytes is None or not outcome.stored:
            return
        with contextlib.suppress(OSError):
            self._published[job.cache_dir] += os.stat(store.path_of(job.key)).st_size
        if self._published[job.cache_dir] > store.limit_bytes * _PRUNE_SHARE:
            self._published[job.cache_dir] = 0
            with self._looking(job.cache_dir):
                store.prune()


class _Notifier(logging.Handler):
    """Passes on what a module warns of (a damaged entry, say): nobody reads a service's own log."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._warn = warn

    def emit(self, record: logging.LogRecord) -> None:
        if record.name != _log.name:  # what we say of ourselves is for our own log
            self._warn(record.getMessage())


def main(argument: str) -> None:
    """Run a service; `argument` is a `Config` in JSON."""
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
        Server(config, workplace).run()
