"""Which Ray cluster this host, or this job, belongs to: what `HEADSTART_FARM=ray` means.

Ray's own answer (`address="auto"`) takes the command line of anything called raylet, whoever runs it, and a file in a
folder that all users share, whoever wrote it. The bridge is a driver, and runs what the cluster sends it: so an address
counts here only if it is this user's word, or root's.

    RAY_ADDRESS                      a Ray job has it in its environment
    this user's raylets              their `--gcs-address`
    /tmp/ray/ray_current_cluster     what `ray start` wrote, as this user or as root
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from headstart.farm.attending import FarmError

OTHERWISE = "HEADSTART_FARM=head:6379 names one"
_FLAG = b"--gcs-address="
_ADDRESS = re.compile(r"[A-Za-z0-9.:\[\]-]{1,255}:[0-9]{1,5}")
_MOST = 1 << 10  # bytes of the file


def find(environment: Mapping[str, str], processes: Path = Path("/proc")) -> str:
    """The address of the cluster, as `ray.init` takes it.

    Args:
        environment: of this process.
        processes: what the kernel says of all.

    Raises:
        FarmError: there is none, or it is not certain which.
    """
    named = environment.get("RAY_ADDRESS", "").strip()
    if named not in ("", "auto", "local"):
        return named
    running = set(_of_raylets(processes))
    if len(running) == 1:
        return running.pop()
    written, why_not = _written(_file(environment))
    if running and written not in running:
        raise FarmError(f"this user has raylets of several clusters here ({', '.join(sorted(running))}): {OTHERWISE}")
    if written:
        return written
    raise FarmError(f"this user has no Ray cluster on this host{why_not}: {OTHERWISE}")


def _of_raylets(processes: Path) -> Iterator[str]:
    """What this user's raylets were started with.

    The program's file is looked at, and not the name that it was started by: a program that becomes root's as it starts
    (setuid) has a command line of anybody's. So of another user's processes none counts, root's neither: whose file
    they run may not be looked at.
    """
    for folder in processes.iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            if os.path.basename(os.readlink(folder / "exe")).removesuffix(" (deleted)") != "raylet":
                continue
            if set(_uids(folder)) != {os.getuid()}:
                continue
            arguments = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended, or is not ours
        for each in arguments:
            address = each[len(_FLAG) :].decode("ascii", "replace")
            if each.startswith(_FLAG) and _ADDRESS.fullmatch(address):
                yield address


def _uids(folder: Path) -> list[int]:
    """Real, effective, saved and of the file system. A process that hides itself has a folder of root's, whose ever."""
    for line in (folder / "status").read_text(errors="replace").splitlines():
        if line.startswith("Uid:"):
            return [int(each) for each in line.split()[1:]]
    return []


def _file(environment: Mapping[str, str]) -> Path:
    """As Ray finds it (`ray/_common/utils.py`, `get_ray_address_file`)."""
    folder = environment.get("RAY_TMPDIR", environment.get("TMPDIR", "/tmp"))
    return Path(folder, "ray", "ray_current_cluster")


def _written(file: Path) -> tuple[str, str]:
    """The address in a file, and else why there is none, for people."""
    try:
        fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return "", ""
    except OSError as error:
        return "", f" ({file}: {error.strerror})"
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_uid not in (0, os.getuid()) or found.st_mode & 0o022:
            return "", f" ({file} is, or may be, somebody else's word)"
        text = os.read(fd, _MOST).decode("ascii", "replace").strip()
    finally:
        os.close(fd)
    return (text, "") if _ADDRESS.fullmatch(text) else ("", f" ({file} holds no address)")
