"""Who is at which suffix (see `cutoff.py`), and who waits for that. Part of the scheduler, and as pure."""

from __future__ import annotations

from headstart.service.queue import Job


class Claims:
    """Each suffix that somebody is at has one job that does it, and others that have stood aside for it.

    A job keeps its suffixes until it is over, also while it stands aside at a later one; since the suffixes of a
    compile come in one order, no two jobs wait for each other.
    """

    def __init__(self) -> None:
        self._doing: dict[str, Job] = {}
        self._standing: dict[Job, str] = {}

    def claim(self, suffix: str, job: Job) -> bool:
        """Whether `job` is the one at `suffix`."""
        return self._doing.setdefault(suffix, job) is job

    def stand_aside(self, suffix: str, job: Job) -> bool:
        """Have `job` wait for the job at `suffix`; False: there is none any more."""
        if suffix in self._doing:
            self._standing[job] = suffix
        return suffix in self._doing

    def before(self, job: Job) -> Job | None:
        """The job that `job` waits for."""
        return self._doing[self._standing[job]] if job in self._standing else None

    def release(self, job: Job) -> list[Job]:
        """`job` is over, or begins anew. Returns those who stood aside for it, in the order in which they came."""
        self._standing.pop(job, None)
        suffixes = {suffix for suffix, doer in self._doing.items() if doer is job}
        freed = [other for other, suffix in self._standing.items() if suffix in suffixes] if suffixes else []
        for other in freed:
            del self._standing[other]
        for suffix in suffixes:
            del self._doing[suffix]
        return freed
