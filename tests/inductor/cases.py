"""What the tests have torch.compile generate code for: functions, with arguments and options of `torch.compile`."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn

Case = tuple[Any, list[Any], dict[str, Any]]


def cuda(*shape: int, **options: Any) -> torch.Tensor:
    return torch.randn(*shape, device="cuda", **options)


def rescaled() -> Case:
    """Reductions that take so many registers that Inductor halves their blocks."""

    def f(x: Any, y: Any) -> Any:
        z = nn.functional.layer_norm(x, (x.shape[-1],)) * y.sigmoid() + torch.erf(x)
        return z.sum(-1), (z * z).amax(-1), torch.softmax(z, -1)

    return f, [cuda(16384, 5000), cuda(16384, 5000)], {}


def pointwise() -> Case:
    def f(x: Any, y: Any) -> Any:
        return (torch.relu(x) + y * 2).sum(-1), torch.softmax(x.transpose(0, 1), -1), x.cumsum(1)

    return f, [cuda(128, 1000), cuda(128, 1000)], {}


def shares_a_kernel(other: Any = torch.sin) -> Case:
    """Its first kernel is the same whatever the other one is."""

    def f(x: Any, y: Any) -> Any:
        return torch.softmax(x, -1), other(y)

    return f, [cuda(128, 1000), cuda(77, 33)], {}


def max_autotuned() -> Case:
    f, arguments, _ = shares_a_kernel()
    return f, arguments, {"fullgraph": True, "options": {"max_autotune": True}}


def max_autotuned_too() -> Case:
    f, arguments, _ = shares_a_kernel(torch.cos)
    return f, arguments, {"fullgraph": True, "options": {"max_autotune": True}}


def trained() -> Case:
    """A block of a transformer, forward and backward."""

    class Block(nn.Module):
        def __init__(self, width: int = 256, heads: int = 4) -> None:
            super().__init__()
            self.heads = heads
            self.norm = nn.LayerNorm(width)
            self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x: Any) -> Any:
            b, t, c = x.shape
            parts = self.qkv(self.norm(x)).split(c, 2)
            q, k, v = (z.view(b, t, self.heads, c // self.heads).transpose(1, 2) for z in parts)
            y = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, True)[0]
            x = x + self.proj(y.transpose(1, 2).reshape(b, t, c))
            return (x + self.down(nn.functional.gelu(self.up(self.norm(x)), approximate="tanh"))).sum()

    with torch.device("cuda"):  # not moved there: fake parameters cannot be swapped
        torch.set_default_dtype(torch.bfloat16)
        model = Block()
        torch.set_default_dtype(torch.float32)
    return model, [cuda(4, 128, 256, dtype=torch.bfloat16)], {}


def flex() -> Case:
    """The sliding-window attention with which the subject began."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def window(b: Any, h: Any, q: Any, k: Any) -> Any:
        return (q >= k) & (q - k <= 128)

    def f(q: Any, k: Any, v: Any) -> Any:
        mask = create_block_mask(window, B=None, H=None, Q_LEN=4096, KV_LEN=4096, device="cuda")
        return flex_attention(q, k, v, block_mask=mask, return_lse=True)

    return f, [cuda(1, 1, 4096, 16).requires_grad_() for _ in "qkv"], {"fullgraph": True}


def mm() -> Case:
    """Templates, and an epilogue whose fusion is benchmarked."""

    def f(a: Any, b: Any, c: Any) -> Any:
        return torch.relu(a @ b + c)

    bf16 = torch.bfloat16
    options = {"max_autotune": True, "max_autotune_gemm_backends": "TRITON", "test_configs.max_mm_configs": 4}
    arguments = [cuda(512, 512, dtype=bf16), cuda(512, 1024, dtype=bf16), cuda(1024, dtype=bf16)]
    return f, arguments, {"options": options}


def grouped_mm() -> Case:
    def f(a: Any, b: Any, offsets: Any) -> Any:
        return torch.relu(torch._grouped_mm(a, b, offs=offsets))

    bf16 = torch.bfloat16
    b = cuda(4, 512, 256, dtype=bf16).transpose(-1, -2).contiguous().transpose(-1, -2)
    offsets = torch.zeros(4, dtype=torch.int32, device="cuda")
    options = {"max_autotune": True, "max_autotune_gemm_backends": "TRITON"}
    return f, [cuda(256, 512, dtype=bf16), b, offsets], {"options": options}


def user_kernels() -> Case:
    import user_kernels as kernels

    def f(x: Any, y: Any) -> Any:
        out, tuned = torch.empty_like(x), torch.empty_like(x)
        kernels.add[(x.numel() // 128,)](x, y, out, x.numel(), BLOCK=128)
        kernels.tuned_add[lambda meta: (x.numel() // meta["BLOCK"],)](x, y, tuned, x.numel())
        return out * 2 + tuned

    return f, [cuda(4096), cuda(4096)], {}


def dynamic_shapes() -> Case:
    def f(x: Any, y: Any) -> Any:
        return (x * y + x.sin()).mean(-1), x.reshape(-1).amax()

    return f, [cuda(32, 2048), cuda(32, 2048)], {"dynamic": True}


_sizes = itertools.cycle([(32, 1000), (64, 1200)])


def resized() -> Case:
    """The same function with sizes that change: from the second time on torch takes them for variables."""

    def f(x: Any) -> Any:
        return x.sin() + 1

    return f, [cuda(*next(_sizes))], {}


def coordinate_descent() -> Case:
    def f(x: Any) -> Any:
        return torch.softmax(x, -1), x.sum(0)

    return f, [cuda(4096, 4096)], {"options": {"coordinate_descent_tuning": True, "max_autotune": True}}
