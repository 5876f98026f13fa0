"""One kernel's request made into another, for other devices."""

from __future__ import annotations

import msgspec

from headstart.model.request import CompileRequest
from headstart.model.target import OPTIONS_OF_BACKEND, Target


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
