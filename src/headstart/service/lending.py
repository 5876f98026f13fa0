"""Which waiting jobs are compiled on other machines. Part of the scheduler, and as pure.

    Offered: what there is room for ─┐
                                     ├─▶ Lending.choose ─▶ Lend(job)
    Backlog: who is next ────────────┘   Lending.reclaim ─▶ a job that has not begun there, for a worker that idles here

Local workers take from the front of the queue, always, and so does this: whoever is free first. What somebody is
blocked on goes out only if it begins sooner there than here. If nothing would begin at once there, only that goes out
which local workers would not come to soon. What hosts share is claimed before it goes out: of what several hosts ask
for at once, each lends what the others do not make.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from headstart.service.actions import Action
from headstart.service.backlog import Backlog
from headstart.service.queue import Job, Kind, Room, Urgency
from headstart.service.workforce import WorkerState, Workforce

DEFAULT_ESTIMATE = 3.0  # seconds of a compile of which nothing is known
GRACE = 0.25  # seconds that a job which was lent has to begin, before an idle worker here takes it
_STARTING = 1.0  # seconds until there are workers, where there are none yet
_KEPT = 64  # jobs that are looked past, at most, for one that may go out


class Lending:
    """What one service lends.

    Args:
        backlog: the jobs.
        workforce: the workers here.
    """

    def __init__(self, backlog: Backlog, workforce: Workforce) -> None:
        self._backlog = backlog
        self._workforce = workforce
        self._rooms: dict[Hashable, Mapping[str, Room]] = {}

    def offered(self, farm: Hashable, rooms: Mapping[str, Room]) -> None:
        """A farm has room for so much, by toolchain, from now on."""
        self._rooms[farm] = rooms

    @property
    def has_room(self) -> bool:
        """Whether any farm takes more."""
        return any(room.room > 0 for rooms in self._rooms.values() for room in rooms.values())

    def idle_for(self, job: Job) -> int:
        """How many jobs like this one would begin at once on a farm; 0: it may not go there."""
        room = self._room(job)
        return 0 if room is None else room.idle

    def choose(self, now: float) -> list[Action]:
        """Jobs to be lent now."""
        actions: list[Action] = []
        queue = self._backlog.queue
        kept: list[Job] = []
        open_ = {id(room) for rooms in self._rooms.values() for room in rooms.values() if room.room > 0}
        while open_ and len(kept) < _KEPT and (job := queue.first(unclaimed=False)) is not None:
            room = self._room(job)
            if room is not None and self._is_sooner(job, room, now):
                room.take()
                actions.append(self._backlog.lend(job, now))
                if not room.room:
                    open_.discard(id(room))
                continue
            queue.drop(job)
            kept.append(job)
            if room is not None and job.urgency is not Urgency.AWAITED:
                open_.discard(id(room))  # no other one would begin sooner there, either
        for job in kept:
            queue.put(job)  # where it was
        return actions

    def reclaim(self, now: float) -> bool:
        """Have a job back for a worker that idles here: one that was lent a while ago, and has not begun."""
        slow = [job for job in self._backlog.lent.values() if _since(job) + GRACE <= now]
        if slow and not self._may_begin_any():
            idle = self._idle()
            slow = [job for job in slow if job.kind in idle]
        if not slow:
            return False
        self._backlog.come_back(min(slow, key=lambda job: job.urgency).key)  # of those as urgent, the oldest
        return True

    def bring_home(self, now: float) -> bool:
        """Have back what somebody is blocked on and has not begun there in a while: it goes before all that waits."""
        slow = [key for key, job in self._backlog.lent.items() if _is_missed(job) and self.is_slow(job, now)]
        for key in slow:
            self._backlog.come_back(key)
        return bool(slow)

    def is_slow(self, job: Job, now: float) -> bool:
        """Whether a job was lent a while ago, and has not begun."""
        return job.key in self._backlog.lent and _since(job) + GRACE <= now

    def deadlines(self) -> list[float]:
        """When there may be something to take back: for somebody who is blocked on it, or a worker that idles here."""
        idle, any_kind = self._idle(), self._may_begin_any()
        lent = self._backlog.lent.values()  # oldest first
        return [_since(job) + GRACE for job in lent if any_kind or job.kind in idle or _is_missed(job)][:1]

    def _may_begin_any(self) -> bool:
        """Whether a worker of any kind could be forked here, and nothing waits for one: confined ones never idle."""
        return self._workforce.spare > 0 and not self._backlog.queue.count

    def _idle(self) -> set[Kind]:
        """Of workers that have nothing to do."""
        return {worker.kind for worker in self._workforce.workers.values() if worker.state is WorkerState.IDLE}

    def _room(self, job: Job) -> Room | None:
        """Where it may go; None: nowhere."""
        if job.place is None or job.attempts or job.moved or job.prefix or job.returned:
            return None
        if job in self._backlog.exclusive:
            return None
        farm, toolchain = job.place
        room = self._rooms.get(farm, {}).get(toolchain)
        return room if room is not None and room.room > 0 else None

    def _is_sooner(self, job: Job, room: Room, now: float) -> bool:
        waiting = self._backlog.queue.count
        if room.idle > 0:
            if job.urgency is not Urgency.AWAITED and waiting > self._workforce.limit:
                return True
            return room.delay < self._soonest(now)
        return job.urgency is not Urgency.AWAITED and waiting > 2 * self._workforce.limit

    def _soonest(self, now: float) -> float:
        """Seconds until a worker here is free, as far as is known."""
        busy = [w for w in self._workforce.workers.values() if w.state is WorkerState.BUSY and w.job is not None]
        return min((_left(worker.job, now - worker.since) for worker in busy if worker.job), default=_STARTING)


def _is_missed(job: Job) -> bool:
    return job.urgency is Urgency.AWAITED


def _since(job: Job) -> float:
    return 0.0 if job.lent_at is None else job.lent_at


def _left(job: Job, ran: float) -> float:
    """Seconds that a compile may still take."""
    estimate = DEFAULT_ESTIMATE if job.estimate is None else job.estimate
    return estimate - ran if ran < estimate else ran / 4  # who is late is late by a part of what it took
