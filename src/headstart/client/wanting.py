"""Says what somebody waits for, in another thread than theirs.

`concurrent.futures.wait` holds locks of several futures while it looks at each. Who settles them waits for these, and
holds the connection's lock, which saying so takes: the thread that waits must not.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from headstart.errors import HeadstartError

_waiting: deque[Callable[[], None]] = deque()
_lock = threading.RLock()  # never held while anything else runs, but for what a signal's handler does
_is_running = False  # whether a thread goes through these


def want_soon(want: Callable[[], None]) -> None:
    """Have `want` called. Waits for nobody, and may be called with any lock held."""
    global _is_running
    _waiting.append(want)
    with _lock:
        is_first, _is_running = not _is_running, True
    if is_first:
        try:
            threading.Thread(target=_want_all, name="headstart-want", daemon=True).start()
        except RuntimeError:  # no more threads: it is compiled in its turn
            _is_running = False


def _want_all() -> None:
    global _is_running
    while True:
        while _waiting:
            with suppress(HeadstartError):  # whoever waits is told by the answer
                _waiting.popleft()()
        with _lock:
            if not _waiting:
                _is_running = False
                return


def _after_fork_in_child() -> None:
    global _lock, _is_running
    _lock, _is_running = threading.RLock(), False
    _waiting.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
