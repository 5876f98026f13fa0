"""The client's end of the describers: started when first needed, started again if one has left.

There is one describer for each set of Triton's variables in which something is described, as there is one zygote:
Triton reads some of them when it is imported, and keeps others in caches. Almost always that is one process.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import IO, Any

from headstart import machine
from headstart.environment import FINGERPRINT_VARIABLES
from headstart.errors import ServiceError
from headstart.inductor.recipe import Awake, Describe, FromDescriber, Rescale, Undescribed
from headstart.service.boot import last_words_file, spawn
from headstart.wire import Deframer, ProtocolError, frame, receive_blocking

_LAST_WORDS = 4 << 10  # bytes
STOPPED_PATIENCE = 10.0  # seconds for which a describer that is stopped is waited for
_MAX_FRUITLESS = 2  # starts in a row without a single answer
_MAX_DESCRIBERS = 2  # each holds a whole torch in memory

Answer = concurrent.futures.Future[Any]


class UndescribedError(Exception):
    """A source has no recipe; the text says why."""


class Describing:
    """Asks describers. `ask` belongs to one thread; answers are set in others.

    Attributes:
        starts: processes that were started.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._describers: dict[tuple[tuple[str, str], ...], _Describer] = {}  # the one that was asked last is last
        self._closed = False
        self.starts = 0

    def start(self, triton: Mapping[str, str]) -> None:
        """Start a describer, unless one is there.

        Args:
            triton: the variables in which it is to describe, as `compat.environment` has them.

        Raises:
            ServiceError: no process can be started.
        """
        with self._lock:
            if not self._closed:
                self._describer(triton)

    def awake(self, triton: Mapping[str, str]) -> threading.Event:
        """Set while the describer for these variables is there and answers at once."""
        with self._lock:
            describer = self._describers.get(_key(triton))
            return threading.Event() if describer is None else describer.awake

    def ask(self, message: Describe | Rescale) -> Answer:
        """The answer to come: a `Described` or `Jobs`, or `UndescribedError` or `ServiceError`.

        Raises:
            ServiceError: no process can be started.
        """
        triton = (message if isinstance(message, Describe) else message.described).triton
        with self._lock:
            if self._closed:
                raise ServiceError("headstart's torch.compile adapter is closed")
            describer = self._describer(triton)
            answer, send = describer.take(message)
        # Not under the lock: while this waits for room, the reader has to be able to make some.
        send()
        return answer

    def end_if_stopped(self) -> None:
        """Called now and then by those who wait: a describer that somebody has stopped for a while is replaced."""
        with self._lock:
            describers = list(self._describers.values())
        for describer in describers:
            describer.end_if_stopped()

    def close(self) -> None:
        """End all describers; what was asked is not answered."""
        with self._lock:
            self._closed = True
            describers = list(self._describers.values())
        for describer in describers:
            describer.close()

    def forget(self) -> None:
        """In a fork of the client: let go of what belongs to the parent."""
        for describer in self._describers.values():
            describer.forget()

    def _describer(self, triton: Mapping[str, str]) -> _Describer:
        key = _key(triton)
        describer = self._describers.pop(key, None)
        while describer is None and len(self._describers) >= _MAX_DESCRIBERS:
            self._describers.pop(next(iter(self._describers))).retire()
        if describer is None:
            describer = _Describer(dict(triton), self._lock, self._count)
        self._describers[key] = describer
        if not describer.alive:
            try:
                describer.start()
            except ServiceError:
                del self._describers[key]
                raise
        return describer

    def _count(self) -> None:
        self.starts += 1


def _key(triton: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(triton.items()))


class _Describer:
    """One describer, and what is asked of it. Fields are guarded by `lock`, which its owner holds during `start`."""

    def __init__(self, triton: dict[str, str], lock: threading.RLock, started: Callable[[], None]) -> None:
        self._triton = triton
        self._lock = lock
        self._started = started
        self._pending: dict[int, tuple[Describe | Rescale, Answer]] = {}
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._fruitless = 0
        self._stopped: float | None = None  # since when, as far as was looked
        self._closed = False
        self.awake = threading.Event()

    @property
    def alive(self) -> bool:
        return self._socket is not None

    def take(self, message: Describe | Rescale) -> tuple[Answer, Callable[[], None]]:
        """Take in what is asked, and return what sends it."""
        answer: Answer = concurrent.futures.Future()
        self._pending[message.ticket] = (message, answer)
        sock = self._socket
        assert sock is not None

        def send() -> None:
            with contextlib.suppress(OSError):  # a describer that is gone is noticed by the reader
                sock.sendall(frame(message))

        return answer, send

    def end_if_stopped(self) -> None:
        process = self._process
        if process is None or not machine.stopped(process.pid):
            self._stopped = None
        elif self._stopped is None:
            self._stopped = time.monotonic()
        elif time.monotonic() > self._stopped + STOPPED_PATIENCE:
            process.kill()  # the reader sees it end, and starts another

    def retire(self) -> None:
        """Have it answer what it was asked, and leave."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            sock, process = self._socket, self._process
        if sock is not None and process is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            process.kill()  # it may be importing torch, and has nothing to finish
            process.wait()

    def forget(self) -> None:
        if self._socket is not None:
            self._socket.close()
        if self._process is not None:
            self._process.returncode = 0  # it is not ours to wait for

    def start(self) -> None:
        mine, theirs = socket.socketpair()
        log = last_words_file()  # closed by the reader
        with theirs:
            try:
                process = spawn(
                    sys.executable,
                    [os.path.abspath(entry) for entry in sys.path],
                    "headstart.inductor.describer",
                    theirs.fileno(),
                    pass_fds=[theirs.fileno()],
                    unset=FINGERPRINT_VARIABLES,
                    # A pool of Inductor's own would be of no use there.
                    set_to={**self._triton, "HEADSTART": "off", "TORCH_WARM_POOL": "0"},
                    stderr=log,
                    new_session=True,
                )
            except OSError as error:
                mine.close()
                log.close()
                raise ServiceError(f"no describer: cannot start {sys.executable}: {error.strerror}") from error
        reader = threading.Thread(
            target=self._read, args=(mine, process, log), name="headstart-describer", daemon=True
        )
        try:
            reader.start()
        except RuntimeError as error:
            process.kill()
            process.wait()
            mine.close()
            log.close()
            raise ServiceError(f"no describer: this process can start no thread ({error})") from error
        self._socket, self._process = mine, process
        self._started()

    # The reader's thread

    def _read(self, sock: socket.socket, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
        with contextlib.suppress(ConnectionError, ProtocolError):
            for answer in receive_blocking(sock, Deframer(FromDescriber)):
                if isinstance(answer, Awake):
                    self.awake.set()
                    continue
                self._fruitless = 0
                with self._lock:
                    _, future = self._pending.pop(answer.ticket)
                if isinstance(answer, Undescribed):
                    future.set_exception(UndescribedError(answer.why))
                else:
                    future.set_result(answer)
        process.wait()
        words = _last_words(log)
        log.close()
        sock.close()
        with self._lock:
            self._socket = self._process = None
            self.awake.clear()
            if not self._pending or self._closed:
                return
            self._fruitless += 1
            if self._fruitless < _MAX_FRUITLESS:
                with contextlib.suppress(ServiceError, OSError):
                    self.start()
                    for message, _ in self._pending.values():
                        assert self._socket is not None
                        self._socket.sendall(frame(message))
                    return
            lost = [future for _, future in self._pending.values()]
            self._pending.clear()
        status = process.returncode
        for future in lost:
            error = f"the describer died (status {status}); its last words: {words or 'none'}"
            future.set_exception(ServiceError(error))


def _last_words(log: IO[bytes]) -> str:
    size = os.fstat(log.fileno()).st_size
    return os.pread(log.fileno(), _LAST_WORDS, max(0, size - _LAST_WORDS)).decode(errors="replace").strip()
