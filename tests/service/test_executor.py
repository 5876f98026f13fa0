"""The contract of executors, held by the one that compiles and by one that does not; and a service on the latter."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from fake_executor import FakeExecutor, echo

from conftest import PATIENCE
from headstart import wire
from headstart.model.request import CompileRequest
from headstart.model.toolchain import Toolchain, find_toolchain
from headstart.service import actions, events
from headstart.service.executor import Executor
from headstart.service.lookup import Lookup
from headstart.service.loop import Loop
from headstart.service.process_pool import ProcessPool
from headstart.service.queue import Job, Kind, Urgency
from headstart.service.results import CompilePayload
from headstart.service.runtime import Workplace
from headstart.service.server import Server
from headstart.wire.config import Config
from kernels import TOOLCHAIN, pointwise

KEY = "ab" * 32


class Stage:
    """An executor, and what it says."""

    def __init__(self, make: Callable[[Loop, Callable[[Any], None]], Executor]) -> None:
        self.loop = Loop()
        self.events: list[Any] = []
        self.executor = make(self.loop, self.events.append)

    def do(self, *what: actions.ForExecutor) -> None:
        for action in what:
            self.executor.carry_out(action)

    def until(self, kind: type) -> Any:
        """The next event of a kind."""
        deadline = time.monotonic() + PATIENCE
        while not (found := [event for event in self.events if isinstance(event, kind)]):
            assert time.monotonic() < deadline, self.events
            self.loop.flush()
            self.loop.once(0.05)
            self.executor.look_around()
        self.events.remove(found[0])
        return found[0]

    def worker(self, kind: Kind, number: int = 1) -> None:
        self.do(actions.StartZygote(kind))
        self.until(events.ZygoteReady)
        self.do(actions.Fork(number, kind))
        assert self.until(events.WorkerForked).worker == number


@pytest.fixture(params=[pytest.param("process pool", marks=pytest.mark.triton), "fake"])
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    with contextlib.ExitStack() as held:
        if request.param == "fake":
            stage = Stage(lambda loop, told: FakeExecutor(loop, told, usable=lambda kind: "no such" not in repr(kind)))
        else:
            workplace = held.enter_context(contextlib.closing(Workplace()))
            before = {child.pid for child in psutil.Process().children()}
            stage = Stage(lambda loop, told: ProcessPool(loop, told, workplace, lambda: before))
        yield stage
        stage.executor.end()
        assert not stage.executor.workers


@pytest.fixture(scope="module")
def kind() -> Kind:
    return Kind((find_toolchain(), 0), ())


def job(kind: Kind, **how: Any) -> Job:
    request = CompileRequest.make(**pointwise(**how), target="cuda:90")
    preferences = wire.Preferences(b"/no/such/folder")
    return Job(KEY, kind, Urgency.EARLY, CompilePayload(KEY, "cd" * 32, request, False, preferences, "", False))


def test_a_worker_is_forked_says_how_its_job_went_and_leaves_when_it_is_told(stage: Stage, kind: Kind) -> None:
    stage.worker(kind)
    assert list(stage.executor.workers) == [1]
    assert stage.executor.workers[1].pid > 0
    before = time.monotonic()
    stage.do(actions.Assign(1, job(kind)))
    assert stage.executor.workers[1].started >= before
    finished = stage.until(events.Finished)
    assert finished.worker == 1
    assert isinstance(finished.outcome, wire.Finished)
    assert finished.outcome.entry
    assert len(stage.executor.memory()) == 1
    stage.do(actions.Retire(1))
    gone = stage.until(events.WorkerGone)
    assert (gone.worker, gone.status) == (1, 0)
    assert not stage.executor.workers


def test_a_worker_that_is_killed_is_reported_gone(stage: Stage, kind: Kind) -> None:
    stage.worker(kind)
    stage.do(actions.Kill(1))
    gone = stage.until(events.WorkerGone)
    assert (gone.worker, gone.status) == (1, -9)
    assert not stage.executor.workers


def test_a_toolchain_that_cannot_be_used_is_reported_and_no_worker_comes_of_it(stage: Stage, kind: Kind) -> None:
    assert isinstance(kind.toolchain, tuple)
    toolchain = msgspec.structs.replace(kind.toolchain[0], python="/no such python")
    broken = Kind((toolchain, 0), ())
    stage.do(actions.StartZygote(broken))
    assert stage.until(events.ZygoteUnable).kind == broken
    stage.do(actions.Fork(1, broken))  # decided before the scheduler heard of it
    assert not stage.executor.workers


def test_the_workers_of_a_zygote_that_is_ended_go_without_a_word(stage: Stage, kind: Kind) -> None:
    other = with_debug(kind)
    stage.worker(kind, 1)
    stage.worker(other, 2)
    stage.do(actions.EndZygote(kind))
    assert list(stage.executor.workers) == [2]
    assert stage.events == []


def with_debug(kind: Kind) -> Kind:
    return kind._replace(environment=(("TRITON_DEBUG", "1"),))


def test_a_fork_that_fails_at_once_is_reported(kind: Kind, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with contextlib.closing(Workplace()) as workplace:
        stage = Stage(lambda loop, told: ProcessPool(loop, told, workplace, lambda: set()))
        stage.executor._zygotes[kind] = None  # type: ignore[attr-defined]

        def refuse(name: str) -> Path:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(workplace, "new_folder", refuse)
        stage.do(actions.Fork(1, kind))
        assert stage.until(events.ForkFailed).worker == 1
        assert not stage.executor.workers


# A service whose executor is another one


class Caller:
    """A client, as far as the wire goes."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.socket.settimeout(PATIENCE)
        self._messages = wire.receive_blocking(self.socket, wire.Deframer(wire.FromService))
        self.say(wire.Hello(wire.PROTOCOL, wire.Preferences(b"/no/such/folder")))
        assert isinstance(next(self._messages), wire.Welcome)

    def say(self, message: msgspec.Struct) -> None:
        self.socket.sendall(wire.frame(message))

    def hear(self, kind: type) -> Any:
        return next(message for message in self._messages if isinstance(message, kind))

    def submit(self, ticket: int, **how: Any) -> None:
        request = CompileRequest.make(**pointwise(**how), target="cuda:90")
        self.say(wire.Submit(ticket, TOOLCHAIN, request, use_store=False, vouched=True))


@contextlib.contextmanager
def service(outcome: Any = echo) -> Iterator[tuple[Server, Caller, list[FakeExecutor]]]:
    """A service in a thread of this process, on executors that compile nothing."""
    mine, theirs = socket.socketpair()
    made: list[FakeExecutor] = []

    def make(*arguments: Any) -> FakeExecutor:
        made.append(FakeExecutor(*arguments, outcome=outcome))
        return made[-1]

    server = Server(Config(workers=2, client=theirs.detach()), make)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server, Caller(mine), made
    finally:
        mine.close()
        thread.join(PATIENCE)
        assert not thread.is_alive()


@pytest.fixture
def known_toolchain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Toolchain, "digest", lambda self, environment, memory: "ef" * 32)


@pytest.mark.usefixtures("known_toolchain")
def test_a_service_gives_each_client_what_another_executor_makes() -> None:
    with service() as (_, caller, (executor,)):
        caller.submit(1)
        caller.submit(2, factor=3.0)
        results = [caller.hear(wire.Result) for _ in range(2)]
        assert {result.ticket for result in results} == {1, 2}
        assert sorted(result.entry.decode() for result in results) == sorted(order.key for order in executor.orders)


@pytest.mark.usefixtures("known_toolchain")
def test_what_is_awaited_while_it_is_looked_up_is_awaited_once_it_is_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    may_go_on = threading.Event()
    find = Lookup.find

    def slow(*arguments: Any, **how: Any) -> Any:
        may_go_on.wait(PATIENCE)
        return find(*arguments, **how)

    monkeypatch.setattr(Lookup, "find", slow)
    with service(lambda order: None) as (server, caller, _):
        caller.submit(1)
        caller.say(wire.Await([1]))
        caller.say(wire.Control("status"))
        assert caller.hear(wire.Report).requests == 1  # it answers while it looks up
        may_go_on.set()
        caller.hear(wire.Started)
        caller.say(wire.Control("status"))
        assert caller.hear(wire.Report).running[0].clients == 1
        (running,) = server._scheduler.jobs()
        assert running.urgency is Urgency.AWAITED


@pytest.mark.usefixtures("known_toolchain")
def test_who_leaves_while_its_request_is_looked_up_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    looking, may_go_on = threading.Event(), threading.Event()
    find = Lookup.find

    def slow(*arguments: Any, **how: Any) -> Any:
        looking.set()
        may_go_on.wait(PATIENCE)
        return find(*arguments, **how)

    monkeypatch.setattr(Lookup, "find", slow)
    with service() as (_, caller, (executor,)):
        caller.submit(1)
        assert looking.wait(PATIENCE)
        caller.socket.shutdown(socket.SHUT_RDWR)
        may_go_on.set()
    assert executor.orders == []


@pytest.mark.usefixtures("known_toolchain")
def test_a_service_shows_its_latest_events() -> None:
    with service() as (_, caller, _):
        caller.submit(1)
        caller.hear(wire.Result)
        caller.say(wire.Control("events"))
        told = caller.hear(wire.Events)
        names = [event.event.split()[0] for event in told.events]
        assert [name for name in names if name in ("Requested", "ZygoteReady", "WorkerForked", "Finished")] == [
            "Requested",
            "ZygoteReady",
            *["WorkerForked"] * names.count("WorkerForked"),
            "Finished",
        ]
        assert all(event.at <= told.now for event in told.events)
