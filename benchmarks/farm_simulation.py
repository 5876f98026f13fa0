"""A farm of hundreds of nodes, on a clock that does not pass: how good its schedule is, and what deciding it costs.

    .venv/bin/python -m benchmarks.farm_simulation      [NODES=256] [WORKERS=16] [LOCAL=16] [LATENCY_MS=5]

Driven are the scheduler of a service and the router of its bridge, as they are; what is simulated is what lies between:
messages that take `LATENCY_MS` each way between bridge and node, states that a bridge tells its service now and then,
and workers that take as long for a kernel as was recorded.

Recorded, in `benchmarks/results/2026-11-30-h200-live-312-sweeps.json`, are the kernels of 15 sweeps: how many
configurations each had, how long the longest took, and the sum of all. Within a sweep they are spread evenly between
the longest and a shortest that gives the sum. 10,000 kernels are these, again and again. The service knows of each
sweep what its longest took, as it does after a first run.
"""

from __future__ import annotations

import heapq
import json
import os
import random
import time
from collections import deque
from collections.abc import Callable
from hashlib import sha256
from itertools import count
from typing import Any, NamedTuple

from benchmarks import machine
from headstart.farm.bridge import STATE_INTERVAL
from headstart.farm.routing import Routed, Router
from headstart.service import events
from headstart.service.actions import Action, Assign, Deliver, Fork, Kill, Lend, StartZygote
from headstart.service.queue import Kind, Room, Ticket, Urgency
from headstart.service.scheduler import Scheduler
from headstart.wire.farm import LentJob, NodeState

NODES, WORKERS, LOCAL = (int(os.environ.get(name, default)) for name, default in
                         (("NODES", "256"), ("WORKERS", "16"), ("LOCAL", "16")))  # fmt: skip
LATENCY = float(os.environ.get("LATENCY_MS", "5")) / 1000  # seconds
TOOLCHAIN = "ab" * 32
KIND = Kind("triton", "")
FARM = "farm"
RECORDED = machine.ROOT / "benchmarks" / "results" / "2026-11-30-h200-live-312-sweeps.json"


class Kernel(NamedTuple):
    seconds: float
    estimate: float


def recorded() -> list[Kernel]:
    """The 312 kernels."""
    run = json.loads(RECORDED.read_text(encoding="utf-8"))[0]
    sweeps, cores = run["sweeps"], run["cores"]
    # A sweep's floor is its longest, or its sum shared out over the cores.
    sums = {name: cores * floor for name, (_, longest, floor) in sweeps["each"].items() if floor > longest}
    left = sweeps["cpu_s"] - sum(sums.values())
    others = {name: many * longest for name, (many, longest, _) in sweeps["each"].items() if name not in sums}
    sums |= {name: most * left / sum(others.values()) for name, most in others.items()}
    kernels = []
    for name, (many, longest, _) in sweeps["each"].items():
        shortest = max(0.0, 2 * sums[name] / many - longest)
        kernels += [Kernel(longest - (longest - shortest) * i / max(1, many - 1), longest) for i in range(many)]
    return kernels


class Node:
    """Workers, and jobs that wait for one."""

    def __init__(self) -> None:
        self.waiting: deque[Routed] = deque()
        self.running = 0

    def state(self) -> NodeState:
        return NodeState(WORKERS, [""] * self.running, len(self.waiting), 0, [TOOLCHAIN])


class Simulation:
    """One service, its bridge, and the nodes.

    Attributes:
        decided: processor seconds that scheduler and router took.
        there, here: kernels made on nodes and by local workers; `twice`: by both.
    """

    def __init__(self, kernels: list[Kernel]) -> None:
        self.kernels = kernels
        self.now = 0.0
        self.decided = 0.0
        self.there = self.here = 0
        self.done: dict[str, float] = {}
        self._scheduler = Scheduler(LOCAL)
        self._router = Router()
        self._nodes = {f"node{number}": Node() for number in range(NODES)}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = count()
        self._tickets = count(1)
        self._seen = 0
        self._out: dict[int, str] = {}
        self._unsent: list[Routed] = []
        self._state_due = False
        self._killed: set[int] = set()
        self._keys = [sha256(str(number).encode()).hexdigest() for number in range(len(kernels))]
        self._by_key = dict(zip(self._keys, kernels, strict=True))

    def run(self) -> float:
        """Returns the makespan, seconds."""
        for name, node in self._nodes.items():
            self._timed(self._router.heard, name, node.state())
        self._happened(events.Announced(KIND, 1))
        self._tell_state()
        for number, key in enumerate(self._keys):
            estimate = self._by_key[key].estimate
            place = (FARM, TOOLCHAIN)
            self._happened(
                events.Requested(
                    Ticket(1, number), key, KIND, key, Urgency.EARLY, self.now, estimate, None, None, False, place
                )
            )
        self._send()
        while self._events and len(self.done) < len(self.kernels):
            self.now, _, step = heapq.heappop(self._events)
            step()
            self._send()  # the end of a turn of the service's loop
        assert len(self.done) == len(self.kernels), "kernels were lost"
        return max(self.done.values())

    def _later(self, seconds: float, step: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._serial), step))

    def _timed(self, what: Callable[..., Any], *arguments: Any) -> Any:
        begun = time.process_time_ns()
        made = what(*arguments)
        self.decided += (time.process_time_ns() - begun) / 1e9
        return made

    # The service

    def _happened(self, event: events.Event) -> None:
        actions: list[Action] = self._timed(self._scheduler.handle, event)
        for action in actions:
            match action:
                case StartZygote(kind):
                    self._later(0.3, lambda kind=kind: self._happened(events.ZygoteReady(kind, self.now)))  # type: ignore[misc]
                case Fork(worker, _):
                    self._later(0.01, lambda worker=worker: self._happened(events.WorkerForked(worker, self.now)))  # type: ignore[misc]
                case Assign(worker, job):
                    seconds = self._by_key[job.key].seconds
                    self._later(seconds, lambda worker=worker: self._finished(worker))  # type: ignore[misc]
                case Kill(worker):
                    self._killed.add(worker)
                    self._later(0.001, lambda worker=worker: self._gone(worker))  # type: ignore[misc]
                case Deliver(job, outcome):
                    self.done[job.key] = self.now
                    self.here += outcome == "here"
                    self.there += outcome == "there"
                case Lend(job):
                    ticket = next(self._tickets)
                    self._out[ticket] = job.key
                    self._unsent.append(Routed(LentJob(ticket, job.key, TOOLCHAIN, "", b"")))

    def _finished(self, worker: int) -> None:
        if worker not in self._killed:
            self._happened(events.Finished(worker, "here", self.now))

    def _gone(self, worker: int) -> None:
        self._happened(events.WorkerGone(worker, -9, "", "", self.now))

    # The bridge

    def _send(self) -> None:
        self._happened(events.Ticked(self.now))
        if self._unsent:
            unsent, self._unsent = self._unsent, []
            self._seen = unsent[-1].job.ticket
            self._timed(self._router.lend, unsent)
            self._route()

    def _route(self) -> None:
        for name, jobs in self._timed(self._router.route).items():
            self._later(LATENCY, lambda name=name, jobs=jobs: self._arrive(name, jobs))  # type: ignore[misc]
        self._timed(self._router.hopeless)
        if not self._state_due:
            self._state_due = True
            self._later(STATE_INTERVAL, self._tell_state)

    def _tell_state(self) -> None:
        self._state_due = False
        idle, room = self._timed(self._router.offers)
        rooms = {name: Room(idle[name], room[name], 2 * LATENCY) for name in room}
        self._happened(events.Offered(FARM, rooms))

    def _heard(self, name: str, ticket: int, key: str) -> None:
        self._timed(self._router.heard, name, self._nodes[name].state())
        self._timed(self._router.answered, name, ticket)
        self._out.pop(ticket)
        self._happened(events.Obtained(key, "there", self.now))
        self._route()

    def _said_begun(self, keys: list[str]) -> None:
        for key in keys:
            self._happened(events.LentBegun(key))

    # Nodes

    def _arrive(self, name: str, jobs: list[Routed]) -> None:
        self._nodes[name].waiting.extend(jobs)
        self._pump(name)

    def _pump(self, name: str) -> None:
        node = self._nodes[name]
        begun = []
        while node.waiting and node.running < WORKERS:
            job = node.waiting.popleft().job
            node.running += 1
            begun.append(job.key)
            seconds = self._by_key[job.key].seconds
            self._later(seconds, lambda ticket=job.ticket, key=job.key: self._made(name, ticket, key))  # type: ignore[misc]
        if begun:
            self._later(LATENCY, lambda: self._said_begun(begun))

    def _made(self, name: str, ticket: int, key: str) -> None:
        self._nodes[name].running -= 1
        self._later(LATENCY, lambda: self._heard(name, ticket, key))
        self._pump(name)


def main() -> None:
    for name, value in machine.describe().items():
        print(f"{name}: {value}")
    print(f"\n{NODES} nodes with {WORKERS} workers each, {LOCAL} here, {LATENCY * 1000:g} ms each way\n")
    print("| kernels | bound | makespan | makespan : bound | made there | here | deciding, ms a kernel |")
    print("|---|---|---|---|---|---|---|")
    sweep = recorded()
    for many in (len(sweep), 10_000):
        kernels = [sweep[number % len(sweep)] for number in range(many)]
        random.Random(7).shuffle(kernels)
        simulation = Simulation(kernels)
        makespan = simulation.run()
        seconds = [kernel.seconds for kernel in kernels]
        bound = max(max(seconds), sum(seconds) / (NODES * WORKERS + LOCAL))
        cost = 1000 * simulation.decided / many
        print(
            f"| {many} | {bound:.2f} s | {makespan:.2f} s | {makespan / bound:.3f} | {simulation.there} | "
            f"{simulation.here} | {cost:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
