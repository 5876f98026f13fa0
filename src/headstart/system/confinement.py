"""What a worker may do that compiles what nobody vouches for. It gives up the rest itself, before it is told anything.

    Landlock   files: it reads the toolchain and system libraries, writes files in its own folder, executes the
               toolchain's tools; signals and abstract sockets: none outside (Linux 6.12)
    seccomp    calls: no socket, no signal, trace or limit for another process, no key, mount or namespace, no change of
               a file's mode, owner or times (which Landlock lets pass), nothing newer than the table (`syscalls.py`)
    rlimits    processor time, memory, size of a file, processes, open files
    besides    no descriptor but its own, no capability, not the user's environment (`ENVIRONMENT`)

Landlock and not namespaces or bubblewrap: it asks for no rights that containers and hardened kernels withhold, starts
no process, and costs milliseconds in a fork. The tools inherit all of it. Nothing of it can be undone.

Where one of the two is missing nothing is confined, and `unavailable` says so.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import struct
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from headstart.system.kernel import call, error_of, libc, prctl
from headstart.system.seccomp import check_available, restrict_calls
from headstart.system.syscalls import ARCHITECTURES, architecture

CPU_SECONDS = 600  # of each process
ADDRESS_SPACE = 8 << 30  # bytes of each process, on top of what it had mapped before
FILE_SIZE = 1 << 30  # bytes
PROCESSES = 64  # of this user, besides those that there were
OPEN_FILES = 256


# What is left to a confined process of the user's environment: where to find libraries, and how to read text.
ENVIRONMENT = frozenset({"PATH", "LD_LIBRARY_PATH", "PYTHONHOME", "LANG", "LC_ALL", "LC_CTYPE"})

_TOOLS = ("ptxas", "ptxas-blackwell", "ld.lld")
_PLUGGED_IN = ("backends/*", "language/extra/*")
_EXECUTED = ("TRITON_PTXAS_PATH", "TRITON_PTXAS_BLACKWELL_PATH")  # of the variables that name tools
_SYSTEM_LIBRARIES = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/local/lib")
_SYSTEM_FILES = ("/etc/ld.so.cache", "/dev/urandom", "/dev/zero", "/proc/cpuinfo", "/sys/devices/system/cpu/online")

# linux/prctl.h, linux/securebits.h, linux/capability.h
_PR_SET_SECUREBITS, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 28, 24, 38, 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_NO_ROOT_LOCKED = 0b11
_CAPABILITY_VERSION_3 = 0x20080522

# linux/landlock.h
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_FILE, _MAKE_REG, _TRUNCATE = (
    1 << bit for bit in (0, 1, 2, 3, 5, 8, 14)
)
_FILES_BY_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
_BIND_OR_CONNECT_TCP = 0b11  # ABI 4
_SCOPE_SOCKETS_AND_SIGNALS = 0b11  # ABI 6
_RULE_PATH_BENEATH = 1


class Unconfined(Exception):
    """This process could not be confined; the text says why."""


def mechanism() -> str:
    """What confines here, for people."""
    return f"Landlock (ABI {_landlock_abi()}) and seccomp"


def unavailable() -> str:
    """Why nothing can be confined on this machine, in half a line; empty if it can."""
    machine = architecture()
    if machine not in ARCHITECTURES:
        return f"headstart knows no system calls of {machine}"
    try:
        if _landlock_abi() < 1:
            return "this kernel, or the container around, offers no Landlock (Linux 5.13)"
        check_available()
    except OSError as error:
        return f"this kernel, or the container around, offers no seccomp filters: {error.strerror}"
    return ""


def minimal_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What of `environ` a confined process inherits."""
    return {name: value for name, value in environ.items() if name in ENVIRONMENT}


def confine(folder: str, packages: Iterable[str], descriptors: Iterable[int], variables: Iterable[str] = ()) -> None:
    """Confine this process, which must have one thread, and all that it will start, for good.

    Args:
        folder: where it may make, write and remove files.
        packages: folders of the Python packages that it may read, Triton's included.
        descriptors: those that stay open, besides standard input, output and error.
        variables: of the environment, that name tools and libraries of this machine that Triton is told of.

    Raises:
        Unconfined: something is missing. Part of it may be in force.
    """
    why = unavailable()
    if why:
        raise Unconfined(why)
    try:
        _close_all_but({0, 1, 2, *descriptors})
        _limit()
        _drop_capabilities()
        prctl(_PR_SET_NO_NEW_PRIVS, 1)
        _restrict_files(folder, list(packages), _named_files(variables))
        restrict_calls()
    except OSError as error:
        raise Unconfined(f"{error.filename or 'the kernel'}: {error.strerror}") from error


# Descriptors, limits, capabilities


def _close_all_but(kept: set[int]) -> None:
    low = 0
    for fd in [*sorted(kept), 1 << 20]:
        if low < fd:  # of an empty range Python closes everything from there on
            os.closerange(low, fd)
        low = fd + 1


def _limit() -> None:
    _set_limit(resource.RLIMIT_CPU, CPU_SECONDS)
    _set_limit(resource.RLIMIT_AS, _mapped() + ADDRESS_SPACE)
    _set_limit(resource.RLIMIT_FSIZE, FILE_SIZE)
    _set_limit(resource.RLIMIT_NPROC, _tasks_of_user() + PROCESSES)
    _set_limit(resource.RLIMIT_NOFILE, OPEN_FILES)
    _set_limit(resource.RLIMIT_CORE, 0)


def _set_limit(what: int, value: int) -> None:
    _, most = resource.getrlimit(what)
    if most != resource.RLIM_INFINITY:
        value = min(value, most)
    resource.setrlimit(what, (value, value))


def _mapped() -> int:
    """Bytes of address space that this process has mapped."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def _tasks_of_user() -> int:
    """How many processes and threads the kernel counts for this user, about."""
    me, count = os.getuid(), 0
    for each in os.listdir("/proc"):
        if each.isdecimal():
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{each}").st_uid == me:
                    count += os.stat(f"/proc/{each}/task").st_nlink - 2
    return count


def _drop_capabilities() -> None:
    """Root has them, and in a container of its own whoever is called root there."""
    with contextlib.suppress(OSError):  # who may not do these has none
        prctl(_PR_SET_SECUREBITS, _NO_ROOT_LOCKED)
        for capability in range(64):
            prctl(_PR_CAPBSET_DROP, capability)
    with contextlib.suppress(OSError):
        prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    none = bytes(24)
    if libc().capset(header, none):
        raise error_of("capset")


# Landlock


def _restrict_files(folder: str, packages: list[str], named: list[str]) -> None:
    abi = _landlock_abi()
    handled = _FILES_BY_ABI[max(known for known in _FILES_BY_ABI if known <= abi)]
    attributes = struct.pack("Q", handled)
    if abi >= 4:
        attributes += struct.pack("Q", _BIND_OR_CONNECT_TCP)
    if abi >= 6:
        attributes += struct.pack("Q", _SCOPE_SOCKETS_AND_SIGNALS)
    ruleset = call("landlock_create_ruleset", attributes, len(attributes), 0)
    try:
        for path, rights in _rules(folder, packages, named):
            _allow(ruleset, path, rights & handled)
        call("landlock_restrict_self", ruleset, 0)
    finally:
        os.close(ruleset)


def _rules(folder: str, packages: list[str], named: list[str]) -> Iterator[tuple[str, int]]:
    """Paths, and what may be done with each and all below it."""
    read = _READ_FILE | _READ_DIR
    yield folder, read | _WRITE_FILE | _TRUNCATE | _MAKE_REG | _REMOVE_FILE
    yield "/dev/null", _READ_FILE | _WRITE_FILE
    places = sysconfig.get_paths()
    for path in (*packages, *_linked(packages), places["stdlib"], places["platstdlib"], *_SYSTEM_LIBRARIES):
        yield path, read
    for path in (*_SYSTEM_FILES, *_mapped_files(), *named):
        yield path, _READ_FILE
    for tool in _tools(packages):
        yield tool, _READ_FILE | _EXECUTE
        loader = _loader(tool)
        if loader:
            yield loader, _READ_FILE | _EXECUTE


def _linked(packages: Iterable[str]) -> list[str]:
    """Parts of Triton that an editable install has elsewhere."""
    parts = (path for package in packages for place in _PLUGGED_IN for path in Path(package).glob(place))
    return [str(path) for path in parts if path.is_symlink()]


def _tools(packages: Iterable[str]) -> list[str]:
    found = [os.environ[name] for name in _EXECUTED if name in os.environ]
    for package in packages:
        # Where Triton keeps them, and no walk through its thousands of files for each worker.
        found += [str(path) for path in Path(package).glob("backends/*/*/*") if path.name in _TOOLS]
    return found


def _named_files(variables: Iterable[str]) -> list[str]:
    """What the variables name; `vetting` has seen to it that no request sets any."""
    named = (os.environ.get(name, "") for name in sorted(variables))
    return [part for value in named for part in value.split(os.pathsep) if part]


def _mapped_files() -> set[str]:
    """Libraries that are loaded already, wherever they lie: their like is loaded by tools."""
    maps = Path("/proc/self/maps").read_text(errors="surrogateescape")
    return {path for path in re.findall(r"(/\S.*)$", maps, re.MULTILINE) if ".so" in os.path.basename(path)}


def _loader(tool: str) -> str:
    """What the kernel executes for a dynamically linked program, as its header says; empty for others."""
    with contextlib.suppress(OSError, struct.error), open(tool, "rb") as file:
        head = file.read(64)
        if head[:5] != b"\x7fELF\x02":
            return ""
        (offset,) = struct.unpack_from("<Q", head, 32)
        size, count = struct.unpack_from("<HH", head, 54)
        for index in range(count):
            file.seek(offset + index * size)
            kind, _, start, _, _, length = struct.unpack_from("<IIQQQQ", file.read(size))
            if kind == 3:  # PT_INTERP
                file.seek(start)
                return os.fsdecode(file.read(length).rstrip(b"\0"))
    return ""


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # what is not there need not be allowed
    try:
        if not os.path.isdir(f"/proc/self/fd/{fd}"):
            rights &= _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE
        call("landlock_add_rule", ruleset, _RULE_PATH_BENEATH, struct.pack("=Qi", rights, fd), 0)
    finally:
        os.close(fd)


def _landlock_abi() -> int:
    """The version that the kernel offers; 0: none."""
    try:
        return call("landlock_create_ruleset", None, 0, 1)
    except (OSError, KeyError):
        return 0
