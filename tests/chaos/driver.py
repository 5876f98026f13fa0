"""The run: rounds of clients and faults, checks after each, and the table at the end."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections import Counter
from collections.abc import Mapping

import servers

from chaos import checks, farm, faults, stores
from chaos.world import World

CLIENTS = 4  # per round
KERNELS = 24  # per client
NEW_KERNELS = 24  # that no earlier round has asked for
FAULTY = 5.0  # seconds of a round in which faults happen, from when the first worker is there
STARTING = 15.0  # seconds until which that is waited for, with fewer faults; it takes seven where four services start
SLOWLY = 4.0  # times as long between two of those
OTHER_HOST = "another host"  # that has nothing when a round begins
PAUSE = (0.02, 0.3)  # seconds between two faults
FIRST_ROUNDS = 8  # within which each kind of fault is done once
ATTEMPTS = 4  # kinds that are tried until there is something to do one to
KINDS = [
    *(*faults.EVERYWHERE, *faults.SHARED, faults.deny_system_calls),
    *(fault for of_store in stores.FAULTS.values() for fault in of_store),
    *farm.FAULTS,
]
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
        of_farm = {} if world.farm is None else farm.FAULTS
        possible = {**faults.EVERYWHERE, **faults.SHARED, **self._of_stores(), **of_farm}
        absent = [fault for fault, place in faults.PLACES.items() if getattr(world, place) is None]
        self.due = [fault for fault in possible if fault not in absent]  # that have not been done once
        world.random.shuffle(self.due)

    def round(self, service: str) -> None:
        """Start clients that share a service, or have one each, break what there is to break, and see what became."""
        world = self.world
        # A bridge to a farm takes seconds of a processor: where each client has a service, each would have one.
        world.begin(service, world.some_stores(all_of_them=bool(self.due)), lends=service == "shared")
        self._known += NEW_KERNELS
        # Everybody wants what is new, and some of what earlier rounds have made. Some are on a host that has nothing.
        for index in range(world.width):
            fresh = range(self._known - NEW_KERNELS, self._known)
            old = world.random.sample(range(self._known), KERNELS // 4)
            numbers = list(dict.fromkeys([*world.random.sample(fresh, KERNELS * 3 // 4), *old]))
            world.random.shuffle(numbers)
            is_last = index == world.width - 1
            denied = faults.deny_system_calls(world, surely=is_last and not self.faults["deny_system_calls"])
            self.faults[faults.deny_system_calls.__name__] += bool(denied)
            world.start_client(numbers, denied, host="cache" if index < world.width / 2 else OTHER_HOST)
        shared = faults.SHARED if service == "shared" else {}
        of_farm = farm.FAULTS if world.lends else {}
        self._break_things({**faults.EVERYWHERE, **shared, **self._of_stores(), **of_farm})
        world.catch_up(everything=True)
        self._wait_for_clients()
        self.rounds += 1
        if world.farm is not None and world.lends:
            world.farm.end()
        self._check()
        self._leave(OTHER_HOST)

    def calm_round(self, service: str) -> None:
        """Nothing is done to one last client, and every kernel that did not crash is there for it."""
        world = self.world
        world.begin(service, [])
        client = world.start_client(list(range(self._known)))
        self._wait_for_clients()
        self._check()
        failed = [answer["kernel"] for answer in client.answers() if answer.get("failed", "") == "ServiceError"]
        self.problems += [f"kernel{number} failed though nothing was done to it" for number in failed]

    def calm_stores(self) -> None:
        """Each store, as the faults have left it, mends what it has, and serves a host that has nothing."""
        world = self.world
        stores.settle(world)
        for turn in ("first", "second"):
            world.begin("shared", [])
            for kind, store in world.stores.items():
                world.start_client(
                    list(range(self._known - NEW_KERNELS, self._known)),
                    host=f"{turn} host of {kind}",
                    HEADSTART_REMOTE=store.url(),
                    HEADSTART_REMOTE_DEADLINE="10",  # nothing is done to it, and the machine is busy
                )
            self._wait_for_clients()
            self._check()
            for client, kind in zip(world.clients, world.stores, strict=True):
                if any("delivered" not in answer for answer in client.answers()):
                    self.problems.append(f"with {kind} a kernel failed though nothing was done to it")
                if turn == "second" and not client.found:
                    self.problems.append(f"nothing was found in {kind}, which a host had used without any fault")
                self._leave(client.host)

    def end(self) -> None:
        """After the last round."""
        self.problems += checks.no_file_is_left_but_the_store_s(self.world)
        self.problems += [f"there was never anything to do this to: {fault.__name__}" for fault in self.due]

    def _leave(self, host: str) -> None:
        """Nobody comes back to this host."""
        cache = self.world.cache_of(host)
        self.problems += checks.no_file_is_left_in(cache)
        shutil.rmtree(cache, ignore_errors=True)

    def _of_stores(self) -> dict[faults.Fault, int]:
        return {fault: often for kind in self.world.stores for fault, often in stores.FAULTS[kind].items()}

    def _break_things(self, kinds: Mapping[faults.Fault, float]) -> None:
        world = self.world
        end = time.monotonic() + STARTING
        pace = SLOWLY
        while time.monotonic() < end and any(client.running for client in world.clients):
            if pace > 1.0 and world.workers():
                pace, end = 1.0, time.monotonic() + FAULTY
            deadline = time.monotonic() + pace * world.random.uniform(*PAUSE)
            while (now := time.monotonic()) < deadline:
                world.catch_up()
                time.sleep(min(0.02, deadline - now))
            for fault in self._candidates(kinds):
                if fault(world) is not None:
                    self.faults[fault.__name__] += 1
                    self.due = [each for each in self.due if each is not fault]
                    break

    def _candidates(self, kinds: Mapping[faults.Fault, float]) -> list[faults.Fault]:
        """What to try next, until there is somebody to do it to: what was never done, by turns; then by chance."""
        due = [fault for fault in self.due if fault in kinds][:ATTEMPTS]
        self.due = [fault for fault in self.due if fault not in due] + due
        return due + self.world.random.choices(list(kinds), list(kinds.values()), k=ATTEMPTS)

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
        f"| found in stores that hosts share | {found.found} |",
        *([] if run.world.farm is None else [f"| made on the farm | {run.world.farm.made} |"]),
        f"| **processes left** | **{found.orphans}** |",
        f"| **problems in all** | **{len(run.problems)}** |",
    ]
    return "\n".join(lines)


def perform(world: World, kinds: list[str], seconds: float, seed: int, *, lends: bool) -> tuple[Run, str]:
    """Rounds until the time is up, then a calm one of each sort. Returns the run and its summary.

    `lends`: there is a farm as well.
    """
    began = time.monotonic()
    services = ["shared", "private"]
    with stores.running(world, kinds) as missing, farm.running(world) if lends else contextlib.nullcontext():
        for name in missing:
            print(f"chaos: there is no {name} here, so nothing is done to one", flush=True)
        world.credentials = dict(servers.S3_ENVIRONMENT)
        run = Run(world)
        try:
            while time.monotonic() - began < seconds or (run.due and run.rounds < FIRST_ROUNDS) or not run.rounds:
                run.round(services[run.rounds % 2])
            for service in services:
                run.calm_round(service)
            run.calm_stores()
            run.end()
        finally:
            world.kill_all()
    return run, summary(run, seed, time.monotonic() - began)
