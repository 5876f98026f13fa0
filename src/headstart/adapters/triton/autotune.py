"""Autotuners: every configuration is kicked off before the first is benchmarked, and the winner is recorded.

    Autotuner.run: a new key
      prune_configs ── stock, then ours: which configurations there are; a recorded winner leaves only itself
      _bench(first) ── ours: each configuration is launched while prefetching: heuristics run, its compile is kicked off
                    ── stock: waits for the first, benchmarks it
      _bench(next)  ── stock
      cache[key] =  ── ours: the winner

Benchmarking is Triton's own, one after another. The early launches call no hook of an autotuner or a configuration.
A failure of our own here is a line in the log, and the autotuner goes on as if nobody were there. An autotuner with a
cache of its own kind keeps it: what it chooses is then not recorded.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from headstart.adapters.recording import Recorder
from headstart.adapters.triton import compat
from headstart.adapters.triton.asks import PendingCompile
from headstart.adapters.triton.patches import Autotuners, ChosenConfigs
from headstart.artifacts.specialization import Tuning, tuning_digest
from headstart.client.async_compile import AsyncCompile
from headstart.client.kernel_log import KernelLog
from headstart.errors import ServiceError
from headstart.model.environment import step_aside_reason
from headstart.model.target import Target

_log = logging.getLogger("headstart")


class Host(Protocol):
    """What is needed of the adapter; `Adapter` says what each does."""

    recorder: Recorder | None
    compiler: AsyncCompile
    count: Callable[..., None]

    def note(self, ask: PendingCompile, *, winner: bool = False) -> None: ...

    def ask_of(self, kernel: Any) -> PendingCompile | None: ...

    def prefetching(self) -> AbstractContextManager[list[PendingCompile]]: ...


def _guarded(method: Callable[..., Any]) -> Callable[..., Any]:
    """What we do beside an autotuner's own work must not fail it. Returns None then."""

    @functools.wraps(method)
    def run(self: Autotuning, *arguments: Any) -> Any:
        try:
            return method(self, *arguments)
        except ServiceError:  # HEADSTART=require
            raise
        except Exception:  # noqa: BLE001 - see above
            _log.exception("headstart's adapter for autotuners failed; this is a bug")
        return None

    return run


class _Sweep:
    """One new key of one autotuner, in one thread.

    Attributes:
        reused: a recorded choice makes benchmarking needless.
        begun: the configurations are kicked off.
        asks: by the `id` of the configuration; times: milliseconds, as the autotuner has them.
    """

    def __init__(self, function: Any, configs: list[Any], reused: bool) -> None:
        self.function = function
        self.configs = configs
        self.reused = reused
        self.begun = False
        self.asks: dict[int, PendingCompile] = {}
        self.times: dict[int, Any] = {}

    def measured(self) -> Iterator[tuple[KernelLog, float]]:
        """What was benchmarked, for the run's log: an autotuner only compares, and its times need not be numbers."""
        for config in self.configs:
            found, log = self.times.get(id(config)), _log_of(self.asks.get(id(config)))
            if isinstance(found, (list, tuple)):
                found = found[0] if found else None
            if isinstance(found, (int, float)) and log is not None:
                yield log, float(found)


class Autotuning:
    """What the adapter does about autotuners.

    Args:
        tunings: choices to be reused, by `Tuning.digest()`.
    """

    def __init__(self, adapter: Host, tunings: Mapping[str, Tuning]) -> None:
        self._adapter = adapter
        self._tunings = tunings
        self._methods = Autotuners(self._prune, self._bench)
        self._watched: weakref.WeakSet[Any] = weakref.WeakSet()
        self._here = threading.local()

    def install(self) -> None:
        """Replace what of `Autotuner` is called for new keys."""
        self._methods.install()

    def remove(self) -> None:
        """Put everything back."""
        self._methods.remove()
        for tuner in list(self._watched):
            if type(tuner.cache) is ChosenConfigs:
                tuner.cache = dict(tuner.cache)
        self._watched.clear()

    @_guarded
    def launched(self, function: Any, ask: PendingCompile) -> None:
        """A launch, and not a kick-off, has asked for a compile."""
        sweep, config = getattr(self._here, "benched", (None, None))
        if sweep is not None and sweep.function is function:
            sweep.asks[id(config)] = ask
        elif getattr(self._here, "pending_winner", None) is function:
            self._here.pending_winner = None
            self._adapter.note(ask, winner=True)

    # In place of Autotuner's own

    def _prune(self, tuner: Any, kwargs: dict[str, Any], stock: Callable[..., Any]) -> Any:
        configs = stock(tuner, kwargs)
        left = self._begin(tuner, kwargs, configs)
        return configs if left is None else left

    @_guarded
    def _begin(self, tuner: Any, kwargs: dict[str, Any], configs: list[Any]) -> list[Any] | None:
        """A new key, for which these configurations are to be benchmarked; those that are left, None: all."""
        self._here.pending_winner = None
        function = compat.tuned(tuner)
        if function is None or step_aside_reason() is not None:
            return None
        if type(tuner.cache) is dict:
            tuner.cache = ChosenConfigs(tuner.cache, lambda key, config: self._chosen(tuner, function, key, config))
            self._watched.add(tuner)
        if "warmup" not in kwargs:  # `Autotuner.warmup`, which compiles one after another and calls no hook
            arguments = tuple(tuner.nargs.values())
            warm_up = tuner.fn.warmup
            self._prefetch(function, configs, lambda config: warm_up(*arguments, **kwargs, **config.all_kwargs()))
            return None
        recorded = self._recorded(tuner, function, kwargs)
        winners = [config for config in configs if recorded == _configuration(config)]
        sweep = _Sweep(function, winners or configs, reused=bool(winners))
        self._sweeps[id(tuner)] = sweep
        return sweep.configs

    def _bench(
        self, tuner: Any, args: tuple[Any, ...], config: Any, meta: dict[str, Any], stock: Callable[..., Any]
    ) -> Any:
        sweep = self._sweeps.get(id(tuner))
        if sweep is None:
            return stock(tuner, *args, config=config, **meta)
        if sweep.reused:
            return [0.0, 0.0, 0.0]
        if not sweep.begun:
            sweep.begun = True
            self._kick_off(tuner, sweep, args, meta)
        outer = getattr(self._here, "benched", (None, None))
        self._here.benched = (sweep, config)
        try:
            measured = sweep.times[id(config)] = stock(tuner, *args, config=config, **meta)
            return measured
        finally:
            self._here.benched = outer

    @_guarded
    def _chosen(self, tuner: Any, function: Any, key: tuple[Any, ...], config: Any) -> None:
        """`config` is the choice for `key`: after a sweep, or because Triton's or our record says so."""
        sweep = self._sweeps.pop(id(tuner), None)
        if sweep is None:
            return
        if sweep.begun or sweep.reused:
            self._adapter.count("reused" if sweep.reused else "autotuned")
        try:
            if self._adapter.recorder is not None:
                self._record(self._adapter.recorder, sweep, function, key, config)
        finally:
            self._tell(sweep, function, config)

    def _record(self, recorder: Recorder, sweep: _Sweep, function: Any, key: tuple[Any, ...], config: Any) -> None:
        ask = sweep.asks.get(id(config))
        if ask is not None:
            self._adapter.note(ask, winner=True)
        else:
            self._here.pending_winner = function  # the launch that follows asks for it, unless it was compiled before
        recorder.note_tuning(
            Tuning(
                autotuner=_name(function),
                key=_plain(key),
                target=_target(),
                configuration=_configuration(config),
                recorded_at=time.time(),
            )
        )

    def _tell(self, sweep: _Sweep, function: Any, config: Any) -> None:
        """The run's log, if anything was measured."""
        try:
            measured = list(sweep.measured()) if sweep.begun else []
            if measured:
                winner = _log_of(sweep.asks.get(id(config)))
                self._adapter.compiler.client.log.swept(_name(function), measured, winner)
        except Exception:  # noqa: BLE001 - it is about the sweep, and no part of it
            _log.debug("a sweep is not in the run's log", exc_info=True)

    # Inside

    @property
    def _sweeps(self) -> dict[int, _Sweep]:
        """Those of this thread, by the `id` of the autotuner."""
        sweeps: dict[int, _Sweep] = self._here.__dict__.setdefault("sweeps", {})
        return sweeps

    def _recorded(self, tuner: Any, function: Any, kwargs: dict[str, Any]) -> dict[str, Any] | None:
        if not self._tunings:
            return None
        key = _plain(compat.tuning_key(tuner, kwargs))
        tuning = self._tunings.get(tuning_digest(_name(function), key, _target()))
        return None if tuning is None else tuning.configuration

    @_guarded
    def _kick_off(self, tuner: Any, sweep: _Sweep, args: tuple[Any, ...], meta: dict[str, Any]) -> None:
        fixed = all(map(compat.is_fixed, (*args, *(value for name, value in meta.items() if name != "grid"))))
        # Which kernel it is to be may be known only once its hook has run.
        early = [config for config in sweep.configs if config.pre_hook is None or fixed]
        sweep.asks = self._prefetch(
            sweep.function,
            early,
            lambda config: tuner.fn.run(*args, **{**meta, **config.all_kwargs(), "warmup": True}),
        )

    def _prefetch(
        self, function: Any, configs: Iterable[Any], launch: Callable[[Any], Any]
    ) -> dict[int, PendingCompile]:
        """Launch each configuration without its going further than a kick-off; by the `id` of the configuration."""
        asks: dict[int, PendingCompile] = {}
        if compat.has_pre_run_hooks(function):
            return asks
        for config in configs:
            with self._adapter.prefetching() as asked:
                try:
                    kernel = launch(config)
                except Exception:  # noqa: BLE001 - the launch will fail in the same way, where it counts
                    _log.debug("a configuration is not kicked off early", exc_info=True)
                    continue
            ask = asked[0] if asked else self._adapter.ask_of(kernel)
            if ask is not None:
                asks[id(config)] = ask
        return asks


def _log_of(ask: PendingCompile | None) -> KernelLog | None:
    return None if ask is None or ask.future is None else ask.future.log


def _name(function: Any) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def _target() -> str:
    return str(Target.parse(compat.current_target()))


def _configuration(config: Any) -> dict[str, Any]:
    return {str(name): _plain(value) for name, value in config.all_kwargs().items()}


def _plain(value: Any) -> Any:
    """Plain data that tells values apart, and is the same after it was written and read."""
    if value is None or type(value) in (bool, float, str):
        return value
    if type(value) is int:
        return value if -(2**63) <= value < 2**64 else str(value)
    return [_plain(member) for member in value] if isinstance(value, (tuple, list)) else str(value)
