"""What is between a host and a store: the store itself, a long way, and servers that are none."""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import socket
import sys
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from benchmarks.machine import ROOT

sys.path.append(str(ROOT / "tests" / "stores" / "remote"))
import servers

KINDS = ("folder", "redis", "s3", "oci")


@contextlib.contextmanager
def stores(folder: Path) -> Iterator[dict[str, str]]:
    """The addresses of those that are there, by kind; a folder has none, and is always there."""
    with contextlib.ExitStack() as running:
        found = {}
        for kind in KINDS:
            own = folder / f"store-{kind}"
            own.mkdir(mode=0o700)
            server = None
            if servers.KINDS[kind]:
                if not servers.program(servers.KINDS[kind]):
                    continue
                server = running.enter_context(servers.running(servers.started(kind, own)))
            found[kind] = server.address if server else ""
        yield found


class _End(asyncio.Protocol):
    """One end of a connection; what it hears comes out of the other end `seconds` later.

    A delay, not a limit: what is sent while another piece is under way is under way beside it.
    """

    transport: asyncio.Transport
    other: asyncio.Transport

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._under_way: deque[bytes] = deque()  # empty: that the connection was closed

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._send(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._send(b"")

    def _send(self, data: bytes) -> None:
        # Not with the piece itself: of two that are due at one time the loop may take either first.
        self._under_way.append(data)
        loop = asyncio.get_running_loop()
        loop.call_at(loop.time() + self._seconds, self._arrive)

    def _arrive(self) -> None:
        data = self._under_way.popleft()
        if data:
            self.other.write(data)
        else:
            self.other.close()


class _NearEnd(_End):
    """That of who connects."""

    def __init__(self, seconds: float, host: str, port: int) -> None:
        super().__init__(seconds)
        self._to = host, port

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.pause_reading()
        self._connecting = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        # This host's kernel has accepted the connection at once. What comes first waits as long as that would have.
        connected = loop.time() + 2 * self._seconds
        _, far = await loop.create_connection(lambda: _End(self._seconds), *self._to)
        far.other, self.other = self.transport, far.transport
        await asyncio.sleep(max(0.0, connected - loop.time()))
        self.transport.resume_reading()


@contextlib.contextmanager
def delayed(address: str, seconds: float) -> Iterator[str]:
    """A way to `address` on which a round trip takes so long, that of connecting included, and as wide as loopback."""
    host, _, port = address.rpartition(":")
    # Not epoll, whose timeouts are whole milliseconds.
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        serving = loop.create_server(lambda: _NearEnd(seconds / 2, host, int(port)), sock=listener)
        loop.run_until_complete(serving)
        thread = threading.Thread(target=loop.run_forever, name="delayed", daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()


@contextlib.contextmanager
def silent() -> Iterator[str]:
    """A server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"  # the kernel accepts them


@contextlib.contextmanager
def dropping() -> Iterator[str]:
    """A server whose queue of connections is full: the kernel drops whatever else would connect."""
    with contextlib.ExitStack() as held:
        listener = held.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            waiting = held.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def nobody() -> str:
    """A port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"127.0.0.1:{free.getsockname()[1]}"
