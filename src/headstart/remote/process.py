"""The process that has the stores of other hosts, for one service and one setting.

    service ── Serve, then LookUp, Hurry, Offer, … ─▶ this thread ─▶ Finder, Publisher: threads of their own
            ◀─ LookedUp, Claimed, Availability, … ──────────────────────┘

It ends when its service is gone, which it hears by EOF however that ended, within `FINISHING` seconds in which it puts
what it still has; and when nobody has asked for anything for a while. Nobody waits for it.
"""

from __future__ import annotations

import os
import select
import socket
import sys
from collections.abc import Callable
from typing import Any

from headstart import wire
from headstart.errors import HeadstartError
from headstart.remote.finding import Finder
from headstart.remote.local import Replies, Shared, says
from headstart.remote.publishing import Publisher
from headstart.remote.watching import Watch
from headstart.stores.remote import open_remotes
from headstart.stores.remote.tiers import Remotes
from headstart.stores.remote.urls import parse_urls
from headstart.system.spawn import begin_helper

IDLE_TIMEOUT = 60.0  # seconds
FINISHING = 2.0  # seconds, at the service's end, for what is to be published
_READ = 1 << 18  # bytes per recv


class Process:
    """What is done about each message.

    Args:
        settings: what is served.
        remotes: the stores of other hosts.
        replies: to the service.
    """

    def __init__(self, settings: wire.RemoteSettings, remotes: Remotes, replies: Replies) -> None:
        self._shared = Shared(settings, remotes, replies.say)
        self._watch = Watch(remotes.probe, lambda usable: replies.say(wire.Availability(usable)))
        urls = parse_urls(settings.urls)
        self._publisher = Publisher(
            self._shared, self._watch.failed, read_only=bool(urls) and all(url.read_only for url in urls)
        )
        self._finder = Finder(
            self._shared,
            claims=settings.claims,
            failed=self._watch.failed,
            found=self._publisher.copy,
            claimed=self._publisher.claimed,
            disclaim=self._publisher.disclaim,
        )

    def start(self) -> None:
        """Tell the service that it can be asked, and have the threads begin."""
        self._shared.say(wire.Awake())
        self._shared.say_counts()
        self._watch.start()
        self._publisher.start()
        self._finder.start()

    def take(self, message: Any) -> None:
        """Do what the service says."""
        match message:
            case wire.LookUp():
                self._finder.ask(message)
            case wire.Hurry(tickets):
                self._finder.hurry(tickets)
            case wire.Offer():
                self._publisher.offer(message)
            case wire.Disclaim(key):
                self._publisher.disclaim(key)

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to be done."""
        return self._finder.is_idle and self._publisher.is_idle

    def finish(self) -> None:
        """The service is gone: publish what there still is."""
        self._publisher.finish(FINISHING)


def serve(sock: socket.socket, open_them: Callable[[wire.RemoteSettings, Callable[[str], None]], Remotes]) -> None:
    """Until the service is gone, or nobody has asked for anything for a while."""
    replies = Replies(sock)
    deframer = wire.Deframer(wire.ToRemote)
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    process: Process | None = None
    while True:
        if not poll.poll(IDLE_TIMEOUT * 1000):
            if process is None or process.is_idle:
                return
            continue
        try:
            data = sock.recv(_READ)
        except ConnectionError:
            data = b""
        if not data:
            if process is not None:
                process.finish()
            return
        for message in deframer.feed(data):
            if not isinstance(message, wire.Serve):
                if process is not None:
                    process.take(message)
                continue
            try:
                remotes = open_them(message.settings, lambda text: replies.say(says(text)))
            except HeadstartError as error:
                # The service goes on without, and starts no other one: it would not be better the next time.
                replies.say(says(f"stores of other hosts are not used: {error}"))
                replies.say(wire.Awake())
                replies.say(wire.Availability(False, for_good=True))
                return
            process = Process(message.settings, remotes, replies)
            process.start()


def _open(settings: wire.RemoteSettings, warn: Callable[[str], None]) -> Remotes:
    return open_remotes(settings.urls, warn=warn)


def main(argument: str) -> None:
    """Run a remote process; `argument`: the fd of its socket."""
    sock = begin_helper(argument, "stores of other hosts")
    serve(sock, _open)
    sys.stderr.flush()
    os._exit(0)  # threads that wait for a network are waited for by nobody
