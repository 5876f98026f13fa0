"""Only listed variables reach a kernel's identity."""

from __future__ import annotations

from pathlib import Path

import pytest

from headstart.model.environment import (
    BYPASS_VARIABLES,
    FINGERPRINT_VARIABLES,
    OUTCOME_VARIABLES,
    TOOL_VARIABLES,
    bypass_reason,
    fingerprint,
)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in FINGERPRINT_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_the_groups_of_variables_do_not_overlap() -> None:
    assert len(FINGERPRINT_VARIABLES) == len(TOOL_VARIABLES) + len(OUTCOME_VARIABLES) + len(BYPASS_VARIABLES)


def test_an_environment_without_listed_variables_has_an_empty_fingerprint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", "/somewhere")
    monkeypatch.setenv("HEADSTART_WORKERS", "3")
    assert fingerprint() == {}


@pytest.mark.parametrize("name", sorted(FINGERPRINT_VARIABLES))
def test_every_listed_variable_is_in_the_fingerprint(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "/a")
    assert fingerprint() == {name: "/a"}


def test_an_empty_variable_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_PTXAS_PATH", "")
    monkeypatch.setenv("TRITON_DEBUG", "")
    assert fingerprint() == {}


def test_a_variable_set_to_zero_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMDGCN_USE_BUFFER_OPS", "0")
    assert fingerprint() == {"AMDGCN_USE_BUFFER_OPS": "0"}


def test_a_fingerprint_does_not_depend_on_the_order_in_which_variables_were_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("USE_IR_LOC", "DISABLE_LLVM_OPT"):
        monkeypatch.setenv(name, "1")
    assert list(fingerprint()) == ["DISABLE_LLVM_OPT", "USE_IR_LOC"]


@pytest.mark.parametrize(
    "name",
    [
        "LLVM_PASS_PLUGIN_PATH",
        "MLIR_DUMP_PATH",
        "TRITON_AMD_CODEGEN_PATH",
        "TRITON_DUMP_DIR",
        "TRITON_LIBDEVICE_PATH",
        "TRITON_OVERRIDE_DIR",
        "TRITON_PTXAS_BLACKWELL_PATH",
        "TRITON_PTXAS_PATH",
        "TRITON_REPRODUCER_PATH",
    ],
)
def test_relative_paths_are_those_of_the_client(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(name, "tools/../ptxas")
    assert fingerprint() == {name: str(tmp_path / "ptxas")}


def test_relative_paths_in_a_list_are_those_of_the_client_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRITON_PLUGIN_PATHS", "a.so:/opt/b.so")
    assert fingerprint() == {"TRITON_PLUGIN_PATHS": f"{tmp_path}/a.so:/opt/b.so"}


def test_values_that_are_no_paths_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTXAS_OPTIONS", "-v ../x")
    assert fingerprint() == {"PTXAS_OPTIONS": "-v ../x"}


def test_nothing_that_only_changes_the_outcome_bypasses_the_caches() -> None:
    assert bypass_reason({}) is None
    assert bypass_reason(dict.fromkeys(TOOL_VARIABLES | OUTCOME_VARIABLES, "1")) is None


@pytest.mark.parametrize("name", sorted(BYPASS_VARIABLES - {"TRITON_DUMP_DIR", "TRITON_OVERRIDE_DIR"}))
def test_a_wish_to_see_or_change_a_compile_bypasses_the_caches(name: str) -> None:
    assert bypass_reason({name: "1", "TRITON_DEBUG": "1"}) == name


def test_a_place_for_dumps_bypasses_nothing_unless_something_is_dumped() -> None:
    places = {"TRITON_DUMP_DIR": "/d", "TRITON_OVERRIDE_DIR": "/o"}
    assert bypass_reason(places) is None
    assert bypass_reason({**places, "TRITON_KERNEL_DUMP": "1"}) == "TRITON_KERNEL_DUMP"


def test_the_reason_is_the_same_whatever_the_order() -> None:
    names = ["TRITON_KERNEL_DUMP", "MLIR_ENABLE_DUMP"]
    assert bypass_reason(dict.fromkeys(names, "1")) == bypass_reason(dict.fromkeys(reversed(names), "1"))


@pytest.mark.parametrize("value", ["0", "false", "OFF"])
def test_a_variable_that_says_no_bypasses_nothing(value: str) -> None:
    assert bypass_reason({"TRITON_ALWAYS_COMPILE": value}) is None
