"""What is compared, and the goals."""

from __future__ import annotations

import contextlib
import marshal
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from examples import codegen

from benchmarks.measure import Figure, Run, Series, say
from benchmarks.remote import network
from benchmarks.remote.hosts import Hosts, finish
from benchmarks.report import Line

KERNELS = 312
SWEEP = 40  # kernels
TOGETHER = 48
HOSTS, CLIENTS = 4, 4
DELAY = 5e-3  # seconds, of a round trip

_NAMES = {"folder": "a folder", "redis": "Redis", "s3": "S3 (SeaweedFS)", "oci": "OCI (Docker's registry)"}
_SECOND_GOALS = {"folder": None, "redis": 2.0, "s3": 3.0, "oci": 3.0}
_FAR_GOAL = 0.5  # seconds
_TRITON_GOAL = 0.3
_COLD_GOALS = {"misses": 1.02, "silent": 1.05, "drops": 1.05, "nobody": 1.05}
_SOURCE = """import triton
import triton.language as tl


@triton.jit
def scaled(x, y, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, tl.exp(tl.load(x + i, mask=i < n)) * {factor}.0, mask=i < n)
"""
_HOW = {
    "signature": {"x": "*fp32", "y": "*fp32", "n": "i32", "BLOCK": "constexpr"},
    "constants": {"BLOCK": 128},
    "attrs": {},
    "options": {},
}

Addresses = dict[str, str]  # of stores, by kind


def second(hosts: Hosts, addresses: Addresses, count: int) -> Iterator[Line]:
    """Another host finds all kernels: near stores, and the same ones far away; and Triton's own way with Redis."""
    path, more = _small(hosts, count), _small(hosts, count + 1)
    urls = {kind: network.servers.url_of(kind, address, _place(hosts)) for kind, address in addresses.items()}
    say(f"one host compiles {count} kernels, and puts them into all stores")
    first = hosts.new()
    hosts.run(first, "remote_headstart", more, hosts.bench.workers)
    stored = hosts.fill(first, list(urls.values()))
    if stored < count:
        raise RuntimeError(f"{count} kernels are {stored} entries")

    def ask(host: Callable[[], Path], url: str = "", up: bool = False) -> Run:
        remote = {"HEADSTART_REMOTE": url} if url else {}
        what = (more, hosts.bench.workers, "up") if up else (path, hosts.bench.workers)
        return hosts.run(host(), "remote_headstart", *what, keys=hosts.reader, **remote)

    kinds: dict[str, Callable[[], Run]] = {"the local store": lambda: ask(lambda: first)}
    kinds |= {_NAMES[kind]: partial(ask, hosts.new, url) for kind, url in urls.items()}
    with contextlib.ExitStack() as ways:
        for kind, address in addresses.items():
            if address:
                far = ways.enter_context(network.delayed(address, DELAY))
                url = urls[kind].replace(address, far)
                kinds[_far(kind)] = partial(ask, hosts.new, url)
                kinds[_far(kind, up=True)] = partial(ask, hosts.new, url, up=True)
        if addresses.get("redis"):
            triton = _tritons(hosts, path, addresses["redis"])
            kinds["Triton's Redis cache manager"] = triton
            say(f"Triton compiles {count} kernels, and puts them into Redis: {triton()['took_s']:.1f} s")
        runs = hosts.rounds(kinds)
    if len({run["digest"] for series in runs.values() for run in series}) != 1:
        raise RuntimeError("other kernels come out of one store than of another")
    yield from _second_lines(runs, addresses, count)


def _second_lines(runs: dict[str, Series], addresses: Addresses, count: int) -> Iterator[Line]:
    near, what = runs["the local store"].said("took_s"), f"second host, {count} kernels"
    for kind in addresses:
        series = runs[_NAMES[kind]]
        took = series.said("took_s")
        yield Line(
            30,
            f"{what}, {_NAMES[kind]} : the local store",
            took / near,
            goal=_SECOND_GOALS[kind],
            note=f"{took.median:.3f} s and {near.median:.3f} s",
        )
        yield _compiles(30, f"{what}, {_NAMES[kind]}: compiled there, the most of any round", series)
    for kind in addresses:
        for name in (_far(kind), _far(kind, up=True)):
            if name in runs:
                yield Line(31, f"{what}, {name}", runs[name].said("took_s"), unit="s", goal=_FAR_GOAL)
                yield _compiles(31, f"{what}, {name}: compiled there, the most of any round", runs[name])
    if "Triton's Redis cache manager" in runs:
        ours, theirs = runs[_NAMES["redis"]], runs["Triton's Redis cache manager"]
        if any(run["compiled"] for run in theirs):
            raise RuntimeError("Triton has compiled what it had put into Redis")
        yield Line(
            32,
            f"{count} hits in Redis, headstart : Triton's own Redis cache manager",
            ours.said("took_s") / theirs.said("took_s"),
            goal=_TRITON_GOAL,
            note=f"{ours.said('took_s').median:.3f} s, the start of its service included, and "
            f"{theirs.said('took_s').median:.3f} s; whole processes {ours.wall.median:.3f} s and "
            f"{theirs.wall.median:.3f} s",
        )


def _tritons(hosts: Hosts, path: Path, address: str) -> Callable[[], Run]:
    host, _, port = address.rpartition(":")
    variables = {
        "TRITON_CACHE_MANAGER": "triton.runtime.cache:RemoteCacheManager",
        "TRITON_REMOTE_CACHE_BACKEND": "triton.runtime.cache:RedisRemoteCacheBackend",
        "TRITON_REDIS_HOST": host,
        "TRITON_REDIS_PORT": port,
    }
    return lambda: hosts.run(hosts.new(), "remote_triton", path, **variables)


def cold(hosts: Hosts, addresses: Addresses) -> Iterator[Line]:
    """Nothing is stored anywhere."""
    path = _codegen(hosts)
    with network.silent() as quiet, network.dropping() as full:
        at = {"none": "", "misses": addresses.get("redis", "")}
        at |= {"silent": quiet, "drops": full, "nobody": network.nobody()}

        def sweep(address: str) -> Run:
            remote = {"HEADSTART_REMOTE": _redis(address)} if address else {}
            return hosts.run(hosts.new(), "remote_headstart", path, hosts.bench.workers, **remote)

        kinds = {kind: partial(sweep, address) for kind, address in at.items() if address or kind == "none"}
        runs = hosts.rounds({f"cold sweep, {kind}": run for kind, run in kinds.items()})
    none, *others = runs.values()
    for kind, series in zip(list(kinds)[1:], others, strict=True):
        ratio = series.said("took_s") / none.said("took_s")
        cpu = (series.cpu / none.cpu).median
        yield Line(
            33,
            f"cold sweep of {SWEEP} kernels, {kind} : no remote",
            ratio,
            goal=_COLD_GOALS[kind],
            note=f"{series.said('took_s').median:.2f} s and {none.said('took_s').median:.2f} s; CPU time {cpu:.3f}",
        )
        most = 0 if kind == "misses" else 1
        lines = Figure.of([series.said("lines").greatest])
        yield Line(
            33, f"… {kind}: lines of warning of the store, the most of any round", lines, unit="lines", goal=most
        )


def together(hosts: Hosts, addresses: Addresses) -> Iterator[Line]:
    """Many hosts begin the same job at once."""
    if "redis" not in addresses:
        return
    path = _codegen(hosts, TOGETHER)
    for name, option in (("without claims", ""), ("claims on", "&claims")):
        compiles, took = [], []
        for _ in range(max(1, hosts.bench.runs // 2)):
            url = _redis(addresses["redis"]) + option
            shared = {"HEADSTART_SERVICE": "shared", "HEADSTART_REMOTE": url}
            machines = [hosts.new() for _ in range(HOSTS)]
            arguments = ("remote_headstart", path, hosts.bench.workers)
            started = [hosts.start(host, *arguments, **shared) for host in machines for _ in range(CLIENTS)]
            said = [finish(process)[0] for process in started]
            by_host = [said[first : first + CLIENTS] for first in range(0, len(said), CLIENTS)]
            # Who leaves last sees its service's last count.
            compiles.append(sum(max(each["compiled_by_service"] for each in host) for host in by_host))
            took.append(max(each["took_s"] for each in said))
            say(f"together, {name}: {compiles[-1]} compiles, {took[-1]:.2f} s")
            hosts.settle()
        yield Line(
            34,
            f"{HOSTS * CLIENTS} clients on {HOSTS} hosts, the same {TOGETHER} kernels, {name}",
            Figure.of(compiles),
            unit="compiles",
            goal=TOGETHER if option else None,
            note=f"{Figure.of(took).median:.2f} s until the last one has all",
        )


def _compiles(row: int, what: str, series: Series) -> Line:
    """The most of any round, since none is to compile anything."""
    return Line(row, what, Figure.of([series.said("compiled").greatest]), unit="compiles", goal=0)


def _far(kind: str, *, up: bool = False) -> str:
    return f"{_NAMES[kind]}, {DELAY * 1e3:g} ms away{', its service up' if up else ''}"


def _redis(address: str) -> str:
    return f"redis://{address}/0?prefix={os.urandom(4).hex()}"


def _place(hosts: Hosts) -> Path:
    return hosts.bench.folder / "store-folder"


def _small(hosts: Hosts, count: int) -> Path:
    path = hosts.bench.folder / f"small-{count}.kernels"
    path.write_bytes(marshal.dumps([("scaled", _SOURCE.format(factor=n), _HOW) for n in range(1, count + 1)]))
    return path


def _codegen(hosts: Hosts, count: int = SWEEP) -> Path:
    path = hosts.bench.folder / f"codegen-{count}.kernels"
    path.write_bytes(marshal.dumps(codegen.collect()[1][::3][:count]))
    return path
