"""What a client asks of its service, each with the answer to come."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import msgspec

from headstart import wire
from headstart.client.policy import Policy
from headstart.errors import COMPILE_ERRORS, HeadstartError, ServiceError
from headstart.model.request import CompileRequest

if TYPE_CHECKING:
    from headstart.artifacts.entry import Entry
    from headstart.client.kernel_log import KernelLog

Answer = TypeVar("Answer")


class Asked(Generic[Answer]):
    """Something that the service is asked.

    Attributes:
        name: of the kernel that it is about.
        policy: by whom.
        answer: will hold what the service answers.
        request: the compile that was asked for, if it is one.
        wanted: somebody is blocked on it.
        ticket: our name for the answer; -1: it was never asked.
        started: when a worker began, `time.monotonic()` seconds, or None; `worker`: which one, or -1.
        deaths: of services, while it was being compiled.
        vouched: somebody vouches for its source.
        is_slow: its message is made in the connection's thread, for it takes longer than a kick-off may.
        log: what of the run's log is about it.
    """

    is_slow = False
    log: KernelLog | None = None
    request: CompileRequest | None = None
    vouched = True

    def __init__(self, want: Callable[[Asked[Any]], None], name: str, policy: Policy) -> None:
        self.name = name
        self.policy = policy
        self.answer: concurrent.futures.Future[Answer] = concurrent.futures.Future()
        self.wanted = False
        self.ticket = -1
        self.started: float | None = None
        self.worker = -1
        self.deaths = 0
        self._want = want

    def message(self) -> msgspec.Struct:
        """What the service is told.

        Raises:
            ServiceError: there is no toolchain.
        """
        raise NotImplementedError

    def began(self, at: float, worker: int) -> None:
        """A worker has begun."""
        self.started, self.worker = at, worker
        if self.log is not None:
            self.log.began(at, worker)

    def hear(self, message: Any) -> bool:
        """The service has said something; False: it is not the answer yet."""
        return True

    def taken(self, message: Any) -> Answer:
        """What the service's answer stands for. Raises `HeadstartError`: for nothing."""
        raise NotImplementedError

    def error(self, failure: wire.Failure) -> HeadstartError:
        """What its failure is to those who wait."""
        return ServiceError(f"{self.name}: {failure.summary}")

    def settled(self, outcome: Any) -> None:
        """It has been answered, or has failed, if that is a HeadstartError."""

    def want(self) -> None:
        """Somebody is blocked on this; see `headstart.client.future.Pending`."""
        self._want(self)

    @property
    def is_running(self) -> bool:
        """Whether a worker has begun, as far as this process knows."""
        return self.started is not None

    def after_fork(self) -> None:
        """In a fork of the process, where it has no answer: it is asked again when somebody waits."""
        self.answer = concurrent.futures.Future()  # another thread may have held the old one's lock
        self.started = None


class SourceTaker(Protocol):
    """Who asks for a source of torch.compile's. Told in the connection's thread, before its answer is set."""

    def message(self, ticket: int) -> wire.SubmitSource:
        """What the service is told. In the connection's thread, too: it takes a while.

        Raises:
            ServiceError: there is nothing to tell it.
        """

    def located(self, has_recipe: bool) -> None:
        """See `wire.SourceLocated`."""

    def compiled(self, message: wire.SourceCompiled) -> None:
        """See there; may come again after the service died."""

    def added(self, message: wire.AddedCompiled) -> None:
        """See there."""

    def failed(self, error: HeadstartError) -> None:
        """There is no answer, or no `AddedCompiled`."""


class SourceKickoff(Asked[None]):
    """A source of torch.compile's on its way; answered once everything is there, what rescaling adds included.

    Args:
        taker: who asked.
    """

    is_slow = True

    def __init__(self, want: Callable[[Asked[Any]], None], name: str, policy: Policy, taker: SourceTaker) -> None:
        super().__init__(want, name, policy)
        self._taker = taker

    def message(self) -> wire.SubmitSource:
        return self._taker.message(self.ticket)

    def hear(self, message: Any) -> bool:
        if isinstance(message, wire.SourceLocated):
            self._taker.located(message.has_recipe)
            return False
        if isinstance(message, wire.SourceCompiled):
            self.started = None  # what rescaling adds has not begun, as far as this process knows
            self._taker.compiled(message)
            return not message.has_more
        return True

    def taken(self, message: wire.SourceCompiled | wire.AddedCompiled) -> None:
        if isinstance(message, wire.AddedCompiled):
            self._taker.added(message)

    def error(self, failure: wire.Failure) -> HeadstartError:
        return ServiceError(failure.summary)

    def settled(self, outcome: Any) -> None:
        if isinstance(outcome, HeadstartError):
            self._taker.failed(outcome)


class Kickoff(Asked[wire.Result]):
    """One request on its way.

    Attributes:
        request: what was asked for; `bundled`: whether the answer is for the bundle of those who asked, too.
        use_store, background, vouched, answered: as for `ServiceConnection.submit`.
        kicked_off: when; this and the other times are `time.monotonic()`, seconds.
        finished: when the answer came, or None.
    """

    request: CompileRequest

    def __init__(
        self,
        want: Callable[[Asked[Any]], None],
        withdraw: Callable[[Asked[Any]], None],
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
        self._withdraw = withdraw
        self.request = request
        self.answered = answered
        self.use_store = use_store
        self.bundled = bundled
        self.background = background
        self.vouched = vouched
        self.triton_cache = triton_cache
        self.kicked_off = time.monotonic()
        self.finished: float | None = None

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
        return error_of(failure, self.request)

    def settled(self, outcome: Any) -> None:
        self.finished = time.monotonic()

    def opened(self, entry: Entry) -> Entry:
        """What it was answered by has been opened."""
        if self.log is not None and self.answer.result().cached:
            self.log.loaded(entry.header.compile_wall_s)
        return entry

    def withdraw(self) -> None:
        """Nobody wants it any more; see `headstart.client.future.Pending`."""
        self._withdraw(self)


Answered = Callable[[Kickoff, wire.Result], None]


def error_of(failure: wire.Failure, request: CompileRequest) -> HeadstartError:
    """What a compile's failure is to those who wait for it."""
    if failure.kind == "service":
        return ServiceError(f"{request.name} cannot be compiled: {failure.summary}")
    told = msgspec.structs.asdict(failure)
    kind = COMPILE_ERRORS.get(told.pop("kind"), COMPILE_ERRORS["compile"])
    return kind(told.pop("summary"), kernel=request.name, target=request.target, options=request.options, **told)
