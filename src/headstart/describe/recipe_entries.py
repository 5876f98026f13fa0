"""Recipes that outlive the process: entries in the store and in bundles, beside the kernels that they are for.

What a recipe depends on is in its key: the source, torch, Triton and Python by content, and the settings that
Inductor's decorators read. The folder of Inductor's cache is not: recipes name a source by its key in that cache.
Services keep them in stores, clients find them in bundles; both make the same of them.
"""

from __future__ import annotations

import contextlib

import msgspec

from headstart.artifacts.entry import Entry, pack_entry
from headstart.describe.ownership import are_own, is_own
from headstart.describe.recipe import Describe, Recipe, RecipeJob, decode_jobs, decode_recipe
from headstart.errors import DamagedError
from headstart.model import keys
from headstart.model.environment import TOOL_VARIABLES

FORMAT = "recipe 5"  # raised whenever a recipe changes its meaning
KIND = "recipe"  # of such an entry, and what its artifact is called


class NotOwn(Exception):
    """What an entry says is not what its source says."""


def recipe_key(described: Describe, toolchain: str, torch: str) -> str:
    """The key of a source's recipe.

    Args:
        described: the source.
        toolchain: digest of what compiles, with the tools that `described.variables` name.
        torch: Inductor's digest of torch's files.
    """
    return keys.digest(
        [
            ("format", FORMAT),
            ("toolchain", toolchain),
            ("torch", torch),
            ("kernel", described.name),
            ("config", repr(described.config)),
            *sorted(described.settings.items()),
            *((name, value) for name, value in sorted(described.variables.items()) if name not in TOOL_VARIABLES),
            ("source", described.source),
        ]
    )


def added_key(recipe: Recipe, registers: list[int | None], toolchain: str, torch: str) -> str:
    """The key of what rescaling adds to a source whose kernels take so many registers; the rest as `recipe_key`."""
    jobs = "\n".join(job.key for job in recipe.jobs)
    return keys.digest(
        [
            ("format", FORMAT),
            ("toolchain", toolchain),
            ("torch", torch),
            ("registers", repr(tuple(registers))),
            ("jobs", jobs),
        ]
    )


def pack(key: str, name: str, content: bytes, toolchain: str) -> list[bytes]:
    """The entry of a recipe, or of what rescaling adds, which is given as msgpack; `name` is the kernel's."""
    return pack_entry(
        key=key,
        kind=KIND,
        name=name,
        request_digest=key,
        toolchain=toolchain,
        target="",
        components=[("format", FORMAT)],
        metadata={},
        artifacts={KIND: content},
        compile_wall_s=0.0,
        compile_cpu_s=0.0,
        triton_version="",
        request=b"",
        output="",
    )


def recipe_of(entry: Entry, described: Describe, stem: str) -> Recipe:
    """The recipe in an entry; arguments as for `is_own`.

    Raises:
        NotOwn: it is none of this source.
    """
    with contextlib.suppress(DamagedError, OSError):
        recipe = decoded(entry.artifact(KIND), described, stem)
        if recipe is not None:
            return recipe
    raise NotOwn(f"{described.name}: what a bundle or the store says is not what its source says; unused")


def added_of(entry: Entry, described: Describe) -> list[RecipeJob] | None:
    """What rescaling adds, as an entry says; None: it says something else."""
    with contextlib.suppress(DamagedError, OSError):
        return decoded_jobs(entry.artifact(KIND), described)
    return None


def decoded(content: bytes, described: Describe, stem: str) -> Recipe | None:
    """A recipe as it was written down; None: it is none, or none of this source. Arguments as for `is_own`."""
    with contextlib.suppress(msgspec.DecodeError, RecursionError):
        recipe = decode_recipe(content)
        return recipe if is_own(recipe, described, stem) else None
    return None


def decoded_jobs(content: bytes, described: Describe) -> list[RecipeJob] | None:
    """What rescaling adds, as it was written down; None: it is something else."""
    with contextlib.suppress(msgspec.DecodeError, RecursionError):
        jobs = decode_jobs(content)
        return jobs if are_own(jobs, described) else None
    return None
