"""One contract for every store, and what only a disk can do to one."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from headstart.artifacts.entry import MAGIC, Entry, pack_entry
from headstart.errors import StoreUnavailable
from headstart.stores.base import PruneReport, Store
from headstart.stores.disk import DiskStore
from headstart.stores.memory import MemoryStore

A, B, C = ("aa" * 32, "bb" * 32, "cc" * 32)


def parts(key: str = A, *, size: int = 1000, output: str = "") -> list[bytes]:
    return pack_entry(
        key=key,
        name="add_kernel",
        request_digest="cd" * 32,
        toolchain="ef" * 32,
        target="cuda:90",
        components=[],
        metadata={},
        artifacts={"cubin": b"\x7f" * size},
        compile_wall_s=0.25,
        compile_cpu_s=0.5,
        triton_version="3.6.0",
        request=b"",
        output=output,
    )


def size_of(key: str) -> int:
    return sum(map(len, parts(key)))


class OnDisk:
    """How the contract tests reach behind a `DiskStore`."""

    def __init__(self, root: Path) -> None:
        self.store = DiskStore(root)

    def path(self, key: str) -> Path:
        return self.store.folder / key[:2] / f"{key}.hse"

    def read(self, key: str) -> bytes:
        return self.path(key).read_bytes()

    def overwrite(self, key: str, data: bytes) -> None:
        self.path(key).parent.mkdir(parents=True, exist_ok=True)
        self.path(key).write_bytes(data)

    def last_used(self, *keys: str) -> None:
        """As if these had been used in this order, long ago."""
        for age, key in enumerate(reversed(keys), start=1):
            os.utime(self.path(key), (time.time() - 1000 * age,) * 2)


class InMemory:
    """The same for a `MemoryStore`."""

    def __init__(self) -> None:
        self.store = MemoryStore()

    def read(self, key: str) -> bytes:
        return self.store._entries[key]

    def overwrite(self, key: str, data: bytes) -> None:
        self.store._entries[key] = data

    def last_used(self, *keys: str) -> None:
        for key in keys:
            self.overwrite(key, self.store._entries.pop(key))


Place: TypeAlias = OnDisk | InMemory


@pytest.fixture
def disk(tmp_path: Path) -> OnDisk:
    return OnDisk(tmp_path / "my cache é 核")


@pytest.fixture(params=["disk", "memory"])
def place(request: pytest.FixtureRequest, disk: OnDisk) -> Place:
    return disk if request.param == "disk" else InMemory()


def publish(store: Store, key: str, **kwargs: Any) -> Entry:
    entry = store.publish(key, parts(key, **kwargs))
    assert entry is not None
    return entry


# The contract


def test_an_empty_store_finds_nothing_and_has_nothing_to_prune(place: Place) -> None:
    assert place.store.find(A) is None
    assert list(place.store.keys()) == []
    assert list(place.store.entries()) == []
    assert (place.store.info().entries, place.store.info().bytes) == (0, 0)
    assert place.store.prune(0) == place.store.clear() == PruneReport()


def test_what_is_published_is_found(place: Place) -> None:
    published = publish(place.store, A)
    found = place.store.find(A)
    assert found is not None
    assert found.header == published.header
    assert found.artifact("cubin") == published.artifact("cubin") == b"\x7f" * 1000
    assert place.store.find(B) is None


def test_publishing_a_key_again_replaces_the_entry(place: Place) -> None:
    publish(place.store, A)
    publish(place.store, A, output="second")
    found = place.store.find(A)
    assert found is not None
    assert found.header.output == "second"
    assert place.store.info().entries == 1


def test_keys_entries_and_info_agree(place: Place) -> None:
    for key in (A, B, C):
        publish(place.store, key)
    assert sorted(place.store.keys()) == sorted(entry.key for entry in place.store.entries()) == [A, B, C]
    info = place.store.info()
    assert (info.entries, info.bytes, info.limit) == (3, sum(map(size_of, (A, B, C))), None)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: b"",
        lambda data: b"\0" * len(data),  # what a power cut leaves on some file systems
        lambda data: b"".join(parts(B)),  # a whole entry, but of another key
    ],
)
def test_a_damaged_entry_is_a_miss_with_one_warning_and_can_be_rebuilt(
    place: Place, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    publish(place.store, A)
    place.overwrite(A, damage(place.read(A)))
    assert place.store.find(A) is None
    assert place.store.find(A) is None
    assert list(place.store.keys()) == []
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("headstart", logging.WARNING)
    assert A in record.getMessage()
    assert "is damaged and will be compiled again" in record.getMessage()
    publish(place.store, A)
    assert place.store.find(A) is not None


def test_listing_sets_damaged_entries_aside_too(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    publish(place.store, A)
    publish(place.store, B)
    place.overwrite(A, place.read(A)[:-1])
    assert [entry.key for entry in place.store.entries()] == [B]
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_reader_that_finds_a_damaged_artifact_can_set_the_entry_aside(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    publish(place.store, A)
    place.overwrite(A, place.read(A)[:-1] + b"!")
    assert place.store.find(A) is not None
    place.store.set_aside(A, "artifact 'cubin' is not what the header says")
    place.store.set_aside(A, "somebody else noticed as well")
    assert place.store.find(A) is None
    (record,) = caplog.records
    assert "artifact 'cubin'" in record.getMessage()


def test_an_entry_of_a_newer_headstart_is_a_silent_miss_and_left_alone(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    place.overwrite(A, MAGIC + b"\xff\xff" + b"from the future")
    assert place.store.find(A) is None
    assert list(place.store.entries()) == []
    assert list(place.store.keys()) == [A]
    assert caplog.records == []


def test_pruning_removes_what_was_used_longest_ago(place: Place) -> None:
    for key in (A, B, C):
        publish(place.store, key)
    place.last_used(B, C, A)
    report = place.store.prune(size_of(A) + size_of(C))
    assert report == PruneReport(1, size_of(B), 2, size_of(A) + size_of(C))
    assert sorted(place.store.keys()) == [A, C]


def test_finding_an_entry_keeps_it_from_being_pruned(place: Place) -> None:
    for key in (A, B, C):
        publish(place.store, key)
    place.last_used(A, B, C)
    assert place.store.find(A) is not None
    place.store.prune(size_of(A))
    assert list(place.store.keys()) == [A]


def test_listing_entries_is_not_a_use_of_them(place: Place) -> None:
    publish(place.store, A)
    publish(place.store, B)
    place.last_used(A, B)
    assert len(list(place.store.entries())) == 2
    place.store.prune(size_of(B))
    assert list(place.store.keys()) == [B]


def test_pruning_without_an_argument_goes_by_the_stores_own_limit(place: Place) -> None:
    publish(place.store, A)
    publish(place.store, B)
    assert place.store.prune().removed == 0
    place.store.limit_bytes = size_of(A)
    assert place.store.prune().removed == 1
    assert place.store.info().limit == size_of(A)


def test_clearing_removes_every_entry(place: Place) -> None:
    publish(place.store, A)
    place.overwrite(B, b"not an entry")
    report = place.store.clear()
    assert (report.removed, report.kept) == (2, 0)
    assert list(place.store.keys()) == []


def test_an_entry_pruned_while_in_use_in_memory_stays_readable() -> None:
    store = MemoryStore()
    entry = publish(store, A)
    store.clear()
    entry.verify()


# A disk is used, and shared


def test_entries_lie_where_the_documentation_says(disk: OnDisk, tmp_path: Path) -> None:
    entry = publish(disk.store, A)
    assert entry.path == tmp_path / "my cache é 核" / "store" / "v2" / "aa" / f"{A}.hse"
    assert disk.store.info().path == disk.store.folder


def test_a_use_is_written_down_at_most_once_a_minute(disk: OnDisk) -> None:
    publish(disk.store, A)
    for age, touched in ((50, False), (70, True)):
        used = time.time() - age
        os.utime(disk.path(A), (used, used))
        assert disk.store.find(A) is not None
        assert (disk.path(A).stat().st_mtime > used + 1) is touched


def test_a_use_that_cannot_be_written_down_is_still_a_hit(disk: OnDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(disk.store, A)
    disk.last_used(A)
    monkeypatch.setattr(os, "utime", failing(errno.EROFS))
    assert disk.store.find(A) is not None


def test_a_damaged_entry_is_kept_for_people_to_look_at(disk: OnDisk) -> None:
    publish(disk.store, A)
    disk.last_used(A)
    disk.overwrite(A, b"rubbish")
    assert disk.store.find(A) is None
    aside = disk.store.folder / "damaged" / f"{A}.hse"
    assert aside.read_bytes() == b"rubbish"
    assert aside.stat().st_mtime > time.time() - 60


def test_a_damaged_entry_that_cannot_be_moved_is_removed(disk: OnDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.overwrite(A, b"rubbish")
    monkeypatch.setattr(os, "utime", failing(errno.EPERM))
    assert disk.store.find(A) is None
    assert not disk.path(A).exists()


def test_a_damaged_entry_that_cannot_be_removed_warns_once(
    disk: OnDisk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    disk.overwrite(A, b"rubbish")
    monkeypatch.setattr(os, "utime", failing(errno.EROFS))
    monkeypatch.setattr(Path, "unlink", failing(errno.EROFS))
    assert disk.store.find(A) is None
    assert disk.store.find(A) is None
    assert disk.path(A).exists()
    assert len(caplog.records) == 1


def test_an_entry_that_cannot_be_read_is_a_miss_with_one_warning(
    disk: OnDisk, caplog: pytest.LogCaptureFixture
) -> None:
    disk.path(A).mkdir(parents=True)
    assert disk.store.find(A) is None
    assert disk.store.find(A) is None
    (record,) = caplog.records
    assert f"cannot read {disk.path(A)}: Is a directory" in record.getMessage()


def test_two_that_publish_one_key_at_once_both_succeed(disk: OnDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    other = DiskStore(disk.store.folder.parent.parent)
    replace = Path.replace

    def replace_after_the_other(self: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "replace", replace)
        publish(other, A, output="the other's, with a longer header")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", replace_after_the_other)
    publish(disk.store, A, output="ours").verify()
    found = other.find(A)
    assert found is not None
    assert found.header.output == "ours"
    assert left_in_tmp(disk) == []


PUBLISHER = """
import sys
from headstart.stores.disk import DiskStore
sys.path.insert(0, sys.argv[2])
from test_store import A, parts

store = DiskStore(sys.argv[1])
sys.stdin.readline()
for number in range(200):
    entry = store.publish(A, parts(A, size=200_000, output=sys.argv[3] * number))
    assert entry is not None
    entry.verify()
"""


def test_processes_that_publish_one_key_never_show_half_an_entry(
    disk: OnDisk, caplog: pytest.LogCaptureFixture
) -> None:
    command = [
        sys.executable,
        "-c",
        PUBLISHER,
        str(disk.store.folder.parent.parent),
        str(Path(__file__).parent),
    ]
    publishers = [subprocess.Popen([*command, mark], stdin=subprocess.PIPE) for mark in "xy"]
    for publisher in publishers:
        assert publisher.stdin is not None
        publisher.stdin.write(b"go\n")
        publisher.stdin.close()
    while any(publisher.poll() is None for publisher in publishers):
        found = disk.store.find(A)
        if found is not None:
            found.verify()
    assert [publisher.wait() for publisher in publishers] == [0, 0]
    assert caplog.records == []
    assert left_in_tmp(disk) == []
    assert disk.store.find(A) is not None


# A disk is pruned


def test_pruning_removes_what_crashed_writers_left(disk: OnDisk) -> None:
    publish(disk.store, A)
    tmp = disk.store.folder / "tmp"
    fresh, abandoned = "0f" * 16, "0a" * 16
    for name, age in ((fresh, 3000), (abandoned, 4000)):
        (tmp / name).write_bytes(b"half an entry")
        os.utime(tmp / name, (time.time() - age,) * 2)
    disk.store.prune()
    assert left_in_tmp(disk) == [fresh]


def test_pruning_removes_damaged_entries_after_a_week(disk: OnDisk) -> None:
    damaged = disk.store.folder / "damaged"
    damaged.mkdir(parents=True)
    recent, old = f"{A}.hse", f"{B}.hse"
    for name, days in ((recent, 6), (old, 8)):
        (damaged / name).write_bytes(b"rubbish")
        os.utime(damaged / name, (time.time() - days * 86400,) * 2)
    disk.store.prune()
    assert os.listdir(damaged) == [recent]
    disk.store.clear()
    assert os.listdir(damaged) == []


def test_only_one_prunes_at_a_time(disk: OnDisk) -> None:
    publish(disk.store, A)
    with (disk.store.folder / "prune.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert disk.store.prune(0) == PruneReport(busy=True)
        assert disk.store.find(A) is not None
    assert disk.store.prune(0).removed == 1


def test_entries_that_vanish_while_being_counted_or_pruned_are_fine(disk: OnDisk) -> None:
    publish(disk.store, A)
    disk.path(B).parent.mkdir()
    disk.path(B).symlink_to("vanished")
    assert disk.store.info().entries == 1
    assert [entry.key for entry in disk.store.entries()] == [A]
    assert disk.store.prune(0).removed == 1


# A disk makes trouble


def left_in_tmp(disk: OnDisk) -> list[str]:
    return os.listdir(disk.store.folder / "tmp")


def failing(number: int) -> Callable[..., Any]:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_size_limit_makes_the_store_unavailable_and_leaves_nothing(disk: OnDisk) -> None:
    with files_limited_to(4096), pytest.raises(StoreUnavailable) as caught:
        disk.store.publish(A, parts(A, size=100_000))
    assert caught.value.errno == errno.EFBIG
    assert caught.value.path == str(disk.store.folder)
    assert str(caught.value) == f"cannot write {disk.store.folder}: File too large"
    assert left_in_tmp(disk) == []
    publish(disk.store, A)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO])
def test_a_publish_that_fails_at_the_last_step_leaves_nothing(
    disk: OnDisk, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(disk.store, A, output="before")
    monkeypatch.setattr(Path, "replace", failing(number))
    with pytest.raises(StoreUnavailable) as caught:
        disk.store.publish(A, parts(A))
    assert caught.value.errno == number
    assert left_in_tmp(disk) == []
    found = disk.store.find(A)
    assert found is not None
    assert found.header.output == "before"


def test_a_store_whose_folder_is_a_file_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("not a folder")
    store = DiskStore(tmp_path / "cache")
    assert store.find(A) is None
    assert store.prune(0) == PruneReport()
    assert (list(store.keys()), store.info().entries) == ([], 0)
    with pytest.raises(StoreUnavailable):
        store.publish(A, parts(A))


def test_pruning_a_store_that_cannot_be_written_says_so(disk: OnDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(disk.store, A)
    monkeypatch.setattr(os, "unlink", failing(errno.EROFS))
    with pytest.raises(StoreUnavailable, match="Read-only file system"):
        disk.store.clear()


def test_an_entry_pruned_before_its_publisher_looks_is_none(disk: OnDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = Path.replace

    def replace_and_prune(self: Path, target: Path) -> Path:
        moved = replace(self, target)
        disk.store.prune(0)
        return moved

    monkeypatch.setattr(Path, "replace", replace_and_prune)
    assert disk.store.publish(A, parts(A)) is None


SMALL_DISK = """
import json, os, subprocess, sys
from headstart.errors import StoreUnavailable
from headstart.stores.disk import DiskStore
sys.path.insert(0, sys.argv[2])
from test_store import A, B, parts

store = DiskStore(sys.argv[1])
seen = {"before": store.publish(A, parts(A)) is not None}
try:
    store.publish(B, parts(B, size=1_000_000))
except StoreUnavailable as error:
    seen["full"] = error.errno
seen["left in tmp"] = os.listdir(store.folder / "tmp")
os.utime(store.find(A).path, (0, 0))  # a use that cannot be written down once the disk is read-only
subprocess.run(["mount", "-o", "remount,ro", sys.argv[1]], check=True)
seen["still found"] = store.find(A) is not None
for operation in ("publish", "prune"):
    try:
        store.publish(B, parts(B)) if operation == "publish" else store.prune(0)
    except StoreUnavailable as error:
        seen[operation] = error.errno
print(json.dumps(seen))
"""


def test_a_full_disk_and_a_read_only_disk_make_the_store_unavailable(tmp_path: Path) -> None:
    mount = 'mount -t tmpfs -o size=64k none "$1" && shift && exec "$@"'
    tests = str(Path(__file__).parent)
    unshare = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount, "sh", str(tmp_path)]
    try:
        allowed = subprocess.run([*unshare, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("this system does not let its users mount a small disk")
    script = [sys.executable, "-c", SMALL_DISK, str(tmp_path), tests]
    result = subprocess.run([*unshare, *script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {
        "before": True,
        "full": errno.ENOSPC,
        "left in tmp": [],
        "still found": True,
        "publish": errno.EROFS,
        "prune": errno.EROFS,
    }


def test_an_entry_of_the_future_does_not_outlive_those_that_are_used(disk: OnDisk) -> None:
    for key in (A, B):
        disk.store.publish(key, parts(key))
    future = time.time() + 10 * 365 * 86400
    os.utime(disk.path(A), (future, future))
    assert disk.store.find(A) is not None
    assert abs(disk.path(A).stat().st_mtime - time.time()) < 60  # a use has put it right
    for name in (f"tmp/{'ab' * 16}", f"damaged/{A}.hse"):
        left = disk.store.folder / name
        left.parent.mkdir(exist_ok=True)
        left.touch()
        os.utime(left, (future, future))
        disk.store.prune()
        assert abs(left.stat().st_mtime - time.time()) < 60  # its age counts from now on
