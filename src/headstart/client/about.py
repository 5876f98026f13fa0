"""What runs in this process, as a run's log will say it. Loads nothing: it is said before the program's first line."""

from __future__ import annotations

import functools
import os
import sys
from typing import NamedTuple

# Whose frames do not say where a program asks for a kernel.
_NOT_THE_PROGRAM = (
    "headstart",
    "triton",
    "click",
    "contextlib",
    "threading",
    "concurrent",
    "importlib",
    "_frozen_importlib",
    "_frozen_importlib_external",
    "runpy",
    "torch",
)


class About(NamedTuple):
    """See `headstart.artifacts.run_records.Head`. What is empty is found out."""

    kind: str = "api"
    program: str = ""
    run: str = ""
    bundle: str = ""
    record: str = ""


_said = About()


def describe(about: About) -> None:
    """Say what this process runs, before it asks for a kernel."""
    global _said
    _said = about


def described() -> About:
    """What was said last."""
    return _said


def new_run() -> str:
    """A name for a run."""
    return os.urandom(4).hex()


def asked_from() -> str:
    """The first frame that is the program's own, `"file:line"`; `headstart build` is no program of the user's."""
    if _said.kind == "build":
        return ""
    frame = sys._getframe(1)
    while (above := frame.f_back) is not None:
        frame = above
        module = frame.f_globals.get("__name__")
        if not (isinstance(module, str) and _is_of_a_library(module)):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
    return ""


@functools.lru_cache(maxsize=1024)
def _is_of_a_library(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in _NOT_THE_PROGRAM)
