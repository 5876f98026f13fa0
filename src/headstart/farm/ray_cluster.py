"""All of the farm that is Ray's: the only module that imports it.

    headstart farm up ─▶ deploy: one named, detached actor a node ──┐
                      └▶ HeadstartKeeper, an actor that does so again for nodes that come    ├─ namespace "headstart"
    bridge ─▶ RayCluster: finds them by name, calls them ───────────┘

Used is what Ray documents: `init`, `nodes`, named actors, `NodeAffinitySchedulingStrategy`, `util.list_named_actors`.
Ray restarts an actor that dies (`MAX_RESTARTS`), calls it again (`MAX_TASK_RETRIES`), and says when its node is gone.
"""

from __future__ import annotations

import concurrent.futures
import os
import re
import socket
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec

from headstart.errors import ServiceError
from headstart.farm import own_cluster
from headstart.farm.attending import STARTING, ConnectionLost, FarmError
from headstart.farm.node import Node
from headstart.wire.farm import MAX_SAID, MAX_TEXT, Exchange, Exchanged, NodeOptions, NodeState, pack, unpack

NAMESPACE = "headstart"
PREFIX = "headstart-farm-"
KEEPER = "headstart-farm"
OWN = "ray"  # the address of the cluster that this host, or this job, belongs to
MAX_RESTARTS = 10
MAX_TASK_RETRIES = 2  # of one call; it may be repeated, since nodes know what they have
CONNECTING = 5.0  # seconds
LOOK = 10.0  # seconds between two looks of the keeper's for nodes that have come
LEAVING = 10.0  # seconds that a node may take to end its service

INSTALL = "Ray is not installed here: pip install 'headstart[ray]'"


class Deployment(msgspec.Struct, frozen=True):
    """What `headstart farm up` asks for.

    Attributes:
        options: of each node's actor.
        labels: of the nodes that are to have one; empty: all.
        cpus: that an actor takes from Ray's other work; 0: none, it runs beside it.
        resources: that it takes besides.
    """

    options: NodeOptions = NodeOptions()
    labels: dict[str, str] = {}
    cpus: float = 0.0
    resources: dict[str, float] = {}


def _ray() -> Any:
    """Ray, imported where it is used. Raises FarmError: it is not there."""
    # Without a connection Ray calls `ray.init()` by itself, in most of its functions: a whole cluster on this host. It
    # reads this as it is imported (`ray/_private/auto_init_hook.py`).
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
    try:
        import ray
    except ImportError as error:
        raise FarmError(INSTALL if error.name == "ray" else f"Ray cannot be imported: {error}") from None
    return ray


@contextmanager
def _as_farm_errors() -> Iterator[None]:
    """What Ray raises, of which there is no common base, as one kind of error."""
    try:
        yield
    except FarmError:
        raise
    except Exception as error:  # noqa: BLE001 - the one boundary to Ray
        raise FarmError(_said(error)) from None


def _check_reachable(address: str) -> None:
    """Ray itself tries for ten minutes. Raises FarmError: nobody listens there."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not (separator and port.isdecimal()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECTING).close()
    except OSError as error:
        raise FarmError(f"nobody listens at {address}: {error.strerror or error}") from None


def _said(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:MAX_TEXT]  # a node may have raised it


class RayCluster:
    """A cluster, as a bridge sees it: `attending.Cluster`.

    Args:
        address: `"ray"`, or as `ray.init` takes it.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._actors: dict[str, Any] = {}
        self._own: dict[str, Any] = {}  # those that were started here, and end with this process

    def join(self) -> None:
        """Become a driver of the cluster. Raises FarmError."""
        ray = _ray()
        with _as_farm_errors():
            if not ray.is_initialized():
                address = own_cluster.find(os.environ) if self._address == OWN else self._address
                _check_reachable(address)
                ray.init(
                    address=address,
                    namespace=NAMESPACE,
                    log_to_driver=False,
                    configure_logging=False,
                )

    def nodes(self) -> list[str]:
        """Names of the actors on nodes. Raises FarmError; ConnectionLost."""
        ray = _ray()
        if not ray.is_initialized():
            raise ConnectionLost("the connection to the cluster is lost")
        with _as_farm_errors():
            named = ray.util.list_named_actors(all_namespaces=True)
            found = {
                each["name"] for each in named if each["namespace"] == NAMESPACE and each["name"].startswith(PREFIX)
            }
            for name in self._actors.keys() - found:
                del self._actors[name]
            for name in found - self._actors.keys():
                try:
                    self._actors[name] = ray.get_actor(name, namespace=NAMESPACE)
                except ValueError:
                    continue  # it has gone meanwhile
        return sorted(self._actors)

    def bring_up(self) -> bool:
        """Have actors on nodes that end with this process, if that is what the address means. Raises FarmError.

        A job that has said `HEADSTART_FARM=ray`, and for which nobody has run `headstart farm up`, needs nothing else.
        """
        if self._address != OWN:
            return False
        there = self.nodes()
        with _as_farm_errors():
            # An actor ends with the handle that it was made with: one that is there must not be asked for again.
            self._own |= _deploy(_ray(), Deployment(), lifetime=None, but=there)
        return bool(self._own)

    def exchange(self, name: str, data: bytes) -> concurrent.futures.Future[bytes]:
        """Call an actor. The future, or the call, raises FarmError."""
        actor = self._actors.get(name)
        if actor is None:
            raise FarmError("it is gone")
        answer: concurrent.futures.Future[bytes] = concurrent.futures.Future()

        def done(of_ray: concurrent.futures.Future[Any]) -> None:
            if answer.cancelled():
                return
            error = of_ray.exception()
            if error is not None:
                answer.set_exception(FarmError(_said(error)))
            elif not isinstance(of_ray.result(), bytes):
                answer.set_exception(FarmError("what it says is no message"))
            else:
                answer.set_result(of_ray.result())

        with _as_farm_errors():
            actor.exchange.remote(data).future().add_done_callback(done)
        return answer

    def leave(self) -> None:
        """End the connection."""
        _ray().shutdown()

    # For `headstart farm`

    def deploy(self, deployment: Deployment) -> list[str]:
        """Have an actor on each node that has none. Returns the names of all."""
        with _as_farm_errors():
            return sorted(_deploy(_ray(), deployment))

    def keep(self, deployment: Deployment) -> None:
        """Have an actor see to nodes that come later, in the place of one that does so already."""
        ray = _ray()
        with _as_farm_errors():
            self._kill(KEEPER)
            ray.remote(HeadstartKeeper).options(
                name=KEEPER,
                namespace=NAMESPACE,
                lifetime="detached",
                num_cpus=0,
                max_restarts=-1,
                max_concurrency=2,
            ).remote(msgspec.msgpack.encode(deployment))

    def states(self) -> dict[str, NodeState | str]:
        """How the nodes are; a text says why that of one cannot be told."""
        asked = {name: self.exchange(name, pack(Exchange(f"status-{os.getpid()}"))) for name in self.nodes()}
        deadline = time.monotonic() + STARTING
        found: dict[str, NodeState | str] = {}
        for name, answer in asked.items():
            try:
                data = answer.result(max(0.0, deadline - time.monotonic()))
                found[name] = unpack(data, Exchanged, MAX_SAID).state
            except (FarmError, ValueError) as error:
                found[name] = str(error)
            except concurrent.futures.TimeoutError:
                found[name] = "it does not answer"
        return found

    def take_down(self) -> list[str]:
        """End every actor of the farm's. Returns the names of those on nodes."""
        ray = _ray()
        with _as_farm_errors():
            self._kill(KEEPER)  # first: it starts actors for nodes that come
        ended: list[str] = []
        while names := [name for name in self.nodes() if name not in ended]:  # it may have been about to start one
            with _as_farm_errors():
                leaving = [self._actors[name].leave.remote() for name in names]
                ray.wait(leaving, num_returns=len(leaving), timeout=LEAVING)
                for name in names:
                    self._kill(name)
            ended += names
        return sorted(ended)

    @staticmethod
    def _kill(name: str) -> None:
        ray = _ray()
        try:
            ray.kill(ray.get_actor(name, namespace=NAMESPACE), no_restart=True)
        except ValueError:
            return  # there is none


class HeadstartNode(Node):
    """As it is called where Ray shows actors and processes."""


class HeadstartKeeper:
    """An actor that has nodes that come later join the farm."""

    def __init__(self, deployment: bytes) -> None:
        self._deployment = msgspec.msgpack.decode(deployment, type=Deployment)
        import threading

        threading.Thread(target=self._keep, daemon=True).start()

    def _keep(self) -> None:
        ray = _ray()
        while True:
            try:
                _deploy(ray, self._deployment)
            except Exception as error:  # noqa: BLE001 - what fails now may not the next time
                print(f"headstart: {_said(error)}")  # where Ray shows what an actor says
            time.sleep(LOOK)


def _deploy(
    ray: Any, deployment: Deployment, *, lifetime: str | None = "detached", but: Collection[str] = ()
) -> dict[str, Any]:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    found: dict[str, Any] = {}
    for node in ray.nodes():
        # One without CPUs is a head that is kept free.
        cpus = int(deployment.cpus or node["Resources"].get("CPU", 0))
        if not node["Alive"] or not node["Resources"].get("CPU") or not _has(node.get("Labels"), deployment.labels):
            continue
        name = node_name(node["NodeManagerHostname"], node["NodeID"])
        if name in but:
            continue
        found[name] = (
            ray.remote(HeadstartNode)
            .options(
                name=name,
                namespace=NAMESPACE,
                lifetime=lifetime,
                get_if_exists=True,
                num_cpus=deployment.cpus,
                resources=deployment.resources or None,
                max_restarts=MAX_RESTARTS,
                max_task_retries=MAX_TASK_RETRIES,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            )
            .remote(pack(deployment.options), name, cpus)
        )
    return found


def _has(labels: Mapping[str, str] | None, wanted: Mapping[str, str]) -> bool:
    return all((labels or {}).get(name) == value for name, value in wanted.items())


def node_name(host: str, node: str) -> str:
    """Of the actor on a node: people read it, and it is a folder's."""
    return f"{PREFIX}{re.sub(r'[^A-Za-z0-9.]+', '-', host)[:40]}-{node[:8]}"


def open_cluster(address: str) -> RayCluster:
    """A cluster, joined, for a command.

    Raises:
        ServiceError: it cannot be.
    """
    cluster = RayCluster(address or OWN)
    try:
        cluster.join()
    except FarmError as error:
        raise ServiceError(str(error)) from None
    return cluster
