"""`headstart.enable()`: both adapters for one process, from its start to its end.

    enable ─┬─ import triton ───────────────────▶ jit.Adapter, recorder
            ├─ a manifest: thread headstart-replay ─▶ jit.Adapter ─▶ Replay
            └─ torch.compile ──────────────────▶ inductor.enable: at once; under `headstart run` if it is, or was, used
    disable, or the end of the process ─▶ adapters put everything back, the record and the bundle are written

Nothing is loaded that the program may not need: until triton is imported, an import hook is all there is.
"""

from __future__ import annotations

import atexit
import functools
import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.adapters.bundle_use import LeftAlone
from headstart.adapters.journal import exists_for
from headstart.adapters.options import EnableOptions, StrPath, check_outputs, say_misspelt
from headstart.errors import HeadstartError, ServiceError
from headstart.system.imports import when_imported
from headstart.system.variables import Mode, mode, required

if TYPE_CHECKING:
    from headstart.adapters.bundle_use import UsesBundle
    from headstart.adapters.inductor.adapter import Adapter as TorchAdapter
    from headstart.adapters.recording import Recorder
    from headstart.adapters.replay import Replay, SourcesReplay
    from headstart.adapters.triton.adapter import Adapter
    from headstart.artifacts.manifest import Manifest
    from headstart.client.client import Client
    from headstart.client.use import BundleUse

_TORCH_COMPILE = "torch._inductor.async_compile"  # imported when torch.compile first makes code
_LOADING = 5.0  # seconds that a fork waits for a thread that imports
_END_OF_REPLAY = 5.0  # seconds for the thread to notice that the program ends

_log = logging.getLogger("headstart")
_lock = threading.Lock()
_current: Enabled | None = None
_latest: Enabled | None = None  # for `report`


def enable(
    *,
    manifest: StrPath | None = None,
    bundle: StrPath | None = None,
    trust_bundle: bool = False,
    record: StrPath | None = None,
    reuse_tuning: bool = False,
    workers: int | None = None,
    cache_dir: StrPath | None = None,
    farm: str | None = None,
) -> None:
    """Have the kernels of `@triton.jit` and torch.compile compiled by headstart from now on.

    Returns at once, and may be called before `import triton` and `import torch`: the earlier, the sooner the workers
    are ready. If they never come, nothing happens. Where headstart has to step aside (`HEADSTART=off`, a Triton or
    torch that it does not know, …) it says so in the log and changes nothing. A second call changes nothing until
    `disable`.

    Args:
        manifest: a manifest; what it says is compiled in the background, from now on.
        bundle: a bundle file. What it has is not compiled; what was missing is added when the process ends.
        trust_bundle: whether what carries code in it may be loaded, whoever signed it.
        record: a manifest to write down what is compiled.
        reuse_tuning: whether autotuners take the choices in `manifest` without benchmarking.
        workers: compiles that may run at once; default: the CPUs this process may use.
        cache_dir: where compiled kernels are kept; default: `HEADSTART_CACHE_DIR`, or the platform's cache folder.
        farm: `"ray"`, or the address of a Ray cluster whose machines compile as well; default: `HEADSTART_FARM`.

    Raises:
        UsageError: an argument or one of headstart's environment variables is not valid.
        ServiceError: headstart would have to step aside, and `HEADSTART=require`.
    """
    check_outputs(bundle, record)
    say_misspelt()
    begin(
        EnableOptions(manifest, bundle, record, reuse_tuning, workers, cache_dir, trust_bundle=trust_bundle, farm=farm)
    )


def disable() -> None:
    """Leave Triton and torch as they were, write record and bundle, and end headstart's processes."""
    global _current
    with _lock:
        enabled, _current = _current, None
    if enabled is not None:
        enabled.close()


def current() -> Enabled | None:
    """What is enabled in this process."""
    return _current


def report() -> BundleUse:
    """What this process has taken out of its bundle since `enable`, and what it compiled all the same and why.

    After `disable`, what it had taken until then. torch.compile's graphs are counted by `disable`.
    """
    from headstart.client.use import BundleUse

    return BundleUse() if _latest is None else _latest.used()


def begin(choices: EnableOptions) -> None:
    """As `enable`, for those who choose more."""
    global _current, _latest
    with _lock:
        if _current is not None or mode() is Mode.OFF:
            return
        _current = _latest = Enabled(choices)
    try:
        choices.describe()
        _current.start()
    except BaseException:
        disable()
        raise


class Enabled:
    """What `enable` made; everything that one process has of headstart's adapters.

    Attributes:
        jit: the adapter for `@triton.jit`, once Triton is imported or a manifest was given.
        replay: of the manifest's kernels, once it is read and holds some; sources_replay: the same of its sources.
    """

    def __init__(self, choices: EnableOptions) -> None:
        self.jit: Adapter | None = None
        self.replay: Replay | None = None
        self.sources_replay: SourcesReplay | None = None
        self._choices = choices
        self._for_client = choices.for_client()
        self._client: Client | None = None
        self._recorder: Recorder | None = None
        self._forget: list[Callable[[], None]] = []
        self._closed = False
        self._left_alone: list[UsesBundle] = []
        self._were_used: list[UsesBundle] = []  # once it is closed
        self._start_over()
        _everyone.add(self)

    def _start_over(self) -> None:
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._loaded = threading.Event()  # the replay's thread has imported what it needs

    def start(self) -> None:
        """Wait for what the program imports, and start what need not wait for that.

        Raises:
            UsageError, ServiceError: as `enable`.
        """
        atexit.register(disable)
        choices = self._choices
        if not choices.torch_when_used:
            self._start_torch()
        else:
            self._forget.append(when_imported(_TORCH_COMPILE, functools.partial(_guarded, self._start_torch)))
        self._forget.append(when_imported("triton", functools.partial(_guarded, self._triton_is_here)))
        self._forget.append(when_imported("multiprocessing.util", self._see_forks_end))
        if choices.replays and choices.manifest is not None and os.path.exists(choices.manifest):
            thread = threading.Thread(target=self._replay, name="headstart-replay", daemon=True)
            try:
                thread.start()
                self._thread = thread
            except RuntimeError as error:
                _log.warning("nothing is compiled ahead: this process can start no thread (%s)", error)

    def close(self) -> None:
        """Put everything back, write what there is to write, and end all processes."""
        atexit.unregister(disable)
        choices = self._choices
        with self._lock:
            self._closed = True
            for forget in self._forget:
                forget()
        for replay in (self.replay, self.sources_replay):
            if replay is not None:
                replay.stop()
        if self._thread is not None:
            self._thread.join(_END_OF_REPLAY)
        if self.replay is not None and self.jit is not None:
            choices.report(self.replay.report(self.jit.compiler.used_early, self.jit.had()))
        if self.sources_replay is not None and (torchs := self._torchs()) is not None:
            choices.report(self.sources_replay.report(torchs.recipes.noted))
        adapters = self._were_used = self._adapters()
        if self.jit is not None:
            self.jit.close()
        torch_version = self._end_torch()
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            from headstart.client.client import release

            release()
        if torch_version and (recorder := self._record()) is not None:
            recorder.note_torch(torch_version)
        if self._recorder is not None:
            self._recorder.close()
        elif choices.record is not None and exists_for(Path(choices.record)):
            from headstart.adapters.recording import gather  # children used Triton, and this process did not

            gather(choices.record, kept_days=choices.kept_days)
        if choices.tell_use is not None:
            try:
                choices.tell_use(adapters)
            except Exception:  # noqa: BLE001 - the program has ended; it must not fail for what is said of it
                _log.exception("what came from the bundle cannot be told; this is a bug")

    @staticmethod
    def _end_first() -> None:
        """Last in, first out: `disable` runs before what the modules that were loaded just now do at the end."""
        atexit.unregister(disable)
        atexit.register(disable)

    # Triton

    def _triton_is_here(self) -> None:
        """In the importing thread, once Triton is imported."""
        if self._choices.target is not None:
            from headstart.adapters.triton.dry_run import install
            from headstart.model.target import Target

            install(Target.parse(self._choices.target))
        adapter = self._adapter()
        if adapter is not None:
            adapter.install()
            if self._choices.target is not None:
                adapter.start_early()

    def _adapter(self) -> Adapter | None:
        """The adapter, made by the first thread: the importing one or the replay's."""
        with self._lock:
            if self.jit is None and not self._closed:
                from headstart.adapters.triton.adapter import Adapter
                from headstart.client.client import acquire

                choices = self._choices
                tunings = self._manifest.tunings if choices.reuse_tuning else None
                self._client = acquire(**self._for_client)
                self.jit = Adapter(self._client, recorder=self._record(), tunings=tunings)
                self._end_first()
            return self.jit

    def _record(self) -> Recorder | None:
        choices = self._choices
        if choices.record is None:
            return None
        with self._lock:
            if self._recorder is None:
                from headstart.adapters.recording import DryRecorder, Recorder
                from headstart.model.toolchain import find_toolchain

                try:
                    version = find_toolchain().triton_version
                except ServiceError:
                    version = ""
                kind = Recorder if choices.target is None else DryRecorder
                self._recorder = kind(
                    choices.record, program=choices.program, triton_version=version, kept_days=choices.kept_days
                )
            return self._recorder

    # Replay

    @functools.cached_property
    def _manifest(self) -> Manifest:
        from headstart.adapters.replay import open_manifest
        from headstart.artifacts.manifest import Manifest

        path = self._choices.manifest
        return (None if path is None else open_manifest(Path(path))) or Manifest()

    def _replay(self) -> None:
        """In a thread of its own."""
        try:
            with self._lock:
                manifest = self._manifest
            if manifest.uses_torch_compile and self._choices.torch_when_used:
                self._start_torch()
            if manifest.kernels and (adapter := self._adapter()) is not None:
                from headstart.adapters.replay import Replay

                choices = self._choices
                self.replay = Replay(manifest, lambda: adapter.compiler, trusted=choices.trusted, target=choices.target)
                if not self._closed:
                    adapter.compiler.start()
                    self._loaded.set()
                    self.replay.run()
                    if choices.trusted and choices.target is None:
                        adapter.launchers.foresee_recorded(self.replay.requests)
            if manifest.uses_torch_compile and self._choices.target is None:
                from headstart.adapters.replay import SourcesReplay

                self.sources_replay = SourcesReplay(manifest, self._torchs, trusted=self._choices.trusted)
                if not self._closed:
                    self._loaded.set()
                    self.sources_replay.run()
        except HeadstartError as error:
            _log.warning("nothing is compiled ahead: %s", error)
        except Exception:  # noqa: BLE001 - the program goes on without what it would have had early
            _log.exception("headstart's replay failed; this is a bug")
        finally:
            self._loaded.set()

    # torch.compile

    def _start_torch(self) -> None:
        if find_spec("torch") is None:
            return
        from headstart.adapters import inductor

        why_not = inductor.why_not()
        with self._lock:
            if why_not is not None and self._choices.torch_when_used:  # it is used
                self._left_alone.append(LeftAlone("torch.compile", why_not))
            if not self._closed:
                inductor.enable(**self._for_client, recorder=self._record())
                self._end_first()  # `inductor` has registered an end of its own

    def _adapters(self) -> list[UsesBundle]:
        """Those that were of use."""
        return [adapter for adapter in (self.jit, self._torchs()) if adapter is not None] + self._left_alone

    @staticmethod
    def _torchs() -> TorchAdapter | None:
        """torch.compile's adapter, if there is one."""
        module: Any = sys.modules.get("headstart.adapters.inductor")
        return None if module is None else module.current()

    def used(self) -> BundleUse:
        """What this process has taken out of its bundle so far, and what it did not and why."""
        from headstart.adapters.bundle_use import use_of

        return use_of(self._were_used or self._adapters())

    def _end_torch(self) -> str:
        """Returns the version of the program's torch, if it used torch.compile."""
        adapter = self._torchs()
        if adapter is None:
            return ""
        used = adapter.counts["sources"] > 0
        sys.modules["headstart.adapters.inductor"].disable()
        return str(sys.modules["torch"].__version__) if used else ""

    # Forks

    def _see_forks_end(self) -> None:
        """A fork that multiprocessing makes ends without atexit; what it notes would be lost."""
        util: Any = sys.modules["multiprocessing.util"]
        util.register_after_fork(self, lambda enabled: util.Finalize(None, disable, exitpriority=0))

    def _before_fork(self) -> None:
        """A module that another thread is importing just now could never be imported in the fork."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._loaded.wait(_LOADING)

    def _after_fork(self) -> None:
        self._start_over()
        self.replay = self.sources_replay = None  # the parent's
        self._left_alone = []


def _guarded(act: Callable[[], None]) -> None:
    """An import by the program must not fail for what we do after it, unless it shall."""
    try:
        act()
    except HeadstartError as error:
        if required():
            raise
        _log.warning("the program runs without headstart: %s", error)


_everyone: weakref.WeakSet[Enabled] = weakref.WeakSet()


def _before_fork() -> None:
    for enabled in list(_everyone):
        enabled._before_fork()


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.Lock()
    for enabled in list(_everyone):
        enabled._after_fork()


os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)
