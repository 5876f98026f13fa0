"""Every test has folders of its own, and counts what it leaves behind.

Nothing may be left by a test: no process that it or its descendants started, no file in the runtime folder, no
half-written entry in a store. Descendants are known by their parent, or (orphans) by the runtime folder in their
environment, which no other test has.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

import headstart
from headstart.system.confinement import unavailable

T = TypeVar("T")

# Started in the background by a shell, a process ignores Ctrl-C, and so would those that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

PATIENCE = 30.0  # seconds that a test waits for something that must happen
PROMPT = 5.0  # seconds within which processes whose client is gone must have ended

# For what compiles without --trust what nobody vouches for.
needs_confinement = pytest.mark.skipif(bool(unavailable()), reason=unavailable() or "it can be had")


@pytest.fixture(autouse=True)
def runtime_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that `XDG_RUNTIME_DIR` names. Caches are in folders of the test's own, and nothing else is set."""
    for name in list(os.environ):
        if name.startswith(("TRITON_", "HEADSTART_")):
            monkeypatch.delenv(name)
    folder = tmp_path_factory.mktemp("runtime")
    folder.chmod(0o700)
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    monkeypatch.setenv("HEADSTART_CACHE_DIR", str(cache / "headstart"))
    monkeypatch.setenv("HEADSTART_CONFIG_DIR", str(cache / "config"))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(cache / "triton"))
    return folder


@pytest.fixture(autouse=True)
def _nothing_is_left(request: pytest.FixtureRequest, runtime_folder: Path, tmp_path: Path) -> Iterator[None]:
    cache = Path(os.environ["HEADSTART_CACHE_DIR"])
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    # What a service had to clean up it has cleaned up when its client's `close` returns; only what was killed with
    # SIGKILL may take a moment to vanish.
    processes = lasting(lambda: descendants(runtime_folder, before), PROMPT)
    left = [f"process {process.pid}: {shlex.join(_command(process))}" for process in processes]
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    left += [str(path) for path in runtime_folder.glob("headstart/*")]
    if request.node.get_closest_marker("triton"):  # tests of the store alone put things there on purpose
        left += [str(path) for root in (cache, tmp_path) for path in root.glob("**/store/v2/tmp/*")]
    assert not left, "the test left behind:\n" + "\n".join(left)


def descendants(runtime_folder: Path, known: set[int] = frozenset()) -> list[psutil.Process]:
    """Living processes below this one, and orphans of its clients; zombies that we only have to reap are gone."""
    found = {process.pid: process for process in psutil.Process().children(recursive=True)}
    mark = f"XDG_RUNTIME_DIR={runtime_folder}".encode()
    for name in os.listdir("/proc"):
        if name.isdecimal() and int(name) != os.getpid():
            with suppress(OSError, psutil.NoSuchProcess):
                if mark in Path("/proc", name, "environ").read_bytes().split(b"\0"):
                    found[int(name)] = psutil.Process(int(name))
    return [process for pid, process in found.items() if pid not in known and is_alive(process)]


def is_alive(process: psutil.Process | int) -> bool:
    """Whether a process runs, zombies not counted."""
    try:
        process = psutil.Process(process) if isinstance(process, int) else process
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def lasting(what: Callable[[], list[T]], seconds: float) -> list[T]:
    """What is still there after `seconds`; returns as soon as nothing is."""
    deadline = time.monotonic() + seconds
    while (found := what()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def wait_until(what: Callable[[], T], seconds: float = PATIENCE) -> T:
    """The first true value of `what()`."""
    deadline = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < deadline, f"did not happen within {seconds:g} s"
        time.sleep(0.01)
    return value


def _command(process: psutil.Process) -> list[str]:
    try:
        return [part for part in process.cmdline() if "\n" not in part]
    except psutil.Error:
        return ["?"]


class Family:
    """The processes below one client."""

    def __init__(self, client: int) -> None:
        self.client = client

    def services(self) -> list[psutil.Process]:
        return self._running("headstart.service.server", [psutil.Process(self.client)])

    def zygotes(self) -> list[psutil.Process]:
        return self._running("headstart.worker.zygote", self.services())

    def workers(self) -> list[psutil.Process]:
        return self._running("headstart.worker.zygote", self.zygotes())

    def service(self) -> psutil.Process:
        """The one service, once it is there."""
        (found,) = wait_until(self.services)
        return found

    def zygote(self) -> psutil.Process:
        """The one zygote, once it is there."""
        (found,) = wait_until(self.zygotes)
        return found

    @staticmethod
    def _running(module: str, parents: list[psutil.Process]) -> list[psutil.Process]:
        found = []
        for parent in parents:
            with suppress(psutil.NoSuchProcess):
                for child in parent.children():
                    with suppress(psutil.NoSuchProcess):
                        if module in child.cmdline() and is_alive(child):
                            found.append(child)
        return found


@pytest.fixture
def family() -> Family:
    """The processes below this one."""
    return Family(os.getpid())


@pytest.fixture
def open_compile() -> Iterator[Callable[..., headstart.AsyncCompile]]:
    """Makes AsyncCompiles, for cuda:90 and with two workers unless told otherwise, and closes them."""
    opened = []

    def make(target: str = "cuda:90", *, workers: int = 2, **arguments: Any) -> headstart.AsyncCompile:
        opened.append(headstart.AsyncCompile(target, workers=workers, **arguments))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


class Client:
    """A program that uses headstart, as a process of its own."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.family = Family(process.pid)

    def finish(self, seconds: float = PATIENCE) -> str:
        """What it printed, once it has ended by itself."""
        output, errors = self.process.communicate(timeout=seconds)
        assert self.process.returncode == 0, errors.decode(errors="replace")
        return output.decode()


@pytest.fixture
def start_client(tmp_path: Path) -> Iterator[Callable[..., Client]]:
    """Starts Python programs that may import `kernels`. Keyword arguments are environment variables."""
    started = []

    def start(program: str, *arguments: object, **variables: str) -> Client:
        path = tmp_path / f"client{len(started)}.py"
        path.write_text(textwrap.dedent(program), encoding="utf-8")
        process = subprocess.Popen(
            [sys.executable, str(path), *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **client_environment(), **variables},
            cwd=tmp_path,
        )
        started.append(process)
        return Client(process)

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def client_environment() -> dict[str, str]:
    """So that a program finds headstart, and the helpers of these tests, where this process does."""
    source = str(Path(headstart.__file__).parent.parent)
    tests = Path(__file__).parent
    helpers = [
        str(tests),
        *(str(tests / folder) for folder in ("service", "stores", "stores/remote", "adapters", "client", "system")),
    ]
    path = [source, *helpers, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(path)}


def kill(process: psutil.Process) -> None:
    """SIGKILL, and wait until it is gone (or a zombie)."""
    process.send_signal(signal.SIGKILL)
    wait_until(lambda: not is_alive(process))


def services_of(runtime_folder: Path) -> list[psutil.Process]:
    """The services that run in a runtime folder, whoever's children they are."""
    found = []
    for process in descendants(runtime_folder):
        with suppress(psutil.Error):
            command = process.cmdline()
            if "headstart.service.server" in command or "serve" in command:
                found.append(process)
    return found


@pytest.fixture(params=["private", "shared"])
def either_service(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Has a test run twice: with services of the clients' own, and with one that they share."""
    monkeypatch.setenv("HEADSTART_SERVICE", request.param)
    return str(request.param)
