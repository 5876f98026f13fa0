"""The process that has stores of other hosts (`headstart.remote.process`), as its service sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from headstart import wire
from headstart.service.helper_process import HelperProcess
from headstart.service.loop import Loop

MODULE = "headstart.remote.process"


class RemoteProcess(HelperProcess):
    """Started at once; see `HelperProcess`. `settings`: what it serves."""

    def __init__(
        self,
        loop: Loop,
        settings: wire.RemoteSettings,
        take: Callable[[Any], None],
        gone: Callable[[str], None],
    ) -> None:
        super().__init__(
            loop,
            name="remote process",
            module=MODULE,
            first=wire.Serve(settings),
            hears=wire.FromRemote,
            secrets=settings.urls,
            take=take,
            gone=gone,
        )
