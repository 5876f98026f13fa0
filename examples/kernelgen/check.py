"""Checks every generated kernel before anybody launches it: its text is well formed and computes what it should.

`Reference` evaluates a graph, as its author wrote it and as simplification left it, on small inputs of several
shapes. A kernel's text is then run on the same inputs, and what it stores is compared, element by element.
"""

from __future__ import annotations

import ast
import builtins
import math
from collections.abc import Mapping, Sequence
from typing import Any

from kernelgen.interp import Buffer, Program
from kernelgen.ir import Graph
from kernelgen.passes import Kernel
from kernelgen.printer import PLACEHOLDER, Lowered
from kernelgen.reference import SMALL_WIDTH, SMALL_WINDOW, Small, shrink
from kernelgen.tiling import is_persistent, power_of_two

# In the order in which a graph names its dimensions. Ragged against every tile below; exact multiples of them; a few
# long lines; and enough rows and columns for several programs and several trips through each loop.
CASES = (
    (7, 13, 9, 5, 11, 6, 3),
    (8, 16, 4, 12, 20, 24, 28),
    (3, 50, 10, 21, 6, 9, 7),
    (18, 40, 14, 8, 22, 15, 26),
)
TOLERANCE = 1e-7


class WrongKernel(Exception):
    """A generated kernel is malformed, or does not compute its expression."""


class Reference:
    """What each node of `simplified` is worth on small inputs; `original` has to agree on the results."""

    def __init__(self, original: Graph, simplified: Graph) -> None:
        self.cases: list[Small] = []
        for seed, sizes in enumerate(CASES):
            dims = shrink(original, sizes)
            before, after = Small(original, dims, seed), Small(simplified, dims, seed)
            for name, node in original.outputs.items():
                where = f"simplification of {original.name}: {name}"
                compare(where, after.values[simplified.outputs[name]], before.values[node])
            self.cases.append(after)


def verify(kernel: Kernel, lowered: Lowered, reference: Reference) -> None:
    """Raises WrongKernel."""
    well_formed(lowered.source)
    program = Program(lowered.source, PLACEHOLDER)
    for case in reference.cases:
        sizes = {size.name: size.of(case.shape(size.node)) for size in lowered.sizes}
        for tiles in small_tiles(kernel, sizes):
            _run(program, kernel, lowered, case, sizes, tiles)


def _run(
    program: Program,
    kernel: Kernel,
    lowered: Lowered,
    case: Small,
    sizes: Mapping[str, int],
    tiles: Mapping[str, int],
) -> None:
    where = f"sizes {dict(sizes)} and tiles {dict(tiles)}"
    buffers: list[Buffer] = []
    for i, (name, node) in enumerate(lowered.pointers):
        values = case.values[node]
        buffers.append(Buffer(name, list(values) if i < len(kernel.inputs) else [None] * len(values)))
    passed = [sizes[size.name] for size in lowered.sizes if size.passed]
    constants = [tiles[name] for name in lowered.constants]
    try:
        program.launch(grid_of(lowered, sizes, tiles), [*buffers, *passed, *constants])
    except Exception as error:  # whatever generated text raises, it is the text that is wrong
        raise WrongKernel(f"{error}, at {where}, in\n{lowered.source}") from error
    for buffer, node in zip(buffers[len(kernel.inputs) :], kernel.outputs, strict=True):
        compare(f"{buffer.name} at {where} of\n{lowered.source}", buffer.data, case.values[node])


def grid_of(lowered: Lowered, sizes: Mapping[str, int], constants: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(
        math.prod(-(-sizes[size] // constants[tile]) if tile else sizes[size] for size, tile in dimension)
        for dimension in lowered.grid
    )


def small_tiles(kernel: Kernel, sizes: Mapping[str, int]) -> list[dict[str, int]]:
    """Tiles for the check: small enough that even small tensors take several programs and several steps."""
    if kernel.kind == "pointwise":
        return [{"XBLOCK": 16}, {"XBLOCK": 64}]
    if kernel.kind == "reduction" and is_persistent(kernel):
        line = power_of_two(sizes["rnumel"])
        return [{"XBLOCK": 1, "RBLOCK": line}, {"XBLOCK": 4, "RBLOCK": 2 * line}]
    if kernel.kind == "reduction":
        return [{"XBLOCK": 2, "RBLOCK": 8}, {"XBLOCK": 4, "RBLOCK": 4}]
    if kernel.kind == "matmul":
        blocks = ((4, 4, 4, 2), (4, 8, 2, 8))
        names = ("BLOCK_M", "BLOCK_N", "BLOCK_K", "GROUP_M")
        return [dict(zip(names, x, strict=True)) | {"EVEN_K": int(sizes["K"] % x[2] == 0)} for x in blocks]
    fixed = {"WIDTH": SMALL_WIDTH, "WINDOW": SMALL_WINDOW}
    return [{"BLOCK_M": 4, "BLOCK_N": 4} | fixed, {"BLOCK_M": 2, "BLOCK_N": 8} | fixed]


def compare(what: str, got: Sequence[Any], want: Sequence[Any]) -> None:
    if len(got) != len(want):
        raise WrongKernel(f"{what}: {len(got)} elements, not {len(want)}")
    for i, (x, y) in enumerate(zip(got, want, strict=True)):
        if x is None:
            raise WrongKernel(f"{what}: element {i} was never stored")
        if x != y and not math.isclose(x, y, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
            raise WrongKernel(f"{what}: element {i} is {x}, not {y}")


def well_formed(source: str) -> None:
    """The text imports Triton only, every name is bound before it is used, and every parameter is used."""
    tree = ast.parse(source)
    known = set(dir(builtins))
    for statement in tree.body:
        if isinstance(statement, ast.Import):
            if any(alias.name.partition(".")[0] != "triton" for alias in statement.names):
                raise WrongKernel(f"imports more than Triton:\n{source}")
            known |= {alias.asname or alias.name for alias in statement.names}
        elif isinstance(statement, ast.FunctionDef):
            parameters = {arg.arg for arg in statement.args.args}
            used = _bind(statement.body, known | parameters, source)
            # EVEN_K and GROUP_M are read in branches and products alike, so "used" is by name.
            if parameters - used:
                raise WrongKernel(f"parameters {sorted(parameters - used)} are never used:\n{source}")
        else:
            raise WrongKernel(f"holds more than imports and functions:\n{source}")


def _bind(body: Sequence[ast.stmt], bound: set[str], source: str) -> set[str]:
    used: set[str] = set()
    for statement in body:
        inner: Sequence[ast.stmt] = ()
        if isinstance(statement, ast.For):
            bound.add(statement.target.id)  # type: ignore[attr-defined]
            read: list[ast.AST] = [statement.iter]
            inner = statement.body
        elif isinstance(statement, ast.If):
            read, inner = [statement.test], (*statement.body, *statement.orelse)
        else:
            read = [statement]
        for tree in read:
            for node in ast.walk(tree):
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                    used.add(node.id)
                    if node.id not in bound:
                        raise WrongKernel(f"{node.id} is used before it is bound:\n{source}")
        for node in ast.walk(statement) if not inner else ():
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                bound.add(node.id)
        used |= _bind(inner, bound, source)
    return used
