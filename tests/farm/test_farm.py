"""A farm on a real Ray cluster: what it makes, and that nothing that happens to it costs a program a kernel."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

import headstart
from conftest import client_environment, descendants, kill, wait_until
from headstart import wire
from headstart.client import control
from headstart.system.settings import Settings
from kernels import matmul

ray = pytest.importorskip("ray")

pytestmark = [pytest.mark.farm, pytest.mark.triton, pytest.mark.timeout(180)]

STARTING = 90.0  # seconds: raylets start one after another, on machines that do other work
NODES = 2


class Cluster:
    """See `cluster_process.py`."""

    def __init__(self, folder: Path, nodes: int = NODES, *, trusting: bool = False) -> None:
        self.runtime = folder / "run"
        self.runtime.mkdir(mode=0o700)
        self._log = (folder / "log").open("w+")
        variables = {name: value for name, value in os.environ.items() if not name.startswith(("HEADSTART", "RAY_"))}
        variables |= {
            **client_environment(),
            "XDG_RUNTIME_DIR": str(self.runtime),
            "HEADSTART_CACHE_DIR": str(folder / "unused"),
            "HEADSTART_CONFIG_DIR": str(folder / "config"),
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        }
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "cluster_process.py"), str(folder / "nodes"), str(nodes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=variables,
        )
        self.address = self._hear()
        self.tell("up_trusting" if trusting else "up")

    def _hear(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise AssertionError(self._log.read()[-4000:])
        said = json.loads(line)
        assert "error" not in said, said
        return said["said"]

    def tell(self, what: str) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        return self._hear()

    def actors(self) -> list[psutil.Process]:
        """The processes of the actors on nodes."""
        return [each for each in self.processes() if "HeadstartNode" in name_of(each)]

    def processes(self) -> list[psutil.Process]:
        return descendants(self.runtime)

    def compilers(self) -> list[psutil.Process]:
        """Services, zygotes and workers on nodes."""
        return [each for each in self.processes() if "headstart." in " ".join(command_of(each))]

    def kill(self) -> None:
        """When there is nobody any more who could end it."""
        self.process.stdin.close()  # type: ignore[union-attr]
        for each in self.processes():
            kill(each)
        self.process.wait(10)
        self.process.stdout.close()  # type: ignore[union-attr]
        self._log.close()

    def close(self) -> None:
        self.process.stdin.close()  # type: ignore[union-attr]
        wait_until(lambda: not self.processes(), STARTING)
        self.process.wait(10)
        self.process.stdout.close()  # type: ignore[union-attr]
        self._log.close()


def name_of(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def command_of(process: psutil.Process) -> list[str]:
    with suppress(psutil.Error):
        return process.cmdline()
    return []


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("farm")
    folder.chmod(0o700)
    made = Cluster(folder)
    yield made
    made.close()


Host = Callable[[], headstart.AsyncCompile]


@pytest.fixture
def host(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """Makes clients on hosts of their own, each with one worker; the farm is there, and has room, when it returns."""
    monkeypatch.setenv("HEADSTART_SERVICE", "shared")
    monkeypatch.setenv("HEADSTART_FARM", cluster.address)
    opened: list[headstart.AsyncCompile] = []

    def make() -> headstart.AsyncCompile:
        wait_until(lambda: all(not isinstance(each, str) for each in cluster.tell("states").values()), STARTING)
        made = headstart.AsyncCompile("cuda:90", workers=1, cache_dir=tmp_path / f"host{len(opened)}")
        opened.append(made)
        wait_until(lambda: sum(report().state.room.values()) > 0, STARTING)
        return made

    yield make
    for each in opened:
        each.close()


def full_report() -> wire.Report:
    reports = control.reports(Settings.load())
    if not reports:
        return wire.Report(0, 0, 0, False, False, 0, 0, 0, [0, 0, 0], 0, 0, 0, 0, 0, [], [])
    ((_, found),) = reports
    return found


def report() -> wire.FarmReport:
    """Of the one farm of the one service."""
    farms = full_report().farms
    return farms[0] if farms else wire.FarmReport("")


def sweep(seed: int, many: int = 12) -> list[dict[str, Any]]:
    """Kernels that no other test has asked for."""
    made = []
    for number in range(many):
        kernel = matmul(32, 32, 32, num_warps=2 + 2 * (number % 2))
        kernel["source"] = kernel["source"].replace("K, M:", f"K, s{seed}n{number}, M:")
        kernel["signature"] = {**kernel["signature"], f"s{seed}n{number}": "i32"}
        made.append(kernel)
    return made


def finish(futures: list[Any], seconds: float = 120.0) -> None:
    for future in futures:
        kernel = future.result(seconds)
        assert kernel.asm["cubin"]
        assert kernel.metadata.name == "matmul"


def test_kernels_are_made_on_nodes_and_here_and_each_once(host: Host) -> None:
    compiler = host()
    finish([compiler.triton(**each) for each in sweep(1)])
    found = full_report()
    assert found.farm > 0
    assert found.compiled > 0
    assert found.farm + found.compiled == 12
    assert found.failed == 0
    assert {node.refused for node in found.farms[0].state.nodes} == {""}


def test_what_a_farm_makes_has_the_artifacts_that_a_confined_worker_here_makes(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = sweep(2)
    compiler = host()
    futures = [compiler.triton(**each) for each in kernels]
    finish(futures)
    assert full_report().farm > 0
    monkeypatch.setenv("HEADSTART_FARM", "off")
    monkeypatch.setenv("HEADSTART_SERVICE", "private")
    with headstart.AsyncCompile("cuda:90", workers=2, cache_dir=tmp_path / "alone", vouched=False) as alone:
        for kernel, future in zip(kernels, futures, strict=True):
            ours = alone.triton(**kernel, filename="matmul.py").result(60)
            assert {name: ours.asm[name] for name in ("ptx", "cubin")} == {
                name: future.result().asm[name] for name in ("ptx", "cubin")
            }


def test_another_host_gets_what_nodes_have_made_without_a_compile(host: Host, cluster: Cluster) -> None:
    kernels = sweep(3, 6)
    first = host()
    finish([first.triton(**each) for each in kernels])
    first.close()
    before = {name: state["compiled"] for name, state in cluster.tell("states").items()}
    assert sum(before.values()) > 0
    second = host()
    finish([second.triton(**each) for each in kernels])
    assert full_report().failed == 0


@pytest.mark.parametrize("victim", ["actor", "service", "stopped actor"])
def test_whatever_dies_or_stops_on_a_node_no_kernel_is_lost(host: Host, cluster: Cluster, victim: str) -> None:
    compiler = host()
    futures = [compiler.triton(**each) for each in sweep(10 + len(victim))]
    wait_until(lambda: report().out > 0)
    stopped = None
    if victim == "actor":
        kill(wait_until(cluster.actors)[0])
    elif victim == "service":
        services = [each for each in cluster.compilers() if "headstart.service.server" in command_of(each)]
        kill(services[0])
    else:
        stopped = wait_until(cluster.actors)[0]
        stopped.send_signal(signal.SIGSTOP)
    try:
        finish(futures)
    finally:
        if stopped is not None:
            stopped.send_signal(signal.SIGCONT)
    assert full_report().failed == 0


def test_a_bridge_that_is_killed_costs_a_retry(host: Host, runtime_folder: Path) -> None:
    compiler = host()
    futures = [compiler.triton(**each) for each in sweep(30)]
    wait_until(lambda: report().out > 0)
    bridges = [each for each in descendants(runtime_folder) if "headstart.farm.bridge" in command_of(each)]
    assert bridges
    for each in bridges:
        kill(each)
    finish(futures)
    assert full_report().failed == 0


def test_a_program_that_ends_leaves_nothing_going_on_on_any_node(host: Host, cluster: Cluster) -> None:
    compiler = host()
    for each in sweep(40, 30):
        compiler.triton(**each)
    wait_until(lambda: report().out > 0)
    compiler.close()

    def is_idle() -> bool:
        states = cluster.tell("states")
        return all(not state["running"] and not state["queued"] for state in states.values())

    wait_until(is_idle)


def test_nodes_that_come_and_go_are_used_and_cost_no_kernel(host: Host, cluster: Cluster) -> None:
    compiler = host()
    cluster.tell("add_node")
    wait_until(lambda: len([node for node in report().state.nodes if not node.refused]) == NODES + 1, STARTING)
    futures = [compiler.triton(**each) for each in sweep(50)]
    wait_until(lambda: report().out > 0)
    cluster.tell("remove_node")
    finish(futures)
    assert full_report().failed == 0


def test_down_leaves_nothing_on_any_node_and_up_starts_again(cluster: Cluster, host: Host) -> None:
    host().close()
    assert cluster.compilers()
    assert len(cluster.tell("down")) >= NODES
    wait_until(lambda: not cluster.compilers() and not cluster.actors())
    assert len(cluster.tell("up")) == NODES


def test_a_job_that_names_no_address_needs_no_farm_and_leaves_none(
    cluster: Cluster, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.tell("down")
    monkeypatch.setenv("HEADSTART_FARM", "ray")
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    compiler = host()
    finish([compiler.triton(**each) for each in sweep(60)])
    assert full_report().farm > 0
    compiler.close()
    wait_until(lambda: not cluster.actors() and not cluster.compilers())
    cluster.tell("up")


def test_the_command_shows_the_nodes(cluster: Cluster) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "headstart", "farm", "status", "--address", cluster.address],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **client_environment()},
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= NODES
    assert all(line.startswith("headstart-farm-") for line in done.stdout.splitlines() if not line.startswith("  "))


def test_a_head_that_dies_costs_what_is_out(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("headless")
    folder.chmod(0o700)
    cluster = Cluster(folder, nodes=1)
    try:
        monkeypatch.setenv("HEADSTART_SERVICE", "shared")
        monkeypatch.setenv("HEADSTART_FARM", cluster.address)
        with headstart.AsyncCompile("cuda:90", workers=1, cache_dir=tmp_path / "host") as compiler:
            wait_until(lambda: sum(report().state.room.values()) > 0, STARTING)
            futures = [compiler.triton(**each) for each in sweep(70)]
            wait_until(lambda: report().out > 0)
            cluster.tell("kill_head")
            finish(futures)
            assert full_report().failed == 0
    finally:
        cluster.kill()
