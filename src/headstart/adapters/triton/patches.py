"""What the adapter replaces in Triton's classes, 3.6 to 3.9, and how it is put back.

* `JITFunction._do_compile(key, signature, device, constexprs, options, attrs, warmup)` is called for a specialization
  that this process has not compiled. It calls the hooks that others have set, makes an `ASTSource`, and calls
  `self.compile(src, target=…, options=…)`, an attribute of the function that is `triton.compile`: in this thread, or
  with an `AsyncCompileMode` in one of its own. Ours has that attribute lead to the adapter. No knob of Triton's is set:
  with any `jit_cache_hook` Triton writes a specialization as JSON first, and fails where that cannot be done.
* `Autotuner.run` looks a key up in `cache`; for a new one it calls `prune_configs(kwargs)` and for each configuration
  that is left `_bench(*args, config=…, **kwargs)`, then sets `cache[key]`.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any

from headstart.adapters.triton import compat

Real = Callable[..., Any]


class Compiles:
    """Leads what `JITFunction` compiles to the adapter.

    Args:
        compile: in place of `triton.compile`, which comes first, then its arguments.
        prefetching: whether this thread only kicks off what it launches.
        prefetch: given a source, its target and its options, kicks its compile off.
    """

    def __init__(
        self,
        compile: Callable[..., Any],
        prefetching: Callable[[], bool],
        prefetch: Callable[[Any, Any, dict[str, Any]], None],
    ) -> None:
        self._compile = compile
        self._prefetching = prefetching
        self._prefetch = prefetch
        self._undo: Callable[[], None] | None = None

    def install(self) -> None:
        """Replace it."""
        jit = sys.modules["triton.runtime.jit"]
        owner = jit.JITFunction
        stock = owner._do_compile
        real = sys.modules["triton.compiler"].compile
        patch = self

        @functools.wraps(real)
        def compile(src: Any, target: Any = None, options: Any = None, **more: Any) -> Any:
            if patch._undo is None:  # the function keeps this attribute when we are gone
                return real(src, target=target, options=options, **more)
            return patch._compile(real, src, target, options, more)

        @functools.wraps(stock)
        def _do_compile(
            self: Any, key: Any, signature: Any, device: Any, constexprs: Any, options: Any, attrs: Any, warmup: Any
        ) -> Any:
            if patch._undo is not None:
                is_async = jit._async_compile.active_mode.get() is not None
                if patch._prefetching() or is_async:
                    _, _, on, _, _ = self.device_caches[device]
                    patch._prefetch(compat.new_source(self, signature, constexprs, attrs), on, vars(options))
                    if patch._prefetching():
                        return None
                if self.compile is real:
                    self.compile = compile
            return stock(self, key, signature, device, constexprs, options, attrs, warmup)

        owner._do_compile = _do_compile

        def undo() -> None:
            if owner._do_compile is _do_compile:  # somebody may have wrapped ours
                owner._do_compile = stock

        self._undo = undo

    def remove(self) -> None:
        """Put it back."""
        undo, self._undo = self._undo, None
        if undo is not None:
            undo()


class Autotuners:
    """Two methods of `Autotuner`, which are called for a new key only.

    Args:
        prune: given the autotuner, the launch's keyword arguments and the real method.
        bench: given the autotuner, the launch's arguments, the configuration, keyword arguments and the real method.
    """

    def __init__(self, prune: Callable[..., Any], bench: Callable[..., Any]) -> None:
        self._prune = prune
        self._bench = bench
        self._undo: list[Callable[[], None]] = []

    def install(self) -> None:
        """Replace them."""
        owner = sys.modules["triton.runtime.autotuner"].Autotuner
        stock_prune, stock_bench = owner.prune_configs, owner._bench

        replaced = self._undo  # empty once we are gone, though somebody may have wrapped ours
        prune, bench = self._prune, self._bench

        def prune_configs(self: Any, kwargs: dict[str, Any]) -> Any:
            return prune(self, kwargs, stock_prune) if replaced else stock_prune(self, kwargs)

        def _bench(self: Any, *args: Any, config: Any, **meta: Any) -> Any:
            if not replaced:
                return stock_bench(self, *args, config=config, **meta)
            return bench(self, args, config, meta, stock_bench)

        owner.prune_configs, owner._bench = prune_configs, _bench

        def undo() -> None:
            if owner.prune_configs is prune_configs:
                owner.prune_configs = stock_prune
            if owner._bench is _bench:
                owner._bench = stock_bench

        self._undo.append(undo)

    def remove(self) -> None:
        """Put them back."""
        while self._undo:
            self._undo.pop()()


class ChosenConfigs(dict[Any, Any]):
    """In place of `Autotuner.cache`: the configuration of each key. Tells which is chosen, whoever looks it up.

    Launches only look up, which is a dict's own doing.
    """

    def __init__(self, chosen: Mapping[Any, Any], told: Callable[[Any, Any], None]) -> None:
        super().__init__(chosen)
        self._told = told

    def __setitem__(self, key: Any, config: Any) -> None:
        super().__setitem__(key, config)
        self._told(key, config)

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)
