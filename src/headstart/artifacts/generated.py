"""What a manifest holds of torch.compile: the sources that it generated, with the recipes that were made of them."""

from __future__ import annotations

import datetime as dt
import math
from typing import Annotated

import msgspec

from headstart.artifacts.entry import Key

MaybeKey = Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{64})?\Z")]
# It becomes a file's name.
Stem = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9]{1,100}\Z")]

_encoder = msgspec.msgpack.Encoder(order="deterministic")


class GeneratedSource(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One source that Inductor generated, as one run needed it.

    Attributes:
        key: of its recipe, as in stores and bundles: the source, what it was described and compiled with, and under
            which settings.
        name: of its kernel.
        target: that it was generated for, as `"cuda:90"`; empty if its recipe says none.
        configurations: how many were compiled, without those that rescaling added.
        question: what a describer was asked, a `headstart.describe.recipe.Describe`.
        recipe: its answer, a `headstart.describe.recipe.Recipe`.
        added_key, added: what rescaling added, a list of `headstart.describe.recipe.RecipeJob`, and its key in stores
            and bundles; empty if nothing is known of it.
        stem: key in Inductor's code cache of the source that was described.
        torch: Inductor's digest of torch's files.
        generation: of that torch; see `headstart.describe.facts.generation`.
        duration_s: seconds that its compiles took together; 0 if it was served without one and nobody knows.
        last_seen: the day (UTC) on which a program last asked for it.
    """

    key: Key
    name: str
    target: str
    configurations: int
    question: bytes
    recipe: bytes
    added_key: MaybeKey = ""
    added: bytes = b""
    stem: Stem
    torch: str
    generation: str
    duration_s: float = 0.0
    last_seen: dt.date = dt.date.min

    def __post_init__(self) -> None:
        if not 0.0 <= self.duration_s < math.inf:
            raise ValueError(f"duration_s: {self.duration_s} is no number of seconds")

    def merged(self, other: GeneratedSource) -> GeneratedSource:
        """The same source with what both know; see `headstart.artifacts.manifest` for the rules."""
        if self == other:
            return self
        later = max(self, other, key=_rank)
        added_key, added = max((self.added_key, self.added), (other.added_key, other.added))
        return msgspec.structs.replace(
            later, duration_s=max(self.duration_s, other.duration_s), added_key=added_key, added=added
        )


def _rank(each: GeneratedSource) -> tuple[dt.date, bytes]:
    """By what no merging mixes: else it would matter in which order several are merged."""
    return each.last_seen, _encoder.encode(msgspec.structs.replace(each, duration_s=0.0, added_key="", added=b""))
