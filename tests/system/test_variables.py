"""Environment variables mean the same everywhere, and one that is misspelt is named."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

import headstart
from headstart.adapters import options, process
from headstart.cli import main
from headstart.cli.doctor import check_environment, check_settings
from headstart.errors import UsageError
from headstart.system.settings import Settings
from headstart.system.variables import KNOWN, Mode, misspelt, mode, required

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _nothing_is_enabled() -> Iterator[None]:
    yield
    headstart.disable()


@pytest.mark.parametrize("text", ["0", "false", "no", "off", "OFF", " False "])
def test_every_word_for_off_is_off_for_the_library_and_the_doctor(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART", text)
    assert mode() is Mode.OFF
    headstart.enable()
    assert process.current() is None
    assert any("switched off" in check.found for check in check_environment())
    assert check_settings().status == "ok"


@pytest.mark.parametrize("text", ["", "1", "true", "yes", "on", "On"])
def test_every_word_for_on_is_on(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART", text)
    assert mode() is Mode.ON
    assert not required()
    assert not any("switched off" in check.found for check in check_environment())


def test_require_is_require(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART", "Require")
    assert mode() is Mode.REQUIRE
    assert required()


def test_any_other_word_is_an_error_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART", "flase")
    with pytest.raises(UsageError, match=r"HEADSTART: expected on, off or require .*'flase'"):
        headstart.enable()
    assert "'flase'" in check_settings().found
    done = CliRunner().invoke(main, ["run", "app.py"])
    assert done.exit_code == 2
    assert "'flase'" in done.stderr


@pytest.mark.parametrize(("text", "is_on"), [("yes", True), ("1", True), ("off", False), ("", False)])
def test_other_switches_take_the_same_words(text: str, is_on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_EARLY_CUTOFF", text)
    assert Settings.load().early_cutoff is is_on


def test_a_misspelt_variable_is_named_with_the_one_that_is_meant() -> None:
    strange = ("HEADSTART_WORKER", "HEADSTART_CACHEDIR", "HEADSTART_RUN", "HEADSTARTED", "HOME")
    variables = dict.fromkeys(strange, "4")
    assert misspelt(variables | dict.fromkeys(KNOWN, "")) == [
        "HEADSTART_CACHEDIR is no variable of headstart's, and is ignored; did you mean HEADSTART_CACHE_DIR?",
        "HEADSTART_WORKER is no variable of headstart's, and is ignored; did you mean HEADSTART_WORKERS?",
    ]
    (said,) = misspelt({"HEADSTART_\n": ""})
    assert "\n" not in said
    assert "there are HEADSTART, HEADSTART_CACHE_DIR, " in said


def test_what_all_variables_begin_with_is_no_likeness() -> None:
    (said,) = misspelt({"HEADSTART_BUNDLE": "app.bundle"})
    assert "did you mean" not in said
    assert "there are HEADSTART, HEADSTART_CACHE_DIR, " in said


def test_enable_names_a_misspelt_variable_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HEADSTART_WROKERS", "4")
    monkeypatch.setattr(options, "_said", set())
    monkeypatch.setenv("HEADSTART", "off")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            headstart.enable()
    assert [message for message in caplog.messages if "did you mean HEADSTART_WORKERS?" in message] == caplog.messages
    assert len(caplog.messages) == 1


def test_run_and_doctor_name_a_misspelt_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_WROKERS", "4")
    monkeypatch.setattr("headstart.cli.run.become", lambda command, variables: None)
    assert "did you mean HEADSTART_WORKERS?" in CliRunner().invoke(main, ["run", "app.py"]).stderr
    assert any(check.remedy == "did you mean HEADSTART_WORKERS?" for check in check_environment())


def test_serve_names_a_misspelt_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_WROKERS", "4")
    monkeypatch.setattr("headstart.cli.serve.become_service", lambda settings, **more: None)
    assert "did you mean HEADSTART_WORKERS?" in CliRunner().invoke(main, ["serve"]).stderr


def test_every_variable_that_code_or_documents_name_is_known() -> None:
    files = [*ROOT.glob("src/**/*.py"), *ROOT.glob("docs/*.md"), ROOT / "README.md"]
    texts = [path.read_text(encoding="utf-8") for path in files]
    named = {name for text in texts for name in re.findall(r"\bHEADSTART_[A-Z][A-Z_]*[A-Z]\b", text)}
    assert named <= KNOWN.keys() | {"HEADSTART_RUN"}, os.linesep.join(sorted(named))
