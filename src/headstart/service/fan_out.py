"""What a describer's answer comes to: a recipe, and of each of its jobs what a client would ask for."""

from __future__ import annotations

import contextlib
import os

import msgspec

from headstart import wire
from headstart.artifacts import triton_cache
from headstart.describe import devices
from headstart.describe.recipe import (
    AddedJobs,
    Describe,
    Described,
    FromDescriber,
    Recipe,
    RecipeJob,
    Undescribed,
    request_of,
)
from headstart.system.files import replace

_answer: msgspec.msgpack.Decoder[FromDescriber] = msgspec.msgpack.Decoder(FromDescriber)


def understood(said: bytes | wire.Failure) -> Described | AddedJobs | wire.Failure:
    """What a describer has answered; a source that has no recipe is a failure."""
    if isinstance(said, wire.Failure):
        return said
    try:
        answer = _answer.decode(said)
    except (msgspec.DecodeError, RecursionError) as error:
        return wire.Failure("service", f"the describer talks another language: {error}")
    return wire.Failure("service", answer.why) if isinstance(answer, Undescribed) else answer


def submits_of(
    asked: wire.SubmitSource, described: Describe, recipe: Recipe, jobs: list[RecipeJob]
) -> list[wire.Submit]:
    """What a client would ask for, configuration by configuration. Writes the source where Inductor will look for it.

    Raises:
        HeadstartError, NotPlainDataError: a job cannot travel to a worker.
    """
    fan_out = asked.fan_out
    assert fan_out is not None
    # ptxas writes the file's time and size into debug lines: it is there before any worker gets that far.
    # Where this process cannot write, workers see no file of the client's either, which then writes it for itself.
    with contextlib.suppress(OSError):
        if not os.path.exists(fan_out.path):
            module = recipe.text if fan_out.device is None else devices.on(recipe.text, fan_out.device)
            os.makedirs(os.path.dirname(fan_out.path), exist_ok=True)
            replace(fan_out.path, module.encode())
    return [
        wire.Submit(
            0,
            asked.spec.toolchain,
            request_of(
                job, text=recipe.text, path=fan_out.path, module=recipe.function.module, variables=described.variables
            ),
            asked.use_store,
            asked.background,
            vouched=True,
            triton_cache=_triton_cache(fan_out, recipe, job),
        )
        for job in jobs
    ]


def _triton_cache(fan_out: wire.FanOut, recipe: Recipe, job: RecipeJob) -> wire.TritonCache | None:
    """Where its client wants the kernel of a job."""
    if not fan_out.triton_cache:
        return None
    device = recipe.device if fan_out.device is None else fan_out.device
    root = os.path.join(fan_out.triton_cache, str(device)) if fan_out.per_device else fan_out.triton_cache
    folder = os.path.join(root, triton_cache.folder_name(job.hash))
    return wire.TritonCache(os.fsencode(folder), job.hash, job.name)
