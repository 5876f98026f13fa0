"""Starting one of headstart's own processes, and seeing to its end.

A child gets its parent's module path as an argument and looks nowhere else: not in the current folder, and whatever
`PYTHONPATH`, `.pth` files and editable installs did to the parent's path holds for the child as well.

On that path the program's own folder comes first. A `queue.py` or `resource.py` there, which the program may never
import, must not be taken for the standard library's: a child imports what it is made of with the standard library
first.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from typing import IO

from headstart.system.titles import set_title

_PR_SET_PDEATHSIG = 1  # prctl(2)
# Only `sys`, which is built in, may be imported before the path is set: any other could be shadowed by a file in
# the current folder.
_STANDARD_FIRST = (
    "own = f'{sys.base_prefix}/{sys.platlibdir}/python{sys.version_info[0]}.{sys.version_info[1]}'; "
    "sys.path.sort(key=lambda folder: folder not in (own, own + '/lib-dynload')); "
)
_BOOT = (
    "import sys; path, module, argument = sys.argv[1:]; path = path.split('\\n'); sys.path[:] = path; "
    f"{_STANDARD_FIRST} import importlib; main = importlib.import_module(module).main; "
    "sys.path[:] = path; main(argument)"
)

# Variables that would make a child wait for a terminal, speak where nobody listens, or open the GPU.
_UNWANTED = ("PYTHONINSPECT", "PYTHONSTARTUP", "PYTHONPROFILEIMPORTTIME", "PYTHONVERBOSE", "TRITON_INTERPRET")
# What makes the program's own processes use headstart.
_RECURSIVE = ("HEADSTART_RUN",)
# What a child is told otherwise, if it is to know it: there may be passwords in it, and workers run the user's sources.
_SECRET = ("HEADSTART_REMOTE",)
_NO_GPU = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "", "ROCR_VISIBLE_DEVICES": ""}


def prefer_standard_library() -> None:
    """For a process that never runs the program's code: look for modules in the standard library first, for good."""
    exec(_STANDARD_FIRST, {"sys": sys})  # noqa: S102 - a constant of this module


def begin_helper(argument: str, title: str) -> socket.socket:
    """The socket to the service, in a helper process that sees by its end that the service is gone.

    Args:
        argument: the fd of it.
        title: what ps shows of the process.
    """
    prefer_standard_library()
    set_title(title)
    continue_without_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of `headstart serve`'s terminal: the service says when it ends
    logging.basicConfig(stream=sys.stderr, format="%(name)s: %(message)s")
    sock = socket.socket(fileno=int(argument))
    sock.set_inheritable(False)
    return sock


def last_words_file() -> IO[bytes]:
    """An unnamed file that a process may print to: it is there to be quoted if that dies, and leaves nothing behind.

    Raises:
        OSError: there is none to be had.
    """
    try:
        return open(os.memfd_create("headstart"), "w+b")
    except OSError:  # it is refused; a full disk does not matter to it
        return tempfile.TemporaryFile(prefix="headstart-")


def spawn(
    python: str,
    sys_path: Iterable[str],
    module: str,
    argument: object,
    *,
    pass_fds: Iterable[int] = (),
    unset: Iterable[str] = (),
    set_to: Mapping[str, str] = {},
    inherit: Mapping[str, str] = os.environ,
    stderr: IO[bytes] | int | None = None,
    new_session: bool = False,
) -> subprocess.Popen[bytes]:
    """Start `module.main(argument)` in a new Python process, its standard input and output closed.

    Args:
        python: the interpreter.
        sys_path: its module path.
        module: dotted name of a module with a function `main(str)`.
        argument: passed as text.
        pass_fds: file descriptors that stay open, under the same numbers.
        unset: environment variables that it does not inherit.
        set_to: environment variables that it gets instead, or besides.
        inherit: environment variables that it inherits; by default this process's.
        stderr: as for `subprocess.Popen`; None: inherited.
        new_session: whether it leaves this process's session and process group, and so its terminal's Ctrl-C.

    Raises:
        OSError: the process cannot be started.
    """
    env = {name: value for name, value in inherit.items() if name not in {*_UNWANTED, *_RECURSIVE, *_SECRET, *unset}}
    return subprocess.Popen(
        [python, "-c", _BOOT, "\n".join(sys_path), module, str(argument)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        env={**env, **_NO_GPU, **set_to},
        pass_fds=tuple(pass_fds),
        start_new_session=new_session,
        cwd="/",  # so that no folder of the user's is kept busy
    )


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent, which must be process `parent`, dies."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)  # it died before the kernel was told


def continue_without_parent() -> None:
    """Have the kernel continue this process when its parent dies, if it was stopped: it is to end by itself then."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGCONT, 0, 0, 0)


def reap_group(pid: int) -> int:
    """Kill the process group that our child `pid` leads, then reap the child.

    Returns:
        Its exit code, or minus the signal that ended it.

    Raises:
        ChildProcessError: it is no child of ours; its number may be anybody's.
    """
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)
