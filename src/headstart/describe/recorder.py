"""The describer's half of `compat`: changes to torch in a process of our own, that no user's torch ever sees.

Inductor is made to say what it would compile instead of compiling it. What is relied on stands in `compat`.
"""

from __future__ import annotations

import importlib
import inspect
import types
from contextlib import AbstractContextManager
from typing import Any

from headstart.describe import facts


class _Noted(BaseException):
    """Not an Exception, which Inductor would log."""

    def __init__(self, src: Any, target: Any, options: dict[str, Any]) -> None:
        super().__init__()
        self.arguments = src, target, options


class DecoratorRecorder:
    """Makes this process's Inductor say what it would do. For good: it cannot be undone."""

    def __init__(self) -> None:
        heuristics = facts.heuristics()
        helpers = importlib.import_module("torch._inductor.runtime.triton_helpers")
        # Called at the top of generated sources; there is no device here, and none is needed.
        vars(helpers)["set_driver_to_gpu"] = vars(helpers)["set_driver_to_cpu"] = lambda: None
        # Sources that benchmark themselves import it, and a torch for CPUs has none.
        vars(importlib.import_module("torch._C")).setdefault("_cuda_getCurrentRawStream", lambda device: 0)
        # As in Inductor's workers: modules are not kept.
        vars(importlib.import_module("torch._inductor.compile_worker.utils"))["_IN_TOPLEVEL_PROCESS"] = False
        importlib.import_module("torch._inductor.runtime.compile_tasks")._set_triton_ptxas_path()
        # Which configuration was best last time is asked in the client: it may have changed by the time.
        vars(heuristics)["check_autotune_cache"] = lambda configs, *_, **__: (configs, None, {})
        vars(heuristics)["triton"] = facts.Proxy(heuristics.triton, self._note)
        original = heuristics.CachingAutotuner.__init__
        signature = inspect.signature(original)

        def init(autotuner: Any, *arguments: Any, **keywords: Any) -> None:
            given = dict(signature.bind(autotuner, *arguments, **keywords).arguments)
            for name in ("self", "fn", "save_cache_hook"):
                given.pop(name, None)
            # Copied, because the constructor adds to what it is given.
            copied = {name: dict(value) if isinstance(value, dict) else value for name, value in given.items()}
            original(autotuner, *arguments, **keywords)
            vars(autotuner)["_headstart_given"] = copied

        heuristics.CachingAutotuner.__init__ = init

    @staticmethod
    def _note(src: Any, target: Any = None, options: Any = None) -> None:
        raise _Noted(src, target, options)

    def load(self, name: str, source: str) -> tuple[Any, str]:
        """Import a generated source. Returns its autotuner and its file."""
        codecache = facts.codecache()
        _, path = codecache.write(source, "py")
        return getattr(codecache.PyCodeCache.load(source), name), path

    def arguments(self, autotuner: Any) -> dict[str, Any]:
        """What its constructor was given, but for the function and the hook."""
        found: dict[str, Any] = vars(autotuner)["_headstart_given"]
        return found

    def compile_arguments(self, autotuner: Any, config: Any) -> tuple[Any, Any, dict[str, Any]]:
        """What `triton.compile` would be called with for one configuration: source, target, options."""
        try:
            autotuner._precompile_config(config)
        except _Noted as noted:
            return noted.arguments
        raise RuntimeError("Inductor did not call triton.compile")


def may_scale(autotuner: Any) -> bool:
    """Whether `_dynamic_scale_rblock` may add configurations."""
    if hasattr(type(autotuner), "_could_rblock_scale"):
        return bool(autotuner._could_rblock_scale)
    return getattr(autotuner.heuristic_type, "name", "") == "REDUCTION" and autotuner.size_hints is not None


def scaled_configs(autotuner: Any, registers: list[int | None]) -> list[Any]:
    """The configurations that `_dynamic_scale_rblock` adds, given what launchers would say."""
    added: list[Any] = []

    def note(config: Any) -> Any:
        added.append(config)
        return types.SimpleNamespace(config=config, kernel=types.SimpleNamespace())

    autotuner.compile_results = [
        types.SimpleNamespace(config=config, kernel=types.SimpleNamespace(n_regs=count))
        for config, count in zip(autotuner.configs, registers, strict=True)
    ]
    # On the instance: the class's own are needed to describe.
    vars(autotuner).update(_precompile_config=note, _make_launchers=lambda: None)
    try:
        autotuner._dynamic_scale_rblock()
    finally:
        del autotuner._precompile_config, autotuner._make_launchers
        autotuner.compile_results = []
    return added


def patched_config(settings: dict[str, Any]) -> AbstractContextManager[Any]:
    """Inductor's config with `settings` in force."""
    found: AbstractContextManager[Any] = facts.inductor_config().patch(settings)
    return found
