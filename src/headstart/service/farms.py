"""Other machines that compile: what a service lends to the bridges that have them, and for how long anybody waits.

    Scheduler ── Lend(job) ─▶ Farms ── Lend ─▶ bridge process (one for each `FarmSettings`)
              ◀─ Offered ───        ◀─ FarmState ─    what there is room for
              ◀─ LentBegun ─        ◀─ Begun ─
              ◀─ Obtained ──        ◀─ Made ─         its entry is in the local store
              ◀─ Returned ──        ◀─ Unmade ─       nothing came of it, or not in time, or the bridge is gone

What is lent travels in one message for each turn of the loop. A job that is late is the scheduler's again, and stays
lent: if it comes after all, it answers whoever still waits. After `MOST_LATE` deadlines in a row nothing is lent for a
while, which doubles; and nothing at all while there is no bridge: one that died is started again after a while, which
doubles too, until one has made something.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Iterable, Set
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from headstart import wire
from headstart.errors import ServiceError
from headstart.service import events
from headstart.service.bridge_process import BridgeProcess
from headstart.service.lending import DEFAULT_ESTIMATE
from headstart.service.loop import Loop
from headstart.service.queue import Job, Room, Urgency
from headstart.service.results import CompilePayload

SLACK = 1.0  # seconds that anything may take, however short its compile
FACTOR = 2.0  # of the estimate: nodes may be slower, and busy
MAX_PATIENCE = 60.0  # seconds for a compile, however long it is thought to take, and for a delay that a bridge names
MOST_LATE = 3  # deadlines that passed in a row, after which nothing is lent for a while
REST = 5.0  # seconds of that at first, and for which a bridge that died is not started; twice as many each time
MAX_REST = 300.0  # seconds

_log = logging.getLogger("headstart.service")

Obtained = Callable[[str, CompilePayload, wire.MadeEntry], None]


@dataclass(eq=False)
class _Out:
    """A job that is lent, and that somebody may still want. `begun`: there. `late`: it is the scheduler's again."""

    ticket: int
    job_key: str
    payload: CompilePayload
    estimate: float
    background: bool
    due: float
    begun: bool = False
    late: bool = False


@dataclass(eq=False)
class _Farm:
    """What is known of one bridge, and of those with the same settings before it."""

    settings: wire.FarmSettings
    process: BridgeProcess | None = None
    state: wire.FarmState = field(default_factory=wire.FarmState)
    out: dict[int, _Out] = field(default_factory=dict)  # by ticket
    by_key: dict[str, _Out] = field(default_factory=dict)  # the latest, by the job's key
    unsent: list[_Out] = field(default_factory=list)
    taken_back: list[int] = field(default_factory=list)
    too_late: list[int] = field(default_factory=list)
    lates: int = 0
    rest: float = REST
    said_slow: bool = False  # of this bridge
    rests_until: float = float("-inf")
    restarts_at: float = float("-inf")
    deaths: int = 0
    lent: int = 0
    made: int = 0
    came_late: int = 0
    returned: int = 0

    def report(self) -> wire.FarmReport:
        return wire.FarmReport(
            self.settings.address, self.state, len(self.out), self.lent, self.made, self.came_late, self.returned
        )


class Farms:
    """Starts bridges when they are needed, and lends them jobs.

    Args:
        loop: that listens to them.
        happened: is told of events.
        obtained: told of a job's entry, which is in the local store.
        tell: has the clients with these settings told something.
    """

    def __init__(
        self,
        loop: Loop,
        happened: Callable[[events.Event], None],
        obtained: Obtained,
        tell: Callable[[wire.FarmSettings, str], None],
    ) -> None:
        self._loop = loop
        self._happened = happened
        self._obtained = obtained
        self._tell = tell
        self._tickets = count(1)
        self._farms: dict[wire.FarmSettings, _Farm] = {}

    @property
    def pids(self) -> set[int]:
        """Their processes."""
        return {each.process.pid for each in self._farms.values() if each.process is not None}

    @property
    def busy(self) -> bool:
        """Whether an answer is to come."""
        return any(farm.out for farm in self._farms.values())

    def prepare(self, settings: wire.FarmSettings | None) -> None:
        """Have a bridge ready: somebody with these settings, if any, is about to ask."""
        if settings is None:
            return
        farm = self._farms.setdefault(settings, _Farm(settings))
        if farm.process is not None or time.monotonic() < farm.restarts_at:
            return
        try:
            farm.process = BridgeProcess(
                self._loop, settings, lambda said: self._take(farm, said), lambda why: self._gone(farm, why)
            )
        except ServiceError as error:
            self._leave_alone(farm, str(error))

    def lend(self, job: Job) -> None:
        """The scheduler has decided that a job may be compiled elsewhere."""
        payload = job.payload
        assert isinstance(payload, CompilePayload)
        settings = payload.preferences.farm
        farm = None if settings is None else self._farms.get(settings)
        now = time.monotonic()
        if farm is None or farm.process is None:
            self._happened(events.Returned(job.key, now))
            return
        estimate = DEFAULT_ESTIMATE if job.estimate is None else job.estimate
        out = _Out(
            next(self._tickets),
            job.key,
            payload,
            estimate,
            job.urgency is Urgency.BACKGROUND,
            now + self._patience(farm, estimate),
        )
        farm.out[out.ticket] = farm.by_key[job.key] = out
        farm.unsent.append(out)
        farm.lent += 1

    def unwanted(self, is_wanted: Callable[[str], bool]) -> None:
        """What is no job any more, of all that is lent, is not to begin elsewhere."""
        for farm in self._farms.values():
            for out in [each for each in farm.out.values() if not is_wanted(each.job_key)]:
                self._not_wanted(farm, out)

    def settled(self, job_key: str) -> None:
        """A job is answered, by whomever."""
        for farm in self._farms.values():
            out = farm.by_key.get(job_key)
            if out is not None:
                self._not_wanted(farm, out)

    def begun_here(self, job_key: str) -> None:
        """A worker here is at a job: one that was taken back before its time is not to begin elsewhere as well."""
        for farm in self._farms.values():
            out = farm.by_key.get(job_key)
            if out is not None and not (out.late or out.begun):  # else it may yet be the first
                self._not_wanted(farm, out)

    def reports(self) -> list[wire.FarmReport]:
        """What they were good for so far."""
        return [farm.report() for farm in self._farms.values()]

    # The loop

    def flush(self) -> None:
        """The end of a turn: what was decided in it is sent."""
        for farm in self._farms.values():
            if farm.process is None:
                continue
            groups: dict[tuple[bytes, bool], list[wire.LentJob]] = {}
            for out in farm.unsent:
                preferences = out.payload.preferences
                groups.setdefault((preferences.cache_dir, preferences.trusts_cache_dir), []).append(_lent(out))
            farm.unsent = []
            for (cache_dir, trusted), jobs in groups.items():
                farm.process.send(wire.Lend(jobs, cache_dir, trusted))
            for tickets, late in ((farm.taken_back, False), (farm.too_late, True)):
                if tickets:
                    farm.process.send(wire.TakeBack(tickets, late))
            farm.taken_back, farm.too_late = [], []

    @property
    def deadline(self) -> float | None:
        """Seconds until `look_around` is to be called; None: nothing is due."""
        due = [out.due for farm in self._farms.values() for out in farm.out.values() if not out.late]
        now = time.monotonic()
        due += [farm.rests_until for farm in self._farms.values() if farm.rests_until > now]
        due += [farm.restarts_at for farm in self._farms.values() if farm.process is None and farm.restarts_at > now]
        return max(0.0, min(due) - now) if due else None

    def look_around(self, now: float, wanted: Callable[[], Set[Hashable]] = frozenset) -> None:
        """Have what is late compiled here.

        Args:
            now: monotonic seconds.
            wanted: the farms that jobs may go to: a bridge of theirs that died is started again once its time has come.
        """
        for farm in list(self._farms.values()):
            if farm.deaths and farm.process is None and farm.restarts_at <= now and farm.settings in wanted():
                self.prepare(farm.settings)
            over = [out for out in farm.out.values() if not out.late and out.due <= now]
            if over:
                farm.lates += 1
                self._rest(farm, now)
            for out in over:
                out.late = True
                farm.too_late.append(out.ticket)
                farm.returned += 1
                self._happened(events.Returned(out.job_key, now))
            if farm.rests_until != float("-inf") and farm.rests_until <= now:
                farm.rests_until = float("-inf")
                self._offer(farm, now)

    def replace_stopped(self, now: float) -> None:
        """End bridges that somebody has stopped (SIGSTOP) and left so while they owed an answer."""
        for farm in self._farms.values():
            if farm.process is not None and farm.out:
                farm.process.replace_if_stopped(now)

    def end(self) -> None:
        """Let go of them all. They take back what has not begun, and nobody waits for that."""
        for farm in self._farms.values():
            if farm.process is not None:
                farm.process.leave()
        self._farms.clear()

    # Inside

    def _patience(self, farm: _Farm, estimate: float) -> float:
        # What a compile took elsewhere is what others say: a job must not be theirs for as long as they like.
        return SLACK + min(farm.state.delay, MAX_PATIENCE) + min(FACTOR * estimate, MAX_PATIENCE)

    def _take(self, farm: _Farm, message: Any) -> None:
        now = time.monotonic()
        match message:
            case wire.FarmState():
                farm.state = message
                self._offer(farm, now)
            case wire.Begun(tickets):
                for out in [farm.out[ticket] for ticket in tickets if ticket in farm.out]:
                    out.begun = True
                    out.due = max(out.due, now + self._patience(farm, out.estimate))
                    if not out.late:
                        self._happened(events.LentBegun(out.job_key))
            case wire.Made(entries):
                farm.lates, farm.rest, farm.deaths = 0, REST, 0
                for made in entries:
                    out_ = self._answered(farm, made.ticket)
                    if out_ is not None:
                        farm.made += 1
                        farm.came_late += out_.late
                        self._obtained(out_.job_key, out_.payload, made)
            case wire.Unmade(tickets):
                for ticket in tickets:
                    out_ = self._answered(farm, ticket)
                    if out_ is not None:
                        self._give_back(farm, out_, now)
            case wire.FarmSays(text, quiet):
                _log.warning("%s", text)
                if not quiet:
                    self._tell(farm.settings, text)

    def _answered(self, farm: _Farm, ticket: int) -> _Out | None:
        out = farm.out.pop(ticket, None)
        if out is not None and farm.by_key.get(out.job_key) is out:
            del farm.by_key[out.job_key]
        return out

    def _not_wanted(self, farm: _Farm, out: _Out) -> None:
        """It is forgotten: of what is taken back, and not as late, a bridge says nothing any more."""
        self._answered(farm, out.ticket)
        farm.taken_back.append(out.ticket)

    def _give_back(self, farm: _Farm, out: _Out, now: float) -> None:
        if not out.late:
            farm.returned += 1
            self._happened(events.Returned(out.job_key, now))

    def _offer(self, farm: _Farm, now: float) -> None:
        """Tell the scheduler what there is room for: what was lent since is still to be taken off."""
        rooms: dict[str, Room] = {}
        if farm.process is not None and farm.rests_until <= now:
            state = farm.state
            rooms = {name: Room(state.idle.get(name, 0), room, state.delay) for name, room in state.room.items()}
            for out in farm.out.values():
                if out.ticket > state.seen and out.payload.digest in rooms:
                    rooms[out.payload.digest].take()
        self._happened(events.Offered(farm.settings, rooms))

    def _rest(self, farm: _Farm, now: float) -> None:
        if farm.lates < MOST_LATE:
            return
        farm.lates = 0
        farm.rests_until = now + farm.rest
        if not farm.said_slow:
            farm.said_slow = True
            self._tell(
                farm.settings,
                f"the farm at {farm.settings.address} is slower than it was thought to be; what was sent there is "
                "compiled here, and it is used less often",
            )
        farm.rest = min(2 * farm.rest, MAX_REST)
        self._offer(farm, now)

    def _gone(self, farm: _Farm, why: str) -> None:
        now = time.monotonic()
        farm.process, farm.said_slow = None, False
        farm.state = wire.FarmState()
        lost, farm.out, farm.by_key = list(farm.out.values()), {}, {}
        farm.unsent, farm.taken_back, farm.too_late = [], [], []
        if why:
            self._leave_alone(farm, why)
        self._offer(farm, now)
        for out in lost:
            self._give_back(farm, out, now)

    def _leave_alone(self, farm: _Farm, why: str) -> None:
        """It is not started for a while, which doubles."""
        farm.deaths += 1
        pause = min(REST * 2 ** (farm.deaths - 1), MAX_REST)
        farm.restarts_at = time.monotonic() + pause
        _log.warning("%s", why)
        if farm.deaths == 1:
            self._tell(farm.settings, f"the farm is not used for {pause:.0f} s: {why}")


def wanted_by(jobs: Iterable[Job]) -> set[Hashable]:
    """The farms that some of these jobs wait for, among others."""
    return {job.place[0] for job in jobs if job.place is not None and job.waiting and not job.returned}


def _lent(out: _Out) -> wire.LentJob:
    payload = out.payload
    return wire.LentJob(
        out.ticket,
        payload.key,
        payload.digest,
        payload.request.digest(),
        wire.encode(payload.request),
        not payload.confined,
        out.background,
        out.estimate,
    )
