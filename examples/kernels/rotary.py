"""Rotary position embedding, in place: pairs (i, i + D/2) of each head are turned by the position's angles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import triton
import triton.language as tl
from cases import BRAIN, FULL, Case, sweep


@triton.jit
def rotary_kernel(x, cosines, sines, T, H, BACKWARD: tl.constexpr, D: tl.constexpr, BLOCK_H: tl.constexpr):
    """`x` is (batch, T, H, D) and contiguous, the tables are (T, D/2). Backward turns the other way."""
    HALF: tl.constexpr = D // 2
    position = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, HALF)
    angle = (position % T) * HALF + i
    cosine, sine = tl.load(cosines + angle), tl.load(sines + angle)
    if BACKWARD:
        sine = -sine
    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    pair = x + (position * H + head[:, None]) * D + i[None, :]
    inside = head[:, None] < H
    left = tl.load(pair, mask=inside).to(tl.float32)
    right = tl.load(pair + HALF, mask=inside).to(tl.float32)
    tl.store(pair, (left * cosine - right * sine).to(x.dtype.element_ty), mask=inside)
    tl.store(pair + HALF, (right * cosine + left * sine).to(x.dtype.element_ty), mask=inside)


def rotate(x: Any, cosines: Any, sines: Any, backward: bool = False) -> Any:
    """Turns `x` in place, and returns it."""
    batch, length, heads, width = x.shape
    rotary_kernel[(batch * length, triton.cdiv(heads, 8))](
        x, cosines, sines, length, heads, BACKWARD=backward, D=width, BLOCK_H=8
    )
    return x


def cases() -> Iterator[Case]:
    """Both directions, heads of three widths."""
    for choice in sweep(pointer=(BRAIN, FULL), D=(64, 128, 256), BACKWARD=(False, True), BLOCK_H=(4, 8)):
        given = {"x": choice.pop("pointer"), "cosines": FULL, "sines": FULL, "T": 2048, "H": 32}
        yield Case(rotary_kernel, given, choice, {"num_warps": 4})


def check(torch: Any) -> None:
    """Against torch, on a GPU."""
    x = torch.randn((2, 50, 12, 64), device="cuda")
    angles = torch.outer(torch.arange(50.0, device="cuda"), 10000.0 ** (-torch.arange(32.0, device="cuda") / 32))
    cosines, sines = angles.cos(), angles.sin()
    left, right = x.chunk(2, -1)
    c, s = cosines[None, :, None], sines[None, :, None]
    expected = torch.cat([left * c - right * s, right * c + left * s], -1)
    turned = rotate(x.clone(), cosines, sines)
    torch.testing.assert_close(turned, expected)
    torch.testing.assert_close(rotate(turned, cosines, sines, backward=True), x, atol=1e-5, rtol=1e-5)
