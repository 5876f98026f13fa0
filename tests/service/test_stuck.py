"""Nobody waits for ever for somebody who is stopped, or for a thread that could not be started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from conftest import PATIENCE, Client, Family, client_environment, services_of, wait_until
from headstart import AsyncCompile, ServiceError, wire
from headstart.adapters import process
from headstart.adapters.recording import Recorder
from headstart.client import connection, control, launch, sharing, watch
from headstart.model.request import CompileRequest
from headstart.service import runtime
from headstart.stores.disk import DiskStore
from headstart.system import locks, machine
from headstart.system.locks import lock_byte
from headstart.system.settings import Settings
from kernels import Gate, pointwise

Open = Callable[..., AsyncCompile]
Start = Callable[..., Client]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients in this process wait for less than a second."""
    monkeypatch.setattr(watch, "QUIET", 0.1)
    monkeypatch.setattr(watch, "STOPPED_TIMEOUT", 0.3)
    monkeypatch.setattr(control, "_ANSWER", 0.3)
    monkeypatch.setattr(locks, "FOLDER_TIMEOUT", 0.3)


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """The process is stopped meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        deadline = time.monotonic() + PATIENCE / 6
        while not machine.stopped(pid):
            if time.monotonic() > deadline:
                pytest.skip("this kernel does not show that a process is stopped")
            time.sleep(0.01)
        yield
    finally:
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            pass


@contextmanager
def somebody(program: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Another process, which has printed "ready"; it is killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", program + "\nprint('ready', flush=True)\nsys.stdin.read()", *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **client_environment()},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


# Threads


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """As under a limit on processes: no thread can be started, until the limit is lifted by calling this."""
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if limited:
            raise RuntimeError("can't start new thread")
        start(thread)

    limited = [True]
    monkeypatch.setattr(threading.Thread, "start", refuse)
    return limited.clear


@pytest.mark.triton
def test_where_no_thread_can_be_started_a_client_is_told_so_and_the_next_request_tries_again(
    open_compile: Open, no_threads: Callable[[], None]
) -> None:
    async_compile = open_compile()
    error = async_compile.triton(**pointwise()).exception(PATIENCE)
    assert isinstance(error, ServiceError)
    assert "can start no thread" in str(error)
    assert "ulimit -u" in str(error)
    no_threads()
    assert async_compile.triton(**pointwise()).result(PATIENCE).asm["cubin"]


def test_where_no_thread_can_be_started_a_record_is_written_at_the_end(
    no_threads: Callable[[], None], tmp_path: Path
) -> None:
    recorder = Recorder(tmp_path / "app.manifest")
    request = CompileRequest.make(**pointwise(), target="cuda:90")
    recorder.note(request, request.digest())
    assert recorder.close()
    assert (tmp_path / "app.manifest").exists()


def test_where_no_thread_can_be_started_a_program_is_enabled_without_a_replay(
    no_threads: Callable[[], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "app.manifest").touch()
    process.begin(process.EnableOptions(manifest=tmp_path / "app.manifest", torch_when_used=True))
    process.disable()
    assert "nothing is compiled ahead: this process can start no thread" in caplog.text


# Locks


@pytest.fixture
def told_holders(tmp_path: Path) -> None:
    """Only where the kernel says who holds a lock; elsewhere it is waited for as long as the patience lasts."""
    fd = os.open(tmp_path / "asked", os.O_RDWR | os.O_CREAT)
    try:
        with somebody(_LOCKS_A_BYTE, tmp_path / "asked") as holder:
            if locks._holder(fd, 7) != holder.pid:
                pytest.skip("this kernel does not say who holds a lock")
    finally:
        os.close(fd)


_LOCKS_A_BYTE = """
import os, sys
from headstart.system.locks import lock_byte
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
assert lock_byte(fd, 7)
"""


def test_a_lock_on_a_byte_is_not_waited_for_when_its_holder_is_stopped(told_holders: None, tmp_path: Path) -> None:
    fd = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    try:
        with somebody(_LOCKS_A_BYTE, tmp_path / "lock") as holder:
            assert lock_byte(fd, 8)
            assert not lock_byte(fd, 7, 0.05)  # it is running: waited for as long as the patience lasts
            with stopped(holder.pid):
                began = time.monotonic()
                assert not lock_byte(fd, 7)
                assert time.monotonic() - began < PATIENCE
        assert lock_byte(fd, 7)
    finally:
        os.close(fd)


_COMPILES = """
import sys
from headstart.stores.disk import DiskStore
held = DiskStore(sys.argv[1]).claim(sys.argv[2])
held.__enter__()
"""


@pytest.mark.triton
def test_a_stopped_worker_of_one_service_does_not_keep_another_s_from_compiling(
    told_holders: None, open_compile: Open, tmp_path: Path
) -> None:
    first = open_compile(cache_dir=tmp_path / "once")
    key = first.triton(**pointwise()).result(PATIENCE).entry.key
    cache = tmp_path / "cache"
    with somebody(_COMPILES, cache, key) as holder, stopped(holder.pid):
        assert open_compile(cache_dir=cache).triton(**pointwise()).result(PATIENCE).asm["cubin"]
    assert DiskStore(cache).find(key) is not None


_LOCKS_A_FOLDER = """
import os, sys
from pathlib import Path
from headstart.system.locks import locked_folder
held = locked_folder(Path(sys.argv[1]))
held.__enter__()
"""


def test_the_runtime_folder_s_lock_is_not_waited_for_without_end(impatient: None, runtime_folder: Path) -> None:
    folder = sharing.user_socket().parent
    with somebody(_LOCKS_A_FOLDER, folder) as holder, stopped(holder.pid):
        with runtime.service_folder() as mine:
            assert mine.parent == folder
        with pytest.raises(ServiceError, match=r"kept .* locked"), sharing.place_for_a_service(folder / "x.sock"):
            pass


# Services


@pytest.mark.triton
def test_a_private_service_that_is_stopped_is_named_and_replaced(
    impatient: None, open_compile: Open, family: Family, tmp_path: Path
) -> None:
    gate = Gate(tmp_path / "gate")
    async_compile = open_compile()
    future = async_compile.triton(**gate.kernel())
    gate.began()
    service = family.service()
    with stopped(service.pid):
        error = future.exception(PATIENCE)
    assert isinstance(error, ServiceError)
    assert f"(process {service.pid}) does not answer: it is stopped (state T)" in str(error)
    assert async_compile.triton(**pointwise()).result(PATIENCE).asm["cubin"]
    assert family.service().pid != service.pid


@pytest.mark.triton
def test_a_service_that_answers_is_waited_for_however_long_a_compile_takes(
    impatient: None, monkeypatch: pytest.MonkeyPatch, open_compile: Open, family: Family, tmp_path: Path
) -> None:
    monkeypatch.setattr(watch, "SILENT_TIMEOUT", 0.5)
    asked: list[Any] = []
    hear = connection.ServiceConnection._hear
    monkeypatch.setattr(
        connection.ServiceConnection, "_hear", lambda self, message: (asked.append(message), hear(self, message))
    )
    gate = Gate(tmp_path / "gate")
    future = open_compile().triton(**gate.kernel())
    gate.began()
    future.want()
    wait_until(lambda: sum(isinstance(message, wire.Report) for message in asked) > 5)
    gate.open()
    assert future.result(PATIENCE).asm["cubin"]


@pytest.mark.triton
def test_a_shared_service_that_is_stopped_is_left_alone_and_joined_again_later(
    impatient: None, monkeypatch: pytest.MonkeyPatch, open_compile: Open, runtime_folder: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv("HEADSTART_SERVICE", "shared")
    async_compile = open_compile()
    assert async_compile.triton(**pointwise(1)).result(PATIENCE)
    (service,) = services_of(runtime_folder)
    with stopped(service.pid):
        first = async_compile.triton(**pointwise(2)).exception(PATIENCE)
        assert isinstance(first, ServiceError)
        began = time.monotonic()
        monkeypatch.setattr(watch, "STOPPED_TIMEOUT", PATIENCE)
        error = async_compile.triton(**pointwise(3)).exception(PATIENCE)  # without waiting once more
        assert time.monotonic() - began < PATIENCE
        assert isinstance(error, ServiceError)
        assert f"(process {service.pid}) does not answer: it is stopped (state T)" in str(error)
        with pytest.raises(ServiceError, match=f"{service.pid}.* is stopped"):
            control.ask(sharing.user_socket(), "status")
        # Where it may, a client has a service of its own meanwhile.
        own = launch.launch(Settings.load(workers=1)) if monkeypatch.delenv("HEADSTART_SERVICE") is None else None
        assert own is not None
        assert not own.shared
        own.end(PATIENCE)
    monkeypatch.setenv("HEADSTART_SERVICE", "shared")
    assert async_compile.triton(**pointwise(2)).result(PATIENCE).asm["cubin"]


def test_a_service_that_nobody_knows_why_it_was_silent_is_left_alone_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sharing, "_stuck", {})
    pid = os.getpid()
    sharing.avoid(pid)
    assert "did not answer a short while ago" in sharing._why_avoided(pid)
    monkeypatch.setattr(sharing, "_AVOIDED", 0.0)
    assert sharing._why_avoided(pid) == ""


@pytest.mark.triton
@pytest.mark.parametrize("command", ["status", "quiesce", "stop"])
def test_a_command_says_that_the_service_is_stopped(
    impatient: None, monkeypatch: pytest.MonkeyPatch, runtime_folder: Path, command: str
) -> None:
    monkeypatch.setenv("HEADSTART_SERVICE", "shared")
    mine = launch.launch(Settings.load(workers=1))
    mine.socket.sendall(wire.frame(wire.Control("status")))
    # Until it has begun to listen itself, the kernel says that its launcher does.
    mine.socket.settimeout(PATIENCE)
    assert next(wire.receive_blocking(mine.socket, wire.Deframer(wire.FromService)))
    (service,) = services_of(runtime_folder)
    with stopped(service.pid), pytest.raises(ServiceError, match=f"process {service.pid}.* is stopped"):
        control.ask(sharing.user_socket(), command)
    mine.end(0.0)
    wait_until(lambda: not services_of(runtime_folder))


_LAUNCHES = """
import sys
sys.path.insert(0, {jit!r})
import logging, os, signal
logging.basicConfig(level=logging.WARNING, format="%(message)s")
from headstart.client import watch
watch.QUIET, watch.STOPPED_TIMEOUT = 0.1, 0.5
from headstart.client.client import Client
from headstart.adapters.triton.adapter import Adapter
adapter = Adapter(Client(workers=1))
adapter.install()
from some_kernels import kernel, x, y, stages
from headstart.client.launch import Private
kernel[(1,)](x, y, 16, BLOCK=64)
assert not stages
pid = adapter.compiler.client._connection._launched.pid
os.kill(pid, signal.SIGSTOP)
kernel[(1,)](x, y, 16, BLOCK=128)
print(pid, stages.count("make_ir"), adapter.counts["in_process"])
adapter.close(); adapter.compiler.client.close()
"""

_KERNEL = """
import triton, triton.language as tl
import gpuless
from gpuless import Tensor, stages

@triton.jit
def kernel(x, y, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i, mask=i < n), mask=i < n)

x, y = Tensor(), Tensor()
"""


@pytest.mark.triton
def test_a_program_whose_service_is_stopped_compiles_by_itself_and_says_why(
    start_client: Start, tmp_path: Path, runtime_folder: Path
) -> None:
    (tmp_path / "some_kernels.py").write_text(_KERNEL)
    client = start_client(_LAUNCHES.format(jit=str(Path(__file__).parents[1] / "jit")))
    output, errors = client.process.communicate(timeout=PATIENCE)
    assert client.process.returncode == 0, errors.decode()
    pid, compiles, in_process = map(int, output.split())
    assert (compiles, in_process) == (1, 1)
    said = [line for line in errors.decode().splitlines() if "compiled in this process:" in line]
    assert len(said) == 1
    assert f"(process {pid}) does not answer: it is stopped (state T)" in said[0]
    for left in (runtime_folder / "headstart").glob("service-*"):  # of the one that was killed
        with runtime.service_folder():
            pass
        assert not left.exists()


# Below a service


@pytest.mark.triton
@pytest.mark.slow
@pytest.mark.parametrize("who", ["zygote", "worker"])
def test_a_process_of_a_service_that_is_stopped_is_replaced(
    open_compile: Open, family: Family, tmp_path: Path, who: str
) -> None:
    gate = Gate(tmp_path / "gate")
    future = open_compile().triton(**gate.kernel())
    worker = gate.began()
    with stopped(worker if who == "worker" else family.zygote().pid):
        gate.began(times=2)
    gate.open()
    assert future.result(PATIENCE).asm["cubin"]
