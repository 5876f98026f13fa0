"""One `headstart build`: kicks off what a plan or a manifest asks for, and writes the bundle."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from headstart.artifacts import known_failure
from headstart.artifacts.manifest import Manifest
from headstart.artifacts.retargeting import retarget
from headstart.artifacts.specialization import Specialization
from headstart.artifacts.vetting import check_request
from headstart.cli import (
    printable,
    printable_lines,
)
from headstart.cli.plans import KernelSpec
from headstart.cli.progress import Progress, Tally
from headstart.client.future import LambdaFuture, as_completed
from headstart.errors import CompileError, HeadstartError, UsageError
from headstart.model.environment import TOOL_VARIABLES, fingerprint
from headstart.model.parameters import label_of
from headstart.model.request import CompileRequest
from headstart.model.target import Target

if TYPE_CHECKING:
    from headstart.cli.build_sources import SourcesBuild
    from headstart.client.async_compile import AsyncCompile
    from headstart.client.client import Client
    from headstart.client.kernel import CompiledKernel
    from headstart.client.timeline import Statistics


class _Recorded(NamedTuple):
    """A kernel of a manifest; `failed`: see `Specialization`; `seconds`: that it took there, 0 if nobody knows."""

    request: CompileRequest
    failed: str
    seconds: float


class Allowance(NamedTuple):
    """How many kernels may fail without the build failing, and which of them may besides."""

    number: int = 0
    kernels: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Allowance:
        """What `--allow-failures` was given.

        Raises:
            UsageError: two numbers, or what is neither a number nor a kernel's name.
        """
        for text in texts:
            if not (text.isascii() and text.isdecimal()) and not text.isidentifier():
                raise UsageError(f"--allow-failures: expected a number or a kernel's name, got {text!r}")
        numbers = [text for text in texts if text.isascii() and text.isdecimal()]
        if len(numbers) > 1:
            raise UsageError(f"--allow-failures: expected one number, got {' and '.join(numbers)}")
        return cls(int(numbers[0]) if numbers else 0, frozenset(texts) - {*numbers})

    def covers(self, failed: Sequence[str]) -> bool:
        """Whether these kernels may fail: by name, or as many as there are."""
        return sum(name not in self.kernels for name in failed) <= self.number


class Build:
    """One run of `headstart build`.

    Attributes:
        devices: to compile for what names none; of a manifest, all.
        failures: what went wrong, in the order it was noticed. Reports in the same words count as one: without a
            service, every kernel says so.
        failed: names of the kernels that failed, as often as they did; empty where a name is not known.
        trouble: whether something went wrong that is no kernel's: no service, a bundle that cannot be written.
        refused: requests that were wrong in themselves and never reached a worker.
        as_recorded: kernels that failed as they had when they were recorded.
        used: targets compiled for, in order of first use.
    """

    def __init__(
        self, async_compile: AsyncCompile, devices: Sequence[Target], tally: Tally, *, vouched: bool = True
    ) -> None:
        self._vouched = vouched
        self._async_compile = async_compile
        self.devices = devices
        self._tally = tally
        self._futures: dict[int, LambdaFuture[CompiledKernel]] = {}
        self._progress = Progress()
        self.failures: dict[str, None] = {}
        self._recorded: dict[int, _Recorded] = {}  # by the `id` of the future
        self._sources: SourcesBuild | None = None
        self.failed: list[str] = []
        self.trouble = False
        self.refused = 0
        self.as_recorded = 0
        self.used: dict[Target, None] = {}

    def run(
        self, requests: Iterable[KernelSpec | _Recorded], progress: Progress, sources: SourcesBuild | None = None
    ) -> UsageError | None:
        """Build everything that a plan or a manifest yields; what was wrong with the plan itself is returned."""
        self._progress = progress
        plan_error = None
        self._sources = sources
        self._async_compile.bundler.begin_compile()
        if sources is not None:
            sources.kick_off()
        try:
            for each in requests:
                if isinstance(each, KernelSpec):
                    self._kick_off_spec(each)
                else:
                    self._kick_off_request(each)
                self._look_at_answers()
        except UsageError as error:
            plan_error = error
        if sources is not None:
            sources.finish()
        self._tally.complete = True
        for _ in as_completed(self._futures.values()):
            self._look_at_answers()
        # A future is complete a moment before its callback has run.
        while self._tally.seen < self._tally.requested:
            self._look_at(self._tally.unseen.get())
        return plan_error

    def write(self, output: Path) -> Path | None:
        """Write what was built to `output`. None if nothing was, or if that failed, which is one of the failures."""
        bundler, statistics = self._async_compile.bundler, self.statistics
        try:
            return bundler.collect(output) if statistics.compiled + statistics.cached + self.as_recorded else None
        except OSError as error:
            self.failures[f"cannot write {output}: {error.strerror or error}"] = None
            self.trouble = True
            return None
        finally:
            bundler.end_compile()

    @property
    def targets(self) -> list[Target]:
        """What was compiled for."""
        return list(dict.fromkeys([*self.used, *([] if self._sources is None else self._sources.targets)]))

    @property
    def statistics(self) -> Statistics:
        """What became of everything."""
        own = self._async_compile.statistics
        return own if self._sources is None else own + self._sources.statistics

    def recorded(self, manifest: Manifest) -> Iterator[_Recorded]:
        """What to compile of a manifest, in order; what may not be compiled is reported as a failure."""
        tools = {name: value for name, value in fingerprint().items() if name in TOOL_VARIABLES}
        for each in manifest.in_compile_order():
            if each.torch:
                continue  # see `build_sources`
            reason = None if self._vouched else check_request(each.request, tools=tools)
            if reason is not None:
                self.refuse(
                    f"{_named(each)} was left out: {reason}; if you know where the manifest comes from, pass --trust",
                    each.request.name,
                )
                continue
            # Tools are this machine's; they count by content, and not as part of a request.
            others = {name: value for name, value in each.request.environment.items() if name not in TOOL_VARIABLES}
            request = msgspec.structs.replace(each.request, environment={**others, **tools})
            try:
                recorded_for = Target.parse(request.target)
            except UsageError as error:
                self.refuse(f"{_named(each)} was left out: {error}", each.request.name)
                continue
            for device in self.devices or [recorded_for]:
                yield _Recorded(retarget(request, device)[0], each.failed, each.duration_s)

    def _kick_off_spec(self, spec: KernelSpec) -> None:
        devices = [spec.target] if spec.target is not None else self.devices
        if not devices:
            raise UsageError(
                f"what is {spec.name} to be compiled for? Pass --target, as in --target cuda:90 (H100) or --target "
                "hip:gfx942 (MI300), or give the spec a target="
            )
        for device in devices:
            self.used[device] = None
            self._ask(
                f"{spec.name} ({device})",
                partial(
                    self._async_compile.triton,
                    spec.name,
                    spec.source,
                    signature=spec.signature,
                    constants=spec.constants,
                    attrs=spec.attrs,
                    options=spec.options,
                    target=str(device),
                    filename=spec.filename,
                ),
            )

    def _kick_off_request(self, recorded: _Recorded) -> None:
        request = recorded.request
        self.used[Target.parse(request.target)] = None
        self._ask(
            f"{request.name} ({request.target})",
            partial(self._async_compile.submit, request, vouched=self._vouched),
            recorded,
        )

    def _ask(
        self, what: str, kick_off: Callable[[], LambdaFuture[CompiledKernel]], recorded: _Recorded | None = None
    ) -> None:
        try:
            future = kick_off()
        except UsageError as error:
            self.refuse(f"{what} failed: {error}", what.rpartition(" (")[0])
            return
        if recorded is not None:
            self._recorded[id(future)] = recorded
        self.watch(future, 0.0 if recorded is None else recorded.seconds)

    def watch(self, future: LambdaFuture[CompiledKernel], seconds: float = 0.0) -> None:
        """See to a kernel that was asked for, and that took so many `seconds` when it was recorded; 0: nobody knows."""
        self._tally.requested += 1
        if id(future) in self._futures:
            # The same kernel again: its answer is counted, and its failure reported, once.
            self._tally.seen += 1
        else:
            self._futures[id(future)] = future
            if self._tally.time_left is not None:
                self._tally.time_left.asked(id(future), future.name, seconds)
            future.add_done_callback(self._tally.unseen.put)

    def refuse(self, report: str, kernel: str = "") -> None:
        """Count a kernel that is not even kicked off."""
        self.failed.append(kernel)
        self.refused += 1
        self._tally.requested += 1
        self._tally.seen += 1
        self._fail(report)

    def _look_at_answers(self) -> None:
        while not self._tally.unseen.empty():
            self._look_at(self._tally.unseen.get())

    def _look_at(self, future: LambdaFuture[CompiledKernel]) -> None:
        error = future.exception()
        self._tally.seen += 1
        if self._tally.time_left is not None:
            kernel = future.result() if error is None else None
            self._tally.time_left.answered(id(future), 0.0 if kernel is None else kernel.entry.header.compile_wall_s)
        recorded = self._recorded.get(id(future))
        if isinstance(error, CompileError) and recorded is not None and known_failure.is_known(error):
            self._async_compile.note_failure(recorded.request, recorded.request.digest(), error)
            if error.raised == recorded.failed:
                self.as_recorded += 1
                return
        if isinstance(error, CompileError):
            self.failed.append(error.kernel)
        elif isinstance(error, HeadstartError):
            self.trouble = True
        if isinstance(error, HeadstartError):
            self._fail(str(error))
        elif error is not None:
            raise error

    def _fail(self, report: str) -> None:
        report = printable_lines(report)
        self._tally.failed += 1
        if report not in self.failures:
            self.failures[report] = None
            self._progress.failure(report)


def in_flight(client: Client) -> list[tuple[str, float]]:
    """What workers compile now, told apart from other configurations, and since when (`time.monotonic()` seconds)."""
    return [
        (asked.name if asked.request is None else label_of(asked.request), asked.started or 0.0)
        for asked in client.in_flight()
    ]


def _named(each: Specialization) -> str:
    return printable(f"{each.request.name} ({each.request.target})")
