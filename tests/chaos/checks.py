"""What must hold after a round, whatever was done to it. Each check returns what it found wrong, a line each."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil

from chaos.faults import LONGEST_PAUSE
from chaos.world import Client, World
from conftest import PROMPT, lasting

TRIES = 3  # compiles of a kernel that a farm explains in a round: on two nodes, and here since it was late
ROOM = 6 << 20  # bytes that must be free when nobody fills
LONGEST_COMPILE = 5.0  # seconds, on a busy machine
# What a client may be told instead of a kernel, and after how many kills.
EXCUSES = {
    "CompilerCrashed": 2,  # its worker died twice, or its service twice while it ran
    "ServiceError": 2,  # the service died twice, or a zygote three times, with nothing compiled between
}
_KNOWN = re.compile(
    r"store(/v2(/(tmp|damaged|[0-9a-f]{2}))?)?|toolchains|failed|manifests|runs(/[0-9a-f]{8}(/\d+-[0-9a-f]{8}\.run)?)?"
    r"|store/v2/(prune|compiling)\.lock|store/v2/tmp/[0-9a-f]{32}"
    r"|store/v2/([0-9a-f]{2}|damaged)/[0-9a-f]{64}\.hse|toolchains/[^/.][^/]*|failed/[^/.][^/]*\.(py|json)"
)


class Outcomes:
    """What became of the kernels that clients asked for."""

    def __init__(self) -> None:
        self.asked = 0
        self.delivered = 0
        self.failed: Counter[str] = Counter()  # by reason
        self.abandoned = 0  # their client was killed
        self.lost = 0
        self.orphans = 0
        self.compiles = 0
        self.found = 0  # in stores that hosts share
        self.cubins: dict[int, str] = {}  # kernel: SHA-256


def every_survivor_has_every_kernel_or_an_error(world: World, outcomes: Outcomes) -> Iterator[str]:
    for client in world.clients:
        answers = {answer["kernel"]: answer for answer in client.answers()}
        outcomes.asked += len(client.numbers)
        outcomes.found += client.found
        if client.process.returncode and not client.killed:
            yield f"client {client.pid} ended with {client.process.returncode}: {client.errors[-2000:]}"
        for number in client.numbers:
            answer = answers.get(number)
            if answer is None and client.killed:
                outcomes.abandoned += 1
            elif answer is None or "lost" in answer:
                outcomes.lost += 1
                yield f"client {client.pid} has no answer for kernel{number}"
            elif "delivered" in answer:
                outcomes.delivered += 1
                if outcomes.cubins.setdefault(number, str(answer["delivered"])) != answer["delivered"]:
                    yield f"kernel{number} is not the same for all"
            else:
                outcomes.failed[str(answer["failed"])] += 1
                yield from _unexcused(world, client, number, answer)


def _unexcused(world: World, client: Client, number: int, answer: dict[str, str | int]) -> Iterator[str]:
    kind, why = str(answer["failed"]), str(answer["why"])
    if kind == "ServiceError" and client.denied and "Operation not permitted" in why:
        return  # it names what the sandbox refuses
    # Of what passes clients ask again, so that a service error of another sort is one of ours.
    if kind not in EXCUSES or world.kills < EXCUSES[kind] or (kind == "ServiceError" and "died" not in why):
        yield f"client {client.pid}: kernel{number} failed without a reason of ours: {kind}: {why}"
    if kind == "CompilerCrashed":
        # How to reproduce it cannot be said where the disk was full.
        missing = [part for part in (f"kernel{number}", "cuda:90") if part not in why]
        if missing:
            yield f"the error of kernel{number} does not say {missing}: {why}"


def the_disk_is_large_enough(world: World, outcomes: Outcomes) -> Iterator[str]:
    """A disk that a run fills by and by, and not for a while, would explain everything."""
    for name, folder in (("disk", world.disk), ("memory", world.memory)):
        if folder is not None:
            space = os.statvfs(folder)
            if space.f_bavail * space.f_frsize < ROOM:
                yield f"the run's own {name} is full: {space.f_bavail * space.f_frsize >> 10} KiB are left"


def nothing_is_compiled_twice_without_need(world: World, outcomes: Outcomes) -> Iterator[str]:
    """Beyond one compile of each kernel there are those that were cut short, and those whose entry was lost."""
    began: dict[str, list[tuple[int, int]]] = {}  # kernel: when (ns), and in which process
    last: dict[int, int] = {}  # process: its last compile
    for mark in world.marks.iterdir():
        name, pid, moment = mark.name.split(".")
        began.setdefault(name, []).append((int(moment), int(pid)))
        last[int(pid)] = max(last.get(int(pid), 0), int(moment))
    outcomes.compiles = sum(map(len, began.values()))
    dropped = {f"kernel{number}" for client in world.clients if client.killed for number in client.numbers}
    world.dropped |= dropped
    for name, compiles in began.items():
        whole = [
            moment
            for moment, pid in compiles
            if not (pid in world.victims and last[pid] == moment) and not _is_excused(world, moment / 1e9)
        ]
        # Each client that finds the same damage may set the entry aside, and the new one with it.
        # Another host compiles what it does not find in time.
        hosts = 1 + world.elsewhere[name]
        allowed = hosts + world.damaged[name] * world.width + (name in world.dropped) + TRIES * world.lent[name]
        if len(whole) > allowed:
            yield f"{name} was compiled {len(whole)} times, and {allowed} can be explained ({len(compiles)} began)"


def _is_excused(world: World, moment: float) -> bool:
    return any(start - LONGEST_COMPILE - LONGEST_PAUSE <= moment <= end + LONGEST_PAUSE for start, end in world.excused)


def nobody_is_left(world: World, outcomes: Outcomes) -> Iterator[str]:
    left = lasting(world.processes, PROMPT)
    outcomes.orphans += len(left)
    for process in left:
        with contextlib.suppress(psutil.Error):
            command = shlex.join(part for part in process.cmdline() if "\n" not in part)
            yield f"process {process.pid} is left ({process.status()}): {command}"
            process.kill()


def no_file_is_left_but_the_store_s(world: World) -> Iterator[str]:
    """After the last round."""
    folders = [world.runtime / "headstart", world.temporary]
    if world.memory is not None:  # then /dev/shm is the run's own
        folders += list(Path("/dev/shm").glob("headstart-*"))
    for folder in folders:
        yield from (f"left behind: {path}" for path in lasting(lambda at=folder: list(at.glob("*")), PROMPT))  # type: ignore[misc]
    yield from no_file_is_left_in(world.cache)


def no_file_is_left_in(cache: Path) -> Iterator[str]:
    """A cache folder has what belongs there."""
    for path in cache.rglob("*"):
        name = str(path.relative_to(cache))
        if not _KNOWN.fullmatch(name):
            yield f"left in the cache folder: {name}"
