"""Which waiting job gets which worker, and who makes room for it. Part of the scheduler, and as pure.

Backlog: who is next ─┐
                      ├─▶ Dispatcher.schedule ─▶ Assign, or Fork, StartZygote, Retire of another kind's idle worker
Workforce: who idles ─┘

A job that hosts share is claimed first. Few are at a time, so that none is held back from hosts that would begin it
sooner: as many as could begin now, here or on a farm, and one more, whose claim is settled by the time that a worker
is free.
"""

from __future__ import annotations

from headstart.service.actions import Action, Assign, Kill
from headstart.service.backlog import Backlog
from headstart.service.lending import Lending
from headstart.service.queue import Job, Kind, Urgency
from headstart.service.workforce import PooledWorker, WorkerState, Workforce

_MOST_PASSED = 64  # jobs, for one that may be claimed for a farm
EXCLUSIVE_TIMEOUT = 10.0  # seconds for which others wait for a second attempt to begin, and again while it runs


class Dispatcher:
    """Brings the jobs and the workers of one service together.

    Attributes:
        quiesced: no compile is to be started, and no worker kept.
    """

    def __init__(self, backlog: Backlog, workforce: Workforce, lending: Lending) -> None:
        self.quiesced = False
        self._backlog = backlog
        self._workforce = workforce
        self._lending = lending

    def schedule(self, now: float) -> list[Action]:
        """Give workers to the jobs whose turn it is, as far as there are any, and see to it that there will be."""
        actions: list[Action] = []
        blocked: set[Kind] = set()
        is_held_up = False
        while not self.quiesced and (job := self._next(blocked)) is not None:
            if self._must_wait(job):
                break
            if job.unclaimed:
                actions.append(self._backlog.send_away(job))
                continue
            if self._is_kept_for_others(job):
                blocked.add(job.kind)
                continue
            worker = self._workforce.idle(job.kind)
            if worker is None:
                blocked.add(job.kind)
                is_held_up |= job.claimed
                actions += self._make_room(job.kind)
                if job in self._backlog.exclusive:
                    break
                continue
            if job.claimed:
                self._backlog.queue.drop(job)  # its clients had their turn when it was claimed
            else:
                self._backlog.queue.take(job)
            worker.state, worker.since = WorkerState.BUSY, now
            worker.job, job.worker = job, worker.number
            if job in self._backlog.exclusive:
                job.exclusive_until = now + EXCLUSIVE_TIMEOUT
            actions.append(Assign(worker.number, job))
        return [*actions, *self._claim_for_farms()] if is_held_up else actions

    def _claim_for_farms(self) -> list[Action]:
        """Claim what would begin at once on a farm, though what was claimed before it waits for a worker here."""
        actions: list[Action] = []
        queue = self._backlog.queue
        passed: list[Job] = []
        ready = 0  # claimed, and about to be lent
        while len(passed) < _MOST_PASSED and (job := queue.first()) is not None:
            idle = self._lending.idle_for(job)
            if job.unclaimed and len(self._backlog.claiming) + ready < idle:
                actions.append(self._backlog.send_away(job))
                continue
            queue.drop(job)
            passed.append(job)
            ready += bool(idle and not job.unclaimed)
        for job in passed:
            queue.put(job)  # where it was
        return actions

    def lend(self, now: float) -> list[Action]:
        """Lend what other machines begin sooner, and take back what they have not begun when workers here idle.

        To be called when all that happens just now has been dealt with: of many jobs that come at once the longest
        are to go first.
        """
        if self.quiesced:
            return []
        actions = self.schedule(now) if self._lending.bring_home(now) else []
        actions += self._lending.choose(now)
        if self._lending.has_room:
            actions += self.schedule(now)  # of what hosts share, so much more may be claimed
        while self._lending.reclaim(now):
            actions += self.schedule(now)
        return actions

    def deadlines(self) -> list[float]:
        """When `lend` may have something to take back; empty: never."""
        return [] if self.quiesced else self._lending.deadlines()

    def rest(self, worker: PooledWorker, now: float) -> list[Action]:
        """A worker has nothing to do: it waits for more, or leaves if there is to be none.

        A confined one that has had its job is not asked to leave, which it need not do.
        """
        if worker.kind.confined and worker.state is WorkerState.BUSY:
            worker.state, worker.done = WorkerState.LEAVING, True
            return [Kill(worker.number)]
        worker.state, worker.since = WorkerState.IDLE, now
        if self.quiesced or worker.outmoded or self._workforce.surplus() > 0:
            return [self._workforce.retire(worker)]
        return []

    def _next(self, blocked: set[Kind]) -> Job | None:
        job = self._backlog.queue.first(blocked)
        if job is None or not job.unclaimed:
            return job
        may_begin = self._workforce.spare + self._lending.idle_for(job)
        return job if len(self._backlog.claiming) <= may_begin else self._backlog.queue.first(blocked, unclaimed=False)

    def _is_kept_for_others(self, job: Job) -> bool:
        """Whether idle workers are kept, for a moment, for what somebody is blocked on and is being claimed."""
        if job.urgency is Urgency.AWAITED or not self._backlog.claiming:
            return False
        claiming = [self._backlog.jobs[key] for key in self._backlog.claiming]
        awaited = sum(each.kind == job.kind and each.urgency is Urgency.AWAITED for each in claiming)
        return awaited >= max(1, self._workforce.count_idle(job.kind))

    def _must_wait(self, job: Job) -> bool:
        running = [worker.job for worker in self._workforce.workers.values() if worker.job is not None]
        if job in self._backlog.exclusive:
            return bool(running)
        return any(other in self._backlog.exclusive for other in running)

    def _make_room(self, kind: Kind) -> list[Action]:
        zygote = self._workforce.zygotes.get(kind)
        if zygote is None:
            return self._workforce.start_zygote(kind)
        if not zygote.ready:
            return []
        coming = sum(w.state is WorkerState.FORKING and w.kind == kind for w in self._workforce.workers.values())
        wanted = max(0, self._backlog.queue.waiting(kind) - coming)
        actions: list[Action] = [self._workforce.fork(kind) for _ in range(min(wanted, self._workforce.free()))]
        leaving = any(w.state is WorkerState.LEAVING for w in self._workforce.workers.values())
        if wanted and not actions and not leaving:
            # All places are taken; an idle worker, which must be of another kind, gives up its own.
            idle = next((w for w in self._workforce.workers.values() if w.state is WorkerState.IDLE), None)
            if idle is not None:
                actions.append(self._workforce.retire(idle))
        return actions
