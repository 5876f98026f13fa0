"""A program that uses the public names, for mypy: what a caller may rely on is that this type-checks, strictly.

It is not run: `make check` reads it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import headstart
from headstart import keys


def generate(sources: dict[str, str], bundle: Path) -> dict[str, bytes]:
    """A code generator."""
    made: dict[str, bytes] = {}
    signature = {"x": "*fp32", "n": "i32"}
    with headstart.AsyncCompile(target="cuda:90", bundle=bundle, workers=2) as compiler:
        futures: list[headstart.LambdaFuture[headstart.CompiledKernel]] = [
            compiler.triton(name, source, signature=signature, constants={"BLOCK": 128}, options={"num_warps": 4})
            for name, source in sources.items()
        ]
        for future in headstart.as_completed(futures, timeout=60.0):
            error: BaseException | None = future.exception()
            if isinstance(error, headstart.CompileError):
                print(error.stage, error.summary, error.reproduce)
                continue
            kernel: headstart.CompiledKernel = future.result(timeout=1.0)
            cubin = kernel.asm["cubin"]
            made[kernel.key] = cubin if isinstance(cubin, bytes) else cubin.encode()
        statistics: headstart.Statistics = compiler.statistics
        spans: list[headstart.Span] = compiler.timeline
        print(statistics.compiled, len(spans))
    return made


def kernels(source: str) -> Iterator[headstart.KernelSpec]:
    """A plan."""
    for warps in (4, 8):
        yield headstart.KernelSpec(source, name="k", signature="*fp32, i32", options={"num_warps": warps})


def enable(folder: Path) -> list[str]:
    """A program's own start."""
    headstart.enable(bundle=folder / "app.bundle", manifest=folder / "app.manifest")
    try:
        return keys.explain([("options.num_warps", "4")], [("options.num_warps", "8")])
    except headstart.UsageError as error:
        return [str(error)]
    finally:
        headstart.disable()
