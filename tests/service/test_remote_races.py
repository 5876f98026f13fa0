"""A whole service with a remote process and an executor that are fakes: whichever is first wins, and once."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fake_executor import FakeExecutor
from test_executor import TOOLCHAIN
from test_remotes import FakeProcess

from conftest import PATIENCE, wait_until
from entries import packed
from headstart import wire
from headstart.model.request import CompileRequest
from headstart.model.toolchain import Toolchain
from headstart.service import claiming, events
from headstart.service import remotes as remotes_module
from headstart.service import requests as requests_module
from headstart.service.listener import Peer
from headstart.service.server import Server
from headstart.stores.disk import DiskStore
from headstart.wire.config import Config
from kernels import pointwise

SLOW = 3600.0  # seconds: a deadline that never passes by itself
REMOTE = wire.RemoteSettings("redis://:secret@redis", deadline=SLOW)
OTHER = wire.RemoteSettings("redis://other", deadline=SLOW)
CLAIMS = wire.RemoteSettings("redis://claims", deadline=SLOW, claims=True)
AT_ONCE = wire.RemoteSettings("redis://late", deadline=1e-9)


def entry(wanted: wire.Wanted, kind: str = "kernel") -> bytes:
    return packed(wanted.key, wanted.request_digest, kind=kind)


class Caller:
    """A client, as far as the wire goes."""

    def __init__(self, sock: socket.socket, preferences: wire.Preferences) -> None:
        self.socket = sock
        self.socket.settimeout(PATIENCE)
        self._messages = wire.receive_blocking(self.socket, wire.Deframer(wire.FromService))
        self.say(wire.Hello(wire.PROTOCOL, preferences))
        assert isinstance(next(self._messages), wire.Welcome)

    def say(self, message: msgspec.Struct) -> None:
        self.socket.sendall(wire.frame(message))

    def hear(self, *kinds: type) -> Any:
        return next(message for message in self._messages if isinstance(message, kinds))

    def submit(self, ticket: int, *, background: bool = False, vouched: bool = True, **how: Any) -> None:
        request = CompileRequest.make(**pointwise(**how), target="cuda:90")
        self.say(wire.Submit(ticket, TOOLCHAIN, request, True, background=background, vouched=vouched))

    def report(self) -> wire.Report:
        self.say(wire.Control("status"))
        report: wire.Report = self.hear(wire.Report)
        return report


class Service:
    """A service in a thread of this process."""

    farm: wire.FarmSettings | None = None  # that its clients have

    def __init__(self, cache: Path, outcome: Callable[[wire.Assign], Any]) -> None:
        self.cache = cache
        self.processes: list[FakeProcess] = []
        self.executor: FakeExecutor
        mine, theirs = socket.socketpair()
        self.server = Server(Config(workers=1, client=theirs.detach()), lambda *them: self._executor(outcome, *them))
        self._thread = threading.Thread(target=self.server.run)
        self._thread.start()
        self._sockets = [mine]
        self._missed: set[int] = set()

    def _executor(self, outcome: Callable[[wire.Assign], Any], *arguments: Any) -> FakeExecutor:
        self.executor = FakeExecutor(*arguments, outcome=outcome)
        return self.executor

    def caller(self, remote: wire.RemoteSettings | None = REMOTE, cache: Path | None = None) -> Caller:
        preferences = wire.Preferences(os.fsencode(cache or self.cache), remote=remote, farm=self.farm)
        if self._sockets and self.server._sessions.members() == [] and len(self._sockets) == 1:
            return Caller(self._sockets[0], preferences)
        mine, theirs = socket.socketpair()
        self._sockets.append(mine)
        self.do(lambda: self.server._sessions.admit(Peer(theirs, os.getpid(), -1)))
        return Caller(mine, preferences)

    def do(self, step: Callable[[], Any]) -> Any:
        """Have something done in the service's thread, and wait for it."""
        made: list[Any] = []
        done = threading.Event()

        def run() -> None:
            made.append(step())
            done.set()

        self.server._errands.post(run)
        assert done.wait(PATIENCE)
        return made[0]

    def process(self, settings: wire.RemoteSettings = REMOTE) -> FakeProcess:
        (found,) = wait_until(lambda: [each for each in self.processes if each.settings == settings])
        if not found.awake:
            self.do(lambda: found.say(wire.Awake()))
        return found

    def wanted(self, settings: wire.RemoteSettings = REMOTE) -> list[wire.Wanted]:
        """What has been asked for, once something has."""
        process = self.process(settings)
        return wait_until(lambda: [each for message in process.asked() for each in message.wanted])

    def find(self, wanted: wire.Wanted, settings: wire.RemoteSettings = REMOTE, *, stored: bool = True) -> None:
        """The remote has it: the process has put it into the store, and says so."""
        data = entry(wanted)
        if stored:
            DiskStore(self.cache).publish(wanted.key, [data])
        found = wire.FoundRemotely(wanted.ticket, b"" if stored else data)
        process = self.process(settings)
        self.do(lambda: process.say(wire.LookedUp([found], [])))

    def claimed(self, number: int) -> wire.Wanted:
        """The first claim, the second, …; that nothing is there yet was said before."""

        def claims() -> list[wire.Wanted]:
            for each in self.wanted(CLAIMS):
                if not each.lease and each.ticket not in self._missed:
                    self._missed.add(each.ticket)
                    self.miss(each, CLAIMS)
            return [each for each in self.wanted(CLAIMS) if each.lease][number - 1 :]

        found: wire.Wanted = wait_until(claims)[0]
        return found

    def say(self, message: Any, settings: wire.RemoteSettings) -> None:
        process = self.process(settings)
        self.do(lambda: process.say(message))

    def miss(self, wanted: wire.Wanted, settings: wire.RemoteSettings = REMOTE) -> None:
        process = self.process(settings)
        self.do(lambda: process.say(wire.LookedUp([], [wanted.ticket])))

    def close(self) -> None:
        for each in self._sockets:
            each.close()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Service]]:
    monkeypatch.setattr(Toolchain, "digest", lambda self, environment, memory: "ef" * 32)
    held: list[Service] = []

    def make_process(*arguments: Any) -> FakeProcess:
        made = FakeProcess(*arguments)
        held[-1].processes.append(made)
        return made

    monkeypatch.setattr(remotes_module, "RemoteProcess", make_process)

    def make(outcome: Callable[[wire.Assign], Any]) -> Service:
        held.append(Service(tmp_path / "cache", outcome))
        return held[-1]

    yield make
    for each in held:
        each.close()


def compiled(order: wire.Assign) -> wire.Finished:
    """A worker that has put its entry into the store."""
    now = time.monotonic()
    wanted = wire.Wanted(0, order.key, "kernel", order.request.digest())
    DiskStore(os.fsdecode(order.store)).publish(order.key, [entry(wanted)])
    return wire.Finished(stored=True, started=now, finished=now, shared=512, sha256=b"digest")


def never(order: wire.Assign) -> None:
    """A compile that goes on until its worker is killed."""


Start = Callable[..., Service]


def test_what_a_remote_has_is_answered_as_if_the_store_had_had_it_and_nobody_compiles(start: Start) -> None:
    service = start(never)
    caller = service.caller()
    caller.submit(1)
    (wanted,) = service.wanted()
    service.find(wanted)
    result = caller.hear(wire.Result)
    assert (result.ticket, result.key, result.cached, result.remote, result.shared) == (1, wanted.key, True, True, 512)
    assert service.executor.orders == []
    report = caller.report()
    assert (report.remote, report.stored, report.compiled) == (1, 0, 0)
    caller.submit(2)  # now it is in the store
    assert not caller.hear(wire.Result).remote
    assert len(service.wanted()) == 1


def test_where_the_store_cannot_be_written_the_entry_travels(start: Start) -> None:
    service = start(never)
    caller = service.caller()
    caller.submit(1)
    (wanted,) = service.wanted()
    service.find(wanted, stored=False)
    result = caller.hear(wire.Result)
    assert result.entry == entry(wanted)
    assert (result.shared, result.remote) == (512, True)


def test_what_no_remote_has_is_compiled_and_then_offered(start: Start) -> None:
    service = start(compiled)
    caller = service.caller()
    caller.submit(1)
    (wanted,) = service.wanted()
    assert service.executor.orders == []
    service.miss(wanted)
    assert not caller.hear(wire.Result).cached
    (offer,) = wait_until(lambda: service.process().asked(wire.Offer))
    assert (offer.key, offer.cache_dir) == (wanted.key, os.fsencode(service.cache))


def test_what_was_taken_over_from_another_service_is_not_offered(start: Start) -> None:
    service = start(lambda order: msgspec.structs.replace(compiled(order), cached=True))
    caller = service.caller()
    caller.submit(1)
    service.miss(service.wanted()[0])
    caller.hear(wire.Result)
    caller.report()
    assert service.process().asked(wire.Offer) == []


def test_what_fails_is_not_offered_and_its_claim_is_given_back(start: Start) -> None:
    service = start(lambda order: wire.Failure("source", "it is wrong"))
    caller = service.caller(CLAIMS)
    caller.submit(1)
    wanted = service.claimed(1)
    service.miss(wanted, CLAIMS)
    caller.hear(wire.Failed)
    caller.report()
    process = service.process(CLAIMS)
    assert process.asked(wire.Offer) == []
    assert process.asked(wire.Disclaim) == [wire.Disclaim(wanted.key)]


def test_what_was_claimed_is_offered_and_gives_its_claim_back_by_that(start: Start) -> None:
    service = start(compiled)
    caller = service.caller(CLAIMS)
    caller.submit(1)
    wanted = service.claimed(1)
    assert service.executor.orders == [], "it may be another host's"
    service.miss(wanted, CLAIMS)
    assert not caller.hear(wire.Result).remote
    caller.report()
    process = service.process(CLAIMS)
    assert [offer.key for offer in process.asked(wire.Offer)] == [wanted.key]
    assert process.asked(wire.Disclaim) == []


def test_what_another_host_makes_is_got_from_it_and_meanwhile_another_job_is_begun(start: Start) -> None:
    service = start(never)  # with one worker
    caller = service.caller(CLAIMS)
    caller.submit(1, factor=1.0)
    first = service.claimed(1)
    service.say(wire.Claimed([first.ticket], SLOW), CLAIMS)
    caller.submit(2, factor=2.0)
    second = service.claimed(2)
    service.miss(second, CLAIMS)
    (order,) = wait_until(lambda: service.executor.orders)
    assert order.key == second.key
    service.find(first, CLAIMS)
    result = caller.hear(wire.Result)
    assert (result.key, result.remote, result.cached) == (first.key, True, True)
    assert len(service.executor.orders) == 1
    assert service.process(CLAIMS).asked(wire.Disclaim) == [wire.Disclaim(first.key)]


def test_what_another_host_did_not_make_in_time_is_compiled(start: Start) -> None:
    service = start(compiled)
    caller = service.caller(CLAIMS)
    caller.submit(1)
    wanted = service.claimed(1)
    service.say(wire.Claimed([wanted.ticket], 0.0), CLAIMS)
    assert not caller.hear(wire.Result).remote
    assert [order.key for order in service.executor.orders] == [wanted.key]


def test_what_another_host_made_and_is_gone_again_is_compiled(start: Start) -> None:
    service = start(compiled)
    caller = service.caller(CLAIMS)
    caller.submit(1)
    wanted = service.claimed(1)
    service.say(wire.LookedUp([wire.FoundRemotely(wanted.ticket)], []), CLAIMS)
    assert not caller.hear(wire.Result).remote
    assert [order.key for order in service.executor.orders] == [wanted.key]


def test_a_claim_that_is_not_settled_in_time_delays_a_compile_and_no_more(start: Start) -> None:
    service = start(never)
    settings = msgspec.structs.replace(CLAIMS, deadline=1e-9)
    caller = service.caller(settings)
    caller.submit(1)
    wait_until(lambda: service.executor.orders)
    plain, claim = wait_until(lambda: service.wanted(settings)[1:] and service.wanted(settings))
    assert (plain.lease, claim.lease > 0) == (0.0, True)
    service.find(claim, settings)
    assert caller.hear(wire.Result).remote


def test_an_entry_that_comes_late_ends_the_compile_that_is_running(start: Start) -> None:
    service = start(never)
    caller = service.caller(AT_ONCE)
    caller.submit(1)
    (wanted,) = service.wanted(AT_ONCE)
    wait_until(lambda: service.executor.orders)
    service.find(wanted, AT_ONCE)
    result = caller.hear(wire.Result)
    assert (result.ticket, result.cached, result.remote) == (1, True, True)
    report = caller.report()
    assert (report.running, report.remote, report.compiled, report.failed) == ([], 1, 0, 0)


def test_an_entry_that_comes_late_answers_a_job_that_waits_for_a_worker(start: Start) -> None:
    service = start(never)
    caller = service.caller(AT_ONCE)
    caller.submit(1, factor=1.0)
    caller.submit(2, factor=2.0)
    wait_until(lambda: len(service.wanted(AT_ONCE)) == 2)
    _, second = service.wanted(AT_ONCE)
    wait_until(lambda: service.executor.orders)
    service.find(second, AT_ONCE)
    result = caller.hear(wire.Result)
    assert (result.key, result.remote) == (second.key, True)
    (running,) = caller.report().running
    assert running.name == "pointwise"
    assert len(service.executor.orders) == 1


def test_an_entry_that_comes_after_its_compile_is_over_is_told_to_nobody(start: Start) -> None:
    service = start(compiled)
    caller = service.caller(AT_ONCE)
    caller.submit(1)
    assert not caller.hear(wire.Result).remote
    (wanted,) = service.wanted(AT_ONCE)
    service.find(wanted, AT_ONCE)
    caller.say(wire.Control("status"))
    assert isinstance(caller.hear(wire.Report, wire.Result), wire.Report)


def test_everybody_who_asked_meanwhile_is_answered_by_the_one_look_up(start: Start) -> None:
    service = start(never)
    caller = service.caller()
    caller.submit(1)
    caller.submit(2)
    caller.say(wire.Await([2]))
    (wanted,) = service.wanted()
    (remote,) = service.server._remotes._remotes.values()
    look_up = remote.asked[wanted.ticket]
    wait_until(lambda: len(look_up.askers) == 2)  # the second was not in the local store either
    service.find(wanted)
    assert {caller.hear(wire.Result).ticket for _ in range(2)} == {1, 2}
    assert caller.report().remote == 2


def test_what_is_withdrawn_while_a_remote_is_asked_is_neither_answered_nor_compiled(start: Start) -> None:
    service = start(compiled)
    caller = service.caller()
    caller.submit(1)
    (wanted,) = service.wanted()
    caller.say(wire.Await([], [1]))
    service.find(wanted)
    caller.say(wire.Control("status"))
    assert isinstance(caller.hear(wire.Report, wire.Result), wire.Report)
    assert not service.executor.orders


def test_what_was_said_to_be_there_and_is_gone_again_is_compiled(start: Start) -> None:
    service = start(compiled)
    caller = service.caller()
    caller.submit(1)
    (wanted,) = service.wanted()
    process = service.process()
    service.do(lambda: process.say(wire.LookedUp([wire.FoundRemotely(wanted.ticket)], [])))
    assert not caller.hear(wire.Result).remote
    assert len(service.executor.orders) == 1


def test_who_leaves_while_a_remote_is_asked_costs_nothing(start: Start) -> None:
    service = start(never)
    first, second = service.caller(), service.caller()
    first.submit(1)
    (wanted,) = service.wanted()
    first.socket.shutdown(socket.SHUT_RDWR)
    wait_until(lambda: len(second.report().clients) == 1)
    service.miss(wanted)
    assert second.report().running == []
    assert service.executor.orders == []


def test_two_clients_with_different_remotes_are_each_answered_by_their_own(start: Start, tmp_path: Path) -> None:
    service = start(never)
    mine, yours = service.caller(REMOTE), service.caller(OTHER, tmp_path / "yours")
    mine.submit(1)
    yours.submit(1)
    (wanted,) = service.wanted(REMOTE)
    (others,) = service.wanted(OTHER)
    assert wanted.key == others.key
    service.find(wanted, REMOTE)
    assert mine.hear(wire.Result).remote
    service.miss(others, OTHER)
    yours.hear(wire.Started)  # it is compiled for them


def test_who_joins_a_compile_has_its_own_remote_given_the_entry_too(start: Start) -> None:
    service = start(never)
    mine, yours = service.caller(REMOTE), service.caller(OTHER)
    mine.submit(1)
    service.miss(service.wanted(REMOTE)[0])
    wait_until(lambda: service.executor.orders)
    yours.submit(1)
    wait_until(lambda: yours.report().joined == 1)
    (order,) = service.executor.orders
    service.do(lambda: service.executor._happened(events.Finished(1, compiled(order), time.monotonic())))
    mine.hear(wire.Result)
    yours.hear(wire.Result)
    yours.report()
    for settings in (REMOTE, OTHER):
        offers = service.process(settings).asked(wire.Offer)
        assert [offer.key for offer in offers] == [order.key]


def test_what_nobody_vouches_for_is_looked_up_and_not_offered(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests_module, "unavailable", lambda: "")

    def sent(order: wire.Assign) -> wire.Finished:
        assert order.store == b""
        now = time.monotonic()
        data = entry(wire.Wanted(0, order.key, "kernel", order.request.digest()))
        return wire.Finished(stored=False, started=now, finished=now, entry=data)

    service = start(sent)
    caller = service.caller()
    caller.submit(1, vouched=False)
    (wanted,) = service.wanted()
    service.miss(wanted)
    assert not caller.hear(wire.Result).remote
    caller.report()
    assert DiskStore(service.cache).find(wanted.key) is not None
    assert service.process().asked(wire.Offer) == []
    caller.submit(2, vouched=False, factor=7.0)
    service.find(wait_until(lambda: service.wanted()[1:])[0])
    assert caller.hear(wire.Result).remote


def test_an_entry_that_comes_late_answers_what_nobody_vouches_for_too(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests_module, "unavailable", lambda: "")
    service = start(never)
    caller = service.caller(AT_ONCE)
    caller.submit(1, vouched=False)
    (wanted,) = service.wanted(AT_ONCE)
    wait_until(lambda: service.executor.orders)
    service.find(wanted, AT_ONCE)
    assert caller.hear(wire.Result, wire.Failed).remote


def test_what_nobody_is_left_to_wait_for_is_given_back(start: Start) -> None:
    service = start(never)
    caller, other = service.caller(CLAIMS), service.caller(CLAIMS)
    caller.submit(1)
    service.miss(service.claimed(1), CLAIMS)
    wait_until(lambda: service.executor.orders)
    other.submit(2, factor=7.0)
    queued = service.claimed(2)
    service.miss(queued, CLAIMS)
    other.socket.close()
    (disclaimed,) = wait_until(lambda: service.process(CLAIMS).asked(wire.Disclaim))
    assert disclaimed.key == queued.key


def test_what_nobody_vouches_for_is_not_claimed(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests_module, "unavailable", lambda: "")
    service = start(never)
    caller = service.caller(CLAIMS)
    caller.submit(1, vouched=False)
    (wanted,) = service.wanted(CLAIMS)
    service.miss(wanted, CLAIMS)
    wait_until(lambda: service.executor.orders)
    assert [each.lease for each in service.wanted(CLAIMS)] == [0.0]


def test_what_runs_in_the_background_is_asked_for_as_such_until_somebody_waits(start: Start) -> None:
    service = start(never)
    caller = service.caller()
    caller.submit(1, background=True)
    service.wanted()
    assert [message.background for message in service.process().asked()] == [True]
    look_up = next(iter(service.server._remotes._remotes[REMOTE].asked.values()))
    caller.say(wire.Await([1]))
    wait_until(lambda: not look_up.background)


def test_a_claim_lasts_for_as_long_as_its_own_compile_may_take(start: Start) -> None:
    service = start(compiled)
    caller = service.caller(CLAIMS)
    caller.submit(1)
    first = service.claimed(1)
    assert first.lease == claiming.LEASE_MARGIN * claiming.DEFAULT_ESTIMATE
    service.miss(first, CLAIMS)
    caller.hear(wire.Result)
    caller.submit(2, constants={"BLOCK": 512})
    assert service.claimed(2).lease == claiming.MIN_LEASE, "this kernel's compile took no time"


def test_who_has_no_remote_starts_no_process(start: Start) -> None:
    service = start(compiled)
    caller = service.caller(None)
    caller.submit(1)
    caller.hear(wire.Result)
    assert caller.report().remotes == []
    assert service.processes == []


def test_a_process_is_ready_before_anybody_asks(start: Start) -> None:
    service = start(never)
    caller = service.caller()
    caller.say(wire.Prepare(TOOLCHAIN, {}))
    service.process()


def test_a_remote_that_dies_in_the_middle_of_an_answer_costs_nothing_but_a_compile(start: Start) -> None:
    service = start(compiled)
    caller = service.caller()
    caller.submit(1)
    caller.submit(2, factor=3.0)
    wait_until(lambda: len(service.wanted()) == 2)
    service.find(service.wanted()[0])
    process = service.process()
    service.do(lambda: process.die("the remote process was killed by SIGKILL; its last words: none"))
    assert {caller.hear(wire.Result).remote for _ in range(2)} == {True, False}
    notice = caller.report()
    assert notice.remote == 1


def test_of_a_sweep_the_largest_configurations_are_compiled_first(start: Start) -> None:
    service = start(never)  # with one worker
    caller = service.caller(None)
    caller.submit(1, constants={"BLOCK": 64})
    wait_until(lambda: service.executor.orders)
    for number, block in enumerate((128, 512, 256), 2):
        caller.submit(number, constants={"BLOCK": block})
    wait_until(lambda: len(service.server._scheduler.jobs()) == 4)
    (running,) = service.executor.orders
    service.do(lambda: service.executor._happened(events.Finished(1, compiled(running), time.monotonic())))
    wait_until(lambda: len(service.executor.orders) == 2)
    assert service.executor.orders[1].request.constants == {"BLOCK": 512}


# Claims of those who leave, come again, or know nothing of claims


def left(service: Service, caller: Caller, other: Caller) -> None:
    """`caller` leaves, and `other` has seen it."""
    clients = len(other.report().clients)
    caller.socket.shutdown(socket.SHUT_RDWR)
    wait_until(lambda: len(other.report().clients) < clients)


def test_a_claim_of_somebody_who_left_is_no_other_job_s(start: Start) -> None:
    service = start(never)
    keeps, leaves = service.caller(None), service.caller(CLAIMS)
    leaves.submit(1)
    wanted = service.claimed(1)
    service.say(wire.Claimed([wanted.ticket], SLOW), CLAIMS)
    left(service, leaves, keeps)
    keeps.submit(1)  # the same kernel and folder, without remotes
    keeps.hear(wire.Started)
    service.find(wanted, CLAIMS)
    assert len(keeps.report().running) == 1, "the service goes on, and so does the compile"


def test_a_claim_that_is_joined_while_another_host_is_at_it_lets_others_be_claimed(start: Start) -> None:
    service = start(never)  # with one worker
    keeps, leaves = service.caller(None), service.caller(CLAIMS)
    for number in (1, 2):
        leaves.submit(number, factor=float(number))
    wanted = [service.claimed(1), service.claimed(2)]
    service.say(wire.Claimed([each.ticket for each in wanted], SLOW), CLAIMS)
    left(service, leaves, keeps)
    again = service.caller(CLAIMS)
    for number in (1, 2, 3):
        again.submit(number, factor=float(number))
    assert service.claimed(3).key not in {each.key for each in wanted}


def test_a_claim_that_is_settled_once_nobody_wants_it_is_given_back(start: Start) -> None:
    service = start(never)
    keeps, leaves = service.caller(None), service.caller(CLAIMS)
    leaves.submit(1)
    wanted = service.claimed(1)
    left(service, leaves, keeps)
    asked = len(service.process(CLAIMS).asked(wire.Disclaim))  # which came before the claim, and gave nothing back
    service.miss(wanted, CLAIMS)
    assert service.process(CLAIMS).asked(wire.Disclaim)[asked:] == [wire.Disclaim(wanted.key)]


def test_a_claim_that_comes_late_and_fails_here_is_given_back(start: Start) -> None:
    service = start(lambda order: wire.Failure("source", "it is wrong"))
    settings = msgspec.structs.replace(CLAIMS, deadline=1e-9)
    caller = service.caller(settings)
    caller.submit(1)
    caller.hear(wire.Failed)
    (claim,) = wait_until(lambda: [each for each in service.wanted(settings) if each.lease])
    asked = len(service.process(settings).asked(wire.Disclaim))
    service.miss(claim, settings)
    assert service.process(settings).asked(wire.Disclaim)[asked:] == [wire.Disclaim(claim.key)]


def test_who_knows_nothing_of_claims_waits_for_no_other_host(start: Start) -> None:
    service = start(never)
    claims, plain = service.caller(CLAIMS), service.caller(None)
    claims.submit(1)
    wanted = service.claimed(1)
    service.say(wire.Claimed([wanted.ticket], SLOW), CLAIMS)
    plain.submit(1)
    plain.hear(wire.Started)
    assert [order.key for order in service.executor.orders] == [wanted.key]


def test_a_claim_is_kept_while_another_job_of_this_host_is_at_it(start: Start, tmp_path: Path) -> None:
    service = start(never)
    stays, leaves = service.caller(CLAIMS), service.caller(CLAIMS, tmp_path / "another folder")
    stays.submit(1)
    wanted = service.claimed(1)
    service.miss(wanted, CLAIMS)
    wait_until(lambda: service.executor.orders)
    leaves.submit(1)
    again = service.claimed(2)
    assert again.key == wanted.key
    service.say(wire.Claimed([again.ticket], SLOW), CLAIMS)
    left(service, leaves, stays)
    assert service.process(CLAIMS).asked(wire.Disclaim) == []


def test_slow_claims_do_not_have_look_ups_waited_for_less(start: Start) -> None:
    service = start(never)
    settings = msgspec.structs.replace(CLAIMS, deadline=1e-9)
    caller = service.caller(settings)
    caller.submit(1)
    plain, claim = wait_until(lambda: service.wanted(settings)[1:] and service.wanted(settings))
    wait_until(lambda: service.executor.orders)
    remote = service.server._remotes._remotes[settings]
    assert (plain.lease, claim.lease > 0, remote.lates) == (0.0, True, 1), "the claim was late, too"
