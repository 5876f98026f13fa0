"""Look-ups: in batches, nearest remote first, verified, published into the local stores that they are for.

    LookUp ─▶ queue ─▶ a thread takes all that wait ─▶ claim? ─▶ find_many ─▶ unseal ─▶ local store ─▶ LookedUp
                                                                    └─▶ another host's ─▶ Claimed, later LookedUp

A key is claimed before it is looked for: whoever had it gives it back once the entry is there.

What somebody waits for goes first, and one thread does nothing else. While a call is under way others gather, and the
next one asks for all of them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from headstart import wire
from headstart.errors import StoreUnavailable
from headstart.remote.local import Shared
from headstart.stores.remote.base import RemoteError
from headstart.stores.remote.tiers import Found

BATCH = 64  # keys of one call, if somebody waits for them: then come the next ones
BACKGROUND_BATCH = 256  # and else; also of those that other hosts are at
SAID_AT_ONCE = 16  # entries: who waits for the next ones is to hear that they are coming
FIRST_POLL = 0.05  # seconds until another host's entry is looked for again; longer each time
MAX_POLL = 0.5  # seconds
_CLAIM_EVERY = 4  # such looks: whether its claim was given back, which is a round trip for each key
_LONGER = 1.5  # times
_STILL_AT_IT = 0.02  # seconds between two signs that a store answers, while a call is under way
_CLAIMING = 8  # threads that claim keys, each of which is a round trip

_log = logging.getLogger("headstart.remote")


class _Item(NamedTuple):
    wanted: wire.Wanted
    cache_dir: bytes
    trusted: bool


class _Claimed:
    """An item that another host is at."""

    def __init__(self, item: _Item, now: float) -> None:
        self.item = item
        self.until = now + item.wanted.lease
        self.looks = 0
        self.pause = FIRST_POLL
        self.due = now + FIRST_POLL


class Finder:
    """Threads that look entries up.

    Args:
        shared: see there.
        claims: whether hosts tell one another what they compile.
        failed: told that no remote has answered.
        found: told what was found, to be copied to nearer ones.
        claimed: told of each key that this host has claimed.
        disclaim: told of those of them that it need not make.
    """

    def __init__(
        self,
        shared: Shared,
        *,
        claims: bool,
        failed: Callable[[], None],
        found: Callable[[dict[str, Found]], None],
        claimed: Callable[[str], None],
        disclaim: Callable[[str], None],
    ) -> None:
        self._shared = shared
        self._claims = claims
        self._failed = failed
        self._found = found
        self._claimed = claimed
        self._disclaim = disclaim
        self._urgent: deque[_Item] = deque()
        self._background: deque[_Item] = deque()
        self._waiting: list[_Claimed] = []
        self._changed = threading.Condition()
        self._at_work = 0
        self._said = float("-inf")
        shared.remotes.progress.listener = self._progressed

    def start(self) -> None:
        """Begin."""
        targets: list[Callable[[], None]] = [lambda: self._run(True), lambda: self._run(False)]
        targets += [self._poll] * self._claims
        for target in targets:
            threading.Thread(target=target, name="headstart-finder", daemon=True).start()

    def ask(self, message: wire.LookUp) -> None:
        """Look for these."""
        items = [_Item(wanted, message.cache_dir, message.trusted) for wanted in message.wanted]
        with self._changed:
            (self._background if message.background else self._urgent).extend(items)
            self._changed.notify_all()

    def hurry(self, tickets: Sequence[int]) -> None:
        """Somebody waits for these by now, if they are in the background."""
        with self._changed:
            sooner = set(tickets)
            self._urgent.extend(item for item in self._background if item.wanted.ticket in sooner)
            self._background = deque(item for item in self._background if item.wanted.ticket not in sooner)
            self._changed.notify_all()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is to be answered."""
        with self._changed:
            return not (self._urgent or self._background or self._waiting or self._at_work)

    def _run(self, urgent_only: bool) -> None:
        while True:
            with self._changed:
                while not (self._urgent or (self._background and not urgent_only)):
                    self._changed.wait()
                line, most = (self._urgent, BATCH) if self._urgent else (self._background, BACKGROUND_BATCH)
                batch = [line.popleft() for _ in range(min(most, len(line)))]
                self._at_work += 1
            try:
                self._look_up(batch)
            except Exception:  # noqa: BLE001 - a remote's trouble must not become that of those who ask
                _log.exception("a look-up failed; this is a bug")
                self._say([], batch)  # of what was answered before, this is not heard
            finally:
                with self._changed:
                    self._at_work -= 1

    def _look_up(self, batch: Sequence[_Item]) -> None:
        ours = self._claim([item for item in batch if item.wanted.lease]) if self._claims else {}
        missing = self._find(batch)
        self._give_back(ours, missing)
        others = [item for item in missing if item.wanted.lease and not ours.get(item.wanted.key, True)]
        if others:
            self._wait_for(others)
        self._say([], [item for item in missing if item not in others] if others else missing)
        self._shared.say_counts()

    def _find(self, batch: Sequence[_Item], *, again: bool = False) -> list[_Item]:
        """Answer what is found; returns the rest. `again`: which has been counted as missing before."""
        wanted = {item.wanted.key: item.wanted for item in batch}
        entries: dict[str, bytes] = {}

        def accept(key: str, blob: bytes, trusted: bool) -> bool:
            entry = self._shared.accepted(wanted[key], blob, trusted) if key in wanted else None
            if entry is not None:
                entries[key] = entry
            return entry is not None

        found: dict[str, Found] = {}
        try:
            found = self._shared.remotes.find_many(list(wanted), accept, again=again)
        except RemoteError:
            self._failed()
        here = [item for item in batch if item.wanted.key in found]
        for start in range(0, len(here), SAID_AT_ONCE):
            some = here[start : start + SAID_AT_ONCE]
            self._say([self._keep(item, entries[item.wanted.key]) for item in some], [])
        if found:
            self._found(found)
        return [item for item in batch if item.wanted.key not in found]

    def _keep(self, item: _Item, entry: bytes) -> wire.FoundRemotely:
        store = self._shared.store(item.cache_dir, item.trusted)
        try:
            store.publish(item.wanted.key, [entry])
        except StoreUnavailable:
            return wire.FoundRemotely(item.wanted.ticket, entry)
        return wire.FoundRemotely(item.wanted.ticket)

    def _progressed(self) -> None:
        """A store has answered for one of many keys, or claims: it is not silent, and its answers are known soon."""
        now = time.monotonic()
        if now - self._said >= _STILL_AT_IT:
            self._said = now
            self._shared.say(wire.LookedUp([], []))

    def _say(self, found: list[wire.FoundRemotely], missing: Sequence[_Item]) -> None:
        if found or missing:
            self._shared.say(wire.LookedUp(found, [item.wanted.ticket for item in missing]))

    # Claims

    def _claim(self, items: Sequence[_Item]) -> dict[str, bool]:
        """Claim keys; whether each is ours to make."""
        each = {item.wanted.key: item for item in items}  # two stores may want one
        if len(each) < 2:
            return {key: self._try_to_claim(item) for key, item in each.items()}
        from concurrent.futures import ThreadPoolExecutor  # few have claims

        with ThreadPoolExecutor(min(_CLAIMING, len(each))) as pool:  # each is a round trip
            return dict(zip(each, pool.map(self._try_to_claim, each.values()), strict=True))

    def _give_back(self, ours: dict[str, bool], missing: Sequence[_Item]) -> None:
        """What is ours to make and was there all the same is another host's again."""
        left = {item.wanted.key for item in missing}
        for key in (key for key, is_ours in ours.items() if is_ours and key not in left):
            self._disclaim(key)

    def _wait_for(self, items: Sequence[_Item]) -> None:
        """Other hosts make these."""
        now = time.monotonic()
        by_lease: dict[float, list[int]] = {}
        for item in items:
            by_lease.setdefault(item.wanted.lease, []).append(item.wanted.ticket)
        for lease, tickets in by_lease.items():
            self._shared.say(wire.Claimed(tickets, lease + MAX_POLL))
        with self._changed:
            self._waiting += [_Claimed(item, now) for item in items]
            self._changed.notify_all()

    def _try_to_claim(self, item: _Item) -> bool:
        """Whether it is to be made here: nobody else makes it, or nobody can tell."""
        try:
            answer = self._shared.remotes.claim(item.wanted.key, item.wanted.lease)
        except RemoteError:
            return True
        self._progressed()
        if answer:
            self._claimed(item.wanted.key)
        return answer is not False

    def _poll(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    self._changed.wait()
                now = time.monotonic()
                self._waiting.sort(key=lambda each: each.due)
                if (first := self._waiting[0].due) > now:
                    self._changed.wait(first - now)
                    continue
                due = [each for each in self._waiting[:BACKGROUND_BATCH] if each.due <= now]
                self._waiting = self._waiting[len(due) :]
                self._at_work += 1
            try:
                self._look_again(due)
            except Exception:  # noqa: BLE001 - as above
                _log.exception("a look-up failed; this is a bug")
                self._say([], [each.item for each in due])
            finally:
                with self._changed:
                    self._at_work -= 1

    def _look_again(self, due: Sequence[_Claimed]) -> None:
        now = time.monotonic()
        # The claim may have been given back, or have run out: then it is this host's turn, unless the entry is there.
        again = [each.item for each in due if each.looks % _CLAIM_EVERY == _CLAIM_EVERY - 1 or now >= each.until]
        ours = self._claim(again)
        left = self._find([each.item for each in due], again=True)
        self._give_back(ours, left)
        missing = {id(item) for item in left}
        over, on = [], []
        for each in due:
            if id(each.item) not in missing:
                continue
            if now >= each.until or ours.get(each.item.wanted.key, False):
                over.append(each.item)
            else:
                each.looks += 1
                each.pause = min(_LONGER * each.pause, MAX_POLL)
                each.due = min(now + each.pause, each.until)
                on.append(each)
        with self._changed:
            self._waiting += on
        self._say([], over)
