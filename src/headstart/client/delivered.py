"""Compiles that this process has not asked for one by one: those of a source of torch.compile's.

The service made their requests. Here a request is made only if somebody needs it: for an error, for a bundle, or if the
entry is gone. Most kernels are read where their worker has put them, in Triton's cache.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

from headstart import wire
from headstart.client.asked import Answered, Asked, Kickoff, error_of
from headstart.client.policy import Policy
from headstart.errors import HeadstartError
from headstart.model.request import CompileRequest


class Delivered(Kickoff):
    """One such compile; to those who look at it, it is a kick-off like any other.

    Args:
        name: of the kernel.
        policy: by whom.
        make: makes its request.
        use_store, bundled, answered: as for `Kickoff`; `answered` is for a compile that is asked for again.
        note: told what the service answered, before the answer is set.
        want: called when somebody begins to wait for it.
    """

    def __init__(
        self,
        name: str,
        policy: Policy,
        make: Callable[[], CompileRequest],
        *,
        use_store: bool,
        bundled: bool,
        answered: Answered,
        note: Answered,
        want: Callable[[], None],
    ) -> None:
        Asked.__init__(self, lambda _: want(), name, policy)
        self._make = make
        self._note = note
        self.answered = answered
        self.use_store = use_store
        self.bundled = bundled
        self.background = False
        self.triton_cache = None
        self.kicked_off = time.monotonic()
        self.finished: float | None = None
        self.answer.set_running_or_notify_cancel()  # it cannot be cancelled: others want the rest of its source

    @functools.cached_property
    def request(self) -> CompileRequest:  # type: ignore[override] # made when it is needed
        return self._make()

    def settle(self, outcome: wire.JobOutcome) -> None:
        """The service has said what became of it."""
        answer, self.worker, self.finished = outcome.answer, outcome.worker, time.monotonic()
        if isinstance(answer, wire.Failed):
            self.fail(error_of(answer.failure, self.request))
            return
        self.started = answer.started or None
        self._note(self, answer)
        self.answer.set_result(answer)

    def withdraw(self) -> None:
        """It never is."""

    def fail(self, error: HeadstartError) -> None:
        """There is no kernel."""
        self.answer.set_exception(error)
