"""How messages are framed, and sent and received without waiting.

On a stream a frame is a little-endian u32 length and that many bytes of msgpack; a seqpacket keeps messages apart by
itself and carries file descriptors beside them. Every message is a struct of plain data: decoding one never runs code.
Bytes that are no valid message raise `ProtocolError`, and the connection they came from is closed.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

from headstart.wire.messages import PROTOCOL

MAX_FRAME = 512 << 20  # bytes; an entry of a huge kernel is a few MiB
MAX_CONFINED_FRAME = 64 << 20  # bytes, from a worker that is not believed
_READ = 1 << 18  # bytes per recv


class ProtocolError(Exception):
    """The peer sent something that is not a message of this protocol."""


_encoder = msgspec.msgpack.Encoder()
M = TypeVar("M")


def encode(message: msgspec.Struct) -> bytes:
    """One message, without a frame."""
    return _encoder.encode(message)


def frame(message: msgspec.Struct) -> bytes:
    """One message, framed for a stream."""
    body = _encoder.encode(message)
    return len(body).to_bytes(4, "little") + body


def decoder(kind: Any) -> msgspec.msgpack.Decoder[Any]:
    """A decoder for a union of messages, e.g. `decoder(FromClient)`."""
    return msgspec.msgpack.Decoder(kind)


def decode(decoder: msgspec.msgpack.Decoder[M], body: bytes | memoryview) -> M:
    """One message of `decoder`'s kind.

    Raises:
        ProtocolError: `body` is no such message.
    """
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"not a message of protocol {PROTOCOL}: {error}") from None


class Deframer:
    """Turns what arrives on a stream into messages of `kind`, none longer than `max_frame` bytes."""

    def __init__(self, kind: Any, max_frame: int = MAX_FRAME) -> None:
        self._decoder = decoder(kind)
        self._max_frame = max_frame
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """The messages that `data` completes.

        Raises:
            ProtocolError: on a frame that is too long or holds no message.
        """
        self._buffer += data
        start = 0
        while len(self._buffer) - start >= 4:
            length = int.from_bytes(self._buffer[start : start + 4], "little")
            if length > self._max_frame:
                raise ProtocolError(f"a frame of {length} bytes; {self._max_frame} are allowed")
            if len(self._buffer) - start - 4 < length:
                break
            body = bytes(self._buffer[start + 4 : start + 4 + length])
            start += 4 + length
            yield decode(self._decoder, body)
        del self._buffer[:start]


class Channel:
    """A non-blocking stream: what cannot be sent now is kept and sent by `flush`.

    Not thread-safe: the service is single-threaded, and the client holds a lock.
    """

    def __init__(self, sock: socket.socket, kind: Any, max_frame: int = MAX_FRAME) -> None:
        sock.setblocking(False)
        self.socket = sock
        self._deframer = Deframer(kind, max_frame)
        self._unsent = bytearray()
        self._begun = 0  # bytes of `_unsent` that belong to a frame of which the socket took the beginning

    def fileno(self) -> int:
        return self.socket.fileno()

    @property
    def has_unsent(self) -> bool:
        """Whether `flush` has anything to do once the socket is writable."""
        return bool(self._unsent)

    @property
    def backlog(self) -> int:
        """Bytes of messages that wait for the socket, the one that it is taking left aside."""
        return len(self._unsent) - self._begun

    def queue(self, message: msgspec.Struct) -> None:
        """Keep a message until `flush`."""
        self._unsent += frame(message)

    def drop_backlog(self) -> None:
        """Forget the messages that wait. The one that the socket is taking stays, or the next could not be read."""
        del self._unsent[self._begun :]

    def send(self, message: msgspec.Struct) -> None:
        """Queue a message, and send what the socket takes at once.

        Raises:
            ConnectionError: the peer is gone.
        """
        self.queue(message)
        self.flush()

    def flush(self) -> None:
        """Send as much of what is queued as the socket takes now.

        Raises:
            ConnectionError: the peer is gone.
        """
        while self._unsent:
            try:
                sent = self.socket.send(self._unsent)
            except (BlockingIOError, InterruptedError):
                return
            end = self._begun
            while end < sent:
                end += 4 + int.from_bytes(self._unsent[end : end + 4], "little")
            self._begun = end - sent
            del self._unsent[:sent]

    def receive(self) -> list[Any]:
        """The messages that have arrived.

        Raises:
            EOFError: the peer has closed, or is gone.
            ProtocolError: it sent something else.
        """
        messages: list[Any] = []
        try:
            data = self.socket.recv(_READ)
        except (BlockingIOError, InterruptedError):
            return messages
        except ConnectionError as error:
            raise EOFError(str(error)) from None
        if not data:
            raise EOFError("closed by the peer")
        messages.extend(self._deframer.feed(data))
        return messages

    def close(self) -> None:
        """Close the socket; what was queued is lost."""
        self.socket.close()


def receive_blocking(sock: socket.socket, deframer: Deframer) -> Iterator[Any]:
    """The messages of a blocking stream, until the peer closes it."""
    while data := sock.recv(_READ):
        yield from deframer.feed(data)
