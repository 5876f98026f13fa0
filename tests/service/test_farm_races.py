"""A whole service with a bridge and an executor that are fakes: what is lent, and whichever is first wins, once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest
from test_executor import TOOLCHAIN
from test_farms import FakeProcess
from test_remote_races import CLAIMS, Caller, Service, never
from test_remotes import FakeProcess as FakeRemote

from conftest import wait_until
from entries import packed
from headstart import wire
from headstart.model.request import CompileRequest
from headstart.model.toolchain import Toolchain
from headstart.service import events
from headstart.service import farms as farms_module
from headstart.service import remotes as remotes_module
from headstart.stores.disk import DiskStore
from kernels import pointwise

RAY = wire.FarmSettings("ray")
DIGEST = "ef" * 32


class Lending(Service):
    """A service whose clients have a farm, and one worker here that never ends a compile."""

    farm = RAY

    def __init__(self, cache: Path) -> None:
        self.bridges: list[FakeProcess] = []
        super().__init__(cache, never)

    @property
    def bridge(self) -> FakeProcess:
        return self.bridges[-1]

    def tell(self, message: msgspec.Struct) -> None:
        self.do(lambda: self.bridge.say(message))

    def offer(self, idle: int, room: int | None = None) -> None:
        self.tell(wire.FarmState(0, {DIGEST: idle}, {DIGEST: idle if room is None else room}, 0.01))

    def lent(self, many: int = 1) -> list[wire.LentJob]:
        """Once so many have been."""

        def found() -> list[wire.LentJob]:
            jobs = [job for message in self.bridge.sent if isinstance(message, wire.Lend) for job in message.jobs]
            return jobs if len(jobs) >= many else []

        return wait_until(found)

    def taken_back(self) -> list[int]:
        """Not because it was late."""
        said = [each for each in self.bridge.sent if isinstance(each, wire.TakeBack) and not each.late]
        return [ticket for each in said for ticket in each.tickets]

    def make(self, job: wire.LentJob, seconds: float = 0.1) -> None:
        """A node has made it, and the bridge has put it into the store."""
        data = packed(job.key, job.request_digest, compile_wall_s=seconds)
        DiskStore(self.cache).publish(job.key, [data])
        self.tell(wire.Made([wire.MadeEntry(job.ticket, "node", sha256(data).digest())]))


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lending]:
    monkeypatch.setattr(Toolchain, "digest", lambda self, environment, memory: DIGEST)
    made: list[Lending] = []

    def bridge(*arguments: Any) -> FakeProcess:
        made[0].bridges.append(FakeProcess(*arguments))
        return made[0].bridge

    def remote(*arguments: Any) -> FakeRemote:
        made[0].processes.append(FakeRemote(*arguments))
        return made[0].processes[-1]

    monkeypatch.setattr(farms_module, "BridgeProcess", bridge)
    monkeypatch.setattr(remotes_module, "RemoteProcess", remote)
    made.append(Lending(tmp_path / "cache"))
    yield made[0]
    made[0].close()


def busy(service: Lending) -> Caller:
    """The one worker here is at something that may not go out, until `idle`. Returns who wants that."""
    caller = service.caller(None)
    request = CompileRequest.make(**pointwise(name="local"), target="cuda:90")
    caller.say(wire.Submit(1, TOOLCHAIN, request, use_store=False, vouched=True))
    caller.hear(wire.Started)
    return caller


def idle(service: Lending) -> None:
    """It has ended."""
    now = time.monotonic()
    done = wire.Finished(stored=False, started=now, finished=now, entry=b"entry")
    service.do(lambda: service.server._engine.happened(events.Finished(1, done, now)))


def test_what_a_farm_makes_answers_its_client_and_is_counted(service: Lending) -> None:
    caller = busy(service)
    service.offer(1)
    caller.submit(2)
    (job,) = service.lent()
    service.make(job)
    assert caller.hear(wire.Result).key == job.key
    assert caller.report().farm == 1


def test_what_a_worker_here_takes_back_does_not_begin_on_the_farm_as_well(service: Lending) -> None:
    caller = busy(service)
    service.offer(1)
    caller.submit(2)
    (job,) = service.lent()
    idle(service)
    assert wait_until(service.taken_back) == [job.ticket]
    assert [order.key for order in service.executor.orders][1:] == [job.key]


def test_a_bridge_that_died_is_started_again_for_jobs_that_wait(
    service: Lending, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(farms_module, "REST", 0.05)
    caller = busy(service)
    caller.submit(2)
    caller.report()
    assert len(service.bridges) == 1
    service.do(lambda: service.bridge.die("the bridge to the farm has lost its cluster"))
    wait_until(lambda: len(service.bridges) == 2)
    service.offer(1)
    assert len(service.lent()) == 1


def test_how_long_a_compile_took_on_the_farm_is_how_long_the_next_of_its_kernel_is_thought_to_take(
    service: Lending,
) -> None:
    caller = busy(service)
    service.offer(1)
    caller.submit(2)
    (job,) = service.lent()
    service.make(job, 17.0)
    caller.hear(wire.Result)
    service.offer(1)
    caller.submit(3, constants={"BLOCK": 256})
    assert service.lent(2)[1].estimate == 17.0


def test_what_hosts_share_is_claimed_first_then_lent_and_then_offered_to_them(service: Lending) -> None:
    busy(service)
    caller = service.caller(CLAIMS)
    service.offer(1)
    caller.submit(2)
    claim = service.claimed(1)
    assert not [message for message in service.bridge.sent if isinstance(message, wire.Lend)]
    service.miss(claim, CLAIMS)
    (job,) = service.lent()
    assert job.key == claim.key
    service.make(job)
    caller.hear(wire.Result)
    (offer,) = wait_until(lambda: service.process(CLAIMS).asked(wire.Offer))
    assert offer.key == claim.key
    assert not service.process(CLAIMS).asked(wire.Disclaim)


def test_what_another_host_makes_is_not_lent(service: Lending) -> None:
    busy(service)
    caller = service.caller(CLAIMS)
    service.offer(1)
    caller.submit(2)
    caller.submit(3, factor=3.0)
    first = service.claimed(1)
    service.say(wire.Claimed([first.ticket], 3600.0), CLAIMS)
    second = service.claimed(2)
    service.miss(second, CLAIMS)
    assert [job.key for job in service.lent()] == [second.key]


def test_who_joins_what_is_claimed_and_lent_and_knows_of_no_claims_leaves_it_there(service: Lending) -> None:
    plain = busy(service)
    caller = service.caller(CLAIMS)
    service.offer(1)
    caller.submit(2)
    service.miss(service.claimed(1), CLAIMS)
    (job,) = service.lent()
    service.tell(wire.Begun([job.ticket]))
    plain.submit(2)
    assert plain.report().joined == 1
    idle(service)
    plain.hear(wire.Result)
    service.make(job)
    assert {caller.hear(wire.Result).key, plain.hear(wire.Result).key} == {job.key}
    assert len(service.executor.orders) == 1, "only that which keeps the worker busy"


def test_what_is_compiled_confined_is_taken_back_too_though_no_such_worker_ever_idles(service: Lending) -> None:
    caller = busy(service)
    service.offer(1)
    caller.submit(2, vouched=False)
    (job,) = service.lent()
    idle(service)
    assert wait_until(service.taken_back) == [job.ticket]
