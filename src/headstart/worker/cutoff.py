"""Early cutoff: what has become the same program is one compile from there on.

    source ─▶ ttir ─▶ ttgir ─┊─▶ llir ─▶ ptx ─┊─▶ cubin          ┊  a cut point; what lies behind it is a *suffix*
              front end      ┊                ┊

A suffix is known by its key: everything that its stages read. A full compile keeps, for each cut point, a small
entry that names the entry with the artifacts (`Suffix`). A compile that reaches a cut point whose suffix is known is
done: its own *prefix*, what it has made so far, and the other's suffix are what the whole pipeline would have given.

What is relied on:

* The text of the module at a cut point, debug locations included, and the metadata there, which hold all options, are
  all that the stages behind it read. `UNREAD` is what of the metadata they do not: with the versions of Triton that
  are known, a test watches them.
* They change metadata by setting keys, to what follows from the above.

So a compile takes no part if anything else could have a say: see `Compiler`, which tells of a cut point or does not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from headstart.artifacts.entry import Entry, pack_entry
from headstart.errors import DamagedError
from headstart.model import keys
from headstart.model.environment import TOOL_VARIABLES
from headstart.model.request import CompileRequest
from headstart.stores.disk import DiskStore
from headstart.wire import CompileLog

FORMAT = "suffix 2"  # raised whenever a suffix, or its key, changes its meaning
KIND = "tail"  # of such an entry, and what its artifact is called: the name that stores of before have

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
# By the stage that a suffix begins with, the artifact that it reads.
SEAMS = {"llir": "ttgir", "cubin": "ptx", "hsaco": "amdgcn"}
# By the same, what of the metadata has no say in the suffix: the pipeliner has run, and an assembler reads only text.
UNREAD = {"llir": _FRONT_END, "cubin": _FRONT_END | _OF_LLIR, "hsaco": _FRONT_END | _OF_LLIR}


class CutPoint(msgspec.Struct, frozen=True):
    """A cut_point that a compile has reached.

    Attributes:
        suffix: the key of what lies behind it.
        metadata: before it.
        artifacts: that had been made.
        printed: bytes that the compiler had printed.
    """

    suffix: str
    metadata: dict[str, Any]
    artifacts: list[str]
    printed: int


class Prefix(msgspec.Struct, frozen=True):
    """What a compile has made up to the last of its `cut_points`, and what that took. Means nothing elsewhere."""

    artifacts: dict[str, bytes]
    cut_points: list[CutPoint]
    wall_s: float = 0.0
    cpu_s: float = 0.0
    log: CompileLog = CompileLog()


class Suffix(msgspec.Struct, frozen=True):
    """What lies behind a cut point.

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
    """A compile ends at a cut point. `product` is None if somebody else is at the suffix."""

    def __init__(self, prefix: Prefix, product: Product | None) -> None:
        super().__init__(prefix.cut_points[-1].suffix)
        self.prefix = prefix
        self.product = product


_front_decoder = msgspec.msgpack.Decoder(Prefix)
_suffix_decoder = msgspec.msgpack.Decoder(Suffix)
_encoder = msgspec.msgpack.Encoder()


class Suffixes:
    """Suffixes in a store, as entries beside those that they name."""

    def __init__(self, store: DiskStore) -> None:
        self._store = store

    def finish(self, prefix: Prefix) -> Product | None:
        """`prefix` with the suffix that it lacks; None if there is none, or its entry is gone or another by now."""
        cut_point = prefix.cut_points[-1]
        found = self._store.find(cut_point.suffix, kind=KIND, request_digest=cut_point.suffix)
        if found is None:
            return None
        try:
            suffix = _suffix_decoder.decode(found.artifact(KIND))
            entry = self._store.find(suffix.entry, kind="kernel")
            if entry is None or _digests(entry, suffix.artifacts) != suffix.artifacts:
                return None
            behind = {name: entry.artifact(name) for name in suffix.artifacts}
        except DamagedError as error:
            self._store.set_aside(cut_point.suffix, error.reason)
            return None
        except (msgspec.DecodeError, OSError):
            return None
        return Product({**prefix.artifacts, **behind}, {**cut_point.metadata, **suffix.metadata})

    def keep(self, entry: Entry, cut_points: Iterable[CutPoint], printed: int) -> None:
        """Make `entry`, which passed `cut_points`, known as one that has the suffixes there. `printed`: bytes.

        Raises:
            StoreUnavailable: they cannot be written.
        """
        for cut_point in cut_points:
            # A compile that takes over a suffix would miss what its stages print.
            if cut_point.printed == printed:
                self._keep(entry, cut_point)

    def _keep(self, entry: Entry, cut_point: CutPoint) -> None:
        before, after = cut_point.metadata, entry.metadata
        if before.keys() - after.keys():
            return  # not what is relied on
        changed = {
            name: value for name, value in after.items() if name not in before or repr(before[name]) != repr(value)
        }
        names = [name for name in entry.artifact_names if name not in cut_point.artifacts]
        suffix = Suffix(entry.key, _digests(entry, names), changed)
        parts = pack_entry(
            key=cut_point.suffix,
            kind=KIND,
            name=entry.name,
            request_digest=cut_point.suffix,
            toolchain=entry.header.toolchain,
            target=entry.header.target,
            components=[("format", FORMAT)],
            metadata={},
            artifacts={KIND: _encoder.encode(suffix)},
            compile_wall_s=0.0,
            compile_cpu_s=0.0,
            triton_version="",
            request=b"",
            output="",
        )
        self._store.publish(cut_point.suffix, parts)


class Cutter:
    """Follows one compile from cut_point to cut_point, and ends it where that is possible.

    Args:
        toolchain: digest of what compiles.
        request: that is compiled.
        suffixes: that are known.
        ask: told the key of a suffix; whether to go on, because nobody else is at it.
        printed: bytes that the compiler has printed.
    """

    def __init__(
        self,
        toolchain: str,
        request: CompileRequest,
        suffixes: Suffixes,
        ask: Callable[[str], bool],
        printed: Callable[[], int] = lambda: 0,
    ) -> None:
        self.cut_points: list[CutPoint] = []
        self._toolchain = toolchain
        self._request = request
        self._tails = suffixes
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
        self.cut_points.append(CutPoint(self._key(stage, text, plain), plain, list(artifacts), self._printed()))
        prefix = Prefix(dict(artifacts), list(self.cut_points))
        # Asked first and looked up then: who was at it before us has kept it before the service heard of its end.
        if not self._ask(self.cut_points[-1].suffix):
            raise Cut(prefix, None)
        product = self._tails.finish(prefix)
        if product is not None:
            raise Cut(prefix, product)

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
                # The debug locations in it name lines and files: other kernels are other suffixes, as they have to be.
                ("text", text.decode()),
            ]
        )


def pack_prefix(prefix: Prefix) -> bytes:
    """For another worker of the same service."""
    return _encoder.encode(prefix)


def unpack_prefix(data: bytes) -> Prefix:
    """What `pack_prefix` packed.

    Raises:
        msgspec.DecodeError: it did not.
    """
    return _front_decoder.decode(data)


def _digests(entry: Entry, names: Iterable[str]) -> dict[str, bytes]:
    digests = {info.name: info.sha256 for info in entry.header.artifacts}
    return {name: digests[name] for name in names if name in digests}
