"""Tensor expressions: nodes, the operations they may hold, and graphs.

A tensor is a shape (up to three dimensions, row-major, contiguous) and the dtype it has in memory; arithmetic is done
in fp32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Union

Shape = tuple[int, ...]
Operand = Union["Node", float, int]

ITEMSIZE = {"fp32": 4, "fp16": 2, "bf16": 2, "i32": 4, "i8": 1, "i1": 1}  # bytes
TL_DTYPE = {
    "fp32": "tl.float32",
    "fp16": "tl.float16",
    "bf16": "tl.bfloat16",
    "i32": "tl.int32",
    "i8": "tl.int8",
    "i1": "tl.int1",
}


# Scalar arithmetic that answers as IEEE hardware does: masked-off lanes divide by zero and take logs of zero.
def divide(a: float, b: float) -> float:
    if b:
        return a / b
    return math.nan if not a or a != a else math.copysign(math.inf, a) * math.copysign(1.0, b)


def exp(a: float) -> float:
    try:
        return math.exp(a)
    except OverflowError:
        return math.inf


def log(a: float) -> float:
    return math.log(a) if a > 0 else (-math.inf if a == 0 else math.nan)


def sqrt(a: float) -> float:
    return math.sqrt(a) if a >= 0 else math.nan


def rsqrt(a: float) -> float:
    return divide(1.0, sqrt(a))


def sigmoid(a: float) -> float:
    return divide(1.0, 1.0 + exp(-a))


class Op(NamedTuple):
    text: str  # how Triton spells it
    scalar: Callable[..., Any]  # what it means
    flops: float  # what it costs, in fused multiply-adds
    commutes: bool = False
    boolean: bool = False


OPS: dict[str, Op] = {
    "add": Op("{0} + {1}", lambda a, b: a + b, 1, commutes=True),
    "sub": Op("{0} - {1}", lambda a, b: a - b, 1),
    "mul": Op("{0} * {1}", lambda a, b: a * b, 1, commutes=True),
    "div": Op("{0} / {1}", divide, 8),
    "maximum": Op("tl.maximum({0}, {1})", max, 1, commutes=True),
    "minimum": Op("tl.minimum({0}, {1})", min, 1, commutes=True),
    "neg": Op("-{0}", lambda a: -a, 1),
    "abs": Op("tl.abs({0})", abs, 1),
    "exp": Op("tl.exp({0})", exp, 6),
    "log": Op("tl.log({0})", log, 6),
    "sqrt": Op("tl.sqrt({0})", sqrt, 6),
    "rsqrt": Op("tl.rsqrt({0})", rsqrt, 4),
    "sigmoid": Op("tl.sigmoid({0})", sigmoid, 10),
    "erf": Op("tl.erf({0})", math.erf, 24),
    "sin": Op("tl.sin({0})", math.sin, 20),
    "cos": Op("tl.cos({0})", math.cos, 20),
    "floor": Op("tl.floor({0})", math.floor, 1),
    "gt": Op("{0} > {1}", lambda a, b: a > b, 1, boolean=True),
    "ge": Op("{0} >= {1}", lambda a, b: a >= b, 1, boolean=True),
    "lt": Op("{0} < {1}", lambda a, b: a < b, 1, boolean=True),
    "eq": Op("{0} == {1}", lambda a, b: a == b, 1, commutes=True, boolean=True),
    "cast": Op("{0}.to(tl.float32)", float, 1),
    "where": Op("tl.where({0}, {1}, {2})", lambda c, a, b: a if c else b, 1),
}

# Neutral element and combining function of each reduction; a mean is a sum that is divided at the end.
REDUCTIONS: dict[str, tuple[float, Callable[[Iterator[float]], float]]] = {
    "sum": (0.0, math.fsum),
    "mean": (0.0, math.fsum),
    "max": (-math.inf, max),
    "min": (math.inf, min),
}


@dataclass(frozen=True, eq=False)
class Node:
    shape: Shape
    dtype: str

    @property
    def args(self) -> tuple[Node, ...]:
        return ()

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEMSIZE[self.dtype]

    def __add__(self, other: Operand) -> Node:
        return op("add", self, other)

    def __radd__(self, other: Operand) -> Node:
        return op("add", other, self)

    def __sub__(self, other: Operand) -> Node:
        return op("sub", self, other)

    def __rsub__(self, other: Operand) -> Node:
        return op("sub", other, self)

    def __mul__(self, other: Operand) -> Node:
        return op("mul", self, other)

    def __rmul__(self, other: Operand) -> Node:
        return op("mul", other, self)

    def __truediv__(self, other: Operand) -> Node:
        return op("div", self, other)

    def __rtruediv__(self, other: Operand) -> Node:
        return op("div", other, self)

    def __neg__(self) -> Node:
        return op("neg", self)

    def __gt__(self, other: Operand) -> Node:
        return op("gt", self, other)

    def __ge__(self, other: Operand) -> Node:
        return op("ge", self, other)

    def __lt__(self, other: Operand) -> Node:
        return op("lt", self, other)


@dataclass(frozen=True, eq=False)
class Load(Node):
    """An input of the graph."""

    name: str


@dataclass(frozen=True, eq=False)
class Constant(Node):
    value: float


@dataclass(frozen=True, eq=False)
class Iota(Node):
    """The index of each element along `axis`; never in memory."""

    axis: int


@dataclass(frozen=True, eq=False)
class Pointwise(Node):
    op: str
    operands: tuple[Node, ...]

    @property
    def args(self) -> tuple[Node, ...]:
        return self.operands


@dataclass(frozen=True, eq=False)
class Reduce(Node):
    """Reduces a matrix along `axis`, which stays with length one."""

    op: str
    source: Node
    axis: int

    @property
    def args(self) -> tuple[Node, ...]:
        return (self.source,)


@dataclass(frozen=True, eq=False)
class MatMul(Node):
    """`a @ b`, or `a @ b.T` if `transposed`."""

    a: Node
    b: Node
    transposed: bool = False

    @property
    def args(self) -> tuple[Node, ...]:
        return (self.a, self.b)


@dataclass(frozen=True, eq=False)
class Attention(Node):
    """`softmax(score(q @ k.T)) @ v` for each head; tensors are (heads, positions, width)."""

    q: Node
    k: Node
    v: Node
    scale: float
    causal: bool = False
    softcap: float = 0.0  # zero: none
    window: int = 0  # positions a query sees behind itself; zero: all

    @property
    def args(self) -> tuple[Node, ...]:
        return (self.q, self.k, self.v)


@dataclass(frozen=True)
class Graph:
    """A tensor program: named results and the expressions that define them."""

    name: str
    outputs: Mapping[str, Node]
    order: tuple[Node, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "order", tuple(topological(self.outputs.values())))


def topological(roots: Iterator[Node] | Sequence[Node] | Any) -> list[Node]:
    """Everything that `roots` are made of, arguments first, in an order that depends on the expression alone."""
    order: dict[Node, None] = {}
    stack = [(node, False) for node in reversed(list(roots))]
    while stack:
        node, ready = stack.pop()
        if node in order:
            continue
        if ready:
            order[node] = None
        else:
            stack.append((node, True))
            stack.extend((arg, False) for arg in reversed(node.args))
    return list(order)


# Building


def load(name: str, shape: Shape, dtype: str = "fp32") -> Load:
    return Load(shape, dtype, name)


def constant(value: float) -> Constant:
    return Constant((), "fp32", float(value))


def iota(shape: Shape, axis: int) -> Iota:
    return Iota(shape, "i32", axis)


def broadcast(shapes: Sequence[Shape]) -> Shape:
    rank = max((len(shape) for shape in shapes), default=0)
    padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    out = tuple(max(dims) for dims in zip(*padded, strict=True))
    for shape in padded:
        if any(have not in (1, want) for have, want in zip(shape, out, strict=True)):
            raise ValueError(f"shapes do not broadcast: {list(shapes)}")
    return out


def op(name: str, *operands: Operand, dtype: str | None = None) -> Node:
    nodes = tuple(x if isinstance(x, Node) else constant(x) for x in operands)
    if dtype is None:
        # Constants have no say, and neither have booleans and labels: a half tensor plus 1.0 stays half.
        dtypes = {n.dtype for n in nodes if not isinstance(n, Constant)} & {"fp32", "fp16", "bf16"}
        dtype = "i1" if OPS[name].boolean else dtypes.pop() if len(dtypes) == 1 else "fp32"
    return Pointwise(broadcast([n.shape for n in nodes]), dtype, name, nodes)


def cast(x: Node, dtype: str) -> Node:
    """The same values, kept as `dtype` in memory (and as fp32 in registers)."""
    return op("cast", x, dtype=dtype)


def reduce(name: str, x: Node, axis: int = 1, dtype: str = "fp32") -> Node:
    shape = tuple(1 if i == axis else n for i, n in enumerate(x.shape))
    return Reduce(shape, dtype, name, x, axis)


def matmul(a: Node, b: Node, *, transposed: bool = False) -> Node:
    depth, columns = (b.shape[1], b.shape[0]) if transposed else b.shape
    if a.shape[1] != depth:
        raise ValueError(f"inner dimensions differ: {a.shape} and {b.shape}")
    return MatMul((a.shape[0], columns), a.dtype, a, b, transposed)


def attention(q: Node, k: Node, v: Node, **how: Any) -> Node:
    return Attention(q.shape, q.dtype, q, k, v, how.pop("scale", q.shape[-1] ** -0.5), **how)


def tanh(x: Node) -> Node:
    # Triton's language has no tanh of its own; its device libraries are per vendor.
    return op("sigmoid", x * 2.0) * 2.0 - 1.0


def spread(data: list[Any], shape: Shape, target: Shape) -> list[Any]:
    """`data` of `shape`, broadcast to `target`, as a flat list."""
    if shape == target:
        return data
    if len(data) == 1:
        return data * math.prod(target)
    shape = (1,) * (len(target) - len(shape)) + shape
    out = data
    inner = 1
    for have, want in zip(reversed(shape), reversed(target), strict=True):
        if have != want:
            blocks = [out[i : i + inner] for i in range(0, len(out), inner)]
            out = [x for block in blocks for _ in range(want) for x in block]
        inner *= want
    return out
