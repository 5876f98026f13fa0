"""The stores that hosts share in a run, and what is done to them: a folder, and each server that can be started here.

A server's data are its own, in the run's folder. What stops, kills or fills one is undone by `World.later`.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import obstore
import redis
import servers
from obstore.store import S3Store

from chaos.faults import LONGEST_PAUSE
from chaos.world import World

CLAIMED = ("redis", "s3")
KINDS = ["folder", "redis", "s3", "oci"]
_WAY = 2.0  # seconds that one may take to do what a fault asks of it


class Store:
    """One store that hosts share.

    Attributes:
        kind: as in `servers.KINDS`.
        server: None: it has none.
        hindered: whether a fault of its server is not undone yet.
    """

    def __init__(self, kind: str, server: servers.Server | None, folder: Path) -> None:
        self.kind = kind
        self.server = server
        self.folder = folder
        self.hindered = False

    def url(self, *, claims: bool = False) -> str:
        """Always the same place; `claims`: hosts say there what they compile, if it can be said."""
        address = "" if self.server is None else self.server.address
        return {
            "folder": f"file://{self.folder}",
            "redis": f"redis://{address}/0?prefix=chaos",
            "s3": f"s3://{servers.BUCKET}/chaos?endpoint=http://{address}",
            "oci": f"oci://{address}/tests/chaos:v1",
        }[self.kind] + ("&claims" if claims and self.kind in CLAIMED else "")

    def client(self) -> Any:
        """Of a Redis."""
        assert self.server is not None
        return redis.Redis(port=self.server.port, socket_timeout=_WAY, socket_connect_timeout=_WAY)

    def bucket(self) -> S3Store:
        """Of an S3 server."""
        assert self.server is not None
        return servers.s3_bucket(self.server.port, f"{_WAY:g}s")


@contextlib.contextmanager
def running(world: World, kinds: list[str]) -> Iterator[list[str]]:
    """Start what can be started, as `world.stores`; gives the programs that are not there."""
    missing = []
    with ExitStack() as stack:
        for kind in kinds:
            if kind == "folder":
                world.stores[kind] = Store(kind, None, world.remote)
                continue
            if not servers.program(servers.KINDS[kind]):
                missing.append(servers.PROGRAMS[servers.KINDS[kind]])
                continue
            folder = world.folder / "servers" / kind
            folder.mkdir(parents=True)
            server = servers.started(kind, folder)
            assert server is not None
            world.stores[kind] = Store(kind, stack.enter_context(servers.running(server)), folder)
        yield missing


def settle(world: World) -> None:
    """Until all servers answer again."""
    for store in world.stores.values():
        if store.server is not None:
            store.server.wait()


# The folder


def damage_folder(world: World) -> str | None:
    """An entry there is cut, altered, another key's, or gone."""
    return _damage_files(world, "folder", world.blobs())


def lose_folder(world: World) -> str | None:
    """The folder is not there for a while, as one that is not mounted."""
    aside = world.remote.with_name("remote, not mounted")
    if "folder" not in world.used or aside.exists() or not world.remote.exists():
        return None
    world.remote.rename(aside)

    def put_back() -> None:
        while aside.exists():
            made = world.remote.with_name(f"remote, made meanwhile {world.random.getrandbits(32)}")
            with contextlib.suppress(FileNotFoundError):
                world.remote.rename(made)  # in one step, since whoever has made it goes on writing there
            with contextlib.suppress(OSError):  # somebody has made another one in between
                aside.rename(world.remote)
            shutil.rmtree(made, ignore_errors=True)

    seconds = world.random.uniform(0.1, LONGEST_PAUSE)
    world.later(seconds, put_back)
    return f"for {seconds:.1f} s"


# Redis


def kill_redis(world: World) -> str | None:
    """It is started again after a while, with nothing in it."""
    return _kill(world, "redis")


def stop_redis(world: World) -> str | None:
    return _stop(world, "redis")


def flush_redis(world: World) -> str | None:
    """FLUSHALL: somebody needed the room."""
    store = _up(world, "redis")
    if store is None:
        return None
    with contextlib.suppress(redis.RedisError), store.client() as client:
        return f"{client.dbsize()} values" if client.dbsize() and client.flushall() else None
    return None


def fill_redis(world: World) -> str | None:
    """`maxmemory` with `noeviction`: for a while it takes nothing, and answers what it has."""
    store = _up(world, "redis")
    if store is None:
        return None

    def limit(most: int) -> None:
        with store.client() as client:
            client.config_set("maxmemory-policy", "noeviction")
            client.config_set("maxmemory", most)

    def undo() -> None:
        store.hindered = False
        limit(0)

    try:
        limit(1)
    except redis.RedisError:
        return None
    store.hindered = True
    world.later(world.random.uniform(0.3, LONGEST_PAUSE), undo)
    return "for a while"


def damage_redis(world: World) -> str | None:
    """A value there is cut, altered, another key's, or gone."""
    store = _up(world, "redis")
    if store is None:
        return None
    with contextlib.suppress(redis.RedisError), store.client() as client:
        names = sorted(client.scan_iter(match="chaos:*", count=1000))
        if not names:
            return None
        name, other = world.random.choice(names), world.random.choice(names)
        data = _damaged(world, client.get(name) or b"", lambda: client.get(other) or b"")
        client.delete(name) if data is None else client.set(name, data)
        return str(name)
    return None


# S3


def kill_s3(world: World) -> str | None:
    """It is started again after a while, with what it had written by then."""
    return _kill(world, "s3")


def stop_s3(world: World) -> str | None:
    return _stop(world, "s3")


def damage_s3(world: World) -> str | None:
    """An object there is cut, altered, another key's, or gone."""
    store = _up(world, "s3")
    if store is None:
        return None
    bucket = store.bucket()

    def get(name: str) -> bytes:
        return bytes(obstore.get(bucket, name).bytes())

    try:
        names = sorted(each["path"] for page in obstore.list(bucket, prefix="chaos") for each in page)
        if not names:
            return None
        name, other = world.random.choice(names), world.random.choice(names)
        data = _damaged(world, get(name), lambda: get(other))
        if data is None:
            obstore.delete(bucket, name)
        else:
            obstore.put(bucket, name, data, use_multipart=False)
    except (obstore.exceptions.BaseError, OSError):
        return None  # it is not up again
    return name


# A container registry


def kill_registry(world: World) -> str | None:
    """It is started again after a while, with what it had written by then."""
    return _kill(world, "oci")


def stop_registry(world: World) -> str | None:
    return _stop(world, "oci")


def damage_registry(world: World) -> str | None:
    """A blob or a manifest in its storage folder is cut, altered, another one's, or gone."""
    if "oci" not in world.used:
        return None
    return _damage_files(world, "oci", sorted(world.stores["oci"].folder.glob("data/**/blobs/sha256/*/*/data")))


# All


def _up(world: World, kind: str) -> Store | None:
    """A store whose clients there are, if nothing else is being done to its server."""
    store = world.stores[kind]
    return None if kind not in world.used or store.hindered else store


def _kill(world: World, kind: str) -> str | None:
    store = _up(world, kind)
    if store is None or store.server is None:
        return None
    server, store.hindered = store.server, True
    server.kill()

    def start() -> None:
        server.launch()
        store.hindered = False

    seconds = world.random.uniform(0.1, LONGEST_PAUSE)
    world.later(seconds, start)
    return f"for {seconds:.1f} s"


def _stop(world: World, kind: str) -> str | None:
    store = _up(world, kind)
    if store is None or store.server is None:
        return None
    server, store.hindered = store.server, True
    server.send(signal.SIGSTOP)

    def go_on() -> None:
        server.send(signal.SIGCONT)
        store.hindered = False

    seconds = world.random.uniform(0.1, LONGEST_PAUSE)
    world.later(seconds, go_on)
    return f"for {seconds:.1f} s"


def _damage_files(world: World, kind: str, paths: list[Path]) -> str | None:
    if kind not in world.used or not paths:
        return None
    path, other = world.random.choice(paths), world.random.choice(paths)
    try:
        data = _damaged(world, path.read_bytes(), other.read_bytes)
        if data is None:
            path.unlink()
        else:
            path.write_bytes(data)
    except OSError:
        return None  # somebody was faster
    return str(path)


def _damaged(world: World, data: bytes, other: Any) -> bytes | None:
    """What is to be there instead; None: nothing."""
    how = world.random.choice(["cut", "altered", "swapped", "gone"])
    if how == "gone" or not data:
        return None
    if how == "swapped":
        return bytes(other())
    at = world.random.randrange(len(data))
    return data[:at] if how == "cut" else data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


FAULTS = {
    "folder": {damage_folder: 6, lose_folder: 1},
    "redis": {kill_redis: 2, stop_redis: 2, flush_redis: 1, fill_redis: 2, damage_redis: 4},
    "s3": {kill_s3: 1, stop_s3: 2, damage_s3: 4},
    "oci": {kill_registry: 2, stop_registry: 2, damage_registry: 4},
}
