"""Who compiles what, when: the queue as a pure state machine.

`handle` takes an event and returns the actions that are to be carried out, in order; see `engine.py`. No sockets, no
clock and no processes here: time is an argument (seconds, monotonic), and a job's payload and outcome are passed
through unread.

Guarantees:

* What somebody is blocked on goes first, and no client waits for all of another's jobs; see `queue.py`.
* One job per key is queued or running at a time; everyone who asks meanwhile is added to it and gets its outcome.
* Every ticket is answered exactly once, by one `Deliver`, unless its client leaves or withdraws it first.
* A job for which there was no space in its worker's folder is tried once more elsewhere, then fails for the machine.
* A job whose worker dies under it, or that runs out of time or memory, is tried once more, alone as far as that is
  possible without stopping everybody else, then fails; losing a zygote blames no job.
* One job at a time is at a suffix (`cutoff.py`). Others that come to it stand aside without a worker, and are taken up
  when it is over; if it failed, that is its own matter, and they are compiled whole.
* An entry that comes from elsewhere answers its job, whatever that is at; a worker that was at it is killed.
* A job that hosts share is claimed when its turn comes, and then not before others that are: it waits, without a
  worker, until it returns or has come from elsewhere. What has failed once is compiled here.
* A job may be lent to a farm; see `lending.py`. It returns when nothing has come of it, and then is compiled here.
* Quiesced, it starts no compile and keeps no worker.
* A worker serves one kind (toolchain, environment, confined or not) in its life; a confined one has one job, and is
  killed: what it was told may have changed it.
* There are at most `MAX_ZYGOTES` zygotes. One more is started when one that nobody needs can make way for it.

Assumptions: after `Retire` or `Kill` the executor says `WorkerGone`; after `Fork`, `WorkerForked` or `ForkFailed` or
the loss of the zygote; after `StartZygote`, `ZygoteReady`, `ZygoteUnable` or `ZygoteLost`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping

from headstart.service import events
from headstart.service.actions import Action, Kill, Proceed, StandAside
from headstart.service.backlog import Backlog
from headstart.service.blame import failure_of_death
from headstart.service.dispatch import EXCLUSIVE_TIMEOUT, Dispatcher
from headstart.service.lending import Lending
from headstart.service.limits import allow, deadlines, memory_limits
from headstart.service.queue import Job, Kind, Room, Size, Ticket, Urgency
from headstart.service.workforce import MAX_ZYGOTES, PooledWorker, WorkerState, Workforce
from headstart.wire import Failure

MAX_ATTEMPTS = 2  # a kernel that killed its worker twice, or ran out of time twice, is not tried again
MAX_ZYGOTE_LOSSES = 3  # in a row, with nothing compiled between
IDLE_TIMEOUT = 60.0  # seconds until an idle worker leaves


class Scheduler:
    """The queue of one service.

    Args:
        limit: how many workers there may be at once.
        idle_timeout: seconds after which an idle worker leaves.
        most_zygotes: how many there may be at once.
    """

    def __init__(self, limit: int, *, idle_timeout: float = IDLE_TIMEOUT, most_zygotes: int = MAX_ZYGOTES) -> None:
        self.idle_timeout = idle_timeout
        self._backlog = Backlog()
        self._workforce = Workforce(limit, most_zygotes, self._backlog.kinds)
        self._lending = Lending(self._backlog, self._workforce)
        self._dispatcher = Dispatcher(self._backlog, self._workforce, self._lending)

    @property
    def limit(self) -> int:
        """How many workers there may be now."""
        return self._workforce.limit

    @property
    def quiesced(self) -> bool:
        """Whether it starts no compile and keeps no worker."""
        return self._dispatcher.quiesced

    def handle(self, event: events.Event) -> list[Action]:
        """What is to be done about an event. The methods below say what each means."""
        method: Callable[..., list[Action]] = getattr(self, events.METHODS[type(event)])
        return method(**vars(event))

    # What clients do

    def announced(self, kind: Kind, client: int) -> list[Action]:
        """A client that will ask for jobs of `kind` has come: get workers ready before it does."""
        self._workforce.announced.setdefault(client, set()).add(kind)
        return self._workforce.start_zygote(kind)

    def requested(
        self,
        ticket: Ticket,
        key: str,
        kind: Kind,
        payload: object,
        urgency: Urgency,
        now: float,
        *,
        estimate: float | None = None,
        time_limit: float | None = None,
        memory_limit: int | None = None,
        unclaimed: bool = False,
        place: tuple[Hashable, str] | None = None,
        size: Size | None = None,
    ) -> list[Action]:
        """A client wants the entry of `key`.

        Args:
            ticket: the client's, and its name for this request.
            key: of the job.
            kind: what compiles it.
            payload: what the worker is told.
            urgency: what it is wanted for.
            now: monotonic seconds.
            estimate: seconds that it may take, as far as is known.
            time_limit: seconds that the client lets it take; None: no limit, but for background work.
            memory_limit: bytes that the client lets it use; None: no limit.
            unclaimed, place, size: see `Job`.
        """
        job = self._backlog.jobs.get(key)
        if job is None:
            job = self._backlog.jobs[key] = Job(
                key, kind, urgency, payload, estimate, time_limit, memory_limit, [ticket], unclaimed, place, size
            )
            self._backlog.queue.put(job)
            return self._dispatcher.schedule(now)
        newcomer = all(other.client != ticket.client for other in job.tickets)
        job.tickets.append(ticket)
        allow(job, time_limit, memory_limit)
        if job.waiting and newcomer:
            self._backlog.queue.join(job, ticket.client)
        self._backlog.raise_to(job, urgency)
        return self._dispatcher.schedule(now)

    def in_flight(self, key: str) -> Job | None:
        """The queued or running job of `key`."""
        return self._backlog.jobs.get(key)

    def jobs(self) -> list[Job]:
        """All that are queued or running."""
        return list(self._backlog.jobs.values())

    @property
    def workers(self) -> int:
        """How many there are."""
        return len(self._workforce.workers)

    def awaited(self, key: str, now: float) -> list[Action]:
        """Somebody is now blocked on `key`."""
        job = self._backlog.jobs.get(key)
        if job is not None:
            self._backlog.raise_to(job, Urgency.AWAITED)
            if self._lending.is_slow(job, now):
                self._backlog.come_back(key)
        return self._dispatcher.schedule(now)

    def obtained(self, key: str, outcome: object, now: float) -> list[Action]:
        """The entry of `key` has come from elsewhere, as `outcome` says: nobody needs its compile any more."""
        job = self._backlog.jobs.get(key)
        if job is None:
            return []
        ended = self._workforce.abandon(job)
        return [*ended, self._backlog.deliver(job, outcome), *self._dispatcher.schedule(now)]

    def returned(self, key: str, now: float) -> list[Action]:
        """A job that was claimed, or lent, is to be compiled here."""
        self._backlog.come_back(key)
        return self._dispatcher.schedule(now)

    def offered(self, farm: Hashable, rooms: Mapping[str, Room]) -> list[Action]:
        """A farm has room for so much, by toolchain, from now on: what is lent is decided at the next `tick`."""
        self._lending.offered(farm, rooms)
        return []

    def lent_begun(self, key: str) -> list[Action]:
        """A job that was lent is being compiled there: it is not taken back before its time."""
        self._backlog.lent.pop(key, None)
        return []

    def elsewhere(self, key: str, now: float) -> list[Action]:
        """Another host makes a job that was to be claimed."""
        self._backlog.claiming.discard(key)
        return self._dispatcher.schedule(now)

    def client_left(self, client: int, now: float) -> list[Action]:
        """Forget a client's tickets. What nobody else wants is dropped, unless it has begun."""
        self._backlog.queue.leave(client)
        self._workforce.announced.pop(client, None)
        for job in list(self._backlog.jobs.values()):
            self._backlog.keep_tickets(job, [ticket for ticket in job.tickets if ticket.client != client])
        return [*self._dispatcher.schedule(now), *self._workforce.end_unused_zygotes()]

    def withdrawn(self, ticket: Ticket, key: str, now: float) -> list[Action]:
        """A client does not want `key` any more. What nobody else wants is dropped, unless it has begun."""
        if (job := self._backlog.jobs.get(key)) is not None:
            self._backlog.keep_tickets(job, [each for each in job.tickets if each != ticket])
        return self._dispatcher.schedule(now)

    # What the user says

    def quiesce(self, *, kill: bool) -> list[Action]:
        """Start nothing, and let workers leave as they finish; with `kill`, running jobs are queued again at once."""
        self._dispatcher.quiesced = True
        return self._workforce.stand_down(kill=kill)

    def resume(self, now: float) -> list[Action]:
        """Go on with what is queued."""
        self._dispatcher.quiesced = False
        return self._dispatcher.schedule(now)

    def resize(self, limit: int, now: float) -> list[Action]:
        """There may be more workers, or fewer: then idle ones leave, and busy ones when they are done."""
        self._workforce.limit = limit
        return [*self._workforce.shrink(), *self._dispatcher.schedule(now)]

    def memory_limits(self) -> dict[int, int]:
        """Which workers' memory is to be watched, and the most that each may use, bytes."""
        return memory_limits(self._workforce)

    def over_memory(self, worker: int, evidence: str) -> list[Action]:
        """A worker uses more memory than its job may; `evidence` says what uses how much."""
        found = self._workforce.workers.get(worker)
        if found is None or found.state is not WorkerState.BUSY or found.job is None or found.job.memory_limit is None:
            return []
        found.over_memory = found.job.memory_limit, evidence
        found.state = WorkerState.LEAVING
        return [Kill(worker)]

    def stalled(self, worker: int) -> list[Action]:
        """A worker has been stopped from outside: its job is queued again, and nobody is to blame."""
        found = self._workforce.workers.get(worker)
        if found is None or found.state is not WorkerState.BUSY:
            return []
        found.state, found.recalled = WorkerState.LEAVING, True
        return [Kill(worker)]

    # What happens to processes

    def zygote_ready(self, kind: Kind, now: float) -> list[Action]:
        """Workers can be forked; as many as there may be are, since somebody is about to ask."""
        self._workforce.zygotes[kind].ready = True
        free = 0 if self.quiesced else self._workforce.free()
        forks = [self._workforce.fork(kind) for _ in range(free)]
        return [*forks, *self._dispatcher.schedule(now)]

    def zygote_unable(self, kind: Kind, why: str, now: float) -> list[Action]:
        """Nothing of this kind can be compiled; its clients are told why, and may try again later."""
        self._workforce.zygotes.pop(kind, None)
        return [*self._backlog.give_up(kind, why), *self._dispatcher.schedule(now)]

    def zygote_lost(self, kind: Kind, why: str, now: float) -> list[Action]:
        """A zygote died, and its workers with it."""
        zygote = self._workforce.zygotes.pop(kind, None)
        if zygote is None:
            return []
        zygote.losses += 1
        for worker in [w for w in self._workforce.workers.values() if w.kind == kind]:
            del self._workforce.workers[worker.number]
            if worker.job is not None:
                self._backlog.try_again(worker.job)
        actions: list[Action] = []
        if zygote.losses >= MAX_ZYGOTE_LOSSES:
            actions = self._backlog.give_up(kind, f"{why}; it happened {zygote.losses} times in a row")
        elif self._backlog.queue.waiting(kind):
            actions = self._workforce.start_zygote(kind)
            self._workforce.zygotes[kind].losses = zygote.losses
        return [*actions, *self._dispatcher.schedule(now)]

    def worker_forked(self, worker: int, now: float) -> list[Action]:
        """A worker waits for its first job."""
        found = self._workforce.workers.get(worker)
        if found is None:  # its zygote was ended meanwhile
            return []
        self._workforce.crowded = False
        return [*self._dispatcher.rest(found, now), *self._dispatcher.schedule(now)]

    def fork_failed(self, worker: int, why: str, now: float) -> list[Action]:
        """The machine gives no more processes: make do with the workers there are, or give up."""
        found = self._workforce.workers.pop(worker, None)
        if found is None:
            return []
        self._workforce.crowded = True
        if self._workforce.workers:
            self._workforce.limit = len(self._workforce.workers)
            return self._dispatcher.schedule(now)
        given_up = self._backlog.give_up(found.kind, f"no worker could be started: {why}")
        return [*given_up, *self._dispatcher.schedule(now)]

    def finished(self, worker: int, outcome: object, now: float) -> list[Action]:
        """A worker is done with its job, one way or the other."""
        found = self._workforce.workers.get(worker)
        return [] if found is None or found.job is None else self._after_job(found, found.job, outcome, now)

    def _after_job(self, worker: PooledWorker, job: Job, outcome: object, now: float) -> list[Action]:
        worker.job = None
        if isinstance(outcome, Failure) and outcome.kind == "space":
            if worker.kind.confined:  # which is not believed: nobody else moves for it
                outcome.kind = "service"
                rest = self._dispatcher.rest(worker, now) if worker.state is WorkerState.BUSY else []
                return [self._backlog.deliver(job, outcome), *rest, *self._dispatcher.schedule(now)]
            return self._after_lack_of_space(worker, job, outcome, now)
        rest = self._dispatcher.rest(worker, now) if worker.state is WorkerState.BUSY else []
        self._workforce.zygotes[worker.kind].losses = 0
        if isinstance(outcome, Failure) and outcome.kind == "crash":
            # A tool died under a worker that lives: that is no more the kernel's fault than a worker's death.
            return [*rest, *self._after_crash(job, outcome, now), *self._dispatcher.schedule(now)]
        return [self._backlog.deliver(job, outcome), *rest, *self._dispatcher.schedule(now)]

    def _after_lack_of_space(self, worker: PooledWorker, job: Job, failure: Failure, now: float) -> list[Action]:
        """A job is to be tried once more, elsewhere. It says nothing about the kernel."""
        leave = self._workforce.move_on(worker)
        if job.moved:
            failure.kind = "service"
            return [*leave, self._backlog.deliver(job, failure), *self._dispatcher.schedule(now)]
        job.moved = True
        self._backlog.try_again(job)
        return [*leave, *self._dispatcher.schedule(now)]

    def _after_crash(self, job: Job, failure: Failure, now: float) -> list[Action]:
        """A job is to be tried once more, by itself, or else fails."""
        job.attempts += 1
        # A strange source that is confined runs out of its limits on purpose, or will again.
        hopeless = job.kind.confined and failure.kind in ("timeout", "memory")
        if job.attempts < MAX_ATTEMPTS and not hopeless:
            job.exclusive_until = now + EXCLUSIVE_TIMEOUT
            self._backlog.exclusive.add(job)
            self._backlog.try_again(job)
            return []
        if job.attempts > 1:
            failure.summary = f"{failure.summary}, {job.attempts} times"
        return [self._backlog.deliver(job, failure)]

    def reached(self, worker: int, suffix: str) -> list[Action]:
        """A worker's compile has come to a cut point, and waits to be told whether somebody is at what lies behind."""
        found = self._workforce.workers.get(worker)
        if found is None or found.job is None or found.state is not WorkerState.BUSY:
            return []
        alone = self._backlog.claims.claim(suffix, found.job)
        return [Proceed(worker) if alone else StandAside(worker)]

    def stood_aside(self, worker: int, suffix: str, prefix: bytes, now: float) -> list[Action]:
        """A worker has given its compile back, to be taken up with `prefix` once somebody is done with `suffix`."""
        found = self._workforce.workers.get(worker)
        if found is None or found.job is None:
            return []
        job = found.job
        found.job = job.worker = None
        job.prefix = prefix
        rest = self._dispatcher.rest(found, now) if found.state is WorkerState.BUSY else []
        if job.tickets and self._backlog.claims.stand_aside(suffix, job):
            self._backlog.raise_to(job, job.urgency)  # the job that it waits for is as urgent from now on
        else:
            self._backlog.requeue(job)
        return [*rest, *self._dispatcher.schedule(now)]

    def worker_gone(self, worker: int, status: int, stage: str, last_words: str, now: float) -> list[Action]:
        """A worker is gone.

        Args:
            worker: which one.
            status: its exit code, or minus the signal that ended it.
            stage: of the compile that it was at.
            last_words: the end of what it and its tools printed.
            now: monotonic seconds.
        """
        found = self._workforce.workers.pop(worker, None)
        if found is None:
            return []
        answer: list[Action] = []
        if found.recalled and found.job is not None:
            self._backlog.try_again(found.job)
        elif found.job is not None:
            answer = self._after_crash(found.job, failure_of_death(found, status, stage, last_words), now)
        return [*answer, *self._dispatcher.schedule(now), *self._workforce.end_unused_zygotes()]

    # What time does

    def next_deadline(self) -> float | None:
        """When `tick` should be called; None: nothing is due."""
        due = [deadline for _, deadline in deadlines(self._workforce, self.idle_timeout)]
        due += [job.exclusive_until for job in self._backlog.exclusive if job.exclusive_until is not None]
        return min([*due, *self._dispatcher.deadlines()], default=None)

    def tick(self, now: float) -> list[Action]:
        """Act on whatever is due by `now`."""
        actions: list[Action] = []
        for worker, deadline in list(deadlines(self._workforce, self.idle_timeout)):
            if deadline > now:
                continue
            if worker.state is WorkerState.BUSY:
                worker.timed_out = deadline - worker.since
                worker.state = WorkerState.LEAVING
                actions.append(Kill(worker.number))
            else:
                actions.append(self._workforce.retire(worker))
        if self._backlog.end_exclusive(now):
            actions += self._dispatcher.schedule(now)
        return [*actions, *self._dispatcher.lend(now)]
