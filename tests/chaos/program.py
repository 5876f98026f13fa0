"""A client: asks for kernels in batches, and prints a line of JSON for each one that it got an answer for.

python -m chaos.program MARKS_FOLDER NUMBER NUMBER …
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import threading
import time
from pathlib import Path

import denied
import headstart
from headstart.client import watch
from kernels import Kernel, pointwise

BATCH = 4  # kernels that are kicked off before the first of them is waited for
# What passes, and is asked again for: a program of @triton.jit kernels would compile by itself.
PASSING = ("can start no thread (can't start new thread)", "does not answer: it is stopped (state T)")
RETRIED = 20.0  # seconds
PATIENCE = 50.0  # seconds for one answer; whoever waits for longer was forgotten
_SLOW = (0.0, 0.0, 0.05, 0.3)  # seconds that compiles take besides compiling, so that faults meet them


def kernel(number: int, marks: str) -> Kernel:
    """Kernel `number`. Whoever begins to compile it leaves a file in the folder `marks`: NAME.PID.NANOSECONDS."""
    name = f"kernel{number}"
    before = f"""
    import os, time
    os.close(os.open(f"{marks}/{name}.{{os.getpid()}}.{{time.time_ns()}}", os.O_CREAT | os.O_WRONLY))
    time.sleep({_SLOW[number % len(_SLOW)]})
    """
    return pointwise(number, name=name, before=before)


def be_impatient() -> None:
    """A service that is left stopped is given up within a round; ten seconds would be too long."""
    watch.QUIET, watch.STOPPED_TIMEOUT = 0.5, 3.0


def limit_threads(flag: Path) -> None:
    """No thread can be started while there is this file, as under `ulimit -u`."""
    start = threading.Thread.start

    def limited(thread: threading.Thread) -> None:
        if flag.exists():
            raise RuntimeError("can't start new thread")
        start(thread)

    threading.Thread.start = limited  # type: ignore[method-assign]


def main(marks: str, numbers: list[int]) -> None:
    be_impatient()
    limit_threads(Path(marks).parent / "no-threads")
    if os.environ["DENIED"]:
        denied.deny(*os.environ["DENIED"].split())
    logging.getLogger("headstart").addHandler(logging.NullHandler())  # warnings are expected by the hundred
    with headstart.AsyncCompile("cuda:90", workers=2) as async_compile:
        for start in range(0, len(numbers), BATCH):
            futures = {
                number: async_compile.triton(**kernel(number, marks)) for number in numbers[start : start + BATCH]
            }
            for number, future in futures.items():
                answer = _answer(future)
                since = time.monotonic()
                while any(why in answer.get("why", "") for why in PASSING) and time.monotonic() < since + RETRIED:
                    time.sleep(0.1)
                    answer = _answer(async_compile.triton(**kernel(number, marks)))
                print(json.dumps({"kernel": number, **answer}), flush=True)
        print(json.dumps({"found": async_compile.used().remote}), flush=True)


def _answer(future: headstart.LambdaFuture[headstart.CompiledKernel]) -> dict[str, str]:
    try:
        cubin = future.result(PATIENCE).asm["cubin"]
    except TimeoutError:
        return {"lost": "no answer"}
    except headstart.HeadstartError as error:
        return {"failed": type(error).__name__, "why": str(error)}
    return {"delivered": hashlib.sha256(cubin).hexdigest()}


if __name__ == "__main__":
    main(sys.argv[1], [int(number) for number in sys.argv[2:]])
