"""Running a program as a child of the command, so that its end can be judged.

    terminal ── Ctrl-C ─▶ both, as one group of processes: the command takes no notice
    kill PID ── SIGTERM, … ─▶ the command ─▶ the child
    kill -9 PID ─▶ the command; the kernel kills the child too
    the child ends ─▶ Ended ─▶ the command ends in the same way, unless it has reason not to

`headstart run` becomes the program wherever it can. It cannot where it has to say something about the end that the
program itself, which may be killed or leave by `os._exit`, need not come to say.

A signal that somebody sends to the whole group of processes, as `timeout` and `kill %1` do, reaches the program twice.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import NamedTuple

from headstart.system.spawn import die_with_parent

# All but those that cannot be caught, that stop and continue, and that tell of a process's own doing.
_ITS_OWN = (
    *("SIGKILL", "SIGSTOP", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGCONT", "SIGCHLD", "SIGPIPE", "SIGWINCH", "SIGURG"),
    *("SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGTRAP", "SIGSYS", "SIGABRT"),
)
_PASSED_ON = signal.valid_signals() - {getattr(signal, name) for name in _ITS_OWN}
_FROM_TERMINAL = 128  # SI_KERNEL: nobody's `kill`
_CANNOT_START = 127  # as shells report it


class Ended(NamedTuple):
    """How a process ended.

    Attributes:
        pid: its number, which may be another's by now.
        code: its exit code; of one that a signal ended, 0.
        signal: the signal, or 0.
    """

    pid: int
    code: int
    signal: int


def supervise(start: Callable[[], None]) -> Ended:
    """Call `start` in a child, which becomes the program there, and wait until that has ended.

    Signals are passed on, but for those that the terminal sends to both.

    Args:
        start: returns, or raises `OSError`, only if the program cannot be started.
    """
    watched = {*_PASSED_ON, signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    # Inherited as ignored, as some launchers have it, the kernel would reap the child and tell nobody.
    inherited = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    parent = os.getpid()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    pid = os.fork()
    if pid == 0:
        try:
            die_with_parent(parent)
            signal.signal(signal.SIGCHLD, inherited)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            start()
        except OSError as error:
            os.write(2, f"headstart: cannot start {sys.executable}: {error.strerror}\n".encode())
        except BaseException as error:  # noqa: BLE001 - this is a copy of the command, which must not go on
            os.write(2, f"headstart: cannot start {sys.executable}: {error!r}\n".encode())
        os._exit(_CANNOT_START)
    try:
        while True:
            received = signal.sigwaitinfo(watched)
            if received.si_signo != signal.SIGCHLD:
                if received.si_code != _FROM_TERMINAL:
                    os.kill(pid, received.si_signo)
            elif (ended := _reap(pid)) is not None:
                return ended
    finally:
        signal.signal(signal.SIGCHLD, inherited)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _reap(pid: int) -> Ended | None:
    """Whether the child has ended; collects what else has, where this is the first process of a container."""
    while True:
        found, status = os.waitpid(-1, os.WNOHANG)
        if found == pid:
            code = os.waitstatus_to_exitcode(status)
            return Ended(pid, max(code, 0), max(-code, 0))
        if found == 0:
            return None


def end_as(ended: Ended) -> int:
    """The exit code for the command; does not return where a signal ended the child."""
    if ended.signal:
        # The program has left a core file, if anybody wants one: this process's must not take its place.
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        with contextlib.suppress(OSError):  # SIGKILL, for which nothing can be set
            signal.signal(ended.signal, signal.SIG_DFL)
        os.kill(os.getpid(), ended.signal)
        return 128 + ended.signal  # one that does not end a process
    return ended.code
