"""A node as it runs on a cluster, in a thread of this process and without Ray."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from pathlib import Path

from headstart.farm.attending import FarmError
from headstart.farm.node import Node
from headstart.wire.farm import NodeOptions, pack


class RealNode:
    """See `headstart.farm.node.Node`."""

    def __init__(self, cache: Path, *, workers: int = 2, trusts: bool = False) -> None:
        before = dict(os.environ)
        self.node = Node(pack(NodeOptions(workers, str(cache), trusts)), "node", workers)
        os.environ.clear()
        os.environ.update(before)
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def exchange(self, data: bytes) -> concurrent.futures.Future[bytes]:
        return asyncio.run_coroutine_threadsafe(self.node.exchange(data), self.loop)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self.node.leave(), self.loop).result(30)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(30)
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()


class OneNode:
    """A cluster of it: `headstart.farm.attending.Cluster`."""

    def __init__(self, node: RealNode) -> None:
        self._node = node

    def join(self) -> None:
        pass

    def nodes(self) -> list[str]:
        return ["node"]

    def bring_up(self) -> bool:
        return False

    def exchange(self, name: str, data: bytes) -> concurrent.futures.Future[bytes]:
        if name != "node":
            raise FarmError("it is gone")
        return self._node.exchange(data)

    def leave(self) -> None:
        pass
