"""What the figures were measured on."""

from __future__ import annotations

import datetime as dt
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent

_SPIN = "import time; t = time.perf_counter(); sum(range(15_000_000)); print(time.perf_counter() - t)"


def describe() -> dict[str, str]:
    """The machine and the software, as pairs for people."""
    return {
        "CPU": _cpu_model(),
        "cores": f"{len(os.sched_getaffinity(0))} usable of {os.cpu_count()}",
        "memory": f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "Triton": metadata.version("triton"),
        "headstart": _version(),
        "date": dt.datetime.now(dt.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        "two at once": f"two busy processes each run {slowdown():.2f} times as long as one alone",
    }


def short_name() -> str:
    """For file names, e.g. `intel-xeon-2-cores-triton-3.9`."""
    model = re.sub(r"\((R|TM|C)\)|CPU|Processor|@.*|with .*|\d+-Core", " ", _cpu_model(), flags=re.IGNORECASE)
    words = re.findall(r"[a-z0-9]+", model.lower())
    triton = ".".join(metadata.version("triton").split(".")[:2])
    return "-".join([*words[:4], f"{len(os.sched_getaffinity(0))}-cores", f"triton-{triton}"])


def slowdown() -> float:
    """How much longer pure computing takes when a second process computes as well: 1 on two idle, whole cores."""
    alone = statistics.median(_spin(1) for _ in range(3))
    return statistics.median(_spin(2) for _ in range(3)) / alone


def busy_seconds() -> tuple[float, float]:
    """CPU seconds that the machine has spent on any process so far, and that its host has withheld from it."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    withheld = getattr(times, "steal", 0.0)
    counted_twice = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
    return sum(times) - idle - withheld - counted_twice, withheld


def monotonic() -> float:
    """Seconds on a clock that all processes of the machine share."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)


def _spin(processes: int) -> float:
    running = [
        subprocess.Popen([sys.executable, "-c", _SPIN], stdout=subprocess.PIPE, text=True) for _ in range(processes)
    ]
    return max(float(process.communicate()[0]) for process in running)


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version() -> str:
    text = (ROOT / "src" / "headstart" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'__version__ = "(.*)"', text)
    return found[1] if found else "unknown"


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), "--no-optional-locks", *arguments],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + (" with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
