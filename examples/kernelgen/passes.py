"""What happens to a graph before it is printed: simplification, common subexpressions, and fusion into kernels.

Fusion starts with one group per operation and merges, greedily, the pair that saves the most memory traffic, until no
legal pair saves any. A group is one kernel. What a group may be is decided by `FusionPlanner._merged`:

    pointwise   operations on one shape; smaller operands are broadcast
    reduction   rows (or columns) reduced, any number of times, with the pointwise work before, between and after
    matmul      one product and the pointwise epilogue on its result
    attention   one attention, alone
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from kernelgen.ir import OPS, Attention, Constant, Graph, Iota, Load, MatMul, Node, Pointwise, Reduce, Shape

MAX_BUFFERS = 14  # pointers of one kernel: more of them run out of registers before they save traffic
MAX_OPERATIONS = 96


# Simplification


class Simplifier:
    """Rewrites a graph bottom-up; equal subexpressions become one node (value numbering)."""

    def __init__(self) -> None:
        self._numbers: dict[Node, int] = {}
        self._values: dict[tuple[object, ...], Node] = {}
        self._new: dict[Node, Node] = {}

    def run(self, graph: Graph) -> Graph:
        for node in graph.order:
            self._new[node] = self._rewrite(node, [self._new[arg] for arg in node.args])
        return Graph(graph.name, {name: self._new[node] for name, node in graph.outputs.items()})

    def _intern(self, node: Node, *what: object) -> Node:
        key = (type(node), node.shape, node.dtype, *what, *(self._numbers[arg] for arg in node.args))
        if key not in self._values:
            self._values[key] = node
            self._numbers[node] = len(self._numbers)
        return self._values[key]

    def _rewrite(self, node: Node, args: list[Node]) -> Node:
        if isinstance(node, Load):
            return self._intern(node, node.name)
        if isinstance(node, Constant):
            return self._intern(node, node.value, math.copysign(1.0, node.value))
        if isinstance(node, Iota):
            return self._intern(node, node.axis)
        if isinstance(node, Reduce):
            return self._intern(Reduce(node.shape, node.dtype, node.op, args[0], node.axis), node.op, node.axis)
        if isinstance(node, MatMul):
            return self._intern(MatMul(node.shape, node.dtype, *args, node.transposed), node.transposed)
        if isinstance(node, Attention):
            how = (node.scale, node.causal, node.softcap, node.window)
            return self._intern(Attention(node.shape, node.dtype, args[0], args[1], args[2], *how), *how)
        assert isinstance(node, Pointwise)
        return self._pointwise(node, args)

    def _pointwise(self, node: Pointwise, args: list[Node]) -> Node:
        op = OPS[node.op]
        if all(isinstance(arg, Constant) for arg in args):
            value = float(op.scalar(*(arg.value for arg in args)))  # type: ignore[attr-defined]
            return self._rewrite(Constant((), "fp32", value), [])
        if op.commutes:
            # Constants last, the rest by number: `a + b` and `b + a` become one value.
            args = sorted(args, key=lambda arg: (isinstance(arg, Constant), self._numbers[arg]))
        name = node.op
        value = args[-1].value if isinstance(args[-1], Constant) else None
        same = args[0].shape == node.shape and args[0].dtype == node.dtype
        if same and ((name in ("add", "sub") and value == 0) or (name in ("mul", "div") and value == 1)):
            return args[0]
        if same and name == "cast":
            return args[0]
        if name in ("maximum", "minimum") and args[0] is args[1] and same:
            return args[0]
        if name == "where" and args[1] is args[2] and args[1].shape == node.shape:
            return args[1]
        if name == "neg" and isinstance(args[0], Pointwise) and args[0].op == "neg" and same:
            return args[0].operands[0]
        if name == "div" and value is not None and math.frexp(value)[0] == 0.5:
            # A power of two has an exact reciprocal; other divisors would round differently.
            return self._pointwise(node_like(node, "mul"), [args[0], self._constant(1.0 / value)])
        if name == "sub" and value is not None:
            return self._pointwise(node_like(node, "add"), [args[0], self._constant(-value)])
        if name == "mul" and value == -1.0:
            return self._pointwise(node_like(node, "neg"), [args[0]])
        if name == "mul" and value == 2.0:
            return self._pointwise(node_like(node, "add"), [args[0], args[0]])
        if name == "div" and isinstance(args[1], Pointwise) and args[1].op == "sqrt" and args[1].shape != node.shape:
            # One reciprocal square root per row instead of one division per element.
            root = args[1]
            inverse = self._intern(Pointwise(root.shape, "fp32", "rsqrt", root.operands), "rsqrt")
            return self._pointwise(node_like(node, "mul"), [args[0], inverse])
        return self._intern(Pointwise(node.shape, node.dtype, name, tuple(args)), name)

    def _constant(self, value: float) -> Node:
        return self._rewrite(Constant((), "fp32", value), [])


def node_like(node: Pointwise, op: str) -> Pointwise:
    return Pointwise(node.shape, node.dtype, op, node.operands)


# Fusion


def is_leaf(node: Node) -> bool:
    return isinstance(node, Load | Constant | Iota)


def in_memory(node: Node) -> bool:
    return not isinstance(node, Constant | Iota)


@dataclass(frozen=True, eq=False)
class Group:
    """The operations of one kernel. `shape` is the domain that it iterates over."""

    kind: str
    members: tuple[int, ...]  # indices into the planner's order, ascending
    shape: Shape
    axis: int | None = None


@dataclass(frozen=True)
class Kernel:
    """A group with its boundary, ready to be printed."""

    kind: str
    nodes: tuple[Node, ...]  # arguments first
    inputs: tuple[Node, ...]
    outputs: tuple[Node, ...]
    shape: Shape
    axis: int | None


class FusionPlanner:
    def __init__(self, graph: Graph) -> None:
        self.order = graph.order
        self._index = {node: i for i, node in enumerate(self.order)}
        self._results = {self._index[node] for node in graph.outputs.values()}
        self._args = [tuple(dict.fromkeys(self._index[arg] for arg in node.args)) for node in self.order]
        self._users: list[list[int]] = [[] for _ in self.order]
        for i, args in enumerate(self._args):
            for arg in args:
                self._users[arg].append(i)
        self._boundaries: dict[tuple[int, ...], tuple[tuple[int, ...], tuple[int, ...]]] = {}

    def plan(self) -> list[Kernel]:
        groups = [self._single(i) for i, node in enumerate(self.order) if not is_leaf(node)]
        rejected: set[tuple[tuple[int, ...], tuple[int, ...]]] = set()
        while True:
            best: tuple[float, int, Group, Group, Group] | None = None
            for position, a in enumerate(groups):
                for b in groups[position + 1 :]:
                    if (a.members, b.members) in rejected:
                        continue
                    saved = self._saved(a, b)
                    merged = self._merged(a, b) if saved > 0 else None
                    if merged is None:
                        rejected.add((a.members, b.members))
                        continue
                    # Of equal savings the closest pair: what was written together is used together.
                    distance = abs(a.members[-1] - b.members[0])
                    if best is None or (saved, -distance) > best[:2]:
                        if self._cyclic(a, b, groups):
                            continue
                        best = (saved, -distance, a, b, merged)
            if best is None:
                break
            _, _, a, b, merged = best
            groups = [group for group in groups if group is not a and group is not b]
            groups.append(merged)
            groups.sort(key=lambda group: group.members)
        return [self._kernel(group) for group in self._scheduled(groups)]

    def _single(self, i: int) -> Group:
        node = self.order[i]
        if isinstance(node, Reduce):
            return Group("reduction", (i,), node.source.shape, node.axis)
        kind = {MatMul: "matmul", Attention: "attention"}.get(type(node), "pointwise")
        return Group(kind, (i,), node.shape)

    def _boundary(self, members: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What a set of operations reads, and what of it others need."""
        if members not in self._boundaries:
            inside = set(members)
            reads = {arg for i in members for arg in self._args[i] if arg not in inside}
            writes = [i for i in members if i in self._results or any(u not in inside for u in self._users[i])]
            self._boundaries[members] = (
                tuple(sorted(i for i in reads if in_memory(self.order[i]))),
                tuple(writes),
            )
        return self._boundaries[members]

    def _traffic(self, members: tuple[int, ...]) -> int:
        reads, writes = self._boundary(members)
        return sum(self.order[i].nbytes for i in (*reads, *writes))

    def _saved(self, a: Group, b: Group) -> int:
        (reads_a, writes_a), (reads_b, writes_b) = self._boundary(a.members), self._boundary(b.members)
        if not ({*reads_a, *writes_a} & {*reads_b, *writes_b}):
            return 0
        return self._traffic(a.members) + self._traffic(b.members) - self._traffic(union(a, b))

    def _merged(self, a: Group, b: Group) -> Group | None:
        """The group that does both, or None if no template can."""
        members = union(a, b)
        reads, writes = self._boundary(members)
        if len(members) > MAX_OPERATIONS or len(reads) + len(writes) > MAX_BUFFERS:
            return None
        kinds = {a.kind, b.kind}
        if "attention" in kinds:
            return None
        if "matmul" in kinds:
            product, other = (a, b) if a.kind == "matmul" else (b, a)
            reads_product = set(self._boundary(other.members)[0]) & set(product.members)
            if other.kind == "pointwise" and other.shape == product.shape and reads_product:
                return Group("matmul", members, product.shape)
            return None
        if kinds == {"pointwise"}:
            shape = max(a.shape, b.shape, key=math.prod)
            small = b if shape == a.shape else a
            if small.shape != shape and not self._vanishes(small, members, shape):
                return None
            return Group("pointwise", members, shape)
        if a.kind == b.kind:
            same = a.shape == b.shape and a.axis == b.axis
            return Group("reduction", members, a.shape, a.axis) if same else None
        reduction, other = (a, b) if a.kind == "reduction" else (b, a)
        assert reduction.axis is not None
        kept = tuple(1 if i == reduction.axis else n for i, n in enumerate(reduction.shape))
        if other.shape in (reduction.shape, kept) or self._vanishes(other, members, reduction.shape):
            return Group("reduction", members, reduction.shape, reduction.axis)
        return None

    def _vanishes(self, small: Group, members: tuple[int, ...], shape: Shape) -> bool:
        """Whether `small` broadcasts into `shape` and nothing outside needs it, so that it can be computed again."""
        if len(small.shape) > len(shape) or len(small.members) > 4:
            return False
        padded = (1,) * (len(shape) - len(small.shape)) + small.shape
        if any(have not in (1, want) for have, want in zip(padded, shape, strict=True)):
            return False
        return not set(small.members) & set(self._boundary(members)[1])

    def _cyclic(self, a: Group, b: Group, groups: Iterable[Group]) -> bool:
        """Whether a third group would have to run both after and before the merged one."""
        home = {i: group for group in groups for i in group.members}
        merged = {*a.members, *b.members}
        stack = [u for i in merged for u in self._users[i] if u not in merged]
        seen: set[int] = set()
        while stack:
            i = stack.pop()
            if i in seen:
                continue
            for member in home[i].members:
                seen.add(member)
                if any(u in merged for u in self._users[member]):
                    return True
                stack.extend(self._users[member])
        return False

    def _scheduled(self, groups: list[Group]) -> list[Group]:
        home = {i: group for group in groups for i in group.members}
        done: dict[Group, None] = {}

        def visit(group: Group) -> None:
            if group not in done:
                for i in self._boundary(group.members)[0]:
                    if i in home:
                        visit(home[i])
                done[group] = None

        for group in groups:
            visit(group)
        return list(done)

    def _kernel(self, group: Group) -> Kernel:
        reads, writes = self._boundary(group.members)
        nodes = tuple(self.order[i] for i in group.members)
        inputs, outputs = tuple(self.order[i] for i in reads), tuple(self.order[i] for i in writes)
        return Kernel(group.kind, nodes, inputs, outputs, group.shape, group.axis)


def union(a: Group, b: Group) -> tuple[int, ...]:
    return tuple(sorted({*a.members, *b.members}))


def simplify(graph: Graph) -> Graph:
    return Simplifier().run(graph)


def plan(graph: Graph) -> list[Kernel]:
    """The kernels of `graph` in an order in which they can run."""
    return FusionPlanner(graph).plan()
