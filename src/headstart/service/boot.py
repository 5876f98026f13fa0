"""Starting one of headstart's own processes.

A child gets its parent's module path as an argument and looks nowhere else: not in the current folder, and whatever
`PYTHONPATH`, `.pth` files and editable installs did to the parent's path holds for the child as well.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from typing import IO

# Only `sys`, which is built in, may be imported before the path is set: any other could be shadowed by a file in
# the current folder.
_BOOT = (
    "import sys; path, module, argument = sys.argv[1:]; sys.path[:] = path.split('\\n'); "
    "import importlib; importlib.import_module(module).main(argument)"
)

# Variables that would make a child wait for a terminal, speak where nobody listens, or open the GPU.
_UNWANTED = ("PYTHONINSPECT", "PYTHONSTARTUP", "PYTHONPROFILEIMPORTTIME", "PYTHONVERBOSE", "TRITON_INTERPRET")
# What makes the program's own processes use headstart.
_RECURSIVE = ("HEADSTART_RUN",)
_NO_GPU = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "", "ROCR_VISIBLE_DEVICES": ""}


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
    env = {name: value for name, value in inherit.items() if name not in {*_UNWANTED, *_RECURSIVE, *unset}}
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
