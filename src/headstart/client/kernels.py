"""The future cache: one future for each request of a process."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from headstart.client.future import LambdaFuture
from headstart.client.kernel import CompiledKernel
from headstart.errors import ServiceError, UsageError
from headstart.model.captured import CapturedSource
from headstart.model.environment import TOOL_VARIABLES
from headstart.model.request import CompileRequest

if TYPE_CHECKING:
    from headstart.client.kernel_log import KernelLog

KernelFuture = LambdaFuture[CompiledKernel]


class CompiledTritonKernels:
    """The in-memory future cache: one future per distinct request.

    Keyed by everything that makes a kernel what it is: full source, name, signature, constants, attributes, options,
    target and environment; the toolchain is the process's own. A process of torch.compile's has two assemblers, and
    what one of them made is not for who asks for the other's.
    """

    def __init__(self) -> None:
        self._tools: list[str] | None = None  # of the first request
        self._futures: dict[str, KernelFuture] = {}
        self._emitted: dict[str, Callable[[str, CompileRequest, bool], KernelFuture | None]] = {}

    def name_of(self, digest: str, request: CompileRequest) -> str:
        """Under which the future of a request is kept: its digest, and its tools if the first request had others."""
        environment = request.environment
        tools = [f"{name}={environment[name]}" for name in sorted(TOOL_VARIABLES & environment.keys())]
        if self._tools is None:
            self._tools = tools
        return digest if tools == self._tools else "\n".join([digest, "tools", *tools])

    def get(self, digest: str) -> KernelFuture | None:
        """The future of the request with this digest (or `name_of`), if it was made before."""
        return self._futures.get(digest)

    def request_emitted(self, digest: str, request: CompileRequest, vouched: bool = True) -> KernelFuture | None:
        """A future for a kernel that a bundle holds, made now and to be saved; None: no bundle has it.

        `vouched`: as for `AsyncCompile.submit`, should it have to be compiled after all.
        """
        make = self._emitted.get(digest)
        return None if make is None else make(digest, request, vouched)

    def save(self, digest: str, future: KernelFuture) -> KernelFuture:
        """Remember `future`."""
        self._futures[digest] = future
        return future

    def emit(self, digest: str, make: Callable[[str, CompileRequest, bool], KernelFuture | None]) -> None:
        """Offer a kernel of a bundle; `make` is called if somebody requests it, with the digest and how."""
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


class Answered:
    """What the future of a bundled kernel waits for: nothing. `log`: what of the run's log is about it."""

    log: KernelLog | None = None
    answer: concurrent.futures.Future[None] = concurrent.futures.Future()
    answer.set_result(None)

    is_running = False

    def want(self) -> None:
        pass

    def withdraw(self) -> None:
        pass


def failed_for_the_machine(future: KernelFuture) -> bool:
    """Whether it says nothing about the kernel: there was no service then, and there may be one now."""
    return isinstance(future.failure(), ServiceError)


def live(
    kernel: Any, signature: Mapping[str, str] | str, constants: Mapping[Any, Any] | None, filename: str | None
) -> tuple[str, CapturedSource, dict[Any, Any]]:
    """Name and source of a live kernel, and its constants as a request takes them."""
    if isinstance(kernel, str):
        raise UsageError(f"{kernel}: its source is missing: triton({kernel!r}, source, …), or triton(function, …)")
    from headstart.capture.functions import capture_call  # who has only texts needs none of it

    source, plain = capture_call(kernel, constants, signature)
    return source.kernel.name, source if filename is None else source.shown_in(filename), plain
