"""What runs in this process, as a run's log will say it. Loads nothing: it is said before the program's first line."""

from __future__ import annotations

import functools
import os
import sys
import threading
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


def thread_name() -> str:
    """Of this thread. One that Python did not start has none, and `current_thread` would list it for good."""
    number = threading.get_ident()
    known: dict[int, threading.Thread] = getattr(threading, "_active", {})
    try:
        return str(known[number].name)
    except Exception:  # noqa: BLE001 - not there; or a class of the program's own, whose `name` goes wrong
        return f"thread {number}"


def plain(text: object) -> str:
    """A text as it can be written: names of files, and so of modules, need not be UTF-8."""
    return str(text).encode(errors="replace").decode()


@functools.lru_cache(maxsize=1024)
def _is_of_a_library(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in _NOT_THE_PROGRAM)
