"""AsyncCompile: what a code generator calls.

triton(name, source, …) ─▶ CompiledTritonKernels: same request before? the same future
                        └▶ bundle? a future that is done   └▶ service: Kickoff ─▶ future
future.result()         ─▶ finishing step, once: open the entry, check the target's limits ─▶ CompiledKernel
"""

from __future__ import annotations

import atexit
import concurrent.futures
import functools
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart import timeline
from headstart.bundle import Bundle, BundleItem
from headstart.bundler import TritonBundler
from headstart.captured import CapturedSource
from headstart.entry import Entry
from headstart.environment import TOOL_VARIABLES, bypass_reason, fingerprint
from headstart.errors import (
    CompileErrors,
    DamagedError,
    HeadstartError,
    OutOfResources,
    ServiceError,
    UsageError,
)
from headstart.folders import distrust, readable, told
from headstart.future import LambdaFuture
from headstart.kernel import CompiledKernel
from headstart.replacing import BUNDLE, check_replaceable
from headstart.request import CompileRequest, to_target
from headstart.settings import Settings
from headstart.store import DiskStore
from headstart.target import Target
from headstart.timeline import Asked, Span, Statistics
from headstart.toolchain import Toolchain, find_toolchain

if TYPE_CHECKING:
    from headstart import wire
    from headstart.connection import Kickoff, ServiceConnection

KernelFuture = LambdaFuture[CompiledKernel]

_log = logging.getLogger("headstart")


class CompiledTritonKernels:
    """The in-memory future cache: one future per distinct request.

    Keyed by everything that makes a kernel what it is: full source, name, signature, constants, attributes, options,
    target and environment; the toolchain is the process's own.
    """

    def __init__(self) -> None:
        self._futures: dict[str, KernelFuture] = {}
        self._emitted: dict[str, Callable[[CompileRequest, bool], KernelFuture]] = {}

    def get(self, digest: str) -> KernelFuture | None:
        """The future of the request with this digest, if it was made before."""
        return self._futures.get(digest)

    def request_emitted(self, digest: str, request: CompileRequest, vouched: bool = True) -> KernelFuture | None:
        """The future of a kernel that a bundle holds, made now, at its first request.

        `vouched`: as for `AsyncCompile.submit`, should it have to be compiled after all.
        """
        make = self._emitted.get(digest)
        if make is None:
            return None
        return self.save(digest, make(request, vouched))

    def save(self, digest: str, future: KernelFuture) -> KernelFuture:
        """Remember `future`."""
        self._futures[digest] = future
        return future

    def emit(self, digest: str, make: Callable[[CompileRequest, bool], KernelFuture]) -> None:
        """Offer a kernel of a bundle; `make` is called if somebody requests it."""
        self._emitted.setdefault(digest, make)

    def remove_future(self, digest: str) -> None:
        """Forget one future; the next request is a new one."""
        self._futures.pop(digest, None)

    def cache_clear(self) -> None:
        """Forget all futures, as at the start of another compile. What bundles hold stays on offer."""
        self._futures.clear()

    def after_fork(self) -> None:
        """See `LambdaFuture.after_fork`."""
        for future in self._futures.values():
            future.after_fork()

    def __len__(self) -> int:
        return len(self._futures)


class _Answered:
    """What the future of a bundled kernel waits for: nothing."""

    answer: concurrent.futures.Future[None] = concurrent.futures.Future()
    answer.set_result(None)

    def want(self) -> None:
        pass


class AsyncCompile:
    """Compiles kernels in the worker processes of a service, which get ready in the background.

    The service is this client's own, or shared with other processes: see `HEADSTART_SERVICE` in docs/service.md.

    Args:
        target: what to compile for, e.g. `"cuda:90"`; may be given per kernel instead.
        workers: compiles that may run at once; default: the CPUs this process may use.
        cache_dir: where compiled kernels are kept; default: `HEADSTART_CACHE_DIR`, or the platform's cache folder.
        bundle: a bundle file. If it exists, its kernels are there without compiling, and no service starts until one is
            missing. What was missing is added to it by `close`.
        use_store: whether results may be looked up in, and kept in, the store.
        vouched: whether somebody vouches for most of what it will `submit`: the service gets workers ready for that.
        start: whether the service starts now, if there is need of one; else with the first kernel, or by `start`.

    Raises:
        UsageError: an argument or one of headstart's environment variables is not valid, or `bundle` is another file
            than a bundle.
    """

    # For adapters: which toolchain compiles, and in which environment (their own may know better than this process's).
    _find_toolchain: Callable[[], Toolchain] = staticmethod(find_toolchain)
    _environment: Callable[[], dict[str, str]] = staticmethod(fingerprint)
    # Whether other clients put kernels into the same bundle. Then it is no bad sign if none of them is for this one.
    _shares_bundle = False

    def __init__(
        self,
        target: str | Target | None = None,
        *,
        workers: int | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        bundle: str | os.PathLike[str] | None = None,
        use_store: bool = True,
        vouched: bool = True,
        start: bool = True,
    ) -> None:
        settings = Settings.load(workers=workers, cache_dir=cache_dir)
        self._target = None if target is None else Target.parse(target)
        self._settings = settings
        self._use_store = use_store
        self._vouched = vouched
        self._bundle = None if bundle is None else Path(bundle)
        if self._bundle is not None:
            check_replaceable(self._bundle, BUNDLE)
        self._store = DiskStore(settings.cache_dir, trusted=settings.trusts_cache_dir)
        self._keeps = use_store  # in the store
        if why := distrust(settings.cache_dir, trusted=settings.trusts_cache_dir):
            self._keeps = False
            if settings.cache_dir not in told:  # each of a program's adapters has an AsyncCompile
                told.add(settings.cache_dir)
                _log.warning("%s. Until then kernels are kept in memory only.", why)
        self._lock = threading.RLock()
        self._asked: list[Asked] = []
        self._deduplicated = 0
        self._unasked: set[str] = set()  # digests of what was only kicked off in the background so far
        self._unvouched: set[str] = set()  # digests of futures that nobody vouches for
        self._useless: Path | None = None  # a bundle of which nothing is for this client, until somebody was told
        self.kernels = CompiledTritonKernels()
        self.bundler = TritonBundler(self._emit)
        self._closed = False
        self._shown: set[str] = set()
        self._reproduce = functools.partial(_reproduce, settings.cache_dir / "failed")
        self._connection: ServiceConnection | None = None
        _clients.add(self)
        self.starts_service = self._bundle is None or not self._read_bundle(self._bundle)
        if start:
            self.start()

    def start(self) -> None:
        """Start the service in the background, unless a bundle makes it likely that none is needed."""
        if self.starts_service:
            self._service().start()

    def triton(
        self,
        name: Any,
        source: str | CapturedSource | None = None,
        *,
        signature: Mapping[str, str] | str,
        constants: Mapping[Any, Any] | None = None,
        attrs: Mapping[Any, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        target: str | Target | None = None,
        filename: str | None = None,
        module: str = "",
        use_store: bool = True,
    ) -> KernelFuture:
        """Kick off the compile of one kernel. Returns at once; the same request again returns the same future.

        Args:
            name: the name of the `@triton.jit` function that `source` defines; or such a function itself, as it is now.
            source: Python text; left out for a function.
            signature: `{"x": "*fp32", "n": "i32"}`, where constexprs may be left out, or Triton's ahead-of-time
                string, as in `"*fp32:16, i32, 1024"`.
            constants: values of constexpr parameters, by name.
            attrs: facts about arguments: `{"x": 16}`, or Triton's `{(0,): [["tt.divisibility", 16]]}`.
            options: the backend's: `num_warps`, `num_stages`, …
            target: overrides that of this AsyncCompile.
            filename: what debug lines and tracebacks show; default: `name` + `.py`, or the function's file.
            module: `__name__` of the module that a text becomes; default: `name`.
            use_store: False: neither look this kernel up in bundles and the store, nor keep it there.

        Raises:
            UsageError: an argument has the wrong form. What only Triton can tell comes with the future.
            CannotTravel: the function uses something that cannot be described to another process.
        """
        if source is None:
            name, source, constants = _live(name, signature, constants, filename)
        request = CompileRequest.make(
            name,
            source,
            signature=signature,
            constants=constants,
            attrs=attrs,
            options=options,
            target=str(to_target(target, self._target)),
            filename=filename,
            module=module,
            environment=self._environment(),
        )
        return self.submit(request, use_store=use_store)

    def submit(
        self,
        request: CompileRequest,
        *,
        use_store: bool = True,
        background: bool = False,
        vouched: bool = True,
        digest: str = "",
    ) -> KernelFuture:
        """Kick off a compile that is a request already, as one out of a manifest is; otherwise like `triton`.

        Args:
            request: what to compile.
            use_store: as for `triton`.
            background: nobody has asked for it yet: whatever somebody has asked for goes first.
            vouched: somebody vouches for its source, which runs while it is compiled: it is this program's own, or its
                origin is known. Else it is compiled only if it passes `headstart.trust`, by a confined worker.
            digest: the request's, for those who have it already.
        """
        digest = digest or request.digest()
        with self._lock:
            future = self.kernels.get(digest)
            if future is not None and vouched and digest in self._unvouched:
                future = None  # what may be refused, or wrong, is not for those who vouch for it
            if future is not None and not _failed_for_the_machine(future):
                self._deduplicated += 1
                if digest in self._unasked and not background:
                    self._unasked.discard(digest)
                    future.want()
                return future
            if background:
                self._unasked.add(digest)
            if vouched:
                self._unvouched.discard(digest)
            else:
                self._unvouched.add(digest)
            future = self.kernels.request_emitted(digest, request, vouched) if use_store else None
            if future is not None:
                return future
            if self._useless is not None:
                _log.warning("%s: its kernels were made for another Triton, torch or Python", self._useless)
                self._useless = None
            kickoff = self._service().submit(
                request, self._keeps and use_store, background=background, vouched=vouched
            )
            self._asked.append(Asked(request.name, kickoff.kicked_off, kickoff))
            future = LambdaFuture(request.name, kickoff, lambda answer: self._finish(kickoff, answer))
            return self.kernels.save(digest, future)

    def wait(self, scope: MutableMapping[str, Any]) -> None:
        """Replace every LambdaFuture in `scope` by its CompiledKernel.

        Everything is left to finish, and every good kernel put in place, before an error is raised.

        Raises:
            CompileErrors: all the kernels that failed.
        """
        futures = {name: value for name, value in scope.items() if isinstance(value, LambdaFuture)}
        for future in futures.values():
            future.want()
        errors: dict[int, HeadstartError] = {}
        for name, future in futures.items():
            try:
                scope[name] = future.result()
            except HeadstartError as error:
                errors.setdefault(id(future), error)
        if errors:
            raise CompileErrors(list(errors.values()))

    def close(self) -> None:
        """Write the bundle that was given, if something was missing in it, and end the service.

        What is still being compiled is abandoned.
        """
        try:
            if self._bundle is not None and self.bundler.noted:
                self.bundler.extend(self._bundle)
        except OSError as error:
            _log.warning("cannot write the bundle %s: %s", self._bundle, error.strerror)
        except UsageError as error:  # it is another file by now
            _log.warning("cannot write the bundle: %s", error)
        finally:
            self.bundler.end_compile()
            self._closed = True
            if self._connection is not None:
                self._connection.close()

    def __enter__(self) -> AsyncCompile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def cache_dir(self) -> Path:
        """Where compiled kernels are kept."""
        return self._settings.cache_dir

    @property
    def services_started(self) -> int:
        """How many services it has started or joined: none while a bundle has everything, two after one died."""
        return 0 if self._connection is None else self._connection.launches

    @property
    def statistics(self) -> Statistics:
        """What became of the requests so far."""
        with self._lock:
            return timeline.statistics(self._asked, self._deduplicated, self._settings.workers)

    @property
    def timeline(self) -> list[Span]:
        """One span per distinct request, in the order of the requests."""
        with self._lock:
            return [request.span() for request in self._asked]

    def in_flight(self) -> list[tuple[str, float]]:
        """Names of what workers compile now, and when they began (`time.monotonic()` seconds), oldest first."""
        kickoffs = [] if self._connection is None else self._connection.in_flight()
        running = [(kickoff.request.name, kickoff.started or 0.0) for kickoff in kickoffs]
        return sorted(running, key=lambda item: item[1])

    # The service and its results

    def _service(self) -> ServiceConnection:
        if self._connection is None:
            if self._closed:
                raise ServiceError("this AsyncCompile is closed")
            # Importing is most of what a warm start from a bundle costs, and it needs none of this.
            from headstart.connection import ServiceConnection
            from headstart.service.launch import launch
            from headstart.wire import Preferences

            settings = self._settings
            me = weakref.ref(self)  # the connection's thread must not keep alive what nobody else holds

            def settled(kickoff: Kickoff, result: wire.Result) -> None:
                client = me()
                if client is not None:
                    client._note(kickoff, result)

            self._connection = ServiceConnection(
                lambda: launch(settings),
                type(self)._find_toolchain,
                settled,
                self._reproduce,
                Preferences(
                    os.fsencode(settings.cache_dir),
                    settings.store_limit,
                    settings.time_limit,
                    readable(os.path.basename(sys.argv[0])) if sys.argv else "",
                    settings.memory_limit,
                    settings.early_cutoff,
                    settings.trusts_cache_dir,
                    vouched=self._vouched,
                ),
                type(self)._environment,
            )
            weakref.finalize(self, self._connection.abandon).atexit = False
        return self._connection

    def _note(self, kickoff: Kickoff, result: wire.Result) -> None:
        """In the connection's thread, before the future is done."""
        limit = Target.parse(kickoff.request.target).shared_memory_limit
        if limit is not None and result.shared > limit:
            raise OutOfResources(
                f"it needs {result.shared} bytes of shared memory, and {kickoff.request.target} has {limit}",
                kernel=kickoff.request.name,
                target=kickoff.request.target,
                options=kickoff.request.options,
                stage="launch",
                reproduce=self._reproduce(kickoff.request) if kickoff.vouched else "",
                advice="use smaller blocks or fewer num_stages",
            )
        self.bundler.put(result.key, lambda: self._entry(kickoff, result))

    def _finish(self, kickoff: Kickoff, result: wire.Result) -> CompiledKernel:
        request = kickoff.request
        if result.log is not None:
            self._show(request, result.log)

        def rebuild(error: DamagedError) -> Entry:
            self._store.set_aside(result.key, error.reason)
            return self._entry(kickoff, result)

        return CompiledKernel(self._entry(kickoff, result), rebuild, result.log)

    def _show(self, request: CompileRequest, log: wire.CompileLog) -> None:
        """Tell a person what a compile printed. Many a kernel gives the same warnings: they are read once."""
        if log.text and log.text not in self._shown:
            self._shown.add(log.text)
            _log.warning("compiling %s printed:\n%s", request.name, log.text)

    def _entry(self, kickoff: Kickoff, result: wire.Result) -> Entry:
        # It may have been evicted, removed or damaged since the service answered.
        return self._located(kickoff.request, result) or self._compile_again(kickoff.request, kickoff.vouched)

    def _located(self, request: CompileRequest, result: wire.Result) -> Entry | None:
        return Entry.from_bytes(result.entry) if result.entry else self._store.find(
            result.key, kind="kernel", request_digest=request.digest()
        )

    def _compile_again(self, request: CompileRequest, vouched: bool) -> Entry:
        with self._lock:
            kickoff = self._service().submit(request, self._keeps, vouched=vouched)
        entry = self._located(request, kickoff.answer.result())
        if entry is None:
            folder = self._settings.cache_dir
            raise ServiceError(f"{request.name}: its entry vanishes from {folder} as soon as it is written")
        return entry

    # Bundles

    def _read_bundle(self, path: Path) -> bool:
        self.bundler.begin_compile()
        try:
            return self.bundler.read_and_emit(path) > 0 or self._shares_bundle
        except FileNotFoundError:
            return False
        except (DamagedError, OSError) as error:
            _log.warning("the bundle is not used, and is written anew: %s", error)
            return False

    def _emit(self, bundle: Bundle) -> int:
        if bypass_reason(self._environment()) is not None or not self._use_store:
            return 0
        toolchain = self._toolchain_digest(bundle)
        usable = [item for item in bundle if item.toolchain == toolchain]
        for item in usable:
            self.kernels.emit(item.request_digest, functools.partial(self._bundled, bundle, item))
        if self._shares_bundle:
            self._useless = None if usable or not len(bundle) else bundle.path
        elif len(usable) < len(bundle):
            _log.warning(
                "%s: %d of %d kernels were made by another Triton or Python and are not used",
                bundle.path,
                len(bundle) - len(usable),
                len(bundle),
            )
        return len(usable)

    def _bundled(
        self, bundle: Bundle, item: BundleItem, request: CompileRequest, vouched: bool
    ) -> KernelFuture:
        def rebuild(error: DamagedError) -> Entry:
            _log.warning("%s is compiled again: %s", request.name, error)
            return self._compile_again(request, vouched)

        def finish(_: object) -> CompiledKernel:
            try:
                entry = bundle.entry(item.key)
            except DamagedError as error:
                entry = rebuild(error)
            return CompiledKernel(entry, rebuild)

        self._asked.append(Asked(request.name, time.monotonic(), None))
        return LambdaFuture(request.name, _Answered(), finish)

    def _toolchain_digest(self, bundle: Bundle) -> str:
        tools = {name: value for name, value in self._environment().items() if name in TOOL_VARIABLES}
        try:
            return self._find_toolchain().digest(tools, self._settings.cache_dir / "toolchains")
        except ServiceError:
            # A machine that only runs kernels needs no Triton: what the bundle was made with is what there is.
            toolchains = sorted(bundle.toolchains)
            return toolchains[0] if len(toolchains) == 1 else ""

    def _after_fork(self) -> None:
        self._lock = threading.RLock()
        self.bundler.after_fork()
        self.kernels.after_fork()


def _failed_for_the_machine(future: KernelFuture) -> bool:
    """Whether it says nothing about the kernel: there was no service then, and there may be one now."""
    return isinstance(future.failure(), ServiceError)


def _live(
    kernel: Any, signature: Mapping[str, str] | str, constants: Mapping[Any, Any] | None, filename: str | None
) -> tuple[str, CapturedSource, dict[Any, Any]]:
    """Name and source of a live kernel, and its constants as a request takes them."""
    if isinstance(kernel, str):
        raise UsageError(f"{kernel}: its source is missing: triton({kernel!r}, source, …), or triton(function, …)")
    from headstart.jit.capture import capture_call  # who has only texts needs none of it

    source, plain = capture_call(kernel, constants, signature)
    return source.kernel.name, source if filename is None else source.shown_in(filename), plain


def _reproduce(folder: Path, request: CompileRequest) -> str:
    from headstart.service.reproduce import write_plan  # only failures need it

    return write_plan(folder, request)


_clients: weakref.WeakSet[AsyncCompile] = weakref.WeakSet()


@atexit.register
def _close_connections() -> None:
    # Registered here, not where connections are made: that module is loaded later than the handlers that still need it.
    connection: Any = sys.modules.get("headstart.connection")
    if connection is not None:
        connection.close_all()


def _after_fork_in_child() -> None:
    for client in list(_clients):
        client._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
