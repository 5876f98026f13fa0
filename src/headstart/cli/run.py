"""`headstart run`: a program, unchanged, with its compiles in workers; see `headstart.adapters.run` for how."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from headstart.adapters.options import check_outputs
from headstart.adapters.recording import module_program, record_path, script_program
from headstart.adapters.run import RunConfig, become, environment, find_module
from headstart.cli import Failure, OutputFile, say_misspelt
from headstart.errors import UsageError
from headstart.model.target import Target
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
    type=OutputFile(),
    metavar="F",
    help="Take kernels from this bundle; what is missing in it is compiled, and added at the end.",
)
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
@click.option("--target", metavar="TARGET", help="Device of a dry run, as cuda:90 or hip:gfx942.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Compiles at a time. Default: HEADSTART_WORKERS, or one per core.",
)
@click.option("-v", "--verbose", is_flag=True, help="Say at the end what became of the replay, and of the bundle.")
@click.option("-q", "--quiet", is_flag=True, help="Do not say what came from the bundle, as on a terminal.")
@click.argument("program")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def run(
    as_module: bool,
    record: Path | None,
    manifest: Path | None,
    bundle: Path | None,
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

    Exit code: the program's.
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
    variables = dict(os.environ)
    say_misspelt()
    if mode() is not Mode.OFF:
        # What is wrong is said before the program runs.
        settings = Settings.load(workers=workers)
        check_outputs(bundle, record)
        name = module_program(program, find_module(program)) if as_module else script_program(program)
        automatic = record_path(name)
        if why := distrust(automatic, trusted=settings.trusts_cache_dir):
            # Who can write it can have code run: what it says is compiled without further questions.
            no_record, no_prefetch = no_record or record is None, no_prefetch or manifest is None
            click.echo(f"headstart: nothing is recorded or replayed: {why}", err=True)
        replay = manifest or (None if bundle is not None and not reuse_tuning else record or automatic)
        variables = environment(
            RunConfig(
                pid=os.getpid(),
                program=name,
                record=None if no_record else _absolute(record or automatic),
                replay=None if no_prefetch else _absolute(replay),
                trusted=trust or replay == automatic,
                bundle=_absolute(bundle),
                trust_bundle=trust and bundle is not None,
                reuse_tuning=reuse_tuning,
                workers=workers,
                target=None if target is None else str(Target.parse(target)),
                verbose=verbose,
                quiet=quiet,
            )
        )
    try:
        become(command, variables)
    except OSError as error:
        raise Failure(f"cannot start {sys.executable}: {error.strerror}") from error


def _absolute(path: Path | None) -> str | None:
    return None if path is None else os.path.abspath(path)
