"""Some processes compile the same kernels with Triton itself at once, with one cache folder."""

import subprocess
import sys
import time
from pathlib import Path

from benchmarks.subjects.common import report

begun = time.monotonic()
serial = Path(__file__).with_name("compile_serial.py")
processes = [
    subprocess.Popen([sys.executable, serial, sys.argv[1]], stdout=subprocess.DEVNULL) for _ in range(int(sys.argv[2]))
]
assert all(process.wait() == 0 for process in processes)
report(ask_s=time.monotonic() - begun)
