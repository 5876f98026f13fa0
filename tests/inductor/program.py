"""A training program, as far as it goes without a GPU:  program.py '{"cases": ["pointwise"], …}'

Prints one line of JSON: what happened while torch.compile generated code for each case. Options, all optional:

    adapter     "headstart" (enable, before torch is imported), "backend" (backend="headstart"), or "stock"
    bundle      given to enable
    trust       whether the bundle is trusted whoever signed it
    record      manifest to write down what is compiled
    manifest    what an earlier run recorded; the program's own unless `stranger`
    settled     wait until everything of it is compiled
    assembler   what headstart is to take for the assembler that torch brings
    patch       replace a method of Triton's code generator by one that does the same
    change      replace a decorator of Inductor's ("decorator"), its autotuner ("class") or a method of it ("method")
    pool        have Inductor's own pool ready before anything is compiled, where headstart leaves it alone
    plant       put an attribute that cannot be pickled into every JITFunction
    wait        have the workers ready before anything is compiled
    spoil       text put before each source
    index       of the device that sources are for, in place of 0
    surface     what of Inductor's pool, and of the function that makes it, ours lack
    break       name of a Triton kernel whose source is spoiled when it is kicked off
    set         variables that the program sets once headstart is enabled and torch is there
    chdir       folder to go to at the same moment
    move        TORCHINDUCTOR_CACHE_DIR from the second case on
    tuned       whether an earlier run may have found out which configurations are best
    kill        number of kick-offs after which the service is killed
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import signal
import sys
import threading
import time
from collections import Counter
from typing import Any

import gpuless

ORDER = json.loads(sys.argv[1])
ADAPTER = ORDER.get("adapter", "headstart")


def main() -> None:
    logging.basicConfig(stream=sys.stderr, format="%(name)s: %(message)s")
    was_there = "torch" in sys.modules  # the stand-in for a GPU imports a torch that is built with CUDA
    import headstart
    from headstart.adapters import process
    from headstart.adapters.options import EnableOptions

    if "assembler" in ORDER:
        from headstart.adapters.inductor import compat

        compat._ptxas = lambda folder: ORDER["assembler"]
    from headstart.system import machine

    machine.has_gpu = lambda: True  # so that everything starts early
    started = time.perf_counter()
    told: list[str] = []
    if ADAPTER == "headstart":
        choices = EnableOptions(
            manifest=ORDER.get("manifest"),
            bundle=ORDER.get("bundle"),
            record=ORDER.get("record"),
            trust_bundle=ORDER.get("trust", False),
            trusted="stranger" not in ORDER,
            report=told.append,
        )
        process.begin(choices)
    enabled = time.perf_counter() - started
    assert ("torch" in sys.modules) == was_there
    import torch
    import torch._inductor.async_compile as async_compile

    if ORDER.get("plant"):
        _plant()
    if ORDER.get("patch"):
        _patch()
    if "change" in ORDER:
        _change(ORDER["change"])
    kicks = _watch_kick_offs(async_compile)
    if ORDER.get("tuned"):
        from headstart.adapters.inductor import caches

        caches.may_be_tuned = lambda path: True
    sent = _watch_messages()
    if ADAPTER == "headstart" and ORDER.get("wait"):
        from headstart.adapters import inductor

        assert inductor.current().describing.awake.wait(60)
    if ORDER.get("settled"):
        _settle(process.current())
    os.environ.update(ORDER.get("set", {}))
    if "chdir" in ORDER:
        os.mkdir(ORDER["chdir"])
        os.chdir(ORDER["chdir"])
    results: dict[str, Any] = {"enable_s": enabled, "cases": {}}
    if ORDER.get("surface"):
        results["lacking"] = _lacking(async_compile)
    with gpuless.gpuless():
        import cases

        for number, name in enumerate(ORDER["cases"]):
            if number and "move" in ORDER:
                os.environ["TORCHINDUCTOR_CACHE_DIR"] = ORDER["move"]
            if number and ORDER.get("reset"):
                torch._dynamo.reset()
            title = name if name not in results["cases"] else f"{name} again"
            results["cases"][title] = _run(torch, cases, name, kicks)
        from headstart.adapters import inductor

        adapter = inductor.current()
        if adapter is not None:
            results["counts"] = adapter.counts
            results["statistics"] = {
                name: getattr(adapter.compiler.statistics, name) for name in ("compiled", "cached", "failed")
            }
            # Whoever joins a compile that is under way has the same worker and start as the one who began it.
            spans = [span for span in adapter.compiler.timeline if span.started]
            results["compiles"] = [[span.worker, span.started] for span in spans]
            results["bundled"] = adapter.compiler.bundler.noted
            # But for candidates, which Inductor loads in order to benchmark them.
            kinds = ("triton_poi_", "triton_red_", "triton_per_", "triton_tem_")
            stems = {source.stem for source in adapter._sources.values() if source.name.startswith(kinds)}
            package = "torch._inductor.runtime.compile_tasks"
            results["loaded"] = [stem for stem in stems if f"{package}.{stem}" in sys.modules]
            if "index" in ORDER:
                results["autotuners"] = [_beside_stocks(source) for source in adapter._sources.values()]
            results["services"] = adapter.compiler.services_started
            results["sent"] = dict(sent)
            results["threads"] = [t.name for t in threading.enumerate() if t.name.startswith("headstart")]
            results["in_triton_cache"] = len(adapter._jobs._made)
            describers = _describers(adapter)
            results["describers"] = describers
            results["describer"] = _environment(describers[0]) if describers else {}
            results["first_start"] = min((s.started for s in adapter.compiler.timeline if s.started), default=None)
        from torch._dynamo.utils import counters

        results["graph_cache"] = {
            name.removeprefix("fxgraph_cache_"): count
            for name, count in counters["inductor"].items()
            if name.startswith("fxgraph_cache_")
        }
        results["portable"] = sorted((each.type, each.key) for each in _portable())
        headstart.disable()
        results["told"] = told
        if adapter is not None:
            use = adapter.used()
            results["use"] = [use.graphs, use.made_graphs]
        results["restored"] = type(async_compile.AsyncCompile.process_pool).__name__ == "_lru_cache_wrapper"
    log = gpuless.compiles(os.environ["GPULESS_LOG"])
    results["in process"] = [line["name"] for line in log if line["pid"] == os.getpid() and not line["hit"]]
    results["stock workers"] = [line["name"] for line in log if line["pid"] != os.getpid() and not line["hit"]]
    print(json.dumps(results), flush=True)
    async_compile.shutdown_compile_workers()


def _run(torch: Any, cases: Any, name: str, kicks: list[Any]) -> dict[str, Any]:
    del kicks[:]
    if (ADAPTER == "stock" and ORDER.get("wait")) or ORDER.get("pool"):
        import torch._inductor.async_compile as async_compile

        async_compile.AsyncCompile.wait_pool_ready()
    function, arguments, options = getattr(cases, name)()
    if ADAPTER == "backend":
        options = {**options, "backend": "headstart"}
    started = time.monotonic()
    error = ""
    try:
        gpuless.codegen(function, *arguments, **options)
    except Exception as raised:  # noqa: BLE001 - it is a result
        error = f"{type(raised).__name__}: {raised}"
    ended = time.monotonic()
    late = [kick for kick in kicks if kick["caller"] == "<module>"]
    early = {kick["text"] for kick in kicks if kick["caller"] != "<module>"}
    return {
        "seconds": ended - started,
        "began": started,
        "ended": ended,
        "error": error,
        "kicks": len(kicks),
        "texts": sorted({kick["text"] for kick in kicks}),
        "from_module": len(late),
        "module_began": min((kick["at"] for kick in late), default=None),
        "names": sorted({kick["name"] for kick in kicks}),
        "not_early": sorted(kick["name"] for kick in late if kick["text"] not in early),
    }


def _settle(enabled: Any) -> None:
    """Wait until what was recorded is compiled."""
    enabled._thread.join(60)
    connection = enabled._torchs().compiler.client._connection
    deadline = time.monotonic() + 120
    while connection is not None and connection._outstanding:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _watch_kick_offs(async_compile: Any) -> list[Any]:
    import traceback

    from headstart.describe.recipe import as_loaded

    kicks: list[Any] = []
    original = async_compile.AsyncCompile.triton

    def triton(self: Any, kernel_name: str, source_code: str, *arguments: Any, **keywords: Any) -> Any:
        caller = traceback.extract_stack(limit=2)[0].name
        if ORDER.get("break") and ORDER["break"] in kernel_name:
            source_code = source_code.replace("tl.store(", "tl.no_such_function(", 1)
        source_code = ORDER.get("spoil", "") + source_code
        if "index" in ORDER:
            source_code = source_code.replace("type='cuda', index=0", f"type='cuda', index={ORDER['index']}")
        if len(kicks) == ORDER.get("kill"):
            from headstart.adapters import inductor

            service = inductor.current().compiler.client._connection.service
            os.kill(service.pid, signal.SIGKILL)
        at = time.monotonic()
        future = original(self, kernel_name, source_code, *arguments, **keywords)
        text = hashlib.sha256(as_loaded(kernel_name, source_code).encode()).hexdigest()[:16]
        kicks.append({"name": kernel_name, "text": text, "caller": caller, "at": at})
        return future

    async_compile.AsyncCompile.triton = triton
    return kicks


def _watch_messages() -> Counter[str]:
    """What the service is told, counted by kind."""
    from headstart import wire

    sent: Counter[str] = Counter()
    queue = wire.Channel.queue

    def note(self: Any, message: Any) -> None:
        sent[type(message).__name__] += 1
        queue(self, message)

    wire.Channel.queue = note
    return sent


def _beside_stocks(source: Any) -> tuple[int, list[str]]:
    """The device of an autotuner that we made, and in what it differs from the one that Inductor would make itself."""
    from pathlib import Path

    from torch._inductor.codecache import PyCodeCache

    from headstart.describe import plain

    assert source.done.result() is None
    ours, _ = source.autotuner()
    stocks = getattr(PyCodeCache.load(Path(source.path()).read_text()), source.name)
    names = ("triton_meta", "inductor_meta", "size_hints", "configs", "filename", "device_props", "mutated_arg_names")
    of_function = ("__name__", "__qualname__", "__module__", "src", "cache_key", "arg_names", "constexprs")
    pairs = [
        *((name, getattr(ours, name), getattr(stocks, name)) for name in names),
        *((name, getattr(ours.fn, name), getattr(stocks.fn, name)) for name in of_function),
        ("repr", ours.fn.repr({}), stocks.fn.repr({})),
    ]
    return ours.device_props.index, [
        f"{name}{key}: {a} is not {b}"
        for name, mine, theirs in pairs
        for key in (mine if isinstance(mine, dict) else [""])
        for a, b in [(mine[key], theirs.get(key)) if isinstance(mine, dict) else (mine, theirs)]
        if str(plain.encode(a)) != str(plain.encode(b))  # which takes one kind of set for another
    ]


def _lacking(async_compile: Any) -> list[str]:
    from torch._inductor.compile_worker.subproc_pool import SubprocPool

    make = async_compile.AsyncCompile.process_pool
    stock, pool = make.__wrapped__, make()
    assert type(pool) is not SubprocPool
    lacking = [name for name in dir(stock) if not name.startswith("__") and not hasattr(make, name)]
    lacking += [name for name in dir(SubprocPool) if not name.startswith("_") and name not in dir(type(pool))]
    pool.quiesce()
    pool.wakeup()
    assert make.cache_info().misses == 0, "a pool of Inductor's own was made"
    assert pool.running  # an attribute of the instance: asked of Inductor's own
    assert make.cache_info().misses == 1
    pool.quiesce()
    pool.wakeup()
    return lacking


def _patch() -> None:
    from triton.compiler.code_generator import CodeGenerator

    original = CodeGenerator.visit_Assign

    def visit_assign(self: Any, node: Any) -> Any:
        return original(self, node)

    CodeGenerator.visit_Assign = visit_assign


def _portable() -> Any:
    from headstart.adapters.inductor import compat_artifacts

    return compat_artifacts.noted()


def _describers(adapter: Any) -> list[int]:
    """The processes with torch of the service that the adapter uses."""
    from headstart.system import machine

    connection = adapter.compiler.client._connection
    if connection is None or not connection.service.pid:
        return []
    found = []
    for pid in machine.children(connection.service.pid):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline") as stream:
            if "headstart.describe.describer" in stream.read().split("\0"):
                found.append(pid)
    return found


def _environment(pid: int) -> dict[str, str]:
    """Of Inductor's variables, what a process was started with."""
    with open(f"/proc/{pid}/environ") as stream:
        lines = [line.split("=", 1) for line in stream.read().split("\0") if line.startswith("TORCHINDUCTOR_")]
    return dict(lines)


def _change(what: str) -> None:
    """What is compiled in this process becomes another kernel, or another object."""
    from torch._inductor.runtime import triton_heuristics

    def one_warp(given: list[Any]) -> list[Any]:
        for config in given:
            config.num_warps = 1
        return given

    if what == "decorator":
        stock = triton_heuristics.cached_autotune

        def cached_autotune(size_hints: Any, configs: Any, *arguments: Any, **keywords: Any) -> Any:
            return stock(size_hints, one_warp(configs), *arguments, **keywords)

        triton_heuristics.cached_autotune = cached_autotune
        return

    class Mine(triton_heuristics.CachingAutotuner):
        def __init__(self, fn: Any, **keywords: Any) -> None:
            super().__init__(fn, **{**keywords, "configs": one_warp(keywords["configs"])})

    if what == "class":
        triton_heuristics.CachingAutotuner = Mine
    else:
        original = triton_heuristics.CachingAutotuner.__init__

        def init(self: Any, fn: Any, **keywords: Any) -> None:
            original(self, fn, **{**keywords, "configs": one_warp(keywords["configs"])})

        triton_heuristics.CachingAutotuner.__init__ = init


def _plant() -> None:
    from triton.runtime.jit import JITFunction

    init = JITFunction.__init__

    def planted(self: Any, *arguments: Any, **keywords: Any) -> None:
        init(self, *arguments, **keywords)
        self.unpicklable = threading.Lock()

    JITFunction.__init__ = planted


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
