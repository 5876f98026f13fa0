"""Several hosts, each a cache folder of its own, with a store that they share; and stores that are none."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import servers

import headstart
from conftest import PATIENCE, PROMPT, Client, descendants, is_alive, services_of, wait_until
from headstart import AsyncCompile, UsageError
from headstart.artifacts.keyring import Keyring
from headstart.stores.disk import DiskStore
from kernels import pointwise, raises

pytestmark = pytest.mark.triton

Open = Callable[..., AsyncCompile]
Start = Callable[..., Client]
KERNELS = 6
PASSWORD = "hunter2-is-secret"


def compile_all(async_compile: AsyncCompile, count: int = KERNELS) -> list[bytes]:
    futures = [async_compile.triton(**pointwise(float(number + 1))) for number in range(count)]
    return [future.result(PATIENCE).asm["cubin"] for future in futures]


def remote_processes(runtime_folder: Path) -> list[psutil.Process]:
    found = []
    for process in descendants(runtime_folder):
        with contextlib.suppress(psutil.Error):
            if "headstart.remote.process" in process.cmdline():
                found.append(process)
    return found


def ended(runtime_folder: Path) -> bool:
    """Whether what was to be published has been."""
    return wait_until(lambda: not remote_processes(runtime_folder), PROMPT)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a remote has is waited for, however busy the machine is; tests of deadlines have their own."""
    monkeypatch.setenv("HEADSTART_REMOTE_DEADLINE", "10")


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that hosts share, and that only their user can write."""
    folder = tmp_path / "shared"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("HEADSTART_REMOTE", f"file://{folder}")
    return folder


# Another host finds everything


def test_a_second_host_finds_everything_and_compiles_nothing(
    open_compile: Open, shared: Path, tmp_path: Path, runtime_folder: Path
) -> None:
    first = open_compile()
    made = compile_all(first)
    assert first.statistics.compiled == KERNELS
    first.close()
    ended(runtime_folder)
    second = open_compile(cache_dir=tmp_path / "second host")
    assert compile_all(second) == made
    assert (second.statistics.compiled, second.statistics.cached) == (0, KERNELS)
    assert second.used().remote == KERNELS
    second.close()
    third = open_compile(cache_dir=tmp_path / "second host")  # which has them now
    assert compile_all(third) == made
    assert third.used().remote == 0


@pytest.mark.remote
@pytest.mark.skipif(not servers.program("redis"), reason="there is no redis-server: make test-remote gets it")
def test_a_second_host_finds_everything_in_redis_if_it_trusts_the_first(
    open_compile: Open, tmp_path: Path, runtime_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "redis"
    folder.mkdir()
    public = Keyring(tmp_path / "first's keys").new("first")
    with servers.running(servers.redis_server(folder, password=PASSWORD)) as server:
        monkeypatch.setenv("HEADSTART_REMOTE", f"redis://:{PASSWORD}@{server.address}/0?ttl=1h")
        monkeypatch.setenv("HEADSTART_CONFIG_DIR", str(tmp_path / "first's keys"))
        first = open_compile()
        made = compile_all(first)
        first.close()
        ended(runtime_folder)
        monkeypatch.setenv("HEADSTART_CONFIG_DIR", str(tmp_path / "second's keys"))
        with open_compile(cache_dir=tmp_path / "second host") as second:
            assert compile_all(second) == made
            assert second.statistics.compiled == KERNELS  # it trusts nobody
        ended(runtime_folder)
        Keyring(tmp_path / "second's keys").trust(public)
        # What the first one had signed the second one replaced by what it had signed by itself.
        monkeypatch.setenv("HEADSTART_CONFIG_DIR", str(tmp_path / "first's keys"))
        with open_compile(cache_dir=tmp_path / "first host, later") as first:
            compile_all(first)
        ended(runtime_folder)
        monkeypatch.setenv("HEADSTART_CONFIG_DIR", str(tmp_path / "second's keys"))
        with open_compile(cache_dir=tmp_path / "second host, later") as second:
            assert compile_all(second) == made
            assert (second.statistics.compiled, second.used().remote) == (0, KERNELS)


@pytest.mark.usefixtures("either_service")
def test_clients_of_one_service_with_different_remotes_are_not_given_each_others(
    open_compile: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime_folder: Path
) -> None:
    for name in ("mine", "yours"):
        (tmp_path / name).mkdir(mode=0o700)
    monkeypatch.setenv("HEADSTART_REMOTE", f"file://{tmp_path}/mine")
    with open_compile(cache_dir=tmp_path / "a") as first:
        compile_all(first, 2)
        monkeypatch.setenv("HEADSTART_REMOTE", f"file://{tmp_path}/yours")
        with open_compile(cache_dir=tmp_path / "b") as second:
            compile_all(second, 2)
            assert (second.statistics.compiled, second.used().remote) == (2, 0)
    ended(runtime_folder)
    for name in ("mine", "yours"):
        assert len([path for path in (tmp_path / name).rglob("*") if path.is_file()]) == 2


def test_a_failure_stays_where_it_is(open_compile: Open, shared: Path, tmp_path: Path, runtime_folder: Path) -> None:
    for folder in ("a", "b"):
        with open_compile(cache_dir=tmp_path / folder) as async_compile:
            with pytest.raises(headstart.CompileError):
                async_compile.triton(**raises()).result(PATIENCE)
            assert async_compile.statistics.failed == 1
    ended(runtime_folder)
    assert [path for path in shared.rglob("*") if path.is_file()] == []


@pytest.mark.remote
@pytest.mark.skipif(not servers.program("redis"), reason="there is no redis-server: make test-remote gets it")
def test_hosts_that_begin_the_same_job_at_once_share_its_kernels_out(start_client: Start, tmp_path: Path) -> None:
    folder = tmp_path / "redis"
    folder.mkdir()
    with servers.running(servers.redis_server(folder)) as server:
        hosts = [
            start_client(
                """
                import sys, time, headstart
                from pathlib import Path
                from kernels import pointwise
                with headstart.AsyncCompile("cuda:90", workers=1) as async_compile:
                    async_compile.triton(**pointwise(99.0, name=sys.argv[1])).result(60)
                    print("ready", flush=True)
                    while not Path(sys.argv[2]).exists():
                        time.sleep(0.005)
                    made = [async_compile.triton(**pointwise(float(number))) for number in range(12)]
                    for future in made:
                        future.result(60)
                    print(async_compile.statistics.compiled - 1, async_compile.used().remote)
                """,
                f"host{number}",
                tmp_path / "go",
                HEADSTART_REMOTE=f"redis://{server.address}/0?claims&trust=all",
                HEADSTART_CACHE_DIR=str(tmp_path / f"host {number}"),
            )
            for number in range(2)
        ]
        for host in hosts:
            assert host.process.stdout is not None
            assert host.process.stdout.readline() == b"ready\n"
        (tmp_path / "go").touch()
        counts = [list(map(int, host.finish().split())) for host in hosts]
    assert [compiled + remote for compiled, remote in counts] == [12, 12]
    assert sum(compiled for compiled, _ in counts) == 12, "each is compiled once"
    assert all(compiled for compiled, _ in counts), "both had a part of it"


# Stores that are none


class Stranger:
    """Listens on a port, and does with each connection what `answer` says."""

    def __init__(self, answer: Callable[[socket.socket], None]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listener.getsockname()[1]
        self.connections: list[socket.socket] = []
        self._answer = answer
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            self._answer(connection)

    def close(self) -> None:
        self._listener.close()
        for each in self.connections:
            each.close()


def silence(connection: socket.socket) -> None:
    """Reads, and answers nothing."""
    while connection.recv(1 << 16):
        pass


def half(connection: socket.socket) -> None:
    """Dies in the middle of each reply."""
    connection.recv(1 << 16)
    connection.sendall(b"*3\r\n$1000\r\nthe beginning")
    connection.close()


def nonsense(connection: socket.socket) -> None:
    """Answers in another language."""
    while connection.recv(1 << 16):
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 3)


def endless(connection: socket.socket) -> None:
    """Promises a gibibyte for each key."""
    while connection.recv(1 << 16):
        connection.sendall(b"*1\r\n$%d\r\n" % (1 << 30) + b"x" * 1000)


@pytest.fixture
def stranger() -> Iterator[Callable[..., Stranger]]:
    made: list[Stranger] = []

    def make(answer: Callable[[socket.socket], None]) -> Stranger:
        made.append(Stranger(answer))
        return made[-1]

    yield make
    for each in made:
        each.close()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "headstart" and record.levelno >= logging.WARNING and "127.0.0.1" in record.getMessage()
    ]


@pytest.mark.parametrize("answer", [silence, half, nonsense, endless])
def test_a_server_that_is_no_store_costs_no_kernel_and_one_line(
    open_compile: Open,
    stranger: Callable[..., Stranger],
    answer: Callable[[socket.socket], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("HEADSTART_REMOTE", f"redis://user:{PASSWORD}@127.0.0.1:{stranger(answer).port}/0")
    async_compile = open_compile()
    compile_all(async_compile)
    assert async_compile.statistics.compiled == KERNELS
    (line,) = wait_until(lambda: warnings(caplog))
    assert PASSWORD not in line
    compile_all(async_compile, KERNELS + 2)
    assert warnings(caplog) == [line]


def test_a_server_that_is_not_there_costs_no_kernel_and_one_line(
    open_compile: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (port,) = servers.free_ports(1)
    monkeypatch.setenv("HEADSTART_REMOTE", f"redis://user:{PASSWORD}@127.0.0.1:{port}/0")
    async_compile = open_compile()
    compile_all(async_compile)
    assert async_compile.statistics.compiled == KERNELS
    (line,) = wait_until(lambda: warnings(caplog))
    assert PASSWORD not in line


def test_a_url_with_a_typo_is_an_error_that_says_which_schemes_there_are(
    open_compile: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADSTART_REMOTE", f"rediss3://user:{PASSWORD}@host/0")
    with pytest.raises(UsageError, match=r"HEADSTART_REMOTE: rediss3:// is no kind of remote.*redis://") as caught:
        open_compile()
    assert PASSWORD not in str(caught.value)


# Exits


@pytest.mark.parametrize("killed", [False, True])
def test_a_program_never_waits_for_what_is_to_be_published(
    start_client: Start, stranger: Callable[..., Stranger], runtime_folder: Path, killed: bool
) -> None:
    port = stranger(silence).port
    client = start_client(
        """
        import headstart
        from kernels import pointwise
        async_compile = headstart.AsyncCompile("cuda:90", workers=2)
        async_compile.triton(**pointwise()).result(60)
        print("made", flush=True)
        """,
        HEADSTART_REMOTE=f"redis://127.0.0.1:{port}/0",
        HEADSTART_REMOTE_DEADLINE="0.01",
    )
    assert client.process.stdout is not None
    assert client.process.stdout.readline() == b"made\n"
    for process in remote_processes(runtime_folder):
        process.suspend()  # it is the last that anybody could wait for
    if killed:
        client.process.kill()
    client.process.wait(PATIENCE)
    # One that is stopped ends with its service as well: killed by it, or continued by the kernel.
    wait_until(lambda: not remote_processes(runtime_folder), PROMPT)


def test_a_remote_process_ends_with_a_service_that_is_killed(
    open_compile: Open, shared: Path, runtime_folder: Path
) -> None:
    async_compile = open_compile()
    compile_all(async_compile, 1)
    (process,) = remote_processes(runtime_folder)
    process.suspend()
    for service in services_of(runtime_folder):
        service.send_signal(signal.SIGKILL)
    wait_until(lambda: not is_alive(process), PROMPT)
    compile_all(async_compile, 2)  # by another one, which clears up behind it


def test_what_was_to_be_published_is_published_though_the_program_is_gone(
    start_client: Start, shared: Path, runtime_folder: Path, tmp_path: Path
) -> None:
    client = start_client(
        """
        import os
        import headstart
        from kernels import pointwise
        async_compile = headstart.AsyncCompile("cuda:90", workers=2)
        for future in [async_compile.triton(**pointwise(float(each))) for each in range(4)]:
            future.result(60)
        os._exit(0)
        """,
    )
    client.finish()
    ended(runtime_folder)
    assert len([path for path in shared.rglob("*") if path.is_file() and path.stat().st_size > 1000]) == 4


# Nothing without a remote, and no password anywhere


def test_without_a_remote_there_is_no_process(open_compile: Open, runtime_folder: Path) -> None:
    async_compile = open_compile()
    compile_all(async_compile, 1)
    assert remote_processes(runtime_folder) == []


@pytest.mark.parametrize("remote", ["", "file:///nowhere"])
def test_a_program_imports_nothing_that_talks_to_a_network(start_client: Start, remote: str) -> None:
    client = start_client(
        """
        import sys
        import headstart
        from kernels import pointwise
        with headstart.AsyncCompile("cuda:90", workers=2) as async_compile:
            async_compile.triton(**pointwise()).result(60)
        ours = ("headstart.stores.remote", "redis", "obstore")
        print([name for name in sys.modules if name.startswith(ours)])
        """,
        HEADSTART_REMOTE=remote,
    )
    seen = client.finish()
    if remote:
        assert not any(name in seen for name in ("'redis", "obstore", "remote.redis", "remote.objects", "remote.oci"))
    else:
        assert seen == "[]\n"


def test_passwords_are_nowhere(
    start_client: Start,
    stranger: Callable[..., Stranger],
    runtime_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    port = stranger(half).port
    url = f"redis://somebody:{PASSWORD}@127.0.0.1:{port}/0"
    client = start_client(
        """
        import os, sys, time
        import headstart
        from kernels import pointwise, raises
        async_compile = headstart.AsyncCompile("cuda:90", workers=2)
        async_compile.triton(**pointwise()).result(60)
        try:
            async_compile.triton(**raises()).result(60)
        except headstart.CompileError as error:
            print(error, file=sys.stderr)
        while not os.path.exists(sys.argv[1]):  # somebody is still to be asked how things stand
            time.sleep(0.01)
        """,
        tmp_path / "asked",
        HEADSTART_REMOTE=url,
        HEADSTART_SERVICE="shared",
    )
    seen: list[str] = []
    while client.process.poll() is None:
        for process in descendants(runtime_folder):
            with contextlib.suppress(OSError):
                seen.append(Path(f"/proc/{process.pid}/cmdline").read_bytes().decode(errors="replace"))
                if process.pid != client.process.pid:
                    seen.append(Path(f"/proc/{process.pid}/environ").read_bytes().decode(errors="replace"))
        for arguments in (["status"], ["status", "--json"], ["status", "--events"]):
            done = subprocess.run(
                [sys.executable, "-m", "headstart", *arguments], capture_output=True, text=True, check=False
            )
            seen += [done.stdout, done.stderr]
        if any('"remotes":[{' in text for text in seen):
            (tmp_path / "asked").touch()
    output, errors = client.process.communicate(timeout=PATIENCE)
    seen += [output.decode(), errors.decode()]
    assert any('"remotes":[{' in text for text in seen), "it was never asked while the service had a remote"
    cache = Path(os.environ["HEADSTART_CACHE_DIR"]).parent
    for root in (runtime_folder, cache, tmp_path):
        for path in root.rglob("*"):
            if path.is_file():
                seen.append(path.read_bytes().decode(errors="replace"))
    assert not [text for text in seen if PASSWORD in text]


def test_what_a_remote_was_good_for_is_shown(
    open_compile: Open, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime_folder: Path
) -> None:
    monkeypatch.setenv("HEADSTART_SERVICE", "shared")
    with open_compile() as first:
        compile_all(first)
    ended(runtime_folder)
    with open_compile(cache_dir=tmp_path / "second host") as second:
        compile_all(second, KERNELS + 1)

        def report() -> dict[str, Any]:
            done = subprocess.run(
                [sys.executable, "-m", "headstart", "status", "--json"], capture_output=True, text=True, check=True
            )
            told: dict[str, Any] = json.loads(done.stdout)["services"][0]
            return told

        wait_until(lambda: report()["remotes"][0]["tiers"][0]["published"] == 1)
        told = report()
        (tier,) = told["remotes"][0]["tiers"]
        assert (told["remote"], tier["name"]) == (KERNELS, f"file://{shared}")
        assert (tier["hits"], tier["misses"], tier["errors"]) == (KERNELS, 1, 0)
        assert tier["hit_bytes"] > 1000 * KERNELS
        shown = subprocess.run(
            [sys.executable, "-m", "headstart", "status"], capture_output=True, text=True, check=True
        ).stdout
        assert f"file://{shared}: {KERNELS} hits" in shown
        assert f"{KERNELS} (86%) from stores of other hosts" in shown
    assert DiskStore(tmp_path / "second host").info().entries == KERNELS + 1
