"""Prints one fused kernel as the text of one Triton function.

Four templates share one emitter of expressions; a template says how a value of a given shape is addressed
(`Indexing`) and puts loops around. Sizes are arguments and tiles are constants, so the same text serves every size,
and the check can run it on small ones. The text holds `KERNEL_NAME` until the driver has found out whether the
program already has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from kernelgen.ir import (
    OPS,
    REDUCTIONS,
    TL_DTYPE,
    Attention,
    Constant,
    Iota,
    MatMul,
    Node,
    Pointwise,
    Reduce,
    Shape,
)
from kernelgen.passes import Kernel
from kernelgen.tiling import is_persistent, reduction_levels

PLACEHOLDER = "KERNEL_NAME"
HEADER = "import triton\nimport triton.language as tl\n\n\n@triton.jit\n"

Index = tuple[str, str | None]  # offset from the pointer and mask; empty offset: a scalar


@dataclass(frozen=True)
class Size:
    """An integer argument: a dimension of `node`, or with axis None the number of its elements."""

    name: str
    node: Node
    axis: int | None = None
    passed: bool = True  # False: the grid needs it, the kernel does not

    def of(self, shape: Shape) -> int:
        return math.prod(shape) if self.axis is None else shape[self.axis]


@dataclass(frozen=True)
class Lowered:
    source: str
    pointers: tuple[tuple[str, Node], ...]  # inputs first, then outputs
    sizes: tuple[Size, ...]
    constants: tuple[str, ...]
    # Each dimension of the grid is a product of ceil(size / constant), or of plain sizes.
    grid: tuple[tuple[tuple[str, str | None], ...], ...]


@dataclass
class Indexing:
    at: Callable[[Shape], Index]  # how a tensor of this shape is addressed
    along: Callable[[int], str]  # the index along an axis of the domain


@dataclass
class Emitter:
    kernel: Kernel
    indexing: Indexing
    lines: list[str] = field(default_factory=list)
    indent: int = 1
    counter: int = 0
    pointers: dict[Node, str] = field(default_factory=dict)
    results: dict[Node, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pointers = {node: f"in_ptr{i}" for i, node in enumerate(self.kernel.inputs)}
        self.results = {node: f"out_ptr{i}" for i, node in enumerate(self.kernel.outputs)}
        self.members = set(self.kernel.nodes)

    def line(self, text: str) -> None:
        self.lines.append("    " * self.indent + text)

    def define(self, text: str) -> str:
        name = f"tmp{self.counter}"
        self.counter += 1
        self.line(f"{name} = {text}")
        return name

    def value(self, node: Node, scope: dict[Node, str]) -> str:
        """The name or literal of `node`, printing first whatever it is made of and `scope` lacks."""
        if node not in scope:
            if isinstance(node, Constant):
                return literal(node.value)
            if isinstance(node, Iota):
                return self.indexing.along(node.axis)
            if node in self.pointers:
                scope[node] = self.define(self._load(node))
            elif isinstance(node, Reduce):
                scope[node] = self._reduce(node, self.value(node.source, scope))
            else:
                assert isinstance(node, Pointwise), node
                args = [self.value(arg, scope) for arg in node.operands]
                scope[node] = self.define(OPS[node.op].text.format(*map(parenthesised, args)))
        return scope[node]

    def _load(self, node: Node) -> str:
        offset, mask = self.indexing.at(node.shape)
        pointer = f"{self.pointers[node]} + {offset}" if offset else self.pointers[node]
        text = f"tl.load({pointer}, mask={mask}, other=0)" if mask else f"tl.load({pointer})"
        return f"{text}.to(tl.float32)" if node.dtype in ("fp16", "bf16", "i8") else text

    def _reduce(self, node: Reduce, source: str) -> str:
        neutral = literal(REDUCTIONS[node.op][0])
        return self.finish(node, f"tl.where(rmask, {source}, {neutral})")

    def finish(self, node: Reduce, source: str) -> str:
        function = "sum" if node.op == "mean" else node.op
        text = f"tl.{function}({source}, 1)[:, None]"
        return self.define(f"{text} / rnumel" if node.op == "mean" else text)

    def store(self, node: Node, scope: dict[Node, str]) -> None:
        offset, mask = self.indexing.at(node.shape)
        value = self.value(node, scope)
        value = value if node.dtype == "fp32" else f"{value}.to({TL_DTYPE[node.dtype]})"
        self.line(f"tl.store({self.results[node]} + {offset}, {value}, mask={mask})")

    def finished(
        self, sizes: list[Size], constants: list[str], grid: tuple[tuple[tuple[str, str | None], ...], ...]
    ) -> Lowered:
        pointers = (*((name, node) for node, name in self.pointers.items()),)
        pointers += (*((name, node) for node, name in self.results.items()),)
        params = [name for name, _ in pointers] + [size.name for size in sizes if size.passed]
        params += [f"{name}: tl.constexpr" for name in constants]
        source = f"{HEADER}def {PLACEHOLDER}({', '.join(params)}):\n" + "\n".join(self.lines) + "\n"
        return Lowered(source, pointers, tuple(sizes), tuple(constants), grid)


def literal(value: float) -> str:
    return repr(value) if math.isfinite(value) else f'float("{value}")'


def parenthesised(text: str) -> str:
    return f"({text})" if text.startswith("-") else text


def lower(kernel: Kernel) -> Lowered:
    templates = {"pointwise": _pointwise, "reduction": _reduction, "matmul": _matmul, "attention": _attention}
    return templates[kernel.kind](kernel)


def _pointwise(kernel: Kernel) -> Lowered:
    shape = kernel.shape
    used: set[str] = set()

    def at(of: Shape) -> Index:
        if of == shape:
            return "xindex", "xmask"
        if math.prod(of) == 1:
            return "", None
        return along(0 if of[0] == shape[0] else 1), "xmask"

    def along(axis: int) -> str:
        assert len(shape) == 2
        used.add("row" if axis == 0 else "column")
        return "row" if axis == 0 else "column"

    emitter = Emitter(kernel, Indexing(at, along))
    scope: dict[Node, str] = {}
    for node in kernel.outputs:
        emitter.value(node, scope)
    for node in kernel.outputs:
        emitter.store(node, scope)
    opening = [
        "    xindex = tl.program_id(0) * XBLOCK + tl.arange(0, XBLOCK)",
        "    xmask = xindex < xnumel",
    ]
    opening += ["    row = xindex // columns"] * ("row" in used)
    opening += ["    column = xindex % columns"] * ("column" in used)
    emitter.lines[:0] = opening
    sizes = [Size("xnumel", kernel.outputs[0])]
    if used:
        sizes.append(Size("columns", kernel.outputs[0], 1))
    return emitter.finished(sizes, ["XBLOCK"], ((("xnumel", "XBLOCK"),),))


def _reduction(kernel: Kernel) -> Lowered:
    axis = kernel.axis
    assert axis is not None
    length, lines = kernel.shape[axis], kernel.shape[1 - axis]
    reduced = next(node for node in kernel.nodes if isinstance(node, Reduce) and node.source.shape == kernel.shape)

    def runs_along(of: Shape) -> bool:
        return length > 1 and of[axis] == length

    def at(of: Shape) -> Index:
        if runs_along(of) and of[1 - axis] == lines:
            full = "xindex * rnumel + rindex" if axis == 1 else "rindex * xnumel + xindex"
            return full, "xmask & rmask"
        if runs_along(of):
            return "rindex", "rmask"
        return ("xindex", "xmask") if of[1 - axis] == lines else ("", None)

    emitter = Emitter(kernel, Indexing(at, lambda along: "rindex" if along == axis else "xindex"))
    emitter.line("xindex = tl.program_id(0) * XBLOCK + tl.arange(0, XBLOCK)[:, None]")
    emitter.line("xmask = xindex < xnumel")
    scope: dict[Node, str] = {}
    if is_persistent(kernel):
        emitter.line("rindex = tl.arange(0, RBLOCK)[None, :]")
        emitter.line("rmask = rindex < rnumel")
        for node in kernel.nodes:
            emitter.value(node, scope)
        for node in kernel.outputs:
            emitter.store(node, scope)
    else:
        _looped(kernel, emitter, scope, runs_along)
    sizes = [Size("xnumel", reduced.source, 1 - axis), Size("rnumel", reduced.source, axis)]
    return emitter.finished(sizes, ["XBLOCK", "RBLOCK"], ((("xnumel", "XBLOCK"),),))


def _looped(kernel: Kernel, emitter: Emitter, scope: dict[Node, str], runs_along: Callable[[Shape], bool]) -> None:
    """One loop over the line for each level of dependent reductions, and one for what needs them all.

    Values of the whole line are computed again in each loop that needs them; those of one element per line are kept.
    """
    levels = {kernel.nodes[i]: level for i, level in reduction_levels(kernel).items()}
    pending = [node for node in kernel.outputs if runs_along(node.shape)]

    def hoist(node: Node, seen: set[Node]) -> None:
        if node in seen or isinstance(node, Constant | Iota):
            return
        seen.add(node)
        if not runs_along(node.shape):
            emitter.value(node, scope)
        elif node in emitter.members:
            for arg in node.args:
                hoist(arg, seen)

    for level in range(1, max(levels.values()) + 2):
        reductions = [node for node in kernel.nodes if isinstance(node, Reduce) and levels[node] == level]
        stores = [node for node in pending if levels[node] < level]
        pending = [node for node in pending if node not in stores]
        if not reductions and not stores:
            continue
        for node in (*(r.source for r in reductions), *stores):
            hoist(node, set())
        accumulators = {}
        for node in reductions:
            neutral = literal(REDUCTIONS[node.op][0])
            accumulators[node] = emitter.define(f"tl.full([XBLOCK, RBLOCK], {neutral}, tl.float32)")
        emitter.line("for roffset in range(0, rnumel, RBLOCK):")
        emitter.indent += 1
        emitter.line("rindex = roffset + tl.arange(0, RBLOCK)[None, :]")
        emitter.line("rmask = rindex < rnumel")
        inner = dict(scope)
        for node, name in accumulators.items():
            neutral = literal(REDUCTIONS[node.op][0])
            value = f"tl.where(rmask, {emitter.value(node.source, inner)}, {neutral})"
            function = {"max": "tl.maximum({}, {})", "min": "tl.minimum({}, {})"}.get(node.op, "{} + {}")
            emitter.line(f"{name} = {function.format(name, value)}")
        for node in stores:
            emitter.store(node, inner)
        emitter.indent -= 1
        for node, name in accumulators.items():
            scope[node] = emitter.finish(node, name)
    for node in kernel.outputs:
        if not runs_along(node.shape):
            emitter.store(node, scope)


def _matmul(kernel: Kernel) -> Lowered:
    product = next(node for node in kernel.nodes if isinstance(node, MatMul))
    m, n = product.shape

    def at(of: Shape) -> Index:
        if of == (m, n):
            return "index", "mask"
        if of == (1, n):
            return "rn[None, :]", "(rn < N)[None, :]"
        if of == (m, 1):
            return "rm[:, None]", "(rm < M)[:, None]"
        assert math.prod(of) == 1, of
        return "", None

    emitter = Emitter(kernel, Indexing(at, lambda axis: "rm[:, None]" if axis == 0 else "rn[None, :]"))
    a, b = emitter.pointers[product.a], emitter.pointers[product.b]
    b_at = "rn[None, :] * K + k[:, None]" if product.transposed else "k[:, None] * N + rn[None, :]"
    # Programs next to each other in time share rows of one operand: GROUP_M row blocks are walked column by column.
    for text in (
        "pid = tl.program_id(0)",
        "blocks_m = tl.cdiv(M, BLOCK_M)",
        "blocks_n = tl.cdiv(N, BLOCK_N)",
        "group = pid // (GROUP_M * blocks_n)",
        "rows = tl.minimum(blocks_m - group * GROUP_M, GROUP_M)",
        "pid_m = group * GROUP_M + pid % (GROUP_M * blocks_n) % rows",
        "pid_n = pid % (GROUP_M * blocks_n) // rows",
        "rm = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)",
        "rn = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)",
        "acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)",
        "for start in range(0, K, BLOCK_K):",
        "    k = start + tl.arange(0, BLOCK_K)",
        "    if EVEN_K:",
        f"        a = tl.load({a} + rm[:, None] * K + k[None, :], mask=(rm < M)[:, None], other=0)",
        f"        b = tl.load({b} + {b_at}, mask=(rn < N)[None, :], other=0)",
        "    else:",
        f"        a = tl.load({a} + rm[:, None] * K + k[None, :], mask=(rm < M)[:, None] & (k < K)[None, :], other=0)",
        f"        b = tl.load({b} + {b_at}, mask=(rn < N)[None, :] & (k < K)[:, None], other=0)",
        "    acc += tl.dot(a, b)",
        "index = rm[:, None] * N + rn[None, :]",
        "mask = (rm < M)[:, None] & (rn < N)[None, :]",
    ):
        emitter.line(text)
    scope: dict[Node, str] = {product: "acc"}
    for node in kernel.outputs:
        emitter.store(node, scope)
    sizes = [Size("M", product, 0), Size("N", product, 1), Size("K", product.a, 1)]
    constants = ["BLOCK_M", "BLOCK_N", "BLOCK_K", "EVEN_K", "GROUP_M"]
    return emitter.finished(sizes, constants, ((("M", "BLOCK_M"), ("N", "BLOCK_N")),))


def _attention(kernel: Kernel) -> Lowered:
    node = kernel.nodes[0]
    assert isinstance(node, Attention)
    emitter = Emitter(kernel, Indexing(lambda of: ("", None), lambda axis: ""))
    q, k, v = (emitter.pointers[x] for x in node.args)
    tile = "{} + base + {}[:, None] * WIDTH + rd[None, :], mask=({} < length)[:, None]"
    seen = ["(rn < length)[None, :]"]
    if node.causal:
        seen.append("(rn[None, :] <= rm[:, None])")
    if node.window:
        seen.append("(rn[None, :] > rm[:, None] - WINDOW)")
    first, last = "0", "length"
    if node.causal:
        last = "tl.minimum(length, (tl.program_id(0) + 1) * BLOCK_M)"
    if node.window:
        first = "tl.maximum(0, tl.program_id(0) * BLOCK_M - WINDOW + 1) // BLOCK_N * BLOCK_N"
    scores = [f"s = tl.dot(q, tl.trans(k)) * {node.scale!r}"]
    if node.softcap:
        scores.append(f"s = tl.sigmoid(s * {2 / node.softcap!r}) * {2 * node.softcap!r} - {node.softcap!r}")
    for text in (
        "base = tl.program_id(1) * length * WIDTH",
        "rm = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)",
        "rd = tl.arange(0, WIDTH)",
        f"q = tl.load({tile.format(q, 'rm', 'rm')}, other=0)",
        'peak = tl.full([BLOCK_M], float("-inf"), tl.float32)',
        "total = tl.zeros([BLOCK_M], tl.float32)",
        "acc = tl.zeros([BLOCK_M, WIDTH], tl.float32)",
        f"first = {first}",
        f"last = {last}",
        "for start in range(first, last, BLOCK_N):",
        "    rn = start + tl.arange(0, BLOCK_N)",
        f"    k = tl.load({tile.format(k, 'rn', 'rn')}, other=0)",
        *(f"    {text}" for text in scores),
        f'    s = tl.where({" & ".join(seen)}, s, float("-inf"))',
        "    highest = tl.maximum(peak, tl.max(s, 1))",
        # A line that has seen nothing yet has a peak of -inf, and -inf - -inf is not a number.
        '    shift = tl.where(highest == float("-inf"), 0.0, highest)',
        "    decay = tl.exp(peak - shift)",
        "    p = tl.exp(s - shift[:, None])",
        "    total = total * decay + tl.sum(p, 1)",
        f"    v = tl.load({tile.format(v, 'rn', 'rn')}, other=0)",
        f"    acc = acc * decay[:, None] + tl.dot(p.to({TL_DTYPE[node.v.dtype]}), v)",
        "    peak = highest",
        "acc = acc / total[:, None]",
        "index = base + rm[:, None] * WIDTH + rd[None, :]",
        f"tl.store(out_ptr0 + index, acc.to({TL_DTYPE[node.dtype]}), mask=(rm < length)[:, None])",
    ):
        emitter.line(text)
    sizes = [Size("heads", node, 0, passed=False), Size("length", node, 1)]
    constants = ["BLOCK_M", "BLOCK_N", "WIDTH", *["WINDOW"] * bool(node.window)]
    return emitter.finished(sizes, constants, ((("length", "BLOCK_M"),), (("heads", None),)))
