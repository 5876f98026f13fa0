"""How a process ended, in words."""

from __future__ import annotations

import signal


def describe_status(status: int) -> str:
    """An exit code, or minus the signal that ended a process, as the end of a sentence."""
    if status >= 0:
        return f"exited with code {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"


def likely_cause(status: int) -> str:
    """Why a process of a compiler ends like this; empty if nothing is likely."""
    if status == -signal.SIGKILL:
        return "SIGKILL comes from the kernel when memory is exhausted (see dmesg), or from somebody's kill -9"
    if status == -signal.SIGABRT:
        return "SIGABRT is how LLVM and MLIR report a failed assertion; the assertion is in the output"
    if status in (-signal.SIGSEGV, -signal.SIGBUS):
        return "a memory fault inside the compiler"
    return ""
