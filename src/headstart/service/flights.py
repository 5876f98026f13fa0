"""Who is at which tail, and who waits for that. Part of the plan, and as pure; `cutoff.py` says what a tail is."""

from __future__ import annotations

from headstart.service.queue import Job


class Flights:
    """Each tail that somebody is at has one job that does it, and others that have stood aside for it.

    A job keeps its tails until it is over, also while it stands aside at a later one; since the tails of a compile come
    in one order, no two jobs wait for each other.
    """

    def __init__(self) -> None:
        self._doing: dict[str, Job] = {}
        self._standing: dict[Job, str] = {}

    def claim(self, tail: str, job: Job) -> bool:
        """Whether `job` is the one at `tail`."""
        return self._doing.setdefault(tail, job) is job

    def stand_aside(self, tail: str, job: Job) -> bool:
        """Have `job` wait for whoever is at `tail`; False: nobody is any more."""
        if tail in self._doing:
            self._standing[job] = tail
        return tail in self._doing

    def before(self, job: Job) -> Job | None:
        """The job that `job` waits for."""
        return self._doing[self._standing[job]] if job in self._standing else None

    def land(self, job: Job) -> list[Job]:
        """`job` is over, or begins anew. Returns those who stood aside for it, in the order in which they came."""
        self._standing.pop(job, None)
        tails = {tail for tail, doer in self._doing.items() if doer is job}
        freed = [other for other, tail in self._standing.items() if tail in tails] if tails else []
        for other in freed:
            del self._standing[other]
        for tail in tails:
            del self._doing[tail]
        return freed
