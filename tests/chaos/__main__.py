"""`python -m chaos`: see `chaos/__init__.py`."""

from __future__ import annotations

import argparse
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from chaos.driver import perform
from chaos.stores import KINDS
from chaos.world import World

_DISK_SIZE = 24  # MiB that stay free for a while on the disk that is filled; the rest of the machine is not to notice
_GROWTH = 0.25  # MiB that a run keeps in its cache folder each second, three times what was measured
_MEMORY_SIZE = 16  # MiB of the memory in which workers have their folders
_MOUNT = (
    'mount -t tmpfs -o size="$1" none "$2" && '
    f'mount -t tmpfs -o mode=0700,size={_MEMORY_SIZE}m none "$3" && '
    'mount -t tmpfs -o mode=1777,size=64m none /dev/shm && shift 3 && exec "$@"'
)


def main() -> int:
    """Run, print the table, and return how many problems there were, at most 100."""
    parser = argparse.ArgumentParser(prog="python -m chaos", description="Break things while kernels compile.")
    parser.add_argument("--seed", type=int, default=None, help="of all that is random; default: another each time")
    parser.add_argument("--seconds", type=float, default=60.0, help="in which rounds are begun")
    parser.add_argument("--stores", nargs="*", choices=KINDS, default=KINDS, help="that hosts share; default: all")
    parser.add_argument("--farm", action="store_true", help="a Ray cluster compiles as well; then no disk is filled")
    parser.add_argument("--disk", type=Path, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--memory", type=Path, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed
    if arguments.folder is None:
        with tempfile.TemporaryDirectory(prefix="headstart-chaos-") as folder:
            return _within(Path(folder), seed, arguments.seconds, arguments.stores, lends=arguments.farm)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a full backlog takes thousands
    print(f"chaos: seed {seed}, {arguments.seconds:g} s", flush=True)
    began = time.monotonic()
    world = World(arguments.folder, arguments.disk, arguments.memory, seed)
    run, table = perform(world, arguments.stores, arguments.seconds, seed, lends=arguments.farm)
    print(table)
    for problem in run.problems:
        print(f"PROBLEM: {problem}")
    print(f"chaos: {time.monotonic() - began:.1f} s")
    return min(100, len(run.problems))


def _within(folder: Path, seed: int, seconds: float, stores: list[str], *, lends: bool) -> int:
    """The same in a process with a small disk of its own, where this system lets its users mount one.

    Not with a farm: Ray needs more memory in /dev/shm than such a run has.
    """
    disk, memory, inside = folder / "disk", folder / "memory", folder / "run"
    for each in (disk, memory, inside):
        each.mkdir()
    size = f"{_DISK_SIZE + int(seconds * _GROWTH)}m"
    again = [sys.executable, "-m", "chaos", "--seed", str(seed), "--seconds", str(seconds), "--folder", str(inside)]
    again += ["--stores", *stores]
    if lends:
        return subprocess.run([*again, "--farm"], env=os.environ).returncode
    mounted = ["unshare", "--map-root-user", "--mount", "sh", "-c", _MOUNT, "sh", size, str(disk), str(memory)]
    try:
        allowed = subprocess.run([*mounted, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        print("chaos: no disk can be mounted here, so none will be full")
        return subprocess.run(again, env=os.environ).returncode
    return subprocess.run([*mounted, *again, "--disk", str(disk), "--memory", str(memory)], env=os.environ).returncode


if __name__ == "__main__":
    sys.exit(main())
