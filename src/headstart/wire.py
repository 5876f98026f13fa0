"""The messages between the processes, and how they are framed.

    client  ⇄ service   stream     Hello Prepare Submit Await    / Welcome Notice Started Result Failed Leaving
                                   PrepareDescriber Ask          / DescriberState Answer Failed
    command ⇄ service   stream     Control Supersede             / Report Events Unwelcome
    service ⇄ zygote    seqpacket  Fork Kill                     / Ready Unable Forked Buried
    service ⇄ worker    stream     Assign Proceed StandAside     / Finished Failure Reached StoodAside
    service ⇄ describer stream     Question                      / Awake Answer

On a stream a frame is a little-endian u32 length and that many bytes of msgpack; a seqpacket keeps messages apart by
itself and carries file descriptors beside them. Every message is a struct of plain data: decoding one never runs code.
Bytes that are no valid message raise `ProtocolError`, and the connection they came from is closed.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

from headstart.request import CompileRequest
from headstart.toolchain import Toolchain

PROTOCOL = 5  # raised whenever a message changes its meaning
MAX_FRAME = 512 << 20  # bytes; an entry of a huge kernel is a few MiB
MAX_CONFINED_FRAME = 64 << 20  # bytes, from a worker that is not believed
_READ = 1 << 18  # bytes per recv
_SHOWN = 16 << 10  # characters of what a compile printed that a person is shown


class ProtocolError(Exception):
    """The peer sent something that is not a message of this protocol."""


class Warned(msgspec.Struct, frozen=True):
    """A warning of Python's that a compile gave.

    Attributes:
        category: qualified name of its class, as `"builtins.UserWarning"`.
        once: Triton gives it once in a process.
    """

    category: str
    text: str
    filename: str
    line: int
    once: bool = False


class CompileLog(msgspec.Struct, frozen=True):
    """What one compile printed and how long its stages took; of one that this client waited for.

    Attributes:
        stdout, stderr: of Triton and its tools.
        warnings: in order.
        times: microseconds by stage; see `headstart.service.compiling.Compiled`.
    """

    stdout: str = ""
    stderr: str = ""
    warnings: list[Warned] = []
    times: list[tuple[str, int]] = []

    @property
    def text(self) -> str:
        """What was said, for people: of each stream the end."""
        said = [f"{each.filename}:{each.line}: {each.category}: {each.text}" for each in self.warnings]
        streams = [stream[-_SHOWN:].strip() for stream in (self.stdout, self.stderr)]
        return "\n".join(filter(None, [*streams, *said]))

    def naming(self, path: str, instead: str) -> CompileLog:
        """The same, naming another file."""
        stdout, stderr = (text.replace(path, instead) for text in (self.stdout, self.stderr))
        return msgspec.structs.replace(self, stdout=stdout, stderr=stderr)


class Failure(msgspec.Struct, tag=True):
    """Why a kernel has no result: becomes the `CompileError` of its `kind`; "service" becomes a `ServiceError`.

    A worker's "space", for want of which it could not compile, is for its service alone.
    """

    kind: str
    summary: str
    stage: str = ""
    detail: str = ""
    output: str = ""
    reproduce: str = ""
    advice: str = ""
    raised: str = ""
    message: str = ""
    files: dict[str, bytes] = {}
    log: CompileLog | None = None
    needs_program: bool = False


# client → service


class Preferences(msgspec.Struct, frozen=True):
    """What a client of a shared service does not share.

    Attributes:
        cache_dir: where its entries go.
        store_limit: bytes that its store may grow to; None: no limit.
        time_limit: seconds that a compile may take; None: as the service sees fit.
        name: of the program, for people.
        memory_limit: bytes that a compile may use, tools included; None: no limit.
        early_cutoff: whether configurations that become the same program are one compile from there on.
        trusts_cache_dir: whether it uses `cache_dir` whoever else can write there.
        tools: variables of `TOOL_VARIABLES` that are set in its process.
    """

    cache_dir: bytes
    store_limit: int | None = None
    time_limit: float | None = None
    name: str = ""
    memory_limit: int | None = None
    early_cutoff: bool = False
    trusts_cache_dir: bool = False
    tools: dict[str, str] = {}


class Hello(msgspec.Struct, tag=True):
    """First message of a client."""

    protocol: int  # first in all versions
    preferences: Preferences


class Prepare(msgspec.Struct, tag=True):
    """Have workers ready for what is soon to be compiled by `toolchain`, mostly in `environment`.

    `vouched`: somebody vouches for most of it.
    """

    toolchain: Toolchain
    environment: dict[str, str]
    vouched: bool = True


class Submit(msgspec.Struct, tag=True):
    """Compile `request` with `toolchain`; `ticket` is the client's name for the answer.

    Attributes:
        background: nobody will wait for it soon.
        vouched: somebody vouches for its source; else a confined worker compiles it.
    """

    ticket: int
    toolchain: Toolchain
    request: CompileRequest
    use_store: bool
    background: bool = False
    vouched: bool = False


class DescriberSpec(msgspec.Struct, frozen=True):
    """Which process describes sources of torch.compile's.

    Attributes:
        toolchain: with the torch that it imports.
        stamp: changes when that torch does.
        settings: variables of Inductor's that it is started with, in order of their names.
    """

    toolchain: Toolchain
    stamp: str
    settings: tuple[tuple[str, str], ...]


class PrepareDescriber(msgspec.Struct, tag=True):
    """Have a describer ready; answered by a `DescriberState` once it is awake."""

    spec: DescriberSpec


class Ask(msgspec.Struct, tag=True):
    """Have a describer answer `question`, which is the adapter's to encode."""

    ticket: int
    spec: DescriberSpec
    question: bytes


class Await(msgspec.Struct, tag=True):
    """Somebody is blocked on these."""

    tickets: list[int]


# command → service


class Control(msgspec.Struct, tag=True):
    """What `headstart status`, `quiesce`, `resume` and `stop` ask for; answered by a `Report` when it is done.

    `command` is `"status"`, `"quiesce"`, `"quiesce now"`, `"resume"`, `"stop"`, or `"events"`, answered by `Events`.
    """

    command: str


class Supersede(msgspec.Struct, tag=True):
    """A service of a newer `protocol` has come: end once there are no clients. Means the same in all versions."""

    protocol: int


class ClientReport(msgspec.Struct):
    """One client. `waiting` counts its requests that are not answered yet; `since` is monotonic seconds."""

    pid: int
    name: str
    since: float
    waiting: int


class FlightReport(msgspec.Struct):
    """One kernel that is being compiled. `clients` want it; `memory` is its worker's in bytes, tools not counted."""

    name: str
    target: str
    worker: int
    started: float
    clients: int
    memory: int


class Report(msgspec.Struct, tag=True):
    """The state of a service.

    Attributes:
        pid: of the service.
        now: `time.monotonic()` of all times in here.
        started: when the service was.
        lingers: whether it stays when its last client leaves.
        quiesced: whether it starts no compiles.
        workers: how many there are.
        limit: how many there may be now.
        workers_memory: bytes.
        queued: jobs by class: awaited, early, background.
        requests: asked for so far; of these
        stored: came from the store,
        joined: were under way already, for somebody else or an earlier request,
        compiled: were compiled, of these
        taken_over: up to where another's compile could be taken over;
        failed: failed.
        clients: who is there.
        flights: what is being compiled.
        describers: processes with torch in them.
    """

    pid: int
    now: float
    started: float
    lingers: bool
    quiesced: bool
    workers: int
    limit: int
    workers_memory: int
    queued: list[int]
    requests: int
    stored: int
    joined: int
    compiled: int
    failed: int
    clients: list[ClientReport]
    flights: list[FlightReport]
    taken_over: int = 0
    describers: int = 0


class Happened(msgspec.Struct, frozen=True):
    """One event of a service's, and what was done about it, as text. `at` is monotonic seconds."""

    at: float
    event: str
    actions: list[str]


class Events(msgspec.Struct, tag=True):
    """The latest of them, oldest first; `now` is `time.monotonic()`."""

    now: float
    events: list[Happened]


# service → client


class Welcome(msgspec.Struct, tag=True):
    """Answer to `Hello`: requests will be answered. Who hears nothing but EOF was too late for a service that ended."""

    pid: int


class Unwelcome(msgspec.Struct, tag=True):
    """Answer to a first message that this service cannot serve."""

    why: str


class Leaving(msgspec.Struct, tag=True):
    """The service has hung up, and nobody is to blame for it. What is pending is to be asked for again.

    `why`: it did not end itself, but would not keep for this client what this client does not read.
    """

    why: str = ""


class Notice(msgspec.Struct, tag=True):
    """Something that a person should know: the store is damaged, say."""

    text: str


class Started(msgspec.Struct, tag=True):
    """A worker has begun; `at` is `time.monotonic()`, seconds, one clock for all processes of a host."""

    ticket: int
    worker: int
    at: float


class Result(msgspec.Struct, tag=True):
    """The entry of `key` is in the store, or, where the store could not take it, here as `entry`."""

    ticket: int
    key: str
    entry: bytes = b""
    cached: bool = False
    shared: int = 0  # bytes of shared memory that it needs
    started: float = 0.0
    finished: float = 0.0
    cpu_s: float = 0.0
    log: CompileLog | None = None  # None: it was compiled before


class Failed(msgspec.Struct, tag=True):
    """This request has no result."""

    ticket: int
    failure: Failure


class DescriberState(msgspec.Struct, tag=True):
    """Whether the describer with these settings, which this client asks, answers within milliseconds."""

    settings: tuple[tuple[str, str], ...]
    awake: bool


class Answer(msgspec.Struct, tag=True):
    """Answer to `Ask`, and to `Question`."""

    ticket: int
    answer: bytes


# service → zygote


class Fork(msgspec.Struct, tag=True):
    """Fork a worker; its socket comes with this message. `confined`: it confines itself before it does anything."""

    worker: int
    folder: bytes
    confined: bool = False


class Kill(msgspec.Struct, tag=True):
    """Kill a worker and everything it started."""

    worker: int


# zygote → service


class Ready(msgspec.Struct, tag=True):
    """Triton is imported; `tasks` threads run (one, or forking would be unsafe)."""

    triton_version: str
    tasks: int


class Unable(msgspec.Struct, tag=True):
    """The toolchain cannot be used, or (with `worker`) one worker could not be forked."""

    why: str
    worker: int = -1


class Forked(msgspec.Struct, tag=True):
    """A worker runs. `pid` is of use only to a service that has inherited the worker from a dead zygote."""

    worker: int
    pid: int


class Buried(msgspec.Struct, tag=True):
    """A worker is gone, its process group killed and itself reaped. `status`: exit code, or minus the signal."""

    worker: int
    status: int


# service ⇄ worker


class Assign(msgspec.Struct, tag=True):
    """Compile `request`; publish the entry under `key` in the cache folder `store` (empty: send it back instead).

    With `early_cutoff`, ask at each seam. `front` is what was made before another worker stood aside at one.
    `trusted`: as the client said of its cache folder. `torch_dir`: see `Toolchain`.
    """

    key: str
    toolchain: str
    request: CompileRequest
    store: bytes
    early_cutoff: bool = False
    front: bytes = b""
    trusted: bool = False
    torch_dir: str = ""


class Reached(msgspec.Struct, tag=True):
    """The compile has come to `tail`; answered by `Proceed` or `StandAside`."""

    tail: str


class Proceed(msgspec.Struct, tag=True):
    """Nobody is at this tail."""


class StandAside(msgspec.Struct, tag=True):
    """Somebody is at this tail: give the compile back."""


class StoodAside(msgspec.Struct, tag=True):
    """The compile is to be taken up, with `front`, when somebody is done with `tail`."""

    tail: str
    front: bytes


class Finished(msgspec.Struct, tag=True):
    """Compiled, and in the store, or else here as `entry`.

    Times are `time.monotonic()` seconds; `cpu_s` counts the tools too.
    """

    stored: bool
    started: float
    finished: float
    entry: bytes = b""
    cached: bool = False  # another service's worker was faster, and the entry is its
    cpu_s: float = 0.0
    shared: int = 0  # bytes of shared memory that the kernel needs
    log: CompileLog | None = None
    notice: str = ""
    taken_over: bool = False  # from the first tail on that somebody else had made


# service ⇄ describer


class Question(msgspec.Struct, tag=True):
    """What some client asks; `ticket` is the service's name for the answer."""

    ticket: int
    question: bytes


class Awake(msgspec.Struct, tag=True):
    """torch is imported; from now on answers take milliseconds."""


FromClient = Hello | Prepare | Submit | Await | PrepareDescriber | Ask | Control | Supersede
FromService = (
    Welcome | Unwelcome | Notice | Started | Result | Failed | Leaving | Report | Events | DescriberState | Answer
)
ToZygote = Fork | Kill
FromZygote = Ready | Unable | Forked | Buried
ToWorker = Assign | Proceed | StandAside
FromWorker = Finished | Failure | Reached | StoodAside
ToDescriber = Question
FromDescriber = Awake | Answer

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
