"""The farm of a run, and what is done to it: a Ray cluster of two raylets on this machine.

Its processes (tests/farm/cluster_process.py) have a runtime folder of their own: what Ray starts and ends by itself is
not a client's. Nodes are trusting, since these kernels leave marks. A cluster that has lost its head is of no use:
another one takes its place at the next round.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from chaos.faults import LONGEST_PAUSE, Fault
from chaos.world import World, is_worker, runs


class Farm:
    """One cluster at a time.

    Attributes:
        made: kernels that nodes have made.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._clusters = 0
        self._cluster: Any = None
        self._before = 0
        self._away = False
        self._headless = False
        self.made = 0

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def begin(self) -> None:
        """A round comes: there is a cluster, with a farm on it."""
        from test_farm import Cluster

        if self._headless:
            self._cluster.kill()
            self._cluster = None
        if self._cluster is None:
            self._clusters += 1
            folder = self._folder / f"cluster{self._clusters}"
            folder.mkdir(parents=True, mode=0o700)
            self._cluster = Cluster(folder, trusting=True)
            self._headless = self._away = False
        self._before = self._compiled()

    def end(self) -> None:
        """A round is over, and nothing is stopped any more."""
        if self._cluster is not None and not self._headless:
            self.made += max(0, self._compiled() - self._before)

    def close(self) -> None:
        """After the last round."""
        if self._cluster is not None:
            self._cluster.kill() if self._headless else self._cluster.close()

    def actors(self) -> list[psutil.Process]:
        return [] if self._cluster is None else self._cluster.actors()

    def processes(self, module: str) -> list[psutil.Process]:
        """On nodes."""
        return [] if self._cluster is None else [each for each in self._cluster.compilers() if runs(each, module)]

    def entries(self) -> list[Path]:
        """In the stores of nodes."""
        return sorted(self._folder.glob("cluster*/nodes/*/store/v2/??/*.hse"))

    def lose_node(self) -> bool:
        """One goes without a farewell. Returns whether there was one."""
        if self._cluster is None or self._headless or self._away:
            return False
        self._away = True
        self._cluster.tell("remove_node")
        return True

    def gain_node(self) -> None:
        """Another one comes."""
        if not self._headless:
            self._cluster.tell("add_node")
            self._away = False

    def lose_head(self) -> bool:
        """Nothing knows any more who is where. Returns whether there was a head."""
        if self._cluster is None or self._headless:
            return False
        self._headless = True
        self._cluster.tell("kill_head")
        return True

    def _compiled(self) -> int:
        states = self._cluster.tell("states").values()
        return sum(0 if isinstance(each, str) else each["compiled"] for each in states)


@contextlib.contextmanager
def running(world: World) -> Iterator[None]:
    """Have a farm, as `world.farm`."""
    world.farm = Farm(world.folder / "farm")
    try:
        yield
    finally:
        world.farm.close()


# In this process's own hands: each is undone by `World.later`, or by Ray, which starts actors again.


def kill_actor(world: World) -> str | None:
    return _kill(world, _farm(world).actors())


def stop_actor(world: World) -> str | None:
    """A node answers nothing for a while: to its bridges the connection is half open."""
    return _stop(world, _farm(world).actors())


def kill_node_service(world: World) -> str | None:
    return _kill(world, _farm(world).processes("headstart.service.server"))


def kill_node_worker(world: World) -> str | None:
    """As one that takes too much memory is, by the kernel."""
    return _kill(world, [each for each in _farm(world).processes("headstart.worker.zygote") if is_worker(each)])


def damage_node_entry(world: World) -> str | None:
    """A byte in a node's store is another one."""
    entries = _farm(world).entries()
    if not entries:
        return None
    path = world.random.choice(entries)
    try:
        data = bytearray(path.read_bytes())
        data[world.random.randrange(len(data))] ^= 0xFF
        path.write_bytes(data)
    except OSError:
        return None  # it is gone
    return path.name[:8]


def lose_node(world: World) -> str | None:
    """A node is gone; another one comes after a while."""
    farm = _farm(world)
    if not farm.lose_node():
        return None
    world.later(world.random.uniform(0.1, LONGEST_PAUSE), farm.gain_node)
    return "one"


def lose_head(world: World) -> str | None:
    return "for the rest of the round" if _farm(world).lose_head() else None


def kill_bridge(world: World) -> str | None:
    return _kill(world, [each for each in world.processes() if runs(each, "headstart.farm.bridge")])


def stop_bridge(world: World) -> str | None:
    return _stop(world, [each for each in world.processes() if runs(each, "headstart.farm.bridge")])


def _farm(world: World) -> Farm:
    assert world.farm is not None
    return world.farm


def _kill(world: World, candidates: list[psutil.Process]) -> str | None:
    if not candidates:
        return None
    process = world.random.choice(candidates)
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGKILL)
    return f"process {process.pid}"


def _stop(world: World, candidates: list[psutil.Process]) -> str | None:
    if not candidates:
        return None
    process = world.random.choice(candidates)
    with contextlib.suppress(psutil.NoSuchProcess):
        world.pause(process, world.random.uniform(0.1, LONGEST_PAUSE))
    return f"process {process.pid}"


# The rarest take tens of seconds each: a node to go and come, a cluster to be started.
FAULTS: dict[Fault, float] = {
    kill_actor: 2,
    stop_actor: 2,
    kill_node_service: 2,
    kill_node_worker: 4,
    damage_node_entry: 4,
    lose_node: 0.5,
    lose_head: 0.1,
    kill_bridge: 2,
    stop_bridge: 2,
}
