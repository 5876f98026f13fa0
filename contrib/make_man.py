"""Write the manual pages in `contrib/man` anew, by click-man: one for each command, as its `--help` describes it."""

from __future__ import annotations

from pathlib import Path

import click
from click_man.core import generate_man_page

from headstart import __version__
from headstart.cli import main

FOLDER = Path(__file__).parent / "man"


def pages(command: click.Command, name: str = "headstart", parent: click.Context | None = None) -> dict[str, str]:
    """Each page by the name of its file, for a command and those below it."""
    ctx = click.Context(command, info_name=name, parent=parent)
    below = {}
    if isinstance(command, click.Group):
        below = {each: command.get_command(ctx, each) for each in command.list_commands(ctx)}
        # click-man looks here, where commands that are loaded late are not.
        command.commands = {each: found for each, found in below.items() if found is not None}
    # The day on which it is written would make every page another one each day.
    text = generate_man_page(ctx, version=__version__, date=__version__)
    found = {f"{ctx.command_path.replace(' ', '-')}.1": _tidied(text)}
    for each, one in below.items():
        if one is not None and not one.hidden:
            found |= pages(one, each, ctx)
    return found


def _tidied(text: str) -> str:
    """Without what roff would take for a request, and with blocks that are not to be wrapped as they are."""
    lines: list[str] = []
    is_block = False
    for line in text.splitlines():
        if line == "\b":
            lines.append(".nf")
            is_block = True
        elif (is_block and line in (".PP", "")) or (is_block and line.startswith(".SH")):
            lines += [".fi", line]
            is_block = False
        elif line.startswith("'") or (line.startswith(".") and line.split()[0] not in _REQUESTS):
            lines.append(f"\\&{line}")
        else:
            lines.append(line)
    return "\n".join([*lines, ".fi"] if is_block else lines) + "\n"


_REQUESTS = (".TH", ".SH", ".PP", ".B", ".TP")

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    written = pages(main)
    for path in FOLDER.glob("*.1"):
        if path.name not in written:
            path.unlink()
    for file, page in written.items():
        (FOLDER / file).write_text(page, encoding="utf-8")
    print(f"{len(written)} pages in {FOLDER}")
