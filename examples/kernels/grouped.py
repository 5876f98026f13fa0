"""Grouped matmul, as in a mixture of experts: rows that are sorted by expert, each times its own expert's matrix.

A table says which expert and which rows each tile of the result belongs to, so that one launch does all experts however
the rows are spread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import triton
import triton.language as tl
from cases import BRAIN, Case, Pointer

BLOCK_M = 64  # rows of a tile; the table is made for it
CONFIGS = [
    triton.Config({"BLOCK_N": n, "BLOCK_K": k}, num_warps=warps, num_stages=stages)
    for n, k, warps, stages in [
        (64, 32, 4, 4),
        (64, 64, 4, 3),
        (128, 32, 4, 4),
        (128, 64, 4, 3),
        (128, 64, 8, 3),
        (256, 64, 8, 3),
    ]
]


@triton.jit
def grouped_matmul_kernel(
    x, weights, y, experts, firsts, ends, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """`x` is (rows, K), `weights` (experts, K, N), `y` (rows, N). Tile t is rows `firsts[t]` to `ends[t]`."""
    tile = tl.program_id(0)
    expert = tl.load(experts + tile).to(tl.int64)
    m = tl.load(firsts + tile) + tl.arange(0, BLOCK_M)
    rows = m[:, None] < tl.load(ends + tile)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = n[None, :] < N
    k = tl.arange(0, BLOCK_K)
    left = x + m[:, None].to(tl.int64) * K + k[None, :]
    right = weights + expert * K * N + k[:, None] * N + n[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        inside = k < K - start
        total = tl.dot(
            tl.load(left, mask=rows & inside[None, :], other=0.0),
            tl.load(right, mask=inside[:, None] & columns, other=0.0),
            total,
        )
        left += BLOCK_K
        right += BLOCK_K * N
    tl.store(y + m[:, None].to(tl.int64) * N + n[None, :], total.to(y.dtype.element_ty), mask=rows & columns)


tuned_grouped_matmul = triton.autotune(CONFIGS, key=["N", "K"])(grouped_matmul_kernel)


def tiles(counts: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    """The table for so many rows per expert: expert, first row and end of each tile."""
    table = []
    start = 0
    for expert, count in enumerate(counts):
        table += [(expert, first, start + count) for first in range(start, start + count, BLOCK_M)]
        start += count
    experts, firsts, ends = (list(column) for column in zip(*table, strict=True))
    return experts, firsts, ends


def grouped_matmul(x: Any, weights: Any, counts: Sequence[int]) -> Any:
    """Rows of `x`, `counts` per expert, times the experts' matrices."""
    k, n = weights.shape[1:]
    y = x.new_empty((x.shape[0], n))
    table = [x.new_tensor(column).int() for column in tiles(counts)]
    tuned_grouped_matmul[lambda meta: (len(table[0]), triton.cdiv(n, meta["BLOCK_N"]))](
        x, weights, y, *table, n, k, BLOCK_M=BLOCK_M
    )
    return y


def cases() -> Iterator[Case]:
    """The sweep."""
    table = dict.fromkeys(("experts", "firsts", "ends"), Pointer("i32"))
    for config in CONFIGS:
        yield Case(
            grouped_matmul_kernel,
            {"x": BRAIN, "weights": BRAIN, "y": BRAIN, **table, "N": 1024, "K": 2048},
            {"BLOCK_M": BLOCK_M, **config.kwargs},
            {"num_warps": config.num_warps, "num_stages": config.num_stages},
        )


def check(torch: Any) -> None:
    """Against torch, on a GPU."""
    counts = [5, 0, 130, 64]
    x = torch.randn((sum(counts), 96), device="cuda", dtype=torch.bfloat16)
    weights = torch.randn((len(counts), 96, 160), device="cuda", dtype=torch.bfloat16)
    expected = torch.cat([part @ weight for part, weight in zip(x.split(counts), weights, strict=True)])
    torch.testing.assert_close(grouped_matmul(x, weights, counts), expected, atol=1e-1, rtol=2e-2)
