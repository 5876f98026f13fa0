"""What a sandbox does: system calls that fail with EPERM, in this process and all below it. There is no way back.

import denied
denied.deny("pidfd_open")        # False: this kernel, or what we run in, has no filters
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _FILTER = 38, 22, 2  # prctl(2)
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000  # seccomp(2)
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06  # of the filter's machine: load a word, jeq, ret
_NUMBERS = {
    "x86_64": {"pidfd_open": 434, "memfd_create": 319, "eventfd2": 290, "sched_getaffinity": 204},
    "aarch64": {"pidfd_open": 434, "memfd_create": 279, "eventfd2": 19, "sched_getaffinity": 123},
}


def deny(*names: str) -> bool:
    """Have these system calls refused from now on. Returns whether they are."""
    numbers = _NUMBERS.get(platform.machine())
    if numbers is None:
        return False
    steps = [(_LOAD, 0, 0, 0)]  # the number of the call is the first word of what the filter sees
    for name in names:
        steps += [(_JUMP_IF_EQUAL, 0, 1, numbers[name]), (_RETURN, 0, 0, _ERRNO | errno.EPERM)]
    steps.append((_RETURN, 0, 0, _ALLOW))
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        return False
    return libc.prctl(_PR_SET_SECCOMP, _FILTER, ctypes.c_char_p(program), 0, 0) == 0
