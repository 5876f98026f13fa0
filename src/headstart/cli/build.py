"""`headstart build`: every kernel of a plan or a manifest, compiled into a bundle.

The plan runs here, in the main thread; each spec is kicked off as it is yielded and compiled in a worker while the plan
goes on. Answers arrive on the client's thread, which only queues them; this thread looks at them between two specs and,
once the plan has ended, as they come. A manifest takes the place of the plan, and runs nothing here: what it carries
runs in a worker, once it has been checked (`headstart.artifacts.vetting`).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from headstart.artifacts.manifest import Manifest, is_manifest
from headstart.cli import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    Failure,
    OutputFile,
    check_output,
    complete_files,
    count,
    human_bytes,
    printable_lines,
    reading,
)
from headstart.cli.build_job import Allowance, Build, in_flight
from headstart.cli.plans import KernelSpec, PlanRaised, add_plan_folder, load_plan
from headstart.cli.progress import Tally, make_progress
from headstart.cli.publishing import Published, publishing_of, summary
from headstart.cli.targets import complete_targets, targets_of
from headstart.cli.time_left import TimeLeft
from headstart.client.about import About
from headstart.client.about import describe as describe_run
from headstart.errors import ServiceError, UsageError
from headstart.model.toolchain import find_toolchain
from headstart.system.confinement import unavailable
from headstart.system.files import BUNDLE, carries_mark
from headstart.system.settings import parse_farm

if TYPE_CHECKING:
    from headstart.cli.build_sources import SourcesBuild
    from headstart.client.async_compile import AsyncCompile
    from headstart.client.timeline import Statistics


@click.command(short_help="Compile every kernel of a plan or a manifest into a bundle.")
@click.argument("plan", required=False, default="", shell_complete=complete_files)
@click.option(
    "--model",
    metavar="FILE:FUNCTION",
    help="Instead of a plan, what torch.compile makes of a model (experimental). The function returns the model and "
    'its arguments, made on device "cuda", which need not be there.',
)
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="TARGET",
    shell_complete=complete_targets,
    help="Device to compile for, as h100, cuda:90 or hip:gfx942; may be repeated. Applies to specs that name no "
    "target of their own, and to every kernel of a manifest; default there: what each was recorded for.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Compiles at a time. Default: HEADSTART_WORKERS, or one per core.",
)
@click.option(
    "-o",
    "--output",
    type=OutputFile(),
    metavar="OUT.bundle",
    help="Where the bundle goes; one that exists is replaced. Default: the plan's name with .bundle, in the current "
    "folder.",
)
@click.option(
    "--trust",
    is_flag=True,
    help="Compile what a manifest carries whatever it may do: you know where it comes from.",
)
@click.option(
    "--farm",
    metavar="ray|ADDRESS",
    help="Have the machines of a Ray cluster compile as well. Default: HEADSTART_FARM.",
)
@click.option(
    "--allow-failures",
    "allowed",
    multiple=True,
    metavar="N|KERNEL",
    help="Exit code 0 all the same if no more than N kernels fail, or only those of that name. May be repeated.",
)
@click.option(
    "--require-published",
    is_flag=True,
    help="Exit code 1 if anything that was compiled did not get into a store of HEADSTART_REMOTE.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as one JSON object, the last line of stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Print failures only.")
@click.pass_context
def build(
    ctx: click.Context,
    plan: str,
    model: str | None,
    targets: Sequence[str],
    workers: int | None,
    output: Path | None,
    trust: bool,
    farm: str | None,
    allowed: Sequence[str],
    require_published: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Compile every kernel of PLAN into a bundle. No GPU is needed.

    PLAN is a Python file, or package.module, with a generator kernels() that yields headstart.KernelSpec(...); or a
    manifest, which is what a program recorded. What was compiled before comes from the cache.

    Compiling runs Python that a manifest carries. A kernel of it that could do anything but become a kernel is left
    out, unless --trust.

    What did not compile when it was recorded, as some configurations of a sweep, and fails alike now, is as it should
    be: the bundle says so, and nobody who has it tries again.

    With HEADSTART_REMOTE it ends once the stores named there have what was compiled, or will not have it, which is a
    warning.

    Exit code: 0 all built, or all but what --allow-failures allows; 1 some kernels failed or were left out, or the plan
    raised (everything else is built and in the bundle); 2 bad usage, a file that is no plan and no manifest, or a plan
    that yields nothing.
    """
    if farm is not None:
        os.environ["HEADSTART_FARM"] = parse_farm(farm, "--farm")
    devices = targets_of(targets)
    allowance = Allowance.parse(allowed)
    if not plan and not model:
        raise click.UsageError("Missing argument 'PLAN', or --model FILE:FUNCTION.")
    if plan and model:
        raise UsageError("a plan and --model exclude each other")
    output = output or Path(_bundle_name(plan or str(model).rpartition(":")[0]))
    if model:
        from headstart.cli.model import build_model

        check_output(output, BUNDLE)
        try:
            outcome, published = build_model(
                model, devices, workers, output, require_published, partial(_say, quiet), quiet
            )
        except PlanRaised as error:
            raise Failure(str(error)) from error
        if as_json:
            click.echo(json.dumps(outcome))
        elif not quiet:
            click.echo(describe_model(outcome))
        is_good = allowance.covers([""] * outcome["left_out"])
        _end(ctx, published, 0 if is_good else EXIT_FAILED, require_published, quiet=quiet or as_json)
    check_output(output, BUNDLE)
    recorded = _manifest_at(plan)
    if recorded is None:
        if trust:
            raise UsageError(f"--trust is for manifests; {plan} is a plan, which runs as it is")
        # The service finds the modules that sources import where this process does.
        add_plan_folder(plan)
    elif not trust and (why := unavailable()):
        raise Failure(
            f"{plan} is not built: nobody vouches for what it carries, and its workers cannot be confined: {why}; if "
            "you know where it comes from, pass --trust"
        )
    elif not quiet and (remark := _other_triton(plan, recorded)):
        click.echo(printable_lines(remark), err=True)
    started = time.monotonic()
    tally = Tally()
    describe_run(
        About("build", os.path.realpath(plan) if os.path.exists(plan) else plan, bundle=os.path.abspath(output))
    )
    try:
        with _open(workers, recorded is None or trust, is_plan=recorded is None, quiet=quiet) as async_compile:
            publishing = publishing_of(async_compile.client, require_published)
            tally.time_left = TimeLeft(async_compile.client.settings.workers)
            job = Build(async_compile, devices, tally, vouched=recorded is None or trust)
            with make_progress(tally, partial(in_flight, async_compile.client), quiet=quiet) as progress:
                if recorded is None:
                    plan_error = job.run(_specs(plan), progress)
                else:
                    sources = _sources(recorded, job, async_compile, trust, quiet)
                    plan_error = job.run(job.recorded(recorded), progress, sources)
            bundle = job.write(output)
            statistics = job.statistics
            published = None
            if publishing is not None:
                kept_back = "" if recorded is None or trust else "nobody vouches for what they are made of (--trust)"
                published = publishing.wait(partial(_say, quiet), compiled=statistics.compiled, kept_back=kept_back)
    except KeyboardInterrupt:
        # Closing answers what was pending with an error, so that what counts is what was looked at before.
        progress_made = f"{tally.seen} of {count(tally.requested, 'kernel')} done"
        click.echo(f"headstart: interrupted, {progress_made}; what is done stays in the cache", err=True)
        ctx.exit(EXIT_INTERRUPTED)
    if not tally.requested:
        _refuse(plan, plan_error)
    for failure in job.failures:
        click.echo(f"\n{failure}", err=True)
    if plan_error is not None:
        click.echo(f"\n{plan_error}\n\nWhat it had yielded before was built.", err=True)
    is_good = plan_error is None and not job.trouble and allowance.covers(job.failed)
    is_good = is_good and not (job.failed and bundle is None)  # else an earlier bundle would pass for this one
    if is_good and job.failed:
        _say(False, f"{count(len(job.failed), 'failure')}: as --allow-failures allows")
    outcome = {**summarize(statistics, job, time.monotonic() - started, bundle), **summary(published)}
    if as_json:
        click.echo(json.dumps(outcome))
    elif not quiet:
        click.echo(describe(outcome))
    code = 0 if is_good else EXIT_FAILED
    if plan_error is not None and not isinstance(plan_error, PlanRaised):
        code = EXIT_USAGE
    _end(ctx, published, code, require_published, quiet=quiet or as_json)


def _say(quiet: bool, text: str) -> None:
    if not quiet:
        click.echo(f"headstart: {text}", err=True)


def _end(ctx: click.Context, published: Published | None, code: int, required: bool, *, quiet: bool) -> NoReturn:
    """Say how much was published, as the last line, why the rest was not, and exit."""
    if published is not None:
        if not published.is_whole:
            click.echo(published.warning(), err=True)
        if not quiet:
            click.echo(published.line())
        if published.interrupted:
            ctx.exit(EXIT_INTERRUPTED)
        if required and not published.is_whole:
            code = code or EXIT_FAILED
    ctx.exit(code)


def summarize(statistics: Statistics, job: Build, wall_s: float, bundle: Path | None) -> dict[str, Any]:
    """The object that `--json` prints.

    `bound_s` is what no schedule can beat with these workers: the work shared out evenly, or the longest compile.
    """
    return {
        "requested": statistics.requested + job.refused,
        "compiled": statistics.compiled,
        "cached": statistics.cached,
        "remote": statistics.remote,
        "farm": statistics.farm,
        "deduplicated": statistics.deduplicated,
        "failed": statistics.failed + job.refused - job.as_recorded,
        "failed_as_recorded": job.as_recorded,
        "wall_s": wall_s,
        "cpu_s": float(statistics.cpu_s),
        "longest_s": statistics.longest_s,
        "bound_s": max(statistics.cpu_s / statistics.workers, statistics.longest_s),
        "workers": statistics.workers,
        "targets": [str(target) for target in job.targets],
        "bundle": None if bundle is None else str(bundle),
    }


def describe(outcome: dict[str, Any]) -> str:
    """The same for people."""
    kernels, workers = count(outcome["requested"], "kernel"), count(outcome["workers"], "worker")
    here = outcome["cached"] - outcome["remote"] - outcome["farm"]
    parts = [f"{outcome['compiled']} compiled", f"{here} from the cache"]
    elsewhere = {"remote": "from other hosts", "farm": "compiled by the farm"}
    parts += [f"{outcome[what]} {where}" for what, where in elsewhere.items() if outcome[what]]
    told = ("deduplicated", "failed", "failed_as_recorded")
    parts += [f"{outcome[what]} {what.replace('_', ' ')}" for what in told if outcome[what]]
    lines = [
        f"{kernels} for {', '.join(outcome['targets']) or 'no target'} in {outcome['wall_s']:.1f} s, {workers}",
        ", ".join(parts),
    ]
    if outcome["bundle"] is None:
        lines.append("no bundle was written: there is nothing to put into it")
    else:
        lines.append(f"{outcome['bundle']}: {human_bytes(Path(outcome['bundle']).stat().st_size)}")
    return "\n".join(lines)


def describe_model(outcome: dict[str, Any]) -> str:
    """What was made of a model, for a person."""
    kernels = f"{count(outcome['kernels'], 'kernel')} of {count(outcome['sources'], 'source')} for {outcome['target']}"
    text = f"{kernels}, {outcome['compiled']} compiled now, in {outcome['wall_s']:.1f} s: {outcome['bundle']}"
    if outcome["left_out"]:
        text += f"\n{count(outcome['left_out'], 'kernel')} could not be built here; the log says why"
    return text


def _open(workers: int | None, vouched: bool, *, is_plan: bool, quiet: bool) -> AsyncCompile:
    from headstart.client.async_compile import AsyncCompile
    from headstart.client.policy import Policy

    # What a sweep has recorded may need more shared memory than there is: it is built, and Triton refuses it at launch.
    policy = Policy(checks_limits=is_plan, shows_output=not quiet)
    return AsyncCompile(workers=workers, vouched=vouched, policy=policy)


def _sources(
    manifest: Manifest, job: Build, async_compile: AsyncCompile, vouched: bool, quiet: bool
) -> SourcesBuild | None:
    """What torch.compile generated; None: it is left out, or there is nothing of it."""
    if not manifest.torch_compiles:
        return None
    from headstart.cli import build_sources

    if (why := build_sources.why_not(vouched=vouched)) is not None:
        job.refuse(f"{count(manifest.torch_compiles, 'source')} of torch.compile's left out: {why}")
        return None
    return build_sources.SourcesBuild(async_compile.client, manifest, job.devices, job.watch, job.refuse, quiet=quiet)


def _specs(plan: str) -> Iterator[KernelSpec]:
    """What `load_plan` yields; what is wrong with the plan shows when it is iterated over."""
    yield from load_plan(plan)


def _manifest_at(plan: str) -> Manifest | None:
    """The manifest that was meant; None if it is a plan.

    Raises:
        UsageError: it is a file of another kind.
        Failure: the manifest cannot be read.
    """
    path = Path(plan)
    if carries_mark(path.resolve(), BUNDLE):
        raise UsageError(f"{plan} is a bundle: it is built already; headstart bundle list shows what is in it")
    if path.is_dir() and not (path / "__init__.py").exists():
        raise UsageError(f"{plan} is a folder: a plan is a Python file, and a manifest is a file, too")
    if not is_manifest(path) and not (path.is_file() and path.suffix == ".manifest"):
        return None
    with reading(path):
        manifest = Manifest.open(path)
    if manifest.is_empty:
        raise UsageError(f"{plan} holds no kernels: there is nothing to build")
    return manifest


def _other_triton(plan: str, manifest: Manifest) -> str | None:
    """A remark if a manifest was recorded with another Triton than the one that will compile."""
    recorded = manifest.triton_versions
    try:
        version = find_toolchain().triton_version
    except ServiceError:
        return None  # the build will say so
    if not recorded or version in recorded:
        return None
    return f"headstart: {plan} was recorded with Triton {', '.join(recorded)} and is built with {version}"


def _refuse(plan: str, plan_error: UsageError | None) -> NoReturn:
    if isinstance(plan_error, PlanRaised):
        raise Failure(str(plan_error))
    if plan_error is not None:
        raise plan_error
    raise UsageError(f"{plan} yields no kernels: there is nothing to build")


def _bundle_name(plan: str) -> str:
    is_file = plan.endswith((".py", ".manifest")) or os.sep in plan
    stem = Path(plan).stem if is_file else plan.rpartition(".")[2]
    return f"{stem}.bundle"
