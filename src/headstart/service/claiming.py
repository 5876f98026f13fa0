"""Claims among hosts (`?claims`): a job whose turn has come is compiled by the host that says so first.

    Scheduler ── Claim ─▶ Claiming ── look_up with a lease ─▶ Remotes ─▶ remote process: claim it, then look for it
              ◀─ Returned ──── nobody else makes it, or nobody is to wait any longer
              ◀─ Elsewhere ─── another host does: others may be claimed meanwhile
              ◀─ Obtained ──── it is in the local store now

A job is claimed when a worker is about to be free for it, and not when it is asked for: so hosts that ask for the same
kernels at once share them out, each as many as it has workers for, and none waits for what another has only queued.
Others are not begun while one is being claimed: so it is asked urgently, whatever it is wanted for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from headstart import wire
from headstart.service import events
from headstart.service.look_ups import Sought
from headstart.service.queue import Job
from headstart.service.remotes import Remotes
from headstart.service.scheduler import Scheduler

DEFAULT_ESTIMATE = 2.0  # seconds of a compile of which nothing is known, for those who wait for it on other hosts
LEASE_MARGIN = 3.0  # a compile takes longer where others run beside it, and may wait for the end of one before
MIN_LEASE, MAX_LEASE = 0.5, 60.0  # seconds; whatever takes no time is to be published, too

Obtain = Callable[[wire.FoundRemotely], None]


class HostClaim(NamedTuple):
    """What is claimed for one job, and what is to be done if another host has made it."""

    settings: wire.RemoteSettings
    sought: Sought
    obtain: Obtain


class Claiming:
    """What this host says to others that it makes.

    Args:
        scheduler: knows what is under way.
        happened: is told of events.
        remotes: where it is said.
    """

    def __init__(self, scheduler: Scheduler, happened: Callable[[events.Event], None], remotes: Remotes) -> None:
        self._scheduler = scheduler
        self._happened = happened
        self._remotes = remotes
        self._claims: dict[str, HostClaim] = {}  # by the job's key: to be claimed, or claimed perhaps

    def expect(self, job_key: str, settings: wire.RemoteSettings, sought: Sought, obtain: Obtain) -> None:
        """A job is about to be queued that is to be claimed; `obtain` is called if another host has made it."""
        self._claims[job_key] = HostClaim(settings, sought, obtain)

    def claim(self, job: Job) -> None:
        """Its turn has come."""
        claim = self._claims.get(job.key)
        if claim is None:  # everybody who asked had left when it was queued
            self._happened(events.Returned(job.key, time.monotonic()))
            return
        each = DEFAULT_ESTIMATE if job.estimate is None else job.estimate
        self._remotes.look_up(
            claim.settings,
            claim.sought,
            lambda found: self._answered(job.key, claim, found),
            lambda found: claim.obtain(found) if self._claims.get(job.key) is claim else None,
            lease=min(max(MIN_LEASE, LEASE_MARGIN * each), MAX_LEASE),
            elsewhere=lambda: self._happened(events.Elsewhere(job.key, time.monotonic())),
            claimed_late=lambda: None if self._claims.get(job.key) is claim else self.give_back(claim),
        )

    def joined(self, job_key: str) -> None:
        """Somebody who knows nothing of claims wants a job, too, and is to wait for no other host."""
        job = self._scheduler.in_flight(job_key)
        if job_key in self._claims and job is not None and job.lent_at is None:
            self._happened(events.Returned(job_key, time.monotonic()))

    def over(self, job_key: str) -> HostClaim | None:
        """A job is over. Returns its claim, which is given back, or is by itself once others are offered the entry."""
        return self._claims.pop(job_key, None)

    def give_back(self, claim: HostClaim) -> None:
        """Nothing will come of a claim, unless that is another job's of this service by now."""
        settings, key = claim.settings, claim.sought.key
        if not any(each.settings == settings and each.sought.key == key for each in self._claims.values()):
            self._remotes.disclaim(settings, key)

    def drop(self) -> None:
        """Have what was claimed and is no job any more given back: another host may as well begin."""
        for job_key in list(self._claims):
            if self._scheduler.in_flight(job_key) is None:
                self.give_back(self._claims.pop(job_key))

    def _answered(self, job_key: str, claim: HostClaim, found: wire.FoundRemotely | None) -> None:
        if self._claims.get(job_key) is not claim:  # nobody wants that job any more
            if found is None:
                self.give_back(claim)
        elif found is None:
            self._happened(events.Returned(job_key, time.monotonic()))
        else:
            claim.obtain(found)
