"""A program that runs what torch.compile made, on a GPU:  launch.py GROUP

Everything is compared with eager. Prints one line of JSON: the figures that the tests look at.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import headstart
from headstart.adapters import process
from headstart.adapters.options import EnableOptions

if __name__ == "__main__":
    TOLD: list[str] = []  # of what was recorded
    RECORD = os.environ.get("RECORD")
    CHOICES = EnableOptions(bundle=os.environ.get("BUNDLE"), record=RECORD, manifest=RECORD, trusted=True)
    process.begin(CHOICES._replace(report=TOLD.append))

import torch
from torch import nn

torch.manual_seed(0)


def same(found: Any, expected: Any, tolerance: float = 2e-3) -> None:
    """Raise unless all tensors agree."""
    one, other = (value if isinstance(value, (list, tuple)) else [value] for value in (found, expected))
    for got, want in zip(one, other, strict=True):
        torch.testing.assert_close(got.float(), want.float(), rtol=tolerance, atol=tolerance)


def check(function: Any, *arguments: Any, tolerance: float = 2e-3, **options: Any) -> None:
    same(torch.compile(function, **options)(*arguments), function(*arguments), tolerance)


def cuda(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device="cuda")


def twins() -> None:
    """Two functions that share a kernel, and the same function again (pytorch #146925)."""

    def first(x: Any, y: Any) -> Any:
        return torch.softmax(x, -1), torch.sin(y)

    def second(x: Any, y: Any) -> Any:
        return torch.softmax(x, -1), torch.cos(y)

    arguments = cuda(128, 1000), cuda(77, 33)
    options = {"fullgraph": True, "options": {"max_autotune": True}}
    check(first, *arguments, **options)
    check(second, *arguments, **options)
    torch._dynamo.reset()
    check(first, *arguments, **options)


def dynamic() -> None:
    def f(x: Any, y: Any) -> Any:
        return (x * y + x.sin()).mean(-1), x.reshape(-1).amax()

    compiled = torch.compile(f, dynamic=True)
    for rows in (32, 77, 128):
        arguments = cuda(rows, 2048), cuda(rows, 2048)
        same(compiled(*arguments), f(*arguments))


def coordinate_descent() -> None:
    options = {"coordinate_descent_tuning": True, "max_autotune": True}
    check(lambda x: (torch.softmax(x, -1), x.sum(0)), cuda(2048, 4096), options=options)


def rescaled() -> None:
    def f(x: Any, y: Any) -> Any:
        z = nn.functional.layer_norm(x, (x.shape[-1],)) * y.sigmoid() + torch.erf(x)
        return z.sum(-1), (z * z).amax(-1), torch.softmax(z, -1)

    check(f, cuda(16384, 5000), cuda(16384, 5000), tolerance=2e-2)


def user_kernels() -> None:
    import user_kernels as kernels

    def f(x: Any, y: Any) -> Any:
        out, tuned = torch.empty_like(x), torch.empty_like(x)
        kernels.add[(x.numel() // 128,)](x, y, out, x.numel(), BLOCK=128)
        kernels.tuned_add[lambda meta: (x.numel() // meta["BLOCK"],)](x, y, tuned, x.numel())
        return out * 2 + tuned

    x, y = cuda(4096), cuda(4096)
    same(torch.compile(f)(x, y), (3 * x + y) * 2 + x + y)


def reduce_overhead() -> None:
    model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.LayerNorm(128)).cuda()
    x = cuda(32, 64)
    compiled = torch.compile(model, mode="reduce-overhead")
    with torch.no_grad():
        for _ in range(4):  # the third call replays a graph
            same(compiled(x).clone(), model(x))


def trained() -> None:
    model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.LayerNorm(256), nn.Linear(256, 8)).cuda()
    x = cuda(32, 64)
    gradients = []
    for run in (model, torch.compile(model)):
        model.zero_grad(set_to_none=True)
        run(x).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    same(gradients[1], gradients[0], 1e-2)


def broken() -> None:
    """Three graphs, with Python between."""

    def f(x: Any) -> Any:
        x = x.sin() * 2
        torch._dynamo.graph_break()
        x = x.softmax(-1)
        torch._dynamo.graph_break()
        return x + 1

    check(f, cuda(64, 300))


def make() -> tuple[Any, Any]:
    """A model and its input, for `headstart build --model`."""
    with torch.device("cuda"):
        block = [nn.Linear(256, 1024), nn.GELU(), nn.Linear(1024, 256), nn.LayerNorm(256)]
        model = nn.Sequential(nn.Embedding(1000, 256), *block, nn.Linear(256, 1000), nn.LogSoftmax(-1))
    return model, torch.zeros(8, 128, device="cuda", dtype=torch.int64)


def made() -> None:
    model, x = make()
    compiled = torch.compile(model)
    compiled(x).square().sum().backward()
    same(compiled(x), model(x), 1e-2)


def max_autotuned() -> None:
    options = {"max_autotune": True, "max_autotune_gemm_backends": "TRITON", "test_configs.max_mm_configs": 6}
    a, b = (torch.randn(512, 512, device="cuda", dtype=torch.bfloat16) for _ in "ab")
    check(lambda a, b: torch.relu(a @ b), a, b, options=options, tolerance=5e-2)


def two_threads() -> None:
    raised: list[BaseException] = []

    def run(number: int) -> None:
        try:
            check(lambda x: (x * number).softmax(-1) + x.cos(), cuda(64, 500 + number))
        except BaseException as error:  # noqa: BLE001 - it is told below
            raised.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not raised, raised


def flex() -> None:
    """Sliding-window attention with return_lse, against SDPA with the same mask."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def window(b: Any, h: Any, q: Any, k: Any) -> Any:
        return (q >= k) & (q - k <= 128)

    mask = create_block_mask(window, B=None, H=None, Q_LEN=4096, KV_LEN=4096, device="cuda")
    q, k, v = cuda(1, 1, 4096, 16), cuda(1, 1, 4096, 16), cuda(1, 1, 4096, 16)
    compiled = torch.compile(lambda q, k, v: flex_attention(q, k, v, block_mask=mask, return_lse=True), fullgraph=True)
    found, _ = compiled(q, k, v)
    place = torch.arange(4096, device="cuda")
    distance = place[:, None] - place[None, :]
    expected = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=(distance >= 0) & (distance <= 128))
    same(found, expected)


def registers() -> None:
    """What is read from cubins is what the driver says once they are loaded."""
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner

    from headstart.adapters.inductor import caches
    from headstart.artifacts import cubin
    from headstart.describe import facts

    original = CachingAutotuner._make_launchers
    pairs: list[tuple[int, int | None]] = []

    def make(self: Any) -> None:
        original(self)
        for result in self.compile_results:
            kernel = result.kernel
            file = Path(caches.triton_folder(0), facts.hash_folder(kernel.hash), f"{kernel.name}.cubin")
            pairs.append((kernel.n_regs, cubin.registers(file.read_bytes(), kernel.name)))

    CachingAutotuner._make_launchers = make
    try:
        check(lambda x, y: (x.softmax(-1).sum(0), (x * y).tanh().cumsum(-1)), cuda(512, 3000), cuda(512, 3000))
    finally:
        CachingAutotuner._make_launchers = original
    assert pairs
    assert [said for said, _ in pairs] == [read for _, read in pairs], pairs


def ddp() -> None:
    """One of two processes."""
    torch.distributed.init_process_group("gloo")
    model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.LayerNorm(256), nn.Linear(256, 8)).cuda()
    parallel = torch.compile(nn.parallel.DistributedDataParallel(model))
    for _ in range(2):
        parallel(cuda(32, 64)).square().sum().backward()
    total = torch.stack([parameter.grad.abs().sum() for parameter in model.parameters()]).cpu()
    other = total.clone()
    torch.distributed.broadcast(other, 0)
    same(total, other)
    torch.distributed.destroy_process_group()


GROUPS = {
    "many": [
        twins,
        dynamic,
        coordinate_descent,
        rescaled,
        user_kernels,
        reduce_overhead,
        trained,
        max_autotuned,
        two_threads,
        registers,
    ],
    "twins": [twins],
    "graphs": [twins, dynamic, user_kernels, reduce_overhead, trained, broken, max_autotuned, two_threads],
    "flex": [flex],
    "trained": [trained],
    "registers": [registers],
    "made": [made],
    "ddp": [ddp],
}


def main() -> None:
    from triton import knobs

    from headstart.adapters import inductor

    compiled: list[str] = []
    knobs.compilation.listener = lambda *, src, cache_hit, **_: cache_hit or compiled.append(src.name)
    failed = {}
    for case in GROUPS[sys.argv[1]]:
        try:
            case()
        except Exception as error:  # noqa: BLE001 - the others are tried all the same
            failed[case.__name__] = f"{type(error).__name__}: {error}"[-2000:]
    adapter = inductor.current()
    assert adapter is not None
    result = {
        "failed": failed,
        "in process": compiled,
        "counts": adapter.counts,
        "compiled": adapter.compiler.statistics.compiled,
        "cached": adapter.compiler.statistics.cached,
        "services": adapter.compiler.services_started,
    }
    headstart.disable()
    use = headstart.report()
    result["use"] = {"graphs": use.graphs, "made_graphs": use.made_graphs}
    result["told"] = TOLD
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
