"""Requests for kernels, from what a client says to what it is told.

    submit ─▶ Lookup (errand) ─▶ in the store? failed before? ──▶ the answer
                   ▲                  └─ no ─▶ Remotes: has another host made it? ── no, or not in time ─┐
                   └───────────── yes, and it is in the store now ─┘                                     │
                                                       answers ◀─ Results (errand) ◀─ Deliver … ◀─ Requested

Everybody who asks for one kernel while it is under way is answered by the one compile, or, if a remote has it after
all, by what that had.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import msgspec

from headstart import wire
from headstart.artifacts.entry import Entry
from headstart.artifacts.vetting import unvouched
from headstart.model.environment import TOOL_VARIABLES, bypass_reason
from headstart.model.request import KERNEL, CompileRequest
from headstart.service import events
from headstart.service.asked import size_of, why_not
from headstart.service.claiming import Claiming, HostClaim
from headstart.service.errands import Errands
from headstart.service.estimates import Estimates
from headstart.service.executor import Executor
from headstart.service.intake import without_what_is_not_identity
from headstart.service.look_ups import Sought
from headstart.service.lookup import Found, Lookup
from headstart.service.queue import Job, Ticket, Urgency
from headstart.service.remotes import Remotes
from headstart.service.reporting import Tally
from headstart.service.results import CompilePayload, Results, answer, answer_of
from headstart.service.scheduler import Scheduler
from headstart.service.sessions import Session, Sessions
from headstart.system.confinement import unavailable

# Of a compile that nobody vouches for, unless the client sets limits of its own.
CONFINED_TIME_LIMIT = 120.0  # seconds
CONFINED_MEMORY_LIMIT = 4 << 30  # bytes


class Requests:
    """What the clients of a service have asked for.

    Args:
        scheduler: knows what is under way.
        happened: is told of events.
        executor: knows since when.
        sessions: those who ask.
        tell: tells them; what a ticket below 0 is told is for this service's own use.
        errands, lookup: find out what is known of a request before anything is compiled.
        remotes: what other hosts have.
        claiming: what this host says to them that it makes.

    Attributes:
        tally: what became of them.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        happened: Callable[[events.Event], None],
        executor: Executor,
        sessions: Sessions,
        tell: Callable[[int, wire.Started | wire.Result | wire.Failed], None],
        errands: Errands,
        lookup: Lookup,
        remotes: Remotes,
        claiming: Claiming,
    ) -> None:
        self._scheduler = scheduler
        self._happened = happened
        self._executor = executor
        self._sessions = sessions
        self._tell = tell
        self._errands = errands
        self._lookup = lookup
        self._remotes = remotes
        self._claiming = claiming
        self._results = Results(lookup)
        self._estimates = Estimates()
        self.tally = Tally()

    def submit(self, session: Session, message: wire.Submit) -> None:
        """A client asks for a kernel."""
        request = message.request if message.vouched else without_what_is_not_identity(message.request)
        self.tally.requests += 1
        # Before anything is read that it names.
        refused = None if message.vouched else why_not(request, session.preferences.tools)
        if refused is not None:
            failure = wire.Failure("source", unvouched(refused))
            self._tell(session.number, wire.Failed(message.ticket, failure))
            return
        use_store = message.use_store and bypass_reason(request.environment) is None
        known = self._lookup.key(message.toolchain, request) if session.toolchains.get(message.toolchain) else None
        if known is not None and self._scheduler.in_flight(_job_key(known[1], message, session, use_store)) is not None:
            kind = self._lookup.kind(message.toolchain, request.environment, not message.vouched)
            self._request(_Asked(session, message, request, use_store), Found(*known, kind))
            return
        look_again = message.toolchain not in session.toolchains
        session.toolchains.setdefault(message.toolchain, False)
        session.looked_up.add(message.ticket)
        asked = _Asked(session, message, request, use_store)
        self._look_up(asked, functools.partial(self._found, asked), look_again=look_again)

    def _look_up(
        self, asked: _Asked, then: Callable[[Found], None], *, look_again: bool = False, job_key: str = ""
    ) -> None:
        self._errands.do(
            functools.partial(
                self._lookup.find,
                asked.message,
                asked.request,
                asked.session.preferences,
                use_store=asked.use_store,
                look_again=look_again,
            ),
            then,
            functools.partial(self._lost, asked.session, job_key),
        )

    def _lost(self, session: Session, job_key: str) -> None:
        """A look-up failed, which is a bug. Others may wait for that job."""
        self._sessions.dismiss(session)
        self._happened(events.Returned(job_key, time.monotonic()))

    def _found(self, asked: _Asked, found: Found) -> None:
        session = asked.session
        session.toolchains[asked.message.toolchain] = True
        settings = session.preferences.remote
        is_known = found.shared is not None or found.failure is not None
        if settings is None or not asked.use_store or is_known or self._is_in_flight(asked, found):
            self._settle(asked, found)
        elif self._sessions.has(session):
            sought = asked.sought(found.key)
            session.sought[asked.message.ticket] = sought
            self._remotes.look_up(
                settings,
                sought,
                functools.partial(self._looked_up, asked, found),
                functools.partial(self._came_late, asked, found),
                background=asked.message.background and asked.message.ticket not in session.awaited,
            )

    def _looked_up(self, asked: _Asked, found: Found, remotely: wire.FoundRemotely | None) -> None:
        """A remote has an entry, or has not, or takes too long."""
        asked.session.sought.pop(asked.message.ticket, None)
        if remotely is None:
            self._settle(asked, found)
        else:
            self._obtain(asked, found, remotely, functools.partial(self._settle, asked))

    def _came_late(self, asked: _Asked, found: Found, remotely: wire.FoundRemotely) -> None:
        """A remote has an entry that nobody asks for any longer, but for the job that may be under way."""
        job_key = asked.job_key(found.key)

        def tell(found: Found) -> None:
            # One that is gone again is compiled: a job that is away comes back.
            if found.shared is None:
                self._happened(events.Returned(job_key, time.monotonic()))
            else:
                self._happened(events.Obtained(job_key, found, time.monotonic()))

        if self._is_in_flight(asked, found):
            self._obtain(asked, found, remotely, tell)

    def _is_in_flight(self, asked: _Asked, found: Found) -> bool:
        return self._scheduler.in_flight(asked.job_key(found.key)) is not None

    def _obtain(self, asked: _Asked, found: Found, remotely: wire.FoundRemotely, then: Callable[[Found], None]) -> None:
        if remotely.entry:
            shared = int(Entry.from_bytes(remotely.entry).metadata.get("shared") or 0)
            then(msgspec.structs.replace(found, shared=shared, entry=remotely.entry, remote=True))
            return
        self._errands.do(lambda: self._results.count(asked.session.preferences, found.key))
        # It is found as if it had been there before; where it is gone again it is compiled.
        self._look_up(
            asked,
            lambda again: then(msgspec.structs.replace(again, remote=again.shared is not None)),
            job_key=asked.job_key(found.key),
        )

    def _settle(self, asked: _Asked, found: Found) -> None:
        session, message = asked.session, asked.message
        if message.ticket not in session.looked_up or not self._sessions.has(session):
            return  # it was withdrawn, or all of its client's were
        session.looked_up.discard(message.ticket)
        if found.shared is not None:
            self.tally.stored += not found.remote
            self.tally.remote += found.remote
            self._estimates.heard(asked.request, found.seconds)
            wanted = b"" if message.triton_cache is None else message.triton_cache.folder
            self._tell(session.number, answer_of(message.ticket, found, wanted))
        elif found.failure is not None:
            self.tally.failed += found.failure.kind != "service"
            self._tell(session.number, wire.Failed(message.ticket, found.failure))
        elif not message.vouched and (why := unavailable()):
            failure = wire.Failure("service", unvouched(f"its worker cannot be confined here: {why}"))
            self._tell(session.number, wire.Failed(message.ticket, failure))
        else:
            self._request(asked, found)
        if message.ticket in session.awaited:
            session.awaited.discard(message.ticket)
            self.awaited(session, message.ticket)

    def _request(self, asked: _Asked, found: Found) -> None:
        session, message, request, use_store = asked
        job_key = asked.job_key(found.key)
        session.jobs[message.ticket] = job_key
        if message.triton_cache is not None:
            session.wanted[message.ticket] = message.triton_cache.folder
        running = self._scheduler.in_flight(job_key)
        self.tally.joined += running is not None
        if running is not None and running.worker is not None:
            started = self._executor.workers[running.worker].started
            self._tell(session.number, wire.Started(message.ticket, running.worker, started))
        preferences, confined = session.preferences, not message.vouched
        settings = preferences.remote
        # What nobody vouches for is not given to others: nobody is to wait for it.
        unclaimed = running is None and use_store and not confined and settings is not None and settings.claims
        if unclaimed and settings is not None:
            sought = asked.sought(found.key)
            self._claiming.expect(job_key, settings, sought, functools.partial(self._came_late, asked, found))
        assert found.kind is not None
        self._happened(
            events.Requested(
                Ticket(session.number, message.ticket),
                job_key,
                found.kind,
                CompilePayload(
                    found.key,
                    found.digest,
                    request,
                    use_store,
                    preferences,
                    message.toolchain.torch_dir,
                    confined,
                    message.triton_cache,
                ),
                Urgency.BACKGROUND if message.background else Urgency.EARLY,
                time.monotonic(),
                self._estimates.of(request),
                preferences.time_limit or (CONFINED_TIME_LIMIT if confined else None),
                preferences.memory_limit or (CONFINED_MEMORY_LIMIT if confined else None),
                unclaimed,
                _place(session, request, use_store, found),
                size_of(request),
            )
        )
        if running is not None and not (settings is not None and settings.claims):
            self._claiming.joined(job_key)

    def made_elsewhere(self, job_key: str, payload: CompilePayload, made: wire.MadeEntry) -> None:
        """A farm has made the entry of a job, which is in the store now."""
        cache = None if payload.confined else payload.triton_cache

        def tell(found: Found) -> None:
            now = time.monotonic()
            if found.shared is None:  # it is gone again
                self._happened(events.Returned(job_key, now))
            else:
                found = msgspec.structs.replace(found, digest=payload.digest, farm=True, sha256=made.sha256)
                self._happened(events.Obtained(job_key, found, now))

        self._errands.do(
            lambda: self._lookup.find_made(payload.key, payload.request, payload.preferences, cache, made.entry),
            tell,
            lambda: self._happened(events.Returned(job_key, time.monotonic())),
        )

    def awaited(self, session: Session, ticket: int) -> None:
        """Somebody is blocked on what a client has asked for."""
        if ticket in session.looked_up:
            session.awaited.add(ticket)
            if ticket in session.sought and session.preferences.remote is not None:
                self._remotes.hurry(session.preferences.remote, session.sought[ticket])
        elif ticket in session.jobs:
            self._happened(events.Awaited(session.jobs[ticket], time.monotonic()))

    def withdraw(self, session: Session, tickets: Iterable[int]) -> None:
        """A client does not want any more what it has asked for."""
        for ticket in (each for each in tickets if each >= 0):  # the others are those of `Sources`
            session.looked_up.discard(ticket)
            session.awaited.discard(ticket)
            session.wanted.pop(ticket, None)
            if (job_key := session.jobs.pop(ticket, None)) is not None:
                self._happened(events.Withdrawn(Ticket(session.number, ticket), job_key, time.monotonic()))

    def deliver(self, job: Job, outcome: object) -> None:
        """A job is over: keep what came of it, and tell everybody who asked."""
        payload = job.payload
        assert isinstance(payload, CompilePayload)
        claim = self._claiming.over(job.key)
        if not self._results.needs_work(payload, outcome):
            self._tell_outcome(job, payload, claim, outcome)
            return
        worker = self._executor.workers.get(-1 if job.worker is None else job.worker)
        started = time.monotonic() if worker is None else worker.started
        tell = functools.partial(self._tell_outcome, job, payload, claim)
        lost = wire.Failure("service", "its result could not be kept: a bug")
        self._errands.do(lambda: self._results.settled(job, payload, outcome, started), tell, lambda: tell(lost))

    def _tell_outcome(self, job: Job, payload: CompilePayload, claim: HostClaim | None, outcome: object) -> None:
        if isinstance(outcome, wire.Finished):
            self.tally.compiled += 1
            self.tally.taken_over += outcome.taken_over
            if outcome.stored:
                self._errands.do(lambda: self._results.count(payload.preferences, payload.key))
                self._offer(job, payload, outcome)
            if not (outcome.cached or outcome.taken_over):
                self._estimates.seen(payload.request, outcome.finished - outcome.started)
        elif isinstance(outcome, Found):
            self.tally.farm += len(job.tickets) * outcome.farm
            self.tally.remote += len(job.tickets) * (not outcome.farm)
            self._estimates.heard(payload.request, outcome.seconds)
            if outcome.farm and not outcome.entry:
                self._errands.do(lambda: self._results.count(payload.preferences, payload.key))
                self._offer(job, payload, outcome)
        elif isinstance(outcome, wire.Failure):
            self.tally.failed += 1
        if claim is not None and not _is_offered(payload, outcome):
            self._claiming.give_back(claim)
        for ticket in job.tickets:
            session = self._sessions.get(ticket.client)
            if session is not None:
                session.jobs.pop(ticket.number, None)
                wanted = session.wanted.pop(ticket.number, b"")
                if isinstance(outcome, wire.Finished):
                    self._sessions.notify(session, outcome.notice)
                self._tell(session.number, answer(ticket.number, payload.key, outcome, wanted))

    def _offer(self, job: Job, payload: CompilePayload, outcome: wire.Finished | Found) -> None:
        """Have other hosts given what was compiled.

        What nobody vouches for stays here: with this user's signature it would be vouched for everywhere. And so does
        what another service's worker made, of which this one does not know whether anybody vouched for it.
        """
        if not _is_offered(payload, outcome):
            return
        preferences = payload.preferences
        for settings in self._remotes_of(job, payload):
            sought = Sought(payload.key, "", "", preferences.cache_dir, preferences.trusts_cache_dir)
            self._remotes.offer(settings, sought, outcome.sha256)

    def _remotes_of(self, job: Job, payload: CompilePayload) -> set[wire.RemoteSettings]:
        """Those of all who asked for it."""
        sessions = [self._sessions.get(ticket.client) for ticket in job.tickets]
        all_of = [payload.preferences, *(each.preferences for each in sessions if each is not None)]
        return {each.remote for each in all_of if each.remote is not None}


class _Asked(NamedTuple):
    """One request, until it is known what is to be done about it."""

    session: Session
    message: wire.Submit
    request: CompileRequest
    use_store: bool

    def job_key(self, key: str) -> str:
        """The scheduler's, of the job that compiles the entry of `key`."""
        return _job_key(key, self.message, self.session, self.use_store)

    def sought(self, key: str) -> Sought:
        """What a remote is asked for."""
        preferences = self.session.preferences
        return Sought(
            key, self.request.kind, self.request.digest(), preferences.cache_dir, preferences.trusts_cache_dir
        )


def _place(
    session: Session, request: CompileRequest, use_store: bool, found: Found
) -> tuple[wire.FarmSettings, str] | None:
    """Which farm may compile a request, and with which toolchain. One that names tools of this host stays here."""
    farm = session.preferences.farm
    if farm is None or not use_store or request.kind != KERNEL or TOOL_VARIABLES & request.environment.keys():
        return None
    return farm, found.digest


def _is_offered(payload: CompilePayload, outcome: object) -> bool:
    if isinstance(outcome, Found):
        return outcome.farm and not payload.confined and not outcome.entry
    if not isinstance(outcome, wire.Finished) or not outcome.stored:
        return False
    return not (payload.confined or outcome.cached) and bool(outcome.sha256)


def _job_key(key: str, message: wire.Submit, session: Session, use_store: bool) -> str:
    """A client that vouches for a source is not served by a compile of one that nobody vouches for."""
    return f"{key} {session.cache_dir if use_store else 'unstored'}{'' if message.vouched else ' confined'}"
