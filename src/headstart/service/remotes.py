"""Stores of other hosts: what a service asks of the processes that have them, and for how long anybody waits.

    Requests, Sources ── look_up ─▶ Remotes ── LookUp ──▶ remote process (one for each `RemoteSettings`)
                      ◀─ answered ─         ◀─ LookedUp ─
                      ◀─ late ─────         ◀─ LookedUp, after the deadline
    Requests ── offer ────────────▶         ── Offer ───▶

Keys that are asked for in one turn of the loop travel in one message. Nobody waits for a process: a look-up is answered
once, at the latest when its deadline is over, and what comes after that is `late`.

A look-up is given up when the process has answered nothing for as long as the deadline says, or after ten times that.
Then no other one is waited for until something is answered. After three such deadlines in a row nobody waits for a
while, which doubles; and nobody asks at all while the process says that it is no use, or has died. Settings that it
says to be wrong are so for as long as this service is there. What a process would owe too many answers for waits here.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Any

from headstart import wire
from headstart.errors import ServiceError
from headstart.service.look_ups import Answered, Late, LookUp, Sought
from headstart.service.loop import Loop
from headstart.service.remote_process import RemoteProcess

STARTING = 2.0  # seconds that a process may take to be there; look-ups wait for that, not for their deadlines
BACKGROUND_DEADLINE = 10.0  # seconds of silence after which what runs in the background is compiled
MOST_LATE = 3  # deadlines that passed in a row, after which nobody waits for a while
REST = 5.0  # seconds of that at first, and for which one that died is not started; twice as many each time
MAX_REST = 300.0  # seconds
_LONGEST = 10  # deadlines: what a look-up may take while others are answered
_MOST_ASKED = 4096  # look-ups of the background that a process has not answered; others wait here until it has
_MOST_QUEUED = 32_768  # look-ups that wait here; what is beyond is compiled

_log = logging.getLogger("headstart.service")


class _Remote:
    """What is known of one process, and of those with the same settings before it."""

    def __init__(self, settings: wire.RemoteSettings) -> None:
        self.settings = settings
        self.process: RemoteProcess | None = None
        self.woke = float("-inf")  # when it was there
        self.heard = float("-inf")  # when it last answered
        self.asked: dict[int, LookUp] = {}  # by ticket; those of the queue are not
        self.by_sought: dict[tuple[Sought, bool], LookUp] = {}  # and whether it is claimed as well
        self.unsent: list[LookUp] = []  # of this turn
        self.queue: deque[LookUp] = deque()  # of the background, the oldest first; who is hurried leaves it
        self.hurried: list[int] = []  # tickets of this turn
        self.usable = True
        self.wrong = False  # for good: the settings are
        self.is_late = False  # a look-up was given up, and nothing has been answered since
        self.lates = 0  # such times in a row
        self.rest = REST
        self.rests_until = float("-inf")  # nobody waits before that
        self.told_slow = False
        self.restarts_at = float("-inf")  # it is not started before that
        self.deaths = 0  # in a row
        self.counts = wire.RemoteCounts()  # of this process
        self.before = wire.RemoteCounts()  # of those before it
        self.offered = 0  # entries, to this process

    def is_waited_for(self, now: float) -> bool:
        return self.usable and not self.is_late and now >= self.rests_until

    def due(self, look_up: LookUp) -> float:
        """When a look-up is to be given up; monotonic seconds."""
        if look_up.claimed_until is not None:
            return look_up.claimed_until
        silence = BACKGROUND_DEADLINE if look_up.background else self.settings.deadline
        if not look_up.sent:
            return max(look_up.asked, self.heard) + silence
        if self.process is not None and not self.process.awake and self.woke == float("-inf"):
            return max(self.process.started + STARTING, look_up.asked + silence)
        return min(max(look_up.asked, self.heard) + silence, max(look_up.asked, self.woke) + _LONGEST * silence)

    def waiting(self) -> list[LookUp]:
        """Those that may be due; of the queue, which are due in their order, only the first."""
        first = self.first_queued()
        return [each for each in (*self.asked.values(), first) if each is not None and each.askers]

    def first_queued(self) -> LookUp | None:
        """The oldest of the queue. What somebody waits for by now is not in it any more."""
        while self.queue and not self.queue[0].background:
            self.queue.popleft()
        return self.queue[0] if self.queue else None

    def fill(self, now: float) -> None:
        """Take out of the queue what the process may owe answers for."""
        while len(self.asked) < _MOST_ASKED and (first := self.first_queued()) is not None:
            self.queue.popleft()
            first.asked = now
            self.asked[first.ticket] = first
            self.unsent.append(first)

    def over(self, now: float) -> list[LookUp]:
        """Those that are due. What was not even sent is forgotten."""
        over = [each for each in self.asked.values() if each.askers and self.due(each) <= now]
        while (first := self.first_queued()) is not None and self.due(first) <= now:
            self.queue.popleft()
            del self.by_sought[first.place]
            over.append(first)
        return over

    def hurry(self, look_up: LookUp, now: float) -> None:
        """Somebody waits for what was looked up in the background."""
        look_up.background, look_up.asked = False, now
        if look_up.sent:
            self.hurried.append(look_up.ticket)
        elif look_up.ticket not in self.asked:
            self.asked[look_up.ticket] = look_up
            self.unsent.append(look_up)

    def forget(self) -> list[LookUp]:
        """Ask for nothing any more; returns what was not answered."""
        unanswered = list(self.by_sought.values())
        self.asked, self.by_sought, self.unsent, self.hurried = {}, {}, [], []
        self.queue.clear()
        return unanswered

    def total(self) -> wire.RemoteCounts:
        return self.before + self.counts + wire.RemoteCounts(offered=self.offered)


class Remotes:
    """Starts remote processes when they are needed, and asks them.

    Args:
        loop: that listens to them.
        tell: has the clients with these settings told something.
    """

    def __init__(self, loop: Loop, tell: Callable[[wire.RemoteSettings, str], None]) -> None:
        self._loop = loop
        self._tell = tell
        self._tickets = count(1)
        self._remotes: dict[wire.RemoteSettings, _Remote] = {}

    @property
    def pids(self) -> set[int]:
        """Their processes."""
        return {each.process.pid for each in self._remotes.values() if each.process is not None}

    @property
    def busy(self) -> bool:
        """Whether an answer is to come."""
        return any(remote.by_sought for remote in self._remotes.values())

    def prepare(self, settings: wire.RemoteSettings) -> None:
        """Have a process ready: somebody with these settings is about to ask."""
        self._running(settings)

    def look_up(
        self,
        settings: wire.RemoteSettings,
        sought: Sought,
        answered: Answered,
        late: Late | None = None,
        *,
        background: bool = False,
        lease: float = 0.0,
        elsewhere: Callable[[], None] | None = None,
        claimed_late: Callable[[], None] | None = None,
    ) -> None:
        """Look for an entry, which is in the local store when it was found.

        Args:
            answered: called once, perhaps at once; with None if there is none, or nobody is to wait any longer.
            late: called at most once, after that, if it was found all the same.
            background: nobody waits for it soon.
            lease: seconds for which it is claimed first, where that can be done; 0: it is not.
            elsewhere: called if another host has claimed it: the answer is what comes of that.
            claimed_late: called if it was not there, and may have been claimed, after nobody waited any longer.
        """
        now = time.monotonic()
        remote = self._running(settings)
        if remote is None or not remote.usable:
            answered(None)
            return
        look_up = remote.by_sought.get((sought, lease > 0))
        if look_up is None:
            is_full = len(remote.asked) >= _MOST_ASKED
            if len(remote.by_sought) >= _MOST_ASKED + _MOST_QUEUED or (is_full and not remote.is_waited_for(now)):
                answered(None)
                return
            look_up = LookUp(next(self._tickets), sought, lease, background, now)
            remote.by_sought[look_up.place] = look_up
            if is_full and background and not lease:
                remote.queue.append(look_up)
            else:
                remote.asked[look_up.ticket] = look_up
                remote.unsent.append(look_up)
        elif look_up.background and not background:
            remote.hurry(look_up, now)
        look_up.claimed_late += [] if claimed_late is None else [claimed_late]
        if look_up.given_up or not remote.is_waited_for(now):
            look_up.given_up += [] if late is None else [late]
            answered(None)
        else:
            look_up.askers.append((answered, late))
            look_up.elsewhere += [] if elsewhere is None else [elsewhere]
            if look_up.claimed_until is not None and elsewhere is not None:
                elsewhere()

    def hurry(self, settings: wire.RemoteSettings, sought: Sought) -> None:
        """Somebody is blocked on what was looked up for the background."""
        remote = self._remotes.get(settings)
        look_up = None if remote is None else remote.by_sought.get((sought, False))
        if remote is not None and look_up is not None and look_up.background:
            remote.hurry(look_up, time.monotonic())

    def offer(self, settings: wire.RemoteSettings, sought: Sought, sha256: bytes) -> None:
        """An entry with this SHA-256 is in its local store, made below this service."""
        remote = self._running(settings)
        if remote is not None and remote.process is not None:
            remote.offered += 1
            remote.process.send(wire.Offer(sought.key, sought.cache_dir, sought.trusted, sha256))
        else:
            remote = self._remotes[settings]
            remote.before += _lost(1)

    def disclaim(self, settings: wire.RemoteSettings, key: str) -> None:
        """What was looked up and not found will not be made here."""
        remote = self._remotes.get(settings)
        if remote is not None and remote.process is not None:
            remote.process.send(wire.Disclaim(key))

    def counts(self) -> list[wire.RemoteCounts]:
        """What they were good for so far."""
        return [remote.total() for remote in self._remotes.values()]

    def counts_of(self, settings: wire.RemoteSettings) -> wire.RemoteCounts:
        """The same of those that a client uses."""
        remote = self._remotes.get(settings)
        return wire.RemoteCounts() if remote is None else remote.total()

    # The loop

    def flush(self) -> None:
        """The end of a turn: what was looked up in it is asked, and more of the queue if something was answered."""
        for remote in self._remotes.values():
            if remote.process is None:
                continue
            remote.fill(time.monotonic())
            groups: dict[tuple[bytes, bool, bool], list[wire.Wanted]] = {}
            for each in remote.unsent:
                sought, each.sent = each.sought, True
                group = groups.setdefault((sought.cache_dir, sought.trusted, each.background), [])
                group.append(wire.Wanted(each.ticket, sought.key, sought.kind, sought.request_digest, each.lease))
            remote.unsent = []
            for (cache_dir, trusted, background), wanted in groups.items():
                remote.process.send(wire.LookUp(wanted, cache_dir, trusted, background))
            if remote.hurried:
                remote.process.send(wire.Hurry(remote.hurried))
                remote.hurried = []

    @property
    def deadline(self) -> float | None:
        """Seconds until `look_around` is to be called; None: nothing is due."""
        due = [remote.due(each) for remote in self._remotes.values() for each in remote.waiting()]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def look_around(self, now: float) -> None:
        """Give up what has taken too long."""
        for remote in list(self._remotes.values()):
            over = remote.over(now)
            # What a claim costs says little of what a look-up does.
            if not remote.is_late and any(not each.lease for each in over):
                self._was_late(remote, now)
            for look_up in over:
                look_up.give_up()

    def replace_stopped(self, now: float) -> None:
        """End processes that somebody has stopped (SIGSTOP) and left so while they owed an answer."""
        for remote in self._remotes.values():
            if remote.process is not None and remote.asked:
                remote.process.replace_if_stopped(now)

    def end(self) -> None:
        """Let go of them all. They publish what they still have, for a short time, and nobody waits for that."""
        for remote in self._remotes.values():
            if remote.process is not None:
                remote.process.leave()
        self._remotes.clear()

    # Inside

    def _running(self, settings: wire.RemoteSettings) -> _Remote | None:
        remote = self._remotes.setdefault(settings, _Remote(settings))
        if remote.process is None:
            if remote.wrong or time.monotonic() < remote.restarts_at:
                return None
            try:
                remote.process = RemoteProcess(
                    self._loop, settings, lambda said: self._take(remote, said), lambda why: self._gone(remote, why)
                )
            except ServiceError as error:
                self._leave_alone(remote, str(error))
                return None
            remote.is_late, remote.usable = False, True
        return remote

    def _take(self, remote: _Remote, message: Any) -> None:
        now = time.monotonic()
        match message:
            case wire.Awake():
                remote.woke = remote.heard = now
            case wire.LookedUp(found, missing):
                answers = [(each.ticket, each) for each in found]
                self._answer(remote, {**dict(answers), **dict.fromkeys(missing)}, now)
            case wire.Claimed(tickets, seconds):
                remote.heard, remote.is_late = now, False
                for look_up in [remote.asked[ticket] for ticket in tickets if ticket in remote.asked]:
                    look_up.claimed_until = now + seconds
                    for elsewhere in look_up.elsewhere if look_up.askers else []:
                        elsewhere()
            case wire.Availability(usable, for_good):
                remote.usable = usable
                remote.wrong = for_good and not usable
                if not usable:
                    for look_up in (*remote.asked.values(), *remote.over(float("inf"))):
                        look_up.give_up()
            case wire.RemoteCounts():
                remote.counts = message
            case wire.RemoteSays(text, quiet):
                _log.warning("%s", text)
                if not quiet:
                    self._tell(remote.settings, text)

    @staticmethod
    def _answer(remote: _Remote, answers: dict[int, wire.FoundRemotely | None], now: float) -> None:
        remote.heard, remote.is_late, remote.deaths = now, False, 0
        for ticket, found in answers.items():
            look_up = remote.asked.pop(ticket, None)
            if look_up is None:
                continue
            del remote.by_sought[look_up.place]
            if look_up.askers:
                remote.lates, remote.rest = 0, REST
            for answered, _ in look_up.askers:
                answered(found)
            if found is not None:
                for late in look_up.given_up:
                    late(found)
            elif not look_up.askers:
                for claimed_late in look_up.claimed_late:
                    claimed_late()

    def _was_late(self, remote: _Remote, now: float) -> None:
        remote.is_late = True
        remote.lates += 1
        if remote.lates < MOST_LATE:
            return
        remote.lates = 0
        remote.rests_until = now + remote.rest
        remote.rest = min(2 * remote.rest, MAX_REST)
        if not remote.told_slow:
            remote.told_slow = True
            names = " ".join(tier.name for tier in remote.counts.tiers) or "the remote"
            self._tell(
                remote.settings,
                f"{names} does not answer within {remote.settings.deadline:g} s; compiles wait for it less often. If "
                "it is worth waiting for, give it more seconds: HEADSTART_REMOTE_DEADLINE",
            )

    def _gone(self, remote: _Remote, why: str) -> None:
        remote.process, remote.woke = None, float("-inf")  # the next one has its time to start as well
        remote.before = remote.total() + _lost(remote.offered - remote.counts.settled, offered=0)
        remote.counts, remote.offered = wire.RemoteCounts(), 0
        unanswered = remote.forget()
        if why:
            self._leave_alone(remote, why)
        for look_up in unanswered:
            look_up.give_up()

    def _leave_alone(self, remote: _Remote, why: str) -> None:
        """It is not started for a while, which doubles."""
        remote.deaths += 1
        pause = min(REST * 2 ** (remote.deaths - 1), MAX_REST)
        remote.restarts_at = time.monotonic() + pause
        _log.warning("%s", why)
        if remote.deaths == 1:
            self._tell(remote.settings, f"stores of other hosts are not used for {pause:.0f} s: {why}")


def _lost(entries: int, *, offered: int | None = None) -> wire.RemoteCounts:
    """Entries with which a process died, or for which none could be started; `offered`: of them, not counted yet."""
    return wire.RemoteCounts(
        dropped=entries,
        offered=entries if offered is None else offered,
        settled=entries,
        unpublished={"the remote process was not there": entries} if entries else {},
    )
