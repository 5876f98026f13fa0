"""One way in for events, one way out for actions.

    clients, user ─┐
                   ├─ happened(event) ─▶ queue ─▶ Scheduler.handle ─▶ actions ─▶ executor, answers to clients
    executor ──────┘         ▲                                           │
                             └──────── events that they lead to ◀────────┘

An event that carrying an action out leads to (a fork that fails at once) waits until the actions of the one before have
all been carried out, in order: so the scheduler is never told of something in the middle of what it has decided.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from headstart.service import events
from headstart.service.actions import Action
from headstart.service.history import History
from headstart.service.scheduler import Scheduler


class Engine:
    """Feeds the scheduler, and has what comes back carried out.

    Args:
        scheduler: decides.
        carry_out: does one thing that the scheduler says.

    Attributes:
        history: the latest events, and what was done about each.
    """

    def __init__(self, scheduler: Scheduler, carry_out: Callable[[Action], None]) -> None:
        self._scheduler = scheduler
        self._carry_out = carry_out
        self._waiting: deque[events.Event] = deque()
        self._is_busy = False
        self.history = History()

    def happened(self, event: events.Event) -> None:
        """Deal with an event: now, or, if it comes of an action that is being carried out, as soon as that is done."""
        self._waiting.append(event)
        if self._is_busy:
            return
        self._is_busy = True
        try:
            while self._waiting:
                event = self._waiting.popleft()
                actions = self._scheduler.handle(event)
                self.history.note(time.monotonic(), event, actions)
                for action in actions:
                    self._carry_out(action)
        finally:
            self._is_busy = False
