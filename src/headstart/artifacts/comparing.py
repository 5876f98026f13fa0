"""Two manifests, or two bundles, compared.

Kernels that only one side has are paired with those of the same name that only the other has, the nearest first: what
is paired has changed, and is told with the components of its key that differ.
"""

from __future__ import annotations

import contextlib
import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from headstart.artifacts.bundle import Bundle
from headstart.artifacts.generated import GeneratedSource
from headstart.artifacts.index import BundleItem
from headstart.artifacts.manifest import Manifest
from headstart.artifacts.specialization import Specialization
from headstart.model import keys
from headstart.model.parameters import parameters_of, with_names
from headstart.model.request import CompileRequest

KERNEL = "kernel"

_EXPLAINED = 100  # kernels of one name, of each side, among which the nearest two are looked for
_NAMED_OTHERWISE = "the same, but that one names parameters by their positions"
_SHORT_DIGEST = 12  # hexadecimal digits that tell toolchains apart

_request_decoder = msgspec.msgpack.Decoder(CompileRequest)


class Compared(msgspec.Struct, frozen=True):
    """One kernel, or something that is kept beside kernels, of one side.

    Attributes:
        key: what tells it from all others of its side.
        kind: `"kernel"`, or what else it is.
        name: the kernel's.
        target: e.g. `"cuda:90"`; empty if it has none.
        components: what the key is made of, in order, parameters by their names as far as they are known; empty for
            other kinds.
    """

    key: str
    kind: str
    name: str
    target: str
    components: list[keys.Component]

    @classmethod
    def of_specialization(cls, each: Specialization) -> Compared:
        request = each.request
        components = with_names(request.components(), lambda: parameters_of(request))
        return cls(each.digest, KERNEL, request.name, request.target, components)

    @classmethod
    def of_source(cls, each: GeneratedSource) -> Compared:
        return cls(each.key, "torch.compile", each.name, each.target, [])

    @classmethod
    def of_item(cls, bundle: Bundle, item: BundleItem) -> Compared:
        """Raises `DamagedError` and `OSError`: the entry cannot be read."""
        if item.kind != KERNEL:
            return cls(item.key, item.kind, item.name, item.target, [])
        header = bundle.entry(item.key).header
        components = header.components
        with contextlib.suppress(msgspec.MsgspecError, ValueError):  # of another headstart, or of nobody's
            components = with_names(components, lambda: parameters_of(_request_decoder.decode(header.request)))
        if header.triton_version:  # the digest tells a machine, and nothing to a person
            version = f"{item.toolchain[:_SHORT_DIGEST]} (Triton {header.triton_version})"
            components = [(name, version if name == "toolchain" else value) for name, value in components]
        return cls(item.key, item.kind, item.name, item.target, components)


class Change(msgspec.Struct, frozen=True):
    """A kernel of one side and the nearest of the same name of the other, and how their identities differ."""

    before: Compared
    after: Compared
    reasons: list[str]


class Difference(msgspec.Struct, frozen=True):
    """What one side holds and the other does not. Kernels that `changed` are in neither of the other lists."""

    removed: list[Compared]
    added: list[Compared]
    changed: list[Change]


def compare(before: Manifest, after: Manifest) -> Difference:
    """How `after` differs from `before`."""
    return _difference(_only_in(before, after), _only_in(after, before))


def _only_in(one: Manifest, other: Manifest) -> list[Compared]:
    kernels, sources = one.specializations, one.generated
    return [
        *(Compared.of_specialization(each) for digest, each in kernels.items() if digest not in other.specializations),
        *(Compared.of_source(each) for key, each in sources.items() if key not in other.generated),
    ]


def compare_bundles(before: Bundle, after: Bundle) -> Difference:
    """How `after` differs from `before`. Entries of other kinds than kernels are compared by their keys alone.

    Raises:
        DamagedError: an entry that one of them lacks is damaged in the other.
        OSError: a file cannot be read.
    """
    return _difference(
        [Compared.of_item(before, item) for item in before if item.key not in after],
        [Compared.of_item(after, item) for item in after if item.key not in before],
    )


def counts_by_kind(items: Iterable[Any]) -> dict[str, int]:
    """How many there are of each `kind`, kernels first."""
    counted = Counter(each.kind for each in items)
    return {kind: counted[kind] for kind in sorted(counted, key=lambda kind: (kind != KERNEL, kind))}


def _difference(only_before: list[Compared], only_after: list[Compared]) -> Difference:
    removed, added = _by_name(only_before), _by_name(only_after)
    changed = []
    for alike in removed.keys() & added.keys():
        if alike[0] == KERNEL:
            changed += _paired(removed[alike], added[alike])
    return Difference(
        [each for alike in removed.values() for each in alike],
        [each for alike in added.values() for each in alike],
        sorted(changed, key=lambda change: (change.after.name, change.after.key)),
    )


def _paired(old: list[Compared], new: list[Compared]) -> list[Change]:
    """Take from both lists, until one is empty, the two that differ in the fewest components."""
    changed = []
    while old and new:
        left, right = old[:_EXPLAINED], new[:_EXPLAINED]
        distances = [
            (_distance(one.components, other.components), i, j)
            for i, one in enumerate(left)
            for j, other in enumerate(right)
        ]
        heapq.heapify(distances)
        taken: tuple[set[int], set[int]] = set(), set()
        while len(taken[0]) < min(len(left), len(right)):
            _, i, j = heapq.heappop(distances)
            if i not in taken[0] and j not in taken[1]:
                taken[0].add(i)
                taken[1].add(j)
                reasons = keys.explain(left[i].components, right[j].components)
                changed.append(Change(left[i], right[j], reasons or [_NAMED_OTHERWISE]))
        for several, gone in zip((old, new), taken, strict=True):
            several[:] = [each for index, each in enumerate(several) if index not in gone]
    return changed


def _distance(before: Sequence[keys.Component], after: Sequence[keys.Component]) -> int:
    """How many lines `keys.explain` would have."""
    old, new = dict(before), dict(after)
    return sum(old.get(name) != new.get(name) for name in old.keys() | new.keys())


def _by_name(several: list[Compared]) -> dict[tuple[str, str], list[Compared]]:
    found: dict[tuple[str, str], list[Compared]] = {}
    for each in sorted(several, key=lambda each: (each.kind != KERNEL, each.kind, each.name, each.key)):
        found.setdefault((each.kind, each.name), []).append(each)
    return found
