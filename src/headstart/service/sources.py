"""Sources of torch.compile's, from what a client asks to what it is told: one compile per configuration.

    submit ─▶ recipe in the store? ──no──▶ Describers: Describe
                       └──yes──┬─────────────────┘
       one Submit per job ◀────┘ ─▶ Requests, as if the client had sent it ─▶ tell
       all over, may scale? ─▶ in the store, or Describers: which more? ─▶ SourceCompiled
       their Submits ─▶ Requests ─▶ tell ─▶ all over ─▶ AddedCompiled

The Submits have tickets below 0, so that what they are told comes here. A client that leaves is forgotten; what it had
queued goes with it, as everything else of it does.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import TypeVar

import msgspec

from headstart import wire
from headstart.describe.ownership import is_of_source
from headstart.describe.plain import NotPlainDataError
from headstart.describe.recipe import (
    AddedJobs,
    Describe,
    Described,
    Recipe,
    RecipeJob,
    Rescale,
)
from headstart.errors import HeadstartError
from headstart.service.describers import DescriberKind, Describers
from headstart.service.errands import Errands
from headstart.service.fan_out import submits_of, understood
from headstart.service.recipes import Found, Recipes
from headstart.service.remotes import Remotes
from headstart.service.requests import Requests
from headstart.service.sessions import Session, Sessions

Made = TypeVar("Made")
Outcomes = list[wire.JobOutcome]

_encoder = msgspec.msgpack.Encoder()
_describe = msgspec.msgpack.Decoder(Describe)


class _Source:
    def __init__(self, session: Session, asked: wire.SubmitSource) -> None:
        self.session = session
        self.asked = asked
        self.described: Describe
        self.kind: DescriberKind
        self.recipe: Recipe
        self.key = ""
        self.open: set[int] = set()  # tickets of its compiles that are not over
        self.awaited = False
        self.begun = False


class _Compiles:
    """Some compiles of one source; `then` is called with what became of each once all are over."""

    def __init__(self, source: _Source, submits: list[wire.Submit], then: Callable[[Outcomes], None]) -> None:
        self.source = source
        self.submits = submits
        self.then = then
        self.workers = [-1] * len(submits)
        self.answers: dict[int, wire.Result | wire.Failed] = {}


class Sources:
    """What the clients of a service have asked of sources.

    Args:
        sessions: those who ask, and are told.
        describers: make recipes.
        recipes: finds and keeps them.
        requests: compiles.
        errands: does what reads and writes files.
        remotes: what other hosts have described.
    """

    def __init__(
        self,
        sessions: Sessions,
        describers: Describers,
        recipes: Recipes,
        requests: Requests,
        errands: Errands,
        remotes: Remotes,
    ) -> None:
        self._sessions = sessions
        self._describers = describers
        self._recipes = recipes
        self._requests = requests
        self._errands = errands
        self._remotes = remotes
        self._tickets = count(-1, -1)
        self._sources: dict[tuple[int, int], _Source] = {}  # by client and its ticket
        self._compiles: dict[int, tuple[_Compiles, int]] = {}  # by ticket: which of them

    def expect(self, session: Session, asked: wire.SubmitSource) -> None:
        """A client asks; `submit` follows unless it leaves first."""
        before = self._sources.get((session.number, asked.ticket))
        if before is not None:  # no client of ours asks twice
            self._forget(before)
        self._sources[session.number, asked.ticket] = _Source(session, asked)

    def submit(self, session: Session, asked: wire.SubmitSource, kind: DescriberKind) -> None:
        """Begin with what a client has asked; `kind` of describer knows the source."""
        source = self._sources.get((session.number, asked.ticket))
        if source is None:
            return
        source.kind = kind
        try:
            source.described = _describe.decode(asked.question)
        except (msgspec.DecodeError, RecursionError) as error:
            self._fail(source, wire.Failure("service", f"the client talks another language: {error}"))
            return
        if not asked.torch:
            self._ask(source)
            return
        self._find(
            source, lambda: self._elsewhere(source, source.key, lambda: self._find(source), lambda: self._ask(source))
        )

    def awaited(self, session: Session, ticket: int) -> bool:
        """Somebody is blocked on what a client has asked; False: it is no source."""
        source = self._sources.get((session.number, ticket))
        if source is None:
            return False
        source.awaited = True
        for each in list(source.open):
            self._requests.awaited(session, each)
        return True

    def client_left(self, client: int) -> None:
        """Nobody is there to be told."""
        for known in [each for each in self._sources.values() if each.session.number == client]:
            self._forget(known)

    def tell(self, client: int, message: wire.Started | wire.Result | wire.Failed) -> None:
        """What a ticket is told: a client's, or one of ours."""
        if message.ticket >= 0:
            self._sessions.tell(client, message)
        elif message.ticket in self._compiles and self._compiles[message.ticket][0].source.session.number == client:
            compiles, index = self._compiles[message.ticket]
            if isinstance(message, wire.Started):
                self._started(compiles, index, message)
            elif isinstance(message, wire.Result):
                self._compiled(compiles, index, message)
            else:
                self._over(compiles, index, message)

    # Recipes

    def _find(self, source: _Source, missing: Callable[[], None] | None = None) -> None:
        def go_on(found: Found) -> None:
            source.key = found.key
            if found.strange:
                self._sessions.tell(source.session.number, wire.Notice(found.strange))
            if found.recipe is not None:
                self._has_recipe(source, found.recipe)
            elif missing is not None and not found.strange:
                missing()
            else:
                self._ask(source)

        self._do(source, lambda: self._recipes.find(source.asked, source.described, source.session.preferences), go_on)

    def _elsewhere(self, source: _Source, key: str, found: Callable[[], None], missing: Callable[[], None]) -> None:
        """Look whether another host has described it: `found` once it is in the store, else `missing`."""
        preferences = source.session.preferences
        if preferences.remote is None or not key or not source.asked.use_store:
            missing()
            return

        def answered(remotely: wire.FoundRemotely | None) -> None:
            if self._is_there(source):
                (missing if remotely is None or remotely.entry else found)()

        sought, background = self._recipes.sought(key, preferences), source.asked.background and not source.awaited
        self._remotes.look_up(preferences.remote, sought, answered, background=background)

    def _ask(self, source: _Source) -> None:
        if source.asked.background:
            # Of another torch or Triton, most likely. Describing it would keep others waiting.
            self._fail(source, wire.Failure("service", "nobody has asked for it, and its recipe is not known"))
            return
        if not self._describers.is_awake(source.kind):
            self._sessions.tell(source.session.number, wire.SourceLocated(source.asked.ticket, False))
        self._describers.ask(
            source.session.number, source.kind, source.asked.question, lambda answer: self._described(source, answer)
        )

    def _described(self, source: _Source, said: bytes | wire.Failure) -> None:
        if not self._is_there(source):
            return
        answer = understood(said)
        if isinstance(answer, wire.Failure):
            self._fail(source, answer)
        elif not isinstance(answer, Described):
            self._fail(source, wire.Failure("service", f"the describer answered with {type(answer).__name__}"))
        elif not is_of_source(answer.recipe, source.described.source):
            why = f"{answer.recipe.stem}.py is there already and holds something else"
            self._fail(source, wire.Failure("service", why))
        else:
            self._keep(source, source.key, answer.recipe)
            self._has_recipe(source, answer.recipe)

    def _keep(self, source: _Source, key: str, content: Recipe | list[RecipeJob]) -> None:
        asked, described, preferences = source.asked, source.described, source.session.preferences
        if key and asked.use_store:
            self._errands.do(
                lambda: self._recipes.keep(key, asked, described, content, preferences),
                lambda kept: self._offer(key, preferences, kept) if kept else None,
            )

    def _offer(self, key: str, preferences: wire.Preferences, sha256: bytes) -> None:
        if preferences.remote is not None:
            self._remotes.offer(preferences.remote, self._recipes.sought(key, preferences), sha256)

    def _has_recipe(self, source: _Source, recipe: Recipe) -> None:
        source.recipe = recipe
        client, ticket = source.session.number, source.asked.ticket
        if source.asked.fan_out is None:
            self._sessions.tell(client, wire.SourceCompiled(ticket, source.key, _encoder.encode(recipe)))
            self._forget(source)
            return
        # Of each: while it waits for its compiles the describer may go, and then nobody could tell it from one that has
        # none.
        self._sessions.tell(client, wire.SourceLocated(ticket, True))
        self._compile(source, recipe.jobs, lambda outcomes: self._all_compiled(source, outcomes))

    # Compiles

    def _compile(self, source: _Source, jobs: list[RecipeJob], then: Callable[[Outcomes], None]) -> None:
        self._do(
            source,
            lambda: submits_of(source.asked, source.described, source.recipe, jobs),
            lambda submits: self._send(_Compiles(source, submits, then)),
        )

    def _send(self, compiles: _Compiles) -> None:
        source = compiles.source
        if not compiles.submits:
            compiles.then([])
        for index, submit in enumerate(compiles.submits):
            submit.ticket = next(self._tickets)
            self._compiles[submit.ticket] = compiles, index
            source.open.add(submit.ticket)
        for submit in compiles.submits:
            self._requests.submit(source.session, submit)
            if source.awaited:
                self._requests.awaited(source.session, submit.ticket)

    def _started(self, compiles: _Compiles, index: int, message: wire.Started) -> None:
        compiles.workers[index] = message.worker
        source = compiles.source
        if not source.begun:  # that it is being compiled, the client need hear only once
            source.begun = True
            said = wire.Started(source.asked.ticket, message.worker, message.at)
            self._sessions.tell(source.session.number, said)

    def _compiled(self, compiles: _Compiles, index: int, result: wire.Result) -> None:
        place, request = compiles.submits[index].triton_cache, compiles.submits[index].request
        if result.in_triton_cache or (place is None and not compiles.source.recipe.may_scale):
            self._over(compiles, index, result)
            return
        preferences = compiles.source.session.preferences
        self._errands.do(
            lambda: self._recipes.made_known(result, request, place, preferences),
            lambda kept: self._over(compiles, index, kept),
            lambda: self._over(compiles, index, result),
        )

    def _over(self, compiles: _Compiles, index: int, answer: wire.Result | wire.Failed) -> None:
        source = compiles.source
        if not self._is_there(source):
            return
        ticket = compiles.submits[index].ticket
        self._compiles.pop(ticket, None)
        source.open.discard(ticket)
        compiles.answers[index] = answer
        if len(compiles.answers) == len(compiles.submits):
            compiles.then(
                [wire.JobOutcome(worker, compiles.answers[place]) for place, worker in enumerate(compiles.workers)]
            )

    # Rescaling

    def _all_compiled(self, source: _Source, outcomes: Outcomes) -> None:
        recipe, described = source.recipe, source.described
        failures = [each.answer.failure for each in outcomes if isinstance(each.answer, wire.Failed)]
        # One that the assembler refuses is one configuration less; any other fails the source.
        if not recipe.may_scale or not all(failure.is_refused_by_assembler for failure in failures):
            self._tell_all(source, outcomes, "", None)
            return
        counts = [None if isinstance(each.answer, wire.Failed) else each.answer.registers for each in outcomes]
        if not source.key:
            self._ask_what_is_added(source, outcomes, counts, "")
            return
        preferences = source.session.preferences

        def look(is_again: bool) -> None:
            self._do(
                source,
                lambda: self._recipes.added(source.asked, described, recipe, counts, preferences),
                lambda known: go_on(*known, is_again=is_again),
            )

        def go_on(key: str, jobs: list[RecipeJob] | None, *, is_again: bool) -> None:
            def ask() -> None:
                self._ask_what_is_added(source, outcomes, counts, key)

            if jobs is not None:
                self._tell_all(source, outcomes, key, jobs)
            elif is_again:
                ask()
            else:
                self._elsewhere(source, key, lambda: look(True), ask)

        look(False)

    def _ask_what_is_added(self, source: _Source, outcomes: Outcomes, counts: list[int | None], key: str) -> None:
        if source.asked.background:
            self._tell_all(source, outcomes, "", None)
            return

        def answered(said: bytes | wire.Failure) -> None:
            if not self._is_there(source):
                return
            answer = understood(said)
            if not isinstance(answer, AddedJobs):
                self._tell_all(source, outcomes, "", None)  # then the consumer waits for a worker when Inductor asks
                return
            self._keep(source, key, answer.jobs)
            self._tell_all(source, outcomes, key, answer.jobs)

        question = _encoder.encode(Rescale(source.described, counts))
        self._describers.ask(source.session.number, source.kind, question, answered)

    def _tell_all(self, source: _Source, outcomes: Outcomes, key: str, added: list[RecipeJob] | None) -> None:
        client, ticket = source.session.number, source.asked.ticket
        content = b"" if added is None else _encoder.encode(added)
        recipe = _encoder.encode(source.recipe)
        self._sessions.tell(
            client, wire.SourceCompiled(ticket, source.key, recipe, outcomes, key, content, has_more=bool(added))
        )
        if not added:
            self._forget(source)
            return

        source.begun = False  # the client is told again when one of these begins

        def all_over(outcomes: Outcomes) -> None:
            self._sessions.tell(client, wire.AddedCompiled(ticket, outcomes))
            self._forget(source)

        self._compile(source, added, all_over)

    # Ends

    def _do(self, source: _Source, work: Callable[[], Made], then: Callable[[Made], None]) -> None:
        """An errand; what it cannot do fails the source."""

        def guarded() -> Made | wire.Failure:
            try:
                return work()
            except (HeadstartError, NotPlainDataError, OSError, TypeError, ValueError, RecursionError) as error:
                return wire.Failure("service", str(error))  # also what a crafted recipe says of a job

        def go_on(made: Made | wire.Failure) -> None:
            if isinstance(made, wire.Failure):
                self._fail(source, made)
            elif self._is_there(source):
                then(made)

        failure = wire.Failure("service", "headstart's service failed at it, which is a bug")
        self._errands.do(guarded, go_on, lambda: self._fail(source, failure))

    def _fail(self, source: _Source, failure: wire.Failure) -> None:
        if self._is_there(source):
            self._sessions.tell(source.session.number, wire.Failed(source.asked.ticket, failure))
            self._forget(source)

    def _forget(self, source: _Source) -> None:
        del self._sources[source.session.number, source.asked.ticket]
        for ticket in source.open:
            del self._compiles[ticket]

    def _is_there(self, source: _Source) -> bool:
        return self._sources.get((source.session.number, source.asked.ticket)) is source
