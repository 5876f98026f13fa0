"""What a service is started with."""

from __future__ import annotations

import json

import msgspec


class Config(msgspec.Struct, frozen=True):
    """Travels as JSON on the service's command line.

    Attributes:
        cache_dir: where the store and everything else that stays is.
        workers: how many compiles may run at once.
        time_limit: seconds per compile; None: no limit.
        store_limit: bytes that the store may grow to; None: no limit.
        client: fd of the socket to the client that started this service.
        client_pidfd: fd that becomes readable when that client ends.
    """

    cache_dir: str
    workers: int
    time_limit: float | None
    store_limit: int | None
    client: int
    client_pidfd: int

    def text(self) -> str:
        """For the command line. Plain `json`, because a path may hold bytes that are no text."""
        return json.dumps(msgspec.structs.asdict(self))

    @classmethod
    def read(cls, text: str) -> Config:
        """What `text` gave."""
        return cls(**json.loads(text))
