"""Where shared services are found, and who may start one.

    client:  connect ─▶ there is one
                    └▶ lock the folder, connect again ─▶ there is one by now
                                                     └▶ bind, listen, start a service with that socket, unlock

A socket that can be connected to therefore has a service, or one that is starting, and whoever connects in between
waits in its backlog. What a killed service left refuses connections, and is replaced. Sockets are named after the
protocol that is spoken there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
import stat
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from headstart import wire
from headstart.errors import ServiceError, UsageError
from headstart.system import machine
from headstart.system.folders import runtime_dir
from headstart.system.locks import locked_folder
from headstart.system.sockets import BACKLOG, address, credentials

RUN_VARIABLE = "HEADSTART_RUN"  # what `headstart run` tells the program's processes
_CONNECT_TIMEOUT = 10.0  # seconds; only a service that does not accept makes anybody wait
_AVOIDED = 60.0  # seconds for which a service that did not answer is left alone
_NAME = re.compile(r"(?P<whose>shared|job-[0-9a-f]+)-p(?P<protocol>\d+)\.sock")


def user_socket() -> Path:
    """Of the service that all of this user's programs may share.

    Raises:
        ServiceError: there is no runtime folder.
    """
    return runtime_dir() / f"shared-p{wire.PROTOCOL}.sock"


def job_socket(job: str) -> Path:
    """Of the service that the ranks of one job share. Raises as `user_socket` does."""
    return runtime_dir() / f"job-{hashlib.sha256(job.encode()).hexdigest()[:12]}-p{wire.PROTOCOL}.sock"


def sockets() -> list[Path]:
    """Of all services of this user that speak our protocol, dead ones included, the user's own first."""
    found = [path for path in runtime_dir().glob("*.sock") if _protocol_of(path) == wire.PROTOCOL]
    return sorted(found, key=lambda path: (path != user_socket(), path))


def job_on_this_host(variables: Mapping[str, str]) -> str | None:
    """What names the job that this process belongs to, if others of it may be on this host; else None.

    A job is all of one `headstart run`, children included; or the ranks of torchrun or of a SLURM step.
    """
    if (run := variables.get(RUN_VARIABLE)) is not None:
        return f"headstart run {run}"  # which names the process that the command became
    if "TORCHELASTIC_RUN_ID" in variables and _number(variables.get("LOCAL_WORLD_SIZE", "")) > 1:
        # The id is "none" unless the user chose one; the rendezvous tells jobs of one host apart.
        names = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")
        return "torchrun " + " ".join(variables.get(name, "") for name in names)
    if "SLURM_JOB_ID" in variables and "SLURM_STEP_ID" in variables and _slurm_tasks(variables) > 1:
        return f"slurm {variables['SLURM_JOB_ID']}.{variables['SLURM_STEP_ID']}"
    return None


def connect(path: Path) -> socket.socket | None:
    """A socket to the service at `path`; None if there is none.

    Raises:
        ServiceError: it is another user's, or it accepts nobody, or did not answer this process a short while ago.
    """
    sock = socket.socket(socket.AF_UNIX)
    # A non-blocking connect would fail at once where the backlog is full.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(_CONNECT_TIMEOUT), 0))
    try:
        with address(path) as where:
            sock.connect(where)
        pid, uid = credentials(sock)
        if uid != os.getuid():
            raise ServiceError(f"the service at {path} belongs to another user (uid {uid}) and is not used")
        if why := _why_avoided(pid):
            raise ServiceError(f"the service at {path} {why}")
        return sock
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        sock.close()
        return None
    except OSError as error:
        sock.close()
        raise ServiceError(f"the service at {path} cannot be reached: {error.strerror or error}") from error
    except ServiceError:
        sock.close()
        raise


def avoid(pid: int) -> None:
    """Leave the service of process `pid` alone while it is stopped; if it is not, for a while."""
    _stuck[pid] = None if machine.stopped(pid) else time.monotonic()


def silence(pid: int) -> str:
    """Who does not answer, and why, as the end of a sentence."""
    why = machine.condition(pid) if pid else ""
    who = f"(process {pid}) does not answer" if pid else "does not answer"
    return f"{who}: {why}" if why else who


def _why_avoided(pid: int) -> str:
    """Why a service is not joined just now, as the end of a sentence; empty if it may be."""
    if pid in _stuck:
        since = _stuck[pid]
        if machine.stopped(pid):
            return silence(pid)
        if since is not None and time.monotonic() < since + _AVOIDED:
            return f"(process {pid}) did not answer a short while ago, and is not asked again for {_AVOIDED:.0f} s"
        del _stuck[pid]
    return ""


@contextlib.contextmanager
def place_for_a_service(path: Path) -> Iterator[socket.socket | None]:
    """A socket that listens at `path`, for a service that is to be started before this ends.

    None if somebody has started one meanwhile. The listening socket is closed at the end: the service has its own copy.

    Raises:
        ServiceError: nothing can be made there.
        UsageError: something else than a socket is there.
    """
    try:
        with locked_folder(path.parent):
            other = connect(path)
            if other is not None:
                other.close()
                yield None
                return
            check_place(path)
            path.unlink(missing_ok=True)
            with socket.socket(socket.AF_UNIX) as listener, _starting(listener):
                with address(path) as where:
                    listener.bind(where)
                path.chmod(0o600)
                listener.listen(BACKLOG)
                _supersede_older(path)
                try:
                    yield listener
                except BaseException:
                    path.unlink(missing_ok=True)
                    raise
    except OSError as error:
        raise ServiceError(f"no service can listen at {path}: {error.strerror or error}") from error


def check_place(path: Path) -> None:
    """Find out whether a service may listen at `path`: what is not a socket is not removed.

    Raises:
        UsageError: a file, a folder or a link has that name.
    """
    with contextlib.suppress(OSError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise UsageError(
                f"no service can listen at {path}: there is something else than a socket, which is not replaced; "
                "remove it, or set HEADSTART_SERVICE to another path"
            )


def _supersede_older(path: Path) -> None:
    """Ask what older versions have left running in our place to go, at once or after their last clients."""
    ours = _NAME.fullmatch(path.name)
    for other in path.parent.glob("*.sock") if ours else ():
        theirs = _NAME.fullmatch(other.name)
        if ours and theirs and theirs["whose"] == ours["whose"] and int(theirs["protocol"]) < int(ours["protocol"]):
            with contextlib.suppress(ServiceError, OSError):
                sock = connect(other)
                if sock is not None:
                    with sock:
                        sock.sendall(wire.frame(wire.Supersede(wire.PROTOCOL)))


def _protocol_of(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    return int(match["protocol"]) if match else -1


def _slurm_tasks(variables: Mapping[str, str]) -> int:
    """Tasks of this step on this node: `"2(x3),1"` means two on each of three nodes and one on the fourth."""
    node = _number(variables.get("SLURM_NODEID", "0"))
    text = variables.get("SLURM_STEP_TASKS_PER_NODE") or variables.get("SLURM_TASKS_PER_NODE", "")
    for tasks, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        node -= int(times or 1)
        if node < 0:
            return int(tasks)
    return 1


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0


_stuck: dict[int, float | None] = {}  # processes of services that did not answer; since when, unless it was stopped

# A fork of this process while it starts a service would keep the listening socket open for good.
_listeners: set[socket.socket] = set()


@contextlib.contextmanager
def _starting(listener: socket.socket) -> Iterator[None]:
    _listeners.add(listener)
    try:
        yield
    finally:
        _listeners.discard(listener)


def _after_fork_in_child() -> None:
    for listener in list(_listeners):
        listener.close()


os.register_at_fork(after_in_child=_after_fork_in_child)
