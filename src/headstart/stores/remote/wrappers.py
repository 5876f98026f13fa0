"""Remotes made of remotes: each is one itself, so that they can be put into one another.

CountingRemote(ReadOnlyRemote(BreakerRemote(DeadlineRemote(store))))      as `open_remotes` stacks them
"""

from __future__ import annotations

import functools
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from headstart.errors import HeadstartError
from headstart.stores.remote.base import Remote, RemoteError

FAILURES = 3  # in a row, after which a remote is left alone
LEFT_ALONE = 30.0  # seconds, twice as many each time that it fails again, at most
LEFT_ALONE_AT_MOST = 600.0  # seconds
_GIVEN_UP = "Compiles go on without it; it is tried again from time to time"
_NOT_WRITTEN = "Nothing is put there meanwhile; that is tried again from time to time"
_STUCK = 4  # calls past their deadline that a remote may have before no other is begun

T = TypeVar("T")
_log = logging.getLogger("headstart")


class RemoteWrapper:
    """Does what another remote does."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote

    @property
    def name(self) -> str:
        """See `Remote`."""
        return self._remote.name

    @property
    def trusted(self) -> bool:
        """See `Remote`."""
        return self._remote.trusted

    @property
    def writable(self) -> bool:
        """See `Remote`."""
        return self._remote.writable

    def get_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        """See `Remote`."""
        return self._call(lambda: self._remote.get_many(keys))

    def put(self, key: str, blob: bytes) -> None:
        """See `Remote`."""
        self._call(lambda: self._remote.put(key, blob))

    def claim(self, key: str, seconds: float) -> bool | None:
        """See `Remote`."""
        return self._call(lambda: self._remote.claim(key, seconds))

    def release(self, key: str) -> None:
        """See `Remote`."""
        self._call(lambda: self._remote.release(key))

    def delete(self, key: str) -> None:
        """See `Remote`."""
        self._call(lambda: self._remote.delete(key))

    def close(self) -> None:
        """See `Remote`."""
        self._remote.close()

    def _call(self, what: Callable[[], T]) -> T:
        return what()


class ReadOnlyRemote(RemoteWrapper):
    """Gets what another remote has, and changes nothing there."""

    @property
    def writable(self) -> bool:
        """It is not."""
        return False

    def put(self, key: str, blob: bytes) -> None:
        """Raises `RemoteError`."""
        raise self._refuse()

    def claim(self, key: str, seconds: float) -> bool | None:
        """Nobody who cannot put needs to be waited for."""
        return None

    def release(self, key: str) -> None:
        """See `Remote`."""

    def delete(self, key: str) -> None:
        """Raises `RemoteError`."""
        raise self._refuse()

    def _refuse(self) -> RemoteError:
        return RemoteError(f"{self.name} is only read", advice="take ?read-only out of its URL", lasting=True)


class CountingRemote(RemoteWrapper):
    """Counts what is asked of another remote.

    Attributes:
        hits, misses: keys that were there, and that were not;
        hit_bytes: of blobs got;
        puts, put_bytes: blobs kept;
        errors: calls that failed;
        seconds: that calls took, of all threads together.
    """

    def __init__(self, remote: Remote) -> None:
        super().__init__(remote)
        self._lock = threading.Lock()
        self.hits = self.misses = self.hit_bytes = self.puts = self.put_bytes = self.errors = 0
        self.seconds = 0.0

    def get_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        """See `Remote`."""
        found = self.get_again(keys)
        with self._lock:
            self.misses += len(set(keys)) - len(found)
        return found

    def get_again(self, keys: Sequence[str]) -> dict[str, bytes]:
        """As `get_many`, of keys that were missing before: what still is, is not counted once more."""
        found = super().get_many(keys)
        with self._lock:
            self.hits += len(found)
            self.hit_bytes += sum(map(len, found.values()))
        return found

    def probe(self, key: str) -> None:
        """As `get_many`, of a key that nobody has; a trial, which is not counted unless it fails."""
        try:
            self._remote.get_many([key])
        except RemoteError:
            with self._lock:
                self.errors += 1
            raise

    def put(self, key: str, blob: bytes) -> None:
        """See `Remote`."""
        super().put(key, blob)
        with self._lock:
            self.puts += 1
            self.put_bytes += len(blob)

    def _call(self, what: Callable[[], T]) -> T:
        begun = time.monotonic()
        try:
            return what()
        except RemoteError:
            with self._lock:
                self.errors += 1
            raise
        finally:
            with self._lock:
                self.seconds += time.monotonic() - begun


class BreakerRemote(RemoteWrapper):
    """Leaves another remote alone for a while once it has failed a few times in a row, or in a way that lasts.

    Meanwhile calls fail at once, with the last error as their cause. Then one call may try; if it fails too, the remote
    is left alone for twice as long.

    What changes the remote is counted by itself: one that can only be read goes on being read. One that cannot be read
    is not changed either, until a read has worked.

    Args:
        warn: told once when it begins to fail, and once when it is back; by default, the log.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        remote: Remote,
        *,
        failures: int = FAILURES,
        left_alone: float = LEFT_ALONE,
        warn: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(remote)
        warn = warn or functools.partial(_log.warning, "%s")
        self._reads = _Circuit(failures, left_alone, warn, clock, _GIVEN_UP, f"{self.name} answers again")
        self._writes = _Circuit(
            failures,
            left_alone,
            warn,
            clock,
            _NOT_WRITTEN,
            f"{self.name} takes entries again",
            is_said=lambda: not self._reads.fails,  # else one line says all of it
        )

    @property
    def is_open(self) -> bool:
        """Whether reads fail at once."""
        return self._reads.is_open

    @property
    def writable(self) -> bool:
        """Not for a while after it has refused an entry in a way that lasts: nothing is made ready in vain."""
        return self._remote.writable and not self._writes.is_refused

    def get_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        """See `Remote`."""
        return self._reads.call(lambda: self._remote.get_many(keys))

    def _call(self, what: Callable[[], T]) -> T:
        self._reads.check()
        return self._writes.call(what)


class _Circuit:
    """Whether calls of one kind are tried.

    Args:
        failures: in a row, after which they are not.
        left_alone: seconds, at first.
        worse: said after the first error.
        better: said once a call works again.
        is_said: whether there is anything to say of it, when it begins to fail.
    """

    def __init__(
        self,
        failures: int,
        left_alone: float,
        warn: Callable[[str], None],
        clock: Callable[[], float],
        worse: str,
        better: str,
        is_said: Callable[[], bool] = lambda: True,
    ) -> None:
        self._most = failures
        self._first_pause = left_alone
        self._warn = warn
        self._clock = clock
        self._worse = worse
        self._better = better
        self._is_said = is_said
        self._has_said = False
        self._lock = threading.Lock()
        self._in_a_row = 0
        self._pause = 0.0  # seconds; 0: it is not left alone
        self._until = 0.0
        self._last: RemoteError | None = None

    @property
    def is_open(self) -> bool:
        """Whether calls fail at once."""
        with self._lock:
            return self._pause > 0 and self._clock() < self._until

    @property
    def fails(self) -> bool:
        """Whether the last call has failed."""
        return self._in_a_row > 0

    @property
    def is_refused(self) -> bool:
        """Whether they do so because of what lasts."""
        last = self._last
        return self.is_open and last is not None and last.lasting

    def check(self) -> None:
        """Raise the last `RemoteError` unless calls work, as far as is known."""
        with self._lock:
            if self._pause:
                raise self._not_yet() from self._last

    def call(self, what: Callable[[], T]) -> T:
        """Try it, if it is time to."""
        with self._lock:
            now = self._clock()
            if self._pause and now < self._until:
                raise self._not_yet() from self._last
            if self._pause:
                self._until = now + self._pause  # for everybody but this call
        try:
            result = what()
        except RemoteError as error:
            self._failed(error)
            raise
        self._worked()
        return result

    def _not_yet(self) -> RemoteError:
        last = self._last
        assert last is not None
        left = max(0.0, self._until - self._clock())
        return RemoteError(f"{last.summary} (not tried again for {left:.0f} s)", advice=last.advice)

    def _failed(self, error: RemoteError) -> None:
        with self._lock:
            self._in_a_row += 1
            if self._in_a_row < self._most and not error.lasting and not self._pause:
                return
            first = not self._pause
            self._pause = min(2 * self._pause or self._first_pause, LEFT_ALONE_AT_MOST)
            self._until = self._clock() + self._pause
            self._last = error
        if first and self._is_said():
            self._has_said = True
            self._warn(f"{error}. {self._worse}")

    def _worked(self) -> None:
        with self._lock:
            has_said, self._has_said = self._has_said, False
            self._in_a_row, self._pause, self._last = 0, 0.0, None
        if has_said:
            self._warn(self._better)


class DeadlineRemote(RemoteWrapper):
    """Gives up a call of another remote that takes too long: a file server that hangs, a reply that trickles.

    What was begun goes on in its thread, and what comes of it is dropped. What a call raises that a remote should not
    is a `RemoteError`, so that a bug in one, or in its library, costs no other remote anything.
    """

    def __init__(self, remote: Remote, seconds: float) -> None:
        super().__init__(remote)
        self._seconds = seconds
        self._lock = threading.Lock()
        self._stuck = 0

    def _call(self, what: Callable[[], T]) -> T:
        with self._lock:
            if self._stuck >= _STUCK:
                raise self._error(f"{self._stuck} calls have not come back")
        answer: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()
        is_late = [False]

        def run() -> None:
            try:
                answer.put((True, what()))
            except HeadstartError as error:
                answer.put((False, error))
            except Exception as error:  # noqa: BLE001 - whatever it is
                # By its type only: its text may have the password.
                answer.put((False, self._error(f"it failed as no store should ({type(error).__name__})")))
            except BaseException as error:  # noqa: BLE001 - it is raised where the call was made
                answer.put((False, error))
            with self._lock:
                self._stuck -= is_late[0]

        try:
            threading.Thread(target=run, name="headstart-remote", daemon=True).start()
        except RuntimeError as error:
            raise self._error("no thread is to be had") from error
        try:
            worked, result = answer.get(timeout=self._seconds)
        except queue.Empty:
            with self._lock:
                if answer.empty():
                    is_late[0] = True
                    self._stuck += 1
                    raise self._error(f"no answer within {self._seconds:g} s") from None
            worked, result = answer.get()
        if not worked:
            raise result
        return result  # type: ignore[no-any-return]

    def _error(self, what: str) -> RemoteError:
        return RemoteError(f"{self.name}: {what}", advice="see whether it can be reached from this host")
