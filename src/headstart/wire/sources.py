"""What clients and the service tell one another of torch.compile's sources: one message each, not one per compile.

    client ── SubmitSource ──▶ service     looks for the recipe, or has it made; then one compile per configuration
           ◀─ SourceLocated ──             only at first: its compiles wait for workers, or it waits for a describer
           ◀─ Started ────────             its first compile has begun
           ◀─ SourceCompiled ─             all of them are over, and what rescaling adds is known; or Failed
           ◀─ AddedCompiled ──             so is what rescaling has added

Recipes are bytes here: what is in them is known to `headstart.describe` alone.
"""

from __future__ import annotations

import msgspec

from headstart.wire.describing import DescriberSpec
from headstart.wire.outcomes import Failed, Result


class FanOut(msgspec.Struct, frozen=True):
    """Where what Inductor loads of a source is to be.

    Attributes:
        path: of the source's file.
        device: index of the device that this file is for; None: the recipe says it.
        triton_cache: Triton's cache folder; empty: nobody knows it yet, and the store alone is to have the kernels.
        per_device: whether each device has a folder of its own in there, named by its index.
    """

    path: str
    device: int | None
    triton_cache: str
    per_device: bool


class RecordedRecipe(msgspec.Struct, frozen=True):
    """What an earlier run had of a source: believed if it is of the key that this run would look for.

    Attributes:
        key, recipe, added_key, added: as in `SourceCompiled`.
    """

    key: str
    recipe: bytes
    added_key: str
    added: bytes


class SubmitSource(msgspec.Struct, tag=True):
    """Have a source described, and all that it needs compiled; `ticket` is the client's name for the answer.

    Attributes:
        spec: which describer, and so which toolchain.
        question: a `headstart.describe.recipe.Describe`.
        stem: the source's key in Inductor's code cache.
        torch: Inductor's digest of torch's files; empty: what comes of it is for no store and no bundle.
        use_store: whether recipes and kernels may come from the store, and be kept there.
        fan_out: None: the client wants the recipe alone, and asks for compiles itself.
        background: nobody has asked for it yet: an earlier run did.
        recorded: by that run.
    """

    ticket: int
    spec: DescriberSpec
    question: bytes
    stem: str
    torch: str
    use_store: bool
    fan_out: FanOut | None
    background: bool = False
    recorded: RecordedRecipe | None = None


class SourceLocated(msgspec.Struct, tag=True):
    """Whether a source has its recipe, so that its compiles are queued; else a describer that is not awake is asked.

    Told of each source while no describer is awake, and of the first one of a client that has its recipe.
    """

    ticket: int
    has_recipe: bool


class JobOutcome(msgspec.Struct, frozen=True):
    """What became of one compile of a source's; `worker`: which one compiled it, or -1. Its ticket says nothing."""

    worker: int
    answer: Result | Failed


class SourceCompiled(msgspec.Struct, tag=True):
    """Answer to `SubmitSource`.

    Attributes:
        key: of the recipe, in stores and bundles; empty if it is for none.
        recipe: a `headstart.describe.recipe.Recipe`.
        jobs: one for each of the recipe's, in its order; empty if the recipe alone was wanted.
        added_key: of what rescaling adds, in stores and bundles; empty if it is for none.
        added: those jobs, a list of `headstart.describe.recipe.RecipeJob`; empty if nobody asked for it.
        has_more: whether an `AddedCompiled` will follow.
    """

    ticket: int
    key: str
    recipe: bytes
    jobs: list[JobOutcome] = []
    added_key: str = ""
    added: bytes = b""
    has_more: bool = False


class AddedCompiled(msgspec.Struct, tag=True):
    """What became of what rescaling has added to a source, in the order of `SourceCompiled.added`."""

    ticket: int
    jobs: list[JobOutcome]
