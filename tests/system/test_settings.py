"""Arguments go before variables, and variables before defaults."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.errors import UsageError
from headstart.system.settings import DEFAULT_STORE_LIMIT, Settings, parse_seconds, parse_size


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("HEADSTART_"):
            monkeypatch.delenv(name)


def test_defaults_fit_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 5} if pid == 0 else {})
    assert Settings.load() == Settings(tmp_path / "headstart", 3, None, DEFAULT_STORE_LIMIT)
    assert parse_size("10GiB") == DEFAULT_STORE_LIMIT


def test_one_worker_and_less_than_a_second_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_WORKERS", "1")
    monkeypatch.setenv("HEADSTART_COMPILE_TIMEOUT", "0.5")
    assert (Settings.load().workers, Settings.load().time_limit) == (1, 0.5)
    assert Settings.load(workers=1).workers == 1


def test_variables_go_before_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "HEADSTART_CACHE_DIR": "/var/kernels",
        "HEADSTART_WORKERS": " 7 ",
        "HEADSTART_COMPILE_TIMEOUT": "2.5",
        "HEADSTART_CACHE_LIMIT": "1.5GiB",
        "HEADSTART_MEMORY_LIMIT": "512MiB",
        "HEADSTART_EARLY_CUTOFF": "1",
    }.items():
        monkeypatch.setenv(name, value)
    assert Settings.load() == Settings(Path("/var/kernels"), 7, 2.5, 3 << 29, 1 << 29, early_cutoff=True)


def test_arguments_go_before_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_CACHE_DIR", "/var/kernels")
    monkeypatch.setenv("HEADSTART_WORKERS", "none of your business")
    settings = Settings.load(workers=2, cache_dir=tmp_path)
    assert (settings.workers, settings.cache_dir) == (2, tmp_path)


@pytest.mark.parametrize(
    ("text", "service"),
    [("", "auto"), (" auto ", "auto"), ("private", "private"), ("shared", "shared"), ("/run/a.sock", "/run/a.sock")],
)
def test_a_service_is_private_shared_or_at_a_path(text: str, service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_SERVICE", text)
    assert Settings.load().service == service


def test_a_service_s_path_may_be_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEADSTART_SERVICE", "./my.sock")
    assert Settings.load().service == str(tmp_path / "my.sock")


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("1.5s", 1.5), ("10m", 600), (" 2h ", 7200)])
def test_times_have_units(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-1s", "10 minutes"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected a time such as"):
        parse_seconds(text)


def test_an_unknown_kind_of_service_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_SERVICE", "public")
    with pytest.raises(UsageError, match="HEADSTART_SERVICE: expected auto, private, shared"):
        Settings.load()


def test_the_cache_folder_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert Settings.load(cache_dir="here").cache_dir == tmp_path / "here"
    assert Settings.load(cache_dir="~/there").cache_dir == Path("/home/me/there")


@pytest.mark.parametrize("name", ["WORKERS", "COMPILE_TIMEOUT", "CACHE_LIMIT", "MEMORY_LIMIT", "CACHE_DIR"])
def test_an_empty_variable_is_as_good_as_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Settings.load()
    monkeypatch.setenv(f"HEADSTART_{name}", "")
    assert Settings.load() == expected


@pytest.mark.parametrize("workers", [0, -1, 1.5, "two"])
def test_a_number_of_workers_that_is_none_is_refused(workers: int) -> None:
    with pytest.raises(UsageError, match="workers: expected a number from 1 to 1024"):
        Settings.load(workers=workers)


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        ("HEADSTART_WORKERS", "0", "a number from 1 to 1024"),
        ("HEADSTART_WORKERS", "-3", "a number from 1 to 1024"),
        ("HEADSTART_WORKERS", "many", "a number from 1 to 1024"),
        ("HEADSTART_WORKERS", "1.5", "a number from 1 to 1024"),
        ("HEADSTART_COMPILE_TIMEOUT", "0", "seconds above 0"),
        ("HEADSTART_COMPILE_TIMEOUT", "-1", "seconds above 0"),
        ("HEADSTART_COMPILE_TIMEOUT", "nan", "seconds above 0"),
        ("HEADSTART_COMPILE_TIMEOUT", "inf", "seconds above 0"),
        ("HEADSTART_COMPILE_TIMEOUT", "1 min", "seconds above 0"),
        ("HEADSTART_CACHE_LIMIT", "lots", "a size such as 10GiB"),
        ("HEADSTART_EARLY_CUTOFF", "always", "1 or 0"),
    ],
)
def test_a_wrong_variable_is_refused_by_name_with_what_is_accepted(
    name: str, value: str, accepted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError) as refusal:
        Settings.load()
    assert name in str(refusal.value)
    assert repr(value) in str(refusal.value)
    assert accepted in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("123", 123),
        ("1K", 1 << 10),
        ("500M", 500 << 20),
        ("10GiB", 10 << 30),
        ("10 gib", 10 << 30),
        ("2TB", 2 << 40),
        (" 1.5 k ", 1536),
        ("7B", 7),
        ("none", None),
        (" None ", None),
    ],
)
def test_sizes_are_read(text: str, size: int | None) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1e3", "1.5.5K", "10PiB", "10 Gi", "1,5G", "nothing"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="10GiB, 500M or none"):
        parse_size(text)


@given(st.integers(0, 2**60))
def test_a_number_of_bytes_is_read_exactly(size: int) -> None:
    assert parse_size(str(size)) == size


@given(st.text("0123456789.KMGTiB none-", max_size=20) | st.text(max_size=8) | st.just("9" * 400))
def test_any_text_is_a_size_or_refused(text: str) -> None:
    try:
        size = parse_size(text)
    except UsageError:
        return
    assert size is None or size >= 0
