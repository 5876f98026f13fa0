"""Running a program as a child that nobody can tell from the command itself, so that its end can be judged.

    terminal ── Ctrl-C ─▶ both, as one group of processes: the command takes no notice
    kill PID ── SIGTERM, … ─▶ the command ─▶ the child
    the child ends ─▶ Ended ─▶ the command ends in the same way, unless it has reason not to

`headstart run` becomes the program wherever it can. It cannot where it has to say something about the end that the
program itself, which may be killed or leave by `os._exit`, need not come to say.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from typing import NamedTuple

_PASSED_ON = {signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}
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
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    pid = os.fork()
    if pid == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        try:
            start()
        except OSError as error:
            os.write(2, f"headstart: cannot start {sys.executable}: {error.strerror}\n".encode())
        finally:
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
        with contextlib.suppress(OSError):  # SIGKILL, for which nothing can be set
            signal.signal(ended.signal, signal.SIG_DFL)
        os.kill(os.getpid(), ended.signal)
        return 128 + ended.signal  # one that does not end a process
    return ended.code
