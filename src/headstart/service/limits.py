"""How long a compile may take, how much memory it may use, and how long a worker may idle.

Part of the scheduler, and as pure. Times are in seconds, memory is in bytes, and None is no limit.
"""

from __future__ import annotations

from collections.abc import Iterator

from headstart.service.queue import Job, Urgency
from headstart.service.workforce import PooledWorker, WorkerState, Workforce

BACKGROUND_TIME_LIMIT = 300.0  # seconds for what nobody waits for, unless the client sets its own limit


def effective_time_limit(wanted: float | None, urgency: Urgency) -> float | None:
    """Seconds that a compile may take."""
    return BACKGROUND_TIME_LIMIT if wanted is None and urgency is Urgency.BACKGROUND else wanted


def allow(job: Job, time_limit: float | None, memory_limit: int | None) -> None:
    """One more client wants a job: of the limits of several clients the widest holds."""
    if time_limit is None or (job.time_limit is not None and job.time_limit < time_limit):
        job.time_limit = time_limit
    if memory_limit is None or (job.memory_limit is not None and job.memory_limit < memory_limit):
        job.memory_limit = memory_limit


def memory_limits(workforce: Workforce) -> dict[int, int]:
    """Which workers' memory is to be watched, and the most that each may use."""
    return {
        worker.number: worker.job.memory_limit
        for worker in workforce.workers.values()
        if worker.state is WorkerState.BUSY and worker.job is not None and worker.job.memory_limit is not None
    }


def deadlines(workforce: Workforce, idle_timeout: float) -> Iterator[tuple[PooledWorker, float]]:
    """Until when each worker may go on with what it does, or with doing nothing; monotonic seconds."""
    for worker in workforce.workers.values():
        if worker.state is WorkerState.BUSY and worker.job is not None:
            limit = effective_time_limit(worker.job.time_limit, worker.job.urgency)
            if limit is not None:
                yield worker, worker.since + limit
        elif worker.state is WorkerState.IDLE:
            yield worker, worker.since + idle_timeout
