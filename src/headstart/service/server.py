"""The process that owns the queue, the store and the other processes.

    client ── Submit ──▶ server ── is it in the store? ──▶ Result
                            └─ plan.requested ─▶ actions ─▶ zygotes fork, workers compile
    worker ── Finished ─▶ server ── plan.finished ─▶ Deliver ─▶ Result to everyone who asked

One thread, one selector. The server turns what happens into events of the plan and carries out the actions that come
back; it decides nothing itself. It ends when its client is gone (EOF or pidfd), and takes everything below it along.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from headstart import keys, wire
from headstart.environment import FINGERPRINT_VARIABLES, TOOL_VARIABLES, bypass_reason
from headstart.errors import ServiceError
from headstart.request import CompileRequest
from headstart.service import plan
from headstart.service.boot import spawn
from headstart.service.config import Config
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

_log = logging.getLogger("headstart.service")


class Job(msgspec.Struct, frozen=True):
    """A plan's payload: what a worker is told."""

    key: str
    toolchain: str
    request: CompileRequest
    use_store: bool


class _Client:
    def __init__(self, number: int, channel: wire.Channel) -> None:
        self.number = number
        self.channel = channel
        self.toolchain: Toolchain | None = None
        self.jobs: dict[int, str] = {}  # ticket number: the plan's key of its job


class _Zygote:
    def __init__(self, process: subprocess.Popen[bytes], sock: socket.socket) -> None:
        self.process = process
        self.socket = sock


class _Worker:
    def __init__(self, kind: plan.Kind, channel: wire.Channel, folder: Path) -> None:
        self.kind = kind
        self.channel = channel
        self.folder = folder
        self.pid = 0
        self.started = 0.0


class Server:
    """Serves one client.

    Args:
        config: see there.
        folder: private to this service, for its workers' folders.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        self._config = config
        self._folder = folder
        self._store = DiskStore(config.cache_dir, limit_bytes=config.store_limit)
        self._plan = plan.Plan(config.workers, time_limit=config.time_limit)
        self._selector = selectors.DefaultSelector()
        self._clients: dict[int, _Client] = {}
        self._zygotes: dict[plan.Kind, _Zygote] = {}
        self._workers: dict[int, _Worker] = {}
        self._toolchain_digests: dict[tuple[Toolchain, tuple[tuple[str, str], ...]], str] = {}
        self._notices: set[str] = set()
        self._unsent: dict[int, wire.Channel] = {}
        self._strays: set[int] = set()  # process groups that were killed and may hold adopted zombies
        self._published = 0  # bytes, since the store was last pruned
        self._running = True

    def run(self) -> None:
        """Until the client is gone."""
        logging.getLogger("headstart").addHandler(_Notifier(self._notify))
        self._admit(socket.socket(fileno=self._config.client))
        self._watch(self._config.client_pidfd, self._stop)
        try:
            while self._running:
                for event, mask in self._selector.select(self._patience()):
                    if self._selector.get_map().get(event.fd) is event:  # not closed by an earlier event of this round
                        event.data(mask)
                self._carry_out(self._plan.tick(time.monotonic()))
                self._flush()
                self._reap_strays()
        finally:
            for kind in list(self._zygotes):
                self._end_zygote(kind)

    def _stop(self, mask: int = 0) -> None:
        self._running = False

    def _patience(self) -> float | None:
        deadline = self._plan.next_deadline()
        waits = [] if deadline is None else [max(0.0, deadline - time.monotonic())]
        if self._strays:
            waits.append(_STRAY_INTERVAL)
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

    def _admit(self, sock: socket.socket) -> None:
        client = _Client(len(self._clients), wire.Channel(sock, wire.FromClient))
        self._clients[client.number] = client
        self._watch(client.channel, lambda mask: self._hear_client(client, mask))

    def _hear_client(self, client: _Client, mask: int) -> None:
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
            self._answer(client, message)

    def _dismiss(self, client: _Client) -> None:
        self._unwatch(client.channel)
        client.channel.close()
        del self._clients[client.number]
        self._plan.client_left(client.number)
        if not self._clients:
            self._stop()

    def _answer(self, client: _Client, message: wire.Hello | wire.Submit | wire.Await) -> None:
        if isinstance(message, wire.Hello):
            if message.protocol != wire.PROTOCOL:
                self._dismiss(client)
                return
            client.toolchain = message.toolchain
            self._carry_out(self._plan.announced(_kind(message.toolchain, message.environment)))
        elif isinstance(message, wire.Submit):
            self._submit(client, message)
        else:
            for number in message.tickets:
                if number in client.jobs:
                    self._plan.awaited(client.jobs[number])

    def _submit(self, client: _Client, message: wire.Submit) -> None:
        request, toolchain = message.request, client.toolchain
        if toolchain is None:
            self._dismiss(client)
            return
        use_store = message.use_store and bypass_reason(request.environment) is None
        try:
            digest = self._toolchain_digest(toolchain, request)
        except ServiceError as error:
            self._send(client.channel, wire.Failed(message.ticket, wire.Failure("service", str(error))))
            return
        key = keys.entry_key(digest, request.digest())
        job_key = key if use_store else f"{key} unstored"
        running = self._plan.in_flight(job_key)
        if running is None and use_store and (entry := self._store.find(key)) is not None:
            shared = int(entry.metadata.get("shared") or 0)
            self._send(client.channel, wire.Result(message.ticket, key, cached=True, shared=shared))
            return
        client.jobs[message.ticket] = job_key
        if running is not None and running.worker is not None:
            started = self._workers[running.worker].started
            self._send(client.channel, wire.Started(message.ticket, running.worker, started))
        kind = _kind(toolchain, request.environment)
        job = Job(key, digest, request, use_store)
        ticket = plan.Ticket(client.number, message.ticket)
        urgency = plan.Urgency.BACKGROUND if message.background else plan.Urgency.EARLY
        self._carry_out(self._plan.requested(ticket, job_key, kind, job, urgency, time.monotonic()))

    def _toolchain_digest(self, toolchain: Toolchain, request: CompileRequest) -> str:
        tools = {name: value for name, value in request.environment.items() if name in TOOL_VARIABLES}
        which = toolchain, tuple(sorted(tools.items()))
        if which not in self._toolchain_digests:
            memory = Path(self._config.cache_dir, "toolchains")
            self._toolchain_digests[which] = toolchain.digest(tools, memory)
        return self._toolchain_digests[which]

    # Zygotes

    def _start_zygote(self, kind: plan.Kind) -> None:
        toolchain, environment = kind
        assert isinstance(toolchain, Toolchain)
        assert isinstance(environment, tuple)
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
                    set_to={"PYTHONHASHSEED": "0", **dict(environment)},
                )
            except OSError as error:
                mine.close()
                why = f"cannot start {toolchain.python}: {error.strerror}"
                self._carry_out(self._plan.zygote_unable(kind, why))
                return
        zygote = self._zygotes[kind] = _Zygote(process, mine)
        self._watch(mine, lambda mask: self._hear_zygote(kind, zygote))

    def _hear_zygote(self, kind: plan.Kind, zygote: _Zygote) -> None:
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

    def _end_zygote(self, kind: plan.Kind) -> None:
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

    def _order_zygote(self, kind: plan.Kind, order: msgspec.Struct, fds: Iterable[int] = ()) -> None:
        zygote = self._zygotes.get(kind)
        if zygote is not None:
            with contextlib.suppress(ConnectionError):
                socket.send_fds(zygote.socket, [wire.encode(order)], list(fds))

    # Workers

    def _fork(self, number: int, kind: plan.Kind) -> None:
        folder = self._folder / f"worker-{number}"
        try:
            folder.mkdir(mode=0o700)
            mine, theirs = socket.socketpair()
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            self._carry_out(self._plan.fork_failed(number, str(error), time.monotonic()))
            return
        worker = self._workers[number] = _Worker(kind, wire.Channel(mine, wire.FromWorker), folder)
        self._watch(worker.channel, lambda mask: self._hear_worker(number, worker, mask))
        with theirs:
            self._order_zygote(kind, wire.Fork(number, os.fsencode(folder)), [theirs.fileno()])

    def _hear_worker(self, number: int, worker: _Worker, mask: int) -> None:
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

    def _assign(self, number: int, job: plan.Job) -> None:
        worker = self._workers[number]
        worker.started = time.monotonic()
        payload = job.payload
        assert isinstance(payload, Job)
        store = os.fsencode(self._config.cache_dir) if payload.use_store else b""
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

    def _deliver(self, job: plan.Job, outcome: object) -> None:
        payload = job.payload
        assert isinstance(payload, Job)
        if isinstance(outcome, wire.Finished):
            self._note_published(outcome, payload.key)
            self._notify(outcome.notice)
        elif isinstance(outcome, wire.Failure) and outcome.kind != "service":
            outcome.reproduce = write_plan(Path(self._config.cache_dir, "failed"), payload.request)
        for ticket in job.tickets:
            client = self._clients.get(ticket.client)
            if client is not None:
                client.jobs.pop(ticket.number, None)
                self._send(client.channel, self._message(ticket.number, payload.key, outcome))

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

    def _note_published(self, outcome: wire.Finished, key: str) -> None:
        limit = self._config.store_limit
        if limit is None or not outcome.stored:
            return
        with contextlib.suppress(OSError):
            self._published += os.stat(self._store.path_of(key)).st_size
        if self._published > limit * _PRUNE_SHARE:
            self._published = 0
            self._store.prune()


def _kind(toolchain: Toolchain, environment: Mapping[str, str]) -> plan.Kind:
    return plan.Kind(toolchain, tuple(sorted(environment.items())))


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
    for fd in (config.client, config.client_pidfd):
        os.set_inheritable(fd, False)
    logging.basicConfig(stream=sys.stderr, format="%(name)s: %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the client decides what Ctrl-C means
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with service_folder() as folder:
        Server(config, folder).run()
