"""The client's end of the socket: sends requests, waits for answers, restarts a service that died.

    caller's threads                          daemon thread
      submit ── append, try to send ─────▶      launch or join the service, send Hello, Prepare, what is pending
      (never waits for the socket)              read: Welcome, Started, Result, Failed ── settle futures
                                                flush what the socket did not take
                                                EOF: restart, send again what is pending

Guarantees:

* Every kick-off is settled once: by its answer, by an error that says why there is none, or by `close`.
* A service that dies is started again, or its successor joined, and asked again for everything pending. A kernel that
  was being compiled at two deaths is the suspect, fails, and is not tried a third time. Two deaths in a row without any
  progress end the attempts. A service that was told to end, or ended while we came, is no death.
* A service that does not answer is left: after `STOPPED_TIMEOUT` if it has been stopped, after `SILENT_TIMEOUT` if
  nobody can tell why. What is pending fails with a `ServiceError` that names it; it is not joined again for a while.
* Where no thread can be started, what is kicked off fails with a `ServiceError`; the next kick-off tries again.
* A fork of the process lets go of the connection without disturbing it, and asks again when it waits.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from headstart import wire
from headstart.client import sharing, watch
from headstart.client.asked import Answered, Asked, Kickoff, SourceKickoff, SourceTaker
from headstart.client.launch import Launched
from headstart.client.outstanding import Outstanding
from headstart.client.policy import Policy
from headstart.client.prepared import Prepared, Settings
from headstart.client.service_death import blame, check_fruitless, crash_of, no_thread
from headstart.client.service_state import RemoteCounted, ServiceState
from headstart.client.watch import Stuck, Watch
from headstart.errors import HeadstartError, ServiceError
from headstart.model.request import CompileRequest
from headstart.system.forks import renew_in_forks

_END_TIMEOUT = 5.0  # seconds that a service gets to clean up after its client
_CLOSE_TIMEOUT = 4 * _END_TIMEOUT  # seconds that `close` waits for the thread, which may be starting a service

_Asked = TypeVar("_Asked", bound=Asked[Any])
_log = logging.getLogger("headstart")


class ServiceConnection:
    """A service, and everything that this client asks of it.

    Args:
        launch: starts a service, or joins one; called in the daemon thread, again after a death.
        reproduce: writes a request down, and returns the command that compiles it again.
        preferences: what the service is told of this client.
    """

    def __init__(
        self, launch: Callable[[], Launched], reproduce: Callable[[CompileRequest], str], preferences: wire.Preferences
    ) -> None:
        self._launch = launch
        self._reproduce = reproduce
        self._preferences = preferences
        self._prepared = Prepared()
        self.launches = 0  # services started or joined so far
        self._reset()
        _connections.add(self)
        renew_in_forks(self)

    def _reset(self, closing: bool = False) -> None:
        self._lock = threading.RLock()
        self._outstanding = Outstanding(self._lock)
        self._unsent: deque[Asked[Any]] = deque()  # slow ones that the service has not been told of
        self._channel: wire.Channel | None = None
        self._launched: Launched | None = None
        self._thread: threading.Thread | None = None
        self._wakeup = -1
        self._closing = closing
        self._fruitless = 0
        self.service = ServiceState()

    def start(self) -> None:
        """Start a service in the background, unless there is one. If that fails, what is pending fails, and no more."""
        with self._lock:
            if self._thread is not None or self._closing:
                return
            try:
                self._wakeup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
                self._thread = threading.Thread(target=self._run, name="headstart", daemon=True)
                self._thread.start()
            except (OSError, RuntimeError) as error:
                self._thread = None
                if self._wakeup >= 0:
                    self._leave()
                self._outstanding.fail(no_thread(error))

    def prepare(self, policy: Policy, vouched: bool) -> None:
        """Start the service as `start` does, and have it get workers ready for `policy`; without waiting."""
        with self._lock:
            self._prepared.workers(policy, vouched)
            self._send_prepared()
            self.start()

    def prepare_describer(self, policy: Policy, stamp: str, settings: Settings) -> None:
        """The same for a describer; see `wire.DescriberSpec`. One that was prepared before may end."""
        with self._lock:
            self._prepared.describer(policy, stamp, settings)
            self._send_prepared()
            self.start()

    def awake(self, settings: Settings) -> threading.Event:
        """Set while the describer with these settings, once prepared or asked, answers within milliseconds."""
        return self._prepared.awake(settings)

    def submit_source(self, name: str, policy: Policy, taker: SourceTaker) -> SourceKickoff:
        """Ask for all that a source of torch.compile's needs. Never waits, as `submit`; see `SourceKickoff`."""
        return self._submit(SourceKickoff(self.want, name, policy, taker))

    def submit(
        self,
        request: CompileRequest,
        policy: Policy,
        use_store: bool,
        answered: Answered | None = None,
        *,
        bundled: bool = True,
        background: bool = False,
        vouched: bool = True,
        triton_cache: wire.TritonCache | None = None,
    ) -> Kickoff:
        """Ask for a kernel. Never waits for the service, the socket, or a process to start.

        Args:
            answered: called in the daemon thread before an answer is set; may raise what is set instead.
            bundled: for `answered` to know; the rest as for `wire.Submit`, with the toolchain of `policy`.
        """
        how = use_store, bundled, answered, background, vouched, triton_cache
        return self._submit(Kickoff(self.want, self._withdraw, request, policy, *how))

    def want(self, kickoff: Asked[Any]) -> None:
        """Have what somebody waits for compiled before what was only kicked off."""
        with self._lock:
            if kickoff.answer.done():
                return
            kickoff.wanted = True
            if kickoff not in self._outstanding:
                self._submit(kickoff)  # kicked off before this process was forked
            if not kickoff.answer.done():
                self._outstanding.want(kickoff)
                if kickoff not in self._unsent:
                    self._send(wire.Await([kickoff.ticket]))
                self._wake()  # from now on the service is watched

    def _withdraw(self, kickoff: Asked[Any]) -> None:
        with self._lock:
            if self._outstanding.forget(kickoff):
                self._send(wire.Await([], [kickoff.ticket]))

    def in_flight(self) -> list[Asked[Any]]:
        """What workers are compiling now."""
        return self._outstanding.in_flight()

    def count_remotes(self) -> RemoteCounted:
        """Ask how it stands with the stores of other hosts; None: there is no service that could say."""
        with self._lock:
            counted = self.service.asked_for_counts(can_answer=self._thread is not None and not self._closing)
            if not counted.done():
                self._send(wire.CountRemotes())  # or once there is a service
            return counted

    def close(self) -> None:
        """End the service, and fail whatever is still pending."""
        with self._lock:
            self._closing = True
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            self._wake()
            thread.join(_CLOSE_TIMEOUT)
        self._outstanding.fail(ServiceError("headstart was closed before this kernel was compiled"))

    def abandon(self) -> None:
        """As `close`, without waiting: nobody holds the connection any more."""
        self._closing = True
        self._wake()

    def _submit(self, kickoff: _Asked) -> _Asked:
        with self._lock:
            if self._closing:
                raise ServiceError(f"{kickoff.name}: this AsyncCompile is closed")
            self._outstanding.add(kickoff)
            if self._channel is not None:
                if kickoff.is_slow:
                    self._unsent.append(kickoff)
                    self._wake()
                else:
                    self._send_kickoff(kickoff)
            self.start()
        return kickoff

    def _send_prepared(self) -> None:
        if self._channel is not None:
            for message in self._prepared.messages():
                self._send(message)

    def _send_kickoff(self, kickoff: Asked[Any]) -> None:
        try:
            self._send(kickoff.message())
        except ServiceError as error:  # nothing could compile it
            self._outstanding.settle(kickoff, error)

    def _send_slow(self) -> None:
        """In the daemon thread: what others may not be kept waiting for."""
        while self._unsent:
            asked = self._unsent[0]
            try:
                message: Any = asked.message()
            except ServiceError as error:
                self._outstanding.settle(asked, error)
                message = None
            with self._lock:
                self._unsent.popleft()
                if message is not None and asked in self._outstanding:
                    self._send(message)
                    if asked.wanted:
                        self._send(wire.Await([asked.ticket]))

    def _send(self, message: msgspec.Struct) -> None:
        if self._channel is None:
            return  # all that is pending is sent when there is one
        with contextlib.suppress(ConnectionError):
            self._channel.send(message)
        if self._channel.has_unsent:
            self._wake()

    def _wake(self) -> None:
        # Under the lock, because a closed fd's number may soon be somebody else's.
        with self._lock:
            if self._wakeup >= 0:
                os.eventfd_write(self._wakeup, 1)

    # The daemon thread

    def _run(self) -> None:
        failure: HeadstartError | None = None
        try:
            while self._serve():
                pass
        except HeadstartError as error:
            failure = error
        except Exception as error:  # noqa: BLE001 - those who wait must hear of it
            _log.exception("headstart's own thread failed; this is a bug")
            failure = ServiceError(f"headstart's own thread failed: {type(error).__name__}: {error}")
        # In one step, so that a kick-off finds either this thread or none.
        with self._lock:
            if failure is not None:
                self._fruitless = 0
                self._outstanding.fail(failure)
            self._leave()

    def _leave(self) -> None:
        self.service.end()
        self._thread = None  # the next kick-off starts another
        os.close(self._wakeup)
        self._wakeup = -1

    def _serve(self) -> bool:
        """From the start of one service to its end. Returns whether there is anything left to ask another for."""
        self._prepared.find_toolchains(self._outstanding.policies())
        launched = self._launch()
        channel = wire.Channel(launched.socket, wire.FromService)
        self.service.begin(launched)
        with self._lock:
            self.launches += 1
            self._channel, self._launched = channel, launched
            self._send(wire.Hello(wire.PROTOCOL, self._preferences))
            self._send_prepared()
            for _ in range(self.service.counts_asked):
                self._send(wire.CountRemotes())
            pending = self._outstanding.all()
            self._unsent = deque(asked for asked in pending if asked.is_slow)
            for asked in (each for each in pending if not each.is_slow):
                self._send_kickoff(asked)
            self._send(wire.Await([asked.ticket for asked in pending if asked.wanted and not asked.is_slow]))
        timeout = _END_TIMEOUT
        try:
            self._converse(channel)
        except Stuck as stuck:
            sharing.avoid(self.service.pid)
            timeout = 0.0
            raise ServiceError(f"the compile service {stuck}") from None
        finally:
            with self._lock:
                self._channel = self._launched = None
                self._prepared.asleep()
            died = not self._closing
            words = launched.last_words() if died else ""
            launched.end(timeout)
        if not died:
            return False
        if self.service.dismissed or (launched.shared and self.service.was_too_late()):
            for kickoff in self.in_flight():
                kickoff.started = None
        else:
            self._on_service_death(launched.status, words)
        return bool(self._outstanding)

    def _converse(self, channel: wire.Channel) -> None:
        """Raises `Stuck` if the service does not answer."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._wakeup, selectors.EVENT_READ)
            selector.register(channel, selectors.EVENT_READ)
            silence = Watch()
            while not self._closing:
                self._send_slow()
                with self._lock:
                    events = selectors.EVENT_READ | (selectors.EVENT_WRITE if channel.has_unsent else 0)
                selector.modify(channel, events)
                happened = selector.select(watch.QUIET if self._outstanding.is_awaited else None)
                if any(event.fileobj is channel and mask & selectors.EVENT_READ for event, mask in happened):
                    silence.heard()
                elif self._outstanding.is_awaited and silence.wants_to_ask(self.service.pid):
                    with self._lock:
                        self._send(wire.Control("status"))
                for event, mask in happened:
                    if event.fileobj is not channel:
                        with contextlib.suppress(BlockingIOError):
                            os.eventfd_read(self._wakeup)
                        continue
                    try:
                        if mask & selectors.EVENT_WRITE:
                            # What it said before it left is still to be read.
                            with self._lock, contextlib.suppress(ConnectionError):
                                channel.flush()
                        for message in channel.receive() if mask & selectors.EVENT_READ else ():
                            self._hear(message)
                    except (EOFError, ConnectionError):
                        return
                    except wire.ProtocolError as error:
                        raise ServiceError(f"the compile service talks another language: {error}") from error

    def _hear(self, message: Any) -> None:
        if self.service.hear(message) or self._prepared.hear(message):
            return
        if (asked := self._outstanding.get(message.ticket)) is None:
            return
        if isinstance(message, wire.Started):
            asked.began(message.at, message.worker)
            return
        try:
            if isinstance(message, wire.Failed):
                answer: Any = asked.error(message.failure)
            elif asked.hear(message):
                answer = asked.taken(message)
            else:  # there is more to come
                self._fruitless *= not isinstance(message, wire.SourceCompiled)
                return
        except HeadstartError as error:
            answer = error
        self._fruitless = 0
        self._outstanding.settle(asked, answer)

    # Failures

    def _on_service_death(self, status: int | None, words: str) -> None:
        """The service died by itself: decide what is asked for again."""
        _log.warning("the compile service died (status %s)%s", status, f":\n{words}" if words else "")
        suspects = blame(self.in_flight())
        for kickoff in suspects:
            self._outstanding.settle(kickoff, crash_of(kickoff, status, words, self._reproduce))
        self._fruitless = 0 if suspects else self._fruitless + bool(self._outstanding)
        check_fruitless(self._fruitless, status, words)

    def after_fork(self) -> None:
        """See `renew_in_forks`."""
        pending, launched, wakeup = self._outstanding.all(), self._launched, self._wakeup
        self._reset(self._closing)
        if launched is not None:
            launched.forget()
        if wakeup >= 0:
            os.close(wakeup)
        self._prepared.after_fork()
        for asked in pending:
            asked.after_fork()


_connections: weakref.WeakSet[ServiceConnection] = weakref.WeakSet()


def close_all() -> None:
    """At the end of the process; see `headstart.client.async_compile`."""
    for connection in list(_connections):
        connection.close()
