"""Targets on the command line: `--target h100`, and whether what is installed can compile for it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import click

from headstart.errors import ServiceError, UsageError
from headstart.model.target import ALIASES, SHARED_MEMORY_LIMIT, Target

_TIMEOUT = 10.0  # seconds
_ASSEMBLERS = {"ptxas": "TRITON_PTXAS_PATH", "ptxas-blackwell": "TRITON_PTXAS_BLACKWELL_PATH"}


def target_of(text: str) -> Target:
    """A target as the user names it.

    Raises:
        UsageError: there is none of that name, or no ptxas of Triton's knows it.
    """
    target = Target.parse(text)
    if target.backend == "cuda" and f"cuda:{target.arch}" not in SHARED_MEMORY_LIMIT:
        known = [architectures(tool) for tool in _assemblers()]
        found = sorted({arch for each in known for arch in each}, key=int)
        if all(known) and found and target.arch not in found:
            there = ", ".join(f"cuda:{arch}" for arch in found)
            raise UsageError(f"unknown target {text!r}: the installed ptxas compiles for {there}")
    return target


def complete_targets(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """For `--target`."""
    return [name for name in (*ALIASES, *SHARED_MEMORY_LIMIT) if name.startswith(incomplete.lower())]


def targets_of(texts: Sequence[str]) -> list[Target]:
    """The same of several, each once."""
    return list(dict.fromkeys(map(target_of, texts)))


def architectures(tool: Path) -> list[str]:
    """Compute capabilities times ten that a ptxas compiles for, ascending; none if it does not say."""
    import subprocess  # for what is not known only

    try:
        done = subprocess.run(
            [tool, "--help"], stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT, check=False, text=True
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return []
    return sorted(set(re.findall(r"'sm_(\d+)'", done.stdout)), key=int)


def _assemblers() -> list[Path]:
    """Every ptxas that Triton may call: which one for which device differs between its versions. None: no Triton."""
    from headstart.model.toolchain import find_toolchain  # the same

    try:
        folder = Path(find_toolchain().triton_dir, "backends", "nvidia", "bin")
    except ServiceError:
        return []  # the build will say so
    tools = [Path(os.environ.get(variable) or folder / name) for name, variable in _ASSEMBLERS.items()]
    return [tool for tool in tools if tool.exists()]
