"""What headstart writes never costs anybody a file: replaced is only what headstart wrote."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

import headstart
from conftest import client_environment
from headstart.artifacts.bundle import Bundle, BundleWriter, merge_bundles
from headstart.artifacts.entry import Entry, pack_entry
from headstart.artifacts.manifest import Manifest
from headstart.cli import main
from headstart.cli import model as model_module
from headstart.client import launch, sharing
from headstart.errors import UsageError
from headstart.service.listener import Listener
from headstart.system import files
from headstart.system.files import (
    BUNDLE,
    MANIFEST,
    Format,
    Replacement,
    check_replaceable,
    replace,
    write_new,
)
from headstart.system.sockets import LOG, log_of

NOTES = "x = 1  # a user's own file\n"
FORMAT = Format("a thing", begins=(b"THING",), ends=(b"gniht",))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a user, who works in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def entry(name: str) -> Entry:
    parts = pack_entry(
        key="ab" * 32,
        name=name,
        target="cuda:90",
        toolchain="cd" * 32,
        request_digest="ef" * 32,
        metadata={},
        components=[],
        compile_wall_s=0.0,
        compile_cpu_s=0.0,
        triton_version="3.9.0",
        request=b"",
        output="",
        artifacts={"cubin": b"code", "ptx": b"text"},
    )
    return Entry.from_bytes(b"".join(parts))


def bundle(path: Path) -> Path:
    with BundleWriter(path) as writer:
        writer.add(entry("k"))
    return path


def run(*arguments: object) -> str:
    """What `headstart` says, which has to be bad usage."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return result.output


# Files


@pytest.mark.parametrize("content", [b"THING one", b"one gniht", b""])
def test_what_headstart_wrote_is_replaced_and_so_is_an_empty_file(here: Path, content: bytes) -> None:
    Path("thing").write_bytes(content)
    replace("thing", b"THING two", FORMAT)
    assert Path("thing").read_bytes() == b"THING two"
    assert os.listdir() == ["thing"]


@pytest.mark.parametrize("content", [b"a THING", b"T", b"\0" * 100, b"gniht too"])
def test_what_anybody_else_wrote_stays_as_it_is(here: Path, content: bytes) -> None:
    Path("thing").write_bytes(content)
    with pytest.raises(UsageError, match=r"thing is there already and is not a thing of headstart.*another name"):
        replace("thing", b"THING two", FORMAT)
    assert Path("thing").read_bytes() == content
    assert os.listdir() == ["thing"]


def test_a_file_that_appears_while_another_is_written_stays(here: Path) -> None:
    replacement = Replacement("thing", FORMAT)
    replacement.file.write(b"THING")
    Path("thing").write_text(NOTES)
    with pytest.raises(UsageError):
        replacement.commit()
    assert Path("thing").read_text() == NOTES
    assert os.listdir() == ["thing"]


def test_a_link_is_followed_to_what_it_names_and_that_is_looked_at(here: Path) -> None:
    Path("link").symlink_to("notes.py")
    Path("notes.py").write_text(NOTES)
    with pytest.raises(UsageError, match="link is there already"):
        check_replaceable("link", FORMAT)
    Path("notes.py").unlink()
    replace("link", b"THING", FORMAT)
    assert Path("link").is_symlink()
    assert Path("notes.py").read_bytes() == b"THING"


@pytest.mark.parametrize("kind", ["fifo", "socket", "device", "loop"])
def test_what_is_no_file_is_not_replaced(here: Path, kind: str) -> None:
    place = Path("/dev/null") if kind == "device" else Path("place")
    if kind == "fifo":
        os.mkfifo(place)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("place")
    elif kind == "loop":
        place.symlink_to(place)
    before = place.lstat()
    with pytest.raises(UsageError, match="is not a regular file"):
        replace(place, b"THING", FORMAT)
    assert (place.lstat().st_ino, place.lstat().st_mode) == (before.st_ino, before.st_mode)


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_file_that_cannot_be_read_is_taken_for_somebody_else_s(here: Path) -> None:
    Path("thing").write_bytes(b"THING")
    Path("thing").chmod(0)
    with pytest.raises(UsageError, match=r"cannot be read \(Permission denied\)"):
        check_replaceable("thing", FORMAT)


def test_a_folder_is_an_error_of_the_system(here: Path) -> None:
    Path("folder").mkdir()
    with pytest.raises(IsADirectoryError):
        replace("folder", b"THING", FORMAT)
    assert os.listdir() == ["folder"]


def test_no_temporary_is_one_that_was_there_or_a_link(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "urandom", bytes)
    Path(f".thing.{bytes(8).hex()}.tmp").symlink_to("victim")
    Path("victim").write_text(NOTES)
    with pytest.raises(FileExistsError):
        replace("thing", b"THING", FORMAT)
    assert Path("victim").read_text() == NOTES
    assert {"thing"}.isdisjoint(os.listdir())


def test_a_new_file_is_written_once_and_one_that_differs_stays(here: Path) -> None:
    path = Path("k.ptx")
    write_new(path, b"text")
    write_new(path, b"text")
    path.write_text(NOTES)
    with pytest.raises(UsageError, match="is not the same"):
        write_new(path, b"text")
    assert path.read_text() == NOTES
    path.unlink()
    path.symlink_to("victim")
    with pytest.raises(UsageError):
        write_new(path, b"text")
    assert not Path("victim").exists()


def test_every_file_that_src_writes_is_written_by_this_module() -> None:
    """Whoever adds another way to write has to say here why no file of the user's can be lost by it."""
    allowed = {
        "adapters/triton/entries.py": "a temporary folder of its own",
        "worker/compiling.py": "the worker's folder",
        "worker/launchers.py": "a folder of its own in the worker's",
        "artifacts/triton_cache.py": "a folder with an unguessable name, in Triton's cache",
        "stores/remote/folder.py": "folders that it opened without following a link, and names made of a key",
        "system/files.py": "this module",
    }
    source = Path(headstart.__file__).parent
    ways = ("write_text(", "write_bytes(", "os.replace(", '.open("wb")', '.open("w")', '.open("xb")', "shutil.copy")
    found = {
        str(path.relative_to(source))
        for path in source.rglob("*.py")
        if any(way in path.read_text(encoding="utf-8") for way in ways)
    }
    assert found == set(allowed)


# Commands and arguments


def test_build_writes_over_no_plan(here: Path) -> None:
    Path("plan.py").write_text(NOTES)
    assert "plan.py is there already and is not a bundle" in run("build", "plan.py", "-o", "plan.py")
    assert Path("plan.py").read_text() == NOTES


def test_build_of_a_model_writes_over_no_program(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_module, "build_model", lambda *_: pytest.fail("it was begun"))
    Path("model.py").write_text(NOTES)
    assert "is not a bundle" in run("build", "--model", "model.py:make", "-o", "model.py")
    assert Path("model.py").read_text() == NOTES


def test_merging_bundles_writes_over_no_notes(here: Path) -> None:
    bundle(Path("a.bundle"))
    Path("notes.py").write_text(NOTES)
    assert "notes.py is there already" in run("bundle", "merge", "notes.py", "a.bundle")
    with pytest.raises(UsageError):
        merge_bundles("notes.py", "a.bundle")
    assert Path("notes.py").read_text() == NOTES
    assert sorted(os.listdir()) == ["a.bundle", "notes.py"]


def test_merging_manifests_writes_over_no_notes(here: Path) -> None:
    Manifest().save("a.manifest")
    Path("notes.py").write_text(NOTES)
    assert "is not a manifest" in run("manifest", "merge", "a.manifest", "-o", "notes.py")
    assert Path("notes.py").read_text() == NOTES


def test_a_bundle_and_a_manifest_do_not_replace_each_other(here: Path) -> None:
    Manifest().save("app.manifest")
    bundle(Path("app.bundle"))
    before = Path("app.manifest").read_bytes(), Path("app.bundle").read_bytes()
    Path("app.py").write_text(NOTES)
    assert "app.manifest is there already" in run("run", "--bundle", "app.manifest", "app.py")
    assert "app.bundle is there already" in run("run", "--record", "app.bundle", "app.py")
    assert "app.bundle is there already" in run("manifest", "merge", "app.manifest", "-o", "app.bundle")
    assert "app.manifest is there already" in run("bundle", "merge", "app.manifest", "app.bundle")
    assert (Path("app.manifest").read_bytes(), Path("app.bundle").read_bytes()) == before


def test_extracting_writes_over_no_file_that_differs(here: Path) -> None:
    bundle(Path("a.bundle"))
    for _ in range(2):
        result = CliRunner().invoke(main, ["bundle", "extract", "a.bundle", "-o", "out"])
        assert result.exit_code == 0, result.output
    (text,) = Path("out").rglob("*.ptx")
    text.write_text(NOTES)
    assert "is there already and is not the same" in run("bundle", "extract", "a.bundle", "-o", "out")
    assert text.read_text() == NOTES


def test_an_async_compile_takes_no_other_file_for_its_bundle(here: Path) -> None:
    Path("thesis.tex").write_text(NOTES)
    with pytest.raises(UsageError, match=r"thesis\.tex is there already"):
        headstart.AsyncCompile("cuda:90", bundle="thesis.tex", start=False)
    assert Path("thesis.tex").read_text() == NOTES


def test_an_async_compile_whose_bundle_became_another_file_warns_and_leaves_it(
    here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    compiler = headstart.AsyncCompile("cuda:90", bundle="a.bundle", start=False)
    compiler.bundler.put("ab" * 32, lambda: entry("k"))
    Path("a.bundle").write_text(NOTES)
    compiler.close()
    assert Path("a.bundle").read_text() == NOTES
    assert "a.bundle is there already" in caplog.text


@pytest.mark.parametrize("which", ["bundle", "record"])
def test_enabling_takes_no_other_file_for_its_own(here: Path, which: str) -> None:
    Path("thesis.tex").write_text(NOTES)
    with pytest.raises(UsageError, match=r"thesis\.tex is there already"):
        headstart.enable(**{which: "thesis.tex"})  # type: ignore[arg-type]
    assert Path("thesis.tex").read_text() == NOTES


def test_a_truncated_bundle_is_still_headstart_s(here: Path) -> None:
    path = bundle(Path("a.bundle"))
    path.write_bytes(path.read_bytes()[:-30])
    check_replaceable(path, BUNDLE)
    with pytest.raises(UsageError):
        check_replaceable(path, MANIFEST)
    assert len(Bundle.open(bundle(path))) == 1


# Sockets and logs


def test_a_service_listens_at_no_file_of_the_user_s(here: Path) -> None:
    Path("thesis.tex").write_text(NOTES)
    done = subprocess.run(
        [sys.executable, "-m", "headstart", "serve"],
        env={**os.environ, **client_environment(), "HEADSTART_SERVICE": str(here / "thesis.tex")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "there is something else than a socket, which is not replaced" in done.stderr
    assert Path("thesis.tex").read_text() == NOTES


@pytest.mark.parametrize("what", ["folder", "link"])
def test_a_service_removes_nothing_but_sockets(here: Path, what: str) -> None:
    path = here / "train.sock"
    path.mkdir() if what == "folder" else path.symlink_to("elsewhere")
    with pytest.raises(UsageError), sharing.place_for_a_service(path):
        pass
    assert stat.S_IFMT(path.lstat().st_mode) == (stat.S_IFDIR if what == "folder" else stat.S_IFLNK)


def test_a_service_that_ends_leaves_the_logs_beside_its_socket(here: Path) -> None:
    Path("train.log").write_text(NOTES)
    Path("train.sock.log").write_text(NOTES)
    with sharing.place_for_a_service(here / "train.sock") as listener:
        assert listener is not None
        door = Listener(listener.dup(), here / "train.sock")
    door.close(b"")
    assert sorted(os.listdir()) == ["train.log", "train.sock.log"]
    assert {path.read_text() for path in here.iterdir()} == {NOTES}


def test_a_service_s_log_replaces_only_a_service_s_log(here: Path) -> None:
    path = log_of(here / "train.sock")
    for _ in range(2):
        with launch._new_log(path) as log:
            log.write(b"something to say")
    assert path.read_bytes() == LOG.begins[0] + b"something to say"
    mine, other = socket.socketpair()
    with mine, other:
        assert launch.Shared(mine, here / "train.sock").last_words() == "something to say"
        path.write_text(NOTES)
        assert launch.Shared(mine, here / "train.sock").last_words() == ""
    with pytest.raises(headstart.ServiceError, match="is not a service's log"):
        launch._new_log(path)
    assert path.read_text() == NOTES


def test_two_that_write_one_file_at_once_leave_one_whole_file(here: Path) -> None:
    contents = [b"THING " + bytes([letter]) * 100_000 for letter in b"ab"]
    threads = [threading.Thread(target=replace, args=("thing", data, FORMAT)) for data in contents * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert Path("thing").read_bytes() in contents
    assert os.listdir() == ["thing"]
    assert files.carries_mark("thing", FORMAT)
