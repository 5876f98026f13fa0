"""The kinds of faults. Each is done to a world, and says to what or whom; None: there was nothing to do it to.

What is stopped, filled or occupied is undone after a while (`World.later`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from chaos.world import World
from headstart import wire
from headstart.artifacts.entry import Entry
from headstart.client import control
from headstart.errors import DamagedError, ServiceError

Fault = Callable[[World], str | None]

YEAR = 365 * 86400.0  # seconds
LONGEST_PAUSE = 2.0  # seconds that somebody is stopped
SANDBOXED = 0.1  # of the clients
LEFT_STOPPED = 6.0  # seconds: more than clients are patient for
CROWD = 200
_STATUS_QUESTIONS = 60_000  # whose answers nobody reads: more than a service keeps for anybody


# Processes


def kill_worker(world: World) -> str | None:
    return _kill(world, world.workers())


def kill_zygote(world: World) -> str | None:
    return _kill(world, world.zygotes())


def kill_service(world: World) -> str | None:
    return _kill(world, world.services())


def kill_client(world: World) -> str | None:
    # The first one stays, so that somebody survives each round.
    running = [client for client in world.clients[1:] if client.running]
    if not running:
        return None
    client = world.random.choice(running)
    client.killed = True
    return _kill(world, [psutil.Process(client.pid)])


def stop_worker(world: World) -> str | None:
    return _pause(world, world.workers())


def stop_zygote(world: World) -> str | None:
    return _pause(world, world.zygotes())


def stop_service(world: World) -> str | None:
    return _pause(world, world.services())


def leave_service_stopped(world: World) -> str | None:
    """For longer than anybody waits: clients say who is stuck, and go on without."""
    # A private service that is given up is killed, with what it was at.
    world.excused.append((time.time(), time.time() + LEFT_STOPPED))
    candidates = world.services()
    if not candidates:
        return None
    process = world.random.choice(candidates)
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [process, *process.children(recursive=True)]
        world.note_victims(family)
        world.pause(process, LEFT_STOPPED)
    return f"process {process.pid}"


def limit_threads(world: World) -> str | None:
    """Clients can start no thread for a while."""
    world.no_threads.touch()
    world.later(world.random.uniform(0.1, LONGEST_PAUSE), lambda: world.no_threads.unlink(missing_ok=True))
    return "for all"


def stop_client(world: World) -> str | None:
    return _pause(world, [psutil.Process(client.pid) for client in world.clients if client.running])


def _kill(world: World, candidates: list[psutil.Process]) -> str | None:
    if not candidates:
        return None
    process = world.random.choice(candidates)
    world.kill(process)
    return f"process {process.pid}"


def _pause(world: World, candidates: list[psutil.Process]) -> str | None:
    if not candidates:
        return None
    process = world.random.choice(candidates)
    seconds = world.random.uniform(0.1, LONGEST_PAUSE)
    with contextlib.suppress(psutil.NoSuchProcess):
        world.pause(process, seconds)
    return f"process {process.pid} for {seconds:.1f} s"


# The store


def corrupt_entry(world: World) -> str | None:
    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[world.random.randrange(len(data))] ^= 0xFF
        path.write_bytes(data)

    return _damage(world, flip)


def truncate_entry(world: World) -> str | None:
    return _damage(world, lambda path: os.truncate(path, world.random.randrange(path.stat().st_size)))


def remove_entry(world: World) -> str | None:
    return _damage(world, Path.unlink)


def _damage(world: World, how: Callable[[Path], None]) -> str | None:
    entries = world.entries()
    if not entries:
        return None
    path = world.random.choice(entries)
    try:
        name = Entry.open(path).name
        how(path)
    except (OSError, DamagedError, ValueError):
        return None  # somebody was faster
    world.damaged[name] += 1
    return f"{name} ({path.stem[:8]})"


def fill_disk(world: World) -> str | None:
    """ENOSPC for everybody who writes to the cache folder."""
    if world.disk is None:
        return None
    filler = world.disk / f"filler{world.random.getrandbits(32)}"
    since = time.time()
    _fill(filler)

    def empty() -> None:
        filler.unlink()
        world.excused.append((since, time.time()))

    seconds = world.random.uniform(0.3, LONGEST_PAUSE)
    world.later(seconds, empty)
    return f"for {seconds:.1f} s"


def fill_memory(world: World) -> str | None:
    """ENOSPC for workers, where they have their folders: as in a container with little of /dev/shm."""
    if world.memory is None:
        return None
    filler = world.memory / f"filler{world.random.getrandbits(32)}"
    _fill(filler)
    seconds = world.random.uniform(0.3, LONGEST_PAUSE)
    world.later(seconds, filler.unlink)
    # What was begun where there is no space begins anew elsewhere.
    world.excused.append((time.time(), time.time() + seconds))
    return f"for {seconds:.1f} s"


def _fill(filler: Path) -> None:
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            space = os.statvfs(filler)
            os.posix_fallocate(file.fileno(), 0, space.f_bavail * space.f_frsize)
            file.seek(0, os.SEEK_END)
        while True:
            file.write(b"x" * 4096)


def jump_clock(world: World) -> str | None:
    """What a wall clock that jumps leaves behind: files of next year, or of last year; nobody else reads it."""
    moved = time.time() + world.random.choice([-YEAR, YEAR])
    files = [path for path in world.cache.glob("store/v2/*/*") if path.is_file()]
    for path in files:
        with contextlib.suppress(FileNotFoundError):
            os.utime(path, (moved, moved))
    return f"{len(files)} files"


# The process that has the stores which hosts share; what is done to those themselves: stores.py


def kill_remote(world: World) -> str | None:
    """No kernel may fail for that."""
    candidates = world.remotes()
    if not candidates:
        return None
    process = world.random.choice(candidates)
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()
    return f"process {process.pid}"


def stop_remote(world: World) -> str | None:
    return _pause(world, world.remotes())


# The socket of a shared service


def garbage(world: World) -> str | None:
    """Somebody who talks nonsense, and hangs up or stays."""
    valid = wire.frame(wire.Control("status"))
    said = world.random.choice(
        [
            world.random.randbytes(world.random.randrange(1, 4096)),
            wire.MAX_FRAME.to_bytes(4, "little"),  # and nothing of what it promises
            (1 << 31).to_bytes(4, "little") + b"x" * 100,
            valid[: world.random.randrange(1, len(valid))],
            valid[:4] + world.random.randbytes(len(valid) - 4),
            wire.frame(wire.Await([1, 2, 3])),  # without a Hello
        ]
    )
    return _visit(world, said)


def slow_reader(world: World) -> str | None:
    """Somebody who asks, and asks, and never reads an answer."""
    return _visit(world, wire.frame(wire.Control("status")) * _STATUS_QUESTIONS)


def fill_backlog(world: World) -> str | None:
    """The service is stopped, and its socket taken by others until no more can connect."""
    services, path = world.services(), _socket(world)
    if not services or path is None:
        return None
    world.pause(services[0], LONGEST_PAUSE)
    waiting: list[socket.socket] = []
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        if sock.connect_ex(str(path)) in (errno.EAGAIN, errno.ECONNREFUSED, errno.ENOENT):
            sock.close()
            break
        waiting.append(sock)

    def leave() -> None:
        for sock in waiting:
            sock.close()

    world.later(LONGEST_PAUSE, leave)
    return f"{len(waiting)} connections"


def crowd(world: World) -> str | None:
    """Two hundred connect at once and leave again, most of them in the middle of a sentence."""
    said = [wire.frame(wire.Control("status"))[: world.random.randrange(20)] for _ in range(CROWD)]
    visitors = [_visit(world, each) for each in said]
    return None if None in visitors else f"{CROWD} connections"


def _visit(world: World, said: bytes) -> str | None:
    path = _socket(world)
    if path is None:
        return None
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    if sock.connect_ex(str(path)):
        sock.close()
        return None
    left = memoryview(said)

    def say() -> None:
        nonlocal left
        if sock.fileno() < 0 or world.over:
            return
        try:
            while left:
                left = left[sock.send(left) :]
        except BlockingIOError:
            world.later(0.01, say)
        except ConnectionError:
            pass  # it has had enough of us

    say()
    world.later(world.random.uniform(0.1, LONGEST_PAUSE), sock.close)
    return f"{len(said)} bytes"


def _socket(world: World) -> Path | None:
    return next(iter(sorted(world.runtime.glob("headstart/*.sock"))), None)


# What people say


def tell_to_stop(world: World) -> str | None:
    """`headstart stop` in the middle of everything."""
    return _tell(world, "stop")


def tell_to_quiesce(world: World) -> str | None:
    """`headstart quiesce --now`, and `resume` after a while."""

    def resume() -> None:
        _tell(world, "resume")

    world.later(world.random.uniform(0.1, LONGEST_PAUSE), resume)
    return _tell(world, "quiesce now")


def _tell(world: World, command: str) -> str | None:
    path = _socket(world)
    services = world.services()
    if path is None or not services:
        return None
    # What is begun before it is obeyed is cut short, and compiled again.
    world.excused.append((time.time(), time.time() + LONGEST_PAUSE))

    def say() -> None:
        with contextlib.suppress(ServiceError):
            control.ask(path, command)

    threading.Thread(target=say, daemon=True).start()  # the service may be stopped by us, and not answer
    return command


# What a sandbox refuses. It is there before a client is, and for all below it; a shared service works for others too.
SANDBOXES: dict[str, list[tuple[str, ...]]] = {
    "shared": [("memfd_create", "sched_getaffinity"), ("eventfd2",)],
    "private": [("memfd_create", "sched_getaffinity"), ("eventfd2",), ("pidfd_open",)],
}


def deny_system_calls(world: World, *, surely: bool) -> tuple[str, ...]:
    """For a client that is about to start: system calls that are refused to it; mostly none."""
    if world.random.random() > SANDBOXED and not surely:
        return ()
    return world.random.choice(SANDBOXES[world.service])


# What is done where a run has a place of its own.
PLACES: dict[Fault, str] = {fill_disk: "disk", fill_memory: "memory"}
# How often each happens, by whose service it is.
EVERYWHERE: dict[Fault, int] = {
    kill_worker: 6,
    kill_zygote: 3,
    kill_service: 2,
    kill_client: 1,
    stop_worker: 4,
    stop_zygote: 3,
    stop_service: 3,
    stop_client: 3,
    leave_service_stopped: 1,
    limit_threads: 2,
    corrupt_entry: 4,
    truncate_entry: 4,
    remove_entry: 4,
    fill_disk: 3,
    fill_memory: 3,
    jump_clock: 2,
    kill_remote: 3,
    stop_remote: 3,
}
SHARED: dict[Fault, int] = {
    garbage: 4,
    slow_reader: 2,
    fill_backlog: 1,
    crowd: 2,
    tell_to_stop: 1,
    tell_to_quiesce: 1,
}
