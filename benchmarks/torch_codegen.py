"""torch.compile's code generation where there is no GPU: until the generated module could run, stock and headstart.

    make bench-torch                                     [ROUNDS=3]

Each measurement is a fresh process with empty caches; kinds take turns, round by round. The time is that of the first
call of torch.compile, which ends where a GPU would begin to work; workers are ready before it begins, unless said.

    stock      Inductor's own pool
    headstart  with it
    after      headstart, with Inductor's early kick-offs left out: the generated module kicks all kernels off
    warm       headstart, from the bundle that `headstart` left
    cold       headstart; nothing waits for the workers, or for the process that describes kernels
    slow       as cold, with a zygote that takes a minute to start
    stock cold as stock; nothing waits for its pool
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("stock", "headstart", "after", "warm", "cold", "slow", "stock cold")
CASES = ("fusions", "trained", "mm")
_LIMIT = 240.0  # seconds for one process

# Run with the tests' stand-in for a GPU on the path.
_PROGRAM = """
import json, os, statistics, sys, time
import gpuless, headstart
import torch_compile
kind, case, bundle = sys.argv[1:]
ours = not kind.startswith("stock")
torch_compile.watch_threads()
if ours:
    headstart.enable(bundle=bundle)
import torch
import torch._inductor.async_compile as async_compile
from headstart.adapters import inductor
if kind == "after":
    from torch._inductor.codegen import triton as codegen
    codegen.async_compile.use_process_pool = lambda: False  # of the one that only kicks off early
waits = []
original = async_compile.AsyncCompile.wait
def wait(self, scope):
    started = time.perf_counter()
    try:
        return original(self, scope)
    finally:
        waits.append(time.perf_counter() - started)
async_compile.AsyncCompile.wait = wait
kicks = []
from headstart.adapters.inductor.pool import Pool
submitted = Pool.submit
def submit(self, *arguments, **keywords):
    started = time.perf_counter()
    try:
        return submitted(self, *arguments, **keywords)
    finally:
        kicks.append(time.perf_counter() - started)
Pool.submit = submit
with gpuless.gpuless():
    import cases
    if kind in ("headstart", "after"):
        adapter = inductor.current()
        adapter.describing.awake.wait(120)
        source = "import triton, triton.language as tl\\n@triton.jit\\ndef ready(x):\\n    tl.store(x, 0.0)\\n"
        adapter.compiler.triton("ready", source, signature={"x": "*fp32"}, target="cuda:90").result(120)
    elif kind == "stock":
        async_compile.AsyncCompile.wait_pool_ready()
    function, arguments, options = (
        torch_compile.fusions(torch)[:3] if case == "fusions" else getattr(cases, case)()
    )
    before, started = torch_compile.threads_cpu(), time.perf_counter()
    gpuless.codegen(function, *arguments, **options)
    seconds = time.perf_counter() - started
    spent = {name: cpu - before.get(name, 0.0) for name, cpu in torch_compile.threads_cpu().items()}
    adapter = inductor.current()
    log = gpuless.compiles(os.environ["GPULESS_LOG"])
    print(json.dumps({
        "seconds": seconds,
        "wait": sum(waits),
        "threads_cpu": spent,
        "kick_us": statistics.median(kicks) * 1e6 if kicks else 0.0,
        "in_process": sum(line["pid"] == os.getpid() and not line["hit"] for line in log),
        "compiled": adapter.compiler.statistics.compiled if adapter else 0,
    }), flush=True)
headstart.disable()
async_compile.shutdown_compile_workers()
"""


def measure(kind: str, case: str, folder: Path, bundle: Path) -> dict[str, Any]:
    """One process; the figures it printed."""
    (folder / "runtime").mkdir(parents=True, mode=0o700)
    path = [str(ROOT / folder) for folder in ("src", "tests/inductor", "benchmarks/gpu")]
    if kind == "slow":
        late = "import sys, time\nif 'headstart.worker.zygote' in sys.argv: time.sleep(60)\n"
        (folder / "sitecustomize.py").write_text(late)
        path.insert(0, str(folder))
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("TRITON_", "TORCH", "HEADSTART")) and name != "PYTHONDONTWRITEBYTECODE"
    }
    environment = {
        **inherited,
        "PYTHONPATH": os.pathsep.join(path),
        "XDG_RUNTIME_DIR": str(folder / "runtime"),
        "HEADSTART_CACHE_DIR": str(folder / "headstart"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "TORCHINDUCTOR_COMPILE_THREADS": str(os.cpu_count()),
        "GPULESS_LOG": str(folder / "log"),
    }
    program = [sys.executable, "-c", _PROGRAM, kind, case, str(bundle)]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=_LIMIT)
    if done.returncode:
        raise SystemExit(f"{kind} {case} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    rounds = int(os.environ.get("ROUNDS", "3"))
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for number in range(rounds):
        for case in CASES:
            with tempfile.TemporaryDirectory() as folder:
                kept = Path(folder, "kept.bundle")
                for kind in KINDS:
                    bundle = kept if kind in ("headstart", "warm") else Path(folder, f"{kind}.bundle")
                    result = measure(kind, case, Path(folder, kind.replace(" ", "-")), bundle)
                    found.setdefault((case, kind), []).append(result)
                    print(f"round {number + 1}  {case:12}  {kind:10}  {result}", file=sys.stderr, flush=True)
    print(f"{os.cpu_count()} cores, medians of {rounds} rounds; first call in s : stock's (compiles in the program)\n")
    print(f"| case | {' | '.join(KINDS)} |")
    print("|---|" + "---|" * len(KINDS))
    for case in CASES:
        cells = []
        for kind in KINDS:
            results = found[case, kind]
            seconds = statistics.median(result["seconds"] for result in results)
            pairs = zip(results, found[case, "stock"], strict=True)
            ratio = statistics.median(mine["seconds"] / stock["seconds"] for mine, stock in pairs)
            cells.append(f"{seconds:.1f} : {ratio:.2f} ({max(result['in_process'] for result in results)})")
        print(f"| {case} | {' | '.join(cells)} |")
    kicks = [result["kick_us"] for (_, kind), results in found.items() if kind == "headstart" for result in results]
    print(f"\nheadstart's part of one kick-off, median over kernels: {statistics.median(kicks):.0f} µs")
    print("\nCPU time of headstart's threads in the program during that call, s\n")
    print("| case | all | connection |\n|---|---|---|")
    for case in CASES:
        spent = [result["threads_cpu"] for result in found[case, "headstart"]]
        whole = statistics.median(sum(threads.values()) for threads in spent)
        connection = statistics.median(threads.get("headstart", 0.0) for threads in spent)
        print(f"| {case} | {whole:.2f} | {connection:.2f} |")


if __name__ == "__main__":
    main()
