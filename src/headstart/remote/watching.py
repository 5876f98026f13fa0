"""Whether it is any use to ask the remotes: tried by the process itself, with a key that nobody asks for."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable

from headstart.errors import HeadstartError

FAILURES = 3  # in a row, after which nobody is to ask
FIRST_PAUSE = 0.05  # seconds between two tries, twice as many each time
MAX_PAUSE = 30.0  # seconds

_log = logging.getLogger("headstart.remote")


class Watch:
    """A thread that tries while there is doubt, and sleeps otherwise.

    It tries once at the start, so that whoever asks first finds a connection that has been made, or a remote that is
    known to be none.

    Args:
        attempt: asks the remotes for a key; raises if none of them answers.
        changed: told whether it is any use to ask, when that changes.
    """

    def __init__(self, attempt: Callable[[str], object], changed: Callable[[bool], None]) -> None:
        self._attempt = attempt
        self._changed = changed
        self._doubt = threading.Event()
        self._doubt.set()
        self.usable = True

    def start(self) -> None:
        """Begin."""
        threading.Thread(target=self._run, name="headstart-watch", daemon=True).start()

    def failed(self) -> None:
        """A call has failed."""
        self._doubt.set()

    def _run(self) -> None:
        while True:
            self._doubt.wait()
            self._doubt.clear()
            self._settle()

    def _settle(self) -> None:
        """Until the remotes answer."""
        failures, pause = 0, FIRST_PAUSE
        while True:
            try:
                self._attempt(os.urandom(32).hex())
            except HeadstartError:
                failures += 1
            except Exception:  # noqa: BLE001 - the thread is to live on
                _log.exception("a remote was tried and failed; this is a bug")
                failures += 1
            else:
                self._say(True)
                return
            if failures >= FAILURES:
                self._say(False)
            threading.Event().wait(pause)
            pause = min(2 * pause, MAX_PAUSE)

    def _say(self, usable: bool) -> None:
        if usable != self.usable:
            self.usable = usable
            self._changed(usable)
