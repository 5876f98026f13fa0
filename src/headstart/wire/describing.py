"""What clients and the service say of describers, and what the service asks these."""

from __future__ import annotations

import msgspec

from headstart.model.toolchain import Toolchain


class DescriberSpec(msgspec.Struct, frozen=True):
    """Which process describes sources of torch.compile's.

    Attributes:
        toolchain: with the torch that it imports.
        stamp: changes when that torch does.
        settings: variables of Inductor's that it is started with, in order of their names.
    """

    toolchain: Toolchain
    stamp: str
    settings: tuple[tuple[str, str], ...]


class PrepareDescriber(msgspec.Struct, tag=True):
    """Have a describer ready; answered by a `DescriberState` once it is awake."""

    spec: DescriberSpec


class DescriberState(msgspec.Struct, tag=True):
    """Whether the describer with these settings, which this client asks, answers within milliseconds."""

    settings: tuple[tuple[str, str], ...]
    awake: bool


class Answer(msgspec.Struct, tag=True):
    """Answer to `Question`."""

    ticket: int
    answer: bytes


class Question(msgspec.Struct, tag=True):
    """What a source needs to be known; `ticket` is the service's name for the answer."""

    ticket: int
    question: bytes


class Awake(msgspec.Struct, tag=True):
    """torch is imported; from now on answers take milliseconds."""
