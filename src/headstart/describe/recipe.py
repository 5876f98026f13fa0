"""Recipes: what Inductor's decorator makes of one generated source, as plain data; and the messages that carry them.

    service ⇄ describer   Describe Rescale / Described AddedJobs Undescribed   (in wire.Question and wire.Answer)

A recipe says what is to be compiled (one job per configuration), and with which arguments the client is to build the
CachingAutotuner that Inductor expects: so the client neither imports nor parses the source.
"""

from __future__ import annotations

import hashlib
import textwrap
from typing import Any

import msgspec

from headstart.describe import facts, plain
from headstart.model.request import CompileRequest
from headstart.model.target import Target

# How Inductor calls kernels of generated modules that are made from templates; and every kernel that is benchmarked as
# a fusion, or any at all with `unique_kernel_names` off.
_TEMPLATE = "triton_tem_"
_NAMELESS = "triton_"


class RecipeJob(msgspec.Struct, frozen=True):
    """One compile. `constants`, `attrs` and `config` are as `plain.encode` makes them.

    Attributes:
        key: see `job_key`.
        hash: Triton's own, by which it names the entry in its cache.
        config: the configuration (`triton.Config`) that it is compiled for.
    """

    key: str
    hash: str
    name: str
    signature: dict[str, str]
    constants: Any
    attrs: Any
    options: dict[str, Any]
    target: str
    config: Any


class Function(msgspec.Struct, frozen=True):
    """What Inductor's parent process looks at in a JITFunction."""

    name: str
    module: str
    qualname: str
    arg_names: list[str]
    constexprs: list[int]
    cache_key: str
    src: str
    repr: str


class Recipe(msgspec.Struct, frozen=True):
    """One source.

    Attributes:
        stem: of the file in Inductor's code cache, and so of the module.
        text: that file's content.
        device: index of the device that it was generated for.
        arguments: of CachingAutotuner, but for the function and what the autotune cache adds; `plain.encode`d.
        jobs: one per configuration, in Inductor's order.
        may_scale: whether Inductor may add configurations once it knows how many registers these take.
        seconds: that it took to describe.
    """

    stem: str
    text: str
    device: int
    arguments: Any
    function: Function
    jobs: list[RecipeJob]
    may_scale: bool
    seconds: float


class Describe(msgspec.Struct, tag=True, frozen=True):
    """Run the decorators of `source`. `environment` and `config` are what Inductor would give its own worker.

    `variables` are those that change what a compile yields, as they were in the client when it kicked the source off.
    `settings` are Inductor's own variables, which the describer was started with.
    """

    name: str
    source: str
    environment: dict[str, str]
    config: Any
    variables: dict[str, str]
    settings: dict[str, str]


class Rescale(msgspec.Struct, tag=True, frozen=True):
    """Given the registers per thread of each of a source's jobs: which does `_dynamic_scale_rblock` add?"""

    described: Describe
    registers: list[int | None]


class Described(msgspec.Struct, tag=True, frozen=True):
    """Answer to `Describe`."""

    recipe: Recipe


class AddedJobs(msgspec.Struct, tag=True, frozen=True):
    """Answer to `Rescale`."""

    jobs: list[RecipeJob]


class Undescribed(msgspec.Struct, tag=True, frozen=True):
    """It raised, or is made of something that is not plain data."""

    why: str


_recipe_decoder = msgspec.msgpack.Decoder(Recipe)
_jobs_decoder = msgspec.msgpack.Decoder(list[RecipeJob])


def decode_recipe(content: bytes) -> Recipe:
    """A recipe as it travels and is kept. Raises `msgspec.DecodeError`: it is none."""
    return _recipe_decoder.decode(content)


def decode_jobs(content: bytes) -> list[RecipeJob]:
    """What rescaling adds, likewise. Raises `msgspec.DecodeError`: it is something else."""
    return _jobs_decoder.decode(content)


def kernels_named(content: bytes) -> frozenset[str]:
    """The kernels that a recipe, or the jobs that it was scaled by, names: what an entry of either has for content.

    Raises:
        msgspec.DecodeError: it is neither, or of another headstart.
    """
    try:
        jobs = _recipe_decoder.decode(content).jobs
    except msgspec.DecodeError:
        jobs = _jobs_decoder.decode(content)
    return frozenset(job.name for job in jobs)


ToDescriber = Describe | Rescale
FromDescriber = Described | AddedJobs | Undescribed


def as_loaded(name: str, source: str) -> str:
    """A source in the form in which Inductor will load it, whatever it looked like when it was kicked off.

    Only for templates do the two differ, in white space (pytorch #197471), and line numbers are part of Triton's hash.
    A kernel of the generated module has gone through Inductor's `IndentedBuffer.splice(strip=True)`, which is done
    here. A candidate that is benchmarked is loaded as it is kicked off, from the code cache.
    """
    if _TEMPLATE not in name and (name != _NAMELESS or facts.is_cached(source)):
        return source
    body = textwrap.dedent(source).strip()
    return "\n" + "\n".join(line if line.strip() else "" for line in body.split("\n")) + "\n"


def request_of(job: RecipeJob, *, text: str, path: str, module: str, variables: dict[str, str]) -> CompileRequest:
    """What a worker is asked for.

    Args:
        job: of a recipe.
        text: of the recipe's source.
        path: where Inductor has that source: debug lines say it.
        module: what it is called then.
        variables: those that change what comes out.

    Raises:
        UsageError, NotPlainDataError: it cannot travel to a worker.
    """
    return CompileRequest.make(
        job.name,
        text,
        signature=job.signature,
        constants=plain.as_constant(job.constants),
        attrs=plain.as_constant(job.attrs),
        options=job.options,
        target=str(Target.parse(job.target)),
        filename=path,
        module=module,
        environment=variables,
    )


def job_key(src: Any, target: Any, options: dict[str, Any]) -> str:
    """What tells one call of `triton.compile` from another, in every process.

    Not the file: Inductor may keep one source under two names, as it does with candidates.
    """
    parts = (
        src.fn.cache_key,
        src.name,
        sorted((name, str(kind)) for name, kind in src.signature.items()),
        sorted((key, repr(value)) for key, value in src.constants.items()),
        sorted((key, repr(value)) for key, value in src.attrs.items()),
        (target.backend, target.arch, target.warp_size),
        sorted((name, repr(value)) for name, value in options.items()),
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def job_of(src: Any, target: Any, options: dict[str, Any], config: Any = None) -> RecipeJob:
    """The job that a call of `triton.compile` stands for.

    Raises:
        NotPlainDataError: it is given something that is not plain data.
    """
    known = facts.parsed_options(target, options)
    return RecipeJob(
        key=job_key(src, target, options),
        hash=facts.cache_hash(src, target, options),
        name=src.name,
        signature=dict(src.signature),
        constants=plain.encode(dict(src.constants)),
        attrs=plain.encode(dict(src.attrs)),
        # As Triton does, options that the backend does not know are left out.
        options={name: value for name, value in options.items() if name in known},
        target=f"{target.backend}:{target.arch}:{target.warp_size}",
        config=None if config is None else plain.encode(config),
    )
