"""Futures of real compiles, as the standard library uses them: cancelled, awaited, waited for, forked."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from conftest import PATIENCE, Family, wait_until
from headstart import AsyncCompile
from kernels import Gate, Kernel, pointwise, raises

pytestmark = pytest.mark.triton

Open = Callable[..., AsyncCompile]


class Noticed:
    """Kernels of which it is known whether a worker has begun them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def kernel(self, name: str) -> Kernel:
        return pointwise(name=name, before=f"import pathlib\npathlib.Path({str(self.folder / name)!r}).touch()\n")

    @property
    def begun(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


@pytest.fixture
def noticed(tmp_path: Path) -> Noticed:
    return Noticed(tmp_path / "noticed")


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path / "gate")


# cancel


def test_a_queued_compile_that_was_cancelled_is_dropped_and_can_be_asked_for_again(
    open_compile: Open, gate: Gate, noticed: Noticed
) -> None:
    async_compile = open_compile(workers=1)
    async_compile.triton(**gate.kernel())
    gate.began()
    dropped = async_compile.triton(**noticed.kernel("dropped"))
    assert dropped.cancel()
    last = async_compile.triton(**noticed.kernel("last"))
    gate.open()
    assert last.result(PATIENCE).asm["cubin"]
    assert noticed.begun == ["last"]
    assert [span.origin for span in async_compile.timeline] == ["worker", "cancelled", "worker"]
    assert (async_compile.statistics.requested, async_compile.statistics.compiled) == (3, 2)
    again = async_compile.triton(**noticed.kernel("dropped"))
    assert again is not dropped
    assert again.result(PATIENCE).asm["cubin"]
    assert dropped.cancelled()


def test_what_is_cancelled_before_there_is_a_service_is_never_asked_of_it(open_compile: Open, noticed: Noticed) -> None:
    async_compile = open_compile(workers=1, start=False)
    assert async_compile.triton(**noticed.kernel("dropped")).cancel()
    assert async_compile.triton(**noticed.kernel("kept")).result(PATIENCE).asm["cubin"]
    assert noticed.begun == ["kept"]


def test_what_another_client_of_the_service_wants_is_compiled_for_it(
    open_compile: Open, gate: Gate, noticed: Noticed
) -> None:
    one = open_compile(workers=1)
    other = open_compile(client=one.client)
    one.triton(**gate.kernel())
    gate.began()
    mine, yours = (each.triton(**noticed.kernel("both")) for each in (one, other))
    assert mine is not yours
    assert mine.cancel()
    gate.open()
    assert yours.result(PATIENCE).asm["cubin"]
    assert mine.cancelled()
    assert noticed.begun == ["both"]


def test_a_compile_that_has_begun_goes_on_and_is_there_for_the_next_who_asks(open_compile: Open, gate: Gate) -> None:
    async_compile = open_compile()
    running = async_compile.triton(**gate.kernel())
    gate.began()
    wait_until(running.running)
    assert running.cancel()
    again = async_compile.triton(**gate.kernel())
    gate.open()
    assert again.result(PATIENCE).asm["cubin"]
    assert len(gate.pids()) == 1
    assert running.cancelled()


# A service that dies


def test_what_is_awaited_while_the_service_dies_is_compiled_by_the_next_one_and_what_was_cancelled_is_not(
    open_compile: Open, family: Family, gate: Gate, noticed: Noticed
) -> None:
    async_compile = open_compile(workers=1)
    waited_for = async_compile.triton(**gate.kernel())
    dropped = async_compile.triton(**noticed.kernel("dropped"))
    gate.began()

    async def program() -> Any:
        task = asyncio.ensure_future(waited_for)
        await asyncio.sleep(0)  # it waits now
        assert dropped.cancel()
        family.service().kill()
        await asyncio.to_thread(gate.began, times=2)
        gate.open()
        return await asyncio.wait_for(task, PATIENCE)

    assert asyncio.run(program()).asm["cubin"]
    assert async_compile.triton(**noticed.kernel("last")).result(PATIENCE).asm["cubin"]
    assert noticed.begun == ["last"]
    assert async_compile.services_started == 2


def test_closing_fails_those_who_wait_whichever_way(open_compile: Open, gate: Gate) -> None:
    async_compile = open_compile()
    pending = async_compile.triton(**gate.kernel())
    gate.began()

    async def program() -> None:
        task = asyncio.ensure_future(pending)
        waiting = asyncio.to_thread(concurrent.futures.wait, [pending], PATIENCE)
        await asyncio.sleep(0)
        await asyncio.to_thread(async_compile.close)
        assert (await waiting).done == {pending}
        with pytest.raises(Exception, match="headstart was closed before this kernel was compiled"):
            await asyncio.wait_for(task, PATIENCE)

    asyncio.run(program())


# Standard waiting


def test_as_completed_of_concurrent_futures_yields_kernels_and_failures(open_compile: Open) -> None:
    async_compile = open_compile()
    futures = [async_compile.triton(**kernel) for kernel in [raises(), *map(pointwise, range(12))]]
    failed = [each for each in concurrent.futures.as_completed(futures, PATIENCE) if each.exception() is not None]
    assert failed == futures[:1]


def test_a_fork_waits_for_what_its_parent_waits_for(open_compile: Open, gate: Gate) -> None:
    """By `concurrent.futures.wait` and by `await`; a thread of the parent's is in the middle of either."""
    async_compile = open_compile()
    futures = [async_compile.triton(**gate.kernel()), async_compile.triton(**gate.kernel("other"))]
    gate.began()
    gate.began("other")
    waiting = threading.Thread(target=concurrent.futures.wait, args=(futures, PATIENCE))
    waiting.start()
    wait_until(lambda: all("_waiters" in vars(future) and future._waiters for future in futures))
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            gate.open()
            assert concurrent.futures.wait(futures, PATIENCE).done == set(futures)

            async def program() -> list[Any]:
                return await asyncio.gather(*futures)

            assert all(kernel.asm["cubin"] for kernel in asyncio.run(program()))
            async_compile.close()
            status = 0
        finally:
            os._exit(status)
    deadline = time.monotonic() + PATIENCE
    while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            psutil.Process(pid).kill()
        time.sleep(0.01)
    assert os.waitstatus_to_exitcode(ended[1]) == 0
    waiting.join(PATIENCE)
    assert all(future.done() for future in futures)
    assert futures[0].result(PATIENCE).asm["cubin"]
