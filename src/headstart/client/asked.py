"""What a client asks of its service, each with the answer to come."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import msgspec

from headstart import wire
from headstart.client.policy import Policy
from headstart.errors import COMPILE_ERRORS, HeadstartError, ServiceError
from headstart.model.request import CompileRequest

Answer = TypeVar("Answer")


class Asked(Generic[Answer]):
    """Something that the service is asked.

    Attributes:
        name: of the kernel that it is about.
        policy: by whom.
        answer: will hold what the service answers.
        wanted: somebody is blocked on it.
        ticket: our name for the answer; -1: it was never asked.
    """

    def __init__(self, want: Callable[[Asked[Any]], None], name: str, policy: Policy) -> None:
        self.name = name
        self.policy = policy
        self.answer: concurrent.futures.Future[Answer] = concurrent.futures.Future()
        self.wanted = False
        self.ticket = -1
        self._want = want

    def message(self) -> msgspec.Struct:
        """What the service is told.

        Raises:
            ServiceError: there is no toolchain.
        """
        raise NotImplementedError

    def taken(self, message: Any) -> Answer:
        """What the service's answer stands for. Raises `HeadstartError`: for nothing."""
        raise NotImplementedError

    def error(self, failure: wire.Failure) -> HeadstartError:
        """What its failure is to those who wait."""
        return ServiceError(f"{self.name}: {failure.summary}")

    def settled(self) -> None:
        """It has been answered, or has failed."""

    def want(self) -> None:
        """Somebody is blocked on this; see `headstart.client.future.Pending`."""
        self._want(self)


class DescriberQuestion(Asked[bytes]):
    """A question to a describer.

    Args:
        stamp, settings: as for `wire.DescriberSpec`.
        question: as the adapter encodes it; so is the answer.
    """

    def __init__(
        self,
        want: Callable[[Asked[Any]], None],
        name: str,
        policy: Policy,
        stamp: str,
        settings: tuple[tuple[str, str], ...],
        question: bytes,
    ) -> None:
        super().__init__(want, name, policy)
        self._stamp = stamp
        self._settings = settings
        self._question = question

    def message(self) -> wire.Ask:
        spec = wire.DescriberSpec(self.policy.toolchain(), self._stamp, self._settings)
        return wire.Ask(self.ticket, spec, self._question)

    def taken(self, message: wire.Answer) -> bytes:
        return message.answer


class Kickoff(Asked[wire.Result]):
    """One request on its way.

    Attributes:
        request: what was asked for; `bundled`: whether the answer is for the bundle of those who asked, too.
        use_store, background, vouched, answered: as for `ServiceConnection.submit`.
        kicked_off: when; this and the other times are `time.monotonic()`, seconds.
        started: when a worker began, or None.
        finished: when the answer came, or None.
        worker: which one, or -1.
        deaths: of services, while it was being compiled.
    """

    def __init__(
        self,
        want: Callable[[Asked[Any]], None],
        request: CompileRequest,
        policy: Policy,
        use_store: bool,
        bundled: bool,
        answered: Answered | None,
        background: bool,
        vouched: bool,
        triton_cache: wire.TritonCache | None = None,
    ) -> None:
        super().__init__(want, request.name, policy)
        self.request = request
        self.answered = answered
        self.use_store = use_store
        self.bundled = bundled
        self.background = background
        self.vouched = vouched
        self.triton_cache = triton_cache
        self.kicked_off = time.monotonic()
        self.started: float | None = None
        self.finished: float | None = None
        self.worker = -1
        self.deaths = 0

    def message(self) -> wire.Submit:
        toolchain = self.policy.toolchain()
        return wire.Submit(
            self.ticket,
            toolchain,
            self.request,
            self.use_store,
            self.background,
            self.vouched,
            self.triton_cache,
        )

    def taken(self, message: wire.Result) -> wire.Result:
        if self.answered is not None:
            self.answered(self, message)
        return message

    def error(self, failure: wire.Failure) -> HeadstartError:
        return _error(failure, self.request)

    def settled(self) -> None:
        self.finished = time.monotonic()


Answered = Callable[[Kickoff, wire.Result], None]


def _error(failure: wire.Failure, request: CompileRequest) -> HeadstartError:
    if failure.kind == "service":
        return ServiceError(f"{request.name} cannot be compiled: {failure.summary}")
    told = msgspec.structs.asdict(failure)
    kind = COMPILE_ERRORS.get(told.pop("kind"), COMPILE_ERRORS["compile"])
    return kind(told.pop("summary"), kernel=request.name, target=request.target, options=request.options, **told)
