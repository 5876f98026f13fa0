"""The processes below a service: zygotes, and the workers that they fork.

    engine ── actions ─▶ ProcessPool ── Fork, Kill ─▶ zygote ── fork ─▶ worker
    engine ◀─ events ──  ProcessPool ◀─ Forked, Reaped ─┘                 │
                         ProcessPool ◀─ Finished, Failure, Reached ───────┘

The executor of one host: it starts and ends what it is told to, and reports what became of it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec

from headstart import wire
from headstart.model.environment import FINGERPRINT_VARIABLES
from headstart.service import actions, events
from headstart.service.executor import Payload
from headstart.service.loop import Loop
from headstart.service.queue import Kind
from headstart.service.runtime import Workplace
from headstart.system import machine
from headstart.system.confinement import minimal_environment
from headstart.system.spawn import reap_group, spawn
from headstart.wire.worker_folder import last_stage, last_words

_MAX_MESSAGE = 1 << 16  # bytes, from a zygote
_MOST_SHOWN = 20  # processes of one worker that are named
_MOST_FILES = 2000  # in a confined worker's folder, which has no folders in it
_STRAY_INTERVAL = 0.05  # seconds between looks at killed tools that are not dead yet
STOPPED_TIMEOUT = 10.0  # seconds until a process that somebody has stopped is replaced

_log = logging.getLogger("headstart.service")


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


class ProcessPool:
    """Zygotes and workers; see `executor.Executor`.

    Args:
        loop: that listens to them.
        happened: is told of events.
        workplace: for the workers' folders.
        others: children of this process that are none of its own.
    """

    def __init__(
        self,
        loop: Loop,
        happened: Callable[[events.FromExecutor], None],
        workplace: Workplace,
        others: Callable[[], set[int]] = set,
    ) -> None:
        self._loop = loop
        self._happened = happened
        self._workplace = workplace
        self._others = others
        self._zygotes: dict[Kind, _Zygote] = {}
        self.workers: dict[int, Worker] = {}
        self._stopped: dict[int, float] = {}  # processes that were found stopped, and when first
        self._strays: set[int] = set()  # process groups that were killed and may hold adopted zombies

    def carry_out(self, action: actions.ForExecutor) -> None:
        """Do what the scheduler says."""
        match action:
            case actions.StartZygote(kind):
                self._start_zygote(kind)
            case actions.EndZygote(kind):
                self._end_zygote(kind)
            case actions.Fork(number, kind):
                self._fork(number, kind)
            case actions.Assign(number, job):
                worker = self.workers[number]
                worker.started = time.monotonic()
                payload: Payload = job.payload  # type: ignore[assignment] # the scheduler leaves its payloads unread
                self._loop.send(worker.channel, payload.message(job.prefix, whole=job.whole))
            case actions.Proceed(number):
                self._loop.send(self.workers[number].channel, wire.Proceed())
            case actions.StandAside(number):
                self._loop.send(self.workers[number].channel, wire.StandAside())
            case actions.Retire(number):
                # A worker whose socket is closed ends by itself.
                self._loop.unwatch(self.workers[number].channel)
                self.workers[number].channel.close()
            case actions.MoveOn(number):
                self._workplace.move_from(self.workers[number].folder)
            case actions.Kill(number):
                self._order_zygote(self.workers[number].kind, wire.Kill(number))

    def memory(self) -> list[int]:
        """Bytes that each worker uses."""
        return [machine.own_memory(worker.pid) for worker in self.workers.values() if worker.pid]

    def check_memory(self, limits: Mapping[int, int]) -> None:
        """Report those workers that use more than `limits` (bytes), tools included, each with what uses how much.

        A confined worker's files count too, and what it has started and let go of: it may mean to use the machine up.
        """
        confined = any(self.workers[number].kind.confined for number in limits)
        orphans = self._orphans() if confined else set()
        for number, limit in limits.items():
            worker = self.workers[number]
            pid, files = worker.pid, 0
            used = machine.tree_memory(pid)
            if worker.kind.confined:
                for orphan in filter(lambda each: _group(each) == pid, orphans):
                    used.update(machine.tree_memory(orphan))
                files = _bytes_in(worker.folder)
            total = sum(used.values()) + files
            if total > limit:
                parts = sorted(used.items(), key=lambda item: -item[1])[:_MOST_SHOWN]
                shown = [
                    f"{'the worker' if each == pid else machine.name_of(each) or 'a tool'} {size >> 20} MiB"
                    for each, size in parts
                ]
                shown += ["…"] * (len(used) > _MOST_SHOWN) + [f"files {files >> 20} MiB"] * (files > 0)
                evidence = f"when it was looked at, it used {total >> 20} MiB: {', '.join(shown)}"
                self._happened(events.OverMemory(number, evidence))

    def replace_stopped(self, now: float) -> None:
        """End zygotes and busy workers that somebody has stopped (SIGSTOP) and left so; their jobs begin anew."""
        processes = [zygote.process.pid for zygote in self._zygotes.values()]
        # A confined worker that stops itself would begin anew for ever; it has a time limit.
        processes += [worker.pid for worker in self.workers.values() if worker.pid and not worker.kind.confined]
        self._stopped = {pid: self._stopped.get(pid, now) for pid in processes if machine.stopped(pid)}
        over = {pid for pid, since in self._stopped.items() if now - since >= STOPPED_TIMEOUT}
        for kind, zygote in list(self._zygotes.items()):
            if zygote.process.pid in over:
                self._end_zygote(kind)
                why = f"the process that holds Triton had been stopped for {STOPPED_TIMEOUT:.0f} s"
                self._happened(events.ZygoteLost(kind, why, now))
        for number, worker in list(self.workers.items()):
            if worker.pid in over:
                self._happened(events.Stalled(number))

    def end(self) -> None:
        """End every process."""
        for kind in list(self._zygotes):
            self._end_zygote(kind)
        self._end_orphans()

    def _start_zygote(self, kind: Kind) -> None:
        """A kind's toolchain is a `Toolchain` and how often it has changed on disk."""
        assert isinstance(kind.toolchain, tuple)
        assert isinstance(kind.environment, tuple)
        toolchain, _ = kind.toolchain
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                process = spawn(
                    toolchain.python,
                    toolchain.sys_path,
                    "headstart.worker.zygote",
                    str(theirs.fileno()),
                    pass_fds=[theirs.fileno()],
                    unset=FINGERPRINT_VARIABLES,
                    set_to={"PYTHONHASHSEED": "0", **dict(kind.environment)},
                    inherit=minimal_environment(os.environ) if kind.confined else os.environ,
                )
            except (OSError, ValueError) as error:  # a ValueError: a path or a variable with a null byte
                mine.close()
                why = f"cannot start {toolchain.python}: {getattr(error, 'strerror', None) or error}"
                self._happened(events.ZygoteUnable(kind, why, time.monotonic()))
                return
        zygote = self._zygotes[kind] = _Zygote(process, mine)
        self._loop.watch(mine, lambda mask: self._hear_zygote(kind, zygote))

    def _hear_zygote(self, kind: Kind, zygote: _Zygote) -> None:
        try:
            body = zygote.socket.recv(_MAX_MESSAGE)
        except ConnectionError:
            body = b""
        now = time.monotonic()
        if not body:
            self._end_zygote(kind)
            why = f"the process that holds Triton died (status {zygote.process.returncode})"
            self._happened(events.ZygoteLost(kind, why, now))
            return
        message = wire.decode(wire.decoder(wire.FromZygote), body)
        if isinstance(message, wire.Ready):
            self._happened(events.ZygoteReady(kind, now))
        elif isinstance(message, wire.Forked):
            self.workers[message.worker].pid = message.pid
            self._happened(events.WorkerForked(message.worker, now))
        elif isinstance(message, wire.Reaped):
            self._clear_worker(message.worker, message.status)
        elif message.worker >= 0:
            self._forget_worker(message.worker)
            self._happened(events.ForkFailed(message.worker, message.why, now))
        else:
            self._end_zygote(kind)
            self._happened(events.ZygoteUnable(kind, message.why, now))

    def _end_zygote(self, kind: Kind) -> None:
        """Kill a zygote and bury its workers, which are ours once it is dead."""
        zygote = self._zygotes.pop(kind)
        self._loop.unwatch(zygote.socket)
        zygote.process.kill()
        zygote.process.wait()
        zygote.socket.close()
        for number, worker in list(self.workers.items()):
            if worker.kind == kind:
                if worker.pid:
                    with contextlib.suppress(ChildProcessError):
                        reap_group(worker.pid)
                    self._strays.add(worker.pid)
                self._forget_worker(number)
        self._end_orphans()

    def _end_orphans(self) -> None:
        """A child of this process that is not known has lost its parent: a worker that was being forked, or something
        that a compile started and let go of."""
        while orphans := self._orphans():
            for pid in orphans:
                with contextlib.suppress(ProcessLookupError, ChildProcessError):
                    os.kill(pid, signal.SIGKILL)
                    reap_group(pid)

    def _orphans(self) -> set[int]:
        known = {zygote.process.pid for zygote in self._zygotes.values()} | self._others()
        return set(machine.children(os.getpid())) - known

    def _order_zygote(self, kind: Kind, order: msgspec.Struct, fds: Iterable[int] = ()) -> None:
        zygote = self._zygotes.get(kind)
        if zygote is not None:
            with contextlib.suppress(ConnectionError):
                socket.send_fds(zygote.socket, [wire.encode(order)], list(fds))

    # Workers

    def _fork(self, number: int, kind: Kind) -> None:
        if kind not in self._zygotes:
            return  # its loss is an event that waits
        folder = None
        try:
            folder = self._workplace.new_folder(f"worker-{number}")
            mine, theirs = socket.socketpair()
        except OSError as error:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            self._happened(events.ForkFailed(number, str(error), time.monotonic()))
            return
        worker = self.workers[number] = Worker(
            kind,
            wire.Channel(mine, wire.FromWorker, wire.MAX_CONFINED_FRAME if kind.confined else wire.MAX_FRAME),
            folder,
        )
        self._loop.watch(worker.channel, lambda mask: self._hear_worker(number, worker, mask))
        with theirs:
            self._order_zygote(kind, wire.Fork(number, os.fsencode(folder), kind.confined), [theirs.fileno()])

    def _hear_worker(self, number: int, worker: Worker, mask: int) -> None:
        try:
            outcomes = self._loop.receive(worker.channel, mask)
        except (EOFError, ConnectionError):
            self._loop.unwatch(worker.channel)  # the zygote will say how it ended
            return
        except wire.ProtocolError:
            _log.exception("worker %d was killed", number)
            self._order_zygote(worker.kind, wire.Kill(number))
            return
        for outcome in outcomes:
            now = time.monotonic()
            match outcome:
                case wire.Reached() | wire.StoodAside() if worker.kind.confined:
                    # Nobody asked it at a cut point: what it makes is not shared with other compiles.
                    self._order_zygote(worker.kind, wire.Kill(number))
                case wire.Reached(suffix):
                    self._happened(events.Reached(number, suffix))
                case wire.StoodAside(suffix, prefix):
                    self._happened(events.StoodAside(number, suffix, prefix, now))
                case _:
                    self._happened(events.Finished(number, outcome, now))

    def _clear_worker(self, number: int, status: int) -> None:
        worker = self.workers.get(number)
        if worker is None:
            return
        stage, words = last_stage(str(worker.folder)), last_words(str(worker.folder))
        self._strays.add(worker.pid)
        self._forget_worker(number)
        self._happened(events.WorkerGone(number, status, stage, words, time.monotonic()))

    def _forget_worker(self, number: int) -> None:
        worker = self.workers.pop(number)
        self._loop.unwatch(worker.channel)
        worker.channel.close()
        shutil.rmtree(worker.folder, ignore_errors=True)

    @property
    def deadline(self) -> float | None:
        """Seconds until `look_around` is to be called, while tools that were killed are not dead yet."""
        return _STRAY_INTERVAL if self._strays else None

    def look_around(self) -> None:
        """Reap what is dead of the tools that killed workers left."""
        # Tools of a killed worker are adopted by this process, the nearest subreaper.
        for group in list(self._strays):
            try:
                while os.waitpid(-group, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                self._strays.discard(group)


def _group(pid: int) -> int:
    with contextlib.suppress(ProcessLookupError):
        return os.getpgid(pid)
    return 0


def _bytes_in(folder: Path) -> int:
    """Bytes of all files in a folder; of more files than any compile has, more than any limit."""
    total = 0
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for number, entry in enumerate(entries):
            if number > _MOST_FILES:
                return 1 << 60
            with contextlib.suppress(OSError):
                total += entry.stat(follow_symlinks=False).st_blocks * 512
    return total
