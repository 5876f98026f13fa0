"""What a service is to have ready before anybody asks: told to each service that a connection comes to."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import msgspec

from headstart import wire
from headstart.client.policy import Policy
from headstart.errors import ServiceError

Settings = tuple[tuple[str, str], ...]  # Inductor's variables, in order of their names


class Prepared:
    """Workers for some policies, and a describer; and whether describers are awake."""

    def __init__(self) -> None:
        self._policies: dict[Policy, bool] = {}  # and whether somebody vouches for most of what comes
        self._describer: tuple[Policy, str, Settings] | None = None  # the latest
        self._awake: dict[Settings, threading.Event] = {}

    def workers(self, policy: Policy, vouched: bool) -> None:
        """Have workers ready for a policy."""
        self._policies[policy] = vouched

    def describer(self, policy: Policy, stamp: str, settings: Settings) -> None:
        """Have a describer ready, in place of an earlier one."""
        self._describer = policy, stamp, settings

    def messages(self) -> Iterator[msgspec.Struct]:
        """What a service is told. A request that is then in vain says why."""
        for policy, vouched in self._policies.items():
            with contextlib.suppress(ServiceError):
                yield wire.Prepare(policy.toolchain(), policy.environment(), vouched)
        if self._describer is not None:
            policy, stamp, settings = self._describer
            with contextlib.suppress(ServiceError):
                yield wire.PrepareDescriber(wire.DescriberSpec(policy.toolchain(), stamp, settings))

    def find_toolchains(self, asked: set[Policy]) -> None:
        """Find those of all policies anew: `sys.path` may be another one by now.

        Raises:
            ServiceError: there is none at all, so that a service would be of no use.
        """
        failure, found = None, 0
        for policy in {*self._policies, *asked}:
            try:
                policy.toolchain(again=True)
                found += 1
            except ServiceError as error:
                failure = error
        if failure is not None and not found:
            raise failure

    def awake(self, settings: Settings) -> threading.Event:
        """Set while the describer with these settings answers within milliseconds."""
        return self._awake.setdefault(settings, threading.Event())

    def hear(self, message: Any) -> bool:
        """What the service says of a describer: whether it does; False: it is about something else."""
        if not isinstance(message, wire.DescriberState):
            return False
        event: Any = self.awake(message.settings)
        if message.awake:
            event.set()
        else:
            event.clear()
        return True

    def asleep(self) -> None:
        """The service is gone, and its describers with it."""
        for event in self._awake.values():
            event.clear()

    def after_fork(self) -> None:
        """Another thread may have held an event's lock at the moment of the fork."""
        self._awake = {}
