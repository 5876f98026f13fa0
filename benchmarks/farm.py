"""A farm: what a sweep gains by it, what lending a kernel costs, and what a farm costs that is of no use.

    .venv/bin/python -m benchmarks.farm [PART]...    [ROUNDS=3] [HOST=1] [NODES=2] [PER_NODE=1] [SMALL=1000]

PART is sweep, overhead, useless, clients or crossover; without any, all. `HOST` cores are this host's, `NODES` ×
`PER_NODE` the nodes', each set by affinity, as far as the machine has so many; a host is a cache folder, a node a
raylet of a Ray cluster that is started and ended here. On a machine with 16 cores: HOST=4 NODES=3 PER_NODE=4.

    sweep      48 configurations of a matrix product, until all are there; the farm has been joined before.
               ideal: the CPU seconds that a run without a farm needed, shared out over all workers, or its longest.
               One host with as many workers as there are in all, without a farm, says what the machine itself can
    overhead   a bridge is lent one kernel at a time, and then SMALL small ones at once; what is left of the wall time
               without the compiles themselves, as the nodes have measured them
    useless    the sweep on HOST cores, farms taking turns:
               none        without a farm
               no nodes    a cluster on which there is no farm
               refusing    nodes that have another toolchain
               stopped     one node has been stopped (SIGSTOP) after it was joined
    crossover  parts of the sweep of several sizes, with a farm and without one: once workers are there and the farm has
               been joined, and from nothing, while workers start and the bridge joins
    clients    4 nodes, 8 clients that ask for the same 48 kernels, of one host, of 8, and of 8 that also share a Redis
               in which they claim what they make (where there is a redis-server): compiles, here and there
"""

from __future__ import annotations

import contextlib
import json
import marshal
import os
import queue
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from examples import codegen

from benchmarks import machine
from benchmarks.remote import network
from benchmarks.workloads import TARGET
from headstart import wire
from headstart.artifacts.entry import Entry
from headstart.farm.ray_cluster import Deployment, RayCluster
from headstart.model import keys
from headstart.model.request import CompileRequest
from headstart.model.toolchain import find_toolchain
from headstart.stores.disk import DiskStore
from headstart.wire.farm import NodeOptions

ROOT = machine.ROOT
_LIMIT = 600.0  # seconds for one process
_READY = 120.0  # seconds until a farm has room
ROUNDS, HOST, NODES, PER_NODE, SMALL = (
    int(os.environ.get(name, default))
    for name, default in (("ROUNDS", "3"), ("HOST", "1"), ("NODES", "2"), ("PER_NODE", "1"), ("SMALL", "1000"))
)

_PROGRAM = """
import json, marshal, sys, time
import headstart
from headstart.client import control
path, (workers, expects_room, waits, many, warm) = sys.argv[1], map(int, sys.argv[2:])
with open(path, "rb") as file:
    kernels = marshal.load(file)[:many]
with headstart.AsyncCompile("TARGET", workers=workers) as compiler:
    settings = compiler.client.settings
    def report():
        found = control.reports(settings)
        return found[0][1] if found else None
    deadline = time.monotonic() + 120
    while expects_room and time.monotonic() < deadline:
        now = report()
        if now and any(sum(farm.state.room.values()) for farm in now.farms):
            break
        time.sleep(0.1)
    time.sleep(2 * warm)  # the zygote is there
    if waits:
        print("ready", flush=True)
        sys.stdin.readline()
    begun = time.monotonic()
    futures = [compiler.triton(name, source, **how) for name, source, how in kernels]
    for future in futures:
        future.result(500)
    took = time.monotonic() - begun
    now, used = report(), compiler.statistics
    print(json.dumps({"took_s": took, "compiled": now.compiled, "farm": now.farm, "cpu_s": used.cpu_s,
                      "longest_s": used.longest_s, "lent": sum(farm.lent for farm in now.farms)}))
""".replace("TARGET", TARGET)


class Bench:
    """Runs clients, and a cluster."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._made = 0
        self.sweep = folder / "sweep.kernels"
        self.sweep.write_bytes(marshal.dumps(list(codegen.matmul_sweep())))
        cores = sorted(os.sched_getaffinity(0))
        wanted = HOST + NODES * PER_NODE
        self.separate = len(cores) >= wanted
        self.host_cores = cores[:HOST] if self.separate else cores
        self.node_cores = [
            cores[HOST + number * PER_NODE : HOST + (number + 1) * PER_NODE] if self.separate else cores
            for number in range(NODES)
        ]
        self._all = cores

    def client(
        self, farm: str, *, cache: Path | None = None, run: Path | None = None, remote: str = "", **how: int
    ) -> Any:
        """A process that asks for the sweep. `farm`, `remote`: addresses, or nothing."""
        self._made += 1
        run = run or self.folder / f"run{self._made}"
        run.mkdir(mode=0o700, exist_ok=True)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HEADSTART")}
        environment |= {
            "HEADSTART_CACHE_DIR": str(cache or self.folder / f"host{self._made}"),
            "HEADSTART_CONFIG_DIR": str(self.folder / "config"),
            "HEADSTART_SERVICE": "shared",
            "HEADSTART_FARM": farm or "off",
            "HEADSTART_REMOTE": remote,
            "XDG_RUNTIME_DIR": str(run),
            "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}",
        }
        defaults = {"workers": HOST, "room": 0, "waits": 0, "many": 48, "warm": 1}
        flags = [str(how.get(name, default)) for name, default in defaults.items()]
        os.sched_setaffinity(0, self._all if how.get("workers", HOST) > HOST else self.host_cores)
        try:
            return subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, str(self.sweep), *flags],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        finally:
            os.sched_setaffinity(0, self._all)

    @contextlib.contextmanager
    def cluster(self, nodes: int, per_node: int, *, up: bool = True) -> Iterator[RayCluster]:
        """A Ray cluster with a farm on it, each time with empty caches."""
        import ray
        from ray.cluster_utils import Cluster

        self._made += 1
        # Actors have their environment from their raylet.
        changed = {
            "HEADSTART_CONFIG_DIR": str(self.folder / "config"),
            "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}",
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        }
        os.environ.update(changed)
        made: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        try:
            for number in range(nodes):
                os.sched_setaffinity(0, self.node_cores[number % len(self.node_cores)])
                made.add_node(num_cpus=per_node)
            os.sched_setaffinity(0, self._all)
            made.wait_for_nodes()
            farm = RayCluster(made.address)
            farm.join()
            farm.address = made.address  # type: ignore[attr-defined]
            if up:
                farm.deploy(Deployment(NodeOptions(cache_dir=f"{self.folder}/nodes{self._made}/{{node}}")))
                farm.states()
            yield farm
            farm.take_down()
        finally:
            os.sched_setaffinity(0, self._all)
            ray.shutdown()
            made.shutdown()


def finish(process: Any) -> dict[str, Any]:
    output, errors = process.communicate("\n", timeout=_LIMIT)
    if process.returncode:
        raise RuntimeError(errors)
    said: dict[str, Any] = json.loads(output.splitlines()[-1])
    return said


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} .. {max(values):.2f})"


def sweep(bench: Bench) -> None:
    print(f"\n| 48 configurations, {HOST} here and {NODES} × {PER_NODE} on nodes, {ROUNDS} rounds | |")
    print("|---|---|")
    alone, together, with_farm, ratios, of_together, there = [], [], [], [], [], []
    workers = HOST + NODES * PER_NODE
    for _ in range(ROUNDS):
        without = finish(bench.client(""))
        together.append(finish(bench.client("", workers=workers))["took_s"])
        with bench.cluster(NODES, PER_NODE) as farm:
            said = finish(bench.client(farm.address, room=1))  # type: ignore[attr-defined]
        ideal = max(without["cpu_s"] / workers, without["longest_s"])
        alone.append(without["took_s"])
        with_farm.append(said["took_s"])
        there.append(said["farm"])
        ratios.append(said["took_s"] / ideal)
        of_together.append(said["took_s"] / together[-1])
    print(f"| without a farm, s | {spread(alone)} |")
    print(f"| without, {workers} workers on one host, s | {spread(together)} |")
    print(f"| with it, s | {spread(with_farm)} |")
    print(f"| made there, of 48 | {spread(there)} |")
    print(f"| with it : {workers} workers on one host | {spread(of_together)} |")
    print(f"| with it : ideal | {spread(ratios)} |", flush=True)


class Lender:
    """A service, as far as a bridge sees it."""

    def __init__(self, address: str, cache: Path) -> None:
        self.socket, theirs = socket.socketpair()
        self._cache = cache
        self.process = subprocess.Popen(
            [sys.executable, "-c", "import sys; from headstart.farm.bridge import main; main(sys.argv[1])",
             str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
        )  # fmt: skip
        theirs.close()
        self._heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()
        self.say(wire.Join(wire.FarmSettings(address)))
        self.hear(lambda message: isinstance(message, wire.FarmState) and sum(message.room.values()))
        self._digest = find_toolchain().digest({}, cache / "toolchains")
        self._tickets = 0

    def _read(self) -> None:
        for message in wire.receive_blocking(self.socket, wire.Deframer(wire.FromBridge)):
            self._heard.put(message)

    def say(self, message: Any) -> None:
        self.socket.sendall(wire.frame(message))

    def hear(self, wanted: Any) -> Any:
        while True:
            message = self._heard.get(timeout=_READY)
            if isinstance(message, wire.Unmade):
                raise RuntimeError("a node has not made a kernel")
            if wanted(message):
                return message

    def lend(self, requests: list[CompileRequest]) -> tuple[float, float]:
        """Wall seconds until all are there, and the seconds that nodes took for their compiles."""
        jobs = []
        for request in requests:
            self._tickets += 1
            digest = request.digest()
            key = keys.entry_key(self._digest, digest)
            jobs.append(wire.LentJob(self._tickets, key, self._digest, digest, wire.encode(request)))
        begun = time.monotonic()
        self.say(wire.Lend(jobs, os.fsencode(self._cache)))
        made = 0
        while made < len(jobs):
            made += len(self.hear(lambda message: isinstance(message, wire.Made)).entries)
        took = time.monotonic() - begun
        store = DiskStore(self._cache)
        entries: list[Entry | None] = [
            store.find(job.key, kind="kernel", request_digest=job.request_digest) for job in jobs
        ]
        return took, sum(entry.header.compile_wall_s for entry in entries if entry is not None)

    def close(self) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        self.process.wait(30)


def small(number: int) -> CompileRequest:
    source = (
        "import triton\nimport triton.language as tl\n\n\n@triton.jit\ndef small(x, n, BLOCK: tl.constexpr):\n"
        f"    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)\n    tl.store(x + i, i + {number}, mask=i < n)\n"
    )
    signature = {"x": "*i32", "n": "i32", "BLOCK": "constexpr"}
    return CompileRequest.make("small", source, signature=signature, constants={"BLOCK": 64}, target=TARGET)


def overhead(bench: Bench) -> None:
    print(f"\n| a bridge, {NODES} nodes with {PER_NODE} workers each | ms |")
    print("|---|---|")
    with bench.cluster(NODES, PER_NODE) as farm:
        cache = bench.folder / "lender"
        cache.mkdir(mode=0o700)
        lender = Lender(farm.address, cache)  # type: ignore[attr-defined]
        try:
            lender.lend([small(number) for number in range(4)])  # workers are there
            single = []
            for number in range(100, 130):
                took, compiling = lender.lend([small(number)])
                single.append(1000 * (took - compiling))
            print(f"| one kernel at a time, beside its compile | {spread(single)} |")
            again = [1000 * lender.lend([small(number)])[0] for number in range(100, 130)]
            print(f"| … that its node has already | {spread(again)} |")
            many = [small(number) for number in range(1000, 1000 + SMALL)]
            took, compiling = lender.lend(many)
            workers = NODES * PER_NODE
            print(f"| {SMALL} at once, a kernel, beside their compiles on {workers} workers | "
                  f"{1000 * (took - compiling / workers) / SMALL:.2f} |")  # fmt: skip
        finally:
            lender.close()


def useless(bench: Bench) -> None:
    kinds: dict[str, list[float]] = {"none": [], "no nodes": [], "refusing": [], "stopped": []}
    for _ in range(ROUNDS):
        kinds["none"].append(finish(bench.client(""))["took_s"])
        with bench.cluster(1, 1, up=False) as farm:
            kinds["no nodes"].append(finish(bench.client(farm.address))["took_s"])  # type: ignore[attr-defined]
        # Whoever asks has another toolchain than nodes: one that a variable makes another.
        with bench.cluster(NODES, PER_NODE, up=False) as farm:
            other = bench.folder / "other"
            _other_toolchain(other)
            os.environ["PYTHONPATH"] = f"{other}{os.pathsep}{os.environ['PYTHONPATH']}"
            import ray

            runtime = {"env_vars": {"PYTHONPATH": os.environ["PYTHONPATH"]}}
            ray.shutdown()
            ray.init(farm.address, namespace="headstart", runtime_env=runtime, log_to_driver=False)  # type: ignore[attr-defined]
            farm.deploy(Deployment(NodeOptions(cache_dir=f"{bench.folder}/refusing/{{node}}")))
            farm.states()
            kinds["refusing"].append(finish(bench.client(farm.address))["took_s"])  # type: ignore[attr-defined]
        with bench.cluster(NODES, PER_NODE) as farm:
            process = bench.client(farm.address, room=1, waits=1)  # type: ignore[attr-defined]
            assert process.stdout.readline() == "ready\n"
            stopped = next(each for each in psutil.process_iter() if "HeadstartNode" in " ".join(_command(each)))
            stopped.send_signal(signal.SIGSTOP)
            try:
                kinds["stopped"].append(finish(process)["took_s"])
            finally:
                stopped.send_signal(signal.SIGCONT)
    print(f"\n| 48 configurations on {HOST} cores | seconds | : none |")
    print("|---|---|---|")
    for name, took in kinds.items():
        ratios = [one / other for one, other in zip(took, kinds["none"], strict=True)]
        print(f"| {name} | {spread(took)} | {spread(ratios)} |", flush=True)


def _other_toolchain(folder: Path) -> None:
    """A Triton that is another one by a comment."""
    import shutil

    if not folder.exists():
        triton = Path(find_toolchain().triton_dir)
        shutil.copytree(triton, folder / "triton", symlinks=True)
        with (folder / "triton" / "__init__.py").open("a", encoding="utf-8") as file:
            file.write("# another one\n")


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def clients(bench: Bench) -> None:
    print("\n| 4 nodes, 8 clients, the same 48 kernels | compiled here | made there | s |")
    print("|---|---|---|---|")
    with contextlib.ExitStack() as stack:
        _clients(bench, "of one host", of_one_host=True)
        _clients(bench, "of 8 hosts")
        if network.servers.program("redis"):
            folder = bench.folder / "redis"
            folder.mkdir(mode=0o700)
            redis = stack.enter_context(network.servers.running(network.servers.started("redis", folder)))
            _clients(bench, "of 8 hosts, with claims", remote=f"redis://{redis.address}/0?claims&trust=all")
            _clients(bench, "of 8 hosts without a farm, with claims", farm=False,
                     remote=f"redis://{redis.address}/1?claims&trust=all")  # fmt: skip


def crossover(bench: Bench) -> None:
    print(f"\n| configurations, {HOST} here and {NODES} × {PER_NODE} on nodes | alone, s | farm : alone | made there | "
          "from nothing, alone, s | farm : alone | made there |")  # fmt: skip
    print("|---|---|---|---|---|---|---|")
    for many in (2, 4, 8, 16, 48):
        cells = [str(many)]
        for warm in (1, 0):
            alone, ratios, there = [], [], []
            for _ in range(ROUNDS):
                alone.append(finish(bench.client("", many=many, warm=warm))["took_s"])
                with bench.cluster(NODES, PER_NODE) as farm:
                    said = finish(bench.client(farm.address, room=warm, many=many, warm=warm))  # type: ignore[attr-defined]
                ratios.append(said["took_s"] / alone[-1])
                there.append(said["farm"])
            cells += [spread(alone), spread(ratios), f"{statistics.median(there):g}"]
        print(f"| {' | '.join(cells)} |", flush=True)


def _clients(bench: Bench, name: str, *, of_one_host: bool = False, farm: bool = True, remote: str = "") -> None:
    with bench.cluster(4, 1) as cluster:
        shared: dict[str, Any] = {}
        if of_one_host:
            shared = {"run": bench.folder / "clients", "cache": bench.folder / "clients-cache"}
        address = cluster.address if farm else ""  # type: ignore[attr-defined]
        processes = [bench.client(address, room=int(farm), remote=remote, **shared) for _ in range(8)]
        said = [finish(process) for process in processes]
        nodes = sum(0 if isinstance(each, str) else each.compiled for each in cluster.states().values())
    compiled = max(each["compiled"] for each in said) if of_one_host else sum(each["compiled"] for each in said)
    print(f"| {name} | {compiled} | {nodes} | {max(each['took_s'] for each in said):.2f} |", flush=True)


def main() -> None:
    for name, value in machine.describe().items():
        print(f"{name}: {value}")
    import ray

    print(f"Ray: {ray.__version__}")
    with tempfile.TemporaryDirectory(prefix="headstart-bench-") as folder:
        bench = Bench(Path(folder))
        print(f"cores: {'each set its own' if bench.separate else 'shared by host and nodes, too few for more'}")
        parts = {"sweep": sweep, "overhead": overhead, "useless": useless, "clients": clients, "crossover": crossover}
        for part in sys.argv[1:] or parts:
            parts[part](bench)


if __name__ == "__main__":
    main()
