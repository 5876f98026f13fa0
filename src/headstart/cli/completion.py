"""`headstart completion`: have the shell complete headstart's commands and options, by what click has for that."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from headstart.cli import Failure, main

SHELLS = ("bash", "zsh", "fish")
_VARIABLE = "_HEADSTART_COMPLETE"  # that click looks at when the command starts


@click.command(short_help="Print what has a shell complete headstart's commands.")
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print what has SHELL complete headstart's commands, options and files. Installed once:

    \b
    headstart completion bash > ~/.local/share/bash-completion/completions/headstart
    headstart completion zsh > "${fpath[1]}/_headstart"
    headstart completion fish > ~/.config/fish/completions/headstart.fish
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise Failure(f"this version of click ({click.__version__}) completes nothing for {shell}")
    click.echo(kind(main, {}, "headstart", _VARIABLE).source())
