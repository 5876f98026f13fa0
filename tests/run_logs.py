"""Logs of runs that no compile was needed for: requests that are told to one, and answered as a test says."""

from __future__ import annotations

import time

import msgspec

from headstart import wire
from headstart.client.asked import Kickoff
from headstart.client.policy import Policy
from headstart.client.run_log import RunLog
from headstart.client.timeline import Requests, TimelineEntry
from headstart.model.request import CompileRequest
from kernels import TOOLCHAIN

STAGES = [("ir_initialization", 55_000), ("ttir", 6_000), ("ttgir", 210_000), ("llir", 674_000), ("ptx", 218_000)]
STAGES += [("cubin", 354_000), ("store_results", 200)]


def ask(log: RunLog, kernel: dict[str, object], answer: wire.Result | Exception | None = None) -> Kickoff:
    """A request that is told to `log`, answered if there is an answer."""
    request = CompileRequest.make(**{"target": "cuda:90", **kernel})
    kickoff = Kickoff(
        lambda _: None, lambda _: None, request, Policy(find=lambda: TOOLCHAIN), True, True, None, False, True
    )
    Requests(log).note(TimelineEntry(request.name, kickoff.kicked_off, kickoff))
    if answer is None:
        return kickoff
    kickoff.began(time.monotonic(), 1)
    if isinstance(answer, Exception):
        kickoff.answer.set_exception(answer)
    else:
        kickoff.answer.set_result(answer)
    return kickoff


def result(**changes: object) -> wire.Result:
    """As a worker's compile of a matrix product ends."""
    now = time.monotonic()
    made = wire.Result(
        1, "ab" * 32, started=now - 1.5, finished=now, cpu_s=1.4, shared=512, log=wire.CompileLog(times=STAGES)
    )
    return msgspec.structs.replace(made, **changes)
