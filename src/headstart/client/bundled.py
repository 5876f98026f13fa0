"""What bundles hold, as answers to requests: kernels, and failures that are known.

a bundle is read ─▶ emit: those that this toolchain made are on offer; or promise: emit, before the first request
a request for one ─▶ a future that is done; opened, and compiled again if it is damaged, when somebody looks
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterable

from headstart.artifacts import known_failure
from headstart.artifacts.bundle import Bundle, BundleItem
from headstart.artifacts.entry import Entry
from headstart.client.client import Client
from headstart.client.future import LambdaFuture
from headstart.client.kernel import CompiledKernel
from headstart.client.kernel_log import KernelLog
from headstart.client.kernels import Answered, CompiledTritonKernels, KernelFuture
from headstart.client.policy import Policy
from headstart.client.timeline import TimelineEntry
from headstart.client.use import MOST_MISSED, Missed
from headstart.errors import DamagedError
from headstart.model import keys
from headstart.model.environment import bypass_reason
from headstart.model.parameters import parameters_of, with_names
from headstart.model.request import CompileRequest

_EXPLAINED = 50  # kernels of which it is looked up at the end why a bundle did not have them
_UNEXPLAINED = "the bundle did not have it; the reason was looked up for others only"
_COMPARED = 20  # kernels of one name among which the nearest is looked for
_FOR_REQUESTS = ("kernel", known_failure.KIND)  # entries that answer a request

_OURS = ("format", "toolchain")  # components that are not the request's

_log = logging.getLogger("headstart")


class BundledKernels:
    """What one AsyncCompile has of its client's bundles.

    Args:
        client, policy: of that AsyncCompile.
        kernels: where they are on offer.
        compile_again: what a damaged one is replaced by; see `Client.compile_again`.
        asked: told of each that is asked for.
        saved: told how many seconds each took to compile, once somebody looks at it.
        is_alone: whether nobody else uses these bundles, so that what does not fit is worth a word.
    """

    def __init__(
        self,
        client: Client,
        policy: Policy,
        kernels: CompiledTritonKernels,
        compile_again: Callable[[CompileRequest, bool], Entry],
        asked: Callable[[TimelineEntry], KernelLog | None],
        saved: Callable[[float], None],
        *,
        is_alone: bool,
    ) -> None:
        self._client = client
        self._policy = policy
        self._kernels = kernels
        self._compile_again = compile_again
        self._asked = asked
        self._saved = saved
        self._is_alone = is_alone
        self._promised: list[Bundle] = []
        self._offers: dict[str, list[tuple[Bundle, BundleItem]]] = {}  # by the request's digest: of several toolchains
        self._given: dict[str, str] = {}  # keys by digest, of what the program itself has not asked for

    def promise(self, bundle: Bundle) -> int:
        """As `emit`, once there is a request; returns how much may be of use.

        On a machine that never saw this toolchain, telling it takes half a second, and a program that has all its
        graphs from a bundle asks for no kernel.
        """
        self._promised.append(bundle)
        return len(bundle)

    def keep_promises(self) -> None:
        """There is a request."""
        while self._promised:
            self.emit(self._promised.pop())

    def emit(self, bundle: Bundle) -> int:
        """Offer what a bundle holds; returns how much of it can be used."""
        if bypass_reason(self._policy.environment()) is not None or not self._client.uses_store:
            return 0
        toolchain = self._client.toolchain_digest(self._policy, bundle)
        answers = [item for item in bundle if item.kind in _FOR_REQUESTS]
        usable = [item for item in answers if item.toolchain == toolchain]
        for item in answers:
            offers = self._offers.setdefault(item.request_digest, [])
            if not offers:
                self._kernels.emit(item.request_digest, self._future)
            offers.append((bundle, item))
        if usable:
            self._client.is_useful()
        if self._is_alone and len(usable) < len(answers):
            _log.warning(
                "%s: %d of %d kernels were made by another Triton or Python and are not used",
                bundle.path,
                len(answers) - len(usable),
                len(answers),
            )
        return len(usable)

    def request(self, digest: str, request: CompileRequest, vouched: bool, background: bool) -> KernelFuture | None:
        """The future of a kernel that a bundle holds, if one does; see `AsyncCompile.submit` for the arguments."""
        future = self._kernels.request_emitted(digest, request, vouched)
        if future is not None and not background:
            self.asked_for(digest)
        return future

    def asked_for(self, digest: str) -> None:
        """The program itself asks for what it was given, or what the background was given before."""
        key = self._given.pop(digest, None)
        if key is not None:
            self._client.bundler.note_use(key)

    def missed(self, asked: Iterable[TimelineEntry]) -> list[Missed]:
        """What was compiled all the same, and why the bundles did not have it."""
        found: list[Missed] = []
        for entry in asked:
            if entry.kickoff is not None and entry.origin in ("worker", "failed"):
                explained = len(found) < _EXPLAINED
                found.append(Missed(entry.name, self._why_missed(entry.kickoff.request) if explained else _UNEXPLAINED))
                if len(found) == MOST_MISSED:
                    break
        return found

    def _why_missed(self, request: CompileRequest) -> str:
        if why := self._client.unread or bypass_reason(self._policy.environment()):
            return why
        digest, parameters = request.digest(), functools.partial(parameters_of, request)
        components = with_names(request.components(), parameters)
        nearest: list[str] | None = None
        for bundle in self._client.bundler.bundles:
            name = bundle.path.name
            alike = [item for item in bundle if item.kind == "kernel" and item.name == request.name]
            for item in alike[:_COMPARED]:
                if item.request_digest == digest:
                    return f"{name} has it, made by another Triton, torch or Python"
                try:
                    before = [each for each in bundle.entry(item.key).header.components if each[0] not in _OURS]
                except (DamagedError, OSError):
                    continue
                reasons = keys.explain(with_names(before, parameters), components)
                if nearest is None or len(reasons) < len(nearest):
                    nearest = reasons
        if nearest is None:
            return "the bundle has no kernel of this name"
        return f"the bundle has another one of this name: {'; '.join(nearest)}"

    def _offered(self, digest: str, request: CompileRequest) -> tuple[Bundle, BundleItem] | None:
        """What the toolchain of this request made, with the assembler that it names.

        A process of torch.compile's has two: Inductor's workers use the assembler that torch brings, Inductor's own
        process uses Triton's. What was compiled for either is in the bundle under the same digest.
        """
        for bundle, item in self._offers.get(digest, ()):
            if item.toolchain == self._client.toolchain_digest(self._policy, bundle, request.environment):
                return bundle, item
        return None

    def _future(self, digest: str, request: CompileRequest, vouched: bool) -> KernelFuture | None:
        offered = self._offered(digest, request)
        if offered is None:
            return None
        bundle, item = offered
        self._client.is_useful()

        def rebuild(error: DamagedError) -> Entry:
            _log.warning("%s is compiled again: %s", request.name, error)
            return self._compile_again(request, vouched)

        def finish(_: object) -> CompiledKernel:
            try:
                entry = bundle.entry(item.key)
                self._saved(entry.header.compile_wall_s)
                if log is not None:
                    log.loaded(entry.header.compile_wall_s)
                if item.kind == known_failure.KIND:
                    raise known_failure.unpack(entry, request)
            except DamagedError as error:
                entry = rebuild(error)
            return CompiledKernel(entry, rebuild)

        self._given[digest] = item.key
        log = self._asked(TimelineEntry(request.name, time.monotonic(), None, request))
        answered = Answered()
        answered.log = log
        return LambdaFuture(request.name, answered, finish)
