"""What goes out: entries of local stores, signed, and copies of what a far remote had. In the background.

    Offer ─▶ queue, bounded ─▶ a thread: read from the local store, verify, seal, put, give the claim back

What there is no room for is dropped and counted, and so is what is left when the time at the end is over. An entry that
is offered is read when its turn comes; a copy waits in memory. What became of each that was offered is counted.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable

from headstart import wire
from headstart.errors import DamagedError, HeadstartError, UsageError
from headstart.remote.local import Shared
from headstart.stores.remote.base import RemoteError, plain
from headstart.stores.remote.sealing import seal
from headstart.stores.remote.tiers import Found

MAX_QUEUED = 64 << 20  # bytes of copies
MAX_OFFERED = 20_000  # entries that wait
THREADS = 2
_SAID_EVERY = 32  # entries, or
_SAID_AFTER = 0.5  # seconds, whichever is first
_MOST_KNOWN = 20_000  # keys of which it is known that a remote has them
_GONE = "it was gone from the local store"

_log = logging.getLogger("headstart.remote")


class Publisher:
    """Threads that put entries.

    Args:
        shared: see there.
        failed: told that no remote has taken something.
        read_only: nothing is to be put anywhere.
        max_queued: bytes of copies that may wait.
        max_offered: entries that may.
    """

    def __init__(
        self,
        shared: Shared,
        failed: Callable[[], None],
        *,
        read_only: bool = False,
        max_queued: int = MAX_QUEUED,
        max_offered: int = MAX_OFFERED,
    ) -> None:
        self._shared = shared
        self._failed = failed
        self._read_only = read_only
        self._max_queued = max_queued
        self._max_offered = max_offered
        self._offered = 0  # that wait, or are under way
        self._refusal = "it takes nothing"  # the last one
        self._queue: deque[tuple[int, Callable[[], None]]] = deque()
        self._queued = 0  # bytes, of what is under way as well
        self._at_work = 0
        self._done = 0
        self._said = time.monotonic()
        self._there: OrderedDict[str, None] = OrderedDict()  # keys that a remote has, or is about to get
        self._held: set[str] = set()  # keys that are claimed by this host
        self._changed = threading.Condition()

    def start(self) -> None:
        """Begin."""
        for _ in range(THREADS):
            threading.Thread(target=self._run, name="headstart-publisher", daemon=True).start()

    def offer(self, message: wire.Offer) -> None:
        """Publish an entry of a local store."""
        key, shared = message.key, self._shared
        if self._read_only or key in self._there:
            shared.settled(published=False)
        elif not shared.remotes.writable:
            shared.settled(why_not=self._refusal)
        elif self._offered >= self._max_offered:
            shared.settled(why_not=f"{self._max_offered} others were waiting")
        elif not shared.store(message.cache_dir, message.trusted).path_of(key).exists():
            shared.settled(why_not=_GONE)
        else:
            self._note(key)
            with self._changed:
                self._offered += 1
            self._put_into_queue(0, lambda: self._publish(message))
            return
        shared.say_counts()
        self.disclaim(key)

    def copy(self, found: dict[str, Found]) -> None:
        """Copy what a far remote had to nearer ones."""
        for key in found:
            self._note(key)
        far = {key: each for key, each in found.items() if each.tier > 0}
        if far and not self._put_into_queue(sum(len(each.blob) for each in far.values()), lambda: self._copy(far)):
            self._drop(len(far))

    def claimed(self, key: str) -> None:
        """This host has claimed a key."""
        with self._changed:
            self._held.add(key)

    def disclaim(self, key: str) -> None:
        """Give a claim back."""
        if key in self._held:
            self._put_into_queue(0, lambda: self._release(key))

    @property
    def is_idle(self) -> bool:
        """Whether nothing is to be put."""
        with self._changed:
            return not (self._queue or self._at_work)

    def finish(self, seconds: float) -> None:
        """Put what waits, and give claims back, for at most so long."""
        deadline = time.monotonic() + seconds
        for key in list(self._held):
            self.disclaim(key)
        with self._changed:
            while (self._queue or self._at_work) and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)

    def _drop(self, entries: int) -> None:
        self._shared.count("dropped", entries)
        self._shared.say_counts()

    def _put_into_queue(self, size: int, task: Callable[[], None]) -> bool:
        with self._changed:
            if self._queued + size > self._max_queued:
                return False
            self._queued += size
            self._queue.append((size, task))
            self._changed.notify_all()
            return True

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._queue:
                    self._changed.wait()
                size, task = self._queue.popleft()
                self._at_work += 1
            try:
                task()
            except Exception:  # noqa: BLE001 - what others do not get is compiled by them
                _log.exception("an entry was not published; this is a bug")
            finally:
                with self._changed:
                    self._at_work -= 1
                    self._queued -= size
                    self._done += 1
                    now = time.monotonic()
                    is_over = not (self._queue or self._at_work)
                    is_due = is_over or self._done % _SAID_EVERY == 0 or now - self._said >= _SAID_AFTER
                    self._said = now if is_due else self._said
                    self._changed.notify_all()
                if is_due:
                    self._shared.say_counts()

    def _publish(self, message: wire.Offer) -> None:
        key, why_not = message.key, "headstart failed, which is a bug"
        try:
            why_not = self._put(message)
        finally:
            if why_not:
                self._forget(key)
            with self._changed:
                self._offered -= 1
            self._shared.settled(why_not=why_not)
            self._release(key)

    def _put(self, message: wire.Offer) -> str:
        """Why it is not published; empty if it is."""
        key, shared = message.key, self._shared
        try:
            entry = shared.store(message.cache_dir, message.trusted).find(key)
            if entry is None:
                return _GONE
            raw = entry.raw()
            if hashlib.sha256(raw).digest() != message.sha256:
                raise DamagedError(key, "it is not what was compiled here; another one has taken its place")
            entry.verify()  # what is signed has to be whole
            blob = seal(raw, shared.signer)
            if shared.signer.problem and not shared.remotes.trusted:
                shared.tell_once(
                    f"{shared.remotes.name}: other hosts do not trust what this one publishes: {shared.signer.problem}"
                )
            if key in shared.unfit:
                shared.unfit.discard(key)
                shared.remotes.delete(key)
            if not shared.remotes.writable:  # since it was offered
                return self._refusal
            shared.remotes.put(key, blob)
            return ""
        except RemoteError as error:
            self._failed()
            # While a remote is left alone: what it did before, which is one reason and not one for each second.
            first = error.__cause__ if isinstance(error.__cause__, RemoteError) else error
            self._refusal = first.summary
            return first.summary
        except DamagedError as error:
            return f"it is damaged in the local store ({plain(error.reason)})"
        except (UsageError, OSError) as error:
            return plain(error)

    def _copy(self, far: dict[str, Found]) -> None:
        self._shared.remotes.keep_near(far)

    def _release(self, key: str) -> None:
        with self._changed:
            if key not in self._held:
                return
            self._held.discard(key)
        try:
            self._shared.remotes.release(key)
        except HeadstartError:
            pass  # its time will be over

    def _note(self, key: str) -> None:
        with self._changed:
            self._there[key] = None
            if len(self._there) > _MOST_KNOWN:
                self._there.popitem(last=False)

    def _forget(self, key: str) -> None:
        with self._changed:
            self._there.pop(key, None)
