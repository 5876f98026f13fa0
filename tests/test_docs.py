"""What the documentation says of headstart's names, settings and messages is so; `make docs` builds the site."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from test_project import PUBLIC  # isort: skip

from headstart.cli import COMMANDS
from headstart.system import variables

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
SOURCES = sorted((ROOT / "src" / "headstart").rglob("*.py"))


def read(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


# Settings


def table(page: str) -> list[str]:
    """What the rows of a page's first table begin with."""
    _, begin, rest = read(page).partition("\n|")
    return re.findall(r"^\| `([^`]+)`", (begin + rest).partition("\n\n")[0], re.M)


def test_the_table_of_settings_names_every_variable_once() -> None:
    named = table("settings.md")
    assert sorted(named) == sorted(set(named))
    assert set(named) == set(variables.KNOWN)


def test_every_variable_in_the_source_is_one_of_those_or_headstart_s_own() -> None:
    found = {name for path in SOURCES for name in re.findall(r"\bHEADSTART_[A-Z_]*[A-Z]\b", path.read_text("utf-8"))}
    assert found - set(variables.KNOWN) == variables._INTERNAL


# Messages


def texts() -> Iterator[str]:
    """Every text in the source, with `…` for what is put into it."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                yield "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield re.sub(r"%(\.\d)?[sdf]", "…", node.value)


TEXTS = list(texts())


def quoted() -> list[str]:
    """The messages that the page explains."""
    titles = re.findall(r"^### (.*)$", read("how-to/troubleshooting.md"), re.M)
    return [message for title in titles for message in re.findall(r"`([^`]+)`", title)]


def is_said(message: str) -> bool:
    """Whether one text of the source has all parts of a message, in this order."""
    parts = [part for part in re.split(r"…", message) if part.strip(" ;:,.")]
    pattern = re.compile(".*".join(map(re.escape, parts)), re.S)
    return any(pattern.search(text) for text in TEXTS)


@pytest.mark.parametrize("message", quoted())
def test_a_message_that_is_explained_is_one_that_headstart_says(message: str) -> None:
    assert is_said(message)


def test_a_message_that_headstart_does_not_say_is_noticed() -> None:
    assert not is_said("… was not used: its colonels were …")
    assert not is_said("from now on … compile service")


def test_every_message_has_a_cause_and_a_cure() -> None:
    _, *sections = re.split(r"^### ", read("how-to/troubleshooting.md"), flags=re.M)
    assert len(sections) > 30
    for section in sections:
        assert [*re.findall(r"^\*\*(\w+)\.\*\*", section, re.M)] == ["Cause", "Cure"], section.splitlines()[0]


# Not explained, of what a program is warned of without having asked: a headstart that has gone wrong.
BUGS = ("; this is a bug", "the describer failed")


def warnings_of(folder: str) -> Iterator[str]:
    """What the modules of a room put into the log as a warning or an error."""
    for path in (ROOT / "src" / "headstart" / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or not node.args:
                continue
            if node.func.attr in ("warning", "error", "exception") and isinstance(node.args[0], ast.Constant):
                yield re.sub(r"%(\.\d)?[sdf]", "…", str(node.args[0].value))


@pytest.mark.parametrize("room", ["adapters", "client"])
def test_what_a_program_is_warned_of_is_explained(room: str) -> None:
    explained = [re.split("…", message) for message in quoted()]
    for warning in warnings_of(room):
        if not warning.strip("… :") or any(each in warning for each in BUGS):
            continue
        assert any(
            all(part.strip(" ;:,.") in warning for part in parts if part.strip(" ;:,.")) for parts in explained
        ), warning


# The reference, and the way to it


def test_the_reference_has_every_public_name_once() -> None:
    named = re.findall(r"^::: headstart\.(\w+)$", read("reference/api.md"), re.M)
    assert sorted(named) == sorted(PUBLIC)


def test_the_exit_codes_are_those_of_the_commands() -> None:
    from headstart import cli

    codes = {str(value) for name, value in vars(cli).items() if name.startswith("EXIT_")} | {"0"}
    assert set(re.findall(r"^\| (\d+) \|", read("commands.md"), re.M)) == codes


def test_the_commands_are_made_from_the_command_itself() -> None:
    page = read("reference/commands.md")
    assert ":module: headstart.cli" in page
    assert ":command: main" in page
    assert COMMANDS


def test_the_navigation_leads_to_every_page() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    assert pages <= set(re.findall(r"[\w/-]+\.md", navigation))


def test_the_site_asks_nobody_for_anything() -> None:
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for needed in ("font: false", "use_directory_urls: false", "  - offline", "assets/iframe-worker/shim.js"):
        assert needed in settings
    assert (DOCS / "assets/iframe-worker/shim.js").is_file()
