"""C = activation(A @ B), in half precision with single-precision sums."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import triton
import triton.language as tl
from cases import HALF, Case

# Blocks of C and of the inner dimension, and how many of these are in flight.
CONFIGS = [
    triton.Config({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "GROUP": 8}, num_warps=warps, num_stages=stages)
    for m, n, k, warps, stages in [
        (32, 64, 32, 2, 5),
        (64, 32, 32, 2, 5),
        (64, 64, 64, 4, 3),
        (64, 128, 32, 4, 4),
        (64, 128, 64, 4, 4),
        (128, 32, 32, 4, 4),
        (128, 64, 32, 4, 4),
        (128, 128, 32, 4, 4),
        (128, 128, 64, 8, 3),
        (64, 256, 32, 4, 4),
        (128, 256, 64, 8, 3),
        (256, 128, 64, 8, 3),
    ]
]


@triton.jit
def leaky_relu(x):
    return tl.where(x >= 0, x, 0.01 * x)


@triton.jit
def grouped_tile(tile, rows, columns, GROUP: tl.constexpr):
    """Tiles in groups of `GROUP` rows, so that neighbours share columns of B while these are in the L2 cache."""
    width = GROUP * columns
    first = (tile // width) * GROUP
    height = min(rows - first, GROUP)
    return first + (tile % width) % height, (tile % width) // height


@triton.jit
def matmul_kernel(
    a, b, c, M, N, K,
    stride_am, stride_bk, stride_cm,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
    ACTIVATION: tl.constexpr,
):  # fmt: skip
    row, column = grouped_tile(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), GROUP)
    m = row * BLOCK_M + tl.arange(0, BLOCK_M)
    n = column * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    # Rows beyond the end are read again from the start, which needs no mask, and never stored.
    left = a + (m % M)[:, None] * stride_am + k[None, :]
    right = b + k[:, None] * stride_bk + (n % N)[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        inside = k < K - start
        total = tl.dot(
            tl.load(left, mask=inside[None, :], other=0.0), tl.load(right, mask=inside[:, None], other=0.0), total
        )
        left += BLOCK_K
        right += BLOCK_K * stride_bk
    if ACTIVATION == "leaky_relu":
        total = leaky_relu(total)
    out = c + m[:, None] * stride_cm + n[None, :]
    tl.store(out, total.to(c.dtype.element_ty), mask=(m[:, None] < M) & (n[None, :] < N))


tuned_matmul = triton.autotune(CONFIGS, key=["M", "N", "K"])(matmul_kernel)


def matmul(a: Any, b: Any, activation: str = "") -> Any:
    """`a @ b` for matrices whose rows are contiguous."""
    (m, k), n = a.shape, b.shape[1]
    c = a.new_empty((m, n))

    def grid(meta: dict[str, int]) -> tuple[int]:
        return (triton.cdiv(m, meta["BLOCK_M"]) * triton.cdiv(n, meta["BLOCK_N"]),)

    tuned_matmul[grid](a, b, c, m, n, k, a.stride(0), b.stride(0), c.stride(0), ACTIVATION=activation)
    return c


def cases() -> Iterator[Case]:
    """The sweep, with and without an activation."""
    size = {"M": 1024, "N": 1024, "K": 1024, "stride_am": 1024, "stride_bk": 1024, "stride_cm": 1024}
    for activation in ("", "leaky_relu"):
        for config in CONFIGS:
            yield Case(
                matmul_kernel,
                {"a": HALF, "b": HALF, "c": HALF, **size},
                {**config.kwargs, "ACTIVATION": activation},
                {"num_warps": config.num_warps, "num_stages": config.num_stages},
            )


def check(torch: Any) -> None:
    """Against torch, on a GPU."""
    a, b = (torch.randn(shape, device="cuda", dtype=torch.float16) for shape in ((500, 320), (320, 700)))
    torch.testing.assert_close(matmul(a, b), a @ b, atol=2e-2, rtol=1e-2)
    expected = torch.nn.functional.leaky_relu(a @ b, 0.01)
    torch.testing.assert_close(matmul(a, b, "leaky_relu"), expected, atol=2e-2, rtol=1e-2)
