"""What clients, the service and describers tell one another about sources of torch.compile's."""

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


class Ask(msgspec.Struct, tag=True):
    """Have a describer answer `question`, which is the adapter's to encode."""

    ticket: int
    spec: DescriberSpec
    question: bytes


class DescriberState(msgspec.Struct, tag=True):
    """Whether the describer with these settings, which this client asks, answers within milliseconds."""

    settings: tuple[tuple[str, str], ...]
    awake: bool


class Answer(msgspec.Struct, tag=True):
    """Answer to `Ask`, and to `Question`."""

    ticket: int
    answer: bytes


class Question(msgspec.Struct, tag=True):
    """What some client asks; `ticket` is the service's name for the answer."""

    ticket: int
    question: bytes


class Awake(msgspec.Struct, tag=True):
    """torch is imported; from now on answers take milliseconds."""
