"""torch.compile on a GPU: the first call with Inductor's own pool, with one thread, and with headstart.

    python benchmarks/gpu/torch_compile.py [case …] [kind …]    from a checkout, with src on PYTHONPATH
    python benchmarks/gpu/torch_compile.py --report FILE        the table of what an earlier run wrote
    ROUNDS=3 python benchmarks/gpu/torch_compile.py …           next starts (`AGAIN`) that often, in turns; medians
    SAMPLE=1 python benchmarks/gpu/torch_compile.py …           and where the threads were, every few milliseconds

Each measurement is a fresh process with empty caches. It is checked against eager, the time until the first call
returns is taken, and how often Triton's compiler ran in that process. Prints a line for each and a table, and writes
torch_compile.json into $OUT.

    stock       Inductor's default pool
    cached      stock again, with the caches that `stock` left
    headstart   enabled before `import torch`, and recording; nothing waits for the workers
    warm        headstart again, Inductor's and Triton's caches empty, from the bundle that `headstart` left
    record      headstart again, every cache empty, from the record alone that `headstart` left
    artifacts   stock, every cache empty, that loads what `stock` saved by torch.compiler.save_cache_artifacts; the
                time for that counts
    ready       as headstart, and the first compile begins once the workers and the describer are ready
    serial      TORCHINDUCTOR_COMPILE_THREADS=1: everything in the training process
    after       as ready, with Inductor's early kick-offs left out: all kernels are kicked off by the generated module
    slow        as headstart, with a zygote that takes a minute to start
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

CASES = ("gpt", "vision", "matmul", "fusions", "flex")
KINDS = ("stock", "cached", "headstart", "warm", "record", "artifacts", "ready", "serial", "after", "slow")
OURS = ("headstart", "warm", "record", "ready", "after", "slow")
AGAIN = ("cached", "warm", "record", "artifacts")
# Whose folders a kind has.
HOMES = {"cached": "stock", "artifacts": "stock", "warm": "headstart", "record": "headstart"}
ONLY = {  # kinds that are not run for every case
    "cached": ("gpt", "vision"),
    "ready": ("gpt", "vision", "fusions"),
    "serial": ("gpt", "vision"),
    "after": ("fusions",),
    "slow": ("fusions",),
}
DEADLINE = float(os.environ.get("DEADLINE", "540"))  # seconds, for everything: what does not fit is left out
ROUNDS = int(os.environ.get("ROUNDS", "1"))
_LIMIT = 150.0  # seconds for one process
READY = """
import triton
import triton.language as tl

@triton.jit
def ready(x):
    tl.store(x, 0.0)
"""


# The cases: a function, its arguments, options of torch.compile, whether it is trained, and the tolerance


def gpt(torch: Any) -> tuple[Any, list[Any], dict[str, Any], bool, float]:
    """A transformer of GPT-2's shape, forward and backward."""
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self, width: int, heads: int) -> None:
            super().__init__()
            self.heads = heads
            self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x: Any) -> Any:
            b, t, c = x.shape
            parts = self.qkv(self.ln1(x)).split(c, 2)
            q, k, v = (part.view(b, t, self.heads, c // self.heads).transpose(1, 2) for part in parts)
            y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.proj(y.transpose(1, 2).reshape(b, t, c))
            return x + self.down(nn.functional.gelu(self.up(self.ln2(x)), approximate="tanh"))

    class Model(nn.Module):
        def __init__(self, vocabulary: int = 50304, width: int = 768, heads: int = 12, layers: int = 12) -> None:
            super().__init__()
            self.token, self.place = nn.Embedding(vocabulary, width), nn.Embedding(512, width)
            self.blocks = nn.Sequential(*[Block(width, heads) for _ in range(layers)])
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

        def forward(self, tokens: Any) -> Any:
            x = self.token(tokens) + self.place(torch.arange(tokens.shape[1], device=tokens.device))
            logits = self.head(self.norm(self.blocks(x)))
            return nn.functional.cross_entropy(logits.view(-1, logits.shape[-1]).float(), tokens.view(-1))

    model = Model().cuda()
    return model, [torch.randint(0, 50304, (4, 512), device="cuda")], {}, True, 2e-2


def vision(torch: Any) -> tuple[Any, list[Any], dict[str, Any], bool, float]:
    """A convolutional network in four stages with different norms and activations, forward and backward."""
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self, width: int, stage: int) -> None:
            super().__init__()
            self.mix = nn.Conv2d(width, width, 7, padding=3, groups=width)
            self.norm = nn.GroupNorm(1 << stage, width) if stage % 2 else nn.BatchNorm2d(width)
            self.up, self.down = nn.Conv2d(width, 4 * width, 1), nn.Conv2d(4 * width, width, 1)
            self.act = [nn.GELU(), nn.SiLU(), nn.Hardswish(), nn.Mish()][stage]
            self.squeeze, self.excite = nn.Conv2d(width, width // 4, 1), nn.Conv2d(width // 4, width, 1)
            self.scale = nn.Parameter(torch.full((width, 1, 1), 0.1))

        def forward(self, x: Any) -> Any:
            y = self.down(self.act(self.up(self.norm(self.mix(x)))))
            gate = self.excite(self.squeeze(y.mean((2, 3), keepdim=True)).relu()).sigmoid()
            return x + self.scale * y * gate

    class Model(nn.Module):
        def __init__(self, widths: tuple[int, ...] = (48, 96, 192, 384)) -> None:
            super().__init__()
            layers: list[Any] = [nn.Conv2d(3, widths[0], 4, 4)]
            for stage, width in enumerate(widths):
                layers += [Block(width, stage), Block(width, stage)]
                if stage < 3:
                    layers += [nn.BatchNorm2d(width), nn.Conv2d(width, widths[stage + 1], 2, 2)]
            self.layers, self.head = nn.Sequential(*layers), nn.Linear(widths[-1], 1000)

        def forward(self, images: Any) -> Any:
            return self.head(self.layers(images).amax((2, 3))).log_softmax(-1)[:, 7].mean().neg()

    return Model().cuda(), [torch.randn(16, 3, 128, 128, device="cuda")], {}, True, 2e-2


def fusions(torch: Any) -> tuple[Any, list[Any], dict[str, Any], bool, float]:
    """Some sixty fusions, no two alike."""
    unary = [torch.sin, torch.cos, torch.tanh, torch.sigmoid, torch.erf, torch.exp2]

    def f(x: Any) -> list[Any]:
        outputs = []
        for number in range(30):
            first, second = unary[number % 6], unary[(number // 6) % 6]
            y = x[:, : 900 + 8 * number]
            z = first(y * (1 + number)) + second(y - number)
            outputs.append(torch.softmax(z, -1))
            outputs.append((z.mean(0) + number).relu())
        return outputs

    return f, [torch.randn(512, 2048, device="cuda")], {}, False, 1e-3


def matmul(torch: Any) -> tuple[Any, list[Any], dict[str, Any], bool, float]:
    """One matrix product, max-autotuned over Triton's templates."""

    def f(a: Any, b: Any, c: Any) -> Any:
        return torch.relu(a @ b + c)

    arguments = [torch.randn(1024, 1024, device="cuda", dtype=torch.bfloat16) for _ in "ab"]
    arguments.append(torch.randn(1024, device="cuda", dtype=torch.bfloat16))
    options = {"options": {"max_autotune": True, "max_autotune_gemm_backends": "TRITON"}}
    return f, arguments, options, False, 5e-2


def flex(torch: Any) -> tuple[Any, list[Any], dict[str, Any], bool, float]:
    """Sliding-window causal attention with return_lse; checked against SDPA with the same mask."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def window(b: Any, h: Any, q: Any, k: Any) -> Any:
        return (q >= k) & (q - k <= 128)

    mask = create_block_mask(window, B=None, H=None, Q_LEN=4096, KV_LEN=4096, device="cuda")

    def f(q: Any, k: Any, v: Any) -> Any:
        return flex_attention(q, k, v, block_mask=mask, return_lse=True)[0]

    def reference(q: Any, k: Any, v: Any) -> Any:
        place = torch.arange(4096, device="cuda")
        distance = place[:, None] - place[None, :]
        seen = (distance >= 0) & (distance <= 128)
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)

    f.reference = reference  # type: ignore[attr-defined]
    arguments = [torch.randn(1, 1, 4096, 16, device="cuda") for _ in "qkv"]
    return f, arguments, {"fullgraph": True}, False, 1e-3


# One measurement, in a process of its own


def measure(case: str, kind: str) -> dict[str, Any]:
    begun = time.perf_counter()
    watch_threads()
    if kind in OURS:
        import headstart

        enable(kind)
    import torch

    if kind in OURS:
        from headstart.adapters import inductor

        assert inductor.current() is not None, "headstart stepped aside"
    torch.manual_seed(0)
    meters = Meters(torch)
    if kind in OURS:
        meters.watch_ours()
    function, arguments, options, trained, tolerance = globals()[case](torch)
    expected = _call(torch, getattr(function, "reference", function), arguments, trained)
    torch.cuda.synchronize()
    if kind in ("ready", "after"):
        adapter = inductor.current()
        assert adapter is not None
        adapter.describing.awake.wait(120)
        adapter.compiler.triton("ready", READY, signature={"x": "*fp32"}, target="cuda:90").result(120)
    if kind == "after":
        from torch._inductor.codegen import triton as codegen

        codegen.async_compile.use_process_pool = lambda: False  # the one that only kicks off early
    sampler = Sampler() if os.environ.get("SAMPLE") else None
    ready = time.perf_counter()
    if kind == "artifacts":
        torch.compiler.load_cache_artifacts(Path(os.environ["ARTIFACTS"]).read_bytes())
    found = _call(torch, torch.compile(function, **options), arguments, trained)
    torch.cuda.synchronize()
    first_call = time.perf_counter() - ready
    samples = sampler.stop() if sampler else None
    meters.stop()
    pool, threads = pool_pss(), threads_cpu()
    again = time.perf_counter()
    _call(torch, torch.compile(function, **options), arguments, trained)
    torch.cuda.synchronize()
    result = {
        "case": case,
        "kind": kind,
        "first_call_s": first_call,
        "before_s": ready - begun,
        "second_call_s": time.perf_counter() - again,
        **meters.figures(),
        "pool_pss_mib": pool,
        "threads_cpu_s": threads,
        "samples": samples,
        "worst_error": _worst(torch, found, expected),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name(),
    }
    result["correct"] = result["worst_error"] <= tolerance
    if kind in OURS:
        adapter = inductor.current()
        assert adapter is not None
        result["counts"] = adapter.counts
        result["compiled_by_workers"] = adapter.compiler.statistics.compiled
        result["services"] = adapter.compiler.services_started
        headstart.disable()
        use = headstart.report()
        result["graphs"] = [use.graphs, use.made_graphs]
    elif kind == "stock":
        saved = torch.compiler.save_cache_artifacts()
        assert saved is not None
        Path(os.environ["ARTIFACTS"]).write_bytes(saved[0])
    return result


def enable(kind: str) -> None:
    """What `headstart run` would enable, before torch is there."""
    from headstart.adapters import process
    from headstart.adapters.options import EnableOptions

    process.begin(
        EnableOptions(
            manifest=os.environ["RECORD"] if kind == "record" else None,
            bundle=None if kind == "record" else os.environ["BUNDLE"],
            record=os.environ.get("RECORD") if kind == "headstart" else None,
            trusted=True,
            report=lambda text: print(text, file=sys.stderr),
        )
    )


class Meters:
    """What the first call spends where, in this process. Seconds; only the first call is counted."""

    def __init__(self, torch: Any) -> None:
        from torch._inductor.async_compile import AsyncCompile
        from torch._inductor.runtime.triton_heuristics import CachingAutotuner
        from triton import knobs
        from triton.compiler import CompiledKernel

        self._torch = torch
        self._on = True
        self._spent: dict[str, float] = {}
        self._depth: dict[str, int] = {}
        self.compiled: list[tuple[bool, float]] = []  # per end of `triton.compile` here: hit, seconds
        knobs.compilation.listener = self._compiled
        self._watch(AsyncCompile, "wait", "wait_s")  # what Inductor does with each kernel counts, too
        # The module's and the class's name differ from torch to torch.
        for module in ("static_triton_launcher", "static_cuda_launcher"):
            with contextlib.suppress(ImportError):
                found = importlib.import_module(f"torch._inductor.runtime.{module}")
                for cls in {value for name, value in vars(found).items() if name.startswith("StaticallyLaunched")}:
                    if "load_kernel" in vars(cls):
                        self._watch(cls, "load_kernel", "load_s")
        self._watch(CompiledKernel, "_init_handles", "load_s")
        self._watch(CachingAutotuner, "_dynamic_scale_rblock", "rescale_s")
        self._watch(CachingAutotuner, "_make_launchers", "launchers_s")
        self._watch(CachingAutotuner, "benchmark_all_configs", "benchmark_s")

    def watch_ours(self) -> None:
        from headstart.adapters.inductor.graphs import Graphs
        from headstart.adapters.inductor.pool import PoolFuture

        self._watch(Graphs, "_put", "graphs_s")
        self._watch(PoolFuture, "_wait", "blocked_s")  # until a source's kernels are there

    def _compiled(self, *, times: Any, cache_hit: bool, **_: Any) -> None:
        if self._on:
            self.compiled.append((bool(cache_hit), times.total / 1e6))

    def _watch(self, owner: Any, name: str, figure: str) -> None:
        original = getattr(owner, name)

        def timed(*arguments: Any, **keywords: Any) -> Any:
            self._depth[figure] = self._depth.get(figure, 0) + 1
            started = time.perf_counter()
            try:
                return original(*arguments, **keywords)
            finally:
                self._depth[figure] -= 1
                if self._on and not self._depth[figure]:  # not twice, where one calls another
                    self._spent[figure] = self._spent.get(figure, 0.0) + time.perf_counter() - started

        setattr(owner, name, timed)

    def stop(self) -> None:
        self._on = False

    def figures(self) -> dict[str, Any]:
        """All of them, Inductor's own included."""
        phases = self._torch._dynamo.utils.compilation_time_metrics
        longest = sorted(((sum(times), name) for name, times in phases.items()), reverse=True)[:20]
        return {
            "compiles_in_process": sum(not hit for hit, _ in self.compiled),
            "hits_in_process": sum(hit for hit, _ in self.compiled),
            "triton_s": sum(seconds for hit, seconds in self.compiled if not hit),
            **self._spent,
            "phases": {name: round(seconds, 3) for seconds, name in longest},
        }


class Sampler:
    """Where each thread is, every 5 ms: a poor man's profiler, for runs whose times are not quoted."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[str]] = {}
        self._going = True
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while self._going:
            names = {thread.ident: thread.name for thread in threading.enumerate()}
            for ident, frame in sys._current_frames().items():
                if ident == threading.get_ident():
                    continue
                seen = self._counts.setdefault(names.get(ident, "?"), Counter())
                functions = set()
                first = True
                while frame is not None:
                    code = frame.f_code
                    where = f"{Path(code.co_filename).name}:{code.co_name}"
                    if first:
                        seen[f"self {where}"] += 1
                        first = False
                    functions.add(where)
                    frame = frame.f_back
                seen.update(functions)
            time.sleep(0.005)

    def stop(self) -> dict[str, list[tuple[str, int]]]:
        """The most frequent functions of each thread, with the number of samples in which they were on its stack."""
        self._going = False
        self._thread.join()
        return {name: counts.most_common(150) for name, counts in self._counts.items()}


def pool_pss() -> float:
    """Memory of all processes below this one, MiB: proportional set sizes, so that shared pages count once."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    total, wave = 0.0, {os.getpid()}
    while wave := {child for child, parent in parents.items() if parent in wave}:
        for child in wave:
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{child}/smaps_rollup").read_text()
                total += int(text.partition("Pss:")[2].split()[0]) / 1024
    return total


_ended: Counter[str] = Counter()  # CPU time of headstart's threads that are no more, by name


def watch_threads() -> None:
    """Have threads that end leave their CPU time behind. Before any is started."""
    original = threading.Thread.run

    def run(thread: threading.Thread) -> None:
        try:
            original(thread)
        finally:
            if thread.name.startswith("headstart"):
                _ended[thread.name] += time.thread_time()

    threading.Thread.run = run  # type: ignore[method-assign]


def threads_cpu() -> dict[str, float]:
    """CPU time of headstart's own threads in this process so far, seconds, by name."""
    found = Counter(_ended)
    for thread in threading.enumerate():
        if thread.name.startswith("headstart") and thread.ident is not None:
            found[thread.name] += time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
    return dict(found)


def _call(torch: Any, function: Any, arguments: list[Any], trained: bool) -> list[Any]:
    found = function(*arguments)
    outputs = list(found) if isinstance(found, (list, tuple)) else [found]
    if trained:
        model = getattr(function, "_orig_mod", function)
        model.zero_grad(set_to_none=True)
        outputs[0].backward()
        outputs += [parameter.grad for parameter in model.parameters()]
    return [output.detach().clone() for output in outputs]


def _worst(torch: Any, found: list[Any], expected: list[Any]) -> float:
    """The largest difference, in units of the expected values' largest.

    A gradient that is zero but for rounding (that of a bias before a norm) is measured against the others'.
    """
    worst = 0.0
    largest = max(float(other.float().abs().max()) for other in expected)
    for one, other in zip(found, expected, strict=True):
        scale = other.float().abs().max().clamp(min=1e-3 * largest)
        worst = max(worst, float((one.float() - other.float()).abs().max() / scale))
    return worst


# All of them


def run(case: str, kind: str, folder: Path) -> dict[str, Any]:
    """`measure` in a fresh process with caches of its own."""
    # What torch keeps has paths in it: they are the same on the other machine, as with the default ones.
    caches = folder / f"{case}-{HOMES.get(kind, kind)}"
    kept = folder / f"{case}-kept"
    if kind == "cached":
        kept.rename(caches)
    for name in ("inductor", "runtime", "headstart"):
        (caches / name).mkdir(parents=True, mode=0o700, exist_ok=kind == "cached")
    source = str(Path(__file__).resolve().parents[2] / "src")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("TORCHINDUCTOR_", "TRITON_"))},
        "PYTHONPATH": os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])]),
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "HEADSTART_CACHE_DIR": str(caches / "headstart"),
        "HEADSTART_CONFIG_DIR": str(folder / "config"),  # the key that signed the bundle is trusted where it is used
        "XDG_RUNTIME_DIR": str(caches / "runtime"),
        "RECORD": str(folder / f"{case}.manifest"),
        "ARTIFACTS": str(folder / f"{case}.artifacts"),
        # The one that `headstart` left is what `warm` starts from; nobody else may read it.
        "BUNDLE": str(folder / (f"{case}.bundle" if kind in ("headstart", "warm") else f"{case}-{kind}.bundle")),
    }
    if kind == "slow":
        (caches / "sitecustomize.py").write_text(
            "import sys, time\nif 'headstart.worker.zygote' in sys.argv: time.sleep(60)\n"
        )
        environment["PYTHONPATH"] = os.pathsep.join([str(caches), environment["PYTHONPATH"]])
    if kind == "serial":
        environment["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    program = [sys.executable, __file__, "--measure", case, kind]
    try:
        done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=_LIMIT)
    except subprocess.TimeoutExpired:
        return {"case": case, "kind": kind, "failed": f"it took longer than {_LIMIT:g} s"}
    finally:
        if kind in ("stock", "cached"):
            caches.rename(kept)
        else:
            shutil.rmtree(caches, ignore_errors=True)
    if done.returncode:
        return {"case": case, "kind": kind, "failed": done.stderr[-3000:]}
    result: dict[str, Any] = {**json.loads(done.stdout.splitlines()[-1]), "log": done.stderr[-2000:]}
    return result


def row(result: dict[str, Any]) -> str:
    """One line of the table."""
    if "failed" in result:
        words = result["failed"].splitlines() or [""]
        return f"{result['case']:8}  {result['kind']:9}  failed: {words[-1]}"
    return (
        f"{result['case']:8}  {result['kind']:9}  {result['first_call_s']:7.2f} s  "
        f"{result['compiles_in_process']:4} compiled in process  "
        f"{result.get('compiled_by_workers', 0):4} by headstart  "
        f"{'correct' if result['correct'] else 'WRONG'} ({result['worst_error']:.1e})"
    )


def report(results: list[dict[str, Any]]) -> str:
    """All of them as tables in Markdown."""
    rounds: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for result in results:
        if "failed" not in result:
            rounds.setdefault((result["case"], result["kind"]), []).append(result)
    found = {what: sorted(each, key=lambda one: one["first_call_s"])[len(each) // 2] for what, each in rounds.items()}
    any_one = next(iter(found.values()))
    cases = list(dict.fromkeys(case for case, _ in found))

    def table(title: str, columns: list[str], rows: Iterable[tuple[str, list[str]]]) -> list[str]:
        lines = [title, "", f"| case | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
        return [*lines, *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows), ""]

    def first_call(case: str, kind: str) -> str:
        result, stock = found.get((case, kind)), found.get((case, "stock"))
        if result is None:
            return ""
        ratio = f" : {result['first_call_s'] / stock['first_call_s']:.2f}" if stock else ""
        return f"{result['first_call_s']:.1f} ({result['compiles_in_process']}){ratio}"

    def figure(case: str, kind: str, name: str) -> Any:
        return (found.get((case, kind)) or {}).get(name)

    def ratio(part: float | None, whole: float | None) -> str:
        return f"{part / whole:.2f}" if part is not None and whole else ""

    def compile_free(case: str) -> float | None:
        serial = found.get((case, "serial"))
        return serial["first_call_s"] - serial["triton_s"] if serial else None

    def goals(case: str) -> list[str]:
        free = compile_free(case)
        pool = figure(case, "headstart", "pool_pss_mib"), figure(case, "stock", "pool_pss_mib")
        waits = figure(case, "headstart", "wait_s"), figure(case, "stock", "wait_s")
        threads = figure(case, "headstart", "threads_cpu_s")
        return [
            f"{free:.1f}" if free else "",
            ratio(figure(case, "ready", "first_call_s"), free),
            ratio(figure(case, "stock", "first_call_s"), free),
            " : ".join(f"{wait:.2f}" if wait is not None else "" for wait in waits),
            " of ".join(
                f"{seconds:.2f}"
                for name in ("blocked_s", "wait_s")
                if (seconds := figure(case, "record", name)) is not None
            ),
            ratio(figure(case, "warm", "first_call_s"), figure(case, "cached", "first_call_s")),
            ratio(figure(case, "warm", "first_call_s"), figure(case, "artifacts", "first_call_s")),
            " of ".join(str(count) for count in _graphs(figure(case, "warm", "graphs"))),
            f"{figure(case, 'warm', 'load_s') or 0:.3f}",
            f"{ratio(*pool)} ({' : '.join(f'{size:.0f}' if size else '' for size in pool)})",
            f"{sum(threads.values()):.2f} ({len(threads)})" if threads else "",
            ratio(figure(case, "ready", "first_call_s"), figure(case, "after", "first_call_s")),
        ]

    def _graphs(counts: list[int] | None) -> list[int]:
        return [counts[0], sum(counts)] if counts else []

    def again(case: str, figure: Callable[[dict[str, Any]], float]) -> list[str]:
        medians = {kind: statistics.median(map(figure, rounds[case, kind])) for kind in AGAIN if (case, kind) in rounds}
        cells = [f"{medians[kind]:.2f} ({len(rounds[case, kind])})" if kind in medians else "" for kind in AGAIN]
        return [*cells, ratio(medians.get("warm"), medians.get("artifacts"))]

    wrong = sum(not result["correct"] for each in rounds.values() for result in each)
    return "\n".join(
        [
            f"{any_one['gpu']}, torch {any_one['torch']}. Wrong results: {wrong}.",
            "",
            *table(
                "First call, s (runs of Triton's compiler in the training process) : stock's time",
                list(KINDS),
                ((case, [first_call(case, kind) for kind in KINDS]) for case in cases),
            ),
            *table(
                "Next start, s, median (of how many, in turns): the first call; then all from the process's start",
                [*AGAIN, "warm : artifacts"] * 2,
                (
                    (
                        case,
                        again(case, lambda one: one["first_call_s"])
                        + again(case, lambda one: one["before_s"] + one["first_call_s"]),
                    )
                    for case in cases
                ),
            ),
            *table(
                "Against the goals; compile-free: `serial` less its time in Triton's compiler",
                [
                    *("compile-free, s", "ready : compile-free", "stock : compile-free"),
                    *(
                        "wait for kernels, headstart : stock, s",
                        "for kernels that are not there, of that, from the record, s",
                        "warm : cached",
                    ),
                    *("warm : artifacts", "graphs from the bundle", "loading, warm, s"),
                    "memory of the pool, headstart : stock (MiB)",
                    *("CPU time of headstart's threads, s (how many)", "ready : after"),
                ],
                ((case, goals(case)) for case in cases),
            ),
        ]
    )


def main() -> None:
    deadline = time.monotonic() + DEADLINE
    out = Path(os.environ.get("OUT", "."))
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        # One kind after the other, so that what is cut off at the deadline is the least telling.
        asked = sys.argv[1:]
        kinds = [kind for kind in asked if kind in KINDS] or list(KINDS)
        cases = [case for case in asked if case in CASES] or list(CASES)
        todo = [(kind, case) for kind in kinds for case in cases if asked or case in ONLY.get(kind, CASES)]
        turns = [(kind, case) for case in cases for kind in kinds if kind in AGAIN]
        for kind, case in todo + turns * (ROUNDS - 1):
            if time.monotonic() > deadline - 30:
                results.append({"case": case, "kind": kind, "failed": "left out: the time is up"})
            else:
                results.append(run(case, kind, Path(folder)))
            print(row(results[-1]), flush=True)
            (out / "torch_compile.json").write_text(json.dumps(results, indent=2) + "\n")
    print(report(results))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(*sys.argv[2:4])), flush=True)
    elif sys.argv[1:2] == ["--report"]:
        print(report(json.loads(Path(sys.argv[2]).read_text())))
    else:
        main()
