"""What clients say of stores of other hosts, and what the service and the process that has them tell one another.

    service ── Serve ────▶ remote process     its first message: which remotes, and whom they are believed
            ── LookUp ───▶                    keys of one turn of the service's loop; each is answered once
            ── Hurry ────▶                    somebody waits for what was looked up in the background
            ── Offer ────▶                    an entry is in a local store now: others may want it
            ── Disclaim ─▶                    what was claimed there will not be made here
            ◀── Awake ────                    it can answer
            ◀── LookedUp ─                    what became of some keys
            ◀── Claimed ──                    another host makes these: they are answered later
            ◀── Availability, RemoteCounts, RemoteSays
    client  ── CountRemotes ─▶ service        how it stands with those that it uses
            ◀─ RemoteCounts ──

Entries themselves do not travel here: the remote process reads and writes local stores, as workers do.
"""

from __future__ import annotations

import msgspec

DEFAULT_DEADLINE = 0.1  # seconds
MAX_DEADLINE = 86_400.0  # seconds: as good as for ever, and still a timeout that the kernel takes


class RemoteSettings(msgspec.Struct, frozen=True):
    """Which stores of other hosts a client uses, and how. Nobody prints one: there may be passwords in `urls`.

    Attributes:
        urls: separated by blanks, the nearest first.
        trusts_all: whether entries count that no trusted key has signed.
        deadline: seconds of silence after which nobody waits for a look-up any more; `MAX_DEADLINE` at most.
        config_dir: where the keys are; empty: the user can have none.
        key: which of the user's own pairs signs; empty: the only one.
        claims: whether hosts tell one another what they make.
    """

    urls: str
    trusts_all: bool = False
    deadline: float = DEFAULT_DEADLINE
    config_dir: bytes = b""
    key: str = ""
    claims: bool = False

    def __repr__(self) -> str:
        return "RemoteSettings(…)"


class Serve(msgspec.Struct, tag=True):
    """What the process is for."""

    settings: RemoteSettings


class Wanted(msgspec.Struct, frozen=True):
    """One entry that is looked for.

    Attributes:
        ticket: the service's name for the answer.
        key: of the entry; it is none of another `kind`, or of a request with another `request_digest`.
        lease: seconds for which the key is claimed before it is looked for; 0: it is not.
    """

    ticket: int
    key: str
    kind: str
    request_digest: str
    lease: float = 0.0


class LookUp(msgspec.Struct, tag=True):
    """Look for entries, and publish those that are there into a local store.

    Attributes:
        wanted: what is looked for.
        cache_dir: of that store.
        trusted: as the client said of that folder.
        background: nobody waits for them soon.
    """

    wanted: list[Wanted]
    cache_dir: bytes
    trusted: bool = False
    background: bool = False


class Hurry(msgspec.Struct, tag=True):
    """Somebody waits for these (tickets) by now. Others than those of the background are passed over."""

    tickets: list[int]


class Offer(msgspec.Struct, tag=True):
    """The entry of `key` is in the store of `cache_dir`, made below this service: sign it and publish it.

    Others write that store, too. What is signed is what has this SHA-256, and nothing else.
    """

    key: str
    cache_dir: bytes
    trusted: bool
    sha256: bytes


class Disclaim(msgspec.Struct, tag=True):
    """`key` is not going to be offered: another host that waits for it may as well begin."""

    key: str


class FoundRemotely(msgspec.Struct, frozen=True):
    """An entry that a remote had: it is in the local store now, or, where that cannot be written, here."""

    ticket: int
    entry: bytes = b""


class LookedUp(msgspec.Struct, tag=True):
    """What became of some of what was wanted: found, or (tickets) missing. An empty one: a store is answering."""

    found: list[FoundRemotely]
    missing: list[int]


class Claimed(msgspec.Struct, tag=True):
    """Another host makes these (tickets); they are answered when it has, or within `seconds`."""

    tickets: list[int]
    seconds: float


class Availability(msgspec.Struct, tag=True):
    """Whether it is any use to ask.

    Attributes:
        usable: the process says it whenever that changes.
        for_good: it is none, and will be none for another process with these settings either: they are wrong.
    """

    usable: bool
    for_good: bool = False


class RemoteReport(msgspec.Struct, frozen=True):
    """What one remote was good for so far.

    Attributes:
        name: its URL, without credentials.
        hits, misses: keys that it had, and had not.
        hit_bytes: of what it had.
        published, published_bytes: entries that it took.
        errors: calls that failed.
        seconds: that calls took, of all threads together.
    """

    name: str
    hits: int = 0
    misses: int = 0
    hit_bytes: int = 0
    published: int = 0
    published_bytes: int = 0
    errors: int = 0
    seconds: float = 0.0

    def __add__(self, other: RemoteReport) -> RemoteReport:
        (name, *mine), (_, *others) = msgspec.structs.astuple(self), msgspec.structs.astuple(other)
        return RemoteReport(name, *(one + another for one, another in zip(mine, others, strict=True)))


class RemoteCounts(msgspec.Struct, tag=True, frozen=True):
    """How it stands with the remotes of one `RemoteSettings`.

    Attributes:
        tiers: each of them, nearest first.
        refused: entries that were damaged, or that nobody trusted had signed.
        dropped: entries that were to be published and were not, for lack of room, time, or a remote that answers, and
            copies that were not made in nearer remotes.
        offered: entries that were to be published, which the service counts;
        settled: those of which it is known what became: a remote has had them before, or
        published: has taken them, or
        unpublished: none has: why, and how many.
    """

    tiers: list[RemoteReport] = []
    refused: int = 0
    dropped: int = 0
    offered: int = 0
    settled: int = 0
    published: int = 0
    unpublished: dict[str, int] = {}

    def __add__(self, other: RemoteCounts) -> RemoteCounts:
        tiers = [one + another for one, another in zip(self.tiers, other.tiers, strict=False)]
        reasons = [*self.unpublished, *(each for each in other.unpublished if each not in self.unpublished)]
        return RemoteCounts(
            tiers or self.tiers or other.tiers,
            self.refused + other.refused,
            self.dropped + other.dropped,
            self.offered + other.offered,
            self.settled + other.settled,
            self.published + other.published,
            {each: self.unpublished.get(each, 0) + other.unpublished.get(each, 0) for each in reasons},
        )


class CountRemotes(msgspec.Struct, tag=True):
    """How does it stand with the remotes that this client uses? Answered by `RemoteCounts`, in the order of asking.

    What was offered for this client's sake before it asks is counted.
    """


class RemoteSays(msgspec.Struct, tag=True):
    """Something that a person should know; for `quiet` ones the service's log is enough."""

    text: str
    quiet: bool = False
