"""What a program compiles is written down without the program noticing, however many record at once."""

from __future__ import annotations

import datetime as dt
import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from conftest import client_environment, wait_until
from headstart.adapters import recording
from headstart.adapters.recording import Recorder, module_program, record_path, script_program, update
from headstart.artifacts.generated import GeneratedSource
from headstart.artifacts.manifest import MAGIC, Manifest
from headstart.artifacts.specialization import Specialization, Tuning
from headstart.model.request import CompileRequest
from headstart.system import locks

DAY = dt.date(2026, 11, 23)


def request(name: str = "k", **options: Any) -> CompileRequest:
    return CompileRequest.make(
        name, f"source of {name}", signature={"x": "*fp32"}, options=options, target="cuda:90", environment={}
    )


def specialization(name: str = "k", *, day: dt.date = DAY, **fields: Any) -> Specialization:
    made = request(name)
    return Specialization(request=made, digest=made.digest(), last_seen=day, **fields)


def generated(key: str, **fields: Any) -> GeneratedSource:
    made = GeneratedSource(
        key=key,
        name="triton_poi_fused_add_0",
        target="cuda:90",
        configurations=2,
        question=b"question",
        recipe=b"recipe",
        stem="cabc",
        torch="torch",
        generation="generation",
    )
    return msgspec.structs.replace(made, **fields)


def names(path: Path) -> set[str]:
    return {each.request.name for each in Manifest.open(path).specializations.values()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "my records é" / "app.manifest"


# Programs


def test_a_program_is_its_script_wherever_and_however_it_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "train.py"
    script.touch()
    (tmp_path / "link.py").symlink_to(script)
    monkeypatch.chdir(tmp_path)
    assert script_program("train.py") == script_program(script) == script_program("link.py") == str(script)
    other = tmp_path / "other" / "train.py"
    assert record_path(str(script)) != record_path(str(other))
    assert record_path(str(script)).name.startswith("train-")


def test_a_module_is_its_name_and_file(tmp_path: Path) -> None:
    program = module_program("app.main", tmp_path / "app" / "main.py")
    assert program == f"-m app.main {tmp_path / 'app' / 'main.py'}"
    assert record_path(program, tmp_path).parent == tmp_path / "manifests"
    assert record_path(program).name.startswith("app.main-")
    assert module_program("app", None) == "-m app"


def test_the_name_of_a_record_stays_in_its_folder(tmp_path: Path) -> None:
    for program in ("", "..", "/a/\udce9.py", "-m", f"/x/{'n' * 300}.py", "/a/b c/../*.py"):
        found = record_path(program, tmp_path)
        assert found.parent == tmp_path / "manifests"
        assert len(found.name) < 100


# Updating


def test_updates_accumulate(path: Path) -> None:
    assert update(path, Manifest.of([specialization("a", duration_s=2.0)]))
    assert update(path, Manifest.of([specialization("b"), specialization("a", duration_s=1.0, winner=True)]))
    a = specialization("a")
    assert names(path) == {"a", "b"}
    merged = Manifest.open(path).specializations[a.digest]
    assert (merged.duration_s, merged.winner) == (2.0, True)


def test_nothing_is_written_if_there_is_nothing_new(path: Path) -> None:
    manifest = Manifest.of([specialization()])
    assert update(path, manifest)
    before = path.stat().st_ino
    assert update(path, manifest)
    assert path.stat().st_ino == before


def test_kernels_that_nobody_asks_for_any_more_are_forgotten(path: Path) -> None:
    old = specialization("old", day=DAY - dt.timedelta(100))
    assert update(path, Manifest.of([old, specialization("recent", day=DAY - dt.timedelta(80))]))
    assert names(path) == {"old", "recent"}
    assert update(path, Manifest.of([specialization("new")]), kept_days=90)
    assert names(path) == {"old", "recent", "new"}  # the last run before was 80 days ago
    assert update(path, Manifest.of([specialization("newer", day=DAY + dt.timedelta(1))]), kept_days=90)
    assert names(path) == {"recent", "new", "newer"}
    assert update(path, Manifest.of([specialization("k", day=dt.date.min)]), kept_days=10**6)


@pytest.mark.parametrize("wrong", [dt.date(2099, 1, 1), dt.date(1970, 1, 1)])
def test_a_run_whose_clock_is_wrong_has_no_other_s_kernels_forgotten(path: Path, wrong: dt.date) -> None:
    days = [DAY - dt.timedelta(50), DAY]
    update(path, Manifest.of([specialization(f"of{day:%j}", day=day) for day in days]), kept_days=90)
    for number in range(2):  # a run writes more than once
        update(path, Manifest.of([specialization(f"wrong{number}", day=wrong)]), kept_days=90)
    update(path, Manifest.of([specialization("after", day=DAY + dt.timedelta(1))]), kept_days=90)
    assert {f"of{day:%j}" for day in days} | {"after"} <= names(path)


def test_a_choice_of_an_autotuner_that_is_dated_in_the_future_gives_way_to_the_next(path: Path) -> None:
    def choice(block: int, recorded_at: float) -> Manifest:
        made = Tuning(autotuner="a", key=[1], target="cuda:90", configuration={"B": block}, recorded_at=recorded_at)
        return Manifest.of([], [made])

    update(path, choice(1, time.time() + 10 * 365 * 86400))
    update(path, choice(2, time.time()))
    update(path, choice(3, time.time() - 60))
    assert [each.configuration["B"] for each in Manifest.open(path).tunings.values()] == [2]


def test_a_damaged_record_is_set_aside_with_one_warning(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.parent.mkdir()
    damaged = MAGIC + b"\2\0scrambled"
    path.write_bytes(damaged)
    assert update(path, Manifest.of([specialization()]))
    assert names(path) == {"k"}
    assert path.with_name("app.manifest.damaged").read_bytes() == damaged
    assert len(caplog.records) == 1


def test_a_file_that_is_no_record_is_left_alone_with_one_warning(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.parent.mkdir()
    path.write_bytes(b"print('a program')")
    assert not update(path, Manifest.of([specialization()]))
    assert {each.name: each.read_bytes() for each in path.parent.iterdir()} == {path.name: b"print('a program')"}
    (warning,) = caplog.records
    assert "is not a manifest of headstart's, so it is not replaced" in warning.getMessage()


def test_setting_a_damaged_record_aside_costs_no_other_file(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.parent.mkdir()
    path.write_bytes(MAGIC + b"\2\0scrambled")
    path.with_name("app.manifest.damaged").write_text("notes on damaged manifests")
    assert not update(path, Manifest.of([specialization()]))
    assert path.read_bytes() == MAGIC + b"\2\0scrambled"
    assert path.with_name("app.manifest.damaged").read_text() == "notes on damaged manifests"
    assert "app.manifest.damaged is there already" in caplog.text


def test_a_record_of_a_newer_headstart_is_left_alone(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Manifest.of([specialization()])
    path.parent.mkdir()
    data = bytearray(Manifest().encode())
    data[8] = 9
    path.write_bytes(data)
    assert not update(path, Manifest.of([specialization()]))
    assert path.read_bytes() == data
    assert "newer" in caplog.text


def test_a_record_that_cannot_be_written_is_a_warning(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert update(path, Manifest.of([specialization("a")]))

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    assert not update(path, Manifest.of([specialization("b")]))
    monkeypatch.undo()
    assert "No space left" in caplog.text
    assert names(path) == {"a"}
    assert {each.name for each in path.parent.iterdir()} == {"app.manifest", ".app.manifest.lock"}


@pytest.mark.parametrize("place", ["file/app.manifest", "folder", "/proc/app.manifest"])
def test_a_place_that_can_be_no_file_is_a_warning(tmp_path: Path, place: str, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    assert not update(tmp_path / place, Manifest.of([specialization()]))
    assert len(caplog.records) == 1


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tmp_path.chmod(0o500)
    assert not update(tmp_path / "app.manifest", Manifest.of([specialization()]))
    tmp_path.chmod(0o700)
    assert len(caplog.records) == 1


RANK = """
import sys
from test_recording import specialization
from headstart.artifacts.manifest import Manifest
from headstart.adapters.recording import update
rank, path = sys.argv[1:]
print("ready", flush=True)
sys.stdin.read()
for number in range(10):
    assert update(path, Manifest.of([specialization(f"k{rank}_{number}"), specialization("shared")]))
"""


def test_ranks_that_record_at_once_end_in_one_manifest(path: Path) -> None:
    path.parent.mkdir()
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **client_environment()},
        )
        for rank in range(4)
    ]
    # All are ready before any may begin.
    for rank in ranks:
        assert rank.stdout is not None
        assert rank.stdout.readline() == b"ready\n"
    for rank in ranks:
        assert rank.stdin is not None
        rank.stdin.close()
    for rank in ranks:
        rank.stdout.close()  # type: ignore[union-attr]
        assert rank.wait(30) == 0
    assert names(path) == {"shared"} | {f"k{rank}_{number}" for rank in range(4) for number in range(10)}


def test_an_update_waits_for_the_one_before_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, go_on = threading.Event(), threading.Event()
    save = Manifest.save

    def slow(manifest: Manifest, place: Path) -> None:
        if not inside.is_set():
            inside.set()
            assert go_on.wait(30)
        save(manifest, place)

    monkeypatch.setattr(Manifest, "save", slow)
    first = threading.Thread(target=update, args=(path, Manifest.of([specialization("a")])))
    second = threading.Thread(target=update, args=(path, Manifest.of([specialization("b")])))
    first.start()
    assert inside.wait(30)
    second.start()  # would read a manifest without "a" if it did not wait
    go_on.set()
    first.join(30)
    second.join(30)
    assert names(path) == {"a", "b"}


HOLDER = """
import fcntl, sys
lock = open(sys.argv[1], "w")
fcntl.lockf(lock, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_lock_that_nobody_gives_back_is_a_warning(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path.parent.mkdir()
    monkeypatch.setattr(locks, "PATIENCE", 0.0)
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            HOLDER,
            str(path.with_name(".app.manifest.lock")),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert not update(path, Manifest.of([specialization()]))
        assert holder.stdin is not None
        holder.stdin.close()
    assert "another process" in caplog.text
    assert update(path, Manifest.of([specialization()]))


# The recorder


def test_what_is_noted_is_saved_at_the_end(path: Path) -> None:
    recorder = Recorder(path, program="/app.py", triton_version="3.9.0", toolchain="t")
    kernel = request(num_warps=4)
    recorder.note(kernel, kernel.digest(), asked_by="app.py:3")
    recorder.note(kernel, kernel.digest(), asked_by="app.py:3", duration_s=0.5)
    recorder.note(kernel, kernel.digest(), asked_by="app.py:3", winner=True)
    tuning = Tuning(autotuner="app.k", key=[1, "fp32"], target="cuda:90", configuration={"num_warps": 4})
    recorder.note_tuning(tuning)
    assert not path.exists()
    assert recorder.close()
    found = Manifest.open(path)
    (each,) = found.specializations.values()
    assert (each.request, each.duration_s, each.winner, each.asked_by) == (kernel, 0.5, True, "app.py:3")
    assert found.tunings == {tuning.digest(): tuning}
    (origin,) = found.origins
    assert (origin.program, origin.triton_version, origin.toolchain) == ("/app.py", "3.9.0", "t")
    assert time.time() - 60 < origin.recorded_at <= time.time()


def test_sources_that_torch_compile_generated_are_saved_with_the_day_and_forgotten_in_time(path: Path) -> None:
    today = recording._today()
    days = {"a" * 64: today - dt.timedelta(200), "c" * 64: today - dt.timedelta(1)}
    update(path, Manifest.of([], generated=[generated(key, last_seen=day) for key, day in days.items()]))
    recorder = Recorder(path, program="app.py", kept_days=90)
    recorder.note_generated(generated("b" * 64))
    recorder.note_generated(generated("b" * 64, duration_s=2.0))
    assert recorder.close()
    saved = Manifest.open(path).generated
    assert sorted(saved) == ["b" * 64, "c" * 64], "the run before this one was yesterday"
    assert (saved["b" * 64].duration_s, saved["b" * 64].last_seen) == (2.0, today)


def test_notes_after_the_end_are_lost(path: Path) -> None:
    recorder = Recorder(path)
    assert recorder.close()
    recorder.note(request(), request().digest())
    assert recorder.save()
    assert not path.exists()


@pytest.mark.parametrize(("delay", "count"), [(0.0, 10**6), (600.0, 1)])
def test_a_program_that_is_killed_loses_only_what_it_noted_last(
    path: Path, monkeypatch: pytest.MonkeyPatch, delay: float, count: int
) -> None:
    monkeypatch.setattr(recording, "SAVE_DELAY", delay)
    monkeypatch.setattr(recording, "SAVE_COUNT", count)
    recorder = Recorder(path)
    for name in ("a", "b"):
        recorder.note(request(name), request(name).digest())
        wait_until(lambda name=name: path.exists() and name in names(path))
    wait_until(lambda: "headstart-recorder" not in {thread.name for thread in threading.enumerate()})
    assert recorder.close()


def test_a_failed_save_is_tried_once_more_at_the_end(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path.parent.parent.mkdir(exist_ok=True)
    path.parent.write_text("in the way")
    recorder = Recorder(path)
    recorder.note(request("a"), request("a").digest())
    assert not recorder.save()
    recorder.note(request("b"), request("b").digest())
    path.parent.unlink()
    assert recorder.close()
    assert names(path) == {"a", "b"}
    assert len(caplog.records) == 1


def test_a_forked_child_saves_only_its_own(path: Path) -> None:
    recorder = Recorder(path)
    recorder.note(request("parent"), request("parent").digest())
    child = os.fork()
    if child == 0:
        recorder.note(request("child"), request("child").digest())
        os._exit(0 if recorder.close() and names(path) == {"child"} else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert recorder.close()
    assert names(path) == {"parent", "child"}


def test_threads_may_note_at_once(path: Path) -> None:
    recorder = Recorder(path)

    def work(number: int) -> None:
        for index in range(50):
            kernel = request(f"k{number}_{index}")
            recorder.note(kernel, kernel.digest())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert recorder.close()
    assert len(names(path)) == 200
