"""AsyncCompile: what a code generator calls.

triton(name, source, …) ─▶ CompiledTritonKernels: same request before? the same future
                        └▶ bundle? a future that is done   └▶ service: Kickoff ─▶ future
future.result()         ─▶ finishing step, once: open the entry, check the target's limits ─▶ CompiledKernel
"""

from __future__ import annotations

import concurrent.futures
import functools
import os
import threading
import weakref
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.artifacts import known_failure
from headstart.artifacts.entry import Entry
from headstart.client import timeline
from headstart.client.bundled import BundledKernels
from headstart.client.bundler import TritonBundler
from headstart.client.client import Client
from headstart.client.future import LambdaFuture, put_results
from headstart.client.kernel import CompiledKernel, check_limits
from headstart.client.kernels import CompiledTritonKernels, KernelFuture, failed_for_the_machine, live
from headstart.client.policy import Policy
from headstart.client.timeline import Span, Statistics, TimelineEntry
from headstart.client.use import BundleUse
from headstart.errors import CompileError, DamagedError
from headstart.model.captured import CapturedSource
from headstart.model.request import KERNEL, CompileRequest, to_target
from headstart.model.target import Target
from headstart.system.forks import renew_in_forks

if TYPE_CHECKING:
    from headstart import wire
    from headstart.client.asked import Kickoff
    from headstart.client.delivered import Delivered


class AsyncCompile:
    """Compiles kernels in the worker processes of a service, which get ready in the background.

    The service is this client's own, or shared with other processes: see `HEADSTART_SERVICE` in docs/service.md.

    Args:
        target: what to compile for, e.g. `"cuda:90"` or `"h100"`; may be given per kernel instead.
        workers: compiles that may run at once; default: the CPUs this process may use.
        cache_dir: where compiled kernels are kept; default: `HEADSTART_CACHE_DIR`, or the platform's cache folder.
        bundle: a bundle file. If it exists, its kernels are there without compiling, and no service starts until one is
            missing. What was missing is added to it by `close`.
        trust_bundle: whether what carries code in it may be loaded, whoever signed it.
        use_store: whether results may be looked up in, and kept in, the store.
        vouched: whether somebody vouches for most of what it will `submit`: the service gets workers ready for that.
        start: whether the service starts now, if there is need of one; else with the first kernel, or by `start`.
        client: shared with others, who close it; it has been told what `Client` takes.
        policy: who compiles, and what is done with answers; default: this process's Triton, and errors for people.

    Raises:
        UsageError: an argument or one of headstart's environment variables is not valid, or `bundle` is another file
            than a bundle.
    """

    def __init__(
        self,
        target: str | Target | None = None,
        *,
        workers: int | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        bundle: str | os.PathLike[str] | None = None,
        trust_bundle: bool = False,
        use_store: bool = True,
        vouched: bool = True,
        start: bool = True,
        client: Client | None = None,
        policy: Policy | None = None,
    ) -> None:
        self._target = None if target is None else Target.parse(target)
        self._owns_client = client is None
        if client is None:
            client = Client(
                workers=workers, cache_dir=cache_dir, bundle=bundle, trust_bundle=trust_bundle, use_store=use_store
            )
        self.client = client
        self._policy = policy or Policy(checks_limits=True, shows_output=True)
        self._vouched = vouched
        self._lock = threading.RLock()
        self._asked = timeline.Requests(client.log)
        self._deduplicated = 0
        self._unasked: set[str] = set()  # digests of what was only kicked off in the background so far
        self._unvouched: set[str] = set()  # digests of futures that nobody vouches for
        self.use = BundleUse()  # of this process, but for what was missed
        self._asked_before = 0  # of `_asked`, what the process that this is a fork of has asked for
        self.used_early: set[str] = set()  # digests of what was asked for, and was there for the background's sake
        self.kernels = CompiledTritonKernels()
        renew_in_forks(self)
        self._bundled = BundledKernels(
            client,
            self._policy,
            self.kernels,
            self._compile_again,
            self._asked.note,
            self._note_saved,
            is_alone=self._owns_client,
        )
        # Who has a policy may share a bundle full of what is not for it: then nobody can tell.
        offer = self._bundled.emit if policy is None else self._bundled.promise
        self.starts_service = client.bundler.offer_to(offer) == 0
        if start:
            self.start()

    def start(self) -> None:
        """Start the service in the background, unless a bundle makes it likely that none is needed."""
        if self.starts_service:
            self.client.start(self._policy, vouched=self._vouched)

    @property
    def bundler(self) -> TritonBundler:
        """Notes what comes back, and reads bundles."""
        return self.client.bundler

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
            name, source, constants = live(name, signature, constants, filename)
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
            environment=self._policy.environment(),
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
        triton_cache: wire.TritonCache | None = None,
    ) -> KernelFuture:
        """Kick off a compile that is a request already, as one out of a manifest is; otherwise like `triton`.

        Args:
            request: what to compile.
            use_store: as for `triton`.
            background: nobody has asked for it yet: whatever somebody has asked for goes first.
            vouched: somebody vouches for its source, which runs while it is compiled: it is this program's own, or its
                origin is known. Else it is compiled only if it passes `artifacts.vetting`, by a confined worker.
            digest: the request's, for those who have it already.
            triton_cache: where it is to be as well; what comes out of a bundle is not written there.
        """
        digest = digest or request.digest()
        with self._lock:
            name = self.kernels.name_of(digest, request)
            future = self.kernels.get(name)
            was_unvouched = future is not None and vouched and digest in self._unvouched
            if was_unvouched:
                future = None  # what may be refused, or wrong, is not for those who vouch for it
            if future is not None and not failed_for_the_machine(future) and future.ask_again():
                self._deduplicated += 1
                self.client.log.joined += 1
                if digest in self._unasked and not background:
                    self._unasked.discard(digest)
                    self.used_early.add(digest)
                    self._bundled.asked_for(digest)
                    future.want()
                return future
            if background:
                self._unasked.add(digest)
            if vouched:
                self._unvouched.discard(digest)
            else:
                self._unvouched.add(digest)
            self._bundled.keep_promises()
            # Bundles answer requests for kernels. What carries code is asked for where it is looked at whose it is.
            is_offered = use_store and request.kind == KERNEL
            future = self._bundled.request(digest, request, vouched, background) if is_offered else None
            if future is not None:
                self.use.kernels += 1
                return self.kernels.save(name, future)
            self.client.missed(self._policy)
            kickoff = self.client.submit(
                request,
                self._policy,
                self._on_answer,
                use_store=use_store,
                background=background,
                vouched=vouched,
                triton_cache=triton_cache,
            )
            self._asked.note(TimelineEntry(request.name, kickoff.kicked_off, kickoff))
            if was_unvouched and not background and digest in self._unasked:
                self._unasked.discard(digest)
                kickoff.answer.add_done_callback(functools.partial(self._note_if_stored, digest))
            future = LambdaFuture(request.name, kickoff, lambda answer: self._finish(kickoff, answer))
            return self.kernels.save(name, future)

    def needs(self, digest: str) -> None:
        """The program has what was kicked off in the background from elsewhere: its bundle is to keep it."""
        self._bundled.asked_for(digest)

    def expect(
        self, name: str, make: Callable[[], CompileRequest], *, use_store: bool, want: Callable[[], None]
    ) -> tuple[KernelFuture, Delivered]:
        """The future of a compile that the service has been asked for as part of something else.

        Args:
            name: of the kernel.
            make: makes its request, should somebody need it.
            use_store: as for `triton`.
            want: called when somebody begins to wait for it.

        Returns:
            The future, and what is to be told of the outcome.
        """
        from headstart.client.delivered import Delivered  # a warm start from a bundle needs none of it

        self.client.missed(self._policy)
        kickoff = Delivered(
            name,
            self._policy,
            make,
            use_store=self.client.keeps and use_store,
            bundled=use_store,
            answered=self._on_answer,
            note=self._note_answer,
            want=want,
        )
        with self._lock:
            self._asked.note(TimelineEntry(name, kickoff.kicked_off, kickoff))
        return LambdaFuture(name, kickoff, lambda answer: self._finish(kickoff, answer)), kickoff

    def note_failure(self, request: CompileRequest, digest: str, error: CompileError) -> None:
        """Have the bundle say that a kernel does not compile, so that nobody who has the bundle tries it again.

        Args:
            request: see `submit`; `digest` is its.
            error: what its future raised. One that another machine might not see is not carried.
        """
        if known_failure.is_known(error):
            toolchain = self._policy.toolchain_digest(self.cache_dir, request.environment)
            entry = known_failure.pack(request, digest, toolchain, error)
            self.bundler.put(entry.key, lambda: entry)

    def wait(self, scope: MutableMapping[str, Any]) -> None:
        """Replace every LambdaFuture in `scope` by its CompiledKernel.

        Everything is left to finish, and every good kernel put in place, before an error is raised.

        Raises:
            CompileErrors: all the kernels that failed.
        """
        put_results(scope)

    def close(self) -> None:
        """Write the bundle that was given, if something was missing in it, and end the service.

        What is still being compiled is abandoned. A client that is shared is left to those who share it.
        """
        if self._owns_client:
            self.client.close()

    def __enter__(self) -> AsyncCompile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def cache_dir(self) -> Path:
        """Where compiled kernels are kept."""
        return self.client.settings.cache_dir

    @property
    def services_started(self) -> int:
        """How many services it has started or joined: none while a bundle has everything, two after one died."""
        return self.client.services_started

    @property
    def statistics(self) -> Statistics:
        """What became of the requests so far."""
        with self._lock:
            return timeline.statistics(self._asked, self._deduplicated, self.client.settings.workers)

    @property
    def timeline(self) -> list[Span]:
        """One span per distinct request, in the order of the requests."""
        with self._lock:
            return [request.span() for request in self._asked]

    def used(self, *, why: bool = True) -> BundleUse:
        """What this process took out of bundles, and, if that is asked for, what it did not and why."""
        with self._lock:
            asked = self._asked[self._asked_before :] if why else []
        return self.use + BundleUse(missed=self._bundled.missed(asked))

    def in_flight(self) -> list[tuple[str, float]]:
        """Names of what workers compile now, and when they began (`time.monotonic()` seconds), oldest first."""
        running = [(kickoff.name, kickoff.started or 0.0) for kickoff in self.client.in_flight()]
        return sorted(running, key=lambda item: item[1])

    # Results

    @functools.cached_property
    def _on_answer(self) -> Callable[[Kickoff, wire.Result], None]:
        me = weakref.ref(self)  # the connection's thread must not keep alive what nobody else holds

        def on_answer(kickoff: Kickoff, result: wire.Result) -> None:
            async_compile = me()
            if async_compile is not None:
                async_compile._answered(kickoff, result)

        return on_answer

    def _answered(self, kickoff: Kickoff, result: wire.Result) -> None:
        """In the connection's thread, before the future is done."""
        self._note_answer(kickoff, result)
        if self._policy.answered is not None:
            self._policy.answered(kickoff.request, result)

    def _note_answer(self, kickoff: Kickoff, result: wire.Result) -> None:
        self.use.cached += result.cached
        self.use.remote += result.remote
        self.use.compiled += not result.cached
        self.use.compiling_s += 0.0 if result.cached else result.finished - result.started
        if self._policy.checks_limits:
            check_limits(kickoff.request, result.shared, self.client.reproduce if kickoff.vouched else None)
        if kickoff.bundled:
            self.bundler.put(result.key, lambda: self.client.entry(kickoff, result))

    def _note_if_stored(self, digest: str, answer: concurrent.futures.Future[wire.Result]) -> None:
        """What nobody vouched for is there for those who do, once it is in the store."""
        if not answer.cancelled() and answer.exception() is None and answer.result().cached:
            self.used_early.add(digest)

    def _finish(self, kickoff: Kickoff, result: wire.Result) -> CompiledKernel:
        request = kickoff.request
        if result.log is not None and self._policy.shows_output:
            self.client.show(request.name, result.log)

        def rebuild(error: DamagedError) -> Entry:
            self.client.store.set_aside(result.key, error.reason)
            return self.client.entry(kickoff, result)

        return CompiledKernel(kickoff.opened(self.client.entry(kickoff, result)), rebuild, result.log)

    def _compile_again(self, request: CompileRequest, vouched: bool) -> Entry:
        return self.client.compile_again(request, self._policy, self._on_answer, vouched)

    def _note_saved(self, seconds: float) -> None:
        self.use.saved_s += seconds

    def after_fork(self) -> None:
        """See `renew_in_forks`."""
        self._lock = threading.RLock()
        self.use = BundleUse()
        self._asked_before = len(self._asked)
        self.kernels.after_fork()
