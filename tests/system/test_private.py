"""A cache that somebody else could change is not used, and nothing in it is followed out of it."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

import headstart
from conftest import client_environment
from headstart.adapters.inductor import without_gpu
from headstart.adapters.recording import record_path, script_program, update
from headstart.artifacts.entry import pack_entry
from headstart.artifacts.manifest import Manifest
from headstart.artifacts.reproduce import write_plan
from headstart.cli import doctor, main
from headstart.errors import StoreUnavailable, UsageError
from headstart.model import toolchain
from headstart.model.request import CompileRequest
from headstart.stores.disk import DiskStore
from headstart.stores.failures import Failures, RememberedFailure
from headstart.system import private
from headstart.system.private import Swept, make_folder, refusal, vet
from headstart.wire import Failure
from kernels import pointwise

OTHER = 12345  # a user who is neither us nor root
SHARED_GROUP = 54321  # a group that nobody knows
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root may give files away")
KEY = "ab" * 32


def parts(key: str = KEY, *, kind: str = "kernel", request_digest: str = "cd" * 32) -> list[bytes]:
    return pack_entry(
        key=key,
        kind=kind,
        name="add",
        request_digest=request_digest,
        toolchain="3.9",
        target="cuda:90",
        components=[],
        metadata={},
        artifacts={"cubin": b"code"},
        compile_wall_s=0.0,
        compile_cpu_s=0.0,
        triton_version="3.9.0",
        request=b"",
        output="",
    )


def share(path: Path, how: str) -> None:
    """Have others write a file or a folder."""
    if how == "everybody":
        path.chmod(path.stat().st_mode | 0o002)
    elif how == "everybody, sticky":
        path.chmod(0o1777)
    elif how == "a group":
        if os.getuid() == 0:
            os.chown(path, -1, SHARED_GROUP)
        path.chmod(path.stat().st_mode | 0o020)
    elif how == "another user":
        if os.getuid() != 0:
            pytest.skip("only root may give files away")
        os.chown(path, OTHER, -1)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder that is set."""
    folder = tmp_path / "cache"
    folder.mkdir(0o700)
    monkeypatch.setenv("HEADSTART_CACHE_DIR", str(folder))
    return folder


# Whom a folder is relied on


def test_a_folder_that_only_its_user_can_write_is_relied_on(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir(0o755)
    assert refusal(tmp_path / "folder") == ""
    assert refusal(tmp_path / "folder" / "to" / "be" / "made") == ""


@pytest.mark.parametrize("how", ["everybody", "everybody, sticky", "a group", "another user"])
def test_a_folder_that_others_can_write_is_refused(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private, "_is_private_group", lambda gid, uid: False)
    folder = tmp_path / "folder"
    folder.mkdir(0o755)
    share(folder, how)
    said = "belongs to the user 12345" if how == "another user" else "can be written by"
    assert refusal(folder).startswith(f"{folder} {said}")


@pytest.mark.parametrize("how", ["everybody", "a group", "another user"])
def test_a_folder_is_refused_that_others_can_put_another_one_in_the_place_of(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(private, "_is_private_group", lambda gid, uid: False)
    (tmp_path / "above" / "folder").mkdir(parents=True)
    share(tmp_path / "above", how)
    assert refusal(tmp_path / "above" / "folder").startswith(f"{tmp_path / 'above'} ")
    assert refusal(tmp_path / "above" / "not there yet").startswith(f"{tmp_path / 'above'} ")


def test_a_folder_in_a_shared_one_with_the_sticky_bit_is_relied_on(tmp_path: Path) -> None:
    (tmp_path / "tmp" / "folder").mkdir(parents=True)
    share(tmp_path / "tmp", "everybody, sticky")
    assert refusal(tmp_path / "tmp" / "folder") == ""
    share(tmp_path / "tmp" / "folder", "everybody")
    assert refusal(tmp_path / "tmp" / "folder") != ""


def test_links_are_followed_to_what_they_name(tmp_path: Path) -> None:
    (tmp_path / "disk" / "open").mkdir(parents=True)
    share(tmp_path / "disk" / "open", "everybody")
    (tmp_path / "disk" / "mine").mkdir()
    (tmp_path / "absolute").symlink_to(tmp_path / "disk" / "mine")
    (tmp_path / "relative").symlink_to("disk/../disk/open")
    (tmp_path / "loop").symlink_to("loop")
    assert refusal(tmp_path / "absolute" / "store") == ""
    assert refusal(tmp_path / "relative" / "store").startswith(f"{tmp_path / 'disk' / 'open'} can be written")
    assert "too many links" in refusal(tmp_path / "loop")


@as_root
def test_a_link_of_somebody_else_in_a_shared_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    share(tmp_path, "everybody, sticky")
    (tmp_path / "link").symlink_to("mine")
    assert refusal(tmp_path / "link") == ""
    os.chown(tmp_path / "link", OTHER, -1, follow_symlinks=False)
    assert refusal(tmp_path / "link") == f"{tmp_path / 'link'} is a link of the user {OTHER}"


def test_a_group_with_nobody_else_in_it_may_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the umask is 0002 each user has such a group, and all their folders are writable by it."""
    import grp
    import pwd

    (tmp_path / "folder").mkdir()
    (tmp_path / "folder").chmod(0o775)
    members: list[str] = []
    name = pwd.getpwuid(os.geteuid()).pw_name
    monkeypatch.setattr(grp, "getgrgid", lambda gid: grp.struct_group((name, "x", gid, members)))
    private._is_private_group.cache_clear()
    assert refusal(tmp_path / "folder") == ""
    for members in ([name], [name, "eve"]):
        private._is_private_group.cache_clear()
        assert (refusal(tmp_path / "folder") == "") == (members == [name])
    private._is_private_group.cache_clear()
    monkeypatch.setattr(grp, "getgrgid", lambda gid: grp.struct_group(("users", "x", gid, [])))
    assert "can be written by its group users" in refusal(tmp_path / "folder")
    private._is_private_group.cache_clear()


def test_the_host_s_root_is_nobody_in_a_user_s_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And stands above all folders there; the cache folder itself must be this user's all the same."""
    monkeypatch.setattr(private, "_unknown_user", lambda: OTHER)
    assert private._is_trusted(OTHER, parent=True)
    assert not private._is_trusted(OTHER, parent=False)


def test_what_headstart_makes_is_for_its_user_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        make_folder(tmp_path / "a" / "b")
        store = DiskStore(tmp_path / "cache")
        store.publish(KEY, parts())
        with store.claim(KEY):
            pass
        update(record_path("app.py"), Manifest())
        Failures(tmp_path / "cache").remember(RememberedFailure(KEY, "add", "cuda:90", Failure("crash", "it died")))
    finally:
        os.umask(before)
    made = [tmp_path / "a", tmp_path / "a" / "b", *(tmp_path / "cache").rglob("*"), record_path("app.py").parent]
    folders = [path for path in made if path.is_dir()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}
    assert stat.S_IMODE(store.path_of(KEY).stat().st_mode) == 0o644


# The store


@pytest.mark.parametrize("which", ["cache", "store", "v2"])
@pytest.mark.parametrize("how", ["everybody", "another user"])
def test_a_store_that_others_can_change_is_neither_read_nor_written(
    cache: Path, which: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    DiskStore(cache).publish(KEY, parts())
    folder = {"cache": cache, "store": cache / "store", "v2": cache / "store" / "v2"}[which]
    share(folder, how)
    store = DiskStore(cache)
    assert store.find(KEY) is None
    assert store.find("cd" * 32) is None
    (warning,) = caplog.records
    assert "HEADSTART_TRUST_CACHE_DIR=1 if you trust them" in warning.getMessage()
    for write in (lambda: store.publish(KEY, parts()), store.clear, lambda: store.prune(0)):
        with pytest.raises(StoreUnavailable, match="is not used"):
            write()
    assert DiskStore(cache, trusted=True).find(KEY) is not None, "nothing was removed"


def test_a_store_that_others_make_while_it_is_looked_for_is_refused(tmp_path: Path) -> None:
    """In a shared folder the name may be taken between the look and the use."""
    share(tmp_path, "everybody, sticky")
    store = DiskStore(tmp_path / "cache")
    assert store.find(KEY) is None
    store.folder.mkdir(parents=True)
    share(tmp_path / "cache", "everybody")
    with pytest.raises(StoreUnavailable, match="is not used"):
        store.publish(KEY, parts())


@pytest.mark.parametrize("how", ["everybody", "another user"])
def test_an_entry_that_others_can_write_is_set_aside(cache: Path, how: str, caplog: pytest.LogCaptureFixture) -> None:
    store = DiskStore(cache)
    entry = store.publish(KEY, parts())
    assert entry is not None
    share(store.path_of(KEY), how)
    with pytest.raises(headstart.DamagedError):
        entry.artifact("cubin")
    assert store.find(KEY) is None
    assert len(caplog.records) == 1
    assert store.publish(KEY, parts()) is not None
    assert store.find(KEY) is not None


def test_an_entry_under_another_key_s_name_is_a_miss(cache: Path) -> None:
    store = DiskStore(cache)
    store.publish(KEY, parts())
    other = "cd" * 32
    store.path_of(other).parent.mkdir()
    store.path_of(KEY).rename(store.path_of(other))
    assert store.find(other) is None
    assert not store.path_of(other).exists()


def test_an_entry_of_another_request_or_kind_is_a_miss(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = DiskStore(cache)
    for wanted in ({"request_digest": "ef" * 32}, {"kind": "tail"}):
        store.publish(KEY, parts())
        assert store.find(KEY, kind="kernel", request_digest="cd" * 32) is not None
        assert store.find(KEY, **wanted) is None
        assert store.find(KEY) is None
    assert "it holds another entry" in caplog.text


@pytest.mark.parametrize("what", ["a link", "a pipe"])
def test_what_is_no_file_is_no_entry(cache: Path, what: str) -> None:
    store = DiskStore(cache)
    store.publish(KEY, parts())
    path, victim = store.path_of(KEY), cache / "victim"
    path.rename(victim)
    os.utime(victim, (0, 0))
    path.symlink_to(victim) if what == "a link" else os.mkfifo(path)
    assert store.find(KEY) is None
    assert victim.stat().st_mtime == 0, "the use of it is not written down elsewhere"
    assert store.publish(KEY, parts()) is not None
    assert victim.exists()


@pytest.mark.parametrize("which", ["tmp", "damaged", "ab"])
def test_sweeping_follows_no_link(cache: Path, which: str) -> None:
    store = DiskStore(cache)
    make_folder(store.folder)
    elsewhere = cache / "elsewhere"
    elsewhere.mkdir()
    victims = [elsewhere / f"{KEY}.hse", elsewhere / ("ab" * 16), elsewhere / "notes.txt"]
    for victim in victims:
        victim.write_text("mine")
        os.utime(victim, (0, 0))
    (store.folder / which).symlink_to(elsewhere)
    store.clear()
    store.prune(0)
    assert all(victim.exists() for victim in victims)
    if which == "damaged":
        store.publish(KEY, parts())
        store.set_aside(KEY, "for a test")
        assert not store.path_of(KEY).exists()
    else:
        with pytest.raises(StoreUnavailable, match="a link in its place"):
            store.publish(KEY, parts())
    assert sorted(os.listdir(elsewhere)) == sorted(victim.name for victim in victims)


def test_sweeping_removes_what_is_named_as_headstart_names_it_and_nothing_else(cache: Path) -> None:
    store = DiskStore(cache)
    store.publish(KEY, parts())
    names = ("ab/notes.txt", "tmp/notes.txt", "damaged/notes.txt", f"xy/{KEY}.hse")
    mine = [store.folder / name for name in names]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
        os.utime(path, (0, 0))
    assert store.clear().removed == 1
    assert all(path.exists() for path in mine)


def test_locks_are_no_links(cache: Path) -> None:
    store = DiskStore(cache)
    store.publish(KEY, parts())
    for name in ("prune.lock", "compiling.lock"):
        (store.folder / name).unlink(missing_ok=True)
        (store.folder / name).symlink_to(cache / "made")
    with store.claim(KEY):
        pass
    with pytest.raises(StoreUnavailable):
        store.prune(0)
    assert not (cache / "made").exists()


def test_a_store_may_be_elsewhere_by_a_link_of_its_user(cache: Path, tmp_path: Path) -> None:
    for link in (cache / "store", cache / "elsewhere" / "store" / "v2"):
        make_folder(link.parent)
        make_folder(tmp_path / link.name)
        link.symlink_to(tmp_path / link.name)
        store = DiskStore(cache if link.name == "store" else cache / "elsewhere")
        assert store.publish(KEY, parts()) is not None
        assert list((tmp_path / link.name).rglob("*.hse"))


def test_a_store_that_is_trusted_is_shared(cache: Path) -> None:
    store = DiskStore(cache, trusted=True)
    share(cache, "everybody")
    before = os.umask(0o002)
    try:
        store.publish(KEY, parts())
    finally:
        os.umask(before)
    assert stat.S_IMODE(store.path_of(KEY).stat().st_mode) == 0o664
    assert stat.S_IMODE(store.path_of(KEY).parent.stat().st_mode) == 0o775
    assert DiskStore(cache, trusted=True).find(KEY) is not None


# Everything else in the cache folder


@pytest.mark.parametrize("which", ["cache", "failed", "file"])
def test_a_crash_that_others_made_up_stops_nobody(cache: Path, which: str) -> None:
    failures = Failures(cache)
    failures.remember(RememberedFailure(KEY, "add", "cuda:90", Failure("crash", "it died")))
    assert failures.find(KEY, None) is not None
    share({"cache": cache, "failed": cache / "failed", "file": cache / "failed" / f"{KEY}.json"}[which], "everybody")
    assert failures.find(KEY, None) is None


def test_a_crash_under_another_kernel_s_name_stops_nobody(cache: Path) -> None:
    failures = Failures(cache)
    failures.remember(RememberedFailure(KEY, "add", "cuda:90", Failure("crash", "it died")))
    (cache / "failed" / f"{KEY}.json").rename(cache / "failed" / f"{'cd' * 32}.json")
    assert failures.find("cd" * 32, None) is None


def test_a_folder_of_failures_that_is_a_link_costs_no_files_elsewhere(cache: Path) -> None:
    elsewhere = cache / "elsewhere"
    elsewhere.mkdir()
    data = msgspec.json.encode(RememberedFailure(KEY, "add", "cuda:90", Failure("crash", "it died")))
    (elsewhere / f"{KEY}.json").write_bytes(data)
    (cache / "failed").symlink_to(elsewhere)
    assert Failures(cache).forget("add") == []
    assert (elsewhere / f"{KEY}.json").exists()


def test_no_plan_is_written_where_others_can_change_it(cache: Path) -> None:
    (cache / "failed").mkdir()
    share(cache / "failed", "everybody")
    request = CompileRequest.make("add", "source", signature={"x": "*fp32"}, target="cuda:90")
    assert write_plan(cache / "failed", request) == ""
    assert os.listdir(cache / "failed") == []


def test_a_digest_that_others_made_up_is_not_taken(cache: Path, tmp_path: Path) -> None:
    tool = tmp_path / "tool.py"
    tool.write_text("1")
    memory = cache / "toolchains"
    right = toolchain._remembered_digest([tool], tmp_path, memory)
    (note,) = memory.iterdir()
    note.write_text("f" * 64)
    assert toolchain._remembered_digest([tool], tmp_path, memory) == "f" * 64
    for path in (note, memory):
        share(path, "everybody")
        assert toolchain._remembered_digest([tool], tmp_path, memory) == right
        path.chmod(path.stat().st_mode & ~0o002)


def test_a_library_that_others_made_is_not_loaded(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(without_gpu, "_shim", None)
    monkeypatch.setattr(without_gpu.facts, "find_torch", lambda: object())
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    share(cache, "everybody")
    with pytest.raises(UsageError, match="is not used"):
        without_gpu.load_shim()


@pytest.mark.parametrize("which", ["manifests", "record"])
def test_a_record_that_others_could_have_planted_is_not_replayed(tmp_path: Path, cache: Path, which: str) -> None:
    app = tmp_path / "app.py"
    app.write_text("import os; print(os.environ['HEADSTART_RUN'])")
    record = record_path(script_program(app))
    record.parent.mkdir()
    Manifest().save(record)
    share(record if which == "record" else record.parent, "everybody")

    def orders() -> tuple[dict[str, object], str]:
        done = subprocess.run(
            [sys.executable, "-m", "headstart", "run", str(app)],
            env={**os.environ, **client_environment()},
            capture_output=True,
            check=True,
            timeout=60,
        )
        return msgspec.json.decode(done.stdout), done.stderr.decode()

    told, said = orders()
    assert (told["record"], told["replay"]) == (None, None)
    assert "nothing is recorded or replayed" in said
    (record if which == "record" else record.parent).chmod(0o700)
    told, said = orders()
    assert (told["record"], told["replay"], told["trusted"], said) == (str(record), str(record), True, "")


def test_a_program_with_a_cache_that_others_can_write_compiles_without_it_and_says_so_once(
    cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    share(cache, "everybody")
    with caplog.at_level(logging.WARNING):
        compilers = [headstart.AsyncCompile("cuda:90", start=False) for _ in range(2)]
    assert not any(compiler.client.keeps for compiler in compilers)
    assert compilers[0].client.store.find(KEY) is None
    (warning,) = caplog.records
    assert f"{cache} can be written by everybody (mode 0702)" in warning.getMessage()
    assert "kernels are kept in memory only" in warning.getMessage()
    monkeypatch.setenv("HEADSTART_TRUST_CACHE_DIR", "1")
    assert headstart.AsyncCompile("cuda:90", start=False).client.keeps


@pytest.mark.triton
@pytest.mark.parametrize("trusted", ["", "1"])
def test_kernels_of_a_cache_that_others_can_write_are_delivered(
    cache: Path, trusted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    share(cache, "everybody")
    monkeypatch.setenv("HEADSTART_TRUST_CACHE_DIR", trusted)
    with headstart.AsyncCompile("cuda:90", workers=1) as compiler:
        kernel = compiler.triton(**pointwise()).result()
    assert kernel.asm["cubin"]
    assert bool(list(cache.rglob("*.hse"))) == bool(trusted)
    assert trusted or os.listdir(cache) == []


# Commands


@pytest.mark.parametrize("command", [["info"], ["prune", "--max-size", "1M"], ["clear", "--yes"]])
def test_the_cache_command_leaves_a_folder_alone_that_others_can_write(cache: Path, command: list[str]) -> None:
    DiskStore(cache).publish(KEY, parts())
    share(cache, "everybody")
    result = CliRunner().invoke(main, ["cache", *command])
    assert result.exit_code == 2
    assert "can be written by everybody" in result.output
    assert CliRunner(env={"HEADSTART_TRUST_CACHE_DIR": "1"}).invoke(main, ["cache", *command]).exit_code == 0


@pytest.mark.parametrize("which", ["", "failed", "store"])
def test_doctor_tells_who_can_write_the_cache(cache: Path, which: str) -> None:
    assert doctor.check_cache_folder().status == "ok"
    (cache / which).mkdir(exist_ok=True)
    share(cache / which, "everybody")
    check = doctor.check_cache_folder()
    assert check.status == "fail"
    assert "can be written by everybody" in check.found
    assert "HEADSTART_TRUST_CACHE_DIR" in check.remedy


def earlier_store(cache: Path) -> Path:
    """As version 1 left it, with something of the user's in it."""
    folder = cache / "store" / "v1"
    entries = (f"ab/{KEY}.hse", f"damaged/{KEY}.hse", f"tmp/{'ab' * 16}")
    for name in (*entries, "prune.lock", "compiling.lock", "cd/notes.txt"):
        make_folder((folder / name).parent)
        (folder / name).write_bytes(b"1234")
    return folder


@pytest.mark.parametrize("command", [["prune", "--max-size", "1M"], ["clear", "--yes"]])
def test_the_stores_of_earlier_formats_are_dropped_on_request(cache: Path, command: list[str]) -> None:
    folder = earlier_store(cache)
    DiskStore(cache).publish(KEY, parts())
    DiskStore(cache).prune(0)
    assert (folder / "ab" / f"{KEY}.hse").exists(), "another headstart may still use it"
    result = CliRunner().invoke(main, ["cache", *command])
    assert result.exit_code == 0, result.output
    assert f"removed 1 kernel (4 bytes) of earlier formats from {folder}" in result.output
    assert [str(path.relative_to(folder)) for path in folder.rglob("*")] == ["cd", "cd/notes.txt"]
    (folder / "cd" / "notes.txt").unlink()
    CliRunner().invoke(main, ["cache", *command])
    assert not folder.exists()


def test_an_earlier_store_that_is_a_link_is_left_alone(cache: Path) -> None:
    elsewhere = earlier_store(cache).rename(cache / "elsewhere")
    (cache / "store" / "v1").symlink_to(elsewhere)
    assert DiskStore(cache).earlier() == []
    DiskStore(cache).drop_earlier()
    assert (elsewhere / "ab" / f"{KEY}.hse").exists()


def test_doctor_says_that_what_was_compiled_before_is_invalid_and_where_else_it_is(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(doctor.check_earlier_stores()) == []
    folder = earlier_store(cache)
    monkeypatch.setenv("TRITON_CACHE_DIR", "/scratch/triton")
    (check,) = doctor.check_earlier_stores()
    assert (check.name, check.status) == ("earlier stores", "warn")
    assert str(folder) in check.found
    assert "invalid" in check.found
    assert "/scratch/triton" in check.found
    assert "headstart cache clear" in check.remedy
    monkeypatch.delenv("TRITON_CACHE_DIR")
    (check,) = doctor.check_earlier_stores()
    assert os.path.expanduser("~/.triton/cache") in check.found


def test_a_swept_folder_that_is_not_there_is_empty(tmp_path: Path) -> None:
    with Swept(tmp_path / "missing") as swept:
        assert list(swept.files()) == []


def test_a_device_is_no_file_to_rely_on() -> None:
    with open(os.devnull, "rb") as device:
        assert vet(device.fileno()) == "it is not a regular file"
