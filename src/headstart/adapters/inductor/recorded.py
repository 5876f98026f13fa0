"""torch.compile in the record: what is noted of a source, and how an earlier run's sources are kicked off.

    Source ── generated() ──▶ Recorder ──▶ manifest
    manifest ──▶ the next start: RecordedSource ── SubmitSource, in the background ──▶ service: is the recipe of the key
        that this toolchain leads to? ──▶ one compile per configuration, into the store

The record has the recipe, so that nobody waits for a describer, which has to import torch first. Where torch or Triton
has changed since, the key is another one, and a describer makes the recipe anew.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from headstart import wire
from headstart.artifacts.generated import GeneratedSource
from headstart.describe import facts
from headstart.describe.recipe import Describe, Recipe
from headstart.errors import DamagedError, HeadstartError
from headstart.model.target import Target
from headstart.model.toolchain import Toolchain

_encoder = msgspec.msgpack.Encoder()
_describe_decoder = msgspec.msgpack.Decoder(Describe)


def generated(described: Describe, stem: str, message: wire.SourceCompiled, recipe: Recipe) -> GeneratedSource:
    """What is noted of a source.

    Args:
        described: what its describer was asked, if it was.
        stem: the source's key in Inductor's code cache.
        message: what the service has answered.
        recipe: that is in it.
    """
    results = [each.answer for each in message.jobs if isinstance(each.answer, wire.Result)]
    has_added = bool(message.added and message.added_key)
    return GeneratedSource(
        key=message.key,
        name=described.name,
        target=str(Target.parse(recipe.jobs[0].target)) if recipe.jobs else "",
        configurations=len(recipe.jobs),
        question=_encoder.encode(described),
        recipe=message.recipe,
        added_key=message.added_key if has_added else "",
        added=message.added if has_added else b"",
        stem=stem,
        torch=facts.torch_key(),
        generation=facts.generation(),
        duration_s=sum(max(0.0, each.finished - each.started) for each in results if not each.cached),
    )


Answer = wire.SourceCompiled | wire.AddedCompiled | HeadstartError


class RecordedSource:
    """A source of an earlier run, as a `SourceTaker`: it is compiled into the store.

    Args:
        recorded: what the record has of it.
        toolchain: this program's.
        answered: called in the connection's thread with each thing that the service says, or with why it says nothing.
        background: nobody waits for it.
        variables: makes of the recorded variables those that are to hold; default: the same.

    Attributes:
        described: what its describer is asked, if it is.
        path: where the file of its source is.

    Raises:
        DamagedError: the record does not say what was asked of a describer.
    """

    def __init__(
        self,
        recorded: GeneratedSource,
        toolchain: Callable[[], Toolchain],
        answered: Callable[[Answer], None] = lambda answer: None,
        *,
        background: bool = True,
        variables: Callable[[dict[str, str]], dict[str, str]] = lambda recorded: recorded,
    ) -> None:
        try:
            described = _describe_decoder.decode(recorded.question)
        except (msgspec.DecodeError, RecursionError) as error:
            raise DamagedError(Path(recorded.name), f"what it was described by cannot be read: {error}") from error
        if recorded.stem != facts.stem_of(described.source):
            raise DamagedError(Path(recorded.name), "it is recorded under another source's name")
        # Not the folder of the run that was recorded: it may be somebody else's by now.
        folder = facts.expected_cache_dir()
        self.described = msgspec.structs.replace(
            described, variables=variables(described.variables), environment={"TORCHINDUCTOR_CACHE_DIR": folder}
        )
        self.path = facts.path_of_stem(recorded.stem, folder)
        self._recorded = recorded
        self._toolchain = toolchain
        self._answered = answered
        self._background = background

    def message(self, ticket: int) -> wire.SubmitSource:
        """See `SourceTaker`."""
        recorded = self._recorded
        return wire.SubmitSource(
            ticket,
            wire.DescriberSpec(self._toolchain(), facts.stamp(), tuple(sorted(self.described.settings.items()))),
            _encoder.encode(self.described),
            recorded.stem,
            recorded.torch,
            True,
            wire.FanOut(self.path, None, "", False),
            background=self._background,
            recorded=wire.RecordedRecipe(recorded.key, recorded.recipe, recorded.added_key, recorded.added),
        )

    def located(self, has_recipe: bool) -> None:
        """See `SourceTaker`."""

    def compiled(self, message: wire.SourceCompiled) -> None:
        """See `SourceTaker`."""
        self._answered(message)

    def added(self, message: wire.AddedCompiled) -> None:
        """See `SourceTaker`."""
        self._answered(message)

    def failed(self, error: HeadstartError) -> None:
        """See `SourceTaker`."""
        self._answered(error)
