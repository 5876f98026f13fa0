"""Where Inductor keeps things: its generated sources, what it found out about them, and Triton's cache."""

from __future__ import annotations

import os

from headstart.describe.facts import inductor_config, runtime_utils
from headstart.system.files import replace


def ensure_source(path: str, text: str) -> None:
    """Have a generated file there: Inductor may load it."""
    if not os.path.exists(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        replace(path, text.encode())


def triton_root(environment: dict[str, str]) -> tuple[str, bool]:
    """Triton's cache folder as Inductor had it in `environment`, and whether each device has its own in there."""
    if configured := environment.get("TRITON_CACHE_DIR"):
        return configured, False
    return os.path.join(environment.get("TORCHINDUCTOR_CACHE_DIR") or runtime_utils().cache_dir(), "triton"), True


def may_be_tuned(path: str) -> bool:
    """Whether an earlier run may have found out which configuration of the source at `path` is best.

    Inductor keeps that beside the source, under a name that is not the same in all versions; or elsewhere.
    """
    config = inductor_config()
    if any(getattr(config, f"{kind}autotune_remote_cache", None) for kind in ("", "bundled_")):
        return True
    try:
        return any(name.endswith(".best_config") for name in os.listdir(os.path.dirname(path)))
    except OSError:
        return False


def triton_folder(device: int, environment: dict[str, str] | None = None) -> str:
    """Triton's cache folder for a device, as Inductor has it now, or had it when `environment` was taken."""
    if environment is None:
        return str(runtime_utils().triton_cache_dir(device))
    root, per_device = triton_root(environment)
    return os.path.join(root, str(device)) if per_device else root
