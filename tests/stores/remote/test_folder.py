"""A shared folder: what others can do to it, what file servers do, and what pruning leaves alone."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headstart.stores.remote import folder as folder_module
from headstart.stores.remote.base import Pruned, RemoteError
from headstart.stores.remote.folder import ABANDONED_AGE, USED_AGAIN, FolderRemote

A, B = (hashlib.sha256(name).hexdigest() for name in (b"a", b"b"))
NOBODY = 65534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of others")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "shared"


@pytest.fixture
def store(root: Path) -> FolderRemote:
    made = FolderRemote(root)
    made.put(A, b"a")
    return made


def path_of(root: Path, key: str) -> Path:
    return root / "v1" / key[:2] / f"{key}.blob"


def everything(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}


def raising(number: int) -> Callable[..., Any]:
    def call(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return call


# Trust


def test_a_folder_of_this_user_alone_counts_without_a_signature(store: FolderRemote, root: Path) -> None:
    assert store.trusted
    assert FolderRemote(root).trusted


def test_one_that_is_not_there_does_not_count_until_it_is(root: Path) -> None:
    store = FolderRemote(root)
    assert not store.trusted
    assert store.get_many([A]) == {}
    store.put(A, b"a")
    assert store.trusted


@pytest.mark.parametrize(
    ("which", "mode", "counts"),
    # Where the sticky bit is, who may write the folder cannot put another one in the place of what is in it.
    [("", 0o777, False), ("", 0o1777, True), ("v1", 0o777, False), ("v1", 0o1777, False)],
)
def test_one_that_everybody_may_write_does_not_count(
    store: FolderRemote, root: Path, which: str, mode: int, counts: bool
) -> None:
    (root / which).chmod(mode)
    other = FolderRemote(root)
    assert other.trusted is counts
    assert other.get_many([A]) == {A: b"a"}  # signatures will tell
    assert FolderRemote(root, trust_all=True).trusted


@as_root
def test_one_of_somebody_else_s_does_not_count(store: FolderRemote, root: Path) -> None:
    os.chown(root, NOBODY, -1)
    assert not FolderRemote(root).trusted


def test_a_file_that_others_may_write_is_not_there_where_signatures_are_not_asked_for(
    store: FolderRemote, root: Path
) -> None:
    path_of(root, A).chmod(0o666)
    assert store.get_many([A]) == {}
    assert FolderRemote(root, trust_all=True).get_many([A]) == {A: b"a"}


@as_root
def test_a_file_of_somebody_else_s_is_not_there_where_signatures_are_not_asked_for(
    store: FolderRemote, root: Path
) -> None:
    os.chown(path_of(root, A), NOBODY, -1)
    assert store.get_many([A]) == {}
    root.joinpath("v1").chmod(0o777)
    other = FolderRemote(root)
    assert (other.trusted, other.get_many([A])) == (False, {A: b"a"})


def test_the_name_has_the_folder(store: FolderRemote, root: Path) -> None:
    assert store.name == f"file://{root}"


# What is in the place of files and folders


def test_links_are_not_followed(store: FolderRemote, root: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / f"{B}.blob").write_bytes(b"of somebody else")
    path_of(root, B).parent.mkdir(exist_ok=True)
    path_of(root, B).symlink_to(elsewhere / f"{B}.blob")
    assert store.get_many([A, B]) == {A: b"a"}
    store.put(B, b"b")
    assert (elsewhere / f"{B}.blob").read_bytes() == b"of somebody else"
    assert store.get_many([B]) == {B: b"b"}


@pytest.mark.parametrize("which", ["v1", f"v1/{B[:2]}"])
def test_a_folder_that_is_a_link_is_neither_read_nor_written(root: Path, tmp_path: Path, which: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (root / which).parent.mkdir(parents=True)
    (root / which).symlink_to(elsewhere)
    store = FolderRemote(root)
    with pytest.raises(RemoteError):
        store.put(B, b"b")
    assert store.get_many([B]) == {}
    store.delete(B)
    assert os.listdir(elsewhere) == []
    assert store.prune(0).removed == 0


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
@pytest.mark.timeout(20)
def test_what_is_no_file_is_not_there(store: FolderRemote, root: Path, make: Callable[[Path], object]) -> None:
    path_of(root, B).parent.mkdir(exist_ok=True)
    make(path_of(root, B))
    assert store.get_many([A, B]) == {A: b"a"}


def test_a_file_in_the_folder_s_place_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "shared").write_text("notes")
    store = FolderRemote(tmp_path / "shared")
    assert store.get_many([A]) == {}
    with pytest.raises(RemoteError, match="Not a directory"):
        store.put(A, b"a")
    assert (tmp_path / "shared").read_text() == "notes"


def test_a_folder_whose_volume_is_not_there_is_an_error_and_not_made(tmp_path: Path) -> None:
    store = FolderRemote(tmp_path / "mnt" / "shared")
    with pytest.raises(RemoteError, match=r"there is no folder .*/mnt") as caught:
        store.get_many([A])
    assert caught.value.lasting
    with pytest.raises(RemoteError, match="No such file") as caught:
        store.put(A, b"a")
    assert caught.value.lasting
    assert not (tmp_path / "mnt").exists()


def test_one_that_says_to_be_a_gibibyte_is_a_miss_and_is_not_read(store: FolderRemote, root: Path) -> None:
    path_of(root, B).parent.mkdir(exist_ok=True)
    with open(path_of(root, B), "wb") as file:
        file.truncate(1 << 30)
    begun = time.process_time()
    assert store.get_many([A, B]) == {A: b"a"}
    assert time.process_time() - begun < 0.2


# What file servers do


@pytest.mark.parametrize("number", [errno.ESTALE, errno.ENOENT])
def test_a_file_that_the_server_has_replaced_is_a_miss(
    store: FolderRemote, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(folder_module, "_read", raising(number))
    assert store.get_many([A]) == {}


def test_a_folder_that_went_stale_is_opened_again(store: FolderRemote, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.replace, []

    def replace(*arguments: Any, **keywords: Any) -> None:
        calls.append(arguments)
        if len(calls) == 1:
            raise OSError(errno.ESTALE, "Stale file handle")
        real(*arguments, **keywords)

    monkeypatch.setattr(os, "replace", replace)
    store.put(B, b"b")
    monkeypatch.undo()
    assert store.get_many([B]) == {B: b"b"}


@pytest.mark.parametrize(
    ("number", "lasting", "advice"),
    [
        (errno.ENOSPC, False, "make room"),
        (errno.EDQUOT, False, "make room"),
        (errno.EROFS, True, "read-only"),
        (errno.EACCES, True, "read-only"),
        (errno.EIO, False, "file server"),
    ],
)
def test_a_folder_that_is_full_or_read_only_is_an_error_and_nothing_is_left(
    store: FolderRemote, root: Path, monkeypatch: pytest.MonkeyPatch, number: int, lasting: bool, advice: str
) -> None:
    before = everything(root)
    monkeypatch.setattr(os, "replace", raising(number))
    with pytest.raises(RemoteError, match="cannot write") as caught:
        store.put(B, b"b")
    assert (caught.value.lasting, advice in caught.value.advice) == (lasting, True)
    assert everything(root) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_this_user_may_not_write_is_an_error(store: FolderRemote, root: Path) -> None:
    for folder in (root, root / "v1", *(root / "v1").iterdir()):
        folder.chmod(0o555)
    with pytest.raises(RemoteError, match="Permission denied"):
        store.put(B, b"b")
    with pytest.raises(RemoteError, match="Permission denied"):
        store.delete(A)
    assert store.get_many([A]) == {A: b"a"}


def test_a_folder_that_cannot_be_read_is_an_error(store: FolderRemote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "_read", raising(errno.EIO))
    with pytest.raises(RemoteError, match="cannot read: Input/output error"):
        store.get_many([A])


def test_no_lock_is_taken(store: FolderRemote, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for call in ("flock", "lockf", "fcntl"):
        monkeypatch.setattr(f"fcntl.{call}", raising(errno.ENOLCK))
    monkeypatch.setattr(os, "link", raising(errno.EPERM))
    store.put(B, b"b")
    assert store.get_many([A, B]) == {A: b"a", B: b"b"}
    store.delete(B)
    assert store.prune(3600) == Pruned(0, 0, 1, 1)


def test_files_are_as_open_as_the_umask_says(root: Path) -> None:
    old = os.umask(0o002)
    try:
        FolderRemote(root).put(A, b"a")
    finally:
        os.umask(old)
    assert stat.S_IMODE(path_of(root, A).stat().st_mode) == 0o664
    assert stat.S_IMODE(root.stat().st_mode) == 0o775


# Pruning


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_what_was_not_used_for_long_enough_is_removed(store: FolderRemote, root: Path) -> None:
    store.put(B, b"bbb")
    age(path_of(root, B), 100)
    assert store.prune(50) == Pruned(1, 3, 1, 1)
    assert store.get_many([A, B]) == {A: b"a"}
    assert FolderRemote(root / "none").prune(0) == Pruned()


@pytest.mark.parametrize("jump", [-3600.0, 3600.0, 1e8])
def test_a_host_whose_clock_is_wrong_removes_nothing_that_is_fresh(
    store: FolderRemote, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + jump)
    assert store.prune(1800).removed == 0
    assert store.get_many([A]) == {A: b"a"}


def test_what_a_host_with_a_fast_clock_wrote_stays(store: FolderRemote, root: Path) -> None:
    age(path_of(root, A), -3600)
    assert store.prune(10).removed == 0


def test_pruning_leaves_what_is_not_its_own_and_what_is_being_written(store: FolderRemote, root: Path) -> None:
    mine = path_of(root, A).parent
    fresh, old = mine / f".{A}.{'1' * 16}.tmp", mine / f".{A}.{'2' * 16}.tmp"
    foreign = [mine / "notes", mine / f"{A}.blob.bak", mine / ".hidden.tmp", root / "v1" / "xyz", root / "README"]
    for path in (fresh, old, *foreign):
        path.write_bytes(b"x")
        age(path, 1e6)
    age(fresh, ABANDONED_AGE / 2)
    store.prune(1e7)
    assert not old.exists()
    assert fresh.exists()
    assert all(path.exists() for path in foreign)
    assert store.get_many([A]) == {A: b"a"}


def test_a_use_is_written_down_once_a_day(store: FolderRemote, root: Path) -> None:
    path = path_of(root, A)
    age(path, USED_AGAIN / 2)
    before = path.stat().st_mtime
    store.get_many([A])
    assert path.stat().st_mtime == before
    age(path, USED_AGAIN + 10)
    store.get_many([A])
    assert time.time() - path.stat().st_mtime < 60
    age(path, -USED_AGAIN - 10)
    store.get_many([A])
    assert path.stat().st_mtime - time.time() < 60


def test_a_folder_that_cannot_be_pruned_is_an_error(store: FolderRemote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "Swept", raising(errno.EACCES))
    with pytest.raises(RemoteError, match="cannot prune"):
        store.prune(0)
