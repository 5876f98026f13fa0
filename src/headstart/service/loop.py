"""The selector of a service: who is listened to, and what is to be sent at the end of a round."""

from __future__ import annotations

import contextlib
import selectors
from collections.abc import Callable
from typing import Any

import msgspec

from headstart import wire


class Loop:
    """One thread's sockets and pidfds, each with what is to be called when there is something to read."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._unsent: dict[int, wire.Channel] = {}

    def watch(self, fileobj: Any, react: Callable[[int], None]) -> None:
        """Call `react` with the selector's mask whenever `fileobj` can be read, or (channels) written at last."""
        self._selector.register(fileobj, selectors.EVENT_READ, react)

    def unwatch(self, fileobj: Any) -> None:
        """Listen no longer. To be called before it is closed."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(fileobj)

    def once(self, patience: float | None) -> None:
        """Wait for something to happen, for at most `patience` seconds, and have it dealt with."""
        for event, mask in self._selector.select(patience):
            # It may have been closed by an earlier event of this round.
            if self._selector.get_map().get(event.fd) is event:
                event.data(mask)

    def send(self, channel: wire.Channel, message: msgspec.Struct) -> None:
        """Send a message at the end of the round."""
        # Each send wakes a process, and on a busy machine takes a core from a compile.
        channel.queue(message)
        self._unsent[id(channel)] = channel

    def flush(self) -> None:
        """The end of a round. What a socket does not take is sent as soon as it does."""
        for channel in self._unsent.values():
            # A peer that is gone is noticed when its socket is read.
            with contextlib.suppress(OSError):
                channel.flush()
            self._watch_writable(channel)
        self._unsent.clear()

    def drain(self, channel: wire.Channel, done: Callable[[], None]) -> None:
        """Listen to a channel no longer, and call `done` once it has sent what it holds, or cannot any more."""

        def go_on(mask: int) -> None:
            with contextlib.suppress(OSError):
                channel.flush()
                if channel.has_unsent:
                    return
            done()

        self._unsent.pop(id(channel), None)
        self._selector.modify(channel, selectors.EVENT_WRITE, go_on)

    def receive(self, channel: wire.Channel, mask: int) -> list[Any]:
        """What has arrived, after sending what could not be sent before. Raises as `wire.Channel.receive` does."""
        if mask & selectors.EVENT_WRITE:
            channel.flush()
            self._watch_writable(channel)
        return channel.receive() if mask & selectors.EVENT_READ else []

    def _watch_writable(self, channel: wire.Channel) -> None:
        entry = None if channel.fileno() < 0 else self._selector.get_map().get(channel)
        if entry is not None:
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if channel.has_unsent else 0)
            if events != entry.events:
                self._selector.modify(channel, events, entry.data)
