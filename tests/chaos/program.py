"""A client: asks for kernels in batches, and prints a line of JSON for each one that it got an answer for.

    python -m chaos.program MARKS_FOLDER NUMBER NUMBER …
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys

import headstart
from kernels import Kernel, pointwise

BATCH = 4  # kernels that are kicked off before the first of them is waited for
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


def main(marks: str, numbers: list[int]) -> None:
    logging.getLogger("headstart").addHandler(logging.NullHandler())  # warnings are expected by the hundred
    with headstart.AsyncCompile("cuda:90", workers=2) as async_compile:
        for start in range(0, len(numbers), BATCH):
            futures = {
                number: async_compile.triton(**kernel(number, marks)) for number in numbers[start : start + BATCH]
            }
            for number, future in futures.items():
                print(json.dumps({"kernel": number, **_answer(future)}), flush=True)


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
