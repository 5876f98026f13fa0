"""All jobs that are queued or running, and what becomes of each. Part of the scheduler, and as pure."""

from __future__ import annotations

from headstart.service.actions import Action, Claim, Deliver, Lend
from headstart.service.claims import Claims
from headstart.service.queue import Job, Kind, Queue, Ticket, Urgency
from headstart.wire import Failure


class Backlog:
    """The jobs of one service.

    Attributes:
        jobs: by key.
        queue: those that wait for a worker.
        claims: who is at which suffix.
        exclusive: those with an `exclusive_until` that is not over.
        away: keys of those that are being claimed, or made by another host.
        claiming: those of them that are being claimed.
        lent: those of them, by key, that were lent to a farm and have not begun there; oldest first.
    """

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.queue = Queue()
        self.claims = Claims()
        self.exclusive: set[Job] = set()
        self.away: set[str] = set()
        self.claiming: set[str] = set()
        self.lent: dict[str, Job] = {}

    def kinds(self) -> set[Kind]:
        """What the jobs are compiled by."""
        return {job.kind for job in self.jobs.values()}

    def try_again(self, job: Job) -> None:
        """A job begins anew, from its start."""
        job.worker = None
        self.release(job, done=False)
        self.compile_whole(job)

    def compile_whole(self, job: Job) -> None:
        """A job is compiled from its start, whatever others are at."""
        job.prefix, job.whole = b"", True
        self.requeue(job)

    def requeue(self, job: Job) -> None:
        """A job waits again, where it was, or is dropped if nobody wants it."""
        if job.tickets:
            self.queue.put(job)  # where it was
        else:
            self.forget(job)

    def send_away(self, job: Job) -> Claim:
        """A job waits for no worker, but for what becomes of its claim."""
        self.queue.take(job)
        job.unclaimed = False
        self.away.add(job.key)
        self.claiming.add(job.key)
        return Claim(job)

    def lend(self, job: Job, now: float) -> Lend:
        """A job waits for no worker here, but for what becomes of it on a farm."""
        if job.claimed:
            self.queue.drop(job)  # its clients had their turn when it was claimed
        else:
            self.queue.take(job)
        job.lent_at = now
        self.away.add(job.key)
        self.lent[job.key] = job
        return Lend(job)

    def come_back(self, key: str) -> None:
        """A job that was away waits again: where it was if it was lent, and first if it was claimed."""
        self.claiming.discard(key)
        self.lent.pop(key, None)
        if key in self.away:
            self.away.remove(key)
            job = self.jobs[key]
            if job.lent_at is None:
                job.claimed = True
                job.lines.clear()  # it has another place from now on
            job.lent_at, job.returned = None, job.returned or job.lent_at is not None
            self.requeue(job)

    def end_exclusive(self, now: float) -> bool:
        """Others go on beside those that have been by themselves long enough. Returns whether there are such."""
        over = {job for job in self.exclusive if job.exclusive_until is not None and job.exclusive_until <= now}
        self.exclusive -= over
        return bool(over)

    def raise_to(self, job: Job, urgency: Urgency) -> None:
        """A job is at least this urgent from now on, and so is what it waits for."""
        if urgency < job.urgency:
            job.urgency = urgency
            if job.waiting:
                self.queue.put(job)
        before = self.claims.before(job)
        if before is not None:
            self.raise_to(before, urgency)

    def deliver(self, job: Job, outcome: object) -> Deliver:
        """A job is over."""
        self.release(job, done=not isinstance(outcome, Failure))
        self.forget(job)
        return Deliver(job, outcome)

    def release(self, job: Job, *, done: bool) -> None:
        """Those who stood aside for a job go on: with what it made, or without."""
        for other in self.claims.release(job):
            if done:
                self.requeue(other)
            else:
                self.compile_whole(other)

    def keep_tickets(self, job: Job, tickets: list[Ticket]) -> None:
        """Only these want a job from now on. If there are none, it is dropped, unless it has begun."""
        job.tickets = tickets
        if not tickets and job.worker is None:
            self.forget(job)

    def forget(self, job: Job) -> None:
        """A job is dropped."""
        self.release(job, done=False)
        self.queue.drop(job)
        self.exclusive.discard(job)
        self.away.discard(job.key)
        self.claiming.discard(job.key)
        self.lent.pop(job.key, None)
        del self.jobs[job.key]

    def give_up(self, kind: Kind, why: str) -> list[Action]:
        """Nothing of a kind can be compiled."""
        jobs = [job for job in self.jobs.values() if job.kind == kind and job.worker is None]
        return [self.deliver(job, Failure("service", why)) for job in jobs]
