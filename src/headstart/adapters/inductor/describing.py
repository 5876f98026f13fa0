"""What this process asks of a describer, the process below the service that has torch and runs decorators."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from headstart import wire
from headstart.client.policy import Policy
from headstart.describe import facts

if TYPE_CHECKING:
    from headstart.client.asked import SourceKickoff, SourceTaker
    from headstart.client.client import Client


class Describing:
    """One describer, as far as this process knows it: those with one torch and the same settings share one.

    Args:
        client: asks the service.
        policy: says which toolchain, and so which torch.
        settings: Inductor's variables, as the describer is to have them: it reads them when it imports torch.

    Attributes:
        settings: the same.
    """

    def __init__(self, client: Client, policy: Policy, settings: dict[str, str]) -> None:
        self.settings = settings
        self._client = client
        self._policy = policy
        self._spec = tuple(sorted(settings.items()))

    @property
    def awake(self) -> threading.Event:
        """Set while it answers within milliseconds."""
        return self._client.describer_awake(self._spec)

    def start(self) -> None:
        """Have it ready soon; without waiting. Raises `ServiceError`: the client is closed."""
        self._client.prepare_describer(self._policy, facts.stamp(), self._spec)

    def spec(self) -> wire.DescriberSpec:
        """Which it is, for the service. Raises `ServiceError`: there is no toolchain."""
        return wire.DescriberSpec(self._policy.toolchain(), facts.stamp(), self._spec)

    def submit(self, name: str, taker: SourceTaker) -> SourceKickoff:
        """Ask for all that the source of the kernel `name` needs. Never waits. Raises `ServiceError`: as `start`."""
        return self._client.submit_source(name, self._policy, taker)
