"""What this process asks of the describer, the process below the service that has torch and runs decorators."""

from __future__ import annotations

import concurrent.futures
import threading
from typing import TYPE_CHECKING, TypeVar

import msgspec

from headstart.client.policy import Policy
from headstart.describe import facts
from headstart.describe.recipe import AddedJobs, Describe, Described, FromDescriber, Rescale, Undescribed
from headstart.errors import ServiceError

if TYPE_CHECKING:
    from headstart.client.asked import DescriberQuestion
    from headstart.client.client import Client

A = TypeVar("A", Described, AddedJobs)

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[FromDescriber] = msgspec.msgpack.Decoder(FromDescriber)


class UndescribedError(Exception):
    """A source has no recipe; the text says why."""


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

    def ask(self, name: str, message: Describe | Rescale) -> DescriberQuestion:
        """Ask about the kernel `name`; what its `answer` says, `described` or `jobs` tells. Never waits.

        Raises:
            ServiceError: the client is closed.
        """
        return self._client.ask(name, self._policy, facts.stamp(), self._spec, _encoder.encode(message))


def described(answer: concurrent.futures.Future[bytes]) -> Described:
    """The answer to `Describe`.

    Raises:
        UndescribedError: the source has no recipe.
        ServiceError: there is no describer, or it is of another version.
    """
    return _answer(answer, Described)


def jobs(answer: concurrent.futures.Future[bytes]) -> AddedJobs:
    """The answer to `Rescale`; raises as `described`."""
    return _answer(answer, AddedJobs)


def _answer(answer: concurrent.futures.Future[bytes], kind: type[A]) -> A:
    said = answer.result()
    try:
        message = _decoder.decode(said)
    except msgspec.DecodeError as error:
        raise ServiceError(f"the describer talks another language: {error}") from error
    if isinstance(message, Undescribed):
        raise UndescribedError(message.why)
    if not isinstance(message, kind):
        raise ServiceError(f"the describer answered with {type(message).__name__}")
    return message
