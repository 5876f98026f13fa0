"""Everything that reaches into torch and Triton for the adapter. Only it and `recorder` know their insides.

Replaced in a client, and put back by `Replacement.remove`:

* `torch._inductor.async_compile.AsyncCompile.process_pool`: every job for a compile worker comes to our pool;
* the name `triton` in `torch._inductor.runtime.triton_heuristics`, by a proxy whose `compile` is ours: all four ways by
  which Inductor compiles in its own process end there. Triton itself is left alone.

Relied on, and checked before anything is replaced: `_REQUIRED`. The describer, whose process is ours, changes more
(`recorder`). Read for torch 2.11 to 2.14, and run with `KNOWN_VERSIONS`. docs/inductor.md says what to check when torch
changes.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from headstart.describe.facts import (
    GENERATED,
    HEURISTICS,
    Proxy,
    Torch,
    first_missing,
    heuristics,
    inductor_config,
    path_of_stem,
)
from headstart.errors import UsageError
from headstart.model import environment as triton_environment
from headstart.model.environment import fingerprint

ASYNC_COMPILE = "torch._inductor.async_compile"
COMPILE_FX = "torch._inductor.compile_fx"


_REQUIRED = {
    ASYNC_COMPILE: ("AsyncCompile.process_pool.cache_clear", "AsyncCompile._ready_future", "get_compile_threads"),
    HEURISTICS: (
        "triton.compile",
        "CachingAutotuner._precompile_config",
        "CachingAutotuner._dynamic_scale_rblock",
        "CachingAutotuner._make_launchers",
        "check_autotune_cache",
        "triton_config_to_hashable",
        "_ConstRepr",
        "OutOfResources",
        "PTXASError",
    ),
    "torch._inductor.codecache": ("PyCodeCache.load", "code_hash", "torch_key", "write"),
    "torch._inductor.compile_worker.subproc_pool": ("SubprocException.with_name",),
    "torch._inductor.runtime.compile_tasks": ("_worker_compile_triton", "_set_triton_ptxas_path"),
    "torch._inductor.runtime.runtime_utils": ("cache_dir", "triton_cache_dir", "triton_hash_to_path_key"),
}


def missing() -> str | None:
    """The first thing of torch that the adapter relies on and does not find."""
    return first_missing(_REQUIRED)


# What a function that `functools.lru_cache` made offers besides.
_CACHED = ("cache_clear", "cache_info", "cache_parameters")


class Replacement:
    """The two replacements.

    Args:
        choose_pool: given Inductor's own `process_pool`, returns the pool to use now.
        forget_pool: called when Inductor forgets the pool that it has.
        compile: given the real `triton.compile` and its arguments, in its place.
    """

    def __init__(
        self,
        choose_pool: Callable[[Callable[[], Any]], Any],
        forget_pool: Callable[[], None],
        compile: Callable[..., Any],
    ) -> None:
        self._choose_pool = choose_pool
        self._forget_pool = forget_pool
        self._compile = compile
        self._undo: list[Callable[[], None]] = []

    def replace_pool(self) -> None:
        """Once `ASYNC_COMPILE` is imported."""
        owner = sys.modules[ASYNC_COMPILE].AsyncCompile
        stock = owner.process_pool

        def process_pool() -> Any:
            return self._choose_pool(stock)

        functools.update_wrapper(process_pool, stock)
        vars(process_pool).update({name: getattr(stock, name) for name in _CACHED if hasattr(stock, name)})

        def cache_clear() -> None:
            self._forget_pool()
            stock.cache_clear()

        vars(process_pool)["cache_clear"] = cache_clear
        owner.process_pool = staticmethod(process_pool)
        owner._ready_future = None

        def undo() -> None:
            owner.process_pool = staticmethod(stock)
            owner._ready_future = None

        self._undo.append(undo)

    def replace_compile(self) -> None:
        """Once `HEURISTICS` is imported."""
        heuristics = sys.modules[HEURISTICS]
        real = heuristics.triton
        if real is None or not hasattr(real, "compile"):
            return
        vars(heuristics)["triton"] = Proxy(real, functools.partial(self._compile, real.compile))
        self._undo.append(lambda: vars(heuristics).update(triton=real))

    def remove(self) -> None:
        """Put everything back."""
        while self._undo:
            self._undo.pop()()


def step_aside_reason() -> str | None:
    """Why Inductor must be left alone just now, or None. See the table in the documentation."""
    try:
        reason = triton_environment.step_aside_reason()
    except UsageError as error:  # a knob that no variable can say: only this process has it
        return str(error)
    if reason is not None:
        return reason
    if sys.modules[ASYNC_COMPILE].get_compile_threads() <= 1:
        return "TORCHINDUCTOR_COMPILE_THREADS=1"
    if getattr(inductor_config().triton, "proton_profiling", False):
        return "Proton instrumentation"
    return None


def inductor(mode: str | None, options: dict[str, Any] | None) -> Callable[[Any, Any], Any]:
    """The backend "inductor" as `torch.compile` makes it for a mode and options."""
    made: Callable[[Any, Any], Any] = importlib.import_module("torch")._TorchCompileInductorWrapper(mode, options, None)
    return made


def caches_disabled() -> bool:
    """Whether the user wants nothing to be taken from, or put into, a cache."""
    return bool(inductor_config().force_disable_caches)


def environment(torch: Torch) -> dict[str, str]:
    """The fingerprint that Inductor's own workers would have: they prefer the ptxas that torch brings."""
    found = fingerprint()
    if "TRITON_PTXAS_PATH" not in found and (ptxas := _ptxas(torch.folder)) is not None:
        found["TRITON_PTXAS_PATH"] = ptxas
    return found


# Inductor's variables that say where and how fast, not what.
_IRRELEVANT = {"TORCHINDUCTOR_CACHE_DIR", "TORCHINDUCTOR_COMPILE_THREADS", "TORCHINDUCTOR_WORKER_START"}


def settings() -> dict[str, str]:
    """Inductor's variables that may change what a decorator makes, as they are now: its workers keep those of their
    pool's beginning.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith("TORCHINDUCTOR_") and name not in _IRRELEVANT
    }


@functools.cache
def _ptxas(folder: str) -> str | None:
    path = os.path.join(folder, "bin", "ptxas")
    return path if os.access(path, os.X_OK) else None


def benchmarks_elsewhere() -> bool:
    """Whether other processes benchmark candidates, which then look for kernels in Triton's cache."""
    return bool(getattr(inductor_config(), "autotune_in_subproc", False))


# What Inductor is given


WorkerJob = tuple[str, str, dict[str, str], dict[str, Any]]


def worker_job(function: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> WorkerJob | None:
    """Kernel name, source, environment and config of a job for `_worker_compile_triton`; None for any other job."""
    if getattr(function, "__name__", "") != "_worker_compile_triton" or keywords or len(arguments) != 3:
        return None
    load, given, settings = arguments
    environment = {name: value for name, value in given.items() if value is not None}  # None: it is not set
    parts: list[Any] = list(getattr(load, "args", ()))
    if len(parts) != 2 or not all(isinstance(part, str) for part in parts):
        return None
    name, source = parts
    return name, source, environment, settings


def worker_error(details: str, cause: BaseException, name: str = "") -> Exception:
    """What Inductor raises if a job fails in a worker of its own; it puts the kernel's name in later, or we do."""
    module = importlib.import_module("torch._inductor.compile_worker.subproc_pool")
    error: Exception = module.SubprocException(details, *([name] if name else []))
    error.__cause__ = cause
    return error


def ptxas_error(text: str) -> Exception:
    """The assembler's refusal, which an autotuner takes as one configuration less."""
    error: Exception = heuristics().PTXASError(text)
    return error


def lean_function(known: Any) -> Any:
    """A JITFunction with no more in it than Inductor's parent process looks at (`recipe.Function`)."""
    from triton.runtime.jit import JITFunction

    function = JITFunction.__new__(JITFunction)
    function.__dict__.update(
        __name__=known.name,
        __qualname__=known.qualname,
        __module__=known.module,
        fn=None,
        __globals__=None,
        used_global_vals=None,
        repr=heuristics()._ConstRepr(known.repr),
        arg_names=known.arg_names,
        # It ends up in FX graph cache entries: nothing of ours may be in it.
        params=[
            types.SimpleNamespace(num=number, name=name, is_constexpr=number in known.constexprs)
            for number, name in enumerate(known.arg_names)
        ],
        constexprs=known.constexprs,
        _src=known.src,
        hash=known.cache_key,
        _hash_lock=threading.RLock(),
        launch_metadata=None,
    )
    return function


def check_autotune_cache(arguments: dict[str, Any]) -> tuple[list[Any], Any, dict[str, Any]]:
    """Configurations left once the autotune cache was asked, that cache or None, and what Inductor notes about it."""
    module = heuristics()
    more = {}
    if hasattr(module, "_could_dynamic_scale_rblock"):  # torch 2.14
        device = arguments["triton_meta"].get("device")
        more["dynamic_scale_rblock_eligible"] = module._could_dynamic_scale_rblock(
            size_hints=arguments["size_hints"],
            heuristic_type=arguments["heuristic_type"],
            device_prop=device if isinstance(device, module.DeviceProperties) else None,
            inductor_meta=arguments["inductor_meta"],
        )
    found: tuple[list[Any], Any, dict[str, Any]] = module.check_autotune_cache(
        arguments["configs"], arguments["filename"], arguments["inductor_meta"], **more
    )
    return found


def config_hash(config: Any) -> Any:
    """What tells two configurations apart."""
    return heuristics().triton_config_to_hashable(config)


def new_autotuner(function: Any, arguments: dict[str, Any]) -> Any:
    """A CachingAutotuner as a worker of Inductor's would send it, but for its compile results.

    Its `precompile`, which Inductor calls next, asks our `compile` for each configuration.
    """
    configs, cache, info = check_autotune_cache(arguments)
    arguments = {**arguments, "configs": configs}
    if "autotune_cache_info" in arguments:
        arguments["autotune_cache_info"] = info
    outer = os.environ.get("TRITON_CACHE_DIR")
    autotuner = heuristics().CachingAutotuner(fn=function, save_cache_hook=cache and cache.save, **arguments)
    if outer is None:
        os.environ.pop("TRITON_CACHE_DIR", None)  # the constructor sets it, for workers
    return autotuner


def compile_all(autotuner: Any) -> None:
    """Compile an autotuner's configurations as far as a worker of Inductor's would."""
    autotuner.precompile(warm_cache_only=True)


class Prefetched(BaseException):
    """A compile was kicked off instead of waited for. Not an Exception, which Inductor would log."""


def prefetch(autotuner: Any) -> None:
    """Have our `compile` asked for each configuration of an autotuner, where it raises `Prefetched`."""
    for config in autotuner.configs:
        with contextlib.suppress(Prefetched):
            autotuner._precompile_config(config)


def source_stem(src: Any) -> str | None:
    """Which generated source an ASTSource is of: its code cache key; None if it is of no such source."""
    package, _, stem = str(getattr(src.fn, "__module__", "")).rpartition(".")
    return stem if package == GENERATED and (src.fn.fn is None or Path(path_of(src)).stem == stem) else None


def stem_of(autotuner: Any) -> str:
    """The code cache key of the generated source that made an autotuner."""
    return str(autotuner.fn.__module__).rpartition(".")[2]


def path_of(src: Any) -> str:
    """The file of a generated source."""
    if src.fn.fn is None:
        return path_of_stem(src.fn.__module__.rpartition(".")[2])
    return str(src.fn.fn.__code__.co_filename)


# Triton


def compiled_kernel(src: Any, files: dict[str, str], hash: str) -> Any:
    """Triton's CompiledKernel of a cache entry's files."""
    from triton.compiler import CompiledKernel

    return CompiledKernel(src, files, hash)
