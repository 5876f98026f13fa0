"""The process that workers are forked from: one toolchain, imported once, one thread.

    service ── Fork + worker's socket ──▶ zygote ── fork ──▶ worker (own process group)
            ◀── Forked ──────────────────
            ── Kill ────────────────────▶ killpg
            ◀── Reaped(status) ────────── pidfd readable: killpg, then reap

The order in a burial matters: while the worker is not reaped its number cannot be given to anybody else, so its group
is killed first, tools included. The zygote never compiles. When its socket closes, however the service ended, it
kills its workers and ends. If it is killed itself, PDEATHSIG takes the workers along, and the service, a subreaper,
buries them.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import sys
import threading
import traceback

import msgspec

from headstart.system.spawn import die_with_parent, reap_group
from headstart.system.titles import set_title
from headstart.wire import Fork, Forked, Kill, Ready, Reaped, ToZygote, Unable, decode, decoder, encode
from headstart.worker import compiling, worker

_MAX_MESSAGE = 1 << 16  # bytes


def main(argument: str) -> None:
    """Run a zygote until its seqpacket socket closes.

    Args:
        argument: the socket's fd.
    """
    sock = socket.socket(fileno=int(argument))
    sock.set_inheritable(False)
    try:
        version = compiling.prepare()
    except Exception:  # noqa: BLE001 - whatever Triton raises, the service is told
        _send(sock, Unable(f"Triton cannot be imported:\n{traceback.format_exc(limit=-3)}"))
        return
    refused = _watches_no_process()
    if refused:
        _send(sock, Unable(refused))
        return
    tasks = _tasks()
    if tasks != 1:
        _send(sock, Unable(f"importing Triton {version} started {tasks - 1} threads; forking such a process is unsafe"))
        return
    set_title(f"zygote, Triton {version}")
    _send(sock, Ready(version, tasks))
    Zygote(sock).run()


def _watches_no_process() -> str:
    """Why workers cannot be watched here; empty if they can."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        return (
            f"pidfd_open, by which headstart watches its workers, is refused here ({error.strerror}): it needs Linux "
            "5.3, and a sandbox (seccomp) that allows it; see headstart doctor"
        )
    return ""


def _tasks() -> int:
    """Threads of this process, those included that Python does not know of, if /proc tells; else those it knows."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return threading.active_count()


def _send(sock: socket.socket, message: msgspec.Struct) -> None:
    with contextlib.suppress(ConnectionError):  # a service that is gone is noticed by EOF
        sock.send(encode(message))


class Zygote:
    """Forks, kills and buries workers as it is told."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._decoder = decoder(ToZygote)
        self._selector = selectors.DefaultSelector()
        self._selector.register(sock, selectors.EVENT_READ)
        self._pidfds: dict[int, tuple[int, int]] = {}  # worker: its pid and pidfd

    def run(self) -> None:
        """Until the service closes the socket."""
        try:
            while True:
                for event, _ in self._selector.select():
                    if event.data is not None:
                        self._reap(event.data)
                    elif not self._obey():
                        return
        finally:
            for number in list(self._pidfds):
                self._kill(number)
                self._reap(number)

    def _obey(self) -> bool:
        try:
            body, fds, _, _ = socket.recv_fds(self._socket, _MAX_MESSAGE, 1)
        except ConnectionError:
            return False
        if not body:
            return False
        message = decode(self._decoder, body)
        if isinstance(message, Fork):
            self._fork(message, fds[0])
        elif isinstance(message, Kill):
            self._kill(message.worker)
        return True

    def _fork(self, order: Fork, fd: int) -> None:
        zygote = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            os.close(fd)
            _send(self._socket, Unable(f"fork: {error.strerror}", order.worker))
            return
        if pid == 0:
            self._become_worker(zygote, order, fd)
        os.close(fd)
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)  # both sides do it, so that neither has to wait for the other
        try:
            pidfd = os.pidfd_open(pid)
        except OSError as error:  # no more file descriptors
            _send(self._socket, Unable(f"a worker cannot be watched: pidfd_open: {error.strerror}", order.worker))
            reap_group(pid)
            return
        self._pidfds[order.worker] = (pid, pidfd)
        self._selector.register(pidfd, selectors.EVENT_READ, order.worker)
        _send(self._socket, Forked(order.worker, pid))

    def _become_worker(self, zygote: int, order: Fork, fd: int) -> None:
        status = 1
        try:
            os.setpgid(0, 0)
            die_with_parent(zygote)
            self._selector.close()
            self._socket.close()
            for _, pidfd in self._pidfds.values():
                os.close(pidfd)
            folder = os.fsdecode(order.folder)
            worker.run(socket.socket(fileno=fd), folder, confined=order.confined, title=f"worker {order.worker}")
            status = 0
        except BaseException:  # noqa: BLE001 - the fork of a loop must not go on in it
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stderr.flush()
            # Never back into the zygote's loop, and no exit handlers of what the zygote imported.
            os._exit(status)

    def _kill(self, number: int) -> None:
        if number in self._pidfds:
            pid, _ = self._pidfds[number]
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)

    def _reap(self, number: int) -> None:
        pid, pidfd = self._pidfds.pop(number)
        self._selector.unregister(pidfd)
        status = reap_group(pid)
        os.close(pidfd)
        _send(self._socket, Reaped(number, status))
