"""Early cutoff: what has become the same program is one compile from there on.

    source ─▶ ttir ─▶ ttgir ─┊─▶ llir ─▶ ptx ─┊─▶ cubin          ┊  a seam; what lies behind it is a *tail*
              front end      ┊                ┊

A tail is known by its key: everything that its stages read. Whoever compiles in full keeps, for each seam passed, a
small entry that names the entry with the artifacts (`Tail`). Whoever reaches a seam whose tail is known is done: its
own *front*, what it has made so far, and the other's tail are what the whole pipeline would have given.

What is relied on:

* The text of the module at a seam, debug locations included, and the metadata there, which hold all options, are all
  that the stages behind it read. `UNREAD` is what of the metadata they do not: with the versions of Triton that
  are known, a test watches them.
* They change metadata by setting keys, to what follows from the above.

So a compile takes no part if anything else could have a say: see `Compiler`, which tells of a seam or does not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from headstart import keys
from headstart.entry import Entry, pack_entry
from headstart.environment import TOOL_VARIABLES
from headstart.errors import DamagedError
from headstart.request import CompileRequest
from headstart.store import DiskStore
from headstart.wire import CompileLog

FORMAT = "tail 2"  # raised whenever a tail, or its key, changes its meaning
KIND = "tail"  # of such an entry, and what its artifact is called

_FRONT_END = frozenset({"hash", "num_stages"})
_OF_LLIR = frozenset(
    {
        *(
            "shared",
            "tmem_size",
            "num_warps",
            "tensordesc_meta",
            "global_scratch_size",
            "global_scratch_align",
        ),
        *("profile_scratch_size", "profile_scratch_align"),
    }
)
# By the stage that a tail begins with, the artifact that it reads.
SEAMS = {"llir": "ttgir", "cubin": "ptx", "hsaco": "amdgcn"}
# By the same, what of the metadata has no say in the tail: the pipeliner has run, and an assembler reads only text.
UNREAD = {"llir": _FRONT_END, "cubin": _FRONT_END | _OF_LLIR, "hsaco": _FRONT_END | _OF_LLIR}


class Seam(msgspec.Struct, frozen=True):
    """A seam that a compile has reached.

    Attributes:
        tail: the key of what lies behind it.
        metadata: before it.
        artifacts: that had been made.
        printed: bytes that the compiler had printed.
    """

    tail: str
    metadata: dict[str, Any]
    artifacts: list[str]
    printed: int


class Front(msgspec.Struct, frozen=True):
    """What a compile has made up to the last of its `seams`, and what that took. Travels; means nothing elsewhere."""

    artifacts: dict[str, bytes]
    seams: list[Seam]
    wall_s: float = 0.0
    cpu_s: float = 0.0
    log: CompileLog = CompileLog()


class Tail(msgspec.Struct, frozen=True):
    """What lies behind a seam.

    Attributes:
        entry: the key of an entry that has the artifacts.
        artifacts: their names, in order, and the SHA-256 of each.
        metadata: what was added or set to another value, in order.
    """

    entry: str
    artifacts: dict[str, bytes]
    metadata: dict[str, Any]


class Product(NamedTuple):
    """What a whole pipeline gives."""

    artifacts: dict[str, bytes]
    metadata: dict[str, Any]


class Cut(Exception):
    """A compile ends at a seam. `product` is None if somebody else is at the tail."""

    def __init__(self, front: Front, product: Product | None) -> None:
        super().__init__(front.seams[-1].tail)
        self.front = front
        self.product = product


_front_decoder = msgspec.msgpack.Decoder(Front)
_tail_decoder = msgspec.msgpack.Decoder(Tail)
_encoder = msgspec.msgpack.Encoder()


class Tails:
    """Tails in a store, as entries beside those that they name."""

    def __init__(self, store: DiskStore) -> None:
        self._store = store

    def finish(self, front: Front) -> Product | None:
        """`front` with the tail that it lacks; None if there is none, or its entry is gone or another by now."""
        seam = front.seams[-1]
        found = self._store.find(seam.tail, kind=KIND, request_digest=seam.tail)
        if found is None:
            return None
        try:
            tail = _tail_decoder.decode(found.artifact(KIND))
            entry = self._store.find(tail.entry, kind="kernel")
            if entry is None or _digests(entry, tail.artifacts) != tail.artifacts:
                return None
            behind = {name: entry.artifact(name) for name in tail.artifacts}
        except DamagedError as error:
            self._store.set_aside(seam.tail, error.reason)
            return None
        except (msgspec.DecodeError, OSError):
            return None
        return Product({**front.artifacts, **behind}, {**seam.metadata, **tail.metadata})

    def keep(self, entry: Entry, seams: Iterable[Seam], printed: int) -> None:
        """Make `entry`, which passed `seams`, known as one that has the tails there. `printed`: bytes, in the end.

        Raises:
            StoreUnavailable: they cannot be written.
        """
        for seam in seams:
            # Whoever takes over a tail would miss what its stages print.
            if seam.printed == printed:
                self._keep(entry, seam)

    def _keep(self, entry: Entry, seam: Seam) -> None:
        before, after = seam.metadata, entry.metadata
        if before.keys() - after.keys():
            return  # not what is relied on
        changed = {
            name: value
            for name, value in after.items()
            if name not in before or repr(before[name]) != repr(value)
        }
        names = [name for name in entry.artifact_names if name not in seam.artifacts]
        tail = Tail(entry.key, _digests(entry, names), changed)
        parts = pack_entry(
            key=seam.tail,
            kind=KIND,
            name=entry.name,
            request_digest=seam.tail,
            toolchain=entry.header.toolchain,
            target=entry.header.target,
            components=[("format", FORMAT)],
            metadata={},
            artifacts={KIND: _encoder.encode(tail)},
            compile_wall_s=0.0,
            compile_cpu_s=0.0,
            triton_version="",
            request=b"",
            output="",
        )
        self._store.publish(seam.tail, parts)


class Cutter:
    """Follows one compile from seam to seam, and ends it where that is possible.

    Args:
        toolchain: digest of what compiles.
        request: that is compiled.
        tails: that are known.
        ask: told the key of a tail; whether to go on, because nobody else is at it.
        printed: bytes that the compiler has printed.
    """

    def __init__(
        self,
        toolchain: str,
        request: CompileRequest,
        tails: Tails,
        ask: Callable[[str], bool],
        printed: Callable[[], int] = lambda: 0,
    ) -> None:
        self.seams: list[Seam] = []
        self._toolchain = toolchain
        self._request = request
        self._tails = tails
        self._ask = ask
        self._printed = printed

    def reached(self, stage: str, artifacts: Mapping[str, bytes], metadata: Mapping[str, Any]) -> None:
        """`stage` is about to begin, `artifacts` are made, and `metadata` is as Triton writes it.

        Raises:
            Cut: it is not to begin.
        """
        text = artifacts.get(SEAMS.get(stage, ""))
        # With an override, what is compiled is not what was printed.
        if text is None or metadata.get("ir_override"):
            return
        plain = json.loads(json.dumps(metadata, default=vars))
        self.seams.append(Seam(self._key(stage, text, plain), plain, list(artifacts), self._printed()))
        front = Front(dict(artifacts), list(self.seams))
        # Asked first and looked up then: who was at it before us has kept it before the service heard of its end.
        if not self._ask(self.seams[-1].tail):
            raise Cut(front, None)
        product = self._tails.finish(front)
        if product is not None:
            raise Cut(front, product)

    def _key(self, stage: str, text: bytes, metadata: Mapping[str, Any]) -> str:
        read = {name: value for name, value in metadata.items() if name not in UNREAD[stage]}
        return keys.digest(
            [
                ("format", FORMAT),
                ("toolchain", self._toolchain),
                ("target", self._request.target),
                *(
                    (f"environment.{name}", value)
                    for name, value in sorted(self._request.environment.items())
                    if name not in TOOL_VARIABLES
                ),
                ("stage", stage),
                ("metadata", json.dumps(read, sort_keys=True)),
                # The debug locations in it name lines and files: other kernels are other tails, as they have to be.
                ("text", text.decode()),
            ]
        )


def pack_front(front: Front) -> bytes:
    """For another worker of the same service."""
    return _encoder.encode(front)


def unpack_front(data: bytes) -> Front:
    """What `pack_front` packed.

    Raises:
        msgspec.DecodeError: it did not.
    """
    return _front_decoder.decode(data)


def _digests(entry: Entry, names: Iterable[str]) -> dict[str, bytes]:
    digests = {info.name: info.sha256 for info in entry.header.artifacts}
    return {name: digests[name] for name in names if name in digests}
