"""What a graph computes: every node's value, in Python floats, on tensors small enough for that.

Generated kernels are checked against this, so it shares nothing with the lowering but the table of scalar operations.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from kernelgen.ir import (
    OPS,
    REDUCTIONS,
    Attention,
    Constant,
    Graph,
    Iota,
    Load,
    MatMul,
    Node,
    Pointwise,
    Reduce,
    Shape,
    spread,
)

SMALL_WINDOW = 5  # positions, in place of any attention window: what it cuts off has to exist on small inputs
SMALL_WIDTH = 4  # in place of the width of any attention head; kernels want a power of two


def shrink(graph: Graph, sizes: Sequence[int]) -> dict[int, int]:
    """A small dimension for each one in `graph`: equal ones stay equal, different ones different."""
    dims = {1: 1}
    for node in graph.order:
        if isinstance(node, Attention):
            dims[node.shape[-1]] = SMALL_WIDTH
    free = iter(sizes)
    for node in graph.order:
        for dim in node.shape:
            if dim not in dims:
                dims[dim] = next(free)
    return dims


class Small:
    """Evaluates a graph at the dimensions that `shrink` gave, on inputs drawn from `seed`."""

    def __init__(self, graph: Graph, dims: Mapping[int, int], seed: int) -> None:
        self._graph, self._dims, self._seed = graph, dims, seed
        self.values: dict[Node, list[Any]] = {}
        for node in graph.order:
            self.values[node] = self._evaluate(node)

    def shape(self, node: Node) -> Shape:
        return tuple(self._dims[dim] for dim in node.shape)

    def _evaluate(self, node: Node) -> list[Any]:
        shape = self.shape(node)
        if isinstance(node, Load):
            draw = random.Random(f"{self._seed} {self._graph.name} {node.name}")
            if node.dtype in ("i32", "i8"):
                return [draw.randrange(0, 5) for _ in range(math.prod(shape))]
            return [draw.uniform(-2.0, 2.0) for _ in range(math.prod(shape))]
        if isinstance(node, Constant):
            return [node.value]
        if isinstance(node, Iota):
            inner = math.prod(shape[node.axis + 1 :])
            return [i // inner % shape[node.axis] for i in range(math.prod(shape))]
        if isinstance(node, Pointwise):
            columns = [spread(self.values[arg], self.shape(arg), shape) for arg in node.operands]
            return list(map(OPS[node.op].scalar, *columns))
        if isinstance(node, Reduce):
            return self._reduce(node)
        if isinstance(node, MatMul):
            return self._matmul(node, shape)
        assert isinstance(node, Attention)
        return self._attention(node)

    def _reduce(self, node: Reduce) -> list[float]:
        rows, columns = self.shape(node.source)
        data, combine = self.values[node.source], REDUCTIONS[node.op][1]
        if node.axis == 1:
            out = [combine(iter(data[r * columns : (r + 1) * columns])) for r in range(rows)]
        else:
            out = [combine(iter(data[c::columns])) for c in range(columns)]
        count = columns if node.axis == 1 else rows
        return [x / count for x in out] if node.op == "mean" else out

    def _matmul(self, node: MatMul, shape: Shape) -> list[float]:
        a, b, depth = self.values[node.a], self.values[node.b], self.shape(node.a)[1]
        rows = [a[r * depth : (r + 1) * depth] for r in range(shape[0])]
        if node.transposed:
            columns = [b[c * depth : (c + 1) * depth] for c in range(shape[1])]
        else:
            columns = [b[c :: shape[1]] for c in range(shape[1])]
        return [sum(map(float.__mul__, row, column)) for row in rows for column in columns]

    def _attention(self, node: Attention) -> list[float]:
        heads, length, width = self.shape(node)
        q, k, v = ([self.values[x][i : i + width] for i in range(0, heads * length * width, width)] for x in node.args)
        out: list[float] = []
        for head in range(heads):
            for i in range(length):
                first = max(0, i - SMALL_WINDOW + 1) if node.window else 0
                seen = range(first, i + 1 if node.causal else length)
                scores = [sum(map(float.__mul__, q[head * length + i], k[head * length + j])) for j in seen]
                scores = [s * node.scale for s in scores]
                if node.softcap:
                    scores = [node.softcap * math.tanh(s / node.softcap) for s in scores]
                weights = [math.exp(s - max(scores)) for s in scores]
                for d in range(width):
                    column = [v[head * length + j][d] for j in seen]
                    out.append(sum(map(float.__mul__, weights, column)) / sum(weights))
        return out
