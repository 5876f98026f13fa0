"""The messages between the processes.

    client  ⇄ service   stream     Hello Prepare Submit Await    / Welcome Notice Started Result Failed Leaving
                                   CountRemotes                  / RemoteCounts
                                   PrepareDescriber SubmitSource / DescriberState SourceLocated SourceCompiled
                                                                   AddedCompiled
    command ⇄ service   stream     Control Supersede             / Report Events Unwelcome
    service ⇄ zygote    seqpacket  Fork Kill                     / Ready Unable Forked Reaped
    service ⇄ worker    stream     Assign Proceed StandAside     / Finished Failure Reached StoodAside
    service ⇄ describer stream     Question                      / Awake Answer
    service ⇄ remote    stream     Serve LookUp Hurry Offer      / Awake LookedUp Claimed Availability RemoteCounts
                                   Disclaim                        RemoteSays
    service ⇄ bridge    stream     Join Lend TakeBack            / Awake FarmState Begun Made Unmade FarmSays

Every message is a struct of plain data; `channel.py` says how they are framed.
"""

from __future__ import annotations

import msgspec

from headstart.model.request import CompileRequest
from headstart.model.toolchain import Toolchain
from headstart.wire.describing import Answer, Awake, DescriberState, PrepareDescriber, Question
from headstart.wire.farm import Begun, FarmSays, FarmSettings, FarmState, Join, Lend, Made, TakeBack, Unmade
from headstart.wire.outcomes import CompileLog, Failed, Failure, Result
from headstart.wire.remotes import (
    Availability,
    Claimed,
    CountRemotes,
    Disclaim,
    Hurry,
    LookedUp,
    LookUp,
    Offer,
    RemoteCounts,
    RemoteSays,
    RemoteSettings,
    Serve,
)
from headstart.wire.reports import Control, Events, Report, Supersede
from headstart.wire.sources import AddedCompiled, SourceCompiled, SourceLocated, SubmitSource

PROTOCOL = 8  # raised whenever a message changes its meaning


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
        remote: the stores of other hosts that it uses; None: none.
        farm: where its kernels may be compiled as well; None: nowhere.
    """

    cache_dir: bytes
    store_limit: int | None = None
    time_limit: float | None = None
    name: str = ""
    memory_limit: int | None = None
    early_cutoff: bool = False
    trusts_cache_dir: bool = False
    tools: dict[str, str] = {}
    remote: RemoteSettings | None = None
    farm: FarmSettings | None = None


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


class TritonCache(msgspec.Struct, frozen=True):
    """Where a kernel is to be an entry of Triton's own cache as well: for a program that would write it there itself.

    Attributes:
        folder: of the entry.
        hash: Triton's.
        name: of the kernel, as it is in the binary.
    """

    folder: bytes
    hash: str
    name: str


class Submit(msgspec.Struct, tag=True):
    """Compile `request` with `toolchain`; `ticket` is the client's name for the answer.

    Attributes:
        background: nobody will wait for it soon.
        vouched: somebody vouches for its source; else a confined worker compiles it.
        triton_cache: where it is to be as well; not for sources that nobody vouches for.
    """

    ticket: int
    toolchain: Toolchain
    request: CompileRequest
    use_store: bool
    background: bool = False
    vouched: bool = False
    triton_cache: TritonCache | None = None


class Await(msgspec.Struct, tag=True, omit_defaults=True):
    """Somebody is blocked on `tickets`; nobody wants `withdrawn` any more, which are not answered then."""

    tickets: list[int]
    withdrawn: list[int] = []


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


class Reaped(msgspec.Struct, tag=True):
    """A worker is gone, its process group killed and itself reaped. `status`: exit code, or minus the signal."""

    worker: int
    status: int


# service ⇄ worker


class Assign(msgspec.Struct, tag=True):
    """Compile `request`; publish the entry under `key` in the cache folder `store` (empty: send it back instead).

    With `early_cutoff`, ask at each cut point. `prefix` is what was made before another worker stood aside at one.
    `trusted`: as the client said of its cache folder. `torch_dir`: see `Toolchain`.
    """

    key: str
    toolchain: str
    request: CompileRequest
    store: bytes
    early_cutoff: bool = False
    prefix: bytes = b""
    trusted: bool = False
    torch_dir: str = ""
    triton_cache: TritonCache | None = None


class Reached(msgspec.Struct, tag=True):
    """The compile has come to `suffix`; answered by `Proceed` or `StandAside`."""

    suffix: str


class Proceed(msgspec.Struct, tag=True):
    """Nobody is at this suffix."""


class StandAside(msgspec.Struct, tag=True):
    """Somebody is at this suffix: give the compile back."""


class StoodAside(msgspec.Struct, tag=True):
    """The compile is to be taken up, with `prefix`, when somebody is done with `suffix`."""

    suffix: str
    prefix: bytes


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
    taken_over: bool = False  # from the first suffix on that somebody else had made
    in_triton_cache: bytes = b""  # the folder that it was written to
    registers: int | None = None
    sha256: bytes = b""  # of the entry, where it is in the store and this worker made it


# service ⇄ describer


FromClient = Hello | Prepare | Submit | Await | PrepareDescriber | SubmitSource | CountRemotes | Control | Supersede
FromService = (
    Welcome
    | Unwelcome
    | Notice
    | Started
    | Result
    | Failed
    | Leaving
    | Report
    | Events
    | DescriberState
    | SourceLocated
    | SourceCompiled
    | AddedCompiled
    | RemoteCounts
)
ToZygote = Fork | Kill
FromZygote = Ready | Unable | Forked | Reaped
ToWorker = Assign | Proceed | StandAside
FromWorker = Finished | Failure | Reached | StoodAside
ToDescriber = Question
FromDescriber = Awake | Answer
ToRemote = Serve | LookUp | Hurry | Offer | Disclaim
FromRemote = Awake | LookedUp | Claimed | Availability | RemoteCounts | RemoteSays
ToBridge = Join | Lend | TakeBack
FromBridge = Awake | FarmState | Begun | Made | Unmade | FarmSays
