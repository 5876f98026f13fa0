"""What can be said of a request before anything is done about it."""

from __future__ import annotations

import math
from collections.abc import Mapping

from headstart.artifacts.vetting import check_environment
from headstart.model.request import KERNEL, CompileRequest
from headstart.service.queue import Size


def why_not(request: CompileRequest, tools: Mapping[str, str]) -> str | None:
    """Why nothing is done for a request that nobody vouches for, before its source is looked at; None: it may be."""
    if request.kind != KERNEL:  # no confined worker is to be asked to build C
        return f"it is no kernel, but a {request.kind}"
    return check_environment(request, tools=tools)


def size_of(request: CompileRequest) -> Size:
    """Of a kernel's configurations those with larger blocks take longer, and those with more warps less, a block."""
    blocks = sum(math.log2(each) for each in request.constants.values() if type(each) is int and each > 1)
    warps = dict(request.options).get("num_warps")
    return Size(request.kernel, blocks - (math.log2(warps) if type(warps) is int and warps > 1 else 0.0))
