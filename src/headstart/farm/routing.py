"""Which node gets which job. No I/O, no clock.

Guarantees:

* A job goes to a node that has its toolchain, whose last answer was neither late nor wrong.
* One kernel goes to one node, whoever asks for it (rendezvous hashing of its key over the nodes that would take it), as
  long as a worker is free there; else to the next one in the order that its key gives them, or any that has a worker
  free; if none is free anywhere, a few jobs are sent ahead, again to its own node first.
* No node has more of ours than its workers, and those few.
* A job that a node loses is tried on another one, `MAX_TRIES` in all; then it is `unmade`.

A node's workers are also other hosts'. What it said of its load when it last answered is taken for what it is now.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256

from headstart.wire.farm import FarmNode, LentJob, NodeState

MAX_TRIES = 2  # nodes that a job is sent to, one after another
_NEXT = 8  # nodes that are looked at in the order of a key before whichever is idle
_MIX = 0x9E3779B97F4A7C15  # 2**64 / golden ratio: multiplying by it spreads neighbours over all 64 bits
_MASK = (1 << 64) - 1


def ahead(workers: int) -> int:
    """How many jobs a node is sent beyond what its workers are at, so that they need not wait for a message."""
    return 1 + workers


@dataclass(eq=False)
class Routed:
    """A job on its way.

    Attributes:
        cache_dir, trusted: as in `wire.farm.Lend`.
        tries: nodes that it was sent to.
        wanted: whether its answer is for anybody; if not, nodes may still be at it.
        begun: whether the service has been told so.
    """

    job: LentJob
    cache_dir: bytes = b""
    trusted: bool = False
    tries: int = 0
    tried: set[str] = field(default_factory=set)
    wanted: bool = True
    begun: bool = False


@dataclass(eq=False)
class Node:
    """What is known of a node.

    Attributes:
        state: as it said last.
        out: jobs that it was given and has not answered, by ticket.
        usable: whether it answers.
        refused: toolchains that it does not compile with.
        why_not: why it is given nothing, for people.
    """

    name: str
    state: NodeState
    out: dict[int, Routed] = field(default_factory=dict)
    usable: bool = True
    refused: set[str] = field(default_factory=set)
    why_not: str = ""
    seed: int = 0
    others: int = 0  # jobs of other hosts', when it answered last

    def __post_init__(self) -> None:
        self.seed = int.from_bytes(sha256(self.name.encode()).digest()[:8], "little")

    def takes(self, toolchain: str) -> bool:
        """Whether it may be given jobs of a toolchain."""
        return self.usable and toolchain in self.state.toolchains and toolchain not in self.refused

    @property
    def free(self) -> int:
        """How many jobs would begin at once; below zero: how many wait."""
        return self.state.workers - self.others - len(self.out)

    @property
    def room(self) -> int:
        """How many more it is given."""
        return max(0, self.free + ahead(self.state.workers))

    def report(self) -> FarmNode:
        """For people."""
        state = self.state
        return FarmNode(
            self.name, state.workers, state.running, state.queued, state.compiled, len(self.out), self.why_not
        )


class Router:
    """The nodes of one cluster, and the jobs of one service.

    Attributes:
        nodes: by name.
        waiting: jobs that no node has room for just now, in the order in which they came.
    """

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.waiting: dict[int, Routed] = {}
        self._takers: dict[str, tuple[list[Node], list[int]]] = {}  # by toolchain, as far as it was asked
        self._idle: dict[str, Node] = {}  # those that have a worker free

    def heard(self, name: str, state: NodeState) -> Node:
        """A node has answered; it may be a new one."""
        node = self.nodes.get(name)
        if node is None:
            node = self.nodes[name] = Node(name, state)
            self._takers.clear()
        if not node.usable or node.state.toolchains != state.toolchains:
            self._takers.clear()
        node.state, node.usable = state, True
        if state.unable or not node.refused:
            node.why_not = state.unable
        # What it has of ours that we do not know of is ours no more, and runs there all the same.
        node.others = max(0, len(state.running) + state.queued - len(node.out))
        self._changed(node)
        return node

    def lend(self, jobs: Iterable[Routed]) -> None:
        """These are to be compiled somewhere."""
        self.waiting.update((routed.job.ticket, routed) for routed in jobs)

    def route(self) -> dict[str, list[Routed]]:
        """Give waiting jobs to nodes: which are to be told of which."""
        sent: dict[str, list[Routed]] = {}
        full: set[str] = set()  # toolchains
        for ticket, routed in list(self.waiting.items()):
            toolchain = routed.job.toolchain
            node = None if toolchain in full else self._choose(routed)
            if node is None:
                if not routed.tried:  # else another job may go where this one has been
                    full.add(toolchain)
                continue
            del self.waiting[ticket]
            node.out[ticket] = routed
            self._changed(node)
            routed.tries += 1
            routed.tried.add(node.name)
            sent.setdefault(node.name, []).append(routed)
        return sent

    def hopeless(self) -> list[Routed]:
        """Waiting jobs that no node there is would ever take; they wait no more."""
        gone = [
            routed
            for routed in self.waiting.values()
            if all(node.name in routed.tried for node in self._takers_of(routed.job.toolchain)[0])
        ]
        for routed in gone:
            del self.waiting[routed.job.ticket]
        return gone

    def answered(self, name: str, ticket: int) -> Routed | None:
        """A node is done with a job, one way or the other; None: it had none of this name."""
        node = self.nodes.get(name)
        if node is None:
            return None
        routed = node.out.pop(ticket, None)
        self._changed(node)
        return routed

    def take_back(self, ticket: int, *, wanted: bool = False) -> list[str]:
        """A job is not to begin. Returns the nodes that have it, and keep it until they answer.

        Args:
            ticket: of the job.
            wanted: whether its answer is, should one have begun; if not, it is tried nowhere else.
        """
        self.waiting.pop(ticket, None)
        having = [node for node in self.nodes.values() if ticket in node.out]
        for node in having:
            node.out[ticket].wanted &= wanted
        return [node.name for node in having]

    def refuse(self, name: str, toolchain: str, why: str) -> None:
        """A node does not compile with a toolchain, and is not asked again."""
        node = self.nodes[name]
        node.refused.add(toolchain)
        self._takers.clear()
        node.why_not = why

    def lose(self, name: str, why: str, *, forget: bool) -> list[Routed]:
        """A node does not answer, or is gone. Returns what it had that is not to be tried again elsewhere.

        Args:
            name: of the node.
            why: for people.
            forget: whether what it was given is certainly lost; else it stays there as well, and may be answered.
        """
        node = self.nodes.get(name)
        if node is None:
            return []
        node.usable, node.why_not = False, why
        self._takers.clear()
        lost = list(node.out.values())
        if forget:
            node.out.clear()
        self._changed(node)
        return self.retry(lost)

    def retry(self, lost: Iterable[Routed]) -> list[Routed]:
        """Try jobs on other nodes, but for those that nobody wants, or that a node which answers is at, too.

        Returns those that have been tried often enough.
        """
        over = []
        for routed in lost:
            if not routed.wanted or self.is_under_way(routed):
                continue
            routed.begun = False
            if routed.tries < MAX_TRIES:
                self.waiting[routed.job.ticket] = routed
            else:
                over.append(routed)
        return over

    def is_under_way(self, routed: Routed) -> bool:
        """Whether a job's answer is still to come: it waits, or a node that answers has it."""
        ticket = routed.job.ticket
        nodes = filter(None, map(self.nodes.get, routed.tried))
        return ticket in self.waiting or any(node.usable and ticket in node.out for node in nodes)

    def remove(self, name: str) -> None:
        """A node has left the cluster."""
        self.nodes.pop(name, None)
        self._idle.pop(name, None)
        self._takers.clear()

    def offers(self) -> tuple[dict[str, int], dict[str, int]]:
        """By toolchain: how many more jobs would begin at once, and how many nodes would take, these included."""
        idle: dict[str, int] = {}
        room: dict[str, int] = {}
        for toolchain in {name for node in self.nodes.values() for name in node.state.toolchains}:
            waiting = sum(routed.job.toolchain == toolchain for routed in self.waiting.values())
            free = [(node.free, node.state.workers) for node in self._takers_of(toolchain)[0]]
            if free:
                idle[toolchain] = max(0, sum(each for each, _ in free if each > 0) - waiting)
                room[toolchain] = max(0, sum(max(0, each + ahead(workers)) for each, workers in free) - waiting)
        return idle, room

    def _choose(self, routed: Routed) -> Node | None:
        nodes, seeds = self._takers_of(routed.job.toolchain)
        if routed.tried:
            nodes = [node for node in nodes if node.name not in routed.tried]
            seeds = [node.seed for node in nodes]
        if not nodes:
            return None
        key = int(routed.job.key[:16], 16)
        scores = [((key ^ seed) * _MIX) & _MASK for seed in seeds]
        own = nodes[scores.index(max(scores))]
        if own.free > 0:
            return own
        if self._idle:
            # The next ones by the same order, so that hosts that find its own node full meet there.
            for number in sorted(range(len(nodes)), key=scores.__getitem__, reverse=True)[1:_NEXT]:
                if nodes[number].free > 0:
                    return nodes[number]
            idle = [node for node in self._idle.values() if node.takes(routed.job.toolchain)]
            idle = [node for node in idle if node.name not in routed.tried]
            if idle:
                return max(idle, key=lambda node: node.free)
        if own.room > 0:
            return own
        freest = max(nodes, key=lambda node: node.free)
        return freest if freest.room > 0 else None

    def _takers_of(self, toolchain: str) -> tuple[list[Node], list[int]]:
        """The nodes that are given jobs of a toolchain, and their seeds."""
        found = self._takers.get(toolchain)
        if found is None:
            nodes = [node for node in self.nodes.values() if node.takes(toolchain)]
            found = self._takers[toolchain] = nodes, [node.seed for node in nodes]
        return found

    def _changed(self, node: Node) -> None:
        """It has been given something, or has answered: whether it has a worker free may be another."""
        if node.usable and node.free > 0:
            self._idle[node.name] = node
        else:
            self._idle.pop(node.name, None)
