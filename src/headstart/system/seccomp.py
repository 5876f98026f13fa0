"""Which calls into the kernel a confined process may make."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable

from headstart.system.kernel import call
from headstart.system.syscalls import ARCHITECTURES, LAST, NUMBERS, architecture

# A program of the classic packet filter (linux/filter.h) looks at `struct seccomp_data` (linux/seccomp.h).
_LOAD, _AND, _EQUAL, _ABOVE, _RETURN = 0x20, 0x54, 0x15, 0x25, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16
_SECCOMP_SET_MODE_FILTER, _SECCOMP_GET_ACTION_AVAIL = 1, 2
_KILL_PROCESS, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Nobody needs these for compiling. Grouped by what a process could do to the world outside with them.
_REFUSED_CALLS = _words(
    """
    socket socketpair bind connect listen accept accept4 io_uring_setup io_uring_enter io_uring_register
    kill tkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_send_signal pidfd_open pidfd_getfd setsid setpgid
    ptrace process_vm_readv process_vm_writev process_madvise process_mrelease kcmp perf_event_open userfaultfd
    setpriority ioprio_set migrate_pages move_pages
    shmget shmat shmctl shmdt semget semop semtimedop semctl msgget msgsnd msgrcv msgctl
    mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr add_key request_key keyctl
    chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat utime utimes futimesat utimensat truncate mknod mknodat
    setxattr lsetxattr fsetxattr setxattrat removexattr lremovexattr fremovexattr removexattrat file_setattr
    inotify_init inotify_init1 inotify_add_watch fanotify_init fanotify_mark name_to_handle_at open_by_handle_at
    mount umount2 pivot_root chroot open_tree open_tree_attr move_mount fsopen fsconfig fsmount fspick mount_setattr
    unshare setns memfd_create memfd_secret execveat bpf personality modify_ldt iopl ioperm
    acct quotactl quotactl_fd swapon swapoff reboot kexec_load kexec_file_load init_module finit_module delete_module
    settimeofday clock_settime adjtimex clock_adjtime sethostname setdomainname syslog vhangup lookup_dcookie
    """
)

# Of itself a process may ask for these; 0 stands for itself.
_OF_ITSELF_ONLY = ("prlimit64", "sched_setaffinity", "sched_setscheduler", "sched_setparam", "sched_setattr")

_CLONE_NEW_NAMESPACE_OR_PARENT = 0x7E028000

# Calls of many meanings: which argument says what is meant, and what is refused there.
_REFUSED_COMMANDS = {
    "fcntl": (1, (8, 10, 15, 1024, 1026)),  # F_SETOWN F_SETSIG F_SETOWN_EX F_SETLEASE F_NOTIFY
    "ioctl": (1, (0x8901, 0x8902, 0x5412, 0x541C)),  # FIOSETOWN SIOCSPGRP TIOCSTI TIOCLINUX
}


class _Filter:
    def __init__(self) -> None:
        self._program: list[bytes] = []

    def add(self, code: int, value: int, if_true: int = 0, if_false: int = 0) -> None:
        self._program.append(struct.pack("HBBI", code, if_true, if_false, value))

    def answer(self, test: int, value: int, action: int) -> None:
        """If what was loaded passes the test, this is the answer."""
        self.add(test, value, 0, 1)
        self.add(_RETURN, action)

    def look_at(self, argument: int) -> None:
        """Load the lower half of an argument, which is all that those that are looked at have."""
        self.add(_LOAD, _ARGUMENTS_AT + 8 * argument)

    def forcall(self, number: int, rule: _Filter) -> None:
        """If the call, which must be loaded, is this one, go through `rule`, which ends or loads it anew."""
        self.add(_EQUAL, number, 0, len(rule._program))
        self._program += rule._program

    def packed(self) -> tuple[bytes, int]:
        return b"".join(self._program), len(self._program)


def _filter() -> _Filter:
    numbers = NUMBERS[architecture()]
    refused = _ERRNO | errno.EPERM
    program = _Filter()
    program.add(_LOAD, _ARCHITECTURE_AT)
    program.add(_EQUAL, ARCHITECTURES[architecture()], 1, 0)
    program.add(_RETURN, _KILL_PROCESS)  # another architecture's calls, with numbers of their own
    program.add(_LOAD, _NUMBER_AT)
    # What nobody has looked at yet, and the numbers of x32, which begin at 2**30.
    program.answer(_ABOVE, LAST, _ERRNO | errno.ENOSYS)
    program.answer(_EQUAL, numbers["clone3"], _ERRNO | errno.ENOSYS)  # its flags lie in memory; libc then uses clone
    for name in _REFUSED_CALLS:
        if name in numbers:
            program.answer(_EQUAL, numbers[name], refused)
    for name in _OF_ITSELF_ONLY:
        program.forcall(numbers[name], _only((0, os.getpid()), refused))
    program.forcall(numbers["tgkill"], _only((os.getpid(),), refused))  # abort() is a signal to oneself
    rule = _Filter()
    rule.look_at(0)
    rule.add(_AND, _CLONE_NEW_NAMESPACE_OR_PARENT)
    rule.add(_EQUAL, 0, 1, 0)
    rule.add(_RETURN, refused)
    rule.add(_LOAD, _NUMBER_AT)
    program.forcall(numbers["clone"], rule)
    for name, (argument, commands) in _REFUSED_COMMANDS.items():
        rule = _Filter()
        rule.look_at(argument)
        for command in commands:
            rule.answer(_EQUAL, command, refused)
        rule.add(_LOAD, _NUMBER_AT)
        program.forcall(numbers[name], rule)
    program.add(_RETURN, _ALLOW)
    return program


def _only(processes: Iterable[int], refused: int) -> _Filter:
    """Lets a call pass whose first argument is one of these."""
    rule = _Filter()
    rule.look_at(0)
    for process in processes:
        rule.answer(_EQUAL, process, _ALLOW)
    rule.add(_RETURN, refused)
    return rule


def check_available() -> None:
    """Raises `OSError`: the kernel offers no filters."""
    action = ctypes.c_uint32(_KILL_PROCESS)
    call("seccomp", _SECCOMP_GET_ACTION_AVAIL, 0, ctypes.byref(action))


def restrict_calls() -> None:
    instructions, length = _filter().packed()
    buffer = ctypes.create_string_buffer(instructions, len(instructions))
    program = struct.pack("HxxxxxxP", length, ctypes.addressof(buffer))
    call("seccomp", _SECCOMP_SET_MODE_FILTER, 0, program)
