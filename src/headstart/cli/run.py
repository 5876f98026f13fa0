"""`headstart run`: a program, unchanged, with its compiles in workers; see `headstart.adapters.run` for how."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from headstart.adapters.bundle_use import UseTally, complaint
from headstart.adapters.options import check_outputs
from headstart.adapters.recording import module_program, record_path, script_program
from headstart.adapters.run import RunConfig, become, environment, find_module, is_to_be_said, say_use
from headstart.adapters.run import command as command_line
from headstart.cli import (
    EXIT_NOT_FROM_BUNDLE,
    Failure,
    OutputFile,
    complete_files,
    count,
    printable_lines,
    say_misspelt,
)
from headstart.cli.pulled import BundleFile, pulled
from headstart.cli.targets import complete_targets, target_of
from headstart.client.about import new_run
from headstart.errors import UsageError
from headstart.system.files import MANIFEST, STATISTICS, carries_mark, check_replaceable
from headstart.system.folders import distrust
from headstart.system.settings import Settings
from headstart.system.variables import Mode, mode


@click.command(
    short_help="Run a program with its compiles in workers.",
    context_settings={"allow_interspersed_args": False},
    options_metavar="[OPTIONS]",
)
@click.option("-m", "as_module", is_flag=True, help="PROGRAM is a module, as for python -m.")
@click.option(
    "--record",
    type=OutputFile(),
    metavar="F",
    help="Record into this manifest, and replay it. Default: a record that headstart keeps for this program.",
)
@click.option(
    "--manifest",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    metavar="F",
    help="Replay this manifest instead of the record.",
)
@click.option(
    "--bundle",
    "asked_bundle",
    type=BundleFile(),
    metavar="F",
    help="Take kernels from this bundle; what is missing in it is compiled, and added at the end. Also oci://…, one in "
    "a container registry: what is missing is added to a copy.",
)
@click.option(
    "--require-bundle",
    is_flag=True,
    help="End with exit code 3, and say what and why, if a kernel or graph did not come from the bundle.",
)
@click.option("--stats", type=OutputFile(), metavar="F", help="Write what came from where into this file, as JSON.")
@click.option("--no-record", is_flag=True, help="Record nothing.")
@click.option("--no-prefetch", is_flag=True, help="Replay nothing: compile what the program asks for, when it does.")
@click.option(
    "--reuse-tuning", is_flag=True, help="Autotuners take the recorded configurations without benchmarking again."
)
@click.option(
    "--trust",
    is_flag=True,
    help="Replay a manifest whatever it may do, and load what of a bundle carries code: you know where they come from.",
)
@click.option("--dry-run", is_flag=True, help="Launch nothing, and need no GPU: only compile, for --target.")
@click.option(
    "--target",
    metavar="TARGET",
    shell_complete=complete_targets,
    help="Device of a dry run, as h100, cuda:90 or hip:gfx942.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Compiles at a time. Default: HEADSTART_WORKERS, or one per core.",
)
@click.option("-v", "--verbose", is_flag=True, help="Say at the end what became of the replay, and of the bundle.")
@click.option("-q", "--quiet", is_flag=True, help="Do not say what came from the bundle, as on a terminal.")
@click.argument("program", shell_complete=complete_files)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, shell_complete=complete_files)
def run(
    as_module: bool,
    record: Path | None,
    manifest: Path | None,
    asked_bundle: Path | str | None,
    require_bundle: bool,
    stats: Path | None,
    no_record: bool,
    no_prefetch: bool,
    reuse_tuning: bool,
    trust: bool,
    dry_run: bool,
    target: str | None,
    workers: int | None,
    verbose: bool,
    quiet: bool,
    program: str,
    arguments: Sequence[str],
) -> None:
    """Run PROGRAM (app.py, or -m package.module) with its ARGUMENTS as python would.

    Triton kernels are compiled in workers, those of torch.compile too, and what was compiled is recorded. The next
    start kicks all of it off before the program asks. Child processes take part. HEADSTART=off runs the program as it
    is.

    With --bundle the record is not replayed: what the bundle has needs no compile.

    Exit code: the program's; 3 if it succeeds and --require-bundle does not hold.
    """
    command = ["-m", program, *arguments] if as_module else [program, *arguments]
    if no_record and record is not None:
        raise UsageError("--record and --no-record exclude each other")
    if verbose and quiet:
        raise UsageError("--verbose and --quiet exclude each other")
    if no_prefetch and manifest is not None:
        raise UsageError("--manifest and --no-prefetch exclude each other")
    if dry_run != (target is not None):
        raise UsageError("--dry-run and --target go together, as in --dry-run --target cuda:90")
    if require_bundle:
        _check_required(asked_bundle)
    variables = dict(os.environ)
    config: RunConfig | None = None
    say_misspelt()
    if mode() is not Mode.OFF:
        # What is wrong is said before the program runs.
        settings = Settings.load(workers=workers)
        if isinstance(asked_bundle, str):
            bundle = pulled(asked_bundle, settings, required=require_bundle, quiet=quiet)
        else:
            bundle = asked_bundle
        check_outputs(bundle, record)
        if manifest is not None and not carries_mark(manifest.resolve(), MANIFEST):
            raise UsageError(f"--manifest: {manifest} is no manifest")
        if stats is not None:
            _check_statistics(stats, bundle, record)
        name = module_program(program, find_module(program)) if as_module else script_program(program)
        automatic = record_path(name)
        if why := distrust(automatic, trusted=settings.trusts_cache_dir):
            # Who can write it can have code run: what it says is compiled without further questions.
            no_record, no_prefetch = no_record or record is None, no_prefetch or manifest is None
            click.echo(f"headstart: nothing is recorded or replayed: {why}", err=True)
        replay = manifest or (None if bundle is not None and not reuse_tuning else record or automatic)
        config = RunConfig(
            pid=os.getpid(),
            program=name,
            record=None if no_record else _absolute(record or automatic),
            replay=None if no_prefetch else _absolute(replay),
            trusted=trust or replay == automatic,
            bundle=_absolute(bundle),
            trust_bundle=trust and bundle is not None,
            reuse_tuning=reuse_tuning,
            workers=workers,
            target=None if target is None else str(target_of(target)),
            verbose=verbose,
            quiet=quiet,
            stats=_absolute(stats),
            run=new_run(),
        )
        if require_bundle:
            sys.exit(_judge(command, config))
        variables = environment(config)
    try:
        become(command, variables)
    except OSError as error:
        raise Failure(f"cannot start {sys.executable}: {error.strerror}") from error


def _check_statistics(stats: Path, *others: Path | None) -> None:
    check_replaceable(stats, STATISTICS)
    if any(other is not None and os.path.realpath(other) == os.path.realpath(stats) for other in others):
        raise UsageError(f"--stats: {stats} is to be another file as well; choose another name")
    if not os.path.isdir(os.path.dirname(os.path.abspath(stats))):
        raise UsageError(f"--stats: there is no folder for {stats}")


def _check_required(bundle: Path | str | None) -> None:
    if bundle is None:
        raise UsageError("--require-bundle goes with --bundle")
    if mode() is Mode.OFF:
        raise UsageError("--require-bundle: nothing comes from a bundle where HEADSTART=off is set")
    if isinstance(bundle, Path) and not bundle.exists():
        raise UsageError(f"--require-bundle: there is no {bundle}; run once without the option to make it")


def _judge(command: Sequence[str], config: RunConfig) -> int:
    """Run the program, and find out whether all that it took came from its bundle; returns the exit code."""
    from headstart.cli.supervise import end_as, supervise
    from headstart.client.use import BundleUse

    tally = UseTally()
    command_line(command)  # what is wrong with it is said before a process is started for it

    def start() -> None:
        become(command, environment(config._replace(pid=os.getpid(), tally=tally.path, is_judged=True)))

    ended = supervise(start)
    use = tally.total(BundleUse())
    say_use(config, use, is_said=is_to_be_said(config))
    if ended.code or ended.signal:
        return end_as(ended)
    name = os.path.basename(str(config.bundle))
    if not any(who.startswith(f"{ended.pid} ") for who, told in tally.told() if told is not None):
        click.echo(f"headstart: the program ended without telling what it took from {name}", err=True)
        return EXIT_NOT_FROM_BUNDLE
    if silent := tally.silent():
        processes = count(silent, "process") if silent == 1 else f"{silent} processes"
        click.echo(f"headstart: {processes} missed something in {name}, and ended without telling what", err=True)
        return EXIT_NOT_FROM_BUNDLE
    if not use.missed_nothing:
        click.echo(f"headstart: {printable_lines(complaint(str(config.bundle), use))}", err=True)
        return EXIT_NOT_FROM_BUNDLE
    return 0


def _absolute(path: Path | None) -> str | None:
    return None if path is None else os.path.abspath(path)
