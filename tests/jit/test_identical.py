"""What a worker makes of a captured kernel is byte for byte what Triton makes of it in the program's own process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Client

pytestmark = pytest.mark.triton

Start = Callable[..., Client]

HELPERS = '''\
"""Not where the kernels are."""
import triton
import triton.language as tl
from triton.language.extra import libdevice
from more import deeper as below

EPS = tl.constexpr(1e-6)
LIMITS = tl.constexpr((0, 7))


@triton.jit(noinline=True)
def shifted(value, by: tl.constexpr = LIMITS[1]):
    return value * by + 1


@triton.jit
def combine(a, b):
    return tl.maximum(a, b) + EPS


@triton.jit
def activated(value, kind: tl.constexpr):
    if kind == "tanh":
        value = libdevice.tanh(value)
    elif kind == "sigmoid":
        value = tl.sigmoid(value)
    return below.clamped(value)
'''

DEEPER = '''\
import math

import triton
import triton.language as tl

TOP = tl.constexpr(math.pi)


@triton.constexpr_function
def half(value, divisor=2):
    pieces = [value / divisor for _ in range(1)]
    return pieces[0]


# A comment that moves what follows.


@triton.jit
def clamped(
    value,
    top: tl.constexpr = TOP,
):
    """As in half of all activations."""
    return tl.minimum(value, half(top))
'''

PROGRAM = '''\
import base64, json, linecache, sys, textwrap
from collections import namedtuple

import triton
import triton.language as tl
from triton.language import cdiv
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import headstart
import helpers as h
from helpers import activated as act

Block = namedtuple("Block", ["offsets", "mask"])
KIND = tl.constexpr("tanh")
DTYPE = tl.float16


@triton.jit
def block(n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    return Block(i, i < n)


@triton.jit
def of_main(x, y, n, BLOCK: tl.constexpr, DTYPE: tl.constexpr = DTYPE):
    part = block(h.shifted(n), BLOCK)
    value = tl.load(x + part.offsets, mask=part.mask)
    value = act(value, KIND) / tl.reduce(value, 0, h.combine) + tl.sum(value) + cdiv(n, 3)
    tl.store(y + part.offsets, value.to(DTYPE), mask=part.mask)


def closed_over(factor, *functions):
    first = functions[0]

    @triton.jit
    def closure(x, y, n, BLOCK: tl.constexpr):
        i = tl.arange(0, BLOCK)
        tl.store(y + i, first(tl.load(x + i), factor) + tl.load(x + n))

    return closure


@triton.jit
def powered(value, exponent: tl.constexpr):
    for _ in tl.static_range(exponent):
        value *= value
    return value


CELL = textwrap.dedent("""
    # a cell
    SEED = tl.constexpr(42)

    @triton.jit(repr=lambda specialization: f"cell_{specialization.constants['BLOCK']}")
    def cell(x, y, n, BLOCK: tl.constexpr):
        i = tl.arange(0, BLOCK)
        noise = tl.rand(SEED, i)
        tl.device_assert(n > 0, "positive")
        tl.store(y + i, tl.where(noise > 0.5, tl.load(x + i), 0.0), mask=i < n)
""")
linecache.cache["<cell 1>"] = (len(CELL), None, CELL.splitlines(keepends=True), "<cell 1>")
exec(compile(CELL, "<cell 1>", "exec"))


@triton.autotune([triton.Config({"BLOCK": 64})], key=["K"])
@triton.heuristics({"BLOCK": lambda arguments: 64})
@triton.jit
def matmul(a, b, c, K, BLOCK: tl.constexpr):
    i, d = tl.arange(0, BLOCK), tl.arange(0, 32)
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for k in range(0, K, 32):
        left = tl.load(a + i[:, None] * K + (k + d)[None, :])
        right = tl.load(b + (k + d)[:, None] * BLOCK + i[None, :])
        total = tl.dot(left, right, total)
    tl.store(c + i[:, None] * BLOCK + i[None, :], act(total, "sigmoid"))


@triton.jit
def given(x, y, n, BLOCK: tl.constexpr, ACT: tl.constexpr):
    i = tl.arange(0, BLOCK)
    value = ACT(tl.load(x + i), 2)
    if ACT == powered:
        value += 1
    tl.store(y + i, value)


POINTWISE = {"x": "*fp32", "y": "*fp16", "n": "i32"}
MATMUL = {"a": "*bf16", "b": "*bf16", "c": "*fp32", "K": "i32"}
CASES = {
    "of main": (of_main, POINTWISE, {"BLOCK": 128}, {}),
    "closure": (closed_over(tl.constexpr(3), powered), POINTWISE, {"BLOCK": 64}, {}),
    "another closure": (closed_over(tl.constexpr("tanh"), h.activated), POINTWISE, {"BLOCK": 64}, {"num_warps": 2}),
    "given": (given, POINTWISE, {"BLOCK": 64, "ACT": powered}, {}),
    "cell": (cell, POINTWISE, {"BLOCK": 64}, {"debug": True}),
    "matmul": (matmul, MATMUL, {"BLOCK": 64}, {"num_warps": 8, "num_stages": 4}),
}


def in_process(kernel, signature, constants, options, backend, arch):
    while not isinstance(kernel, triton.JITFunction):
        kernel = kernel.fn
    values = {p.name: p.default for p in kernel.params if p.has_default} | constants
    types = {name: "constexpr" if name in values else signature[name] for name in kernel.arg_names}
    source = ASTSource(kernel, types, {(kernel.arg_names.index(name),): value for name, value in values.items()})
    target = GPUTarget(backend, arch, 64 if backend == "hip" else 32)
    return triton.compile(source, target=target, options=options)


differing, compared = [], 0
with headstart.AsyncCompile(workers=2) as compiler:
    for target, backend, arch in (("cuda:90", "cuda", 90), ("hip:gfx942", "hip", "gfx942")):
        futures = {
            name: compiler.triton(kernel, signature=signature, constants=constants, options=options, target=target)
            for name, (kernel, signature, constants, options) in CASES.items()
        }
        for name, case in CASES.items():
            if backend == "hip" and name == "another closure":
                continue
            here, there = in_process(*case, backend, arch), futures[name].result()
            for artifact in here.asm:
                if artifact not in ("sass", "amdgcn_disassembly"):
                    compared += 1
                    if here.asm[artifact] != there.asm[artifact]:
                        differing.append((target, name, artifact))
            if here.metadata.name != there.metadata["name"]:
                differing.append((target, name, "name"))
    reaches = compiler.statistics
print(json.dumps([differing, compared, reaches.failed]))
'''


def test_artifacts_of_live_kernels_are_the_bytes_that_triton_makes_in_process(
    start_client: Start, tmp_path: Path
) -> None:
    (tmp_path / "helpers.py").write_text(HELPERS)
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "__init__.py").touch()
    (tmp_path / "more" / "deeper.py").write_text(DEEPER)
    differing, compared, failed = json.loads(start_client(PROGRAM).finish(100).splitlines()[-1])
    assert differing == []
    assert compared > 40
    assert failed == 0
