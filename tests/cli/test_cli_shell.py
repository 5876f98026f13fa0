"""Completion, manual pages, `headstart docs`, and what a program without a GPU is told."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from conftest import client_environment
from headstart.artifacts.bundle import BundleWriter
from headstart.artifacts.manifest import Manifest
from headstart.cli import COMMANDS, main
from headstart.cli.completion import SHELLS

ROOT = Path(__file__).parents[2]


def completed(*words: str, incomplete: str) -> list[tuple[str, str]]:
    """What a shell is offered: values, and whether they are plain or files."""
    found = ShellComplete(main, {}, "headstart", "_HEADSTART_COMPLETE").get_completions(list(words), incomplete)
    return [(each.value, each.type) for each in found]


def headstart(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **client_environment(), **variables}
    command = [sys.executable, "-m", "headstart", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


# Completion


def test_commands_options_targets_and_files_are_completed() -> None:
    assert completed(incomplete="bu") == [("build", "plain"), ("bundle", "plain")]
    assert ("verify", "plain") in completed("bundle", incomplete="ve")
    assert ("--dry-run", "plain") in completed("run", incomplete="--dr")
    assert completed("run", incomplete="ap") == [("ap", "file")]
    assert completed("run", "app.py", incomplete="da") == [("da", "file")]
    assert completed("build", incomplete="pl") == [("pl", "file")]
    assert ("h100", "plain") in completed("build", "--target", incomplete="h1")


def test_completing_a_command_loads_none() -> None:
    script = (
        "import os, sys\nfrom headstart.cli import main\n"
        "try:\n    main(prog_name='headstart')\nexcept SystemExit:\n    pass\n"
        "print(sorted(m for m in sys.modules if m.startswith('headstart.cli.')))"
    )
    words = {"_HEADSTART_COMPLETE": "fish_complete", "COMP_WORDS": "headstart", "COMP_CWORD": "bu"}
    environment = {**os.environ, **client_environment(), **words}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "plain,build\t" in done.stdout


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_for_a_shell_is_one_that_it_takes(shell: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["completion", shell])
    assert done.exit_code == 0, done.output
    assert f"_HEADSTART_COMPLETE={shell}_complete" in done.stdout
    program = shutil.which(shell)
    if program is not None:
        script = tmp_path / "script"
        script.write_text(done.stdout, encoding="utf-8")
        subprocess.run([program, "-n", str(script)], check=True, timeout=30)


def test_another_shell_is_bad_usage() -> None:
    assert CliRunner().invoke(main, ["completion", "tcsh"]).exit_code == 2


# Manual pages


@pytest.mark.filterwarnings("ignore:.*make_default_short_help.*:DeprecationWarning")  # click-man's
def test_the_manual_pages_are_what_the_commands_say() -> None:
    """`make man` writes them anew."""
    written = runpy.run_path(str(ROOT / "contrib/make_man.py"))["pages"](main)
    there = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "contrib/man").glob("*.1")}
    assert {f"headstart-{name}.1" for name in COMMANDS} < set(written)
    assert sorted(there) == sorted(written)
    assert [name for name in there if there[name] != written[name]] == []


def test_the_manual_pages_are_right_for_groff() -> None:
    groff = shutil.which("groff")
    if groff is None:
        pytest.skip("there is no groff")
    for path in sorted((ROOT / "contrib/man").glob("*.1")):
        done = subprocess.run(
            [groff, "-man", "-ww", "-Tutf8", "-K", "utf8", str(path)], capture_output=True, text=True, timeout=30
        )
        assert (done.returncode, done.stderr) == (0, ""), path.name


def test_docs_says_where_pages_and_manual_pages_are() -> None:
    found = json.loads(CliRunner().invoke(main, ["docs", "--json"]).stdout)
    assert Path(found["pages"]).is_file()
    assert Path(found["manual"], "headstart.1").is_file()
    shown = CliRunner().invoke(main, ["docs"])
    assert found["pages"] in shown.stdout


# headstart run without a GPU


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "app.py"
    path.write_text("import sys\nraise eval(sys.argv[1])\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "error",
    [
        "RuntimeError('0 active drivers ([]). There should only be one.')",
        "RuntimeError('No CUDA GPUs are available')",
        "AssertionError('Torch not compiled with CUDA enabled')",
    ],
)
def test_a_program_that_ends_for_want_of_a_gpu_is_told_of_dry_runs(error: str, program: Path) -> None:
    done = headstart("run", "-v", str(program), error)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1] == (
        f"headstart: there is no GPU here; headstart run --dry-run --target h100 {program} launches nothing, and "
        "compiles for one what the program warms up"
    )


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ([], "RuntimeError('No CUDA GPUs are available')"),  # stderr is no terminal
        (["-q"], "RuntimeError('No CUDA GPUs are available')"),
        (["--dry-run", "--target", "h100"], "RuntimeError('No CUDA GPUs are available')"),
        ([], "RuntimeError('something else')"),
        ([], "ValueError('No CUDA GPUs are available')"),
        ([], "SystemExit(1)"),
    ],
)
def test_nobody_else_is_told(options: list[str], error: str, program: Path) -> None:
    done = headstart("run", *options, str(program), error)
    assert done.returncode == 1
    assert "headstart: " not in done.stderr


# What goes wrong with the command itself


def test_bad_usage_is_headstart_s_own_line(program: Path) -> None:
    for arguments in (["buld"], ["build"], ["bundle", "list", "."], ["--nonsense"], ["run"]):
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 2
        assert done.stderr.splitlines()[0].startswith("Usage: ")
        assert done.stderr.splitlines()[-1].startswith("headstart: ")
        assert "Error:" not in done.stderr


@pytest.mark.parametrize("arguments", [["config"], ["--help"], ["docs", "--json"]])
def test_where_nothing_can_be_printed_there_is_one_line(arguments: list[str], program: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "headstart", *arguments],
            env={**os.environ, **client_environment()},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "headstart: what it prints: No space left on device"
    assert "Traceback" not in done.stderr


def test_warnings_show_whose_they_are(program: Path) -> None:
    script = (
        "import logging, sys\n"
        "from headstart.cli import main\n"
        "from headstart.cli import config\n"
        "config._rows = lambda: [logging.getLogger(n).warning('said') for n in ('headstart', 'other')] and ()\n"
        "main(['config'])\n"
    )
    command = [sys.executable, "-c", script]
    environment = {**os.environ, **client_environment()}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.splitlines()[:2] == ["headstart: said", "said"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["build", "folder"], "folder is a folder"),
        (["build", "made.bundle"], "is a bundle: it is built already"),
        (["run", "--manifest", "made.bundle", "app.py"], "made.bundle is no manifest"),
        (["run", "--manifest", "empty", "app.py"], "empty is no manifest"),
        (["manifest", "show", "made.bundle"], "it is a bundle: headstart bundle list looks into it"),
        (["bundle", "list", "made.manifest"], "it is a manifest: headstart manifest show looks into it"),
    ],
)
def test_the_wrong_kind_of_file_is_named_before_anything_runs(arguments: list[str], said: str, program: Path) -> None:
    Path("folder").mkdir()
    Path("empty").touch()
    Manifest().save("made.manifest")
    with BundleWriter("made.bundle"):
        pass
    done = CliRunner().invoke(main, arguments)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert said in done.stderr
