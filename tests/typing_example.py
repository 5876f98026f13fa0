"""A program that uses the public names, for mypy: what a caller may rely on is that this type-checks, strictly.

It is not run: `make check` reads it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
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


async def serve(futures: list[headstart.LambdaFuture[headstart.CompiledKernel]]) -> list[str]:
    """A program with an event loop."""
    first: headstart.CompiledKernel = await futures[0]
    kernels: list[headstart.CompiledKernel] = await asyncio.gather(*futures)
    done = await asyncio.wrap_future(futures[0])
    return [first.name, done.key, *(kernel.metadata.name for kernel in kernels)]


def wait(futures: list[headstart.LambdaFuture[headstart.CompiledKernel]]) -> int:
    """A program with threads."""
    standard: concurrent.futures.Future[headstart.CompiledKernel] = futures[0]
    standard.add_done_callback(lambda future: print(future.done()))
    futures[0].add_done_callback(lambda future: print(future.name, future.running()))
    done, pending = concurrent.futures.wait(futures, timeout=60.0)
    for future in concurrent.futures.as_completed(done):
        kernel: headstart.CompiledKernel = future.result()
        components: list[tuple[str, str]] = kernel.components
        print(kernel.key, components)
    return sum(future.cancel() for future in pending if not future.cancelled())


def look_after(compiler: headstart.AsyncCompile, path: Path) -> headstart.BundleUse:
    """What an integration looks at."""
    kernels: headstart.CompiledTritonKernels = compiler.kernels
    bundler: headstart.TritonBundler = compiler.bundler
    bundler.begin_compile()
    try:
        print(len(kernels), bundler.noted, bundler.collect(path))
    finally:
        bundler.end_compile()
    scope: dict[str, object] = {}
    compiler.wait(scope)
    spans: list[headstart.Span] = compiler.timeline
    origins: list[str] = [span.origin for span in spans if span.started is not None]
    target: headstart.Target = headstart.Target.parse("cuda:90")
    limit: int | None = target.shared_memory_limit
    folder: Path = headstart.cache_dir()
    print(origins, limit, target.binary, folder)
    use: headstart.BundleUse = headstart.report()
    print(use.kernels, use.saved_s, [(missed.name, missed.why) for missed in use.missed])
    return use


def explain(error: Exception) -> str:
    """What may be raised."""
    match error:
        case headstart.CompileErrors():
            return ", ".join(str(each) for each in error.errors)
        case headstart.OutOfResources() | headstart.CompileTimeout() | headstart.CompileOutOfMemory():
            return f"{error.kernel} for {error.target} with {error.options}"
        case headstart.SourceError() | headstart.CompilerCrashed():
            return error.detail or error.output
        case headstart.CompileError():
            return error.summary
        case headstart.CannotTravel():
            return f"{error.name}: {error.why}"
        case headstart.UsageError() | headstart.ServiceError() | headstart.StoreUnavailable():
            return str(error)
        case headstart.PastVersionError() | headstart.FutureVersionError():
            return "written by another version"
        case headstart.DamagedError():
            return error.reason
        case headstart.HeadstartError():
            return str(error)
    raise error


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
