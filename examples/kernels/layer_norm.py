"""Layer norm, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import triton
import triton.language as tl
from cases import FULL, HALF, Case
from softmax import warps_for

PARTS = 64  # programs of the backward pass, each of which sums over its share of the rows


@triton.jit
def forward_kernel(x, y, weight, bias, means, scales, columns, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    start = row.to(tl.int64) * columns
    i = tl.arange(0, BLOCK)
    inside = i < columns
    value = tl.load(x + start + i, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(value, 0) / columns
    centred = tl.where(inside, value - mean, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 0) / columns + eps)
    tl.store(means + row, mean)
    tl.store(scales + row, scale)
    w = tl.load(weight + i, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(bias + i, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + start + i, (centred * scale * w + b).to(y.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(x, dy, dx, weight, part_dw, part_db, means, scales, rows, columns, rows_each, BLOCK: tl.constexpr):
    """`dx` of some rows, and what these add to the gradients of weight and bias."""
    part = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    inside = i < columns
    w = tl.load(weight + i, mask=inside, other=0.0).to(tl.float32)
    dw = tl.zeros((BLOCK,), tl.float32)
    db = tl.zeros((BLOCK,), tl.float32)
    for row in range(part * rows_each, min((part + 1) * rows_each, rows)):
        start = row.to(tl.int64) * columns
        gradient = tl.load(dy + start + i, mask=inside, other=0.0).to(tl.float32)
        value = tl.load(x + start + i, mask=inside, other=0.0).to(tl.float32)
        scale = tl.load(scales + row)
        normal = tl.where(inside, (value - tl.load(means + row)) * scale, 0.0)
        weighted = gradient * w
        along = tl.sum(normal * weighted, 0) / columns
        average = tl.sum(weighted, 0) / columns
        tl.store(dx + start + i, ((weighted - normal * along - average) * scale).to(dx.dtype.element_ty), mask=inside)
        dw += gradient * normal
        db += gradient
    tl.store(part_dw + part * columns + i, dw, mask=inside)
    tl.store(part_db + part * columns + i, db, mask=inside)


@triton.jit
def sum_kernel(parts, total, count, columns, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Sum over the first dimension."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.arange(0, BLOCK_M)
    found = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(0, count, BLOCK_M):
        rows = first + m
        inside = (rows[:, None] < count) & (n[None, :] < columns)
        found += tl.load(parts + rows[:, None] * columns + n[None, :], mask=inside, other=0.0)
    tl.store(total + n, tl.sum(found, 0).to(total.dtype.element_ty), mask=n < columns)


def forward(x: Any, weight: Any, bias: Any, eps: float = 1e-5) -> tuple[Any, Any, Any]:
    """The result, and each row's mean and inverse deviation."""
    rows, columns = x.shape
    y, means, scales = x.new_empty(x.shape), x.new_empty(rows).float(), x.new_empty(rows).float()
    block = triton.next_power_of_2(columns)
    forward_kernel[(rows,)](x, y, weight, bias, means, scales, columns, eps, BLOCK=block, num_warps=warps_for(block))
    return y, means, scales


def backward(x: Any, dy: Any, weight: Any, means: Any, scales: Any) -> tuple[Any, Any, Any]:
    """The gradients of `x`, weight and bias."""
    rows, columns = x.shape
    dx, dw, db = x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape)
    sums = [x.new_empty((PARTS, columns)).float() for _ in range(2)]
    block = triton.next_power_of_2(columns)
    backward_kernel[(PARTS,)](
        x, dy, dx, weight, *sums, means, scales, rows, columns, triton.cdiv(rows, PARTS),
        BLOCK=block, num_warps=warps_for(block),
    )  # fmt: skip
    for part, total in zip(sums, (dw, db), strict=True):
        sum_kernel[(triton.cdiv(columns, 128),)](part, total, PARTS, columns, BLOCK_M=32, BLOCK_N=128)
    return dx, dw, db


def cases() -> Iterator[Case]:
    """Widths of models from small to large."""
    for block in (1024, 2048, 4096, 8192):
        options = {"num_warps": warps_for(block)}
        sizes = {"means": FULL, "scales": FULL, "columns": block}
        given = {"x": HALF, "weight": HALF, **sizes}
        yield Case(forward_kernel, {**given, "y": HALF, "bias": HALF, "eps": 1e-5}, {"BLOCK": block}, options)
        partial = {"part_dw": FULL, "part_db": FULL, "rows": 4096, "rows_each": 64}
        yield Case(backward_kernel, {**given, "dy": HALF, "dx": HALF, **partial}, {"BLOCK": block}, options)
    sums = {"parts": FULL, "total": HALF, "count": PARTS, "columns": 4096}
    yield Case(sum_kernel, sums, {"BLOCK_M": 32, "BLOCK_N": 128})


def check(torch: Any) -> None:
    """Against torch, on a GPU."""
    x, dy = (torch.randn((150, 768), device="cuda") for _ in range(2))
    weight, bias = (torch.randn(768, device="cuda") for _ in range(2))
    leaves = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
    expected = torch.nn.functional.layer_norm(leaves[0], (768,), leaves[1], leaves[2])
    expected.backward(dy)
    y, means, scales = forward(x, weight, bias)
    torch.testing.assert_close(y, expected)
    for found, leaf in zip(backward(x, dy, weight, means, scales), leaves, strict=True):
        torch.testing.assert_close(found, leaf.grad, atol=1e-3, rtol=1e-3)
