"""Processes on hosts: each host a cache folder, each process a program of `subjects/`."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks import measure
from benchmarks.machine import ROOT, busy_seconds, monotonic
from benchmarks.measure import SUBJECTS, Run, Series, say
from benchmarks.remote.network import servers
from headstart.artifacts.keyring import Keyring
from headstart.stores.disk import DiskStore
from headstart.stores.remote import open_remote
from headstart.stores.remote.sealing import Signer, seal
from headstart.stores.remote.urls import parse_url

_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
_ENDING = 10.0  # seconds that what goes on without its program may take


class Hosts:
    """Runs processes, and keeps what they took.

    Attributes:
        bench: rounds, workers, and the series that a report is made of.
        writer, reader: folders of keys: of who signs, and trusts that; of who only trusts it.
    """

    def __init__(self, bench: measure.Bench) -> None:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # so that the CPU time of all is known
        self.bench = bench
        self._number = 0
        self.writer, self.reader = bench.folder / "writer", bench.folder / "reader"
        public = Keyring(self.writer).new("team")
        for folder in (self.writer, self.reader):
            Keyring(folder).trust(public)

    def new(self) -> Path:
        """A host that has nothing."""
        self._number += 1
        host = self.bench.folder / f"host{self._number}"
        (host / "run").mkdir(parents=True)
        for folder in (host, host / "run"):
            folder.chmod(0o700)
        return host

    def start(
        self, host: Path, script: str, *arguments: object, keys: Path | None = None, **variables: str
    ) -> subprocess.Popen[str]:
        """Have a process begin. `keys`: the writer's, unless said."""
        environment = {
            **measure.environment(),
            **servers.S3_ENVIRONMENT,
            "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}",
            "HEADSTART_CACHE_DIR": str(host / "cache"),
            "HEADSTART_CONFIG_DIR": str(keys or self.writer),
            "TRITON_CACHE_DIR": str(host / "triton"),
            "XDG_RUNTIME_DIR": str(host / "run"),
            "DOCKER_CONFIG": str(host / "docker"),
            **variables,
        }
        return subprocess.Popen(
            [sys.executable, str(SUBJECTS / f"{script}.py"), *map(str, arguments)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, host: Path, script: str, *arguments: object, keys: Path | None = None, **variables: str) -> Run:
        """From the start of a process to the end of everything that it has started."""
        (busy, withheld), cpu, begun = busy_seconds(), _cpu_of_the_dead(), monotonic()
        said, words = finish(self.start(host, script, *arguments, keys=keys, **variables))
        wall_s = monotonic() - begun
        self.settle()
        busy_after, withheld_after = busy_seconds()
        cpu_s = _cpu_of_the_dead() - cpu
        return Run(
            wall_s,
            cpu_s,
            others_s=max(0.0, busy_after - busy - cpu_s),
            withheld_s=withheld_after - withheld,
            # What a compile prints is a warning too, and not about a store.
            said={**said, "lines": sum("://" in line for line in words.splitlines())},
        )

    def rounds(self, kinds: Mapping[str, Callable[[], Run]]) -> dict[str, Series]:
        """Each kind in turn, round by round. The series are kept under the kinds' names."""
        for name, run in kinds.items():
            say(f"to begin with, {name}: {run()['took_s']:.3f} s")
        return self.bench.rounds(kinds)

    def settle(self) -> None:
        """Until nothing is published any more."""
        deadline = time.monotonic() + _ENDING
        while time.monotonic() < deadline and self._processes():
            time.sleep(0.05)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(-1, os.WNOHANG)  # what was left to this process

    def _processes(self) -> list[str]:
        mark = f"XDG_RUNTIME_DIR={self.bench.folder}/".encode()
        found = []
        for name in filter(str.isdecimal, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if any(each.startswith(mark) for each in Path("/proc", name, "environ").read_bytes().split(b"\0")):
                    found.append(name)
        return found

    def fill(self, host: Path, urls: Sequence[str]) -> int:
        """Put all that a host has into stores, signed by the writer; returns how many entries that are."""
        os.environ.update(servers.S3_ENVIRONMENT)
        signer = Signer(Keyring(self.writer))
        store = DiskStore(host / "cache")
        sealed = {entry.key: seal(entry.raw(), signer) for entry in store.entries()}
        with ThreadPoolExecutor(4) as pool:
            for url in urls:
                remote = open_remote(parse_url(url))
                for _ in pool.map(remote.put, sealed, sealed.values()):
                    pass
                remote.close()
        return len(sealed)


def finish(process: subprocess.Popen[str]) -> tuple[dict[str, object], str]:
    """What a process has reported, and what it wrote to stderr."""
    try:
        output, words = process.communicate(timeout=measure.TIME_LIMIT)
    finally:
        process.kill()
        process.wait()
    if process.returncode:
        raise RuntimeError(words)
    return json.loads(output.splitlines()[-1]), words


def _cpu_of_the_dead() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def temporary() -> tempfile.TemporaryDirectory[str]:
    """For all hosts and stores; short, since paths of sockets are."""
    return tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True)
