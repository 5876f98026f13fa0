"""A Ray cluster of several raylets on this machine, for the tests: a process of its own that is told what to do.

It is nobody's child, so that what Ray starts and ends by itself does not count as left behind by a test. It speaks
JSON, a line each way, and ends, with the cluster, when its standard input does.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from typing import Any


class Told:
    """What can be asked for, each a method."""

    def __init__(self, cache: str, nodes: int) -> None:
        from ray.cluster_utils import Cluster

        from headstart.farm.ray_cluster import RayCluster

        self._cache = cache
        self._cluster: Any = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}, connect=False
        )
        self._nodes = [self._cluster.add_node(num_cpus=1) for _ in range(nodes)]
        self._cluster.wait_for_nodes()
        self.farm = RayCluster(self._cluster.address)
        self.farm.join()

    def address(self) -> str:
        return str(self._cluster.address)

    def up_trusting(self) -> list[str]:
        """Nodes whose workers are not confined: what they compile may leave marks."""
        return self.up(trusts=True)

    def up(self, *, trusts: bool = False) -> list[str]:
        from headstart.farm.ray_cluster import Deployment
        from headstart.wire.farm import NodeOptions

        deployment = Deployment(NodeOptions(cache_dir=f"{self._cache}/{{node}}", trusts=trusts))
        self.farm.deploy(deployment)
        self.farm.keep(deployment)
        return sorted(self.states())

    def down(self) -> list[str]:
        return self.farm.take_down()

    def states(self) -> dict[str, Any]:
        import msgspec

        found = self.farm.states()
        return {name: each if isinstance(each, str) else msgspec.to_builtins(each) for name, each in found.items()}

    def add_node(self) -> None:
        self._nodes.append(self._cluster.add_node(num_cpus=1))
        self._cluster.wait_for_nodes()

    def remove_node(self) -> None:
        """Without a farewell."""
        self._cluster.remove_node(self._nodes.pop(), allow_graceful=False)

    def kill_head(self) -> None:
        """What knows of all nodes and actors."""
        self._cluster.head_node.kill_gcs_server(check_alive=False)

    def end(self) -> None:
        import ray

        with contextlib.suppress(Exception):
            self.farm.take_down()
        ray.shutdown()
        self._cluster.shutdown()


def main() -> None:
    if os.fork():
        os._exit(0)
    os.setsid()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what Ray prints is no answer
    told = Told(sys.argv[1], int(sys.argv[2]))
    try:
        print(json.dumps({"said": told.address()}), file=out, flush=True)
        for line in sys.stdin:
            try:
                said = {"said": getattr(told, line.strip())()}
            except Exception as error:  # noqa: BLE001 - the test is told
                said = {"error": repr(error)}
            print(json.dumps(said), file=out, flush=True)
    finally:
        told.end()


if __name__ == "__main__":
    main()
