"""The process that owns the queue, the store and the other processes.

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
import logging
import os
import resource
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import msgspec

from headstart import keys, machine, wire
from headstart.environment import FINGERPRINT_VARIABLES, TOOL_VARIABLES, bypass_reason
from headstart.errors import ServiceError
from headstart.request import CompileRequest
from headstart.service import plan
from headstart.service.boot import spawn
from headstart.service.capacity import Capacity
from headstart.service.config import Config
from headstart.service.door import Door, Peer
from headstart.service.failures import REMEMBERED_KINDS, Failures, RememberedFailure
from headstart.service.queue import Job as PlannedJob
from headstart.service.queue import Kind, Ticket, Urgency
from headstart.service.reporting import Tally, report
from headstart.service.reproduce import write_plan
from headstart.service.runtime import service_folder
from headstart.service.worker import last_stage, last_words
from headstart.service.zygote import bury
from headstart.store import DiskStore
from headstart.toolchain import Toolchain

_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
_STRAY_INTERVAL = 0.05  # seconds between looks at killed tools that are not dead yet
_PRUNE_SHARE = 0.05  # of the store's limit: how much is published between looks at its size
_MAX_MESSAGE = 1 << 16  # bytes, from a zygote
_GREETING_PATIENCE = 30.0  # seconds for which a shared service waits for its first client
_MEASURE_INTERVAL = 1.0  # seconds, at least, between two looks at the memory that is left
_MAX_ESTIMATES = 20_000  # kernels whose compile time is remembered

_log = logging.getLogger("headstart.service")


class Job(msgspec.Struct, frozen=True):
    """A plan's payload: what a worker is told, and where the entry goes."""

    key: str
    toolchain: str
    request: CompileRequest
    use_store: bool
    cache_dir: str


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


class _Zygote:
    def __init__(self, process: subprocess.Popen[bytes], sock: socket.socket) -> None:
        self.process = process
        self.socket = sock


class Worker:
    """A worker process, and what it is doing."""

    def __init__(self, kind: Kind, channel: wire.Channel, folder: Path) -> None:
        self.kind = kind
        self.channel = channel
        self.folder = folder
        self.pid = 0
        self.started = 0.0


class Server:
    """Serves one client, or all that come through a door.

    Args:
        config: see there.
        folder: private to this service, for its workers' folders.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        self._config = config
        self._folder = folder
        self._capacity = Capacity(config.workers, config.memory)
        self._plan = plan.Plan(config.workers, idle_timeout=config.idle or plan.IDLE_TIMEOUT)
        self._selector = selectors.DefaultSelector()
        self._door: Door | None = None
        self._clients: dict[int, Client] = {}
        self._numbers = count()
        self._draining: list[Client] = []  # those who asked to be told when there are no workers any more
        self._zygotes: dict[Kind, _Zygote] = {}
        self._workers: dict[int, Worker] = {}
        self._stores: dict[str, DiskStore] = {}
        self._toolchain_digests: dict[tuple[Toolchain, tuple[tuple[str, str], ...]], str] = {}
        self._generations: Counter[Toolchain] = Counter()  # how often each was seen to have changed on disk
        self._estimates: dict[tuple[str, str], float] = {}  # kernel's name and source: seconds
        self._notices: set[str] = set()
        self._unsent: dict[int, wire.Channel] = {}
        self._strays: set[int] = set()  # process groups that were killed and may hold adopted zombies
        self._published: Counter[str] = Counter()  # bytes by cache folder, since its store was last pruned
        self._tally = Tally()
        self._started = time.monotonic()
        self._measured = float("-inf")
        self._lingers = config.lingers
        self._had_clients = False
        self._running = True

    def run(self) -> None:
        """Until the last client is gone, or somebody says so."""
        logging.getLogger("headstart").addHandler(_Notifier(self._notify))
        if self._config.listener >= 0:
            self._door = Door(socket.socket(fileno=self._config.listener), Path(self._config.socket))
            self._watch(self._door, self._answer_the_door)
        else:
            self._admit(
                Peer(socket.socket(fileno=self._config.client), os.getppid(), self._config.client_pidfd)
            )
        try:
            while self._running:
                for event, mask in self._selector.select(self._patience()):
                    if (
                        self._selector.get_map().get(event.fd) is event
                    ):  # not closed by an earlier event of this round
                        event.data(mask)
                self._look_around(time.monotonic())
                self._flush()
                self._reap_strays()
        except SystemExit:
            self._say_goodbye()
            raise
        finally:
            if self._door is not None:
                self._unwatch(self._door)
                self._door.close()
            for kind in list(self._zygotes):
                self._end_zygote(kind)

    def _look_around(self, now: float) -> None:
        if now - self._measured >= _MEASURE_INTERVAL and self._plan.workers:
            self._measured = now
            used = [machine.own_memory(worker.pid) for worker in self._workers.values() if worker.pid]
            fitting = self._capacity.fitting(used, machine.available_memory())
            if fitting != self._plan.limit:
                self._carry_out(self._plan.resize(fitting, now))
        self._carry_out(self._plan.tick(now))
        if not (self._plan.quiesced and self._plan.workers):
            for client in self._draining:
                self._send(client.channel, self._report(now))
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
        if self._strays:
            waits.append(_STRAY_INTERVAL)
        if self._waits_for_first_client():
            waits.append(_GREETING_PATIENCE)
        return min(waits, default=None)

    def _watch(self, fileobj: Any, react: Callable[[int], None]) -> None:
        self._selector.register(fileobj, selectors.EVENT_READ, react)

    def _unwatch(self, fileobj: Any) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(fileobj)

    def _send(self, channel: wire.Channel, message: msgspec.Struct) -> None:
        # Sent at the end of the round: each send wakes a process, and on a busy machine takes a core from a compile.
        channel.queue(message)
        self._unsent[id(channel)] = channel

    def _flush(self) -> None:
        for channel in self._unsent.values():
            # A peer that is gone is noticed when its socket is read.
            with contextlib.suppress(OSError):
                channel.flush()
            self._watch_writable(channel)
        self._unsent.clear()

    def _watch_writable(self, channel: wire.Channel) -> None:
        entry = None if channel.fileno() < 0 else self._selector.get_map().get(channel)
        if entry is not None:
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if channel.has_unsent else 0)
            if events != entry.events:
                self._selector.modify(channel, events, entry.data)

    def _notify(self, text: str) -> None:
        """Tell all clients, once."""
        if text and text not in self._notices:
            self._notices.add(text)
            for client in self._clients.values():
                self._send(client.channel, wire.Notice(text))

    # Clients

    def _answer_the_door(self, mask: int) -> None:
        assert self._door is not None
        peer = self._door.accept()
        if peer is not None:
            self._admit(peer)

    def _admit(self, peer: Peer) -> None:
        client = Client(next(self._numbers), peer)
        self._clients[client.number] = client
        self._watch(client.channel, lambda mask: self._hear_client(client, mask))
        if client.pidfd >= 0:
            self._watch(client.pidfd, lambda mask: self._dismiss(client))

    def _hear_client(self, client: Client, mask: int) -> None:
        try:
            if mask & selectors.EVENT_WRITE:
                client.channel.flush()
                self._watch_writable(client.channel)
            messages = client.channel.receive() if mask & selectors.EVENT_READ else []
        except (EOFError, ConnectionError):
            self._dismiss(client)
            return
        except wire.ProtocolError:
            _log.exception("a client was disconnected")
            self._dismiss(client)
            return
        for message in messages:
            if client.number in self._clients:
                self._answer(client, message)

    def _dismiss(self, client: Client) -> None:
        if self._clients.pop(client.number, None) is None:
            return
        self._unwatch(client.channel)
        client.channel.close()
        if client.pidfd >= 0:
            self._unwatch(client.pidfd)
            os.close(client.pidfd)
        if client in self._draining:
            self._draining.remove(client)
        self._carry_out(self._plan.client_left(client.number, time.monotonic()))
        self._stop_if_alone()

    def _members(self) -> list[Client]:
        return [client for client in self._clients.values() if client.hello is not None]

    def _stop_if_alone(self) -> None:
        # Before the first client has introduced itself there may be others who are about to.
        if not self._lingers and not self._members() and (self._had_clients or not self._clients):
            self._stop()

    def _say_goodbye(self) -> None:
        """Have the clients look for another service, and blame nobody for the end of this one."""
        for client in self._members():
            self._send(client.channel, wire.Leaving())
        self._flush()

    def _answer(self, client: Client, message: Any) -> None:
        if isinstance(message, wire.Hello):
            self._greet(client, message)
        elif isinstance(message, wire.Control):
            self._obey(client, message.command)
        elif isinstance(message, wire.Supersede):
            self._lingers = False
            self._stop_if_alone()
        elif client.hello is None:
            self._dismiss(client)
        elif isinstance(message, wire.Submit):
            self._submit(client, client.hello, message)
        else:
            for number in message.tickets:
                if number in client.jobs:
                    self._carry_out(self._plan.awaited(client.jobs[number], time.monotonic()))

    def _greet(self, client: Client, hello: wire.Hello) -> None:
        if hello.protocol != wire.PROTOCOL:
            why = f"it speaks protocol {wire.PROTOCOL}, and this client {hello.protocol}"
            self._send(client.channel, wire.Unwelcome(why))
            self._flush()
            self._dismiss(client)
            return
        client.hello = hello
        self._had_clients = True
        self._send(client.channel, wire.Welcome(os.getpid()))
        self._look_at_toolchain_again(hello)
        self._carry_out(self._plan.announced(self._kind(hello.toolchain, hello.environment)))

    def _look_at_toolchain_again(self, hello: wire.Hello) -> None:
        """A service may live longer than an installation: what was rebuilt since gets a new digest and a new zygote."""
        memory = Path(os.fsdecode(hello.preferences.cache_dir), "toolchains")
        known = [which for which in self._toolchain_digests if which[0] == hello.toolchain]
        before = {which: self._toolchain_digests.pop(which) for which in known}
        for toolchain, tools in known:
            with contextlib.suppress(ServiceError):  # the next request is told
                self._toolchain_digests[toolchain, tools] = toolchain.digest(dict(tools), memory)
        if any(self._toolchain_digests.get(which) != before[which] for which in known):
            self._generations[hello.toolchain] += 1

    def _kind(self, toolchain: Toolchain, environment: Mapping[str, str]) -> Kind:
        return Kind((toolchain, self._generations[toolchain]), tuple(sorted(environment.items())))

    def _obey(self, client: Client, command: str) -> None:
        now = time.monotonic()
        if command in ("quiesce", "quiesce now"):
            self._draining.append(client)  # it is answered when there are no workers any more
            self._carry_out(self._plan.quiesce(kill=command == "quiesce now"))
            return
        if command == "resume":
            self._carry_out(self._plan.resume(now))
        elif command == "stop":
            self._say_goodbye()
            self._stop()
        self._send(client.channel, self._report(now))

    def _report(self, now: float) -> wire.Report:
        return report(
            self._plan,
            self._members(),
            self._workers,
            self._tally,
            now=now,
            started=self._started,
            lingers=self._lingers,
        )

    def _submit(self, client: Client, hello: wire.Hello, message: wire.Submit) -> None:
        request = message.request
        self._tally.requests += 1
        use_store = message.use_store and bypass_reason(request.environment) is None
        try:
            digest = self._toolchain_digest(hello, request)
        except ServiceError as error:
            self._send(client.channel, wire.Failed(message.ticket, wire.Failure("service", str(error))))
            return
        key = keys.entry_key(digest, request.digest())
        cache_dir = os.fsdecode(hello.preferences.cache_dir)
        job_key = f"{key} {cache_dir if use_store else 'unstored'}"
        running = self._plan.in_flight(job_key)
        urgency = Urgency.BACKGROUND if message.background else Urgency.EARLY
        if running is None and use_store and self._answer_from_store(client, hello, message, key, urgency):
            return
        client.jobs[message.ticket] = job_key
        self._tally.joined += running is not None
        if running is not None and running.worker is not None:
            started = self._workers[running.worker].started
            self._send(client.channel, wire.Started(message.ticket, running.worker, started))
        actions = self._plan.requested(
            Ticket(client.number, message.ticket),
            job_key,
            self._kind(hello.toolchain, request.environment),
            Job(key, digest, request, use_store, cache_dir),
            urgency,
            time.monotonic(),
            estimate=self._estimates.get((request.name, request.source)),
            time_limit=hello.preferences.time_limit,
        )
        self._carry_out(actions)

    def _answer_from_store(
        self, client: Client, hello: wire.Hello, message: wire.Submit, key: str, urgency: Urgency
    ) -> bool:
        cache_dir = os.fsdecode(hello.preferences.cache_dir)
        entry = self._store(hello).find(key)
        if entry is not None:
            self._tally.stored += 1
            self._learn(message.request, entry.header.compile_wall_s)
            shared = int(entry.metadata.get("shared") or 0)
            self._send(client.channel, wire.Result(message.ticket, key, cached=True, shared=shared))
            return True
        failure = Failures(cache_dir).find(
            key, plan.effective_time_limit(hello.preferences.time_limit, urgency)
        )
        if failure is not None:
            self._tally.failed += 1
            self._send(client.channel, wire.Failed(message.ticket, failure))
        return failure is not None

    def _store(self, hello: wire.Hello) -> DiskStore:
        cache_dir = os.fsdecode(hello.preferences.cache_dir)
        store = self._stores.get(cache_dir)
        if store is None or store.limit_bytes != hello.preferences.store_limit:
            store = self._stores[cache_dir] = DiskStore(cache_dir, limit_bytes=hello.preferences.store_limit)
        return store

    def _learn(self, request: CompileRequest, seconds: float) -> None:
        """Remember how long a kernel took, whatever its configuration; the longest counts."""
        kernel = request.name, request.source
        self._estimates[kernel] = max(seconds, self._estimates.pop(kernel, 0.0))
        if len(self._estimates) > _MAX_ESTIMATES:
            del self._estimates[next(iter(self._estimates))]

    def _toolchain_digest(self, hello: wire.Hello, request: CompileRequest) -> str:
        tools = {name: value for name, value in request.environment.items() if name in TOOL_VARIABLES}
        which = hello.toolchain, tuple(sorted(tools.items()))
        if which not in self._toolchain_digests:
            memory = Path(os.fsdecode(hello.preferences.cache_dir), "toolchains")
            self._toolchain_digests[which] = hello.toolchain.digest(tools, memory)
        return self._toolchain_digests[which]

    # Zygotes

    def _start_zygote(self, kind: Kind) -> None:
        assert isinstance(kind.toolchain, tuple)
        assert isinstance(kind.environment, tuple)
        toolchain, _ = kind.toolchain
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                process = spawn(
                    toolchain.python,
                    toolchain.sys_path,
                    "headstart.service.zygote",
                    f"{theirs.fileno()} {toolchain.torch_dir}",
                    pass_fds=[theirs.fileno()],
                    unset=FINGERPRINT_VARIABLES,
                    set_to={"PYTHONHASHSEED": "0", **dict(kind.environment)},
                )
            except OSError as error:
                mine.close()
                why = f"cannot start {toolchain.python}: {error.strerror}"
                self._carry_out(self._plan.zygote_unable(kind, why))
                return
        zygote = self._zygotes[kind] = _Zygote(process, mine)
        self._watch(mine, lambda mask: self._hear_zygote(kind, zygote))

    def _hear_zygote(self, kind: Kind, zygote: _Zygote) -> None:
        try:
            body = zygote.socket.recv(_MAX_MESSAGE)
        except ConnectionError:
            body = b""
        now = time.monotonic()
        if not body:
            self._end_zygote(kind)
            why = f"the process that holds Triton died (status {zygote.process.returncode})"
            self._carry_out(self._plan.zygote_lost(kind, why, now))
            return
        message = wire.decode(wire.decoder(wire.FromZygote), body)
        if isinstance(message, wire.Ready):
            self._carry_out(self._plan.zygote_ready(kind, now))
        elif isinstance(message, wire.Forked):
            self._workers[message.worker].pid = message.pid
            self._carry_out(self._plan.worker_forked(message.worker, now))
        elif isinstance(message, wire.Buried):
            self._clear_worker(message.worker, message.status)
        elif message.worker >= 0:
            self._forget_worker(message.worker)
            self._carry_out(self._plan.fork_failed(message.worker, message.why, now))
        else:
            self._carry_out(self._plan.zygote_unable(kind, message.why))
            self._end_zygote(kind)

    def _end_zygote(self, kind: Kind) -> None:
        """Kill a zygote and bury its workers, which are ours once it is dead."""
        zygote = self._zygotes.pop(kind)
        self._unwatch(zygote.socket)
        zygote.process.kill()
        zygote.process.wait()
        zygote.socket.close()
        for number, worker in list(self._workers.items()):
            if worker.kind == kind:
                if worker.pid:
                    with contextlib.suppress(ChildProcessError):
                        bury(worker.pid)
                    self._strays.add(worker.pid)
                self._forget_worker(number)

    def _order_zygote(self, kind: Kind, order: msgspec.Struct, fds: Iterable[int] = ()) -> None:
        zygote = self._zygotes.get(kind)
        if zygote is not None:
            with contextlib.suppress(ConnectionError):
                socket.send_fds(zygote.socket, [wire.encode(order)], list(fds))

    # Workers

    def _fork(self, number: int, kind: Kind) -> None:
        folder = self._folder / f"worker-{number}"
        try:
            folder.mkdir(mode=0o700)
            mine, theirs = socket.socketpair()
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            self._carry_out(self._plan.fork_failed(number, str(error), time.monotonic()))
            return
        worker = self._workers[number] = Worker(kind, wire.Channel(mine, wire.FromWorker), folder)
        self._watch(worker.channel, lambda mask: self._hear_worker(number, worker, mask))
        with theirs:
            self._order_zygote(kind, wire.Fork(number, os.fsencode(folder)), [theirs.fileno()])

    def _hear_worker(self, number: int, worker: Worker, mask: int) -> None:
        try:
            if mask & selectors.EVENT_WRITE:
                worker.channel.flush()
                self._watch_writable(worker.channel)
            outcomes = worker.channel.receive() if mask & selectors.EVENT_READ else []
        except (EOFError, ConnectionError):
            self._unwatch(worker.channel)  # the zygote will say how it ended
            return
        except wire.ProtocolError:
            _log.exception("worker %d was killed", number)
            self._order_zygote(worker.kind, wire.Kill(number))
            return
        for outcome in outcomes:
            self._carry_out(self._plan.finished(number, outcome, time.monotonic()))

    def _assign(self, number: int, job: PlannedJob) -> None:
        worker = self._workers[number]
        worker.started = time.monotonic()
        payload = job.payload
        assert isinstance(payload, Job)
        store = os.fsencode(payload.cache_dir) if payload.use_store else b""
        self._send(worker.channel, wire.Assign(payload.key, payload.toolchain, payload.request, store))
        for ticket in job.tickets:
            if ticket.client in self._clients:
                started = wire.Started(ticket.number, number, worker.started)
                self._send(self._clients[ticket.client].channel, started)

    def _clear_worker(self, number: int, status: int) -> None:
        worker = self._workers.get(number)
        if worker is None:
            return
        stage, words = last_stage(str(worker.folder)), last_words(str(worker.folder))
        self._strays.add(worker.pid)
        self._forget_worker(number)
        self._carry_out(self._plan.worker_buried(number, status, stage, words, time.monotonic()))

    def _forget_worker(self, number: int) -> None:
        worker = self._workers.pop(number)
        self._unwatch(worker.channel)
        worker.channel.close()
        shutil.rmtree(worker.folder, ignore_errors=True)

    def _reap_strays(self) -> None:
        # Tools of a killed worker are adopted by this process, the nearest subreaper.
        for group in list(self._strays):
            try:
                while os.waitpid(-group, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                self._strays.discard(group)

    # Actions

    def _carry_out(self, actions: Iterable[plan.Action]) -> None:
        for action in actions:
            match action:
                case plan.StartZygote(kind):
                    self._start_zygote(kind)
                case plan.EndZygote(kind):
                    self._end_zygote(kind)
                case plan.Fork(number, kind):
                    self._fork(number, kind)
                case plan.Assign(number, job):
                    self._assign(number, job)
                case plan.Retire(number):
                    self._unwatch(self._workers[number].channel)
                    self._workers[number].channel.close()
                case plan.Kill(number):
                    self._order_zygote(self._workers[number].kind, wire.Kill(number))
                case plan.Deliver(job, outcome):
                    self._deliver(job, outcome)

    def _deliver(self, job: PlannedJob, outcome: object) -> None:
        payload = job.payload
        assert isinstance(payload, Job)
        if isinstance(outcome, wire.Finished):
            self._tally.compiled += 1
            self._note_published(outcome, payload)
            self._notify(outcome.notice)
            if not outcome.cached:
                self._learn(payload.request, outcome.finished - outcome.started)
        elif isinstance(outcome, wire.Failure):
            self._tally.failed += 1
            if outcome.kind != "service":
                self._write_down(job, payload, outcome)
        for ticket in job.tickets:
            client = self._clients.get(ticket.client)
            if client is not None:
                client.jobs.pop(ticket.number, None)
                self._send(client.channel, self._message(ticket.number, payload.key, outcome))

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
                RememberedFailure(payload.key, request.name, request.target, remembered, limit)
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
            output=outcome.output,
        )

    def _note_published(self, outcome: wire.Finished, job: Job) -> None:
        store = self._stores.get(job.cache_dir)
        if store is None or store.limit_bytes is None or not outcome.stored:
            return
        with contextlib.suppress(OSError):
            self._published[job.cache_dir] += os.stat(store.path_of(job.key)).st_size
        if self._published[job.cache_dir] > store.limit_bytes * _PRUNE_SHARE:
            self._published[job.cache_dir] = 0
            store.prune()


class _Notifier(logging.Handler):
    """Passes on what a module warns of (a damaged entry, say): nobody reads a service's own log."""

    def __init__(self, notify: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._notify = notify

    def emit(self, record: logging.LogRecord) -> None:
        self._notify(record.getMessage())


def main(argument: str) -> None:
    """Run a service; `argument` is a `Config` in JSON."""
    config = Config.read(argument)
    for fd in (config.client, config.client_pidfd, config.listener):
        if fd >= 0:
            os.set_inheritable(fd, False)
    if config.listener >= 0 and os.fork():
        os._exit(0)  # so that a shared service is no child of the client that happened to be first
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the client decides what Ctrl-C means
    serve(config)


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
    with service_folder() as folder:
        Server(config, folder).run()
