"""The process that has a Ray cluster (`headstart.farm.bridge`), as its service sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from headstart import wire
from headstart.service.helper_process import HelperProcess
from headstart.service.loop import Loop

MODULE = "headstart.farm.bridge"


class BridgeProcess(HelperProcess):
    """Started at once; see `HelperProcess`. `settings`: what it serves."""

    def __init__(
        self,
        loop: Loop,
        settings: wire.FarmSettings,
        take: Callable[[Any], None],
        gone: Callable[[str], None],
    ) -> None:
        super().__init__(
            loop,
            name="bridge to the farm",
            module=MODULE,
            first=wire.Join(settings),
            hears=wire.FromBridge,
            secrets="",  # an address has no password in it
            set_to={"RAY_ADDRESS": settings.ray_address},  # the service's own is that of whoever started it
            take=take,
            gone=gone,
        )
