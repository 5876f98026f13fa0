"""A two-phase code generator, as TorchInductor's is, on top of headstart.

Phase one, `generate`, lowers tensor programs to Triton kernels and writes the text of a Python module. The moment
a kernel's source is final it is handed to `AsyncCompile.triton`, so that workers compile it while generation goes
on. Phase two, `run_module`, executes that text: it asks for the same kernels again, finds them, and waits for the
rest.

    python examples/codegen.py              writes the generated module to standard output; needs no Triton
    headstart build examples/codegen.py     compiles the same kernels into a bundle

The generator itself is in `kernelgen/`.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if str(Path(__file__).parent) not in sys.path:  # loaded by path, not run as a script
    sys.path.insert(0, str(Path(__file__).parent))

from kernelgen.driver import DefineKernel, Driver

if TYPE_CHECKING:
    import headstart

Kernel = tuple[str, str, dict[str, Any]]  # name, source, keyword arguments of AsyncCompile.triton


def generate(async_compile: Any, *, define_kernel: DefineKernel | None = None) -> str:
    """Phase one: the text of the generated module.

    `define_kernel(name, source, how)` is called once per distinct kernel, as soon as its source is final. By default it
    starts the compile. For a late start pass one that only collects, such as `list.append` of its arguments, and call
    `async_compile.triton(name, source, **how)` for each when this returns; the text is the same.
    """

    def start_compile(name: str, source: str, how: dict[str, Any]) -> None:
        async_compile.triton(name, source, **how)

    driver = Driver(define_kernel or start_compile)
    driver.run()
    return driver.text()


def run_module(text: str, async_compile: Any) -> dict[str, Any]:
    """Phase two: executes the generated module, and returns its globals, in which each kernel is compiled."""
    scope: dict[str, Any] = {"__name__": "generated", "async_compile": async_compile}
    exec(compile(text, "<generated>", "exec"), scope)
    return scope


def collect() -> tuple[str, list[Kernel]]:
    """The module's text and its kernels, with nothing compiled."""
    found: list[Kernel] = []
    text = generate(None, define_kernel=lambda *kernel: found.append(kernel))
    return text, found


def kernels() -> Iterator[headstart.KernelSpec]:
    """The same kernels for `headstart build`."""
    import headstart

    for name, source, how in collect()[1]:
        yield headstart.KernelSpec(source, name=name, **how)


MATMUL = """\
import triton
import triton.language as tl


@triton.jit
def matmul(
    a_ptr, b_ptr, c_ptr, M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):
    pid = tl.program_id(0)
    blocks_m = tl.cdiv(M, BLOCK_M)
    blocks_n = tl.cdiv(N, BLOCK_N)
    group = pid // (GROUP_M * blocks_n)
    rows = tl.minimum(blocks_m - group * GROUP_M, GROUP_M)
    pid_m = group * GROUP_M + pid % (GROUP_M * blocks_n) % rows
    pid_n = pid % (GROUP_M * blocks_n) // rows
    rm = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    rn = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    rk = tl.arange(0, BLOCK_K)
    a_ptrs = a_ptr + (rm % M)[:, None] * K + rk[None, :]
    b_ptrs = b_ptr + rk[:, None] * N + (rn % N)[None, :]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for k in range(0, K, BLOCK_K):
        a = tl.load(a_ptrs, mask=rk[None, :] < K - k, other=0.0)
        b = tl.load(b_ptrs, mask=rk[:, None] < K - k, other=0.0)
        acc += tl.dot(a, b)
        a_ptrs += BLOCK_K
        b_ptrs += BLOCK_K * N
    mask = (rm < M)[:, None] & (rn < N)[None, :]
    tl.store(c_ptr + rm[:, None] * N + rn[None, :], acc.to(tl.float16), mask=mask)
"""


def matmul_sweep() -> Iterator[Kernel]:
    """One matrix product in 48 configurations, as an autotuner would ask for them."""
    pointers = dict.fromkeys(("a_ptr", "b_ptr", "c_ptr"), "*fp16")
    sizes = dict.fromkeys("MNK", "i32")
    tiles = ((64, 64), (64, 128), (128, 128), (128, 256))
    for (block_m, block_n), block_k, warps, stages in itertools.product(tiles, (32, 64), (4, 8), (2, 3, 4)):
        constants = {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k, "GROUP_M": 8}
        how = {
            "signature": pointers | sizes | dict.fromkeys(constants, "constexpr"),
            "constants": constants,
            "attrs": {(i,): [["tt.divisibility", 16]] for i in range(6)},
            "options": {"num_warps": warps, "num_stages": stages},
        }
        yield "matmul", MATMUL, how


if __name__ == "__main__":
    sys.stdout.write(collect()[0])
