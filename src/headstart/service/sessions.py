"""Who is connected to a service: greeting them, telling them, hanging up on them.

    peers at the door ─▶ Sessions ─▶ answer(session, message)      for each message of one that is there
                             └─────▶ left(session)                 once it is gone, or was hung up on

A session ends at EOF, when its process does, or when it does not read what it is told.
"""

from __future__ import annotations

import functools
import logging
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from headstart import wire
from headstart.model.toolchain import Toolchain
from headstart.service.listener import Listener, Peer
from headstart.service.look_ups import Sought
from headstart.service.loop import Loop
from headstart.wire.config import Config
from headstart.wire.remotes import MAX_DEADLINE

QUIESCED = "the compile service is quiesced and starts no compile: what waits for a kernel waits for headstart resume"
_PAUSE = 0.5  # seconds until those outside are asked in again
MAX_BACKLOG = 16 << 20  # bytes of answers that are kept for a client that does not read them

_log = logging.getLogger("headstart.service")


class Session:
    """Somebody who has connected; one of those who ask for kernels once `hello` is there."""

    def __init__(self, number: int, peer: Peer) -> None:
        self.number = number
        self.pid = peer.pid
        self.pidfd = peer.pidfd
        self.channel = wire.Channel(peer.socket, wire.FromClient)
        self.hello: wire.Hello | None = None
        self.since = time.monotonic()
        self.jobs: dict[int, str] = {}  # ticket number: the scheduler's key of its job
        self.wanted: dict[int, bytes] = {}  # ticket number: the folder in Triton's cache where the kernel is to be too
        self.looked_up: set[int] = set()  # tickets whose look-up is under way
        self.awaited: set[int] = set()  # of these, what somebody is blocked on
        self.sought: dict[int, Sought] = {}  # and those that a remote is asked for
        self.told: set[str] = set()  # notices
        self.toolchains: dict[Toolchain, bool] = {}  # and whether they have been looked at since it came

    @property
    def preferences(self) -> wire.Preferences:
        """As it said when it came."""
        assert self.hello is not None
        return self.hello.preferences

    @property
    def cache_dir(self) -> str:
        """Its cache folder."""
        return os.fsdecode(self.preferences.cache_dir)


class Sessions:
    """Everybody who is connected.

    Args:
        loop: that listens to them.
        answer: what they say.
        left: who has gone; called once for each.
    """

    def __init__(self, loop: Loop, answer: Callable[[Session, Any], None], left: Callable[[Session], None]) -> None:
        self._loop = loop
        self._answer = answer
        self._left = left
        self._listener: Listener | None = None
        self._paused_since = float("inf")  # since when, for lack of file descriptors
        self._sessions: dict[int, Session] = {}
        self._parting: set[Session] = set()  # who have been hung up on, and are still being told so
        self._number = 0
        self.had_members = False

    # Who is there

    def members(self) -> list[Session]:
        """Those who have said that they ask for kernels."""
        return [session for session in self._sessions.values() if session.hello is not None]

    def has(self, session: Session) -> bool:
        """Whether it is there, and has not been hung up on."""
        return session.number in self._sessions

    def get(self, number: int) -> Session | None:
        """The one with this number, if it is there."""
        return self._sessions.get(number)

    @property
    def nobody(self) -> bool:
        """Whether the service has no reason to stay: those who have not introduced themselves yet are about to."""
        return not (self.members() or self._parting) and (self.had_members or not self._sessions)

    # Telling them

    def tell(self, number: int, message: msgspec.Struct) -> None:
        """Send a message to a client, if it is there."""
        session = self._sessions.get(number)
        if session is not None:
            self._loop.send(session.channel, message)

    def notify(self, session: Session, text: str) -> None:
        """Tell a client something that a person should know, once."""
        if text and text not in session.told:
            session.told.add(text)
            self.tell(session.number, wire.Notice(text))

    def warn(self, text: str, cache_dir: str | None = None) -> None:
        """Tell those who use a cache folder, or everybody."""
        for session in self.members():
            if cache_dir in (None, session.cache_dir):
                self.notify(session, text)

    def say_quiesced(self) -> None:
        """Tell those who are blocked on something why it takes long."""
        for session in self.members():
            if session.awaited:
                self.notify(session, QUIESCED)

    def forget_quiesced(self) -> None:
        """It is over: the next time they are told anew."""
        for session in self.members():
            session.told.discard(QUIESCED)

    def warn_users_of(self, settings: wire.RemoteSettings | wire.FarmSettings, text: str) -> None:
        """Tell those who use these stores of other hosts, or this farm."""
        for session in self.members():
            if settings in (session.preferences.remote, session.preferences.farm):
                self.notify(session, text)

    # Coming

    def open(self, config: Config) -> None:
        """Let in those that `config` names: who comes through a door, or one client."""
        if config.listener >= 0:
            self._listener = Listener(socket.socket(fileno=config.listener), Path(config.socket))
            self._loop.watch(self._listener, self._accept)
        else:
            self.admit(Peer(socket.socket(fileno=config.client), os.getppid(), config.client_pidfd))

    def admit(self, peer: Peer) -> None:
        """Listen to somebody."""
        session = Session(self._number, peer)
        self._number += 1
        self._sessions[session.number] = session
        self._loop.watch(session.channel, lambda mask: self._hear(session, mask))
        if session.pidfd >= 0:
            self._loop.watch(session.pidfd, lambda mask: self.dismiss(session))

    @property
    def is_shared(self) -> bool:
        """Whether there is a door that others may come through."""
        return self._listener is not None

    @property
    def deadline(self) -> float | None:
        """Seconds until `look_around` is to be called; None: nothing is due."""
        return _PAUSE if self._paused_since < float("inf") else None

    def look_around(self, now: float) -> None:
        """Accept clients again after a pause."""
        if self._listener is not None and now > self._paused_since + _PAUSE:
            self._paused_since = float("inf")
            self._loop.watch(self._listener, self._accept)

    def _accept(self, mask: int) -> None:
        assert self._listener is not None
        try:
            peer = self._listener.accept()
        except OSError:
            # Clients in the backlog would wake the service again and again while there is nothing that it could do.
            self._loop.unwatch(self._listener)
            self._paused_since = time.monotonic()
            return
        if peer is not None:
            self.admit(peer)

    def greet(self, session: Session, hello: wire.Hello) -> None:
        """Somebody introduces itself."""
        why, remote = "", hello.preferences.remote
        if hello.protocol != wire.PROTOCOL:
            why = f"it speaks protocol {wire.PROTOCOL}, and this client {hello.protocol}"
        elif remote is not None and not 0 < remote.deadline <= MAX_DEADLINE:  # nor is NaN
            why = f"no deadline of stores of other hosts is {remote.deadline} s"
        if why:
            self._loop.send(session.channel, wire.Unwelcome(why))
            self._loop.flush()
            self.dismiss(session)
            return
        session.hello = hello
        self.had_members = True
        self.tell(session.number, wire.Welcome(os.getpid()))

    def _hear(self, session: Session, mask: int) -> None:
        try:
            messages = self._loop.receive(session.channel, mask)
        except (EOFError, ConnectionError):
            self.dismiss(session)
            return
        except wire.ProtocolError:
            _log.exception("a client was disconnected")
            self.dismiss(session)
            return
        for message in messages:
            if self.has(session):
                try:
                    self._answer(session, message)
                except Exception:  # noqa: BLE001 - what one client says must not end the service for all
                    _log.exception("a client was disconnected; this is a bug")
                    self.dismiss(session)

    # Going

    def dismiss(self, session: Session) -> None:
        """It is gone, or is to go."""
        was_there = self._sessions.pop(session.number, None) is not None
        if not was_there and session not in self._parting:
            return
        self._parting.discard(session)
        self._loop.unwatch(session.channel)
        session.channel.close()
        if session.pidfd >= 0:
            self._loop.unwatch(session.pidfd)
            os.close(session.pidfd)
        self._left(session)

    def hang_up_on_slow(self) -> bool:
        """Part with clients whose answers pile up; they are told, come back, and ask again for what is missing."""
        slow = [session for session in self._sessions.values() if session.channel.backlog > MAX_BACKLOG]
        for session in slow:
            _log.warning("client %d does not read its answers, and was hung up on", session.pid)
            del self._sessions[session.number]
            self._parting.add(session)
            session.channel.drop_backlog()
            session.channel.queue(wire.Leaving(f"more than {MAX_BACKLOG >> 20} MiB of answers were not read"))
            self._loop.drain(session.channel, functools.partial(self.dismiss, session))
            self._left(session)
        return bool(slow)

    def say_goodbye(self) -> None:
        """Have the clients look for another service, and blame nobody for the end of this one."""
        for session in self._sessions.values():
            self._loop.send(session.channel, wire.Leaving())
        self._loop.flush()

    def close(self) -> None:
        """Let in nobody any more."""
        if self._listener is not None:
            self._loop.unwatch(self._listener)
            self._listener.close(wire.frame(wire.Leaving()))
