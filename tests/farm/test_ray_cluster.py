"""What this package has of Ray, with no cluster at all."""

from __future__ import annotations

import concurrent.futures
import subprocess
import sys
import types
from unittest.mock import Mock

import pytest

from headstart.farm import own_cluster, ray_cluster
from headstart.farm.attending import ConnectionLost, FarmError
from headstart.farm.ray_cluster import KEEPER, RayCluster
from headstart.wire.farm import MAX_TEXT

pytestmark = pytest.mark.timeout(60)


def test_ray_starts_no_cluster_by_itself() -> None:
    pytest.importorskip("ray")
    text = (
        "from headstart.farm import ray_cluster; ray_cluster._ray(); "
        "from ray._private import auto_init_hook; print(auto_init_hook.enable_auto_connect)"
    )
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60)
    assert done.stdout == "False\n", done.stderr


def test_the_cluster_of_this_host_is_not_left_to_ray_to_find(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ENABLE_AUTO_CONNECT", "0")  # have it put back
    told: list[str] = []
    monkeypatch.setattr(ray, "init", lambda address, **_: told.append(address))
    monkeypatch.setattr(own_cluster, "find", lambda environment: "ray://127.0.0.1")
    RayCluster("ray").join()
    assert told == ["ray://127.0.0.1"]


def test_what_a_node_raises_is_told_of_in_a_line() -> None:
    class Raising:
        def remote(self, data: bytes) -> concurrent.futures.Future[bytes]:
            raise ValueError("k" * 100_000 + "\n" + "l")

    cluster = RayCluster("127.0.0.1:1")
    cluster._actors["a"] = types.SimpleNamespace(exchange=Raising())
    with pytest.raises(FarmError) as raised:
        cluster.exchange("a", b"")
    assert str(raised.value) == ("ValueError: " + "k" * MAX_TEXT)[:MAX_TEXT]


def test_the_keeper_ends_before_it_is_looked_whom_it_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    started, killed = ["a"], list[str]()

    class Farm(RayCluster):
        """Its keeper starts an actor after each look as long as it lives, and one more that it was about to start."""

        def nodes(self) -> list[str]:
            if len(killed) == 2:
                started.append("late")
            found = [name for name in started if name not in killed]
            self._actors |= {name: Mock() for name in found}
            if KEEPER not in killed:
                started.append(f"node{len(started)}")
            return found

        def _kill(self, name: str) -> None:  # type: ignore[override]
            killed.append(name)

    monkeypatch.setattr(ray_cluster, "_ray", Mock)
    assert Farm("127.0.0.1:1").take_down() == ["a", "late"]
    assert killed == [KEEPER, *started]


def test_without_a_connection_there_are_no_nodes_to_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ENABLE_AUTO_CONNECT", "0")  # have it put back
    with pytest.raises(ConnectionLost):
        RayCluster("127.0.0.1:1").nodes()
