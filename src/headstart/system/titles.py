"""Names that processes have in ps and top, by setproctitle, if that is installed: `headstart: worker 3 matmul`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import import_module

_MAX = 200  # characters


def set_title(what: str) -> None:
    """Have ps and top show this process as `headstart: WHAT`. Without setproctitle nothing happens.

    What `/proc/PID/cmdline` and `/proc/PID/environ` say of it is gone then. setproctitle is looked for once, by a
    zygote for all of its workers.
    """
    set_to = _setproctitle()
    if set_to is not None:
        set_to("headstart: " + "".join(letter if letter.isprintable() else "?" for letter in what[:_MAX]))


@functools.cache
def _setproctitle() -> Callable[[str], object] | None:
    try:
        found: Callable[[str], object] = import_module("setproctitle").setproctitle
    except Exception:  # noqa: BLE001 - whatever is wrong with it, a name is not worth a process
        return None
    return found
