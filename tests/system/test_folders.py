"""Things lie where the user said, and what is private is private."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from headstart.errors import ServiceError
from headstart.system import folders
from headstart.system.folders import cache_dir, runtime_dir


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEADSTART_CACHE_DIR", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)


def test_the_cache_folder_is_the_platforms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "headstart"
    monkeypatch.setenv("HEADSTART_CACHE_DIR", "")
    assert cache_dir() == tmp_path / "headstart"


def test_the_cache_folder_is_the_users_choice_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    places = {"/var/kernels": "/var/kernels", "~/kernels": "/home/me/kernels", "k": f"{tmp_path}/k"}
    for choice, folder in places.items():
        monkeypatch.setenv("HEADSTART_CACHE_DIR", choice)
        assert cache_dir() == Path(folder)


def test_asking_for_the_cache_folder_does_not_make_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_CACHE_DIR", str(tmp_path / "new"))
    assert not cache_dir().exists()


def test_the_runtime_folder_is_made_for_its_user_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    path = runtime_dir()
    assert path == tmp_path / "headstart"
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert runtime_dir() == path


@pytest.mark.parametrize(("memory_is_writable", "shared"), [(True, "/dev/shm"), (False, "/tmp")])
def test_without_a_session_the_runtime_folder_is_in_a_shared_one_and_carries_its_users_number(
    memory_is_writable: bool, shared: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *arguments: object) -> None:
        raise OSError(errno.ENOSPC, "full", str(path))

    monkeypatch.setattr(os, "access", lambda path, mode: memory_is_writable)
    monkeypatch.setattr(os, "mkdir", refuse)  # so that nothing is left there
    with pytest.raises(ServiceError, match=f"folder {shared}/headstart-{os.getuid()}: full; set XDG_RUNTIME_DIR"):
        runtime_dir()


@pytest.mark.parametrize("mode", [0o701, 0o710, 0o777])
def test_a_runtime_folder_that_others_can_enter_is_refused(
    mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "headstart").mkdir()
    (tmp_path / "headstart").chmod(mode)
    with pytest.raises(ServiceError, match=f"mode {mode:o}.*remove it, or set XDG_RUNTIME_DIR"):
        runtime_dir()


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give folders away")
def test_a_runtime_folder_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    os.chown(runtime_dir(), 12345, -1)
    with pytest.raises(ServiceError, match="owner 12345"):
        runtime_dir()


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give folders away")
def test_the_session_of_somebody_else_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `sudo -E` would have it: root would leave a folder there that its owner cannot use."""
    theirs = tmp_path / "theirs"
    theirs.mkdir(0o700)
    os.chown(theirs, 12345, -1)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(theirs))
    monkeypatch.setattr(folders, "_made", lambda path: path)
    assert theirs not in runtime_dir().parents
    assert os.listdir(theirs) == []


@pytest.mark.parametrize("squatted", ["file", "link", "open folder", "folder of another user"])
def test_nobody_can_take_the_name_of_the_runtime_folder(tmp_path: Path, squatted: str) -> None:
    tmp_path.chmod(0o1777)
    place = tmp_path / f"headstart-{os.getuid()}"
    if squatted == "file":
        place.touch()
    elif squatted == "link":
        (tmp_path / "elsewhere").mkdir(0o700)
        place.symlink_to("elsewhere")
    else:
        place.mkdir(0o700)
        if squatted == "open folder":
            place.chmod(0o777)
        elif os.getuid() != 0:
            pytest.skip("only root may give folders away")
        else:
            os.chown(place, 12345, -1)
    (tmp_path / f"headstart-{os.getuid()}-guessed").symlink_to(tmp_path)
    found = folders._made(tmp_path / f"headstart-{os.getuid()}")
    assert found != place
    assert found.name.startswith(f"{place.name}-")
    assert (found.lstat().st_uid, stat.S_IMODE(found.lstat().st_mode)) == (os.getuid(), 0o700)
    assert folders._made(tmp_path / f"headstart-{os.getuid()}") == found, "all of a user's processes have the same"
    assert os.listdir(found) == []


def test_the_runtime_folder_among_others_has_a_plain_name_if_nobody_took_it(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    (tmp_path / f"headstart-{os.getuid()}-abc").mkdir(0o700)
    assert folders._made(tmp_path / f"headstart-{os.getuid()}") == tmp_path / f"headstart-{os.getuid()}"


@pytest.mark.parametrize("what", ["link", "dangling link", "file"])
def test_what_is_not_a_folder_is_no_runtime_folder(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    place, private = tmp_path / "headstart", tmp_path / "private"
    if what == "file":
        place.touch(0o600)
    else:
        place.symlink_to(private)
        if what == "link":
            private.mkdir(0o700)
    with pytest.raises(ServiceError, match="XDG_RUNTIME_DIR"):
        runtime_dir()


def test_a_runtime_folder_that_cannot_be_made_is_told_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/proc")
    with pytest.raises(ServiceError, match=r"cannot make the runtime folder .*: No such file"):
        runtime_dir()
