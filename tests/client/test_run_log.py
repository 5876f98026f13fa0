"""A run's log: what is in it, what it costs, and that whatever becomes of it no program notices."""

from __future__ import annotations

import _thread
import asyncio
import errno
import math
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import PATIENCE, wait_until
from headstart import AsyncCompile
from headstart.artifacts import run_records, runs
from headstart.client import about, kernel_log, run_file, run_log, run_notes
from headstart.client.asked import Kickoff
from headstart.client.future import LambdaFuture, as_completed
from headstart.client.policy import Policy
from headstart.client.run_log import RunLog
from headstart.client.timeline import Requests, TimelineEntry
from headstart.errors import CompileError
from headstart.model.request import CompileRequest
from headstart.system.settings import Settings
from kernels import TOOLCHAIN, matmul, pointwise, raises
from run_logs import ask, result

Open = Callable[..., AsyncCompile]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def _nobody_said_what_runs() -> None:
    about.describe(about.About())


def the_run(cache: Path) -> runs.Run:
    (found,) = runs.runs(cache)
    return found


def files(cache: Path) -> list[Path]:
    return sorted((cache / "runs").glob("*/*"))


def test_a_log_says_what_was_asked_who_had_it_and_who_waited(cache: Path) -> None:
    log = RunLog(cache, 5, 2)
    kickoff = ask(log, matmul(num_warps=8))
    threading.Timer(0.05, kickoff.answer.set_result, [result()]).start()
    assert LambdaFuture("matmul", kickoff, lambda answer: answer).result(PATIENCE)
    ask(log, pointwise(), result(cached=True))
    ask(log, pointwise(3.0), result(cached=True, remote=True))
    ask(log, pointwise(6.0), result(cached=True, farm=True))
    ask(log, raises(), CompileError("it is wrong", kernel="raises", target="cuda:90", options={}, stage="ttir"))
    ask(log, pointwise(4.0))
    log.fell_back("app.kernel", "its option extern_libs names a file")
    log.close()

    run = the_run(cache)
    assert run.state == "ended"
    assert (run.head.kind, run.head.pid, run.head.workers, run.triton) == ("api", os.getpid(), 2, "3.9.0")
    first, stored, remote, farm, failed, pending = run.kernels
    assert (first.name, first.label, first.target, first.origin) == (
        "matmul",
        "M=32 N=32 D=32 warps=8",
        "cuda:90",
        "worker",
    )
    assert Path(first.where.rpartition(":")[0]).name == "run_logs.py"
    assert first.thread == threading.current_thread().name
    assert first.compile_s == pytest.approx(1.5, abs=0.001)
    assert dict(first.stages)["llir"] == pytest.approx(0.674)
    assert 0.04 < sum(took for _, took, _ in first.waits) < PATIENCE
    assert [each.origin for each in (stored, remote, farm)] == ["store", "remote", "farm"]
    assert [each.origin for each in (failed, pending)] == ["failed", "pending"]
    assert (failed.kind, failed.stage, failed.error) == ("CompileError", "ttir", "it is wrong")
    assert run.processes[0].fell_back == [("app.kernel", "its option extern_libs names a file")]


def test_a_worker_that_begins_before_the_log_has_heard_of_the_kernel_is_in_it(cache: Path) -> None:
    log = RunLog(cache, 5, 2)
    request = CompileRequest.make(target="cuda:90", **pointwise())
    kickoff = Kickoff(
        lambda _: None, lambda _: None, request, Policy(find=lambda: TOOLCHAIN), True, True, None, False, True
    )
    kickoff.began(time.monotonic(), 7)
    Requests(log).note(TimelineEntry(request.name, kickoff.kicked_off, kickoff))
    log.close()
    (kernel,) = the_run(cache).kernels
    assert kernel.began is not None
    assert kernel.worker == 7


def test_what_was_cancelled_is_neither_compiled_nor_failed(cache: Path) -> None:
    log = RunLog(cache, 5, 2)
    assert LambdaFuture("matmul", ask(log, matmul(32, 32, 32)), lambda answer: answer).cancel()
    ask(log, matmul(64, 64, 64), result())
    log.close()
    assert [kernel.origin for kernel in the_run(cache).kernels] == ["cancelled", "worker"]


def test_a_kernel_costs_at_most_200_bytes(cache: Path) -> None:
    log = RunLog(cache, 5, 2)
    for number in range(1000):
        kickoff = ask(log, matmul(32, 64, 128, name=f"matmul_{number % 20}", num_warps=number, num_stages=3))
        kickoff.began(time.monotonic(), 1)
        waiting = LambdaFuture("matmul", kickoff, lambda answer: answer)
        with pytest.raises(TimeoutError):
            waiting.result(0.002)
        kickoff.answer.set_result(result())
    log.close()
    assert len(the_run(cache).kernels) == 1000
    (file,) = files(cache)
    assert file.stat().st_size <= 200 * 1000


def test_only_its_owner_can_read_it(cache: Path) -> None:
    log = RunLog(cache, 5, 2)
    ask(log, pointwise())
    log.close()
    (file,) = files(cache)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [stat.S_IMODE(each.stat().st_mode) for each in (file.parent, file.parent.parent)] == [0o700, 0o700]


def test_a_process_that_asks_for_nothing_leaves_nothing(cache: Path) -> None:
    RunLog(cache, 5, 2).close()
    assert not cache.exists()


def test_nothing_is_written_where_no_runs_are_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_KEEP_RUNS", "0")
    settings = Settings.load(cache_dir=cache)
    log = run_log.acquire(settings, keeps=True)
    ask(log, pointwise(), result())
    log.close()
    run_log.release(log)
    assert not cache.exists()


def test_the_latest_runs_are_kept_and_those_that_are_being_written(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(name: str) -> RunLog:
        about.describe(about.About(run=name))
        log = RunLog(cache, 3, 2)
        ask(log, pointwise())
        log._write(PATIENCE)
        return log

    longest = begin("00000000")
    os.utime(files(cache)[0], (1, 1))
    for number in range(1, 6):
        begin(f"{number:08x}").close()
        os.utime(next((cache / "runs" / f"{number:08x}").iterdir()), (number + 1, number + 1))
    assert sorted(runs.names(cache)) == ["00000000", "00000003", "00000004", "00000005"]
    assert runs.open_run(cache, "00000000").state == "running"  # type: ignore[union-attr]
    longest.close()
    assert runs.open_run(cache, "00000000").state == "ended"  # type: ignore[union-attr]


def test_what_somebody_else_keeps_there_is_not_removed(cache: Path) -> None:
    place = cache / "runs" / "0000000a"
    place.mkdir(parents=True)
    (place / "notes.txt").write_text("mine")
    assert runs.forget(cache, 0) == 0
    assert (place / "notes.txt").read_text() == "mine"


def test_a_file_is_read_as_far_as_it_is_whole_wherever_it_ends(cache: Path) -> None:
    log = RunLog(cache, 5, 2)
    for number in range(3):
        ask(log, pointwise(float(number)), result())
        log._write(PATIENCE)
    log.close()
    (file,) = files(cache)
    data = file.read_bytes()
    counts = []
    for length in range(len(data)):
        process = runs.read_log(data[:length])
        counts.append(0 if process is None else len(process.kernels))
        assert process is None or process.damage == ""
    assert counts == sorted(counts)
    assert set(counts) == {0, 1, 2, 3}


def test_a_damaged_file_is_never_an_error(cache: Path) -> None:
    log = RunLog(cache, 5, 2)
    ask(log, pointwise(), result())
    log._write(PATIENCE)
    ask(log, pointwise(5.0), result())
    log.close()
    (file,) = files(cache)
    data = file.read_bytes()
    said = set()
    for place in range(len(data)):
        for flip in (1, 128):
            process = runs.read_log(data[:place] + bytes([data[place] ^ flip]) + data[place + 1 :])
            said.add("nothing" if process is None else process.damage.partition(" at ")[0])
    assert said == {"nothing", "it is damaged", ""}
    file.write_bytes(b"somebody else's")
    assert list(runs.runs(cache)) == []


def test_a_full_disk_costs_records_and_no_more(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = RunLog(cache, 5, 2)
    ask(log, pointwise(), result())
    log._write(PATIENCE)
    size = files(cache)[0].stat().st_size
    write = os.write

    def full(fd: int, data: bytes) -> int:
        write(fd, data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(run_file.os, "write", full)
        ask(log, pointwise(5.0), result())
        log._write(PATIENCE)
    assert files(cache)[0].stat().st_size == size
    ask(log, pointwise(6.0), result())
    log.close()
    (process,) = the_run(cache).processes
    assert [kernel.name for kernel in process.kernels.values()] == ["pointwise", "pointwise"]
    assert all(kernel.target == "cuda:90" for kernel in process.kernels.values())
    assert (process.lost, process.state) == (3, "ended")


def test_a_cache_folder_that_cannot_be_written_goes_unnoticed(
    cache: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    cache.mkdir()
    (cache / "runs").write_text("a file is in the way")
    caplog.set_level("INFO")
    log = RunLog(cache, 5, 2)
    for number in range(3):
        ask(log, pointwise(float(number)), result())
        log._write(PATIENCE)
    log.close()
    assert (caplog.text, capfd.readouterr()) == ("", ("", ""))


def test_a_file_system_that_hangs_keeps_nobody_waiting(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = RunLog(cache, 5, 2)
    hangs, entered = threading.Event(), threading.Event()

    def hang(fd: int, data: bytes) -> int:
        entered.set()
        hangs.wait(PATIENCE)
        return len(data)

    monkeypatch.setattr(run_file.os, "write", hang)
    monkeypatch.setattr(run_log, "CLOSE_PATIENCE", 0.01)
    ask(log, pointwise())
    assert entered.wait(PATIENCE)
    begun = time.monotonic()
    for number in range(100):
        ask(log, pointwise(float(number)), result())
    log.close()
    assert time.monotonic() - begun < PATIENCE / 2
    hangs.set()


def test_a_note_that_goes_wrong_costs_itself_only(cache: Path) -> None:
    log = RunLog(cache, 5, 2)
    log.put(lambda log: [][0])  # type: ignore[misc]
    ask(log, pointwise(), result())
    log.close()
    assert the_run(cache).processes[0].lost == 1
    assert len(the_run(cache).kernels) == 1


def test_a_file_of_the_programs_own_is_never_written_or_cut(cache: Path, tmp_path: Path) -> None:
    """A daemon closes descriptors that it did not open, and opens files of its own then."""
    log = RunLog(cache, 5, 2)
    ask(log, pointwise(), result())
    log._write(PATIENCE)
    number = log._file._fd
    own = os.open(tmp_path / "own", os.O_RDWR | os.O_CREAT)
    os.dup2(own, number)  # which closes ours
    os.write(own, b"mine")
    ask(log, pointwise(5.0), result())
    log._write(PATIENCE)
    log.close()
    assert (tmp_path / "own").read_bytes() == b"mine"
    assert os.fstat(number).st_ino == os.fstat(own).st_ino
    os.close(own)
    os.close(number)
    assert [kernel.name for kernel in the_run(cache).kernels] == ["pointwise"]


_HANDLER = """
import signal, sys, threading
sys.path.insert(0, {tests!r})
from run_logs import ask, result
from headstart.client.run_log import RunLog
from kernels import pointwise
from pathlib import Path
log = RunLog(Path({cache!r}), 5, 2)
signal.signal(signal.SIGUSR1, lambda *_: ask(log, pointwise(5.0), result()))
start = threading.Thread.start
def interrupted(thread):
    signal.raise_signal(signal.SIGUSR1)
    start(thread)
    signal.raise_signal(signal.SIGUSR1)
threading.Thread.start = interrupted
ask(log, pointwise(), result())
log.close(5.0)
"""


def test_a_signal_handler_may_ask_while_the_first_note_is_made(cache: Path) -> None:
    script = _HANDLER.format(tests=str(Path(__file__).parent.parent), cache=str(cache))
    subprocess.run([sys.executable, "-c", script], check=True, timeout=PATIENCE)
    assert len(the_run(cache).kernels) == 3


def test_an_end_that_finds_no_thread_is_not_kept_waiting_either(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = RunLog(cache, 5, 2)
    hangs = threading.Event()

    def hang(*_: object) -> int:
        hangs.wait(PATIENCE)
        raise OSError(5, "it hangs")

    monkeypatch.setattr(run_file.os, "open", hang)
    request = CompileRequest.make(target="cuda:90", **pointwise())
    log.asked(TimelineEntry(request.name, time.monotonic(), None, request))
    assert log._thread is None
    begun = time.monotonic()
    log.close()
    assert time.monotonic() - begun < PATIENCE / 2
    hangs.set()


def test_notes_for_which_the_end_has_no_time_are_counted(cache: Path) -> None:
    log = RunLog(cache, 5, 2)
    ask(log, pointwise(), result())
    log._write(PATIENCE)
    log._until = 0.0
    log.put(lambda log: [run_records.Tool("never")], starts=False)
    log._write(PATIENCE, is_last=True)
    (process,) = the_run(cache).processes
    assert (process.lost, process.state, process.tritons) == (1, "ended", ["3.9.0"])


def test_labels_that_take_long_are_left_out(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_notes, "LABELLING", -1.0)
    log = RunLog(cache, 5, 2)
    ask(log, matmul(num_warps=8), result())
    log.close(PATIENCE)
    assert [(kernel.name, kernel.label) for kernel in the_run(cache).kernels] == [("matmul", "")]


def test_clients_that_come_and_go_have_one_file(cache: Path) -> None:
    settings = Settings.load(cache_dir=cache)
    for number in range(3):
        log = run_log.acquire(settings, keeps=True)
        ask(log, pointwise(float(number)), result())
        run_log.release(log)
        assert the_run(cache).state == "ended"
    assert len(files(cache)) == 1
    assert len(the_run(cache).kernels) == 3
    again = run_log.acquire(settings, keeps=True)
    assert again is log
    ask(again, pointwise(9.0), result())
    again._write(PATIENCE)
    assert runs.read_log(files(cache)[0].read_bytes()).state == "killed"  # type: ignore[union-attr]
    run_log.release(again)
    files(cache)[0].unlink()
    another = run_log.acquire(settings, keeps=True)
    ask(another, pointwise(9.0), result())
    run_log.release(another)
    assert [len(process.kernels) for process in the_run(cache).processes] == [1]


def test_clients_of_one_run_after_another_have_a_file_in_each(cache: Path) -> None:
    settings = Settings.load(cache_dir=cache)
    for name in ("0000000a", "0000000b"):
        about.describe(about.About(run=name))
        log = run_log.acquire(settings, keeps=True)
        ask(log, pointwise(), result())
        run_log.release(log)
    assert sorted(run.name for run in runs.runs(cache)) == ["0000000a", "0000000b"]


def test_a_full_log_says_at_the_end_that_it_lacks_something(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = RunLog(cache, 5, 2)
    ask(log, pointwise(), result())
    log._write(PATIENCE)
    thread = log._thread
    monkeypatch.setattr(run_file, "MAX_BYTES", files(cache)[0].stat().st_size)
    ask(log, pointwise(5.0), result())
    log._write(PATIENCE)
    ask(log, pointwise(6.0), result())
    log.close(PATIENCE)
    (process,) = the_run(cache).processes
    assert (process.state, len(process.kernels), process.lost) == ("ended", 1, 4)
    assert thread is not None
    assert not thread.is_alive()
    assert not log._file.is_there


def test_names_that_are_no_utf_8_cost_nothing(cache: Path) -> None:
    log = RunLog(cache, 5, 2)
    kickoff = ask(log, pointwise())
    log.fell_back("app\udce4.kernel", "its file is m\udce4x.py")
    log.put(lambda log: [run_records.Tool("\udce4")])  # which nobody has cleaned: it costs itself
    log._maker.text("m\udce4x.py")
    kickoff.answer.set_exception(CompileError("\udce4", kernel="raises", target="cuda:90", options={}))
    log.close(PATIENCE)
    (process,) = the_run(cache).processes
    assert [kernel.error for kernel in process.kernels.values()] == ["?"]
    assert process.fell_back == [("app?.kernel", "its file is m?x.py")]
    assert (process.state, process.tritons) == ("ended", ["3.9.0"])


def test_no_empty_file_is_left(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    log = RunLog(cache, 5, 2)
    with monkeypatch.context() as patch:
        patch.setattr(run_file.os, "write", full)
        ask(log, pointwise(), result())
        log.close(PATIENCE)
    assert files(cache) == []
    assert runs.names(cache) == []


def test_who_only_looks_whether_a_kernel_is_there_waits_for_none(cache: Path) -> None:
    log = RunLog(cache, 5, 2)
    polled, waited = ask(log, matmul(32, 32, 32)), ask(log, matmul(64, 64, 64))
    before = kernel_log.waited_s()
    for kickoff, patience in ((polled, 0.0), (polled, 0.0), (waited, 0.005)):
        with pytest.raises(TimeoutError):
            LambdaFuture("matmul", kickoff, lambda answer: answer).result(patience)
    log.close(PATIENCE)
    first, second = the_run(cache).kernels
    assert first.waits == []
    assert len(second.waits) == 1
    assert kernel_log.waited_s() - before >= 0.004


def test_waiting_by_await_and_as_completed_is_waiting(cache: Path) -> None:
    log = RunLog(cache, 5, 2)
    kickoffs = [ask(log, matmul(size, 32, 32)) for size in (32, 64, 128)]
    futures = [LambdaFuture("matmul", kickoff, lambda answer: answer) for kickoff in kickoffs]
    before, begun = kernel_log.waited_s(), time.monotonic()

    async def wait() -> None:
        await asyncio.gather(futures[0], futures[0], futures[1])

    for kickoff, after in zip(kickoffs, (0.02, 0.05, 0.1), strict=True):
        threading.Timer(after, kickoff.answer.set_result, [result()]).start()
    asyncio.run(wait())
    assert list(as_completed(futures, PATIENCE))[-1] is futures[2]
    took = time.monotonic() - begun
    log.close(PATIENCE)
    assert [len(kernel.waits) for kernel in the_run(cache).kernels] == [1, 1, 1]
    assert all(took is not None and took > 0.001 for kernel in the_run(cache).kernels for _, took, _ in kernel.waits)
    assert 0.04 < kernel_log.waited_s() - before <= took


def test_a_thread_that_python_did_not_start_is_not_listed_for_that(cache: Path) -> None:
    log = RunLog(cache, 5, 2)
    asked = threading.Event()

    def foreign() -> None:
        ask(log, pointwise(), result())
        asked.set()

    before = set(threading.enumerate())
    _thread.start_new_thread(foreign, ())
    assert asked.wait(PATIENCE)
    assert {each.name for each in set(threading.enumerate()) - before} <= {"headstart-run-log"}
    log.close(PATIENCE)
    assert the_run(cache).kernels[0].thread.startswith("thread ")


def test_a_thread_whose_name_goes_wrong_may_ask(cache: Path) -> None:
    class Nameless(threading.Thread):
        @property
        def name(self) -> str:  # type: ignore[override]
            if threading.get_ident() == self.ident:
                raise RuntimeError("it has none")
            return "nameless"

        def run(self) -> None:
            ask(log, pointwise(), result())

    log = RunLog(cache, 5, 2)
    thread = Nameless()
    thread.start()
    thread.join(PATIENCE)
    log.close(PATIENCE)
    assert len(the_run(cache).kernels) == 1


def test_where_files_have_no_locks_a_run_ends_and_goes_as_elsewhere(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(run_file.fcntl, "flock", refuse)
    log = RunLog(cache, 5, 2)
    ask(log, pointwise(), result())
    log.close(PATIENCE)
    assert the_run(cache).state == "ended"
    assert runs.forget(cache, 0) == 1


def test_a_run_that_only_has_its_folder_yet_is_the_latest(cache: Path) -> None:
    for name in ("0000000a", "0000000b"):
        (cache / "runs" / name).mkdir(parents=True)
    old = cache / "runs" / "0000000b" / "1-00000000.run"
    old.write_bytes(b"")
    os.utime(old, (1, 1))
    assert runs.names(cache) == ["0000000a", "0000000b"]


def test_a_folder_that_somebody_removes_meanwhile_is_made_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, removed = run_file.make_folder, []

    def make_and_remove(folder: Path) -> None:
        make(folder)
        if not removed:
            removed.append(folder)
            folder.rmdir()

    monkeypatch.setattr(run_file, "make_folder", make_and_remove)
    log = RunLog(cache, 5, 2)
    ask(log, pointwise(), result())
    log.close(PATIENCE)
    assert len(the_run(cache).kernels) == 1


def test_a_file_has_its_lock_before_it_has_its_name(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else `headstart stats --reset` could remove what is about to be written."""
    rename, removed = os.rename, []

    def look(old: Path, new: Path) -> None:
        removed.append(runs.forget(cache, 0))
        rename(old, new)
        removed.append(runs.forget(cache, 0))

    monkeypatch.setattr(run_file.os, "rename", look)
    log = RunLog(cache, 5, 2)
    ask(log, pointwise(), result())
    log.close(PATIENCE)
    assert removed == [0, 0]
    assert len(the_run(cache).kernels) == 1


def test_what_the_program_has_removed_is_not_made_again(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    log = RunLog(place / "cache", 5, 2)
    place.rmdir()
    ask(log, pointwise(), result())
    log.close(PATIENCE)
    assert not place.exists()


def test_the_request_of_a_bundled_kernel_is_let_go_of(cache: Path) -> None:
    log = RunLog(cache, 5, 2)
    request = CompileRequest.make(target="cuda:90", **matmul(num_warps=8))
    requests = Requests(log)
    requests.note(TimelineEntry(request.name, time.monotonic(), None, request))
    log.close(PATIENCE)
    assert requests[0].request is None
    assert [kernel.label for kernel in the_run(cache).kernels] == ["M=32 N=32 D=32 warps=8"]


# In processes

_FORKS = """
import os, sys, time
sys.path.insert(0, {tests!r})
from run_logs import ask, result
from headstart.client.run_log import RunLog
from kernels import pointwise
from pathlib import Path
log = RunLog(Path({cache!r}), 5, 2)
ask(log, pointwise(), result())
log._write(-1)
child = os.fork()
ask(log, pointwise(5.0, name="in_child" if child == 0 else "in_parent"), result())
if child == 0:
    log.close()
    os._exit(0)
os.waitpid(child, 0)
log.close()
"""


def test_a_fork_has_a_file_of_its_own_in_the_same_run(cache: Path) -> None:
    tests = str(Path(__file__).parent.parent)
    script = _FORKS.format(tests=tests, cache=str(cache))
    subprocess.run([sys.executable, "-c", script], check=True, timeout=PATIENCE)
    parent, child = the_run(cache).processes
    assert child.head.parent == parent.head.pid
    assert [kernel.name for kernel in parent.kernels.values()] == ["pointwise", "in_parent"]
    assert [kernel.name for kernel in child.kernels.values()] == ["in_child"]
    assert (parent.state, child.state) == ("ended", "ended")


_POOL = """
import multiprocessing, os, sys
sys.path.insert(0, {tests!r})
from run_logs import ask, result
from headstart.client.run_log import RunLog
from kernels import pointwise
from pathlib import Path
log = RunLog(Path({cache!r}), 5, 2)
context = multiprocessing.get_context("fork")
several = [context.Process(target=lambda: ask(log, pointwise(), result())) for _ in range(2)]
for process in several:
    process.start()
for process in several:
    process.join()
if {asks!r}:
    ask(log, pointwise(), result())
    if os.fork() == 0:
        ask(log, pointwise(5.0), result())
        log._write(-1)
        os._exit(0)
    os.wait()
    log.close(5.0)
"""


@pytest.mark.parametrize("asks", [False, True])
def test_forks_of_a_process_are_one_run_that_ends_when_it_does(cache: Path, asks: bool) -> None:
    """Those of multiprocessing end without atexit, others by `os._exit`, with which nothing of Python runs."""
    script = _POOL.format(tests=str(Path(__file__).parent.parent), cache=str(cache), asks=asks)
    subprocess.run([sys.executable, "-c", script], check=True, timeout=PATIENCE)
    run = the_run(cache)
    assert run.state == "ended"
    assert [len(process.kernels) for process in run.processes] == [1] * (4 if asks else 2)
    assert sorted(process.state for process in run.processes) == ["ended"] * (3 if asks else 2) + ["killed"] * asks


_NOWHERE = """
import os, sys, tempfile
import headstart
from headstart.client import about
place = tempfile.mkdtemp()
os.chdir(place)
os.rmdir(place)
{call}
print(about.described())
"""


def test_what_runs_is_described_wherever_it_is_and_however_its_files_are_named() -> None:
    from headstart.adapters.options import EnableOptions

    EnableOptions(bundle=b"m\xe4x.bundle").describe()  # type: ignore[arg-type]
    assert about.described().bundle.endswith("/m\udce4x.bundle")
    call = "from headstart.adapters.options import EnableOptions; EnableOptions(bundle='x.bundle').describe()"
    script = _NOWHERE.format(call=call)
    done = subprocess.run([sys.executable, "-c", script], check=True, timeout=PATIENCE, capture_output=True, text=True)
    assert "bundle='x.bundle'" in done.stdout


_ELSEWHERE = """
import os, sys
sys.path.insert(0, {tests!r})
from run_logs import ask, result
from headstart.client.run_log import RunLog
from kernels import pointwise
from pathlib import Path
log = RunLog(Path({cache!r}), 5, 2)
os.chdir("/")
ask(log, pointwise(), result())
log.close(5.0)
"""


def test_the_program_is_named_as_it_was_called_wherever_it_goes(cache: Path, tmp_path: Path) -> None:
    script = _ELSEWHERE.format(tests=str(Path(__file__).parent.parent), cache=str(cache))
    (tmp_path / "app.py").write_text(script)
    subprocess.run([sys.executable, "app.py"], check=True, timeout=PATIENCE, cwd=tmp_path)
    assert the_run(cache).head.program == str(tmp_path / "app.py")


_RANK = """
import sys
sys.path.insert(0, {tests!r})
from run_logs import ask, result
from headstart.client.run_log import RunLog
from kernels import pointwise
from pathlib import Path
log = RunLog(Path({cache!r}), 5, 2)
ask(log, pointwise(), result())
log.close()
"""


def test_ranks_of_one_job_are_one_run_and_two_programs_are_two(cache: Path) -> None:
    script = _RANK.format(tests=str(Path(__file__).parent.parent), cache=str(cache))
    job = {"TORCHELASTIC_RUN_ID": "none", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    several = [
        subprocess.Popen([sys.executable, "-c", script], env={**os.environ, **job, "RANK": str(rank)})
        for rank in range(3)
    ]
    several.append(subprocess.Popen([sys.executable, "-c", script]))
    assert [process.wait(PATIENCE) for process in several] == [0, 0, 0, 0]
    found = sorted(runs.runs(cache), key=lambda run: len(run.processes))
    assert [len(run.processes) for run in found] == [1, 3]
    assert sorted(process.head.rank for process in found[1].processes) == ["0", "1", "2"]


TORCHRUN = {"TORCHELASTIC_RUN_ID": "100", "MASTER_ADDR": "node1", "MASTER_PORT": "29400", "LOCAL_WORLD_SIZE": "8"}
STEP = {"SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0"}


def run_named(monkeypatch: pytest.MonkeyPatch, **variables: str) -> tuple[str, str]:
    """The run of a process with these variables, and its rank in it."""
    with monkeypatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("SLURM_", "TORCHELASTIC_")):
                patch.delenv(name)
        for name, value in variables.items():
            patch.setenv(name, value)
        run_file._run_of_this_process.cache_clear()
        try:
            return run_file._run_of_this_process(), run_file._rank()
        finally:
            run_file._run_of_this_process.cache_clear()


def test_two_launches_are_two_runs_though_they_have_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    one_host = {**TORCHRUN, "WORLD_SIZE": "8"}
    errors = ["/tmp/a/attempt_0/0/e.json", "/tmp/a/attempt_0/1/e.json", "/tmp/b/attempt_0/0/e.json"]
    first, other_rank, second = (
        run_named(monkeypatch, **one_host, TORCHELASTIC_ERROR_FILE=each, RANK="1") for each in errors
    )
    assert first == other_rank
    assert first[1] == "1"
    assert first[0] != second[0]


def test_a_torchrun_of_several_hosts_is_one_run_whatever_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = {**TORCHRUN, "TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "16"}
    first, second = (run_named(monkeypatch, **hosts, TORCHELASTIC_ERROR_FILE=f"/tmp/{n}/0/0/e.json") for n in "ab")
    assert first == second


def test_only_a_step_of_several_tasks_is_a_run_of_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    shells: list[dict[str, str]] = [{"SLURM_JOB_ID": "77"}, STEP, {**STEP, "SLURM_STEP_NUM_TASKS": "1"}]
    for shell in shells:
        first, second = (run_named(monkeypatch, **shell) for _ in range(2))
        assert first != second
        assert first[1] == ""
    first, second = (run_named(monkeypatch, **{**STEP, "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": n}) for n in "01")
    assert first[0] == second[0]
    assert (first[1], second[1]) == ("0", "1")


@pytest.mark.parametrize(
    "library",
    ["torch._functorch._aot_autograd.graph_compile", "torch.nn.modules.module", "importlib._bootstrap", "runpy"],
)
def test_who_asks_through_a_library_is_the_program(library: str) -> None:
    named = {"__name__": library, "asked_from": about.asked_from}
    exec(compile("def call(): return asked_from()", f"/site-packages/{library}.py", "exec"), named)
    assert named["call"]().startswith(f"{__file__}:")  # type: ignore[operator]


_KILLED = """
import sys
sys.path.insert(0, {tests!r})
import headstart
from kernels import Gate, pointwise
from pathlib import Path
gate = Gate(Path({gate!r}))
compiler = headstart.AsyncCompile(target="cuda:90", workers=1)
compiler.triton(**pointwise()).result()
future = compiler.triton(**gate.kernel(name="held"))
gate.began("held")
print("held", flush=True)
future.result()
"""


@pytest.mark.triton
def test_a_run_that_is_killed_has_a_log_that_says_what_it_was_at(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    script = _KILLED.format(tests=str(Path(__file__).parent.parent), gate=str(gate))
    cache = Path(os.environ["HEADSTART_CACHE_DIR"])
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"

        def is_held() -> bool:
            kernels = the_run(cache).kernels
            return len(kernels) == 2 and bool(kernels[1].waits) and kernels[1].began is not None

        wait_until(is_held)
        assert the_run(cache).state == "running"
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE)
    run = the_run(cache)
    assert run.state == "killed"
    done, held = run.kernels
    assert (done.origin, held.origin, held.name) == ("worker", "pending", "held")
    assert held.began is not None
    assert held.waits[0][1] > 0.0


@pytest.mark.triton
def test_what_compiles_is_written_down_with_the_key_of_its_entry(open_compile: Open) -> None:
    compiler = open_compile()
    kernel = compiler.triton(**pointwise()).result()
    compiler.close()
    with open_compile() as again:
        assert again.triton(**pointwise()) is again.triton(**pointwise())
        again.triton(**pointwise()).result()
    first, second = sorted(the_run(compiler.cache_dir).kernels, key=lambda kernel: kernel.origin)
    assert (first.origin, second.origin) == ("store", "worker")
    assert kernel.key.startswith(second.key)
    assert len(second.key) == 32
    assert sum(process.joined for process in the_run(compiler.cache_dir).processes) == 2
    assert first.saved_s == pytest.approx(second.compile_s, rel=0.5)
    assert {name for name, _ in second.stages} >= {"ttir", "ttgir", "llir", "ptx", "cubin"}


def test_times_that_are_none_are_not_believed() -> None:
    def read(began: float, *more: run_records.Record) -> runs.Process | None:
        head = run_records.Head("0000000a", "run", "app.py", 7, 0, "", "host", began, 5.0, "0.1.0", "3.11", "", "", 2)
        return runs.read_log(run_records.beginning() + run_records.frame([head, *more]))

    for began in (-1.0, 1e300, math.nan, math.inf):
        assert read(began) is None
    process = read(1e9, run_records.Swept(0, "k", [0, 1, 2], [-math.inf, math.nan, 1.5], 0))
    assert process is not None
    assert process.sweeps[0].times == {0: math.inf, 1: math.inf, 2: 1.5}


def test_the_records_are_numbered_for_good() -> None:
    """A tag that changes its meaning needs another VERSION."""
    tags = {each.__struct_config__.tag: each.__name__ for each in run_records.Record.__args__}  # type: ignore[attr-defined]
    names = "Head Text Asked Began Done Loaded Failed Blocked Unblocked FellBack Swept Tool Ended Lost Since"
    assert tags == dict(enumerate(names.split()))
