"""What becomes of an outcome before its clients are told: checked, kept, written down. In the errands' thread."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import msgspec

from headstart import wire
from headstart.artifacts.reproduce import write_plan
from headstart.errors import StoreUnavailable
from headstart.model.request import CompileRequest
from headstart.service.intake import NotBelieved, cpu_seconds, entry_parts, failure_of, log_of, shown
from headstart.service.limits import effective_time_limit
from headstart.service.lookup import Found, Lookup
from headstart.service.queue import Job
from headstart.stores.failures import REMEMBERED_KINDS, Failures, RememberedFailure

_PRUNE_SHARE = 0.05  # of the store's limit: how much is published between looks at its size


class CompilePayload(NamedTuple):
    """A job's payload: what a worker is told, and for whom its entry is kept.

    Attributes:
        key: of the entry.
        digest: of the toolchain.
        request: what is compiled.
        use_store: whether it is kept in the store of
        preferences: those of the client that asked first.
        torch_dir: see `Toolchain`.
        confined: nobody vouches for the source.
        triton_cache: where that client wants it to be as well.
    """

    key: str
    digest: str
    request: CompileRequest
    use_store: bool
    preferences: wire.Preferences
    torch_dir: str
    confined: bool
    triton_cache: wire.TritonCache | None = None

    @property
    def cache_dir(self) -> str:
        """Of that client."""
        return os.fsdecode(self.preferences.cache_dir)

    def message(self, prefix: bytes, *, whole: bool) -> wire.Assign:
        """What the worker is told; see `executor.Payload`."""
        stored = self.use_store and not self.confined  # a confined worker can write no store: what it makes it sends
        return wire.Assign(
            self.key,
            self.digest,
            self.request,
            self.preferences.cache_dir if stored else b"",
            self.use_store and self.preferences.early_cutoff and not self.confined and not whole,
            prefix,
            self.preferences.trusts_cache_dir,
            self.torch_dir,
            None if self.confined else self.triton_cache,
        )


class Results:
    """Keeps what workers made, for the stores of one service's clients.

    Args:
        lookup: has the stores.
    """

    def __init__(self, lookup: Lookup) -> None:
        self._lookup = lookup
        self._published: Counter[str] = Counter()  # bytes by cache folder, since its store was last pruned

    @staticmethod
    def needs_work(payload: CompilePayload, outcome: object) -> bool:
        """Whether `settled` has anything to do that its clients must wait for."""
        if isinstance(outcome, Found):
            return False  # of another host's, and in the store
        return payload.confined or isinstance(outcome, wire.Failure)

    def settled(self, job: Job, payload: CompilePayload, outcome: object, started: float) -> object:
        """What the clients are told: a `Finished`, or a `Failure` that is written down.

        Args:
            job: whose limits held.
            payload: of the job.
            outcome: what its worker sent.
            started: when that worker began; monotonic seconds.
        """
        if payload.confined:
            outcome = self._taken_in(payload, outcome, started)
        # A person who ran a plan with a strange source would vouch for it.
        if isinstance(outcome, wire.Failure) and outcome.kind != "service" and not payload.confined:
            _write_down(job, payload, outcome)
        return outcome

    def count(self, preferences: wire.Preferences, key: str) -> None:
        """Have an entry counted that was published, and its store pruned now and then."""
        store = self._lookup.store(preferences)
        if store.limit_bytes is None:
            return
        cache_dir = os.fsdecode(preferences.cache_dir)
        try:
            self._published[cache_dir] += os.stat(store.path_of(key)).st_size
        except OSError:
            return
        if self._published[cache_dir] > store.limit_bytes * _PRUNE_SHARE:
            self._published[cache_dir] = 0
            try:
                store.prune()
            except StoreUnavailable:
                pass  # the worker that publishes says so

    def _taken_in(self, payload: CompilePayload, outcome: object, started: float) -> wire.Finished | wire.Failure:
        """What a confined worker made, checked, and put into the store."""
        if not isinstance(outcome, wire.Finished):
            assert isinstance(outcome, wire.Failure)
            return failure_of(outcome)
        now = time.monotonic()
        log = log_of(outcome.log)
        try:
            parts, shared = entry_parts(payload.key, payload.digest, payload.request, outcome, log, now - started)
        except NotBelieved as error:
            return wire.Failure("crash", shown(f"its worker did not send what a compile makes: {error}"))
        stored, notice = False, ""
        if payload.use_store:
            try:
                self._lookup.store(payload.preferences).publish(payload.key, parts)
                stored = True
            except StoreUnavailable as error:
                notice = f"{error}; kernels are kept in memory only"
        return wire.Finished(
            stored=stored,
            started=started,
            finished=now,
            entry=b"" if stored else b"".join(parts),
            cpu_s=cpu_seconds(outcome),
            shared=shared,
            log=log,
            notice=notice,
        )


def _write_down(job: Job, payload: CompilePayload, failure: wire.Failure) -> None:
    request = payload.request
    failure.reproduce = write_plan(Path(payload.cache_dir, "failed"), request)
    if not (payload.use_store and failure.kind in REMEMBERED_KINDS):
        return
    retry = f"headstart cache retry {payload.key[:12]}"
    limit = effective_time_limit(job.time_limit, job.urgency) if failure.kind == "timeout" else None
    remembered = msgspec.structs.replace(
        failure, advice=f"it failed before and was not tried again; `{retry}` has it tried again"
    )
    Failures(payload.cache_dir).remember(
        RememberedFailure(
            payload.key,
            request.name,
            request.target,
            remembered,
            limit,
            job.memory_limit if failure.kind == "memory" else None,
        )
    )
    if failure.reproduce:
        failure.reproduce = remembered.reproduce = f"{retry}; {failure.reproduce}"


def answer(ticket: int, key: str, outcome: object, wanted: bytes = b"") -> wire.Result | wire.Failed:
    """What a client is told of an outcome; `wanted`: the folder in Triton's cache that it named."""
    if isinstance(outcome, wire.Failure):
        return wire.Failed(ticket, outcome)
    if isinstance(outcome, Found):
        return answer_of(ticket, outcome, wanted)
    assert isinstance(outcome, wire.Finished)
    return wire.Result(
        ticket,
        key,
        entry=outcome.entry,
        cached=outcome.cached,
        started=outcome.started,
        finished=outcome.finished,
        cpu_s=outcome.cpu_s,
        shared=outcome.shared,
        log=outcome.log,
        in_triton_cache=bool(wanted) and outcome.in_triton_cache == wanted,
        registers=outcome.registers,
    )


def answer_of(ticket: int, found: Found, wanted: bytes = b"") -> wire.Result:
    """What a client is told of an entry that was found; `wanted` as for `answer`."""
    return wire.Result(
        ticket,
        found.key,
        entry=found.entry,
        cached=True,
        shared=found.shared or 0,
        in_triton_cache=bool(wanted) and found.in_triton_cache == wanted,
        registers=found.registers,
        remote=found.remote,
        farm=found.farm,
    )
