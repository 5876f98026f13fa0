"""Tile sizes, warps and pipeline stages: a roofline model of an H100 scores every candidate and the best is taken.

The model knows bytes, flops, how programs share the multiprocessors, latency, registers, and shared memory. It is
coarse, and that is all it has to be: it ranks candidates of one kernel, it does not predict times.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from kernelgen.ir import ITEMSIZE, OPS, Attention, MatMul, Pointwise, Reduce
from kernelgen.passes import Kernel

SHARED_LIMIT = 232448  # bytes per program on sm_90
PERSISTENT_LIMIT = 4096  # elements of a reduced line that may stay in registers
_PROCESSORS = 132
_BYTES_PER_CYCLE = 14.0  # of memory bandwidth, per multiprocessor
_FMA_PER_CYCLE = 128.0
_TENSOR_FMA_PER_CYCLE = {"fp16": 2048.0, "bf16": 2048.0, "fp32": 512.0}
_LATENCY = 1200.0  # cycles to start a program, and for its first load to arrive
_TIE = 1.15  # costs that differ by less are the same to this model
_MAX_PER_THREAD = 8  # elements: 16 bytes of halves, what one load can move


@dataclass(frozen=True)
class Tiling:
    constants: dict[str, int]  # in the order of the kernel's parameters
    num_warps: int
    num_stages: int
    cost: float  # cycles
    size: float  # elements of the tile per thread, about how long the compiled program is


def choose(kernel: Kernel) -> Tiling:
    candidates = {
        "pointwise": _pointwise,
        "reduction": _reduction,
        "matmul": _matmul,
        "attention": _attention,
    }
    scored = list(candidates[kernel.kind](kernel))
    best = min(tiling.cost for tiling in scored)
    # Differences that the model cannot tell go to the smallest program, which compiles fastest.
    return min((x for x in scored if x.cost <= best * _TIE), key=lambda tiling: tiling.size)


def power_of_two(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def is_persistent(kernel: Kernel) -> bool:
    """Whether a reduction keeps whole lines in registers, instead of reading them once per dependent reduction."""
    assert kernel.axis is not None
    return kernel.shape[kernel.axis] <= PERSISTENT_LIMIT and kernel.axis == 1


def reduction_levels(kernel: Kernel) -> dict[int, int]:
    """For each node's position: how many dependent reductions, itself included, stand before its value is known."""
    position = {node: i for i, node in enumerate(kernel.nodes)}
    levels: dict[int, int] = {}
    for i, node in enumerate(kernel.nodes):
        below = max((levels[position[arg]] for arg in node.args if arg in position), default=0)
        levels[i] = below + isinstance(node, Reduce)
    return levels


def _flops_per_element(kernel: Kernel) -> float:
    total = 0.0
    for node in kernel.nodes:
        if isinstance(node, Pointwise):
            total += OPS[node.op].flops * math.prod(node.shape) / math.prod(kernel.shape)
        elif isinstance(node, Reduce):
            total += 2.0
    return total


def _live_values(kernel: Kernel) -> int:
    """How many values per element are held at once at most, if nodes run in order."""
    last = {arg: i for i, node in enumerate(kernel.nodes) for arg in node.args}
    live = peak = 0
    seen = set()
    for i, node in enumerate(kernel.nodes):
        for value in (*node.args, node):
            if value not in seen and math.prod(value.shape) > 1:
                seen.add(value)
                live += 1
        peak = max(peak, live)
        live -= sum(last.get(value) == i for value in node.args)
    return peak


def _time(programs: int, cycles: float, latency: float, warps: int, registers: float, shared: int = 0) -> float:
    """Cycles until the busiest multiprocessor is done. Programs that share it hide each other's latency."""
    registers = max(min(registers, 255.0), 16.0)
    resident = min(64 // warps, int(65536 // (registers * warps * 32)), 32)
    if shared:
        resident = min(resident, (SHARED_LIMIT + 1024) // (shared + 1024))
    if resident < 1:
        return math.inf
    busiest = math.ceil(programs / _PROCESSORS)
    return busiest * cycles + math.ceil(busiest / resident) * latency


def _pointwise(kernel: Kernel) -> Iterator[Tiling]:
    elements = math.prod(kernel.shape)
    per_element = sum(x.nbytes for x in (*kernel.inputs, *kernel.outputs)) / elements
    narrowest = min(ITEMSIZE[x.dtype] for x in (*kernel.inputs, *kernel.outputs))
    flops, live = _flops_per_element(kernel), _live_values(kernel)
    for block, warps in itertools.product((128, 256, 512, 1024, 2048, 4096), (1, 2, 4, 8)):
        each = block / (warps * 32)
        if not 1 <= each <= _MAX_PER_THREAD:
            continue
        # A thread moves 16 bytes at once if it has that many, next to each other.
        vector = min(1.0, each * narrowest / 16)
        registers = 24 + live * each
        spilled = max(0.0, registers - 255) * warps * 32 * 8
        memory = (block * per_element / (0.4 + 0.6 * vector) + spilled) / _BYTES_PER_CYCLE
        cycles = max(memory, block * flops / _FMA_PER_CYCLE)
        cost = _time(math.ceil(elements / block), cycles, _LATENCY, warps, registers)
        yield Tiling({"XBLOCK": block}, warps, 1, cost, each)


def _reduction(kernel: Kernel) -> Iterator[Tiling]:
    assert kernel.axis is not None
    length = kernel.shape[kernel.axis]
    lines = kernel.shape[1 - kernel.axis]
    persistent = is_persistent(kernel)
    flops, live = _flops_per_element(kernel), _live_values(kernel)
    traffic = sum(x.nbytes for x in (*kernel.inputs, *kernel.outputs)) / lines
    passes = 1 if persistent else 1 + max(reduction_levels(kernel).values())
    blocks = (power_of_two(length),) if persistent else (16, 32, 64, 128, 512, 1024, 2048)
    for xblock, rblock, warps in itertools.product((1, 2, 4, 8, 16, 32, 64), blocks, (1, 2, 4, 8, 16)):
        each = xblock * rblock / (warps * 32)
        if not 1 <= each <= _MAX_PER_THREAD or xblock > power_of_two(lines) or rblock > power_of_two(length):
            continue
        registers = 32 + live * each
        spilled = max(0.0, registers - 255) * warps * 32 * 8
        # Neighbouring threads should read neighbouring addresses: 32 bytes is what one transaction carries.
        along = rblock if kernel.axis == 1 else xblock
        coalesced = min(1.0, along * 4 / 32)
        memory = (xblock * traffic * passes / coalesced + spilled) / _BYTES_PER_CYCLE
        padded = math.ceil(length / rblock) * rblock * xblock
        # Warps wait for each other at every reduction, and each trip of a loop waits for its loads.
        waits = passes * (60.0 * math.log2(2 * warps) + _LATENCY * math.ceil(length / rblock) / 4)
        cycles = max(memory, padded * flops / _FMA_PER_CYCLE)
        cost = _time(math.ceil(lines / xblock), cycles, _LATENCY + waits, warps, registers)
        yield Tiling({"XBLOCK": xblock, "RBLOCK": rblock}, warps, 1, cost, each * passes)


def _matmul(kernel: Kernel) -> Iterator[Tiling]:
    product = next(node for node in kernel.nodes if isinstance(node, MatMul))
    (m, n), k = product.shape, product.a.shape[1]
    itemsize = ITEMSIZE[product.a.dtype]
    epilogue = sum(x.nbytes for x in (*kernel.inputs, *kernel.outputs) if x not in product.args) / (m * n)
    tiles = itertools.product((16, 32, 64, 128), (32, 64, 128), (32, 64), (4, 8), (2, 3, 4))
    for block_m, block_n, block_k, warps, stages in tiles:
        shared = stages * (block_m + block_n) * block_k * itemsize
        accumulators = block_m * block_n / (warps * 32)
        if shared > SHARED_LIMIT or accumulators > 128 or (warps == 8 and block_m < 64):
            continue
        steps = math.ceil(k / block_k)
        fma = block_m * block_n * block_k / (_TENSOR_FMA_PER_CYCLE[product.a.dtype] * min(1.0, block_m / 64))
        traffic = (block_m + block_n) * block_k * itemsize / (4 * _BYTES_PER_CYCLE)  # mostly from L2
        cycles = steps * max(fma, traffic) + block_m * block_n * epilogue / _BYTES_PER_CYCLE
        # Each stage beyond the first hides more of the latency of the loads.
        latency = _LATENCY + steps * 800 / stages**1.5
        programs = math.ceil(m / block_m) * math.ceil(n / block_n)
        cost = _time(programs, cycles, latency, warps, 48 + accumulators * 1.5, shared)
        constants = {"EVEN_K": int(k % block_k == 0), "GROUP_M": 8}
        yield Tiling(
            {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k} | constants,
            warps,
            stages,
            cost,
            accumulators * stages,
        )


def _attention(kernel: Kernel) -> Iterator[Tiling]:
    node = kernel.nodes[0]
    assert isinstance(node, Attention)
    heads, length, width = node.shape
    itemsize = ITEMSIZE[node.dtype]
    for block_m, block_n, warps, stages in itertools.product((32, 64, 128), (32, 64, 128), (4, 8), (2, 3)):
        shared = (block_m + 2 * stages * block_n) * width * itemsize
        registers = 48 + block_m * (width + 2 * block_n) / (warps * 32)
        if shared > SHARED_LIMIT or registers > 255 or (warps == 8 and block_m < 128):
            continue
        steps = math.ceil(length / block_n) * (0.5 if node.causal else 1.0)
        fma = 2 * block_m * block_n * width / _TENSOR_FMA_PER_CYCLE[node.dtype]
        scores = block_m * block_n * (10.0 + 20.0 * bool(node.softcap)) / _FMA_PER_CYCLE
        traffic = 2 * block_n * width * itemsize / (4 * _BYTES_PER_CYCLE)
        latency = _LATENCY + steps * 600 / stages
        programs = heads * math.ceil(length / block_m)
        cost = _time(programs, steps * (max(fma, traffic) + scores), latency, warps, registers, shared)
        constants = {"BLOCK_M": block_m, "BLOCK_N": block_n, "WIDTH": width}
        if node.window:
            constants["WINDOW"] = node.window
        yield Tiling(constants, warps, stages, cost, registers * stages)
