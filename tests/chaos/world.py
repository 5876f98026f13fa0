"""Who is alive, what was done to them, and what is still to be undone."""

from __future__ import annotations

import contextlib
import heapq
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

import headstart
from conftest import is_alive

if TYPE_CHECKING:
    from chaos.farm import Farm
    from chaos.stores import Store

TESTS = Path(__file__).parent.parent
SHARING = 0.7  # of the rounds
CLAIMING = 0.5  # of the rounds
TIERED = 0.5  # of these: all stores that there are, one behind the other; else one of them


class Client:
    """One run of `program.py`."""

    def __init__(self, process: subprocess.Popen[bytes], numbers: list[int], output: Path) -> None:
        self.process = process
        self.numbers = numbers
        self.output = output
        self.killed = False  # by us
        self.denied: tuple[str, ...] = ()  # system calls that its sandbox refuses
        self.host = ""  # its cache folder's name

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def answers(self) -> list[dict[str, str | int]]:
        """What became of its kernels."""
        return [each for each in self._printed() if "kernel" in each]

    @property
    def found(self) -> int:
        """How many of them were in a store that hosts share; 0 if it was killed."""
        return sum(int(each["found"]) for each in self._printed() if "found" in each)

    def _printed(self) -> list[dict[str, str | int]]:
        """The last line of one that was killed may be half."""
        found = []
        for line in self.output.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                found.append(json.loads(line))
        return found

    @property
    def errors(self) -> str:
        return self.output.with_suffix(".stderr").read_text(errors="replace")


class World:
    """One run: its folders, its processes and what has happened to them.

    Args:
        folder: everything of this run is below it.
        disk: for the cache folder: a disk that may be filled, or None.
        memory: for the runtime folder: the same.
        seed: of all that is random.
    """

    def __init__(self, folder: Path, disk: Path | None, memory: Path | None, seed: int) -> None:
        self.random = random.Random(seed)
        self.disk = disk
        self.memory = memory
        self.folder = folder
        self.cache = self.cache_of("cache")
        self.marks = folder / "marks"
        self.runtime = memory or folder / "runtime"
        self.temporary = folder / "tmp"
        self.remote = folder / "remote"  # a folder that hosts share
        self.stores: dict[str, Store] = {}  # that hosts share, by kind
        self.farm: Farm | None = None
        self.lends = False  # whether this round's clients use it
        self.lent: Counter[str] = Counter()  # kernels: in how many rounds it may have compiled them
        self.claims = False  # whether those have claims
        self.used: list[str] = []  # those of this round's clients, the nearest first
        for each in (self.marks, self.runtime, self.temporary, self.remote):
            each.mkdir(mode=0o700, exist_ok=True)
        self.no_threads = folder / "no-threads"  # while it is there, clients can start none
        self.service = "private"  # HEADSTART_SERVICE of this round's clients
        self.elsewhere: Counter[str] = Counter()  # kernels: on how many other hosts they were asked for
        self.clients: list[Client] = []
        self.credentials: dict[str, str] = {}  # variables that stores need
        self.victims: set[int] = set()  # workers that were killed, or whose service or zygote was
        self.damaged: Counter[str] = Counter()  # kernels: how often an entry of theirs was damaged or removed
        self.excused: list[tuple[float, float]] = []  # times of a full disk, or of a service that was told to end
        self.kills = 0
        self.dropped: set[str] = set()  # kernels that clients asked for who were killed
        self.width = 1  # clients at a time
        self.over = False  # whether no more faults are to come in this round
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._serials = count()

    def begin(self, service: str, used: list[str], *, lends: bool = False) -> None:
        """A new round: nobody is there yet. `lends`: its clients use the farm, if there is one."""
        self.lends = lends and self.farm is not None
        if self.farm is not None and self.lends:
            self.farm.begin()
        self.service = service
        self.used = used
        self.claims = self.random.random() < CLAIMING
        self.clients = []

    def some_stores(self, *, all_of_them: bool = False) -> list[str]:
        """For the clients of a round: all stores, one or none."""
        kinds = list(self.stores)
        self.random.shuffle(kinds)
        if all_of_them:
            return kinds
        if self.random.random() > SHARING:
            return []
        return kinds if self.random.random() < TIERED else kinds[:1]

    def remote_setting(self) -> str:
        """What this round's clients have for `HEADSTART_REMOTE`."""
        return " ".join(self.stores[kind].url(claims=self.claims) for kind in self.used)

    def cache_of(self, host: str) -> Path:
        """The cache folder of a host, on the disk that may be filled."""
        return (self.disk or self.folder) / host

    # What is to be undone

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Have something done in a while, or when the round's faults are over."""
        heapq.heappush(self._later, (time.monotonic() + seconds, next(self._serials), action))

    def catch_up(self, *, everything: bool = False) -> None:
        """Do what is due by now."""
        self.over = everything
        while self._later and (everything or self._later[0][0] <= time.monotonic()):
            heapq.heappop(self._later)[2]()

    # Processes

    def environment(self, host: str) -> dict[str, str]:
        """Of a client on a host."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("TRITON_", "HEADSTART_"))}
        source = Path(headstart.__file__).parent.parent
        return {
            **inherited,
            "XDG_RUNTIME_DIR": str(self.runtime),
            "HEADSTART_CACHE_DIR": str(self.cache_of(host)),
            "HEADSTART_CONFIG_DIR": str(self.runtime.parent / "config"),
            "HEADSTART_SERVICE": self.service,
            **({"HEADSTART_REMOTE": self.remote_setting()} if self.used else {}),
            **({"HEADSTART_FARM": self.farm.address} if self.farm is not None and self.lends else {}),
            "DOCKER_CONFIG": str(self.folder / "docker"),
            **self.credentials,
            "TMPDIR": str(self.temporary),
            "PYTHONPATH": f"{source}{os.pathsep}{TESTS}",
        }

    def start_client(
        self, numbers: list[int], denied: tuple[str, ...] = (), *, host: str = "cache", **variables: str
    ) -> Client:
        """A program that asks for these kernels, and to which system calls are `denied`; on a host of that name."""
        if self.lends:
            self.lent.update(
                {f"kernel{number}" for number in numbers}
                - {f"kernel{n}" for each in self.clients for n in each.numbers}
            )
        if host != "cache":
            self.elsewhere.update(f"kernel{number}" for number in numbers if not self._asks(host, number))
        output = self.folder / f"client{next(self._serials)}.out"
        with output.open("wb") as out, output.with_suffix(".stderr").open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "chaos.program", str(self.marks), *map(str, numbers)],
                env={**self.environment(host), "DENIED": " ".join(denied), **variables},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=errors,
            )
        self.clients.append(Client(process, numbers, output))
        self.clients[-1].denied, self.clients[-1].host = denied, host
        return self.clients[-1]

    def _asks(self, host: str, number: int) -> bool:
        return any(client.host == host and number in client.numbers for client in self.clients)

    def processes(self) -> list[psutil.Process]:
        """All living processes of this run but the driver: whoever has its runtime folder in the environment."""
        mark = f"XDG_RUNTIME_DIR={self.runtime}".encode()
        found = []
        for name in os.listdir("/proc"):
            if name.isdecimal() and int(name) != os.getpid():
                with contextlib.suppress(OSError, psutil.Error):
                    if mark in Path("/proc", name, "environ").read_bytes().split(b"\0"):
                        process = psutil.Process(int(name))
                        if is_alive(process):
                            found.append(process)
        return found

    def services(self) -> list[psutil.Process]:
        return [process for process in self.processes() if runs(process, "headstart.service.server")]

    def zygotes(self) -> list[psutil.Process]:
        return [process for process in self._forks() if not is_worker(process)]

    def workers(self) -> list[psutil.Process]:
        return [process for process in self._forks() if is_worker(process)]

    def remotes(self) -> list[psutil.Process]:
        return [process for process in self.processes() if runs(process, "headstart.remote.process")]

    def _forks(self) -> list[psutil.Process]:
        return [process for process in self.processes() if runs(process, "headstart.worker.zygote")]

    def kill(self, target: psutil.Process, *more: psutil.Process) -> None:
        """SIGKILL, of a whole family as it was in one moment; whose workers these were is remembered."""
        with self.frozen([target, *more]) as family:
            self.note_victims(family)
            self.kills += 1
            for process in (target, *more):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGKILL)

    def kill_all(self) -> None:
        """For a driver that fails itself."""
        while left := self.processes():
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()

    def note_victims(self, family: list[psutil.Process]) -> None:
        """What these workers are at may be compiled again."""
        self.victims.update(process.pid for process in family if is_worker(process))

    @contextlib.contextmanager
    def frozen(self, roots: list[psutil.Process]) -> Iterator[list[psutil.Process]]:
        """Processes and all below them, stopped from the top down, so that none is forked unseen."""
        family: list[psutil.Process] = []
        left = list(roots)
        while left:
            process = left.pop()
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGSTOP)
                family.append(process)
                left += process.children()
        try:
            yield family
        finally:
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGCONT)

    def pause(self, process: psutil.Process, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after a while."""
        process.send_signal(signal.SIGSTOP)

        def go_on() -> None:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)

        self.later(seconds, go_on)

    # Files

    def entries(self) -> list[Path]:
        """What is in the store."""
        return sorted(self.cache.glob("store/v2/??/*.hse"))

    def blobs(self) -> list[Path]:
        """What is in the folder that hosts share, and whole."""
        return sorted(path for path in self.remote.rglob("*") if path.is_file() and len(path.stem) == 64)


def runs(process: psutil.Process, module: str) -> bool:
    try:
        return module in process.cmdline()
    except psutil.Error:
        return False


def is_worker(process: psutil.Process) -> bool:
    """Whether it leads a process group of its own, as only workers among the zygotes' forks do."""
    try:
        parent = process.parent()
        return runs(process, "headstart.worker.zygote") and (
            os.getpgid(process.pid) == process.pid or (parent is not None and runs(parent, "headstart.worker.zygote"))
        )
    except (psutil.Error, ProcessLookupError):
        return False
