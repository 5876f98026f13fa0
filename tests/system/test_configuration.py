"""Settings in files: which file counts, what it may set, and what a stranger's may never."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_cli import run

from headstart.errors import UsageError
from headstart.stores.remote import open_remotes
from headstart.stores.remote.urls import parse_urls
from headstart.system import configuration as module
from headstart.system.configuration import allow, configuration, lookup, origin
from headstart.system.settings import Settings, patience
from headstart.system.variables import KNOWN

SECRET = "hunter2-of-mine"
NOBODY = 65534
HARMLESS = {
    "compile-timeout": ("30", "HEADSTART_COMPILE_TIMEOUT"),
    "early-cutoff": ("true", "HEADSTART_EARLY_CUTOFF"),
    "memory-limit": ('"4GiB"', "HEADSTART_MEMORY_LIMIT"),
    "patience": ("7.5", "HEADSTART_PATIENCE"),
    "remote-deadline": ("0.2", "HEADSTART_REMOTE_DEADLINE"),
    "workers": ("3", "HEADSTART_WORKERS"),
}
NEEDS_A_WORD = {
    "cache-limit": ('"1GiB"', "HEADSTART_CACHE_LIMIT"),
    "keep-runs": ("20", "HEADSTART_KEEP_RUNS"),
    "remote": (f'"redis://me:{SECRET}@host"', "HEADSTART_REMOTE"),
    "service": ('"shared"', "HEADSTART_SERVICE"),
}
NEVER = {
    "cache-dir": ('"/tmp/evil"', "HEADSTART_CACHE_DIR"),
    "config-dir": ('"/tmp/evil"', "HEADSTART_CONFIG_DIR"),
    "farm": ('"ray://evil:10001"', "HEADSTART_FARM"),
    "remote-key": ('"mine"', "HEADSTART_REMOTE_KEY"),
    "remote-trust": ('"all"', "HEADSTART_REMOTE_TRUST"),
    "trust-cache-dir": ("true", "HEADSTART_TRUST_CACHE_DIR"),
}


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own file. The working directory is `project` below."""
    module._configuration.cache_clear()
    (tmp_path / "project" / "deep" / "down").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project" / "deep" / "down")
    # Only what a test says is in the environment, but for the folder where the user's own file is.
    folder = tmp_path / "config"
    monkeypatch.delenv("HEADSTART_CACHE_DIR")
    monkeypatch.setenv("HEADSTART_CONFIG_DIR", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder.mkdir()
    return folder / "headstart.toml"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return tmp_path / "project"


def write(path: Path, text: str, *, mode: int = 0o644) -> Path:
    path.write_text(text)
    path.chmod(mode)
    module._configuration.cache_clear()
    return path


def refused() -> str:
    return "\n".join(configuration().refused)


# Which file counts


def test_every_setting_has_a_place_among_what_files_may_set() -> None:
    assert {name for _, name in (*HARMLESS.values(), *NEEDS_A_WORD.values(), *NEVER.values())} | {"HEADSTART"} == set(
        KNOWN
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("headstart.toml", "workers = 3\ncompile-timeout = 1.5\n"),
        ("pyproject.toml", "[project]\nname = 'x'\n[tool.headstart]\nworkers = 3\ncompile_timeout = 1.5\n"),
    ],
)
def test_a_file_in_a_folder_above_is_found(project: Path, name: str, text: str) -> None:
    write(project / name, text)
    settings = Settings.load()
    assert (settings.workers, settings.time_limit) == (3, 1.5)
    assert origin("HEADSTART_WORKERS") == f"{project / name}: workers"


def test_the_nearest_file_is_the_project_s(project: Path) -> None:
    write(project / "headstart.toml", "workers = 3\npatience = 5\n")
    write(project / "deep" / "pyproject.toml", "[tool.headstart]\nworkers = 4\n")
    assert (Settings.load().workers, patience()) == (4, 10)
    write(project / "deep" / "headstart.toml", "workers = 5\n")
    assert Settings.load().workers == 5
    write(project / "deep" / "headstart.toml", "")  # it is there, and sets nothing
    assert lookup("HEADSTART_WORKERS") == ""


def test_a_pyproject_that_is_not_about_headstart_is_none(project: Path) -> None:
    write(project / "headstart.toml", "workers = 3\n")
    write(project / "deep" / "pyproject.toml", "[project]\nname = 'headstart'\ndependencies = ['headstart']\n")
    write(project / "deep" / "down" / "pyproject.toml", "this is no TOML, and nobody asked for it")
    assert Settings.load().workers == 3
    assert refused() == ""


def test_variables_go_before_the_project_s_file_and_that_before_the_user_s(
    project: Path, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(own, "workers = 1\ncompile-timeout = 1\nmemory-limit = '1GiB'\n")
    write(project / "headstart.toml", "workers = 2\ncompile-timeout = 2\n")
    monkeypatch.setenv("HEADSTART_WORKERS", "3")
    settings = Settings.load()
    assert (settings.workers, settings.time_limit, settings.memory_limit) == (3, 2, 1 << 30)
    assert Settings.load(workers=4).workers == 4


def test_a_variable_that_is_empty_asks_for_the_default(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(project / "headstart.toml", "compile-timeout = 2\n")
    monkeypatch.setenv("HEADSTART_COMPILE_TIMEOUT", "")
    assert Settings.load().time_limit is None


def test_lists_numbers_and_switches_are_texts_as_variables_have_them(own: Path) -> None:
    write(own, "remote = ['file:///a', 'redis://b']\nearly-cutoff = true\nworkers = 2\ncompile-timeout = 2.5\n")
    assert lookup("HEADSTART_REMOTE") == "file:///a redis://b"
    settings = Settings.load()
    assert (settings.early_cutoff, settings.workers, settings.time_limit) == (True, 2, 2.5)


@pytest.mark.parametrize("text", ["workers = 'many'", "workers = 0", "compile-timeout = -1", "memory-limit = 'plenty'"])
def test_a_wrong_value_is_an_error_that_names_the_file(project: Path, text: str) -> None:
    path = write(project / "headstart.toml", text)
    with pytest.raises(UsageError, match=f"{path}: {text.split()[0]}: expected"):
        Settings.load()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("workers = = 3", "this is no TOML"),
        ("wrkers = 3", "wrkers is no setting of headstart's; there are cache-dir"),
        ("workers = {}", "workers: expected a text"),
        ("remote = [1]", "remote: expected a text"),
        ("headstart = 'off'", "is no setting"),
        ('"a\\u001b" = 1', "a\\x1b is no setting"),
        ("[tool.headstart]\nworkers = 3", "tool is no setting"),
    ],
)
def test_what_is_no_setting_is_said_and_left_out(project: Path, text: str, said: str) -> None:
    write(project / "headstart.toml", f"{text}\n")
    assert Settings.load().time_limit is None
    assert said in refused()


def test_a_table_that_is_none_is_said(project: Path) -> None:
    write(project / "pyproject.toml", "tool.headstart = 3\n")
    assert "tool.headstart is no table" in refused()
    write(project / "pyproject.toml", "tool = 'tool.headstart'\n")
    assert refused() == ""


def test_a_file_that_is_too_large_is_not_read(project: Path) -> None:
    path = write(project / "headstart.toml", "")
    with open(path, "wb") as file:
        file.truncate(1 << 30)
    module._configuration.cache_clear()
    assert "it is too large" in refused()


def test_what_is_left_out_is_said_once(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(project / "headstart.toml", "of-no-use = 3\n")
    for _ in range(3):
        Settings.load()
    assert caplog.text.count("of-no-use is no setting") == 1


def test_a_working_directory_that_is_gone_has_no_file(project: Path) -> None:
    write(project / "headstart.toml", "workers = 3\n")
    (project / "deep" / "down").rmdir()
    assert configuration().values == {}


# Whose file counts


@pytest.mark.parametrize("mode", [0o666, 0o646])
def test_a_file_that_others_can_write_does_not_count(project: Path, own: Path, mode: int) -> None:
    write(project / "headstart.toml", "workers = 3\n", mode=mode)
    write(own, "patience = 3\n", mode=mode)
    assert configuration().values == {}
    assert refused().count("can be written by everybody") == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of others")
def test_a_file_of_somebody_else_s_does_not_count(project: Path, own: Path) -> None:
    for path in (write(project / "headstart.toml", "workers = 3\n"), write(own, "patience = 3\n")):
        os.chown(path, NOBODY, -1)
    assert configuration().values == {}
    assert refused().count("it belongs to") == 2


@pytest.mark.parametrize("which", ["project", "config"])
def test_a_file_in_a_folder_that_others_can_write_does_not_count(
    project: Path, own: Path, tmp_path: Path, which: str
) -> None:
    write(project / "headstart.toml", "workers = 3\n")
    write(own, "workers = 2\n")
    (tmp_path / which).chmod(0o777)
    module._configuration.cache_clear()
    assert lookup("HEADSTART_WORKERS") == {"project": "2", "config": "3"}[which]
    assert "can be written by everybody" in refused()


def test_a_link_is_not_followed_and_a_pipe_is_not_waited_for(project: Path) -> None:
    elsewhere = write(project / "real.toml", "workers = 3\n")
    (project / "headstart.toml").symlink_to(elsewhere)
    os.mkfifo(project / "deep" / "headstart.toml")
    module._configuration.cache_clear()
    assert lookup("HEADSTART_WORKERS") == ""


def test_one_that_does_not_count_hides_none_above_it(project: Path) -> None:
    write(project / "headstart.toml", "workers = 3\n")
    write(project / "deep" / "headstart.toml", "workers = 4\n", mode=0o666)
    assert lookup("HEADSTART_WORKERS") == "3"


# What a project's file may set: whoever wrote it, its owner is who unpacked it


@pytest.mark.parametrize("key", HARMLESS)
def test_what_costs_nobody_anything_any_file_may_set(project: Path, key: str) -> None:
    text, name = HARMLESS[key]
    write(project / "headstart.toml", f"{key} = {text}\n")
    assert lookup(name) == text.strip('"').replace("true", "1")
    assert refused() == ""


@pytest.mark.parametrize("key", NEVER)
def test_what_loosens_trust_no_project_s_file_sets_allowed_or_not(project: Path, key: str) -> None:
    text, name = NEVER[key]
    path = write(project / "headstart.toml", f"{key} = {text}\n")
    before = Settings.load()
    for _ in range(2):
        assert name not in configuration().values
        assert f"{path}: {key} " in refused()
        allow(path)
    assert Settings.load() == before


@pytest.mark.parametrize("key", NEEDS_A_WORD)
def test_where_kernels_go_and_what_is_removed_needs_the_user_s_word(project: Path, key: str) -> None:
    text, name = NEEDS_A_WORD[key]
    path = write(project / "headstart.toml", f"{key} = {text}\n")
    assert lookup(name) == ""
    assert "headstart config --allow" in refused()
    assert SECRET not in refused()
    allow(path)
    assert lookup(name) == text.strip('"')
    assert refused() == ""


def test_what_was_allowed_is_these_lines_of_this_file(project: Path, own: Path) -> None:
    path = write(project / "headstart.toml", "remote = 'redis://good'\n")
    allow(path)
    assert lookup("HEADSTART_REMOTE") == "redis://good"
    write(path, "remote = 'redis://evil'\n")
    assert lookup("HEADSTART_REMOTE") == ""
    write(path, "remote = 'redis://good'\n")
    assert lookup("HEADSTART_REMOTE") == "redis://good"
    write(project / "deep" / "headstart.toml", "remote = 'redis://good'\n")
    assert lookup("HEADSTART_REMOTE") == ""
    assert (own.parent / "allowed").stat().st_mode & 0o077 == 0


def test_a_list_of_what_is_allowed_that_others_could_write_counts_for_nothing(project: Path, own: Path) -> None:
    path = write(project / "headstart.toml", "remote = 'redis://good'\n")
    allow(path)
    (own.parent / "allowed").chmod(0o666)
    module._configuration.cache_clear()
    assert lookup("HEADSTART_REMOTE") == ""
    (own.parent / "allowed").chmod(0o600)
    own.parent.chmod(0o777)
    module._configuration.cache_clear()
    assert lookup("HEADSTART_REMOTE") == ""


@pytest.mark.parametrize(
    "remote",
    [
        "redis://host?trust=all",
        "redis://host?ttl=7d&trust=all",
        "file:///mnt/a redis://host?TRUST=all",
        "redis://host?%74rust=all",
        "redis://a\nredis://b?read-only&trust=all",
        "redis://host?trust=signed&trust=all",
        "file:///of/the/project/which/this/user/owns",
        "redis://host FILE:///a?read-only",
        "file:///a#?trust=signed",
        "file:///a?trust=signed+",
    ],
)
def test_a_remote_that_counts_without_signatures_no_project_s_file_names(project: Path, own: Path, remote: str) -> None:
    path = write(project / "headstart.toml", f'remote = """{remote}"""\n')
    allow(path)
    assert lookup("HEADSTART_REMOTE") == ""
    assert "decides nothing about trust" in refused()
    path.unlink()
    write(own, f'remote = """{remote}"""\n')
    assert lookup("HEADSTART_REMOTE") == remote


WORDS = (*"?&#=;+%/: \t", "%74", "trust", "TRUST", "signed", "all", "read-only", "file:///a", "redis://a", "FILE://")


@given(st.lists(st.sampled_from(WORDS), max_size=12))
def test_what_a_project_s_file_may_name_never_counts_without_a_signature(words: list[str]) -> None:
    setting = "".join(words)
    if module._loosens(setting):
        return
    with contextlib.suppress(UsageError):
        for url in parse_urls(setting):
            assert not url.trust_all
            assert url.scheme != "file" or url.signed_only


def test_a_folder_that_a_project_s_file_names_takes_signatures(project: Path) -> None:
    remote = f"file://{project}/kernels?trust=signed redis://host?trust=signed"
    allow(write(project / "headstart.toml", f"remote = '{remote}'\n"))
    assert lookup("HEADSTART_REMOTE") == remote
    store = open_remotes(lookup("HEADSTART_REMOTE")).tiers[0]
    store.put("a" * 64, b"a")
    assert not store.trusted
    assert store.get_many(["a" * 64]) == {"a" * 64: b"a"}
    assert open_remotes(f"file://{project}/kernels").trusted


@pytest.mark.parametrize("key", sorted({*HARMLESS, *NEEDS_A_WORD, *NEVER} - {"config-dir"}))
def test_the_user_s_own_file_sets_everything(own: Path, key: str) -> None:
    text, name = (HARMLESS | NEEDS_A_WORD | NEVER)[key]
    write(own, f"{key} = {text}\n")
    assert lookup(name) == text.strip('"').replace("true", "1")
    assert refused() == ""


def test_the_user_s_own_cache_folder_is_used(own: Path) -> None:
    write(own, "cache-dir = '/var/kernels'\ntrust-cache-dir = true\n")
    settings = Settings.load()
    assert (settings.cache_dir, settings.trusts_cache_dir) == (Path("/var/kernels"), True)


# headstart config


def shown(*arguments: str) -> dict[str, list[str]]:
    result = run("config", *arguments)
    assert result.exit_code == 0
    assert SECRET not in result.output
    return {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines()}


def test_config_shows_what_is_in_force_and_where_it_comes_from(
    project: Path, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(own, f"remote = ['redis://me:{SECRET}@host/0?ttl=7d', 's3://bucket/x?trust=all&read-only']\n", mode=0o600)
    path = write(project / "headstart.toml", "compile-timeout = 2\n")
    monkeypatch.setenv("HEADSTART_WORKERS", "3")
    rows = shown()
    assert rows["workers"] == ["3", "variable"]
    assert rows["compile-timeout"] == ["2", str(path)]
    assert rows["remote"] == ["redis://host/0?ttl=7d", "s3://bucket/x?trust=all&read-only", str(own)]
    assert rows["cache-limit"] == ["10GiB", "default"]
    assert set(rows) == {name.removeprefix("HEADSTART_").lower().replace("_", "-") for name in KNOWN}
    told = [json.loads(line) for line in run("config", "--json").stdout.splitlines()]
    assert {"setting": "workers", "value": "3", "source": "variable"} in told
    assert len(told) == len(KNOWN)


def test_config_hides_what_it_cannot_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_REMOTE", f"redi://me:{SECRET}@host file:///a")
    result = run("config")
    assert result.exit_code == 2
    assert "*** file:///a" in result.stdout
    assert "did you mean redis://" in result.stderr
    assert SECRET not in result.output


def test_config_says_what_is_left_out_and_allows_it_when_told(project: Path) -> None:
    path = write(project / "headstart.toml", f"remote = 'redis://me:{SECRET}@host'\ntrust-cache-dir = true\n")
    result = run("config")
    assert f"{path}: remote is not used until you allow it" in result.stderr
    assert f"{path}: trust-cache-dir is not used" in result.stderr
    module._said.clear()
    result = run("config", "--allow")
    assert result.exit_code == 0
    assert "redis://host" in result.stdout
    assert "trust-cache-dir is not used" in result.stderr
    assert SECRET not in result.output
    result = run("config", "--allow")
    assert result.exit_code == 2
    assert "there is nothing to allow" in result.stderr


@pytest.mark.parametrize("content", [None, "", "[project]\nname='x'\n"])
def test_nothing_that_is_no_such_file_can_be_allowed(project: Path, content: str | None) -> None:
    path = project / "pyproject.toml"
    if content is not None:
        write(path, content)
    with pytest.raises(UsageError, match="no settings of headstart's"):
        allow(path)


def test_a_hostile_project_changes_nothing_for_other_commands(project: Path, tmp_path: Path) -> None:
    lines: list[Any] = [f"{key} = {text}" for key, (text, _) in (NEVER | NEEDS_A_WORD).items()]
    write(project / "headstart.toml", "\n".join(lines))
    result = run("cache", "info")
    assert result.exit_code == 0
    assert str(tmp_path / "cache") in result.stdout
    assert not Path("/tmp/evil").exists()
