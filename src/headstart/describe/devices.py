"""On which GPU a generated source runs, told apart from everything else that it says.

Inductor writes the index of the device into each source (`DeviceProperties`), so that ranks on GPUs of one kind have no
text in common. A source is described, and its kernels are compiled, as for device 0; what is loaded says its own. Only
NVIDIA's devices are known here. Whatever else in a source depends on the index keeps it from being shared.
"""

from __future__ import annotations

import re

import msgspec

from headstart.describe.recipe import Function

_DEVICE = re.compile(r"(?<=\bDeviceProperties\(type='cuda', index=)\d+(?=[,)])")
_KERNEL = "@triton.jit"


def split(text: str) -> tuple[str, int | None]:
    """A source for device 0, and the index of its own device; the source itself, and None, if that cannot be told.

    It can where the index stands once, in front of the one function that is compiled. Where there are several, the
    names of those that are called have the module's in them, which is made of the whole source: they stay as they are.
    """
    found = list(_DEVICE.finditer(text))
    if len(found) != 1 or text.count(_KERNEL) != 1 or found[0].end() > text.index(_KERNEL):
        return text, None
    index = int(found[0][0])
    return text if index == 0 else on(text, 0), index


def on(text: str, index: int) -> str:
    """A source that `split` has made, for the device with this index."""
    return _DEVICE.sub(str(index), text, count=1)


def renamed(function: Function, module: str) -> Function:
    """A function as it is called in `module`."""
    if function.module == module:
        return function
    prefix = f"{function.module}."
    names = {
        name: module + value[len(prefix) - 1 :] if value.startswith(prefix) else value
        for name, value in (("qualname", function.qualname), ("repr", function.repr))
    }
    return msgspec.structs.replace(function, module=module, **names)
