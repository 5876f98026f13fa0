"""Flash attention, forward and backward: softmax(Q Kᵀ · scale) V without ever holding the scores.

Tensors are contiguous, (batch · heads, length, D). The forward pass keeps, per row, the base-2 logarithm of the sum
of its weights, from which the backward pass makes the weights again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import triton
import triton.language as tl
from cases import FULL, HALF, Case, sweep

LOG2_E = tl.constexpr(1.4426950408889634)

FORWARD = [
    triton.Config({"BLOCK_M": m, "BLOCK_N": n}, num_warps=warps, num_stages=stages)
    for m, n, warps, stages in [
        (64, 32, 4, 3),
        (64, 64, 4, 3),
        (128, 32, 4, 4),
        (128, 64, 4, 3),
        (128, 64, 8, 3),
        (128, 128, 8, 2),
    ]
]
BACKWARD = [
    triton.Config({"BLOCK_M": m, "BLOCK_N": n}, num_warps=warps, num_stages=stages)
    for m, n, warps, stages in [(32, 64, 4, 3), (32, 128, 4, 3), (64, 64, 4, 2), (64, 128, 8, 2)]
]


@triton.jit
def tile(base, rows, columns, D: tl.constexpr):
    """Pointers to `rows` of a contiguous matrix of `D` columns."""
    return base + rows[:, None] * D + columns[None, :]


@triton.jit
def forward_kernel(
    q, k, v, out, log_sums, T, scale,
    D: tl.constexpr, CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    start = tl.program_id(0) * BLOCK_M
    head = tl.program_id(1).to(tl.int64)
    m, n, d = start + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, D)
    base = head * T * D
    query = tl.load(tile(q + base, m, d, D), mask=m[:, None] < T, other=0.0)
    largest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    result = tl.zeros((BLOCK_M, D), tl.float32)
    end = min(start + BLOCK_M, T) if CAUSAL else T
    for first in range(0, end, BLOCK_N):
        columns = first + n
        key = tl.load(tile(k + base, columns, d, D), mask=columns[:, None] < T, other=0.0)
        scores = tl.dot(query, tl.trans(key)) * (scale * LOG2_E)
        seen = columns[None, :] < T
        if CAUSAL:
            seen = seen & (m[:, None] >= columns[None, :])
        scores = tl.where(seen, scores, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(scores, 1))
        weights = tl.exp2(scores - new_largest[:, None])
        shrink = tl.exp2(largest - new_largest)
        total = total * shrink + tl.sum(weights, 1)
        value = tl.load(tile(v + base, columns, d, D), mask=columns[:, None] < T, other=0.0)
        result = tl.dot(weights.to(value.dtype), value, result * shrink[:, None])
        largest = new_largest
    tl.store(log_sums + head * T + m, largest + tl.log2(total), mask=m < T)
    tl.store(tile(out + base, m, d, D), (result / total[:, None]).to(out.dtype.element_ty), mask=m[:, None] < T)


@triton.jit
def delta_kernel(out, d_out, delta, T, D: tl.constexpr, BLOCK: tl.constexpr):
    """Per row, the sum of `out * d_out`: what softmax's gradient subtracts."""
    m, d = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, D)
    head = tl.program_id(1).to(tl.int64)
    inside = m[:, None] < T
    o = tl.load(tile(out + head * T * D, m, d, D), mask=inside, other=0.0).to(tl.float32)
    do = tl.load(tile(d_out + head * T * D, m, d, D), mask=inside, other=0.0).to(tl.float32)
    tl.store(delta + head * T + m, tl.sum(o * do, 1), mask=m < T)


@triton.jit
def weights_of(query, key, log_sums, m, columns, T, scale, CAUSAL: tl.constexpr):
    """The weights of the forward pass, made again."""
    scores = tl.dot(query, tl.trans(key)) * (scale * LOG2_E)
    weights = tl.exp2(scores - log_sums[:, None])
    seen = (m[:, None] < T) & (columns[None, :] < T)
    if CAUSAL:
        seen = seen & (m[:, None] >= columns[None, :])
    return tl.where(seen, weights, 0.0)


@triton.jit
def backward_kv_kernel(
    q, k, v, d_out, dk, dv, log_sums, delta, T, scale,
    D: tl.constexpr, CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Each program has `BLOCK_N` keys and goes over the queries that see them."""
    start = tl.program_id(0) * BLOCK_N
    head = tl.program_id(1).to(tl.int64)
    n, d = start + tl.arange(0, BLOCK_N), tl.arange(0, D)
    base = head * T * D
    key = tl.load(tile(k + base, n, d, D), mask=n[:, None] < T, other=0.0)
    value = tl.load(tile(v + base, n, d, D), mask=n[:, None] < T, other=0.0)
    d_key = tl.zeros((BLOCK_N, D), tl.float32)
    d_value = tl.zeros((BLOCK_N, D), tl.float32)
    first = (start // BLOCK_M) * BLOCK_M if CAUSAL else 0
    for row in range(first, T, BLOCK_M):
        m = row + tl.arange(0, BLOCK_M)
        query = tl.load(tile(q + base, m, d, D), mask=m[:, None] < T, other=0.0)
        d_result = tl.load(tile(d_out + base, m, d, D), mask=m[:, None] < T, other=0.0)
        log_sum = tl.load(log_sums + head * T + m, mask=m < T, other=0.0)
        weights = weights_of(query, key, log_sum, m, n, T, scale, CAUSAL)
        d_value = tl.dot(tl.trans(weights.to(query.dtype)), d_result, d_value)
        d_weights = tl.dot(d_result, tl.trans(value)) - tl.load(delta + head * T + m, mask=m < T, other=0.0)[:, None]
        d_key = tl.dot(tl.trans((weights * d_weights).to(query.dtype)), query, d_key)
    tl.store(tile(dk + base, n, d, D), (d_key * scale).to(dk.dtype.element_ty), mask=n[:, None] < T)
    tl.store(tile(dv + base, n, d, D), d_value.to(dv.dtype.element_ty), mask=n[:, None] < T)


@triton.jit
def backward_q_kernel(
    q, k, v, d_out, dq, log_sums, delta, T, scale,
    D: tl.constexpr, CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Each program has `BLOCK_M` queries and goes over the keys that they see."""
    start = tl.program_id(0) * BLOCK_M
    head = tl.program_id(1).to(tl.int64)
    m, d = start + tl.arange(0, BLOCK_M), tl.arange(0, D)
    base = head * T * D
    query = tl.load(tile(q + base, m, d, D), mask=m[:, None] < T, other=0.0)
    d_result = tl.load(tile(d_out + base, m, d, D), mask=m[:, None] < T, other=0.0)
    log_sum = tl.load(log_sums + head * T + m, mask=m < T, other=0.0)
    less = tl.load(delta + head * T + m, mask=m < T, other=0.0)
    d_query = tl.zeros((BLOCK_M, D), tl.float32)
    end = min(start + BLOCK_M, T) if CAUSAL else T
    for first in range(0, end, BLOCK_N):
        n = first + tl.arange(0, BLOCK_N)
        key = tl.load(tile(k + base, n, d, D), mask=n[:, None] < T, other=0.0)
        value = tl.load(tile(v + base, n, d, D), mask=n[:, None] < T, other=0.0)
        weights = weights_of(query, key, log_sum, m, n, T, scale, CAUSAL)
        d_weights = tl.dot(d_result, tl.trans(value)) - less[:, None]
        d_query = tl.dot((weights * d_weights).to(key.dtype), key, d_query)
    tl.store(tile(dq + base, m, d, D), (d_query * scale).to(dq.dtype.element_ty), mask=m[:, None] < T)


_KEY = ["T", "D", "CAUSAL"]
tuned_forward = triton.autotune(FORWARD, key=_KEY)(forward_kernel)
tuned_backward_kv = triton.autotune(BACKWARD, key=_KEY)(backward_kv_kernel)
tuned_backward_q = triton.autotune(BACKWARD, key=_KEY)(backward_q_kernel)


def forward(q: Any, k: Any, v: Any, causal: bool) -> tuple[Any, Any]:
    """The result, and the logarithms of the rows' sums."""
    heads, length, width = q.shape
    out, log_sums = q.new_empty(q.shape), q.new_empty((heads, length)).float()
    scale = width**-0.5
    tuned_forward[lambda meta: (triton.cdiv(length, meta["BLOCK_M"]), heads)](
        q, k, v, out, log_sums, length, scale, D=width, CAUSAL=causal
    )
    return out, log_sums


def backward(q: Any, k: Any, v: Any, out: Any, log_sums: Any, d_out: Any, causal: bool) -> tuple[Any, Any, Any]:
    """The gradients of `q`, `k` and `v`."""
    heads, length, width = q.shape
    dq, dk, dv, delta = (x.new_empty(x.shape) for x in (q, k, v, log_sums))
    scale = width**-0.5
    delta_kernel[(triton.cdiv(length, 64), heads)](out, d_out, delta, length, D=width, BLOCK=64)
    tuned_backward_kv[lambda meta: (triton.cdiv(length, meta["BLOCK_N"]), heads)](
        q, k, v, d_out, dk, dv, log_sums, delta, length, scale, D=width, CAUSAL=causal
    )
    tuned_backward_q[lambda meta: (triton.cdiv(length, meta["BLOCK_M"]), heads)](
        q, k, v, d_out, dq, log_sums, delta, length, scale, D=width, CAUSAL=causal
    )
    return dq, dk, dv


def cases() -> Iterator[Case]:
    """Both passes, causal and not, for heads of 64 and 128."""
    size = {"log_sums": FULL, "T": 1024, "scale": 0.125}
    tensors = dict.fromkeys(("q", "k", "v"), HALF)
    for choice in sweep(D=(64, 128), CAUSAL=(False, True)):
        for config in FORWARD:
            yield Case(forward_kernel, {**tensors, "out": HALF, **size}, {**choice, **config.kwargs}, _options(config))
        given = {**tensors, "d_out": HALF, "delta": FULL, **size}
        for config in BACKWARD:
            constants = {**choice, **config.kwargs}
            yield Case(backward_kv_kernel, {**given, "dk": HALF, "dv": HALF}, constants, _options(config))
            yield Case(backward_q_kernel, {**given, "dq": HALF}, constants, _options(config))
    for width in (64, 128):
        yield Case(delta_kernel, {"out": HALF, "d_out": HALF, "delta": FULL, "T": 1024}, {"D": width, "BLOCK": 64})


def check(torch: Any) -> None:
    """Against torch, on a GPU."""
    for causal in (False, True):
        q, k, v, d_out = (torch.randn((6, 200, 64), device="cuda", dtype=torch.float16) for _ in range(4))
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        expected = torch.nn.functional.scaled_dot_product_attention(*leaves, is_causal=causal)
        expected.backward(d_out)
        out, log_sums = forward(q, k, v, causal)
        torch.testing.assert_close(out, expected, atol=2e-2, rtol=1e-2)
        for found, leaf in zip(backward(q, k, v, out, log_sums, d_out, causal), leaves, strict=True):
            torch.testing.assert_close(found, leaf.grad, atol=4e-2, rtol=1e-2)


def _options(config: triton.Config) -> dict[str, int]:
    return {"num_warps": config.num_warps, "num_stages": config.num_stages}
