"""What a client says of itself to a service, from what the user has set."""

from __future__ import annotations

import os
import sys

from headstart.errors import ServiceError, UsageError
from headstart.model.environment import TOOL_VARIABLES, fingerprint
from headstart.system.folders import readable
from headstart.system.places import config_dir
from headstart.system.settings import Settings
from headstart.wire import FarmSettings, Preferences, RemoteSettings
from headstart.wire.remotes import DEFAULT_DEADLINE, MAX_DEADLINE


def preferences(settings: Settings, *, keeps: bool) -> Preferences:
    """For the greeting. `keeps`: whether entries are kept in its store; else none may come from other machines."""
    return Preferences(
        os.fsencode(settings.cache_dir),
        settings.store_limit,
        settings.time_limit,
        readable(os.path.basename(sys.argv[0])) if sys.argv else "",
        settings.memory_limit,
        settings.early_cutoff,
        settings.trusts_cache_dir,
        {name: value for name, value in fingerprint().items() if name in TOOL_VARIABLES},
        _remotes(settings) if settings.remote and keeps else None,
        _farm(settings) if settings.farm and keeps else None,
    )


def _remotes(settings: Settings) -> RemoteSettings:
    from headstart.stores.remote.urls import parse_urls  # few have any

    return RemoteSettings(
        settings.remote,
        settings.trusts_remote,
        min(settings.remote_deadline or DEFAULT_DEADLINE, MAX_DEADLINE),
        _keys(),
        settings.remote_key,
        any(url.claims for url in parse_urls(settings.remote)),
    )


def _farm(settings: Settings) -> FarmSettings:
    # Which cluster this process belongs to it says itself: a shared service may have been started in another.
    ray_address = readable(os.environ.get("RAY_ADDRESS", "")) if settings.farm == "ray" else ""
    return FarmSettings(settings.farm, settings.farm_signs, _keys(), ray_address)


def _keys() -> bytes:
    try:
        return os.fsencode(config_dir())
    except (UsageError, ServiceError):  # who has no home has no keys
        return b""
