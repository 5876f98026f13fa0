"""A run's log: what is in it, what it costs, and that whatever becomes of it no program notices."""

from __future__ import annotations

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
from headstart.client import about, run_file, run_log
from headstart.client.asked import Kickoff
from headstart.client.future import LambdaFuture
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
            waiting.result(0.0)
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
    run_log.release(settings, log)
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
    monkeypatch.setattr(run_log, "_CLOSE_PATIENCE", 0.01)
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
