"""What is said of kernels that other machines compile: between a service, its bridge to a Ray cluster, and the nodes.

    service ── Join ─────▶ bridge     its first message: which cluster
            ── Lend ─────▶            jobs that may be compiled elsewhere; each is answered once
            ── TakeBack ─▶            nobody wants these from there any more, unless they have begun
            ◀─ Awake ─────            it has joined the cluster
            ◀─ FarmState ─            what there is room for, and who has it
            ◀─ Begun ─────            these (tickets) are being compiled
            ◀─ Made ──────            these are in the local store
            ◀─ Unmade ────            these are not made there
            ◀─ FarmSays ──
    bridge  ── Exchange ─▶ node       new jobs, and which results have arrived; one Ray call
            ◀─ Exchanged ─            what has come of jobs since

The bridge publishes entries into local stores, as remote processes do. Between bridge and nodes a message is one
`bytes` (`pack`, `unpack`): compressed, since the sources of a sweep are much alike.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec

MAX_PACKED = 512 << 20  # bytes of a message, unpacked
MAX_SAID = 64 << 20  # bytes of what a node says, unpacked: `Exchange.most`, or one result that is larger
MAX_WORKERS = 1024
MAX_TEXT = 500  # characters
_LEVEL = 3

Message = TypeVar("Message", bound=msgspec.Struct)

# What a node says is kept, and handed on to the service: so all of it has an end. What is longer is no message.
_Text = Annotated[str, msgspec.Meta(max_length=MAX_TEXT)]
_Number = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
_Tickets = Annotated[list[int], msgspec.Meta(max_length=1 << 16)]


class FarmSettings(msgspec.Struct, frozen=True):
    """Which cluster a client's kernels may be compiled on.

    Attributes:
        address: `"ray"` for the cluster that this host or job belongs to, or as `ray.init` takes it.
        signed: whether entries count only if a key that the user trusts has signed them.
        config_dir: where the keys are; empty: the user can have none.
        ray_address: the client's `RAY_ADDRESS`, which says which cluster `"ray"` is; empty: it has none.
    """

    address: str
    signed: bool = False
    config_dir: bytes = b""
    ray_address: str = ""


class Join(msgspec.Struct, tag=True):
    """What the bridge is for."""

    settings: FarmSettings


class LentJob(msgspec.Struct, frozen=True):
    """One compile.

    Attributes:
        ticket: the service's name for the answer; they grow.
        key: of the entry.
        toolchain: digest of what must compile it.
        request_digest: that the entry must have.
        request: a `CompileRequest`, encoded: the bridge reads none.
        vouched: whether somebody vouches for its source here.
        background: nobody waits for it soon.
        estimate: seconds that it may take.
    """

    ticket: int
    key: str
    toolchain: str
    request_digest: str
    request: bytes
    vouched: bool = False
    background: bool = False
    estimate: float = 0.0


class Lend(msgspec.Struct, tag=True):
    """Jobs that may be compiled elsewhere, for the store of `cache_dir`; `trusted`: as the client said of it."""

    jobs: list[LentJob]
    cache_dir: bytes
    trusted: bool = False


class TakeBack(msgspec.Struct, tag=True):
    """What has not begun is not to begin. `late`: their deadlines are over; else they are answered, or unwanted."""

    tickets: list[int]
    late: bool = False


class MadeEntry(msgspec.Struct, frozen=True):
    """The entry of a ticket.

    Attributes:
        node: who made it, for people.
        sha256: of the entry in the local store.
        entry: itself, where that store cannot be written.
    """

    ticket: int
    node: str
    sha256: bytes
    entry: bytes = b""


class Made(msgspec.Struct, tag=True):
    """These are there."""

    entries: list[MadeEntry]


class Begun(msgspec.Struct, tag=True):
    """Workers on nodes are at these."""

    tickets: list[int]


class Unmade(msgspec.Struct, tag=True):
    """These are not made there: no node takes them, or they failed. The service is to see to them."""

    tickets: list[int]


class FarmNode(msgspec.Struct, frozen=True):
    """One node, for people.

    Attributes:
        name: of its actor.
        workers: compiles that it runs at once.
        running: names of kernels that it compiles now, whoever asked.
        queued: how many wait there.
        compiled: how many it has made for anybody.
        out: how many this host has lent it.
        refused: why it is lent nothing; empty: it may be.
    """

    name: str
    workers: int = 0
    running: list[str] = []
    queued: int = 0
    compiled: int = 0
    out: int = 0
    refused: str = ""


class FarmState(msgspec.Struct, tag=True, frozen=True):
    """What there is room for.

    Attributes:
        seen: all tickets up to this one are counted in what follows.
        idle: by toolchain: how many jobs would begin at once.
        room: by toolchain: how many more would be taken.
        delay: seconds from lending to the answer of a compile that takes none.
        nodes: who is there.
    """

    seen: int = 0
    idle: dict[str, int] = {}
    room: dict[str, int] = {}
    delay: float = 0.0
    nodes: list[FarmNode] = []


class FarmSays(msgspec.Struct, tag=True):
    """Something that a person should know; for `quiet` ones the service's log is enough."""

    text: str
    quiet: bool = False


class FarmReport(msgspec.Struct, frozen=True):
    """What a farm was good for so far, for `headstart status`.

    Attributes:
        address: as in `FarmSettings`.
        state: the latest.
        out: jobs that are lent now.
        lent: that were lent in all; of these
        made: were made there, of these
        late: after their deadline;
        returned: were not made there, or not in time.
    """

    address: str
    state: FarmState = FarmState()
    out: int = 0
    lent: int = 0
    made: int = 0
    late: int = 0
    returned: int = 0


# bridge ⇄ node


class NodeOptions(msgspec.Struct, frozen=True):
    """What an actor is started with.

    Attributes:
        workers: compiles at once; 0: as many as the node has CPUs for it.
        cache_dir: its cache folder, `{node}` standing for its name; empty: the default one of its environment.
        trusts: whether it compiles unconfined what somebody vouches for where it comes from.
        niceness: by how much it and its workers are nicer than Ray has made them.
    """

    workers: int = 0
    cache_dir: str = ""
    trusts: bool = False
    niceness: int = 0


class NodeJob(msgspec.Struct, frozen=True):
    """A `LentJob`, as a node is told of it."""

    ticket: int
    key: str
    toolchain: str
    request: bytes
    vouched: bool = False
    background: bool = False


class NodeResult(msgspec.Struct, frozen=True):
    """What became of a job: a sealed entry, or why there is none. `refused`: this node makes none of that toolchain."""

    ticket: int
    blob: bytes = b""
    why: _Text = ""
    refused: bool = False


class Exchange(msgspec.Struct, tag=True):
    """One call of a bridge's.

    Attributes:
        session: names the bridge.
        acked: the last `serial` whose results have arrived; what came before is sent no more.
        jobs: new ones; one that the node knows already changes nothing.
        dropped: tickets that are not to begin any more.
        wait: seconds that the node may take until it has something to say.
        most: bytes of results that it may say at once; one result is always said.
        signed: whether the node is to sign what it made.
    """

    session: str
    acked: int = 0
    jobs: Annotated[list[NodeJob], msgspec.Meta(max_length=1 << 16)] = []
    dropped: _Tickets = []
    wait: float = 0.0
    most: int = 8 << 20
    signed: bool = False


class NodeState(msgspec.Struct, frozen=True):
    """How a node is.

    Attributes:
        workers, running, queued, compiled: as in `FarmNode`.
        toolchains: digests of what it can compile with.
        triton_version: for people.
        unable: why it compiles nothing, for people; empty: it may.
    """

    workers: Annotated[int, msgspec.Meta(ge=0, le=MAX_WORKERS)]
    running: Annotated[list[_Text], msgspec.Meta(max_length=MAX_WORKERS)]
    queued: _Number
    compiled: _Number
    toolchains: Annotated[list[_Text], msgspec.Meta(max_length=16)]
    triton_version: _Text = ""
    unable: _Text = ""


class Exchanged(msgspec.Struct, tag=True):
    """The answer.

    Attributes:
        incarnation: another one than before: the actor was started again, and knows nothing of earlier jobs.
        serial: of these results, to be acknowledged.
        results: not acknowledged so far, as many as fit.
        begun: tickets of this session that workers are at.
        has_more: whether there are results that did not fit.
        state: how the node is.
    """

    incarnation: _Text
    serial: int
    results: Annotated[list[NodeResult], msgspec.Meta(max_length=1 << 16)]
    begun: _Tickets
    has_more: bool
    state: NodeState


def pack(message: msgspec.Struct) -> bytes:
    """One message as bytes."""
    import zstandard  # few have a farm

    return zstandard.ZstdCompressor(level=_LEVEL).compress(msgspec.msgpack.encode(message))


def unpack(data: bytes, kind: type[Message], most: int = MAX_PACKED) -> Message:
    """What `pack` made; `most`: bytes of it, unpacked.

    Raises:
        ValueError: it is no such message.
    """
    import zstandard

    try:
        if zstandard.get_frame_parameters(data).content_size > most:
            raise ValueError(f"no message of a farm's: it says that it is longer than {most} bytes")
        unpacked = zstandard.ZstdDecompressor().decompress(data, max_output_size=most)
        return msgspec.msgpack.decode(unpacked, type=kind)
    except (zstandard.ZstdError, msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"no message of a farm's: {error}") from None
