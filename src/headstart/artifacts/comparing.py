"""Two manifests compared, and one made into another for other devices."""

from __future__ import annotations

from collections.abc import Container, Mapping

import msgspec

from headstart.artifacts.manifest import Manifest
from headstart.artifacts.specialization import Specialization
from headstart.model import keys
from headstart.model.request import CompileRequest
from headstart.model.target import OPTIONS_OF_BACKEND, Target

_EXPLAINED = 100  # kernels of one name among which `compare` looks for the nearest


class Change(msgspec.Struct, frozen=True):
    """A kernel of one manifest and the nearest of the same name in the other, and how their identities differ."""

    before: Specialization
    after: Specialization
    reasons: list[str]


class Difference(msgspec.Struct, frozen=True):
    """What one manifest holds and the other does not. Kernels that `changed` are in neither of the other lists."""

    removed: list[Specialization]
    added: list[Specialization]
    changed: list[Change]


def compare(before: Manifest, after: Manifest) -> Difference:
    """How `after` differs from `before`. Kernels of one name that only one side has are paired, nearest first."""
    removed = _by_name(before.specializations, after.specializations)
    added = _by_name(after.specializations, before.specializations)
    changed = []
    for name in removed.keys() & added.keys():
        old = removed[name]
        for new in list(added[name]):
            if not old:
                break
            components = new.request.components()
            explained = [keys.explain(each.request.components(), components) for each in old[:_EXPLAINED]]
            index, reasons = min(enumerate(explained), key=lambda found: len(found[1]))
            changed.append(Change(old.pop(index), new, reasons))
            added[name].remove(new)
    return Difference(
        [each for name in removed for each in removed[name]],
        [each for name in added for each in added[name]],
        sorted(changed, key=lambda change: (change.after.request.name, change.after.digest)),
    )


def _by_name(specializations: Mapping[str, Specialization], others: Container[str]) -> dict[str, list[Specialization]]:
    found: dict[str, list[Specialization]] = {}
    own = (each for digest, each in specializations.items() if digest not in others)
    for each in sorted(own, key=lambda each: (each.request.name, each.digest)):
        found.setdefault(each.request.name, []).append(each)
    return found


def retarget(request: CompileRequest, target: Target) -> tuple[CompileRequest, list[str]]:
    """The same request for another device, and the options and attributes that it had to lose.

    Options travel as the program gave them. Those that name the device go; if the backend is another one, so do all
    that only the former has. `tt.pointer_range` is a fact that only hip is told; it is not made up for hip.
    """
    former = Target.parse(request.target)
    if former == target:
        return request, []
    unfit = {"arch"}
    attributes = request.attributes
    lost = []
    if former.backend != target.backend:
        unfit |= OPTIONS_OF_BACKEND[former.backend]
    if target.backend != "hip":
        attributes = {
            name: [fact for fact in facts if fact[0] != "tt.pointer_range"] for name, facts in attributes.items()
        }
        attributes = {name: facts for name, facts in attributes.items() if facts}
        lost = ["tt.pointer_range"] if attributes != request.attributes else []
    changed = msgspec.structs.replace(
        request,
        target=str(target),
        attributes=attributes,
        options={name: value for name, value in request.options.items() if name not in unfit},
    )
    return changed, sorted(unfit & request.options.keys()) + lost
