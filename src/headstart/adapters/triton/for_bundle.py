"""Kernels that only the bundle needs: Triton's own cache had them, so that the program does not."""

from __future__ import annotations

import logging
import threading
import time

from headstart.adapters.triton.asks import PendingCompile
from headstart.client.async_compile import AsyncCompile
from headstart.client.future import LambdaFuture
from headstart.client.kernel import CompiledKernel
from headstart.errors import HeadstartError

_BUNDLE_TIMEOUT = 120.0  # seconds at the end for kernels that only the bundle needs

_log = logging.getLogger("headstart")


class ForBundle:
    """What is compiled in the background for a bundle.

    Args:
        compiler: compiles it.
        wanted: whether there is a bundle.
    """

    def __init__(self, compiler: AsyncCompile, wanted: bool) -> None:
        self._compiler = compiler
        self._futures: list[LambdaFuture[CompiledKernel]] | None = [] if wanted else None
        self._lock = threading.Lock()

    def add(self, ask: PendingCompile) -> None:
        """Have what Triton's own cache had in the bundle that was asked for as well."""
        if self._futures is None:
            return
        try:
            request = ask.make_request()
            future = self._compiler.submit(request, background=True, digest=ask.digest)
            self._compiler.needs(ask.digest)
        except HeadstartError as error:
            _log.debug("%s is not bundled: %s", ask.what.function, error)
            return
        if not future.done():
            with self._lock:
                self._futures.append(future)

    def complete(self) -> None:
        """Wait for what is to be in the bundle and was not needed until now."""
        deadline = time.monotonic() + _BUNDLE_TIMEOUT
        left = list(self._futures or ())
        for future in left:
            future.want()
        while left and time.monotonic() < deadline:
            try:
                left[-1].exception(max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                break
            left.pop()
        if left:
            _log.warning("the bundle lacks %d kernels, which were not compiled in time", len(left))

    def after_fork(self) -> None:
        """What was asked for is the parent's."""
        self._lock = threading.Lock()
        if self._futures is not None:
            self._futures = []
