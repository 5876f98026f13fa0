"""What this machine, and the cgroup that this process is in, have to give. Linux, cgroup v2."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")
# Of NVIDIA's driver, on a Jetson, of AMD's, and on Windows' Linux.
_GPU_NODES = ("nvidia[0-9]*", "nvhost-gpu", "nvgpu", "kfd", "dxg")
_GPU_VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


def usable_cpus(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int:
    """CPUs that this process may use: its affinity, or less where a cgroup's quota allows less. At least 1."""
    cpus = float(allowed_cpus())
    for folder in _own_cgroups(proc, cgroups):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        if quota.isdecimal() and period.isdecimal():
            cpus = min(cpus, int(quota) / int(period))
    return max(1, math.ceil(cpus))


def allowed_cpus() -> int:
    """CPUs in this process's affinity; all there are where a sandbox refuses to say."""
    try:
        return len(os.sched_getaffinity(0))
    except OSError:
        return os.cpu_count() or 1


def has_gpu(dev: Path = Path("/dev")) -> bool:
    """Whether this process may well find a GPU: the nodes that drivers make, unless the environment hides all devices.

    Nothing is asked of a driver, which would start it. A wrong answer costs time only.
    """
    nodes = any(any(dev.glob(pattern)) for pattern in _GPU_NODES)
    # "" and "-1" hide all; where several are set, a program sees what each of them leaves.
    return nodes and not any(os.environ.get(name) in ("", "-1") for name in _GPU_VARIABLES)


# Of x86-64 and aarch64, as /proc/cpuinfo names them: those by which Inductor chooses vectors (its cpu_vec_isa.py).
_VECTORS = re.compile(
    r"avx2|avx512(f|bw|dq|vl|_bf16|_fp16|_vnni)|amx_(tile|bf16|fp16|int8)|fma|f16c|sve\w*|asimd|bf16|i8mm"
)


def vector_instructions(proc: Path = _PROC) -> str:
    """The vector instructions of this machine's CPU, with what PyTorch is told to use of them; for comparing."""
    try:
        text = (proc / "cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    line = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
    words = sorted({word for word in line.partition(":")[2].split() if _VECTORS.fullmatch(word)})
    return " ".join([platform.machine(), os.environ.get("ATEN_CPU_CAPABILITY", ""), *words])


def available_memory(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int | None:
    """Bytes that may still be used before something is killed or swapped out; None where that cannot be told."""
    found = []
    for line in _text(proc / "meminfo").splitlines():
        name, _, amount = line.partition(":")
        if name == "MemAvailable":
            found.append(int(amount.split()[0]) << 10)
    for folder in _own_cgroups(proc, cgroups):
        limit, used = _text(folder / "memory.max"), _text(folder / "memory.current")
        if limit.isdecimal() and used.isdecimal():
            # Files that were read long ago count as used, and make way as soon as somebody asks.
            statistics = dict(line.split(" ", 1) for line in _text(folder / "memory.stat").splitlines())
            found.append(int(limit) - int(used) + int(statistics.get("inactive_file", 0)))
    return min(found, default=None)


def own_memory(pid: int, proc: Path = _PROC) -> int:
    """Bytes in memory that are no file's, of one process; 0 if it is gone."""
    for line in _text(proc / str(pid) / "status").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    return 0


def tree_memory(pid: int, proc: Path = _PROC) -> dict[int, int]:
    """Bytes in memory or swapped out that are no file's, of a process and of all below it, by process."""
    found: dict[int, int] = {}
    left = [pid]
    while left:
        each = left.pop()
        found[each] = _anonymous(each, proc)
        left += children(each, proc)
    return found


def children(pid: int, proc: Path = _PROC) -> list[int]:
    """The processes whose parent is `pid`, zombies included; none where the kernel does not tell."""
    tasks = proc / str(pid) / "task"
    return [int(child) for task in _names(tasks) for child in _text(tasks / task / "children").split()]


def name_of(pid: int, proc: Path = _PROC) -> str:
    """What a process runs; empty if it is gone."""
    return _text(proc / str(pid) / "comm")


def command_of(pid: int, proc: Path = _PROC) -> str:
    """The command line of a process, blanks between its words; empty if it is gone, or has none."""
    with contextlib.suppress(OSError):
        words = (proc / str(pid) / "cmdline").read_bytes().split(b"\0")
        return b" ".join(words).decode(errors="replace").strip()
    return ""


def stopped(pid: int, proc: Path = _PROC) -> bool:
    """Whether somebody has stopped a process (SIGSTOP; not a debugger). False where the kernel does not tell."""
    return _state(pid, proc) == "T"


def condition(pid: int, proc: Path = _PROC) -> str:
    """What a process that does not answer is at, as the end of a sentence; empty where the kernel does not tell."""
    state = _state(pid, proc)
    if state == "T":
        return f"it is stopped (state T); kill -CONT {pid} has it go on, kill -9 {pid} ends it"
    if state == "D":
        return "it waits for a disk or a network folder (state D)"
    return f"its state is {state}" if state else ""


def _state(pid: int, proc: Path) -> str:
    # The name of the program, in brackets, may have brackets and blanks of its own.
    return _text(proc / str(pid) / "stat").rpartition(")")[2].strip()[:1]


def _anonymous(pid: int, proc: Path) -> int:
    amounts = (
        line.split()[1]
        for line in _text(proc / str(pid) / "status").splitlines()
        if line.startswith(("RssAnon:", "VmSwap:"))
    )
    return sum(map(int, amounts)) << 10


def _names(folder: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return os.listdir(folder)
    return []


def _own_cgroups(proc: Path, cgroups: Path) -> Iterator[Path]:
    """The cgroup that this process is in, and those around it."""
    for line in _text(proc / "self" / "cgroup").splitlines():
        if line.startswith("0::"):
            inner = Path(line[3:].lstrip("/"))
            for each in (inner, *inner.parents):
                yield cgroups / each


def _text(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text().strip()
    return ""
