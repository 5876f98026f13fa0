"""Half-precision activations times 8-bit weights, which are scaled per column and unpacked on the way to the cores."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import triton
import triton.language as tl
from cases import BYTES, FULL, HALF, Case
from matmul import grouped_tile

CONFIGS = [
    triton.Config({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "GROUP": 8}, num_warps=warps, num_stages=stages)
    for m, n, k, warps, stages in [
        (16, 64, 128, 4, 4),  # decoding: few rows
        (16, 128, 128, 4, 3),
        (32, 128, 64, 4, 4),
        (64, 64, 64, 4, 3),
        (64, 128, 64, 4, 3),
        (128, 128, 64, 8, 3),
    ]
]


@triton.jit
def quantized_matmul_kernel(
    a, weights, scales, c, M, N, K,
    stride_am, stride_wk, stride_cm,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    row, column = grouped_tile(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), GROUP)
    m = row * BLOCK_M + tl.arange(0, BLOCK_M)
    n = column * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    left = a + (m % M)[:, None] * stride_am + k[None, :]
    right = weights + k[:, None] * stride_wk + (n % N)[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        inside = k < K - start
        x = tl.load(left, mask=inside[None, :], other=0.0)
        w = tl.load(right, mask=inside[:, None], other=0)
        total = tl.dot(x, w.to(x.dtype), total)  # 8 bits fit any half-precision number exactly
        left += BLOCK_K
        right += BLOCK_K * stride_wk
    total *= tl.load(scales + (n % N))[None, :]
    out = c + m[:, None] * stride_cm + n[None, :]
    tl.store(out, total.to(c.dtype.element_ty), mask=(m[:, None] < M) & (n[None, :] < N))


tuned_quantized_matmul = triton.autotune(CONFIGS, key=["M", "N", "K"])(quantized_matmul_kernel)


def quantized_matmul(a: Any, weights: Any, scales: Any) -> Any:
    """`a @ (weights * scales)`, `weights` being (K, N) of int8."""
    (m, k), n = a.shape, weights.shape[1]
    c = a.new_empty((m, n))

    def grid(meta: dict[str, int]) -> tuple[int]:
        return (triton.cdiv(m, meta["BLOCK_M"]) * triton.cdiv(n, meta["BLOCK_N"]),)

    tuned_quantized_matmul[grid](a, weights, scales, c, m, n, k, a.stride(0), weights.stride(0), c.stride(0))
    return c


def cases() -> Iterator[Case]:
    """The sweep."""
    size = {"M": 64, "N": 4096, "K": 4096, "stride_am": 4096, "stride_wk": 4096, "stride_cm": 4096}
    for config in CONFIGS:
        yield Case(
            quantized_matmul_kernel,
            {"a": HALF, "weights": BYTES, "scales": FULL, "c": HALF, **size},
            config.kwargs,
            {"num_warps": config.num_warps, "num_stages": config.num_stages},
        )


def check(torch: Any) -> None:
    """Against torch, on a GPU."""
    a = torch.randn((70, 256), device="cuda", dtype=torch.float16)
    weights = torch.randint(-128, 128, (256, 384), device="cuda", dtype=torch.int8)
    scales = torch.rand(384, device="cuda") / 128
    expected = (a.float() @ (weights.float() * scales)).half()
    torch.testing.assert_close(quantized_matmul(a, weights, scales), expected, atol=2e-2, rtol=1e-2)
