"""The client's end of the describer: started when first needed, started again if it has left."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from typing import IO, Any

from headstart import machine
from headstart.errors import ServiceError
from headstart.inductor import compat
from headstart.inductor.recipe import Awake, Describe, FromDescriber, Rescale, Undescribed
from headstart.service.boot import last_words_file, spawn
from headstart.wire import Deframer, ProtocolError, frame, receive_blocking

_LAST_WORDS = 4 << 10  # bytes
STOPPED_PATIENCE = 10.0  # seconds for which a describer that is stopped is waited for
_MAX_FRUITLESS = 2  # starts in a row without a single answer


class UndescribedError(Exception):
    """A source has no recipe; the text says why."""


class Describing:
    """Asks a describer. `ask` belongs to one thread; answers are set in another.

    Args:
        settings: Inductor's variables, as the describer is to have them: it reads them when it imports torch.

    Attributes:
        settings: the same.
        starts: how often a describer was started.
        awake: set while it answers at once.
    """

    def __init__(self, settings: dict[str, str]) -> None:
        self.settings = settings
        self._lock = threading.Lock()
        self._pending: dict[int, tuple[Describe | Rescale, concurrent.futures.Future[Any]]] = {}
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._fruitless = 0
        self._asked = False
        self._stopped: float | None = None  # since when, as far as was looked
        self._closed = False
        self.starts = 0
        self.awake = threading.Event()

    def start(self) -> None:
        """Start a describer, unless one is there.

        Raises:
            ServiceError: no process can be started.
        """
        with self._lock:
            if self._socket is None and not self._closed:
                self._start()

    def ask(self, message: Describe | Rescale) -> concurrent.futures.Future[Any]:
        """The answer to come: a `Described` or `Jobs`, or `UndescribedError` or `ServiceError`.

        Raises:
            ServiceError: no process can be started.
        """
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        with self._lock:
            if self._closed:
                raise ServiceError("headstart's torch.compile adapter is closed")
            if self._socket is None:
                self._start()
            self._asked = True
            self._pending[message.ticket] = (message, future)
            sock = self._socket
        assert sock is not None
        # Not under the lock: while this waits for room, the reader has to be able to make some.
        with contextlib.suppress(OSError):  # a describer that is gone is noticed by the reader
            sock.sendall(frame(message))
        return future

    @property
    def unasked(self) -> bool:
        """Whether nobody has asked anything yet."""
        return not self._asked

    def end_if_stopped(self) -> None:
        """Called now and then by those who wait: a describer that somebody has stopped for a while is replaced."""
        process = self._process
        if process is None or not machine.stopped(process.pid):
            self._stopped = None
        elif self._stopped is None:
            self._stopped = time.monotonic()
        elif time.monotonic() > self._stopped + STOPPED_PATIENCE:
            process.kill()  # the reader sees it end, and starts another

    def close(self) -> None:
        """End the describer; what was asked is not answered."""
        with self._lock:
            self._closed = True
            sock, process = self._socket, self._process
        if sock is not None and process is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            process.kill()  # it may be importing torch, and has nothing to finish
            process.wait()

    def forget(self) -> None:
        """In a fork of the client: let go of what belongs to the parent."""
        if self._socket is not None:
            self._socket.close()
        if self._process is not None:
            self._process.returncode = 0  # it is not ours to wait for

    def _start(self) -> None:
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
                    unset=compat.settings(),
                    # A pool of Inductor's own would be of no use there.
                    set_to={**self.settings, **_folder(), "HEADSTART": "off", "TORCH_WARM_POOL": "0"},
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
        self.starts += 1

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
                    self._start()
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


def _folder() -> dict[str, str]:
    """Torch makes Inductor's cache folder when it is imported. A relative one is the program's to make, where it is by
    then; each question says where that is, and until then the describer has one that is there.
    """
    name = "TORCHINDUCTOR_CACHE_DIR"
    return {} if os.path.isabs(os.environ.get(name, "/")) else {name: "/"}


def _last_words(log: IO[bytes]) -> str:
    size = os.fstat(log.fileno()).st_size
    return os.pread(log.fileno(), _LAST_WORDS, max(0, size - _LAST_WORDS)).decode(errors="replace").strip()
