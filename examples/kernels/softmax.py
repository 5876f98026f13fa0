"""Softmax over rows, each row in one program."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import triton
import triton.language as tl
from cases import BRAIN, FULL, Case, sweep


@triton.jit
def softmax_kernel(x, y, stride, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * stride
    i = tl.arange(0, BLOCK)
    value = tl.load(x + row + i, mask=i < columns, other=float("-inf")).to(tl.float32)
    weight = tl.exp(value - tl.max(value, 0))
    tl.store(y + row + i, (weight / tl.sum(weight, 0)).to(y.dtype.element_ty), mask=i < columns)


def warps_for(block: int) -> int:
    """As many threads as have 8 elements each, between one warp and 16."""
    return min(16, max(1, block // 256))


def softmax(x: Any) -> Any:
    """Over the last dimension of a contiguous matrix."""
    rows, columns = x.shape
    y, block = x.new_empty(x.shape), triton.next_power_of_2(columns)
    softmax_kernel[(rows,)](x, y, x.stride(0), columns, BLOCK=block, num_warps=warps_for(block))
    return y


def cases() -> Iterator[Case]:
    """Widths that occur, each with the number of warps that suits it and its neighbours."""
    for choice in sweep(pointer=(FULL, BRAIN), block=(256, 1024, 4096, 16384), factor=(1, 2)):
        block, pointer = choice["block"], choice["pointer"]
        yield Case(
            softmax_kernel,
            {"x": pointer, "y": pointer, "stride": block, "columns": block},
            {"BLOCK": block},
            {"num_warps": min(32, warps_for(block) * choice["factor"])},
        )


def check(torch: Any) -> None:
    """Against torch, on a GPU."""
    x = torch.randn((300, 781), device="cuda")
    torch.testing.assert_close(softmax(x), torch.softmax(x, 1))
