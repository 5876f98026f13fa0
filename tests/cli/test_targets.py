"""`--target`: what people call their GPU, and what the installed tools cannot compile for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from headstart.cli import main, targets
from headstart.cli.targets import architectures, target_of, targets_of
from headstart.errors import UsageError


def a_ptxas(folder: Path, says: str) -> Path:
    tool = folder / "ptxas"
    tool.write_text(f"#!/bin/sh\ncat <<'E'\n{says}\nE\n", encoding="utf-8")
    tool.chmod(0o755)
    return tool


def test_the_same_device_twice_is_one_target() -> None:
    assert [str(each) for each in targets_of(["h100", "sm_90", "cuda:90", "mi300x"])] == ["cuda:90", "hip:gfx942"]


def test_what_the_assembler_does_not_know_is_refused_with_what_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = a_ptxas(tmp_path, "Allowed values: 'compute_90','lto_90','sm_100','sm_90','sm_90a'")
    monkeypatch.setenv("TRITON_PTXAS_PATH", str(tool))
    monkeypatch.setenv("TRITON_PTXAS_BLACKWELL_PATH", str(tool))
    assert architectures(tool) == ["90", "100"]
    with pytest.raises(
        UsageError, match=r"unknown target 'cuda:91': the installed ptxas compiles for cuda:90, cuda:100$"
    ):
        target_of("cuda:91")


def test_a_device_of_later_is_taken_if_the_assembler_knows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_PTXAS_BLACKWELL_PATH", str(a_ptxas(tmp_path, "'sm_130'")))
    assert str(target_of("sm_130")) == "cuda:130"


@pytest.mark.parametrize("says", ["nothing of the kind", None])
def test_an_assembler_that_does_not_say_refuses_nothing(
    says: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "no-such-tool" if says is None else a_ptxas(tmp_path, says)
    for variable in ("TRITON_PTXAS_PATH", "TRITON_PTXAS_BLACKWELL_PATH"):
        monkeypatch.setenv(variable, os.fspath(tool))
    assert str(target_of("cuda:91")) == "cuda:91"


def test_known_devices_start_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "architectures", lambda _: pytest.fail("ptxas was started"))
    assert str(target_of("b200")) == "cuda:100"


@pytest.mark.triton
def test_the_installed_assembler_says_what_it_compiles_for() -> None:
    with pytest.raises(UsageError, match=r"compiles for .*cuda:80, .*cuda:90"):
        target_of("cuda:91")


@pytest.mark.parametrize("command", [["build", "plan.py"], ["run", "--dry-run", "app.py"]])
def test_a_target_that_is_none_is_one_line_and_bad_usage(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("plan.py", "app.py"):
        Path(name).write_text("raise SystemExit(9)\n", encoding="utf-8")
    done = CliRunner().invoke(main, [command[0], "--target", "cuda:502", *command[1:]])
    assert done.exit_code == 2
    assert done.stderr.startswith("headstart: unknown target 'cuda:502': expected an architecture of cuda (70, ")
    assert done.stderr.count("\n") == 1
