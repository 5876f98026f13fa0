"""The run: rounds of clients and faults, checks after each, and the table at the end."""

from __future__ import annotations

import time
from collections import Counter
from itertools import accumulate
from pathlib import Path

from chaos import checks, faults
from chaos.world import World

CLIENTS = 4  # per round
KERNELS = 24  # per client
NEW_KERNELS = 24  # that no earlier round has asked for
FAULTY = 5.0  # seconds of a round in which faults happen
PAUSE = (0.02, 0.3)  # seconds between two faults
KINDS = [*faults.EVERYWHERE, *faults.SHARED, faults.deny_system_calls]
FINISH = 60.0  # seconds that clients get to finish once nothing is done to them any more


class Run:
    """One chaos run.

    Args:
        world: it happens in.
        clients: in each round.
    """

    def __init__(self, world: World, *, clients: int = CLIENTS) -> None:
        self.world = world
        self.outcomes = checks.Outcomes()
        self.faults: Counter[str] = Counter()
        self.problems: list[str] = []
        self.rounds = 0
        self._known = 0  # kernels that were asked for so far
        world.width = clients

    def round(self, service: str) -> None:
        """Start clients that share a service, or have one each, break what there is to break, and see what became."""
        world = self.world
        world.begin(service)
        self._known += NEW_KERNELS
        # Everybody wants what is new, and some of what earlier rounds have made.
        for _ in range(world.width):
            fresh = range(self._known - NEW_KERNELS, self._known)
            old = world.random.sample(range(self._known), KERNELS // 4)
            numbers = list(dict.fromkeys([*world.random.sample(fresh, KERNELS * 3 // 4), *old]))
            world.random.shuffle(numbers)
            denied = faults.deny_system_calls(world)
            self.faults[faults.deny_system_calls.__name__] += bool(denied)
            world.start_client(numbers, denied)
        self._break_things({**faults.EVERYWHERE, **(faults.SHARED if service == "shared" else {})})
        world.catch_up(everything=True)
        self._wait_for_clients()
        self.rounds += 1
        self._check()

    def calm_round(self, service: str) -> None:
        """Nothing is done to one last client, and every kernel that did not crash is there for it."""
        world = self.world
        world.begin(service)
        client = world.start_client(list(range(self._known)))
        self._wait_for_clients()
        self._check()
        failed = [answer["kernel"] for answer in client.answers() if answer.get("failed", "") == "ServiceError"]
        self.problems += [f"kernel{number} failed though nothing was done to it" for number in failed]

    def end(self) -> None:
        """After the last round."""
        self.problems += checks.no_file_is_left_but_the_store_s(self.world)

    def _break_things(self, kinds: dict[faults.Fault, int]) -> None:
        world = self.world
        end = time.monotonic() + FAULTY
        weights = list(accumulate(kinds.values()))
        while time.monotonic() < end and any(client.running for client in world.clients):
            deadline = time.monotonic() + world.random.uniform(*PAUSE)
            while (now := time.monotonic()) < deadline:
                world.catch_up()
                time.sleep(min(0.02, deadline - now))
            (fault,) = world.random.choices(list(kinds), cum_weights=weights)
            if fault(world) is not None:
                self.faults[fault.__name__] += 1

    def _wait_for_clients(self) -> None:
        deadline = time.monotonic() + FINISH
        for client in self.world.clients:
            while client.running and time.monotonic() < deadline:
                self.world.catch_up()
                time.sleep(0.02)
            if client.running:
                self.problems.append(f"client {client.pid} does not end")
                client.process.kill()
                client.process.wait()

    def _check(self) -> None:
        found = [
            *checks.the_disk_is_large_enough(self.world, self.outcomes),
            *checks.nobody_is_left(self.world, self.outcomes),
            *checks.every_survivor_has_every_kernel_or_an_error(self.world, self.outcomes),
            *checks.nothing_is_compiled_twice_without_need(self.world, self.outcomes),
        ]
        self.problems += [problem for problem in found if problem not in self.problems]


def summary(run: Run, seed: int, seconds: float) -> str:
    """The table, as Markdown."""
    found = run.outcomes
    total = sum(run.faults.values())
    lines = [
        f"seed {seed}: {run.rounds} rounds with {run.world.width} clients each in {seconds:.0f} s",
        "",
        "| fault | times |",
        "|---|---|",
        *(f"| {kind.__name__.replace('_', ' ')} | {run.faults[kind.__name__]} |" for kind in KINDS),
        f"| **all faults** | **{total}** |",
        "",
        "| kernels | |",
        "|---|---|",
        f"| asked for | {found.asked} |",
        f"| delivered | {found.delivered} |",
        *(f"| failed, {kind} | {times} |" for kind, times in sorted(found.failed.items())),
        f"| not waited for: their client was killed | {found.abandoned} |",
        f"| **lost** | **{found.lost}** |",
        f"| compiles begun | {found.compiles} |",
        f"| **processes left** | **{found.orphans}** |",
        f"| **problems in all** | **{len(run.problems)}** |",
    ]
    return "\n".join(lines)


def perform(folder: Path, disk: Path | None, memory: Path | None, seed: int, seconds: float) -> tuple[Run, str]:
    """Rounds until the time is up, then a calm one of each sort. Returns the run and its summary."""
    began = time.monotonic()
    run = Run(World(folder, disk, memory, seed))
    services = ["shared", "private"]
    try:
        while not run.rounds or time.monotonic() - began < seconds:
            run.round(services[run.rounds % 2])
        for service in services:
            run.calm_round(service)
        run.end()
    finally:
        run.world.kill_all()
    return run, summary(run, seed, time.monotonic() - began)
