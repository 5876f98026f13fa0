"""Calls into the kernel that Python has no name for."""

from __future__ import annotations

import ctypes
import functools
import os

from headstart.system.syscalls import NUMBERS, architecture


@functools.cache
def libc() -> ctypes.CDLL:
    """The C library."""
    return ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: object) -> int:
    """A system call by its name. Raises `OSError`."""
    number = NUMBERS[architecture()][name]
    result = int(libc().syscall(ctypes.c_long(number), *(_argument(each) for each in arguments)))
    if result < 0:
        raise error_of(name)
    return result


def _argument(value: object) -> object:
    # A variadic call is given whole registers.
    return ctypes.c_long(value) if isinstance(value, int) else value


def prctl(option: int, value: int) -> None:
    """prctl(2) with one argument. Raises `OSError`."""
    arguments = [ctypes.c_ulong(each) for each in (value, 0, 0, 0)]
    if libc().prctl(option, *arguments):
        raise error_of("prctl")


def error_of(name: str) -> OSError:
    """What errno says of a call that failed."""
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), name)
