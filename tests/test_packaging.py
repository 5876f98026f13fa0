"""What a package index, and somebody who installs from it, would see; `make dist` builds and tries it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

import headstart
from test_project import DOCUMENTS, PUBLIC, shell_lines

tomllib = pytest.importorskip("tomllib")  # of Python 3.11

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_changelog_begins_with_the_version_that_would_be_published() -> None:
    titles = re.findall(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert titles[0] == headstart.__version__


def test_the_readme_says_which_pythons_the_classifiers_name() -> None:
    named = [each.rpartition(" ")[2] for each in PROJECT["project"]["classifiers"] if ":: Python :: 3." in each]
    assert named == ["3.10", "3.11", "3.12", "3.13", "3.14"]
    assert PROJECT["project"]["requires-python"] == f">={named[0]}"
    assert f"Python {named[0]} to {named[-1]}" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_source_distribution_has_every_folder_of_the_repository() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a repository")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tracked = {name.partition("/")[0] for name in listed.splitlines() if (ROOT / name).exists()}
    # Those that hatchling includes by itself.
    always = {".gitignore", "LICENSE", "README.md", "pyproject.toml"}
    included = set(PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"])
    assert tracked <= included | always
    assert all((ROOT / name).exists() for name in included)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_nobody_is_told_to_install_from_an_index_that_does_not_have_it(document: str) -> None:
    assert not [line for line in shell_lines(document) if re.match(r"pip install.* '?headstart(\[|'|$| )", line)]
    assert "pip install headstart" not in (ROOT / document).read_text(encoding="utf-8")


def test_what_an_index_shows_has_no_links_that_lead_nowhere() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8") + "\n[a *b*](docs/run.md#c) ![picture](docs/x.png) [d](#e)"
    for rule in PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    links = re.findall(r"\]\((.*?)\)", text)
    assert links
    assert all(link.startswith("https://") for link in links)
    assert text.endswith("\na *b*  d")


def test_the_typed_example_uses_every_public_name() -> None:
    text = (ROOT / "tests/typing_example.py").read_text(encoding="utf-8")
    assert {name for name in PUBLIC if not re.search(rf"\bheadstart\.{name}\b|import {name}\b", text)} == set()
