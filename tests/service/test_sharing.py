"""One service for many clients: how they find and start it, who may use it, and when it ends."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

import headstart
from conftest import (
    PATIENCE,
    PROMPT,
    Client,
    client_environment,
    is_alive,
    kill,
    lasting,
    services_of,
    wait_until,
)
from headstart import AsyncCompile, CompilerCrashed, ServiceError, wire
from headstart.client import control, launch, sharing
from headstart.model.request import CompileRequest
from headstart.model.toolchain import find_toolchain
from headstart.service.listener import Listener
from headstart.service.sessions import MAX_BACKLOG
from headstart.system.settings import Settings
from kernels import Gate, aborts, hanging_ptxas, killed, pointwise

pytestmark = pytest.mark.triton

Open = Callable[..., AsyncCompile]
Start = Callable[..., Client]
Command = Callable[..., "subprocess.CompletedProcess[str]"]

HEADSTART = [sys.executable, "-c", "from headstart.cli import main; main()"]


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_SERVICE", "shared")


@pytest.fixture
def headstart_command() -> Command:
    """Runs `headstart` with arguments."""

    def run(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*HEADSTART, *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, **client_environment()},
            timeout=PATIENCE,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return run


@pytest.fixture
def serve() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Runs `headstart serve`, and ends it."""
    started = []

    def start(*arguments: str, **variables: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, **client_environment(), **variables}
        process = subprocess.Popen([*HEADSTART, "serve", *arguments], env=environment)
        started.append(process)
        path = Path(variables["HEADSTART_SERVICE"]) if "HEADSTART_SERVICE" in variables else sharing.user_socket()
        wait_until(lambda: control.ask(path, "status"))
        return process

    yield start
    for process in started:
        process.terminate()
        process.wait(PATIENCE)


def state() -> wire.Report:
    """Of the user's own service."""
    report = control.ask(sharing.user_socket(), "status")
    assert report is not None
    return report


@contextmanager
def joined() -> Iterator[socket.socket]:
    """A socket to the shared service, which is started if need be."""
    connection = launch.launch(Settings.load())
    yield connection.socket
    connection.end(0)


# Finding and starting one


@pytest.mark.usefixtures("shared")
def test_a_hundred_clients_at_once_end_with_one_service(runtime_folder: Path) -> None:
    begin_reader, begin = os.pipe()
    end_reader, end = os.pipe()
    answers, answer = os.pipe()
    children = []
    for _ in range(100):
        pid = os.fork()
        if pid == 0:
            try:
                os.close(begin)
                os.close(end)
                os.read(begin_reader, 1)
                with joined() as sock:
                    sock.sendall(wire.frame(wire.Control("status")))
                    report = next(wire.receive_blocking(sock, wire.Deframer(wire.FromService)))
                    os.write(answer, f"{report.pid}\n".encode())
                    os.read(end_reader, 1)
            finally:
                os._exit(0)
        children.append(pid)
    os.close(answer)
    os.close(begin)
    with os.fdopen(answers) as stream:
        pids = [stream.readline() for _ in children]
        (service,) = services_of(runtime_folder)
        assert pids == [f"{service.pid}\n"] * 100
        os.close(end)
        for child in children:
            os.waitpid(child, 0)
    os.close(begin_reader)
    os.close(end_reader)


@pytest.mark.usefixtures("shared")
def test_clients_that_kick_off_at_once_share_a_service_and_each_gets_its_kernels(
    open_compile: Open, runtime_folder: Path
) -> None:
    clients = [open_compile() for _ in range(8)]
    futures = [client.triton(**pointwise(number)) for client in clients for number in range(4)]
    assert all(future.result(PATIENCE).asm["cubin"] for future in futures)
    assert len(services_of(runtime_folder)) == 1
    report = state()
    assert (report.requests, report.compiled, len(report.clients)) == (32, 4, 8)


@pytest.mark.usefixtures("shared")
def test_a_shared_service_ends_with_its_last_client(open_compile: Open, runtime_folder: Path) -> None:
    first, second = open_compile(), open_compile()
    first.triton(**pointwise(1)).result(PATIENCE)
    second.triton(**pointwise(2)).result(PATIENCE)
    (service,) = services_of(runtime_folder)
    first.close()
    assert second.triton(**pointwise(3)).result(PATIENCE).asm["cubin"]
    assert is_alive(service)
    second.close()
    assert not lasting(lambda: [service] if is_alive(service) else [], PROMPT)
    assert not lasting(lambda: list(runtime_folder.glob("headstart/*")), PROMPT)


@pytest.mark.usefixtures("shared")
def test_clients_that_come_just_when_the_last_one_leaves_get_their_kernels(
    open_compile: Open, caplog: pytest.LogCaptureFixture
) -> None:
    open_compile().triton(**pointwise()).result(PATIENCE)  # in the store from now on: nothing but coming and going
    failures: list[BaseException | None] = []

    def come_and_go() -> None:
        for _ in range(15):
            with headstart.AsyncCompile("cuda:90", workers=1) as async_compile:
                failures.append(async_compile.triton(**pointwise()).exception(PATIENCE))

    threads = [threading.Thread(target=come_and_go) for _ in range(3)]
    for thread in threads:
        thread.start()
    control.ask(sharing.user_socket(), "stop")
    for thread in threads:
        thread.join(PATIENCE)
    assert failures == [None] * 45
    assert "died" not in caplog.text


@pytest.mark.usefixtures("shared")
def test_a_shared_service_is_nobody_s_child_and_outlives_the_client_that_started_it(
    open_compile: Open, start_client: Start, tmp_path: Path, runtime_folder: Path
) -> None:
    end = Gate(tmp_path / "end")
    first = start_client(
        """
        import sys, headstart
        from kernels import Gate, pointwise
        async_compile = headstart.AsyncCompile("cuda:90", workers=2)
        async_compile.triton(**pointwise(1)).result()
        Gate(sys.argv[1]).wait()
        """,
        end.folder,
    )
    wait_until(lambda: services_of(runtime_folder))
    assert not lasting(psutil.Process(first.process.pid).children, PROMPT)
    (service,) = services_of(runtime_folder)
    second = open_compile()
    second.triton(**pointwise(2)).result(PATIENCE)
    first.process.kill()
    first.process.wait()
    assert second.triton(**pointwise(3)).result(PATIENCE).asm["cubin"]
    assert services_of(runtime_folder) == [service]


@pytest.mark.usefixtures("shared")
def test_what_a_killed_service_left_is_replaced(open_compile: Open, runtime_folder: Path) -> None:
    with joined():
        (service,) = wait_until(lambda: services_of(runtime_folder))
        kill(service)
    assert sharing.user_socket().exists()
    assert sharing.connect(sharing.user_socket()) is None
    assert open_compile().triton(**pointwise()).result(PATIENCE).asm["cubin"]


def test_an_older_service_without_clients_makes_way_and_one_with_clients_stays_for_them(
    runtime_folder: Path, serve: Callable[..., subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    older = sharing.user_socket().with_name("shared-p1.sock")
    monkeypatch.setenv("HEADSTART_SERVICE", "shared")
    alone = serve("--workers", "1", HEADSTART_SERVICE=str(older))
    with joined():
        assert alone.wait(PROMPT) == 0
    assert not lasting(lambda: list(runtime_folder.glob("headstart/*")), PROMPT)

    with_client = serve("--workers", "1", HEADSTART_SERVICE=str(older))
    with sharing.connect(older) as client:  # type: ignore[union-attr]
        client.sendall(wire.frame(hello()))
        assert isinstance(next(wire.receive_blocking(client, wire.Deframer(wire.FromService))), wire.Welcome)
        with joined():
            assert state().pid != with_client.pid
            assert with_client.poll() is None
    assert with_client.wait(PROMPT) == 0


def hello(protocol: int = wire.PROTOCOL) -> wire.Hello:

    return wire.Hello(protocol, wire.Preferences(os.fsencode(headstart.cache_dir())))


def test_a_socket_in_a_folder_with_a_very_long_path_works(
    open_compile: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("long" * 40) / ("longer" * 20)
    folder.mkdir(parents=True, mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    monkeypatch.setenv("HEADSTART_SERVICE", "shared")
    with open_compile() as async_compile:
        assert async_compile.triton(**pointwise()).result(PATIENCE).asm["cubin"]
        assert len(str(sharing.user_socket())) > 250
    assert not lasting(lambda: list(folder.glob("headstart/*")), PROMPT)


# What HEADSTART_SERVICE=auto does

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "29500",
}
SLURM = {"SLURM_JOB_ID": "17", "SLURM_STEP_ID": "0", "SLURM_NODEID": "1", "SLURM_STEP_TASKS_PER_NODE": "8(x2),1"}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (TORCHRUN, "torchrun none node1 29500"),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "1"}, None),
        (SLURM, "slurm 17.0"),
        ({**SLURM, "SLURM_NODEID": "2"}, None),
        ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "1(x3)"}, None),
        ({"SLURM_JOB_ID": "17", "SLURM_TASKS_PER_NODE": "8"}, None),
        ({sharing.RUN_VARIABLE: '{"pid": 7}'}, 'headstart run {"pid": 7}'),
        ({**TORCHRUN, sharing.RUN_VARIABLE: '{"pid": 7}'}, 'headstart run {"pid": 7}'),
        ({}, None),
    ],
)
def test_the_ranks_of_a_job_are_known_by_what_starts_them(variables: dict[str, str], expected: str | None) -> None:
    assert sharing.job_on_this_host(variables) == expected


def test_the_ranks_of_one_job_share_a_service_that_ends_with_the_last_of_them(
    open_compile: Open, runtime_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    ranks = [open_compile(), open_compile()]
    futures = [rank.triton(**pointwise()) for rank in ranks]
    assert all(future.result(PATIENCE).asm["cubin"] for future in futures)
    (service,) = services_of(runtime_folder)
    monkeypatch.setenv("MASTER_PORT", "29501")
    other = open_compile()
    other.triton(**pointwise()).result(PATIENCE)
    assert len(services_of(runtime_folder)) == 2
    for rank in ranks:
        rank.close()
    assert not lasting(lambda: [service] if is_alive(service) else [], PROMPT)


def test_any_other_program_has_a_service_of_its_own(open_compile: Open, runtime_folder: Path) -> None:
    for async_compile in (open_compile(), open_compile()):
        async_compile.triton(**pointwise()).result(PATIENCE)
    assert [service.ppid() for service in services_of(runtime_folder)] == [os.getpid()] * 2


def test_a_service_that_was_started_on_purpose_is_joined_and_stays(
    open_compile: Open, runtime_folder: Path, serve: Callable[..., subprocess.Popen[bytes]]
) -> None:
    service = serve("--workers", "2")
    with open_compile() as async_compile:
        assert async_compile.triton(**pointwise()).result(PATIENCE).asm["cubin"]
        assert [process.pid for process in services_of(runtime_folder)] == [service.pid]
    wait_until(lambda: not state().clients)
    assert service.poll() is None


def test_private_means_private(
    open_compile: Open, serve: Callable[..., subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    serve("--workers", "1")
    monkeypatch.setenv("HEADSTART_SERVICE", "private")
    assert open_compile().triton(**pointwise()).result(PATIENCE).asm["cubin"]
    assert state().requests == 0


def test_a_service_can_be_named_by_its_socket(
    open_compile: Open,
    tmp_path: Path,
    serve: Callable[..., subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = str(tmp_path / "my.sock")
    monkeypatch.setenv("HEADSTART_SERVICE", path)
    with open_compile() as async_compile, pytest.raises(ServiceError, match="no service listens at"):
        async_compile.triton(**pointwise()).result(PATIENCE)
    service = serve("--workers", "1", HEADSTART_SERVICE=path)
    with open_compile() as async_compile:
        assert async_compile.triton(**pointwise()).result(PATIENCE).asm["cubin"]
    service.terminate()
    assert service.wait(PATIENCE) == 0
    assert not Path(path).exists()


# Whose it is


def test_another_user_s_service_is_never_used(
    open_compile: Open, monkeypatch: pytest.MonkeyPatch, runtime_folder: Path
) -> None:
    monkeypatch.setenv("HEADSTART_SERVICE", "shared")
    with joined():
        monkeypatch.setattr(sharing, "credentials", lambda sock: (1, os.getuid() + 1))
        error = open_compile().triton(**pointwise()).exception(PATIENCE)
        assert isinstance(error, ServiceError)
        assert "belongs to another user" in str(error)
        monkeypatch.setenv("HEADSTART_SERVICE", "auto")
        assert open_compile().triton(**pointwise()).result(PATIENCE).asm["cubin"]
        monkeypatch.undo()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime_folder))
    control.ask(sharing.user_socket(), "stop")


def test_another_user_is_turned_away_at_the_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "door.sock"
    with sharing.place_for_a_service(path) as listener:
        assert listener is not None
        entrance = Listener(listener.dup(), path)
    one = sharing.connect(path)
    assert one is not None
    with one, monkeypatch.context() as foreign:
        foreign.setattr("headstart.service.listener.credentials", lambda sock: (1, os.getuid() + 1))
        assert entrance.accept() is None
        assert one.recv(1) == b""
    with sharing.connect(path) as mine:  # type: ignore[union-attr]
        peer = entrance.accept()
        assert peer is not None
        assert peer.pid == os.getpid()
        peer.socket.close()
        os.close(peer.pidfd)
        assert mine.recv(1) == b""
    entrance.close(b"")
    assert not path.exists()


def test_a_client_of_another_protocol_is_told_so(serve: Callable[..., subprocess.Popen[bytes]]) -> None:
    serve("--workers", "1")
    with sharing.connect(sharing.user_socket()) as sock:  # type: ignore[union-attr]
        sock.sendall(wire.frame(hello(protocol=99)))
        (answer,) = list(wire.receive_blocking(sock, wire.Deframer(wire.FromService)))
    assert isinstance(answer, wire.Unwelcome)
    assert "this client 99" in answer.why


@pytest.mark.parametrize("deadline", [float("nan"), float("inf"), -1.0, 0.0, 1e300])
def test_a_client_with_a_deadline_that_is_none_is_told_so(
    serve: Callable[..., subprocess.Popen[bytes]], deadline: float
) -> None:
    serve("--workers", "1")
    settings = wire.RemoteSettings("file:///remote", deadline=deadline)
    greeting = wire.Hello(wire.PROTOCOL, wire.Preferences(os.fsencode(headstart.cache_dir()), remote=settings))
    with sharing.connect(sharing.user_socket()) as sock:  # type: ignore[union-attr]
        sock.settimeout(PATIENCE)
        sock.sendall(wire.frame(greeting))
        (answer,) = list(wire.receive_blocking(sock, wire.Deframer(wire.FromService)))
    assert isinstance(answer, wire.Unwelcome)
    assert "deadline" in answer.why


@pytest.mark.parametrize("said", [b"\xff" * 64, b"GET / HTTP/1.1\r\n\r\n", b"", wire.frame(wire.Await([1]))])
def test_whoever_says_something_else_harms_nobody(
    open_compile: Open, serve: Callable[..., subprocess.Popen[bytes]], said: bytes
) -> None:
    serve("--workers", "1")
    async_compile = open_compile()
    future = async_compile.triton(**pointwise())
    with sharing.connect(sharing.user_socket()) as sock:  # type: ignore[union-attr]
        sock.sendall(said)
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""
    assert future.result(PATIENCE).asm["cubin"]


def test_whoever_never_reads_is_hung_up_on_and_told_why(
    open_compile: Open, serve: Callable[..., subprocess.Popen[bytes]]
) -> None:
    service = psutil.Process(serve("--workers", "1").pid)
    before = service.memory_info().rss
    question = wire.frame(wire.Control("status"))
    with sharing.connect(sharing.user_socket()) as sock:  # type: ignore[union-attr]
        sock.sendall(wire.frame(hello()))
        sock.settimeout(PATIENCE)
        asked = 0
        with contextlib.suppress(ConnectionError, TimeoutError):
            # It takes no more questions once it has hung up; what fits the socket's buffers is still taken.
            sock.settimeout(3.0)
            while True:
                sock.sendall(question * 1000)
                asked += 1000
        assert service.memory_info().rss - before < 8 * MAX_BACKLOG
        assert open_compile().triton(**pointwise()).result(PATIENCE).asm["cubin"], "it harms nobody else"
        answers: list[Any] = []
        with contextlib.suppress(ConnectionError):  # it closed without having read all questions
            answers.extend(wire.receive_blocking(sock, wire.Deframer(wire.FromService)))
    last = answers[-1]
    assert isinstance(last, wire.Leaving)
    assert "were not read" in last.why
    assert len(answers) < asked


def test_whoever_waits_outside_when_a_service_ends_is_told_so(runtime_folder: Path) -> None:
    (runtime_folder / "headstart").mkdir(mode=0o700)
    with sharing.place_for_a_service(sharing.user_socket()) as listener:
        assert listener is not None
        entrance = Listener(listener.dup(), sharing.user_socket())
    late = [sharing.connect(sharing.user_socket()) for _ in range(3)]
    entrance.close(wire.frame(wire.Leaving()))
    for sock in late:
        assert sock is not None
        with sock:
            assert list(wire.receive_blocking(sock, wire.Deframer(wire.FromService))) == [wire.Leaving()]


def test_a_service_without_file_descriptors_waits_for_some_and_does_nothing_meanwhile(
    open_compile: Open, serve: Callable[..., subprocess.Popen[bytes]], runtime_folder: Path
) -> None:
    process = psutil.Process(serve("--workers", "1").pid)
    process.rlimit(psutil.RLIMIT_NOFILE, (40, 40))
    crowd = [sharing.connect(sharing.user_socket()) for _ in range(60)]
    wait_until(lambda: process.num_fds() == 40)
    before = process.cpu_times()
    time.sleep(1.0)
    assert process.cpu_times().user - before.user < 0.2
    for sock in crowd:
        assert sock is not None
        sock.close()
    assert open_compile().triton(**pointwise()).result(PATIENCE).asm["cubin"]


def test_a_message_that_makes_no_sense_harms_nobody_else(
    open_compile: Open, serve: Callable[..., subprocess.Popen[bytes]]
) -> None:
    service = serve("--workers", "1")
    good, prepare = hello(), wire.Prepare(find_toolchain(), {})
    request = CompileRequest.make(**pointwise(), target="cuda:90")
    replace = msgspec.structs.replace
    bad = [
        [good, replace(prepare, toolchain=replace(prepare.toolchain, python="py\0thon"))],
        [good, replace(prepare, environment={"A=B": "\0"})],
        [replace(good, preferences=wire.Preferences(b"/cache\0")), wire.Submit(1, find_toolchain(), request, True)],
    ]
    for messages in bad:
        with sharing.connect(sharing.user_socket()) as sock:  # type: ignore[union-attr]
            sock.sendall(b"".join(map(wire.frame, messages)))
            sock.shutdown(socket.SHUT_WR)
            list(wire.receive_blocking(sock, wire.Deframer(wire.FromService)))
    assert open_compile().triton(**pointwise()).result(PATIENCE).asm["cubin"]
    assert service.poll() is None


@pytest.mark.usefixtures("shared")
def test_what_is_wrong_with_a_cache_folder_is_told_to_those_who_use_it_once(
    open_compile: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "broken").write_text("not a folder")
    one = open_compile(cache_dir=tmp_path / "broken")
    another = open_compile(cache_dir=tmp_path / "good")
    for client in (one, another):
        assert all(client.triton(**pointwise(number)).result(PATIENCE).asm["cubin"] for number in range(2))
    # Later than the first one was told, and so is told as well.
    late = open_compile(cache_dir=tmp_path / "broken")
    assert late.triton(**pointwise(5)).result(PATIENCE).asm["cubin"]
    assert sum("kept in memory only" in message for message in caplog.messages) == 2


# Single flight, and clients that leave


@pytest.mark.usefixtures("shared")
def test_what_two_clients_want_is_compiled_once_and_stays_when_one_of_them_leaves(
    open_compile: Open, tmp_path: Path
) -> None:
    gate = Gate(tmp_path / "gate")
    first = open_compile(workers=1)  # whoever starts it decides
    first.triton(**gate.kernel())
    gate.began()
    second = open_compile()
    both = [client.triton(**pointwise(1)) for client in (first, second)][1]
    only_first = first.triton(**pointwise(2))
    wait_until(lambda: sorted(client.waiting for client in state().clients) == [1, 3])
    assert sum(state().queued) == 2
    first.close()
    wait_until(lambda: sum(state().queued) == 1)
    gate.open()
    assert both.result(PATIENCE).asm["cubin"]
    with pytest.raises(ServiceError, match="closed"):
        only_first.result()
    assert state().compiled == 2, "what had begun is finished, for the store"
    assert second.triton(**gate.kernel()).result(PATIENCE).asm["cubin"]
    assert len(gate.pids()) == 1


@pytest.mark.usefixtures("shared")
def test_a_client_that_is_killed_while_a_fork_of_it_holds_its_socket_has_left(
    open_compile: Open, start_client: Start, tmp_path: Path
) -> None:
    gate = Gate(tmp_path / "gate")
    other = open_compile()
    other.triton(**pointwise()).result(PATIENCE)
    client = start_client(
        """
        import os, sys, time, headstart
        from kernels import Gate, pointwise
        gate = Gate(sys.argv[1])
        async_compile = headstart.AsyncCompile("cuda:90")
        async_compile.triton(**pointwise()).result()
        # As a fork in C would: nothing of ours runs in the child.
        import ctypes
        if ctypes.CDLL(None).fork() == 0:
            gate.wait()
            os._exit(0)
        print("forked", flush=True)
        time.sleep(100)
        """,
        gate.folder,
    )
    assert client.process.stdout is not None
    assert client.process.stdout.readline() == b"forked\n"
    assert len(state().clients) == 2
    client.process.kill()
    wait_until(lambda: len(state().clients) == 1, PROMPT)
    gate.open()


@pytest.mark.usefixtures("shared")
def test_clients_with_different_environments_share_a_service_each_with_its_zygote(
    open_compile: Open, runtime_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = open_compile()
    first = plain.triton(**pointwise())
    monkeypatch.setenv("TRITON_DISABLE_LINE_INFO", "1")
    bare = open_compile()
    second = bare.triton(**pointwise())
    assert ".loc" in first.result(PATIENCE).asm["ptx"]
    assert ".loc" not in second.result(PATIENCE).asm["ptx"]
    (service,) = services_of(runtime_folder)
    assert len(service.children()) == 2


@pytest.mark.usefixtures("shared")
def test_a_tool_that_is_changed_while_a_service_lives_makes_other_kernels_from_then_on(
    open_compile: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in hanging_ptxas(tmp_path / "tool").items():
        monkeypatch.setenv(name, value)
    before = open_compile().triton(**pointwise()).result(PATIENCE)
    with (tmp_path / "tool" / "ptxas").open("a") as script:
        script.write("# changed\n")
    after = open_compile()
    assert after.triton(**pointwise()).result(PATIENCE).key != before.key
    assert after.services_started == state().compiled - 1 == 1


@pytest.mark.usefixtures("shared")
def test_each_client_s_kernels_go_into_its_own_cache_folder(open_compile: Open, tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "other"]
    clients = [open_compile(cache_dir=folder) for folder in folders]
    kernels = [client.triton(**pointwise()).result(PATIENCE) for client in clients]
    for kernel, folder in zip(kernels, folders, strict=True):
        assert kernel.entry.path.is_relative_to(folder)
    assert state().compiled == 2


# Order


@pytest.mark.usefixtures("shared")
def test_a_kernel_whose_other_configurations_took_long_goes_first(open_compile: Open, tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")
    async_compile = open_compile(workers=1)
    slow = pointwise(name="slow", before="import time\ntime.sleep(0.3)\n")
    quick = pointwise(name="quick")
    for kernel in (slow, quick):
        async_compile.triton(**kernel).result(PATIENCE)
    async_compile.triton(**gate.kernel())
    gate.began()
    kernels = [{**kernel, "constants": {"BLOCK": 64}} for kernel in (quick, slow)]
    futures = [async_compile.triton(**kernel) for kernel in (*kernels, pointwise(name="unknown"))]
    for future in futures:
        future.want()  # all of them, or the one that is waited for would go first
    wait_until(lambda: state().queued[0] == len(futures))
    gate.open()
    assert all(future.result(PATIENCE).asm["cubin"] for future in futures)
    begun = sorted(async_compile.timeline[-3:], key=lambda span: span.started or 0.0)
    assert [span.name for span in begun] == ["unknown", "slow", "quick"]


# It dies


@pytest.mark.usefixtures("shared")
def test_clients_of_a_service_that_is_killed_find_themselves_in_one_new_one_and_lose_nothing(
    open_compile: Open, runtime_folder: Path, tmp_path: Path
) -> None:
    gate = Gate(tmp_path / "gate")
    clients = [open_compile() for _ in range(5)]
    for client in clients:
        client.triton(**pointwise(0)).result(PATIENCE)
    futures = [client.triton(**gate.kernel()) for client in clients]
    futures += [client.triton(**pointwise(number)) for client in clients for number in range(1, 4)]
    gate.began()
    (service,) = services_of(runtime_folder)
    kill(service)
    gate.began(times=2)
    gate.open()
    assert all(future.result(PATIENCE).asm["cubin"] for future in futures)
    (successor,) = services_of(runtime_folder)
    assert successor.pid != service.pid
    assert [client.services_started for client in clients] == [2] * 5


@pytest.mark.usefixtures("shared")
def test_a_kernel_that_ran_both_times_a_shared_service_died_is_the_suspect_for_all_who_wait(
    open_compile: Open, runtime_folder: Path, tmp_path: Path
) -> None:
    gate = Gate(tmp_path / "gate")
    clients = [open_compile(), open_compile()]
    suspects = [client.triton(**gate.kernel()) for client in clients]
    for times in (1, 2):
        gate.began(times=times)
        (service,) = services_of(runtime_folder)
        wait_until(lambda: all(client.in_flight() for client in clients))
        kill(service)
        wait_until(lambda service=service: services_of(runtime_folder) != [service])
    for suspect in suspects:
        error = suspect.exception(PATIENCE)
        assert isinstance(error, CompilerCrashed)
        assert "died 2 times while it was being compiled" in error.summary
    good = [client.triton(**pointwise()) for client in clients]
    assert all(future.result(PATIENCE).asm["cubin"] for future in good)
    assert len(gate.pids()) == 2


@pytest.mark.usefixtures("shared")
def test_clients_of_a_service_that_is_stopped_go_on_elsewhere_and_blame_nobody(
    open_compile: Open,
    tmp_path: Path,
    runtime_folder: Path,
    headstart_command: Command,
    caplog: pytest.LogCaptureFixture,
) -> None:
    gate = Gate(tmp_path / "gate")
    async_compile = open_compile()
    future = async_compile.triton(**gate.kernel())
    for times in (1, 2, 3):  # more often than a kernel may be there when a service dies
        gate.began(times=times)
        assert headstart_command("stop").stdout == "stopped\n"
    gate.began(times=4)
    gate.open()
    assert future.result(PATIENCE).asm["cubin"]
    assert "died" not in caplog.text
    async_compile.close()
    assert not lasting(lambda: services_of(runtime_folder), PROMPT)
    assert "no service listens" in headstart_command("stop", code=1).stderr


# What is said to it


def test_status_shows_clients_queue_and_kernels_in_flight(
    open_compile: Open,
    tmp_path: Path,
    serve: Callable[..., subprocess.Popen[bytes]],
    headstart_command: Command,
) -> None:
    assert "headstart serve starts one" in headstart_command("status", code=1).stderr
    service = serve("--workers", "1")
    gate = Gate(tmp_path / "gate")
    async_compile = open_compile()
    futures = [async_compile.triton(**gate.kernel()), async_compile.triton(**pointwise())]
    gate.began()
    wait_until(lambda: sum(state().queued))
    shown = headstart_command("status").stdout
    assert f"process {service.pid}, serving" in shown
    assert "stays until stopped" in shown
    assert "1 of 1 worker," in shown
    assert "queue: 0 awaited, 1 early, 0 background" in shown
    assert f"client {os.getpid()}" in shown
    assert "compiling gated (cuda:90) for" in shown
    (report,) = json.loads(headstart_command("status", "--json").stdout)["services"]
    assert (report["requests"], report["running"][0]["clients"]) == (2, 1)
    assert report["workers_memory"] > 0
    gate.open()
    assert all(future.result(PATIENCE).asm["cubin"] for future in futures)


def test_quiesce_empties_the_workers_and_the_next_job_after_resume_refills_them(
    open_compile: Open,
    tmp_path: Path,
    serve: Callable[..., subprocess.Popen[bytes]],
    headstart_command: Command,
) -> None:
    serve("--workers", "2")
    gate = Gate(tmp_path / "gate")
    async_compile = open_compile()
    running = async_compile.triton(**gate.kernel())
    gate.began()
    told = threading.Thread(target=headstart_command, args=("quiesce",))
    told.start()
    wait_until(lambda: state().quiesced and state().workers == 1)
    waiting = async_compile.triton(**pointwise())
    gate.open()
    assert running.result(PATIENCE).asm["cubin"]
    ended = time.monotonic()
    wait_until(lambda: not state().workers)
    assert time.monotonic() - ended < 0.5  # 0.1 on a machine that does nothing else
    told.join(PATIENCE)
    assert not waiting.done()
    assert headstart_command("resume").stdout == "resumed; 1 kernel queued\n" or waiting.done()
    assert waiting.result(PATIENCE).asm["cubin"]


def test_quiesce_now_kills_what_runs_and_it_is_compiled_after_resume(
    open_compile: Open,
    tmp_path: Path,
    serve: Callable[..., subprocess.Popen[bytes]],
    headstart_command: Command,
) -> None:
    serve("--workers", "1")
    gate = Gate(tmp_path / "gate")
    future = open_compile().triton(**gate.kernel())
    for times in (1, 2, 3):
        worker = gate.began(times=times)
        headstart_command("quiesce", "--now")
        assert not is_alive(worker)
        assert state().workers == 0
        headstart_command("resume")
    gate.began(times=4)
    gate.open()
    assert future.result(PATIENCE).asm["cubin"]


# Idle


def test_an_idle_shared_service_never_wakes_up_and_its_workers_leave(
    open_compile: Open, serve: Callable[..., subprocess.Popen[bytes]]
) -> None:
    service = serve("--workers", "2", "--idle", "0.2s")
    async_compile = open_compile()
    async_compile.triton(**pointwise()).result(PATIENCE)
    below = [psutil.Process(service.pid), *psutil.Process(service.pid).children(recursive=True)]
    wait_until(lambda: len([process for process in below if is_alive(process)]) == 2)

    def switches() -> list[str]:
        return [
            line
            for process in below
            if is_alive(process)
            for line in Path(f"/proc/{process.pid}/status").read_text().splitlines()
            if line.startswith("voluntary_ctxt_switches")
        ]

    def settled() -> bool:
        before = switches()
        time.sleep(0.5)  # what is measured is that nothing happens
        return switches() == before

    wait_until(settled, PROMPT)
    assert async_compile.triton(**pointwise(2)).result(PATIENCE).asm["cubin"]


# Failures are remembered


@pytest.mark.usefixtures("either_service")
@pytest.mark.parametrize("make", [aborts, killed])
def test_a_kernel_that_crashed_twice_is_not_tried_again_until_it_is_asked_for(
    open_compile: Open, tmp_path: Path, headstart_command: Command, make: Callable[..., dict[str, object]]
) -> None:
    began = Gate(tmp_path / "gate")
    began.open()
    kernel = make()
    kernel["source"] = str(began.kernel()["source"]).partition("@triton")[0] + str(kernel["source"])
    first = open_compile().triton(**kernel).exception(PATIENCE)  # type: ignore[arg-type]
    assert isinstance(first, CompilerCrashed)
    assert len(began.pids()) == 2
    again = open_compile().triton(**kernel).exception(PATIENCE)  # type: ignore[arg-type]
    assert isinstance(again, CompilerCrashed)
    assert again.summary == first.summary
    assert "headstart cache retry" in again.advice
    assert len(began.pids()) == 2
    name = str(kernel["name"])
    assert f"{name} (cuda:90) will be tried again" in headstart_command("cache", "retry", name).stdout
    assert "is remembered" in headstart_command("cache", "retry", name, code=1).stderr
    assert isinstance(open_compile().triton(**kernel).exception(PATIENCE), CompilerCrashed)  # type: ignore[arg-type]
    assert len(began.pids()) == 4


def test_a_kernel_that_ran_out_of_time_is_tried_again_by_whoever_has_more(
    open_compile: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in hanging_ptxas(tmp_path / "tool").items():
        monkeypatch.setenv(name, value)
    hangs = pointwise(name="hangs")
    monkeypatch.setenv("HEADSTART_COMPILE_TIMEOUT", "0.5")
    with open_compile() as impatient:
        assert isinstance(impatient.triton(**hangs).exception(PATIENCE), headstart.CompileTimeout)
    (tmp_path / "tool" / "ptxas.pid").unlink()
    with open_compile() as impatient:
        assert isinstance(impatient.triton(**hangs).exception(PATIENCE), headstart.CompileTimeout)
    assert not (tmp_path / "tool" / "ptxas.pid").exists()
    monkeypatch.setenv("HEADSTART_COMPILE_TIMEOUT", "100")
    with open_compile() as patient:
        patient.triton(**hangs)
        wait_until((tmp_path / "tool" / "ptxas.pid").exists)
