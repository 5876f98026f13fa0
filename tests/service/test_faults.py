"""What goes wrong below a client stays there: promises 5 (a failing compile) and 9 (a service that dies)."""

from __future__ import annotations

import errno
import gc
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

import headstart
from conftest import PATIENCE, PROMPT, Client, Family, client_environment, is_alive, kill, lasting, wait_until
from headstart import (
    AsyncCompile,
    CompileError,
    CompileErrors,
    CompileOutOfMemory,
    CompilerCrashed,
    CompileTimeout,
    OutOfResources,
    ServiceError,
    SourceError,
)
from headstart.system.spawn import reap_group
from kernels import (
    Gate,
    Kernel,
    aborts,
    aborts_in_llvm,
    dying_ptxas,
    exits,
    hanging_ptxas,
    killed,
    pointwise,
    prints,
    raises,
    refused_by_ptxas,
    too_large_matmul,
)

pytestmark = pytest.mark.triton

Open = Callable[..., AsyncCompile]
Start = Callable[..., Client]


def set_all(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def hanging_tool(folder: Path) -> int:
    """The process of `hanging_ptxas(folder)`, once it does nothing but hang."""
    wait_until((folder / "ptxas.pid").exists)
    pid = int((folder / "ptxas.pid").read_text())
    wait_until(lambda: psutil.Process(pid).name() == "sleep")
    return pid


def failure_of(future: headstart.LambdaFuture[headstart.CompiledKernel]) -> CompileError:
    error = future.exception(PATIENCE)
    assert isinstance(error, CompileError), error
    return error


def reproduce(command: str, folder: Path) -> str:
    """What the command of an error prints; it must fail as the error says."""
    script = f"headstart() {{ {sys.executable} -c 'from headstart.cli import main; main()' \"$@\"; }}\n{command}"
    result = subprocess.run(
        ["sh", "-c", script],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, **client_environment()},
        timeout=PATIENCE,
    )
    assert result.returncode == 1, result.stdout + result.stderr
    return result.stderr


# One kernel fails

FAILURES = [
    (raises, SourceError, "ttir", "incompatible dimensions", ""),
    (refused_by_ptxas, CompileError, "cubin", "PTXAS error", "Not a name of any known instruction: 'bogus'"),
    (
        aborts_in_llvm,
        CompilerCrashed,
        "ptx",
        "SIGABRT",
        "LLVM ERROR: Invalid $ operand number in inline asm string",
    ),
    (aborts, CompilerCrashed, "source", "SIGABRT", "Assertion `false` failed"),
    (killed, CompilerCrashed, "source", "SIGKILL", ""),
    (exits, CompilerCrashed, "source", "exited with code 7", ""),
    (too_large_matmul, OutOfResources, "launch", "shared memory, and cuda:90 has 232448", ""),
]


@pytest.mark.parametrize(
    ("make", "kind", "stage", "summary", "words"), FAILURES, ids=[case[0].__name__ for case in FAILURES]
)
def test_a_failing_compile_fails_its_own_waiters_only_and_says_what_happened(
    open_compile: Open,
    tmp_path: Path,
    make: Callable[[], Kernel],
    kind: type[CompileError],
    stage: str,
    summary: str,
    words: str,
) -> None:
    kernel = make()
    kernel["options"] = {"num_warps": 8, **kernel.get("options", {})}
    async_compile = open_compile()
    others = [async_compile.triton(**pointwise(number)) for number in (1, 2)]
    future = async_compile.triton(**kernel)
    others += [async_compile.triton(**pointwise(number)) for number in (3, 4)]
    error = failure_of(future)
    assert [other.result(PATIENCE).asm["cubin"][:4] for other in others] == [b"\x7fELF"] * 4
    assert async_compile.services_started == 1
    assert type(error) is kind
    assert (error.kernel, error.target, error.options["num_warps"]) == (kernel["name"], "cuda:90", 8)
    assert summary in error.summary
    assert words in error.output
    for part in (kernel["name"], "cuda:90", "num_warps=8", summary, words):
        assert part in str(error)
    assert error.reproduce
    again = reproduce(error.reproduce, tmp_path)
    assert summary in again
    assert words in again
    assert error.stage == stage


@pytest.mark.usefixtures("either_service")
def test_wait_lets_everything_finish_and_lists_all_failures(open_compile: Open) -> None:
    async_compile = open_compile()
    scope = {
        "bad": async_compile.triton(**raises()),
        "first": async_compile.triton(**pointwise(1)),
        "crashes": async_compile.triton(**aborts()),
        "second": async_compile.triton(**pointwise(2)),
        "other": "left alone",
    }
    with pytest.raises(CompileErrors) as caught:
        async_compile.wait(scope)
    assert [error.kernel for error in caught.value.errors] == ["raises", "aborts"]
    assert "2 kernels failed" in str(caught.value)
    assert all(str(error) in str(caught.value) for error in caught.value.errors)
    assert scope["first"].asm["cubin"]
    assert scope["second"].asm["cubin"]
    assert scope["other"] == "left alone"


def test_wait_puts_good_kernels_in_place_when_another_has_nothing_to_compile_with(
    open_compile: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    async_compile = open_compile()
    with monkeypatch.context() as one:
        one.setenv("TRITON_LIBDEVICE_PATH", "/nonexistent/libdevice.bc")
        bad = async_compile.triton(**pointwise(name="bad"))
    scope = {"bad": bad, "good": async_compile.triton(**pointwise())}
    with pytest.raises(headstart.HeadstartError, match=r"cannot read /nonexistent/libdevice\.bc"):
        async_compile.wait(scope)
    assert isinstance(scope["good"], headstart.CompiledKernel)


@pytest.mark.usefixtures("either_service")
def test_one_failure_reaches_everyone_who_waits_as_an_error_of_their_own(open_compile: Open, tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")
    async_compile = open_compile()
    kernel = gate.kernel()
    kernel["source"] += "\nraise RuntimeError('behind the gate')\n"
    future = async_compile.triton(**kernel)
    caught: list[BaseException | None] = []
    threads = [threading.Thread(target=lambda: caught.append(future.exception())) for _ in range(4)]
    for thread in threads:
        thread.start()
    gate.began()
    gate.open()
    for thread in threads:
        thread.join(PATIENCE)
    assert [type(error) for error in caught] == [SourceError] * 4
    assert len({id(error) for error in caught}) == 4


@pytest.mark.usefixtures("either_service")
def test_a_compile_error_survives_pickling(open_compile: Open) -> None:
    error = failure_of(open_compile().triton(**raises()))
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - what this test has just made
    assert type(again) is SourceError
    assert str(again) == str(error)


def test_a_failed_kernel_can_be_asked_for_again(open_compile: Open, tmp_path: Path) -> None:
    async_compile = open_compile()
    kernel = pointwise(
        name="mended",
        before=f"import os\nif not os.path.exists({str(tmp_path / 'mended')!r}): raise OSError('not yet')",
    )
    assert isinstance(failure_of(async_compile.triton(**kernel)), SourceError)
    (tmp_path / "mended").touch()
    async_compile.kernels.cache_clear()
    assert async_compile.triton(**kernel).result(PATIENCE).asm["cubin"]


def test_what_a_failing_compile_printed_is_in_its_error(open_compile: Open) -> None:
    kernel = prints()
    kernel["source"] = kernel["source"].replace("tl.exp(", "tl.nonsense(")
    error = failure_of(open_compile().triton(**kernel))
    assert "BLOCK is 128" in error.output
    assert "BLOCK is 128" in str(error)


def test_a_source_that_swallows_memory_fails_alone(open_compile: Open) -> None:
    async_compile = open_compile()
    hungry = pointwise(
        name="hungry",
        before="""
        import resource
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, resource.getrlimit(resource.RLIMIT_AS)[1]))
        bytearray(4 << 30)
        """,
    )
    error = failure_of(async_compile.triton(**hungry))
    assert "MemoryError" in error.summary


# One kernel takes too long


def test_a_compile_over_the_time_limit_fails_alone_and_its_tool_ends(
    open_compile: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, hanging_ptxas(tmp_path / "tool"))
    monkeypatch.setenv("HEADSTART_COMPILE_TIMEOUT", "1.5")
    async_compile = open_compile()
    future = async_compile.triton(**pointwise(name="hangs"))
    others = [async_compile.triton(**pointwise(number)) for number in (1, 2)]
    tool = hanging_tool(tmp_path / "tool")
    error = failure_of(future)
    assert type(error) is CompileTimeout
    assert "longer than 1.5 s" in error.summary
    assert "HEADSTART_COMPILE_TIMEOUT" in error.advice
    assert all(other.result(PATIENCE).asm["cubin"] for other in others)
    assert not lasting(lambda: [tool] if is_alive(tool) else [], PROMPT)
    assert "longer than 1.5 s" in reproduce(error.reproduce, tmp_path)
    assert error.stage == "cubin"


def test_a_tool_that_hangs_whatever_it_is_given_hangs_no_zygote(
    open_compile: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A zygote that asked such a tool for anything could no longer kill the worker that hangs in it.
    variables = hanging_ptxas(tmp_path / "tool")
    script = Path(variables["TRITON_PTXAS_PATH"])
    script.write_text(script.read_text().replace("entry hang", "entry"))
    set_all(monkeypatch, variables)
    monkeypatch.setenv("HEADSTART_COMPILE_TIMEOUT", "1")
    async_compile = open_compile(workers=1)
    failure_of(async_compile.triton(**raises()))
    assert type(failure_of(async_compile.triton(**pointwise()))) is CompileTimeout


# One kernel takes too much memory


SWALLOWS = "import time\nswallowed = bytearray(b'x' * (600 << 20))\ntime.sleep(1000)\n"


@pytest.mark.usefixtures("either_service")
def test_a_compile_over_the_memory_limit_fails_alone_with_the_evidence(
    open_compile: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADSTART_MEMORY_LIMIT", "500MiB")
    async_compile = open_compile()
    future = async_compile.triton(**pointwise(name="hungry", before=SWALLOWS))
    others = [async_compile.triton(**pointwise(number)) for number in (1, 2)]
    error = failure_of(future)
    assert type(error) is CompileOutOfMemory
    assert "more than 500 MiB of memory, 2 times" in error.summary
    assert re.search(r"it used \d+ MiB: the worker \d+ MiB", error.detail)
    assert "HEADSTART_MEMORY_LIMIT" in error.advice
    assert all(other.result(PATIENCE).asm["cubin"] for other in others)
    # Known from now on, but for whoever allows more.
    monkeypatch.setenv("HEADSTART_MEMORY_LIMIT", "400MiB")
    assert "not tried again" in failure_of(open_compile().triton(**pointwise(name="hungry", before=SWALLOWS))).advice


def test_the_memory_of_a_compile_s_tools_counts(
    open_compile: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = hanging_ptxas(tmp_path / "tool")
    script = Path(variables["TRITON_PTXAS_PATH"])
    swallow = f"exec {sys.executable} -c \"import time; swallowed = b'x' * (600 << 20); time.sleep(1000)\""
    script.write_text(script.read_text().replace("exec sleep 1000", swallow))
    set_all(monkeypatch, variables)
    monkeypatch.setenv("HEADSTART_MEMORY_LIMIT", "500MiB")
    error = failure_of(open_compile().triton(**pointwise(name="hangs")))
    assert type(error) is CompileOutOfMemory
    assert re.search(r"python\S* \d{3} MiB, the worker \d+ MiB", error.detail)
    tool = int((tmp_path / "tool" / "ptxas.pid").read_text())
    assert not lasting(lambda: [tool] if is_alive(tool) else [], PROMPT)


def test_somebody_who_waits_for_long_is_told_for_what(
    open_compile: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("headstart.client.future.SLOW_COMPILE", 0.05)
    gate = Gate(tmp_path / "gate")
    future = open_compile().triton(**gate.kernel())
    waiting = threading.Thread(target=future.result)
    waiting.start()
    wait_until(lambda: any("still compiling gated" in record.getMessage() for record in list(caplog.records)))
    gate.open()
    waiting.join(PATIENCE)


# A worker is killed


def test_a_kernel_whose_worker_is_killed_once_is_compiled_all_the_same(open_compile: Open, tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")
    async_compile = open_compile()
    future = async_compile.triton(**gate.kernel())
    other = async_compile.triton(**pointwise())
    os.kill(gate.began(), signal.SIGKILL)
    assert gate.began(times=2) != gate.pids()[0]
    gate.open()
    assert future.result(PATIENCE).asm["cubin"]
    assert other.result(PATIENCE).asm["cubin"]
    assert async_compile.services_started == 1


def test_a_kernel_whose_worker_is_killed_twice_is_not_tried_a_third_time(open_compile: Open, tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")
    async_compile = open_compile()
    future = async_compile.triton(**gate.kernel())
    for time_ in (1, 2):
        os.kill(gate.began(times=time_), signal.SIGKILL)
    error = failure_of(future)
    assert type(error) is CompilerCrashed
    assert "SIGKILL, 2 times" in error.summary
    assert "memory" in error.detail
    assert len(gate.pids()) == 2
    assert async_compile.triton(**pointwise()).result(PATIENCE).asm["cubin"]


def test_an_idle_worker_that_is_killed_is_missed_by_nobody(open_compile: Open, family: Family) -> None:
    async_compile = open_compile()
    async_compile.triton(**pointwise(1)).result(PATIENCE)
    for worker in family.workers():
        kill(worker)
        # At once: the service may not know yet.
        assert async_compile.triton(**pointwise(worker.pid)).result(PATIENCE).asm["cubin"]
    assert async_compile.services_started == 1


# A tool is killed


@pytest.mark.triton
def test_a_kernel_whose_assembler_is_killed_once_is_compiled_all_the_same(
    open_compile: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, dying_ptxas(tmp_path / "tool", 1))
    kernel = open_compile(workers=1).triton(**pointwise()).result(PATIENCE)
    assert kernel.asm["cubin"]
    assert (tmp_path / "tool" / "calls").read_text().split() == ["called"] * 2


@pytest.mark.triton
def test_a_kernel_whose_assembler_is_always_killed_crashes_and_does_not_fail(
    open_compile: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, dying_ptxas(tmp_path / "tool", 1000))
    error = open_compile(workers=1).triton(**pointwise()).exception(PATIENCE)
    assert isinstance(error, CompilerCrashed)
    assert "ptxas" in error.summary
    assert "SIGKILL" in error.summary
    assert (tmp_path / "tool" / "calls").read_text().split() == ["called"] * 2


@pytest.mark.triton
@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM])
def test_a_tool_that_could_not_be_started_is_no_failure_of_the_kernel(open_compile: Open, number: int) -> None:
    # As the system says so in the worker: there is no process left for a tool.
    before = f"""
        import subprocess
        def refused(*arguments, **keywords):
            raise OSError({number}, "no process to be had")
        subprocess.run = subprocess.check_call = subprocess.Popen = refused
    """
    error = open_compile(workers=1).triton(**pointwise(before=before)).exception(PATIENCE)
    assert isinstance(error, CompilerCrashed)
    assert "could not be started" in error.summary


# A zygote is killed


def test_a_zygote_that_is_killed_under_a_compile_is_replaced(
    open_compile: Open, family: Family, tmp_path: Path
) -> None:
    gate = Gate(tmp_path / "gate")
    async_compile = open_compile()
    futures = [async_compile.triton(**gate.kernel(name)) for name in ("one", "two", "three")]
    workers = [gate.began("one"), gate.began("two")]
    zygote = family.zygote()
    kill(zygote)
    assert not lasting(lambda: [pid for pid in workers if is_alive(pid)], PROMPT)
    gate.began("one", times=2)
    gate.open()
    assert all(future.result(PATIENCE).asm["cubin"] for future in futures)
    assert family.zygote().pid != zygote.pid
    assert async_compile.services_started == 1


def test_an_idle_zygote_that_is_killed_is_replaced_when_it_is_needed(open_compile: Open, family: Family) -> None:
    async_compile = open_compile()
    async_compile.triton(**pointwise(1)).result(PATIENCE)
    kill(family.zygote())
    assert async_compile.triton(**pointwise(2)).result(PATIENCE).asm["cubin"]
    assert async_compile.services_started == 1


def test_a_zygote_that_dies_three_times_with_nothing_compiled_is_given_up(
    open_compile: Open, family: Family, tmp_path: Path
) -> None:
    gate = Gate(tmp_path / "gate")
    future = open_compile().triton(**gate.kernel())
    for number in (1, 2, 3):
        gate.began(times=number)
        kill(family.zygote())
    error = future.exception(PATIENCE)
    assert isinstance(error, ServiceError)
    assert "3 times in a row" in str(error)


# The service is killed


def test_a_service_that_is_killed_once_is_replaced_and_everything_is_delivered(
    open_compile: Open, family: Family, tmp_path: Path
) -> None:
    gate = Gate(tmp_path / "gate")
    async_compile = open_compile()
    futures = [async_compile.triton(**gate.kernel())]
    futures += [async_compile.triton(**pointwise(number)) for number in range(10)]
    before = futures[-1].result(PATIENCE)
    worker = gate.began()
    kill(family.service())
    assert not lasting(lambda: [worker] if is_alive(worker) else [], PROMPT)
    gate.began(times=2)
    gate.open()
    assert all(future.result(PATIENCE).asm["cubin"] for future in futures)
    assert futures[-1].result() is before
    assert async_compile.services_started == 2


def test_a_kernel_that_ran_both_times_when_the_service_died_is_the_suspect(
    open_compile: Open, family: Family, tmp_path: Path
) -> None:
    gate = Gate(tmp_path / "gate")
    async_compile = open_compile(workers=1)
    suspect = async_compile.triton(**gate.kernel("suspect", options={"num_warps": 8}))
    suspect.want()
    others = [async_compile.triton(**pointwise(number)) for number in range(5)]
    for number in (1, 2):
        gate.began("suspect", times=number)
        # The client must know that it runs; a message could still be on its way.
        wait_until(lambda: [name for name, _ in async_compile.in_flight()] == ["suspect"])
        kill(family.service())
        wait_until(lambda: not async_compile.in_flight())
    error = failure_of(suspect)
    assert type(error) is CompilerCrashed
    assert "suspect" in error.detail
    assert (error.kernel, error.target, error.options) == ("suspect", "cuda:90", {"num_warps": 8})
    assert all(other.result(PATIENCE).asm["cubin"] for other in others)
    assert len(gate.pids("suspect")) == 2
    assert error.reproduce


def test_an_idle_service_that_is_killed_is_replaced_when_it_is_needed(open_compile: Open, family: Family) -> None:
    async_compile = open_compile()
    done = async_compile.triton(**pointwise(1))
    done.result(PATIENCE)
    kill(family.service())
    # At once: the client may not know yet.
    assert async_compile.triton(**pointwise(2)).result(PATIENCE).asm["cubin"]
    wait_until(lambda: async_compile.services_started == 2)
    kill(family.service())
    wait_until(lambda: not family.services())
    assert async_compile.triton(**pointwise(3)).result(PATIENCE).asm["cubin"]
    assert done.result().asm["cubin"]


def test_a_service_that_cannot_live_is_given_up_with_its_last_words(open_compile: Open, runtime_folder: Path) -> None:
    (runtime_folder / "headstart").mkdir()
    (runtime_folder / "headstart").chmod(0o755)
    async_compile = open_compile()
    error = async_compile.triton(**pointwise()).exception(PATIENCE)
    assert isinstance(error, ServiceError)
    assert "set XDG_RUNTIME_DIR to a folder of your own" in str(error)
    assert async_compile.services_started <= 2


def test_a_hanging_tool_ends_when_the_service_is_killed_and_the_next_one_removes_its_folder(
    open_compile: Open, family: Family, runtime_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, hanging_ptxas(tmp_path / "tool"))
    async_compile = open_compile()
    async_compile.triton(**pointwise(name="hangs"))
    tool, zygote = hanging_tool(tmp_path / "tool"), family.zygote()
    (folder,) = runtime_folder.glob("headstart/service-*")
    # The zygote is busy, or slow, at the moment when the service dies.
    zygote.suspend()
    kill(family.service())
    with suppress(psutil.NoSuchProcess):
        zygote.resume()
    assert not lasting(lambda: [tool] if is_alive(tool) else [], PROMPT)
    # The kernel is not given up, so there is a next service; it is not kept from coming by the client's end.
    wait_until(lambda: not folder.exists())


def test_a_worker_s_tool_ends_when_the_zygote_is_killed(
    open_compile: Open, family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, hanging_ptxas(tmp_path / "tool"))
    async_compile = open_compile()
    async_compile.triton(**pointwise(name="hangs"))
    tool = hanging_tool(tmp_path / "tool")
    kill(family.zygote())
    assert not lasting(lambda: [tool] if is_alive(tool) else [], PROMPT)


# The client is killed, or interrupted

BUSY_CLIENT = """
import sys
import headstart
from kernels import Gate, pointwise

gate = Gate(sys.argv[1])
async_compile = headstart.AsyncCompile("cuda:90", workers=2)
futures = [async_compile.triton(**gate.kernel()), async_compile.triton(**pointwise(name="hangs"))]
futures += [async_compile.triton(**pointwise(number)) for number in range(50)]
print("kicked off", flush=True)
for future in futures:
    future.result()
"""


@pytest.fixture
def busy_client(start_client: Start, tmp_path: Path) -> tuple[Client, list[psutil.Process]]:
    """A client whose two workers are busy, one of them with a tool that hangs; and everything below it."""
    gate = Gate(tmp_path / "gate")
    client = start_client(BUSY_CLIENT, gate.folder, **hanging_ptxas(tmp_path / "tool"))
    gate.began()
    tool = hanging_tool(tmp_path / "tool")
    below = psutil.Process(client.process.pid).children(recursive=True)
    assert len(below) == 5  # service, zygote, two workers, a tool
    assert tool in [process.pid for process in below]
    return client, below


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
def test_nothing_outlives_a_client_that_is_killed(
    busy_client: tuple[Client, list[psutil.Process]], runtime_folder: Path, number: signal.Signals
) -> None:
    client, below = busy_client
    client.process.send_signal(number)
    client.process.wait(PROMPT)
    assert not lasting(lambda: [process for process in below if is_alive(process)], PROMPT)
    assert not lasting(lambda: list(runtime_folder.glob("headstart/*")), PROMPT)


def test_ctrl_c_ends_a_client_and_everything_below_it_promptly(
    busy_client: tuple[Client, list[psutil.Process]], runtime_folder: Path
) -> None:
    client, below = busy_client
    begun = time.monotonic()
    client.process.send_signal(signal.SIGINT)
    _, errors = client.process.communicate(timeout=PROMPT)
    assert time.monotonic() - begun < 2
    assert client.process.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in errors.decode()
    assert [process for process in below if is_alive(process)] == []
    assert list(runtime_folder.glob("headstart/*")) == []


def test_a_program_that_never_closes_ends_without_waiting_for_its_compiles(start_client: Start, tmp_path: Path) -> None:
    gate, end = Gate(tmp_path / "gate"), Gate(tmp_path / "end")
    client = start_client(
        """
        import sys, headstart
        from kernels import Gate
        gate, end = Gate(sys.argv[1]), Gate(sys.argv[2])
        async_compile = headstart.AsyncCompile("cuda:90", workers=1)
        async_compile.triton(**gate.kernel())
        end.wait()
        print("the end", flush=True)
        """,
        gate.folder,
        end.folder,
    )
    below = [psutil.Process(gate.began()), client.family.service(), client.family.zygote()]
    end.open()
    assert client.finish(PROMPT) == "the end\n"
    assert [process for process in below if is_alive(process)] == []


def test_a_client_that_ends_while_the_service_is_still_starting_leaves_nothing(start_client: Start) -> None:
    client = start_client(
        """
        import os, headstart
        async_compile = headstart.AsyncCompile("cuda:90", workers=2)
        while not async_compile.services_started:
            pass
        os._exit(0)
        """
    )
    client.finish()


def test_a_folder_left_by_a_killed_service_goes_with_the_next_start(
    open_compile: Open, start_client: Start, tmp_path: Path, runtime_folder: Path
) -> None:
    gate = Gate(tmp_path / "gate")
    client = start_client(BUSY_CLIENT, gate.folder)
    gate.began()
    (left,) = (runtime_folder / "headstart").iterdir()
    service = client.family.service()
    client.process.send_signal(signal.SIGSTOP)  # so that it starts no other
    kill(service)
    client.process.kill()
    client.process.wait(PROMPT)
    assert left.exists()
    # Its workers' folders belong to nobody once they are gone too.
    gate.open()
    assert open_compile().triton(**pointwise()).result(PATIENCE).asm["cubin"]
    assert not left.exists()


def test_closing_abandons_what_is_being_compiled_at_once(open_compile: Open, family: Family, tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")
    async_compile = open_compile()
    future = async_compile.triton(**gate.kernel())
    below = [family.service(), family.zygote(), psutil.Process(gate.began())]
    begun = time.monotonic()
    async_compile.close()
    assert time.monotonic() - begun < 2
    assert [process for process in below if is_alive(process)] == []
    with pytest.raises(ServiceError, match="closed before this kernel was compiled"):
        future.result()
    with pytest.raises(ServiceError, match="closed"):
        async_compile.triton(**pointwise())


def test_an_async_compile_that_nobody_holds_any_more_ends_its_service(family: Family) -> None:
    async_compile = headstart.AsyncCompile("cuda:90", workers=1)
    async_compile.triton(**pointwise()).result(PATIENCE)
    service = family.service()
    del async_compile
    gc.collect()
    ended = not lasting(lambda: [service] if is_alive(service) else [], PROMPT)
    if not ended:
        kill(service)  # nobody can close it any more
    assert ended


def test_what_a_compile_started_and_let_go_of_ends_with_its_service(open_compile: Open, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    daemon = pointwise(
        name="daemon",
        before=f"""
        import os, pathlib, time
        if os.fork() == 0:
            os.setsid()  # out of the worker's process group
            if os.fork() == 0:
                pathlib.Path({str(note)!r}).write_text(str(os.getpid()))
                time.sleep(1000)
            os._exit(0)
        while not os.path.exists({str(note)!r}):
            time.sleep(0.01)
        """,
    )
    with open_compile() as async_compile:
        async_compile.triton(**daemon).result(PATIENCE)
        pid = int(wait_until(note.read_text))
        assert is_alive(pid)
    assert not lasting(lambda: [pid] if is_alive(pid) else [], PROMPT)


def test_nobody_is_buried_who_is_not_a_child(tmp_path: Path) -> None:
    # A worker that its zygote has buried already: its number may be somebody else's by now.
    script = "import subprocess; print(subprocess.Popen(['sleep', '1000'], start_new_session=True, stdout=2).pid)"
    stranger = int(subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True).stdout)
    try:
        with pytest.raises(ChildProcessError):
            reap_group(stranger)
        assert is_alive(stranger)
    finally:
        os.kill(stranger, signal.SIGKILL)
        lasting(lambda: [stranger] if is_alive(stranger) else [], PROMPT)
