"""Which entries of a bundle are worth keeping, and the bundle without the others.

    choose   by the days of last use, by what manifests ask for, or both: an entry goes if neither keeps it
    write    what was chosen, in the place of the bundle or beside it

What nobody can know to be unused is kept: entries of kinds that are not known here, those that no run has met, and of
torch.compile's whatever might stand in for something else of it. A graph out of a bundle asks for no kernel, so that
kernels behind a graph look unused until the graph cannot be loaded: they stay while there is a graph.
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

from headstart.artifacts import known_failure
from headstart.artifacts.bundle import Bundle, BundleItem, BundleWriter, Signer
from headstart.artifacts.kinds import GRAPHS
from headstart.artifacts.manifest import Manifest
from headstart.artifacts.retargeting import retarget
from headstart.errors import HeadstartError, UsageError
from headstart.model.target import Target
from headstart.system.locks import locked

RECIPE = "recipe"
_FOR_REQUESTS = ("kernel", known_failure.KIND)


class Choice(NamedTuple):
    """What becomes of a bundle's entries.

    Attributes:
        kept, dropped: in the bundle's order.
        unsure: those of `kept` that are kept because nobody can tell whether they are used.
    """

    kept: list[BundleItem]
    dropped: list[BundleItem]
    unsure: list[BundleItem]


class Use(NamedTuple):
    """What is known of runs.

    Attributes:
        days: of each key, as `last_used.last_used` has it; None: not asked for.
        since: whatever was used on that day or later is kept.
    """

    days: Mapping[str, dt.date] | None = None
    since: dt.date = dt.date.min


def choose(bundle: Bundle, use: Use, wanted: Collection[str] | None, named_by_recipes: Collection[str]) -> Choice:
    """Say what to keep.

    Args:
        bundle: any.
        use: see `Use`.
        wanted: digests of requests, and keys of recipes; None: not asked for. One of `use` and `wanted` has to be.
        named_by_recipes: names of the kernels that recipes in the bundle name.
    """

    days = use.days
    unused = {item.key for item in bundle if days is None or days.get(item.key, dt.date.max) < use.since}
    graphs = [item for item in bundle if item.kind == GRAPHS]
    keeps_what_is_torchs = days is None or any(item.key not in unused for item in graphs)

    def is_unsure(item: BundleItem) -> bool:
        if item.kind == GRAPHS:
            return days is None
        if item.kind == RECIPE or (item.kind in _FOR_REQUESTS and item.name in named_by_recipes):
            return keeps_what_is_torchs
        return item.kind not in _FOR_REQUESTS

    choice = Choice([], [], [])
    for item in bundle:
        named = (*_FOR_REQUESTS, RECIPE)
        is_wanted = wanted is not None and item.kind in named and item.request_digest in wanted
        if item.key not in unused or is_wanted:
            choice.kept.append(item)
        elif is_unsure(item):
            choice.kept.append(item)
            choice.unsure.append(item)
        else:
            choice.dropped.append(item)
    return choice


def wanted_by(manifests: Collection[Manifest], bundle: Bundle) -> set[str]:
    """Digests of the requests of these manifests, and of what `headstart build --target` makes of them."""
    targets = [Target.parse(target) for target in {item.target for item in bundle} if _is_target(target)]
    found: set[str] = set()
    for manifest in manifests:
        for digest, each in manifest.specializations.items():
            found.add(digest)
            if _is_target(each.request.target):
                requests = (retarget(each.request, target)[0] for target in targets)
                found.update(request.digest() for request in requests if request is not each.request)
    return found


def write(out: str | os.PathLike[str], bundle: Bundle, kept: Collection[BundleItem], sign: Signer | None) -> None:
    """Write these entries of a bundle as the bundle `out`, which may be its own name.

    Raises:
        DamagedError: one of them is damaged; `out` is as it was before.
        HeadstartError: the bundle was replaced meanwhile; the same.
        UsageError: `out` is another file than a bundle.
        OSError: it cannot be read or written.
    """
    place = Path(os.path.realpath(out))
    in_place = place == Path(os.path.realpath(bundle.path))
    with locked(place) if in_place else nullcontext(), BundleWriter(place, sign) as writer:
        for item in kept:
            writer.add(bundle.entry(item.key))
        if in_place and Bundle.open(place).index != bundle.index:
            raise HeadstartError(f"{place}: replaced meanwhile, by a program that ended just now: try again")


def _is_target(text: str) -> bool:
    try:
        Target.parse(text)
    except UsageError:
        return False
    return True
