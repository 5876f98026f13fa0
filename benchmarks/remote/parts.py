"""Stores that hosts share: what another host gains by one, and what one costs that is of no use.

    .venv/bin/python -m benchmarks.remote [PART]...      [ROUNDS=5] [KERNELS=312] [DELAY_MS=0]

PART is second, cold or together; without any, all.

Each measurement is a fresh process with a service of its own; kinds take turns, round by round, and ratios are medians
of one round's each. CPU seconds are of all processes, that of the remote included. A host is a cache folder. Redis is
the one that `make test-remote` fetches, or the installed one; without it, its rows are left out.

    second host   all kernels are in the store that is named; until all are there
    cold sweep    nothing is stored; until all are compiled:
      none          without a remote
      misses        one that has nothing (Redis), and is given everything
      silent        one that accepts connections and never answers
      drops         one that drops every packet: its queue of connections is full
      nobody        a port on which nobody listens
    together      4 hosts with 4 clients each ask for the same kernels, with claims
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import marshal
import os
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from examples import codegen

from benchmarks import machine
from benchmarks.workloads import TARGET

ROOT = Path(__file__).resolve().parent.parent
_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
_LIMIT = 300.0  # seconds for one process
_SWEEP = 40  # kernels
_TOGETHER = 48
_HOSTS, _CLIENTS = 4, 4

_PROGRAM = """
import json, marshal, os, sys, time
import headstart
from headstart.client import control
path, count, workers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
SOURCE = '''import triton
import triton.language as tl


@triton.jit
def scaled(x, y, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, tl.exp(tl.load(x + i, mask=i < n)) * {factor}.0, mask=i < n)
'''
HOW = {"signature": {"x": "*fp32", "y": "*fp32", "n": "i32"}, "constants": {"BLOCK": 128}}
if path == "small":
    kernels = [("scaled", SOURCE.format(factor=factor), HOW) for factor in range(1, count + 1)]
else:
    with open(path, "rb") as file:
        kernels = marshal.load(file)[:count]
begun = time.monotonic()
with headstart.AsyncCompile("TARGET", workers=workers) as async_compile:
    futures = [async_compile.triton(name, source, **how) for name, source, how in kernels]
    for future in futures:
        future.result(240)
    took = time.monotonic() - begun
    said = {"took_s": took, "compiled": async_compile.statistics.compiled, "remote": async_compile.used().remote}
    if os.environ.get("HEADSTART_SERVICE") == "shared":
        ((_, report),) = control.reports(async_compile.client.settings)
        said["compiled_by_service"] = report.compiled
    print(json.dumps(said))
""".replace("TARGET", TARGET)


class Bench:
    """Runs processes in folders of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._hosts = 0
        self.codegen = folder / "codegen.kernels"
        self.codegen.write_bytes(marshal.dumps(codegen.collect()[1][::3]))
        (folder / "run").mkdir(mode=0o700)

    def host(self) -> Path:
        """A new one, which has nothing."""
        self._hosts += 1
        return self.folder / f"host{self._hosts}"

    def start(self, host: Path, remote: str, kernels: str, count: int, **variables: str) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HEADSTART")}
        environment |= {
            "HEADSTART_CACHE_DIR": str(host),
            "HEADSTART_CONFIG_DIR": str(self.folder / "config"),
            "XDG_RUNTIME_DIR": str(self.folder / "run"),
            "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}",
            **({"HEADSTART_REMOTE": remote} if remote else {}),
            **variables,
        }
        workers = str(len(os.sched_getaffinity(0)))
        return subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, kernels, str(count), workers],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, host: Path, remote: str, kernels: str, count: int) -> dict[str, Any]:
        """`kernels`: a file of them, or `"small"`. Ends when everything has that it started."""
        before = _cpu_of_the_dead()
        said = finish(self.start(host, remote, kernels, count))
        self.settle()
        return {**said, "cpu_s": _cpu_of_the_dead() - before}

    def settle(self) -> None:
        """Until nothing is published any more."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and _processes(self.folder):
            time.sleep(0.05)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(-1, os.WNOHANG)  # what was left to this process


def _cpu_of_the_dead() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, errors = process.communicate(timeout=_LIMIT)
    if process.returncode:
        raise RuntimeError(errors)
    said: dict[str, Any] = json.loads(output.splitlines()[-1])
    return said


def _processes(folder: Path) -> list[str]:
    found = []
    mark = f"XDG_RUNTIME_DIR={folder / 'run'}".encode()
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if mark in Path("/proc", name, "environ").read_bytes().split(b"\0"):
                found.append(name)
    return found


@contextlib.contextmanager
def redis(folder: Path) -> Iterator[str]:
    """The address of one; empty if there is none."""
    servers = Path(sys.executable).parent.parent / "servers" / "usr"
    program = shutil.which("redis-server", path=f"{servers / 'bin'}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        yield ""
        return
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    libraries = ":".join(map(str, (servers / "lib").glob("*-linux-gnu")))
    process = subprocess.Popen(
        [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)],
        env={**os.environ, "LD_LIBRARY_PATH": libraries},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def delayed(address: str, milliseconds: float) -> Iterator[str]:
    """A way to `address` that takes so long, there and back."""
    if not (address and milliseconds):
        yield address
        return
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    host, _, port = address.partition(":")

    def pass_on(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 20):
                due = time.monotonic() + milliseconds / 2000
                time.sleep(max(0.0, due - time.monotonic()))
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                mine, _ = listener.accept()
                theirs = socket.create_connection((host, int(port)))
                for pair in ((mine, theirs), (theirs, mine)):
                    threading.Thread(target=pass_on, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.close()


@contextlib.contextmanager
def silent() -> Iterator[str]:
    """A server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"  # the kernel accepts them


@contextlib.contextmanager
def dropping() -> Iterator[str]:
    """A server whose queue of connections is full: the kernel drops whatever else would connect."""
    with contextlib.ExitStack() as held:
        listener = held.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            waiting = held.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def nobody() -> str:
    """A port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"127.0.0.1:{free.getsockname()[1]}"


Kinds = dict[str, Callable[[], dict[str, Any]]]


def measure(kinds: Kinds, rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Each kind in turn, round by round; the first round is thrown away."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in kinds}
    for number in range(rounds + 1):
        for name, run in kinds.items():
            said = run()
            if number:
                runs[name].append(said)
    return runs


def table(title: str, runs: dict[str, list[dict[str, Any]]]) -> None:
    base = [run["took_s"] for run in next(iter(runs.values()))]
    cpu_base = [run["cpu_s"] for run in next(iter(runs.values()))]
    print(f"\n| {title} | seconds, median (least .. greatest) | ratio | CPU s | ratio | compiled | from the remote |")
    print("|---|---|---|---|---|---|---|")
    for name, all_of in runs.items():
        took = [run["took_s"] for run in all_of]
        ratio = statistics.median(mine / theirs for mine, theirs in zip(took, base, strict=True))
        shown = f"{statistics.median(took):.3f} ({min(took):.3f} .. {max(took):.3f})"
        cpu = [run["cpu_s"] for run in all_of]
        of_cpu = statistics.median(mine / theirs for mine, theirs in zip(cpu, cpu_base, strict=True))
        compiled, remote = all_of[-1]["compiled"], all_of[-1]["remote"]
        print(
            f"| {name} | {shown} | {ratio:.3f} | {statistics.median(cpu):.2f} | {of_cpu:.3f} | {compiled} | {remote} |",
            flush=True,
        )


def second_host(bench: Bench, address: str, rounds: int, count: int, delay: float) -> None:
    folder = bench.folder / "shared"
    folder.mkdir(mode=0o700)
    urls = {"folder": f"file://{folder}", "redis": f"redis://{address}/0" if address else ""}
    first = bench.host()
    bench.run(first, " ".join(filter(None, urls.values())), "small", count)
    bench.settle()
    with delayed(address, delay) as far:
        urls["redis"] = f"redis://{far}/0" if far else ""
        kinds: Kinds = {"the local store": lambda: bench.run(first, "", "small", count)}
        for name, url in urls.items():
            if url:
                kinds[name] = lambda url=url: bench.run(bench.host(), url, "small", count)  # type: ignore[misc]
        table(f"second host, {count} kernels, {delay:g} ms", measure(kinds, rounds))


def cold_sweep(bench: Bench, address: str, rounds: int) -> None:
    with silent() as quiet, dropping() as full:
        remotes = {"none": "", "misses": address, "silent": quiet, "drops": full, "nobody": nobody()}
        kinds: Kinds = {}
        for name, at in remotes.items():
            if not at and name != "none":
                continue

            def run(at: str = at) -> dict[str, Any]:
                url = f"redis://{at}/0?prefix={os.urandom(4).hex()}" if at else ""
                return bench.run(bench.host(), url, str(bench.codegen), _SWEEP)

            kinds[name] = run
        table(f"cold sweep, {_SWEEP} kernels", measure(kinds, rounds))


def together(bench: Bench, address: str, rounds: int) -> None:
    if not address:
        return
    print(f"\n| {_HOSTS} hosts, {_CLIENTS} clients each, {_TOGETHER} kernels | compiles, by round | seconds, median |")
    print("|---|---|---|")
    for name, option in (("without claims", ""), ("with claims", "&claims")):
        compiles, took = [], []
        for _ in range(rounds):
            url = f"redis://{address}/0?prefix={os.urandom(4).hex()}{option}"
            processes = []
            for _ in range(_HOSTS):
                host = bench.host()
                run = host / "run"
                run.mkdir(parents=True, mode=0o700)
                host.chmod(0o700)
                shared = {"HEADSTART_SERVICE": "shared", "XDG_RUNTIME_DIR": str(run)}
                processes += [bench.start(host, url, str(bench.codegen), _TOGETHER, **shared) for _ in range(_CLIENTS)]
            said = [finish(process) for process in processes]
            hosts = [said[first : first + _CLIENTS] for first in range(0, len(said), _CLIENTS)]
            # Who leaves last sees the service's last count.
            compiles.append(sum(max(each["compiled_by_service"] for each in host) for host in hosts))
            took.append(max(each["took_s"] for each in said))
            bench.settle()
        print(f"| {name} | {', '.join(map(str, compiles))} | {statistics.median(took):.2f} |")


def main() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # so that the CPU time of all is known
    rounds, count = int(os.environ.get("ROUNDS", "5")), int(os.environ.get("KERNELS", "312"))
    delay = float(os.environ.get("DELAY_MS", "0"))
    for name, value in machine.describe().items():
        print(f"{name}: {value}")
    with tempfile.TemporaryDirectory(prefix="headstart-bench-") as folder, redis(Path(folder)) as address:
        bench = Bench(Path(folder))
        parts = sys.argv[1:] or ["second", "cold", "together"]
        if "second" in parts:
            second_host(bench, address, rounds, count, delay)
        if "cold" in parts:
            cold_sweep(bench, address, rounds)
        if "together" in parts:
            together(bench, address, max(1, rounds // 2))


if __name__ == "__main__":
    main()
