"""Sources of torch.compile's at the client's end of the socket: when they are sent, again, and what they hear."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from headstart import wire
from headstart.client.async_compile import AsyncCompile
from headstart.client.client import Client
from headstart.client.connection import ServiceConnection
from headstart.client.policy import Policy
from headstart.errors import CompileError, CompilerCrashed, HeadstartError, ServiceError
from headstart.model.request import CompileRequest
from headstart.model.toolchain import Toolchain

PATIENCE = 20.0  # seconds
TOOLCHAIN = Toolchain("python", "3.11", "/triton", "3.9", ())
SPEC = wire.DescriberSpec(TOOLCHAIN, "stamp", ())
COMPILED = wire.JobOutcome(3, wire.Result(0, "entry", started=1.5, finished=2.5))


class Scripted:
    """A service that says what the test says; see `headstart.client.launch.Launched`."""

    shared = False
    status = -9

    def __init__(self) -> None:
        self.socket, self.theirs = socket.socketpair()
        self.theirs.settimeout(PATIENCE)
        self.pid = 0
        self._deframer = wire.Deframer(wire.FromClient)
        self._heard: list[Any] = []

    def last_words(self) -> str:
        return "the last words"

    def end(self, timeout: float) -> None:
        self.socket.close()
        self.theirs.close()

    def forget(self) -> None:
        self.socket.close()

    def say(self, message: Any) -> None:
        self.theirs.sendall(wire.frame(message))

    def hear(self, kind: type, number: int = 1) -> list[Any]:
        """The first messages of a kind that this one hears."""
        while len(found := [message for message in self._heard if isinstance(message, kind)]) < number:
            self._hear_more()
        return found[:number]

    def hear_that_somebody_waits_for(self, ticket: int) -> list[Any]:
        """What this one has heard by the time it hears that."""
        while not (places := [at for at, message in enumerate(self._heard) if _is_wait(message, ticket)]):
            self._hear_more()
        return self._heard[: places[0]]

    def _hear_more(self) -> None:
        self._heard += self._deframer.feed(self.theirs.recv(1 << 16))


def _is_wait(message: Any, ticket: int) -> bool:
    return isinstance(message, wire.Await) and ticket in message.tickets


class Taker:
    """Notes what it is told of its source."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.sent_by: list[str] = []
        self.refusal: ServiceError | None = None

    def message(self, ticket: int) -> wire.SubmitSource:
        self.sent_by.append(threading.current_thread().name)
        if self.refusal is not None:
            raise self.refusal
        return wire.SubmitSource(ticket, SPEC, b"question", "stem", "", True, None)

    def located(self, has_recipe: bool) -> None:
        self.heard.append(has_recipe)

    def compiled(self, message: wire.SourceCompiled) -> None:
        self.heard.append(message)

    def added(self, message: wire.AddedCompiled) -> None:
        self.heard.append(message)

    def failed(self, error: HeadstartError) -> None:
        self.heard.append(error)


class World:
    def __init__(self) -> None:
        self.services: list[Scripted] = []
        self.may_start = threading.Event()
        self.may_start.set()
        self.connection = ServiceConnection(self._launch, lambda request: "", wire.Preferences(b"/cache"))
        self.policy = Policy(find=lambda: TOOLCHAIN)

    def _launch(self) -> Scripted:
        assert self.may_start.wait(PATIENCE)
        self.services.append(Scripted())
        return self.services[-1]

    def submit(self, taker: Taker) -> Any:
        return self.connection.submit_source("triton_kernel", self.policy, taker)

    def service(self, number: int = 0) -> Scripted:
        until(lambda: len(self.services) > number)
        return self.services[number]


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.connection.close()


def test_what_the_service_is_told_is_made_in_the_connections_thread(world: World) -> None:
    taker = Taker()
    kickoff = world.submit(taker)
    (message,) = world.service().hear(wire.SubmitSource)
    assert message.ticket == kickoff.ticket
    again = Taker()
    world.submit(again)  # there is a connection by now
    world.service().hear(wire.SubmitSource, 2)
    assert taker.sent_by == again.sent_by == ["headstart"]


def test_that_somebody_waits_is_said_after_what_for(world: World) -> None:
    world.may_start.clear()
    first = world.submit(Taker())
    first.want()
    world.may_start.set()
    service = world.service()
    service.hear_that_somebody_waits_for(first.ticket)
    second = world.submit(Taker())
    second.want()
    for kickoff in (first, second):
        before = service.hear_that_somebody_waits_for(kickoff.ticket)
        assert [each for each in before if isinstance(each, wire.SubmitSource) and each.ticket == kickoff.ticket]


def test_a_source_that_cannot_be_told_fails_alone(world: World) -> None:
    broken, good = Taker(), Taker()
    broken.refusal = ServiceError("no plain data")
    world.submit(broken)
    world.submit(good)
    world.service().hear(wire.SubmitSource)
    assert broken.heard == [broken.refusal]
    assert good.heard == []


def test_the_answer_is_there_once_what_rescaling_adds_is(world: World) -> None:
    taker = Taker()
    kickoff = world.submit(taker)
    service = world.service()
    (message,) = service.hear(wire.SubmitSource)
    first = wire.SourceCompiled(message.ticket, "key", b"recipe", [COMPILED], has_more=True)
    second = wire.AddedCompiled(message.ticket, [COMPILED])
    service.say(wire.SourceLocated(message.ticket, True))
    service.say(wire.Started(message.ticket, 1, 1.5))
    until(lambda: world.connection.in_flight() == [kickoff])
    service.say(first)
    until(lambda: len(taker.heard) == 2)
    assert not kickoff.answer.done()
    assert world.connection.in_flight() == []
    service.say(second)
    kickoff.answer.result(PATIENCE)
    assert taker.heard == [True, first, second]


def test_without_rescaling_one_message_is_the_answer(world: World) -> None:
    taker = Taker()
    kickoff = world.submit(taker)
    service = world.service()
    (message,) = service.hear(wire.SubmitSource)
    service.say(wire.SourceCompiled(message.ticket, "key", b"recipe", [COMPILED]))
    kickoff.answer.result(PATIENCE)


def test_why_a_source_has_no_answer_is_told(world: World) -> None:
    taker = Taker()
    kickoff = world.submit(taker)
    service = world.service()
    (message,) = service.hear(wire.SubmitSource)
    service.say(wire.Failed(message.ticket, wire.Failure("service", "it does not import")))
    assert str(kickoff.answer.exception(PATIENCE)) == "it does not import"
    assert [str(error) for error in taker.heard] == ["it does not import"]


def test_after_a_death_of_the_service_sources_are_asked_for_again_what_rescaling_adds_too(world: World) -> None:
    pending, half, done = Taker(), Taker(), Taker()
    kickoffs = [world.submit(taker) for taker in (pending, half, done)]
    service = world.service()
    service.hear(wire.SubmitSource, 3)
    service.say(wire.SourceCompiled(kickoffs[1].ticket, "key", b"recipe", [COMPILED], has_more=True))
    service.say(wire.SourceCompiled(kickoffs[2].ticket, "key", b"recipe", [COMPILED]))
    kickoffs[2].answer.result(PATIENCE)
    kickoffs[0].want()
    service.theirs.close()
    again = world.service(1)
    assert [message.ticket for message in again.hear(wire.SubmitSource, 2)] == [each.ticket for each in kickoffs[:2]]
    again.hear_that_somebody_waits_for(kickoffs[0].ticket)
    again.say(wire.SourceCompiled(kickoffs[1].ticket, "key", b"recipe", [COMPILED], has_more=True))
    again.say(wire.AddedCompiled(kickoffs[1].ticket, [COMPILED]))
    kickoffs[1].answer.result(PATIENCE)
    assert len(half.heard) == 3


def test_a_source_that_was_compiled_at_two_deaths_of_the_service_is_the_suspect(world: World) -> None:
    taker, other = Taker(), Taker()
    kickoff, waiting = world.submit(taker), world.submit(other)
    for number in range(2):
        service = world.service(number)
        service.hear(wire.SubmitSource, 2)
        service.say(wire.Started(kickoff.ticket, 1, 1.5))
        until(lambda: kickoff in world.connection.in_flight())
        service.theirs.close()
    error = kickoff.answer.exception(PATIENCE)
    assert isinstance(error, CompilerCrashed)
    assert "triton_kernel" in str(error)
    assert taker.heard == [error]
    assert [message.ticket for message in world.service(2).hear(wire.SubmitSource)] == [waiting.ticket]


def test_services_that_die_before_they_have_answered_anything_are_given_up(world: World) -> None:
    taker = Taker()
    kickoff = world.submit(taker)
    for number in range(2):
        service = world.service(number)
        service.hear(wire.SubmitSource)
        service.say(wire.SourceLocated(kickoff.ticket, False))  # which is no answer
        until(lambda number=number: len(taker.heard) > number)
        service.theirs.close()
    error = kickoff.answer.exception(PATIENCE)
    assert isinstance(error, ServiceError)
    assert not isinstance(error, CompileError)
    assert "died 2 times in a row" in str(error)


def test_a_fork_asks_for_what_it_waits_for_by_itself(world: World) -> None:
    taker = Taker()
    kickoff = world.submit(taker)
    world.service().hear(wire.SubmitSource)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            kickoff.want()
            service = world.service(1)
            (message,) = service.hear(wire.SubmitSource)
            service.say(wire.SourceCompiled(message.ticket, "key", b"recipe", [COMPILED]))
            kickoff.answer.result(PATIENCE)
            os.write(write, repr([type(each).__name__ for each in taker.heard]).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as told:
        assert told.read() == "['SourceCompiled']"
    assert os.waitpid(child, 0)[1] == 0
    assert taker.heard == []
    assert not kickoff.answer.done()


# What an AsyncCompile makes of the compiles of a source


REQUEST = CompileRequest.make("kernel", "def kernel(): pass", signature={"x": "*fp32"}, target="cuda:90")


def test_a_compile_that_the_service_did_as_part_of_a_source_counts_as_any_other() -> None:
    made: list[CompileRequest] = []
    wanted: list[bool] = []

    def make() -> CompileRequest:
        made.append(REQUEST)
        return REQUEST

    with AsyncCompile("cuda:90", client=(client := Client()), policy=Policy(), start=False) as compiler:
        future, delivered = compiler.expect("kernel", make, use_store=True, want=lambda: wanted.append(True))
        assert not future.done()
        future.want()
        assert wanted == [True]
        delivered.settle(COMPILED)
        assert future.done()
        failing, failed = compiler.expect("kernel", make, use_store=True, want=lambda: None)
        assert made == []  # nobody has needed one
        failed.settle(wire.JobOutcome(-1, wire.Failed(0, wire.Failure("source", "no such function"))))
        error = failing.exception(PATIENCE)
        assert isinstance(error, CompileError)
        assert "no such function" in str(error)
        statistics = compiler.statistics
        assert (statistics.compiled, statistics.failed, statistics.requested) == (1, 1, 2)
        assert [(span.worker, span.started) for span in compiler.timeline] == [(3, 1.5), (-1, None)]
    client.close()
