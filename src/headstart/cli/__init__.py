"""The `headstart` command.

Each subcommand is a module that is loaded when it runs, so that `headstart --help` costs no more than click.

Exit codes, as docs/commands.md has them: 0 everything done; 1 the work failed; 2 the command line is wrong, or a file
that it names; 3 of `run`: not everything came from the bundle; 130 Ctrl-C. An error that headstart raised on purpose is
a message, never a traceback.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from headstart import __version__
from headstart.errors import DamagedError, HeadstartError, UsageError
from headstart.system.files import BUNDLE, MANIFEST, Format, carries_mark, check_replaceable
from headstart.system.variables import misspelt

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

# Name of a subcommand (mostly of its module too) and its line in `headstart --help`.
COMMANDS = {
    "run": "Run a program with its compiles in workers.",
    "build": "Compile every kernel of a plan or a manifest into a bundle.",
    "bundle": "List, compare, sign, merge, prune, push and pull bundles.",
    "key": "Make, trust and forget keys that sign bundles.",
    "manifest": "Show, merge and compare manifests: what runs compiled.",
    "report": "Show what became of a run's kernels, as one HTML page.",
    "why": "Say why a kernel was compiled.",
    "stats": "Show what headstart was good for, over runs.",
    "records": "List and forget what headstart wrote down of programs.",
    "cache": "Show, shrink or empty the cache of compiled kernels.",
    "remote": "Try the stores that hosts share.",
    "farm": "Have the machines of a Ray cluster compile.",
    "config": "Show which settings are in force, and where each comes from.",
    "doctor": "Check what headstart needs on this machine.",
    "serve": "Run a compile service that programs share.",
    "status": "Show the compile services that run, and what they are doing.",
    "quiesce": "Have the compile service give its memory back.",
    "resume": "Have the compile service go on after quiesce.",
    "stop": "End the compile service.",
    "completion": "Print what has a shell complete headstart's commands.",
    "docs": "Show where the documentation is.",
}
# Where a subcommand is that does not have a module of its own name.
_HOME = {"quiesce": "control", "resume": "control", "stop": "control"}

_NOT_PRINTED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)  # of stdout's file

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NOT_FROM_BUNDLE = 3
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


class Failure(click.ClickException):
    """Something could not be done: a message on stderr, and exit code 1."""

    exit_code = EXIT_FAILED

    def __init__(self, message: str) -> None:
        super().__init__(printable_lines(message))

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"headstart: {self.format_message()}", file=file, err=file is None)


class BadInput(Failure):
    """What the user gave is wrong: exit code 2. Unlike click's own UsageError it does not recite the usage."""

    exit_code = EXIT_USAGE


class Misused(click.UsageError):
    """The command line is wrong, as click says, whose usage and hint come first."""

    def show(self, file: IO[Any] | None = None) -> None:
        if self.ctx is not None:
            click.echo(f"{self.ctx.get_usage()}\nTry '{self.ctx.command_path} --help' for help.\n", file=file, err=True)
        click.echo(f"headstart: {printable_lines(self.format_message())}", file=file, err=True)


class LazyGroup(click.Group):
    """A group whose commands are imported by name, and which turns headstart's exceptions into messages."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"headstart.cli.{_HOME.get(cmd_name, cmd_name)}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:  # click suggests commands that are loaded, and none is
            import difflib  # for mistakes only

            if close := difflib.get_close_matches(args[0], COMMANDS):
                meant = f"Did you mean {' or '.join(map(repr, close))}?"
                raise click.UsageError(f"{error.message} {meant}", ctx) from error
            raise

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        # Nor is a module loaded for each press of a key.
        from click.shell_completion import CompletionItem

        options = click.Command.shell_complete(self, ctx, incomplete)
        names = [name for name in COMMANDS if name.startswith(incomplete)]
        return [CompletionItem(name, help=COMMANDS[name]) for name in names] + options

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # Click would import every command to ask for its help.
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        with _told():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        _mark_warnings()
        try:
            with _told():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("headstart: interrupted", err=True)
            ctx.exit(EXIT_INTERRUPTED)
        except click.Abort:  # a question was answered with no, or by nobody
            click.echo("headstart: nothing was done", err=True)
            ctx.exit(EXIT_FAILED)
        except UsageError as error:
            raise BadInput(str(error)) from error
        except HeadstartError as error:
            raise Failure(str(error)) from error


def _give_up_stdout() -> None:
    """What could not be printed is not tried again at the end."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


@contextmanager
def _told() -> Iterator[None]:
    """Misuse, and what the machine refuses, in headstart's own words."""
    try:
        yield
    except click.UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # of click 8.2 and later: it is the help
            raise
        raise Misused(error.format_message(), error.ctx) from error
    except OSError as error:
        if error.errno in (None, errno.EPIPE):
            raise  # no answer of the system's; or click ends without a word
        if isinstance(error, FileNotFoundError) and not _has_a_folder():
            raise BadInput("the current folder has been removed; change to another one") from error
        if error.filename:
            raise Failure(_trouble(error, Path(error.filename))) from error
        if error.errno not in _NOT_PRINTED:
            raise Failure(error.strerror or str(error)) from error
        _give_up_stdout()
        raise Failure(f"what it prints: {error.strerror}") from error


def _mark_warnings() -> None:
    """What headstart logs shows whose it is, where nobody has said how logs are shown."""
    import logging  # `headstart --help` does without

    class Marked(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            text = super().format(record)
            return f"headstart: {text}" if record.name.partition(".")[0] == "headstart" else text

    if logging.lastResort is not None:
        logging.lastResort.setFormatter(Marked())


def _has_a_folder() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


class OutputFile(click.Path):
    """A file to be written, of which no name can be meant for a folder."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        text = os.fspath(value)
        if not text or text.endswith((os.sep, f"{os.sep}.")):  # a `Path` would not say so any more
            self.fail(f"{text!r} is no name of a file", param, ctx)
        return super().convert(value, param, ctx)


def check_output(path: Path, format: Format) -> None:
    """Find out before the work is done, rather than after it, whether `path` can be written.

    Raises:
        UsageError: it cannot, or something else has that name; see `check_replaceable`.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        raise UsageError(f"cannot write {path}: there is no folder {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"cannot write {path}: the folder {folder} is not writable")
    check_replaceable(path, format)


def complete_files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """For an argument that may be a file, and is not checked to be one."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="headstart")
def main() -> None:
    """Compile Triton GPU kernels before the program needs them."""


def say_misspelt() -> None:
    """Name each variable in the environment that looks like one of headstart's and is none."""
    for sentence in misspelt():
        click.echo(f"headstart: {sentence}", err=True)


def human_bytes(size: float) -> str:
    """`1536` as `"1.5 KiB"`."""
    if size < 1024:
        return f"{size:.0f} bytes"
    units = ["KiB", "MiB", "GiB", "TiB"]
    while (size := size / 1024) >= 1024 and len(units) > 1:
        del units[0]
    return f"{size:.1f} {units[0]}"


def count(number: int, noun: str) -> str:
    """`1, "kernel"` as `"1 kernel"`, `2` as `"2 kernels"`."""
    plural = noun[:-1] + "ies" if noun.endswith("ry") else noun + "s"
    return f"{number} {noun if number == 1 else plural}"


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """A file that the command line names is read: what is wrong with it is bad input. The message says which it was."""
    try:
        yield
    except DamagedError as error:
        raise BadInput(f"{error}{_what_it_is(path, str(error))}") from error
    except OSError as error:
        raise BadInput(_trouble(error, path)) from error


def _what_it_is(path: Path, why: str) -> str:
    """For a file that was taken for another kind: what it is, and what looks into that."""
    if "not a bundle" in why and carries_mark(path.resolve(), MANIFEST):
        return "; it is a manifest: headstart manifest show looks into it"
    if "not a manifest" in why and carries_mark(path.resolve(), BUNDLE):
        return "; it is a bundle: headstart bundle list looks into it"
    return ""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A file is written of others: that it cannot be is a failure; what of those is damaged, bad input."""
    try:
        yield
    except DamagedError as error:
        raise BadInput(str(error)) from error
    except OSError as error:
        raise Failure(_trouble(error, path)) from error


@contextmanager
def using(folder: Path) -> Iterator[None]:
    """What headstart keeps by itself is read or written: whatever is wrong with it is a failure."""
    try:
        yield
    except DamagedError as error:
        raise Failure(str(error)) from error
    except OSError as error:
        raise Failure(_trouble(error, folder)) from error


def _trouble(error: OSError, path: Path) -> str:
    return f"{error.filename or path}: {error.strerror or error}"


def printable(text: str) -> str:
    """Names in a file from elsewhere are not trusted with the terminal."""
    return text if text.isprintable() else json.dumps(text)


def printable_lines(text: str) -> str:
    """The same for a message with such names in it, which may be several lines."""
    odd = {each for each in set(text) if not (each.isprintable() or each in "\n\t")}
    return text.translate({ord(each): each.encode("ascii", "backslashreplace").decode() for each in odd} | _ESCAPED)


# Those of ASCII that `backslashreplace` leaves as they are.
_ESCAPED = {number: f"\\x{number:02x}" for number in (*range(9), *range(11, 32), 127)}


def json_line(value: Any) -> str:
    """One line of `--json`: what a terminal would obey or reorder is escaped, which a parser undoes."""
    import msgspec  # `headstart --help` does without

    text = msgspec.json.encode(value).decode()
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in text)
