"""What a service is started with."""

from __future__ import annotations

import json

import msgspec


class Config(msgspec.Struct, frozen=True):
    """Travels as JSON on the service's command line.

    Attributes:
        workers: how many compiles may run at once.
        memory: bytes that all workers together may use; None: what the machine has.
        idle: seconds after which an idle worker leaves; None: the scheduler's own.
        client: private services: fd of the socket to the client that started it; else -1.
        client_pidfd: fd that becomes readable when that client ends; else -1.
        listener: shared services: fd of the socket that listens; else -1.
        socket: where that socket is.
        persistent: whether it stays when its last client leaves.
    """

    workers: int
    memory: int | None = None
    idle: float | None = None
    client: int = -1
    client_pidfd: int = -1
    listener: int = -1
    socket: str = ""
    persistent: bool = False

    def text(self) -> str:
        """For the command line. Plain `json`, because a path may hold bytes that are no text."""
        return json.dumps(msgspec.structs.asdict(self))

    @classmethod
    def read(cls, text: str) -> Config:
        """What `text` gave."""
        return cls(**json.loads(text))
