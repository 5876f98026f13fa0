"""Sources of torch.compile's in a service: one message in, one compile per configuration, few answers out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from test_executor import TOOLCHAIN as ANY_TOOLCHAIN
from test_executor import service as running_service

from headstart import wire
from headstart.describe.recipe import (
    AddedJobs,
    Describe,
    Described,
    Function,
    Recipe,
    RecipeJob,
    Rescale,
    Undescribed,
)
from headstart.errors import ServiceError
from headstart.model.request import CompileRequest
from headstart.model.toolchain import Toolchain
from headstart.service.describers import DescriberKind, Describers
from headstart.service.errands import Errands
from headstart.service.loop import Loop
from headstart.service.recipes import Found
from headstart.service.sources import Sources

PATIENCE = 20.0  # seconds
TEXT = "def triton_kernel(): pass"
SPEC = wire.DescriberSpec(Toolchain("python", "3.11", "/triton", "3.9", ()), "stamp", ())
encode = msgspec.msgpack.encode
REFUSED = wire.Failure("compile", "PTXASError: too much", stage="cubin")


def job(number: int, **changes: Any) -> RecipeJob:
    made = RecipeJob(
        key=f"job {number}",
        hash=f"{number:064x}",
        name="triton_kernel",
        signature={"x": "*fp32"},
        constants={"dict": [[{"tuple": [1]}, number]]},
        attrs={"dict": []},
        options={"num_warps": 4},
        target="cuda:90:32",
        config=None,
    )
    return msgspec.structs.replace(made, **changes)


def recipe(*jobs: RecipeJob, may_scale: bool = False, text: str = TEXT) -> Recipe:
    function = Function("triton_kernel", "module", "triton_kernel", ["x"], [], "a" * 64, TEXT, "triton_kernel")
    return Recipe("stem", text, 0, {"dict": []}, function, list(jobs), may_scale, 0.1)


class Service:
    """Sources with fakes around them: what is asked of each is noted, and answered by the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.loop = Loop()
        self.errands = Errands(self.loop)
        self.told: list[tuple[int, Any]] = []
        self.submits: list[tuple[int, wire.Submit]] = []
        self.awaited: list[int] = []
        self.questions: list[tuple[int, Any, Callable[[bytes | wire.Failure], None]]] = []
        self.kept: dict[str, Any] = {}
        self.known: Any = None  # what the store has, or what it raises
        self.known_added: list[RecipeJob] | None = None
        self.awake = True
        self.looked_up: list[tuple[str, Callable[[wire.FoundRemotely | None], None]]] = []
        self.offered: list[str] = []
        self.preferences = wire.Preferences(b"/cache")
        remotes: Any = SimpleNamespace(look_up=self.look_up, offer=self.offer)
        self.sources = Sources(self, self, self, self, self.errands, remotes)  # type: ignore[arg-type]
        self.requests = SimpleNamespace(submit=self.submit_one, awaited=self.await_one)
        self.sources._requests = self.requests  # type: ignore[assignment]

    # Sessions
    def tell(self, client: int, message: Any) -> None:
        self.told.append((client, message))

    # Describers
    def is_awake(self, kind: DescriberKind) -> bool:
        return self.awake

    def ask(
        self, client: int, kind: DescriberKind, body: bytes, answered: Callable[[bytes | wire.Failure], None]
    ) -> None:
        self.questions.append((client, msgspec.msgpack.decode(body, type=Describe | Rescale), answered))

    # Recipes
    def find(self, asked: wire.SubmitSource, described: Describe, preferences: Any) -> Found:
        if isinstance(self.known, Exception):
            raise self.known
        return self.known or Found("key")

    def added(self, asked: Any, described: Any, recipe: Any, counts: Any, preferences: Any) -> Any:
        return f"added for {counts}", self.known_added

    def keep(self, key: str, asked: Any, described: Any, content: Any, preferences: Any) -> bytes:
        self.kept[key] = content
        return b"digest"

    def sought(self, key: str, preferences: Any) -> str:
        return key

    # Remotes
    def look_up(
        self, settings: Any, sought: str, answered: Callable[[wire.FoundRemotely | None], None], *, background: bool
    ) -> None:
        self.looked_up.append((sought, answered))

    def offer(self, settings: Any, sought: str, sha256: bytes) -> None:
        assert sha256 == b"digest"
        self.offered.append(sought)

    def made_known(
        self, result: wire.Result, request: CompileRequest, place: wire.TritonCache, preferences: Any
    ) -> wire.Result:
        return msgspec.structs.replace(result, in_triton_cache=place is not None, registers=99)

    # Requests
    def submit_one(self, session: Any, submit: wire.Submit) -> None:
        self.submits.append((session.number, submit))

    def await_one(self, session: Any, ticket: int) -> None:
        self.awaited.append(ticket)

    # What a test does

    def begin(
        self,
        client: int = 1,
        ticket: int = 7,
        *,
        use_store: bool = True,
        torch: str = "torch",
        fan_out: bool = True,
        device: int | None = None,
        background: bool = False,
    ) -> Any:
        session: Any = SimpleNamespace(number=client, preferences=self.preferences)
        described = Describe("triton_kernel", TEXT, {}, None, {"TRITON_DEBUG": "1"}, {})
        cache = "" if background else str(self.folder / "triton")
        where = wire.FanOut(str(self.folder / "ab" / "stem.py"), device, cache, True) if fan_out else None
        asked = wire.SubmitSource(
            ticket, SPEC, encode(described), "stem", torch, use_store, where, background=background
        )
        self.sources.expect(session, asked)
        self.sources.submit(session, asked, DescriberKind(SPEC, 0))
        self.settle()
        return session

    def settle(self) -> None:
        """Have the errands done that there are, and those that they lead to."""
        deadline = time.monotonic() + PATIENCE
        for _ in range(3):
            done: list[bool] = []
            self.errands.do(lambda: True, done.append)
            while not done:
                assert time.monotonic() < deadline
                self.loop.once(0.1)

    def answer(self, message: Any, number: int = -1) -> None:
        """The describer answers one of the questions."""
        self.questions[number][2](message if isinstance(message, wire.Failure) else encode(message))
        self.settle()

    def finish(self, index: int, *, failure: wire.Failure | None = None, **result: Any) -> None:
        """One of the compiles is over."""
        client, submit = self.submits[index]
        given = {"in_triton_cache": True, "registers": 32, "key": f"entry {index}", **result}
        answer = wire.Failed(submit.ticket, failure) if failure else wire.Result(submit.ticket, **given)
        self.sources.tell(client, answer)
        self.settle()

    def answers(self, kind: type, client: int = 1) -> list[Any]:
        return [message for who, message in self.told if who == client and isinstance(message, kind)]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path)
    yield made
    made.errands.close()


def test_a_source_is_described_kept_and_compiled_configuration_by_configuration(service: Service) -> None:
    service.begin()
    assert isinstance(service.questions[0][1], Describe)
    made = recipe(job(1), job(2))
    service.answer(Described(made))
    assert service.kept == {"key": made}
    requests = [submit.request for _, submit in service.submits]
    assert [request.constants for request in requests] == [{"#1": 1}, {"#1": 2}]
    assert {request.filename for request in requests} == {str(service.folder / "ab" / "stem.py")}
    assert {request.environment["TRITON_DEBUG"] for request in requests} == {"1"}
    places = [submit.triton_cache for _, submit in service.submits]
    assert [place.folder.decode().rpartition("/")[0] for place in places] == [str(service.folder / "triton" / "0")] * 2
    assert all(submit.vouched and submit.use_store for _, submit in service.submits)
    service.finish(1)
    assert service.answers(wire.SourceCompiled) == []
    service.finish(0)
    (answer,) = service.answers(wire.SourceCompiled)
    assert (answer.ticket, answer.key, answer.has_more) == (7, "key", False)
    assert msgspec.msgpack.decode(answer.recipe, type=Recipe) == made
    assert [outcome.answer.key for outcome in answer.jobs] == ["entry 0", "entry 1"]


def test_the_source_is_where_inductor_looks_for_it_before_anything_is_compiled(service: Service) -> None:
    device = "DeviceProperties(type='cuda', index={}, cc=90)\n@triton.jit\ndef triton_kernel(): pass"
    service.known = Found("key", recipe(job(1), text=device.format(0)))
    service.begin(device=3)
    assert (service.folder / "ab" / "stem.py").read_text() == device.format(3)
    assert service.submits[0][1].triton_cache.folder.decode().startswith(str(service.folder / "triton" / "3"))
    assert service.submits[0][1].request.source == device.format(0)


def test_a_place_that_the_service_cannot_write_costs_no_kernel(service: Service) -> None:
    (service.folder / "ab").touch()
    service.known = Found("key", recipe(job(1)))
    service.begin()
    assert len(service.submits) == 1


def test_a_recipe_from_the_store_needs_no_describer(service: Service) -> None:
    service.known = Found("key", recipe(job(1)))
    service.awake = False
    service.begin()
    assert service.questions == []
    assert service.answers(wire.SourceLocated) == [wire.SourceLocated(7, True)]
    assert len(service.submits) == 1


def test_the_client_is_told_that_its_source_waits_for_a_describer_that_is_not_there(service: Service) -> None:
    service.awake = False
    service.begin()
    assert service.answers(wire.SourceLocated) == [wire.SourceLocated(7, False)]
    service.awake = True
    service.answer(Described(recipe(job(1))))
    assert service.answers(wire.SourceLocated)[1:] == [wire.SourceLocated(7, True)]
    service.begin(ticket=8)
    service.answer(Described(recipe(job(2))))
    # Of each: the describer may go while it waits for its compiles, and it would be taken for one that has no recipe.
    assert service.answers(wire.SourceLocated)[2:] == [wire.SourceLocated(8, True)]


def test_a_question_that_cannot_be_read_fails_its_own_source(service: Service) -> None:
    deep = b"\x91" * 100_000 + b"\xc0"  # an array in an array in …
    session: Any = SimpleNamespace(number=1, preferences=None)
    asked = wire.SubmitSource(7, SPEC, deep, "stem", "torch", True, None)
    service.sources.expect(session, asked)
    service.sources.submit(session, asked, DescriberKind(SPEC, 0))
    (failed,) = service.answers(wire.Failed)
    assert "talks another language" in failed.failure.summary
    service.begin(ticket=8)
    service.answer(Described(recipe(job(1))))
    assert len(service.submits) == 1


@pytest.mark.parametrize("constants", [{"dict": [[[1], 2]]}, {"dict": 3}])
def test_a_job_whose_constants_are_none_fails_its_own_source(service: Service, constants: Any) -> None:
    service.begin()
    service.answer(Described(recipe(job(1, constants=constants))))
    assert len(service.answers(wire.Failed)) == 1
    service.begin(ticket=8)
    service.answer(Described(recipe(job(2))))
    assert len(service.submits) == 1


def test_what_the_store_has_and_is_not_the_sources_own_is_said_and_described_anew(service: Service) -> None:
    service.known = Found("key", strange="not its own")
    service.begin()
    assert service.answers(wire.Notice) == [wire.Notice("not its own")]
    assert len(service.questions) == 1


def test_without_the_store_nothing_is_looked_up_or_kept(service: Service) -> None:
    service.known = Found("key", recipe(job(1)))
    service.begin(use_store=False, torch="")
    service.answer(Described(recipe(job(1), may_scale=True)))
    assert not service.submits[0][1].use_store
    service.finish(0)
    service.answer(AddedJobs([]))
    (answer,) = service.answers(wire.SourceCompiled)
    assert (answer.key, answer.added_key) == ("", "")
    assert service.kept == {}


def test_a_client_with_a_bundle_and_no_store_is_told_the_keys_for_it(service: Service) -> None:
    service.begin(use_store=False)
    service.answer(Described(recipe(job(1), may_scale=True)))
    service.finish(0)
    service.answer(AddedJobs([]))
    (answer,) = service.answers(wire.SourceCompiled)
    assert (answer.key, answer.added_key) == ("key", "added for [32]")
    assert service.kept == {}


def test_a_client_that_wants_the_recipe_alone_gets_it(service: Service) -> None:
    service.begin(fan_out=False)
    service.answer(Described(recipe(job(1))))
    (answer,) = service.answers(wire.SourceCompiled)
    assert (answer.jobs, service.submits) == ([], [])


def test_what_rescaling_adds_is_kicked_off_and_answered_later(service: Service) -> None:
    service.begin()
    service.answer(Described(recipe(job(1), job(2), may_scale=True)))
    service.finish(0, registers=64)
    service.finish(1, failure=REFUSED)  # one configuration less, and no reason not to go on
    assert service.questions[-1][1].registers == [64, None]
    service.answer(AddedJobs([job(3)]))
    (answer,) = service.answers(wire.SourceCompiled)
    assert (answer.has_more, answer.added_key) == (True, "added for [64, None]")
    assert service.kept["added for [64, None]"] == [job(3)]
    assert service.submits[2][1].request.constants == {"#1": 3}
    service.finish(2)
    assert [message.jobs[0].answer.key for message in service.answers(wire.AddedCompiled)] == ["entry 2"]
    assert service.sources._sources == service.sources._compiles == {}


def test_a_source_of_an_earlier_run_is_compiled_in_the_background_into_the_store_alone(service: Service) -> None:
    service.known = Found("key", recipe(job(1)))
    service.begin(background=True)
    ((_, submit),) = service.submits
    assert (submit.background, submit.triton_cache) == (True, None)
    service.finish(0, in_triton_cache=False, registers=None)
    (answer,) = service.answers(wire.SourceCompiled)
    assert not answer.jobs[0].answer.in_triton_cache


def test_a_source_of_an_earlier_run_keeps_no_describer_from_those_who_ask(service: Service) -> None:
    service.begin(background=True)
    (answer,) = service.answers(wire.Failed)
    assert "its recipe is not known" in answer.failure.summary
    service.known = Found("key", recipe(job(1), may_scale=True))
    service.begin(background=True, ticket=8)
    service.finish(0, in_triton_cache=False, registers=None)
    (told,) = service.answers(wire.SourceCompiled)
    assert (told.added, told.has_more) == (b"", False)
    assert service.questions == []


def test_what_rescaling_adds_to_a_source_of_an_earlier_run_follows_from_its_registers_too(service: Service) -> None:
    service.known = Found("key", recipe(job(1), may_scale=True))
    service.known_added = [job(3)]
    service.begin(background=True)
    service.finish(0, in_triton_cache=False, registers=None)
    (answer,) = service.answers(wire.SourceCompiled)
    assert answer.added_key == "added for [99]", "as the program itself will ask for it"
    assert service.submits[1][1].background


def test_what_rescaling_adds_may_be_known(service: Service) -> None:
    service.known_added = []
    service.begin()
    service.answer(Described(recipe(job(1), may_scale=True)))
    service.finish(0)
    assert len(service.questions) == 1
    assert not service.answers(wire.SourceCompiled)[0].has_more


def test_a_describer_that_cannot_say_what_rescaling_adds_costs_nothing_but_the_foresight(service: Service) -> None:
    service.begin()
    service.answer(Described(recipe(job(1), may_scale=True)))
    service.finish(0)
    service.answer(wire.Failure("service", "it died"))
    (answer,) = service.answers(wire.SourceCompiled)
    assert (answer.added, answer.has_more) == (b"", False)


def test_a_configuration_that_fails_is_told_with_the_others_and_nothing_is_rescaled(service: Service) -> None:
    service.begin()
    service.answer(Described(recipe(job(1), job(2), may_scale=True)))
    service.finish(0, failure=wire.Failure("source", "no such function"))
    service.finish(1)
    (answer,) = service.answers(wire.SourceCompiled)
    assert [type(outcome.answer) for outcome in answer.jobs] == [wire.Failed, wire.Result]
    assert len(service.questions) == 1


@pytest.mark.parametrize(
    "said",
    [
        Undescribed("it does not import"),
        AddedJobs([]),
        wire.Failure("service", "the describer died"),
        Described(recipe(job(1), text="def another(): pass")),
        Described(recipe(job(1, constants={"dict": [["x", {"set": [1]}]]}))),
        Described(recipe(job(1, target="no target"))),
    ],
)
def test_a_source_with_no_recipe_that_could_be_compiled_fails_and_says_why(service: Service, said: Any) -> None:
    service.begin()
    service.answer(said)
    (failed,) = service.answers(wire.Failed)
    assert failed.ticket == 7
    assert failed.failure.kind == "service"
    assert failed.failure.summary
    assert service.sources._sources == {}


def test_a_toolchain_that_cannot_be_read_fails_the_source(service: Service) -> None:
    service.known = ServiceError("cannot read libtriton.so")
    service.begin()
    assert [failed.failure.summary for failed in service.answers(wire.Failed)] == ["cannot read libtriton.so"]


def test_a_kernel_that_its_worker_has_put_elsewhere_is_put_where_this_client_wants_it(service: Service) -> None:
    service.begin()
    service.answer(Described(recipe(job(1))))
    service.finish(0, in_triton_cache=False, registers=None)
    ((outcome,),) = [answer.jobs for answer in service.answers(wire.SourceCompiled)]
    assert (outcome.answer.in_triton_cache, outcome.answer.registers) == (True, 99)


def test_waiting_for_a_source_is_waiting_for_all_of_it(service: Service) -> None:
    session = service.begin()
    assert service.sources.awaited(session, 7)
    assert not service.sources.awaited(session, 8)
    service.answer(Described(recipe(job(1), job(2), may_scale=True)))
    tickets = [submit.ticket for _, submit in service.submits]
    assert service.awaited == tickets  # though it was wanted before there were any
    service.finish(0)
    del service.awaited[:]
    service.sources.awaited(session, 7)
    assert service.awaited == tickets[1:]
    service.finish(1)
    service.answer(AddedJobs([job(3)]))
    assert service.awaited[-1] == service.submits[-1][1].ticket


def test_that_a_source_is_being_compiled_is_said_once_and_again_for_what_rescaling_adds(service: Service) -> None:
    service.begin()
    service.answer(Described(recipe(job(1), job(2), may_scale=True)))
    for number, (client, submit) in enumerate(service.submits):
        service.sources.tell(client, wire.Started(submit.ticket, 10 + number, 1.5))
    assert service.answers(wire.Started) == [wire.Started(7, 10, 1.5)]
    service.finish(0)
    service.finish(1)
    service.answer(AddedJobs([job(3)]))
    service.sources.tell(1, wire.Started(service.submits[-1][1].ticket, 12, 2.5))
    assert service.answers(wire.Started)[1:] == [wire.Started(7, 12, 2.5)]
    assert [outcome.worker for outcome in service.answers(wire.SourceCompiled)[0].jobs] == [10, 11]


def test_a_ticket_of_another_client_s_is_nobodys(service: Service) -> None:
    service.begin()
    service.answer(Described(recipe(job(1))))
    service.sources.tell(2, wire.Result(service.submits[0][1].ticket, "of somebody else"))
    assert service.answers(wire.SourceCompiled) == []
    service.finish(0)
    assert [answer.jobs[0].answer.key for answer in service.answers(wire.SourceCompiled)] == ["entry 0"]


def test_a_client_that_asks_twice_under_one_ticket_is_answered_once(service: Service) -> None:
    service.begin()
    service.answer(Described(recipe(job(1))))
    service.begin()
    service.answer(Described(recipe(job(1))))
    service.finish(0)
    assert service.answers(wire.SourceCompiled) == []
    service.finish(1)
    assert len(service.answers(wire.SourceCompiled)) == 1
    assert service.sources._sources == service.sources._compiles == {}


def test_what_clients_have_asked_for_themselves_passes(service: Service) -> None:
    service.sources.tell(4, wire.Started(3, 1, 1.0))
    assert service.told == [(4, wire.Started(3, 1, 1.0))]


def test_a_client_that_leaves_is_forgotten_at_any_moment(service: Service) -> None:
    for client, leave_after in enumerate(("question", "compiles", "rescaling"), start=1):
        service.begin(client=client)
        if leave_after != "question":
            service.answer(Described(recipe(job(1), may_scale=True)))
        if leave_after == "rescaling":
            service.finish(len(service.submits) - 1)
        service.sources.client_left(client)
        service.told.clear()
        service.answer(AddedJobs([job(3)]) if leave_after == "rescaling" else Described(recipe(job(1))))
        if leave_after == "compiles":
            service.finish(-1)
        assert service.told == []
    assert service.sources._sources == service.sources._compiles == {}


def test_two_clients_with_one_ticket_are_told_apart(service: Service) -> None:
    service.begin(client=1)
    service.begin(client=2)
    service.answer(Described(recipe(job(1))), 0)
    service.answer(Described(recipe(job(2))), 1)
    service.finish(1)
    assert [len(service.answers(wire.SourceCompiled, client)) for client in (1, 2)] == [0, 1]
    service.finish(0)
    assert [len(service.answers(wire.SourceCompiled, client)) for client in (1, 2)] == [1, 1]


# In a whole service, on an executor that compiles nothing


@pytest.fixture
def described(monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """What every describer answers."""
    made = recipe(job(1), job(2), may_scale=True)

    def ask(
        self: Any, client: int, kind: DescriberKind, body: bytes, answered: Callable[[bytes | wire.Failure], None]
    ) -> None:
        question = msgspec.msgpack.decode(body, type=Describe | Rescale)
        answered(encode(Described(made) if isinstance(question, Describe) else AddedJobs([job(3)])))

    monkeypatch.setattr(Describers, "ask", ask)
    monkeypatch.setattr(Toolchain, "digest", lambda self, environment, memory: "ef" * 32)
    return made


def submit(folder: Path, ticket: int = 7) -> wire.SubmitSource:
    where = wire.FanOut(str(folder / "ab" / "stem.py"), None, str(folder / "triton"), True)
    question = encode(Describe("triton_kernel", TEXT, {}, None, {}, {}))
    return wire.SubmitSource(ticket, wire.DescriberSpec(ANY_TOOLCHAIN, "stamp", ()), question, "stem", "", False, where)


def test_a_service_answers_a_source_as_a_whole(described: Recipe, tmp_path: Path) -> None:
    with running_service() as (_, caller, (executor,)):
        caller.say(submit(tmp_path))
        caller.say(wire.Await([7]))
        answer = caller.hear(wire.SourceCompiled)
        added = caller.hear(wire.AddedCompiled)
        assert (answer.ticket, added.ticket) == (7, 7)
        assert [len(message.jobs) for message in (answer, added)] == [2, 1]
        entries = [outcome.answer.entry.decode() for message in (answer, added) for outcome in message.jobs]
        assert sorted(entries) == sorted(order.key for order in executor.orders)
        assert {order.request.filename for order in executor.orders} == {str(tmp_path / "ab" / "stem.py")}
        caller.submit(8)  # and goes on with what it is asked one by one
        assert caller.hear(wire.Result).ticket == 8


@pytest.mark.parametrize("kind", ["kernel", "source"])
def test_a_client_whose_tickets_are_the_services_own_is_hung_up_on(
    kind: str, described: Recipe, tmp_path: Path
) -> None:
    with running_service() as (_, caller, (executor,)):
        if kind == "kernel":
            caller.submit(-1)
        else:
            caller.say(submit(tmp_path, -1))
        with pytest.raises(StopIteration):
            caller.hear(wire.Result)
        assert executor.orders == []


# Other hosts


@pytest.fixture
def remote(service: Service) -> Service:
    """A service whose clients have a remote."""
    service.preferences = wire.Preferences(b"/cache", remote=wire.RemoteSettings("file:///remote"))
    return service


def test_a_recipe_that_another_host_has_is_found_in_the_store_and_nobody_describes(remote: Service) -> None:
    remote.begin()
    ((key, answered),) = remote.looked_up
    assert (key, remote.questions) == ("key", [])
    remote.known = Found("key", recipe(job(1)))
    answered(wire.FoundRemotely(1))
    remote.settle()
    assert (len(remote.submits), remote.questions) == (1, [])
    assert remote.offered == []


def test_a_recipe_that_no_other_host_has_is_described_here_and_offered(remote: Service) -> None:
    remote.begin()
    remote.looked_up[0][1](None)
    remote.answer(Described(recipe(job(1))))
    assert len(remote.submits) == 1
    assert remote.offered == ["key"]


def test_a_recipe_that_was_found_elsewhere_and_is_gone_again_is_described(remote: Service) -> None:
    remote.begin()
    remote.looked_up[0][1](wire.FoundRemotely(1))
    remote.settle()
    assert len(remote.looked_up) == 1
    assert len(remote.questions) == 1


def test_what_rescaling_adds_is_looked_for_elsewhere_too(remote: Service) -> None:
    remote.known = Found("key", recipe(job(1), may_scale=True))
    remote.begin()
    remote.finish(0)
    ((key, answered),) = remote.looked_up
    assert key == "added for [32]"
    remote.known_added = []
    answered(wire.FoundRemotely(1))
    remote.settle()
    (answer,) = remote.answers(wire.SourceCompiled)
    assert (answer.added_key, remote.questions) == ("added for [32]", [])


@pytest.mark.parametrize("how", [{"use_store": False}, {"torch": ""}])
def test_what_is_for_no_store_is_for_no_other_host(remote: Service, how: dict[str, Any]) -> None:
    remote.begin(**how)
    remote.answer(Described(recipe(job(1))))
    assert (remote.looked_up, remote.offered) == ([], [])


def test_who_left_while_another_host_was_asked_is_not_gone_on_for(remote: Service) -> None:
    remote.begin()
    remote.sources.client_left(1)
    remote.looked_up[0][1](None)
    assert remote.questions == []
