"""What is said of a job whose worker died under it, or was killed for its job's limits."""

from __future__ import annotations

from headstart.service.workforce import PooledWorker
from headstart.system.deaths import describe_status, likely_cause
from headstart.wire import Failure


def failure_of_death(worker: PooledWorker, status: int, stage: str, last_words: str) -> Failure:
    """Why a job has no result; arguments as for `Scheduler.worker_gone`."""
    if worker.timed_out is not None:
        return Failure(
            "timeout",
            f"it took longer than {worker.timed_out:g} s",
            stage=stage,
            output=last_words,
            advice="raise HEADSTART_COMPILE_TIMEOUT (seconds), or make the kernel smaller: less unrolling",
        )
    if worker.over_memory is not None:
        limit, evidence = worker.over_memory
        return Failure(
            "memory",
            f"it used more than {_mebibytes(limit)} of memory",
            stage=stage,
            detail=evidence,
            output=last_words,
            advice="raise HEADSTART_MEMORY_LIMIT (16GiB, say), or make the kernel smaller: less unrolling",
        )
    return Failure(
        "crash",
        f"the compiler process {describe_status(status)}",
        stage=stage,
        detail=likely_cause(status),
        output=last_words,
        advice="run the command below; if it crashes alone, it is a bug in Triton, LLVM or ptxas to report",
    )


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"
