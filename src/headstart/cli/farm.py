"""`headstart farm`: the machines of a Ray cluster that compile for others."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from headstart.cli import Failure, count, json_line, printable
from headstart.errors import UsageError
from headstart.system.configuration import lookup
from headstart.system.settings import parse_farm

# Ray takes these by arguments of their own, and refuses them among resources.
_RAYS_OWN = ("CPU", "GPU", "memory", "object_store_memory")

if TYPE_CHECKING:
    from headstart.farm.ray_cluster import RayCluster
    from headstart.wire.farm import NodeState


@click.group(short_help="Have the machines of a Ray cluster compile.")
def farm() -> None:
    """Have the machines of a Ray cluster compile, for programs that have HEADSTART_FARM set. See docs/farm.md."""


def _address(command: Callable[..., None]) -> Callable[..., None]:
    return click.option(
        "--address",
        default="",
        metavar="ADDRESS",
        help="Of the cluster, as host:6379 or ray://head:10001. Default: HEADSTART_FARM, or the cluster that this host "
        "or job belongs to.",
    )(command)


def _pairs(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    found = {}
    for value in values:
        name, separator, text = value.partition("=")
        if not (name and separator):
            raise click.BadParameter(f"expected name=value, got {value!r}", ctx, param)
        found[name] = text
    return found


def _amounts(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> dict[str, float]:
    found = {}
    for name, text in _pairs(ctx, param, values).items():
        if name in _RAYS_OWN:
            raise click.BadParameter(f"{name} is none of Ray's custom resources", ctx, param)
        try:
            found[name] = _amount(ctx, param, float(text))
        except ValueError:
            raise click.BadParameter(f"expected name=number, got {name}={text!r}", ctx, param) from None
    return found


def _amount(ctx: click.Context, param: click.Parameter, value: float) -> float:
    if not 0 <= value < math.inf:  # which a range of click's does not see of nan
        raise click.BadParameter(f"expected a number of at least 0, got {value}", ctx, param)
    if value > 1 and value % 1:
        raise click.BadParameter(f"Ray gives parts of one, or whole ones, and not {value}", ctx, param)
    return value


@farm.command(short_help="Start an actor on each node.")
@_address
@click.option(
    "--per-node-workers",
    "workers",
    type=click.IntRange(1, 1024),
    metavar="N",
    help="Compiles that a node runs at once. Default: as many as it has CPUs.",
)
@click.option("--label", "labels", multiple=True, callback=_pairs, metavar="KEY=VALUE", help="Only nodes with it.")
@click.option(
    "--num-cpus",
    "cpus",
    type=float,
    callback=_amount,
    default=0.0,
    metavar="N",
    help="CPUs that an actor takes from Ray's other work. Default: 0, it runs beside it.",
)
@click.option(
    "--resource", "resources", multiple=True, callback=_amounts, metavar="NAME=N", help="Ray resources that it takes."
)
@click.option("--nice", type=click.IntRange(0, 19), default=0, metavar="N", help="Be nicer than Ray's workers are.")
@click.option("--cache-dir", default="", metavar="FOLDER", help="Of each node; {node} in it becomes the node's name.")
@click.option(
    "--trust",
    is_flag=True,
    help="Compile unconfined what the programs that ask vouch for: everybody who can reach the cluster may run code on "
    "its nodes.",
)
def up(
    address: str,
    workers: int | None,
    labels: dict[str, str],
    cpus: float,
    resources: dict[str, float],
    nice: int,
    cache_dir: str,
    trust: bool,
) -> None:
    """Start one long-lived actor on each node that has CPUs, and on those that come later.

    It stays until `headstart farm down`. Nodes that have one keep it: to change how they run, take the farm down first.
    """
    from headstart.farm.ray_cluster import Deployment
    from headstart.wire.farm import NodeOptions

    cluster = _open(address)
    deployment = Deployment(NodeOptions(workers or 0, cache_dir, trust, nice), labels, cpus, resources)
    nodes = cluster.deploy(deployment)
    cluster.keep(deployment)
    if not nodes:
        raise Failure("no node of the cluster is fit: it has to have CPUs, and the labels; those that come are used")
    _show(cluster, as_json=False)


@farm.command(short_help="End the actors.")
@_address
def down(address: str) -> None:
    """End the actors on all nodes, and everything that they have started."""
    ended = _open(address).take_down()
    click.echo(f"{count(len(ended), 'node')} left" if ended else "there was no farm")


@farm.command(short_help="Show the nodes, and what each compiles.")
@_address
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per node.")
def status(address: str, as_json: bool) -> None:
    """Show the nodes, their queues, and what each compiles. Exit code 1 if one of them compiles nothing."""
    _show(_open(address), as_json=as_json)


def _open(address: str) -> RayCluster:
    from headstart.farm.ray_cluster import open_cluster

    return open_cluster(parse_farm(address, "--address") or parse_farm(lookup("HEADSTART_FARM"), "HEADSTART_FARM"))


def _show(cluster: RayCluster, *, as_json: bool) -> None:
    states = cluster.states()
    if not states:
        raise UsageError("there is no farm on this cluster: headstart farm up starts one")
    unable = 0
    for name, state in sorted(states.items()):
        unable += isinstance(state, str) or bool(state.unable)
        click.echo(json_line(_fields(name, state)) if as_json else _text(name, state))
    if unable:
        raise Failure(f"{unable} of {count(len(states), 'node')} compiles nothing")


def _text(name: str, state: NodeState | str) -> str:
    if isinstance(state, str) or state.unable:
        return f"{printable(name)}: {printable(state if isinstance(state, str) else state.unable)}"
    line = (
        f"{printable(name)}: {count(state.workers, 'worker')}, Triton {printable(state.triton_version)}, "
        f"{state.compiled} compiled, {len(state.running)} running, {state.queued} queued"
    )
    return "\n".join([line, *(f"  compiling {printable(each)}" for each in state.running if each)])


def _fields(name: str, state: NodeState | str) -> dict[str, object]:
    if isinstance(state, str):
        return {"node": name, "error": state}
    return {
        "node": name,
        "error": state.unable or None,
        "workers": state.workers,
        "running": [each for each in state.running if each],
        "queued": state.queued,
        "compiled": state.compiled,
        "triton": state.triton_version,
        "toolchains": state.toolchains,
    }
