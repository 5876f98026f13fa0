"""`headstart doctor`: is everything there that headstart needs, and if not, what to do.

Every check looks at one thing and returns a `Check`. Neither Triton nor torch is imported: a broken install must be
reported, not crashed into.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec

from headstart.artifacts.keyring import Keyring
from headstart.cli import EXIT_FAILED, count, human_bytes
from headstart.errors import HeadstartError, ServiceError, UsageError
from headstart.model.environment import bypass_reason, fingerprint
from headstart.model.target import SHARED_MEMORY_LIMIT
from headstart.model.toolchain import Toolchain, find_toolchain
from headstart.stores import open_store
from headstart.system import machine
from headstart.system.confinement import mechanism, unavailable
from headstart.system.folders import REMEDY, cache_dir, runtime_dir
from headstart.system.private import refusal
from headstart.system.settings import Settings, patience, trusts_cache_dir
from headstart.system.variables import Mode, misspelt, mode
from headstart.worker.compiling import KNOWN_VERSIONS

LOW_SPACE = 2**30  # bytes; a few thousand large kernels
MAX_SOCKET_PATH = 107  # bytes: sockaddr_un's 108 with the NUL that ends it
LONGEST_SOCKET_NAME = "service-12345678/socket"
TOOL_TIMEOUT = 20.0  # seconds

_BACKENDS = {"nvidia": "cuda", "amd": "hip"}  # Triton's folder, and the target's prefix
_PTXAS = {"ptxas": "TRITON_PTXAS_PATH", "ptxas-blackwell": "TRITON_PTXAS_BLACKWELL_PATH"}
_SYMBOLS = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}
_COLORS = {"ok": "green", "warn": "yellow", "fail": "red"}

# What a worker's life needs of the kernel and the sandbox, tried in a process of its own. prctl 36 is
# PR_SET_CHILD_SUBREAPER, 1 is PR_SET_PDEATHSIG.
_PROCESS_TRIAL = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
for option, argument in ((36, 1), (1, 15)):
    if libc.prctl(option, argument, 0, 0, 0):
        raise SystemExit(f"prctl({option}): {os.strerror(ctypes.get_errno())}")
child = os.fork()
if child == 0:
    os._exit(0)
os.close(os.pidfd_open(child))
os.waitpid(child, 0)
"""


class Check(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one check found.

    Attributes:
        name: what was looked at.
        status: `"ok"`; `"warn"`: headstart works, but not as it could; `"fail"`: it does not work.
        found: what there is, or what is wrong.
        remedy: how to mend it; empty if all is well.
    """

    name: str
    status: str
    found: str
    remedy: str = ""


@click.command(short_help="Check what headstart needs on this machine.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Check what headstart needs on this machine, and say how to mend what is wrong. Exit code 1 if something is."""
    checks = list(examine())
    if as_json:
        click.echo(msgspec.json.encode([msgspec.to_builtins(check) for check in checks]))
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            symbol = click.style(_SYMBOLS[check.status], fg=_COLORS[check.status])
            click.echo(f"{symbol}  {check.name:{width}}  {check.found}")
            if check.remedy:
                click.echo(f"{'':{width + 8}}→ {check.remedy}")
    ctx.exit(EXIT_FAILED if any(check.status == "fail" for check in checks) else 0)


def examine() -> Iterator[Check]:
    """Every check, in the order in which the things are needed."""
    yield check_python()
    try:
        toolchain = find_toolchain()
    except ServiceError as error:
        yield _failed("triton", error)
    else:
        yield check_triton(toolchain)
        yield from check_ptxas(toolchain)
        yield check_targets(toolchain)
    yield from check_torch()
    yield check_processes()
    yield check_confinement()
    yield check_settings()
    yield check_cache_folder()
    yield check_store()
    yield from check_earlier_stores()
    yield check_runtime_folder()
    yield from check_keys()
    yield from check_environment()


def check_python() -> Check:
    """The interpreter that would run the workers."""
    return Check("python", "ok", f"{platform.python_version()}, {sys.executable or 'no sys.executable'}")


def check_triton(toolchain: Toolchain) -> Check:
    """Where Triton is, and whether headstart knows its version."""
    found = f"{toolchain.triton_version}, {toolchain.triton_dir}"
    if ".".join(toolchain.triton_version.split(".")[:2]) in KNOWN_VERSIONS:
        return Check("triton", "ok", found)
    oldest, newest = KNOWN_VERSIONS[0], KNOWN_VERSIONS[-1]
    return Check(
        "triton",
        "warn",
        f"{found}: not a version headstart is tested with",
        f"use Triton {oldest} to {newest}",
    )


def check_keys() -> Iterator[Check]:
    """What keeps bundles from being signed, or from being trusted; nothing if nothing does."""
    problems: list[str] = []
    try:
        keyring = Keyring()
        keyring.local()
        keyring.trusted(problems.append)
        if not keyring.local_file.exists() and not _can_be_made(keyring.folder):
            problems.append(f"{keyring.folder} cannot be made: bundles are written without a signature")
    except (HeadstartError, OSError) as error:
        problems.append(str(error))
    remedy = "mend that, or set HEADSTART_CONFIG_DIR to a folder that only you can write"
    yield from (Check("keys", "warn", problem, remedy) for problem in problems)


def _can_be_made(folder: Path) -> bool:
    there = next(each for each in (folder, *folder.parents) if each.exists())
    return os.access(there, os.W_OK)


def check_torch() -> Iterator[Check]:
    """Where torch is, if it is, and whether headstart's suite has run on its version."""
    from headstart.describe import facts

    torch = facts.find_torch()
    if torch is None:
        return
    found = f"{torch.version}, {torch.folder}"
    if torch.known:
        yield Check("torch", "ok", found)
    else:
        known = ", ".join(facts.KNOWN_VERSIONS)
        remedy = f"for torch.compile's kernels use one of {known}"
        yield Check("torch", "warn", f"{found}: not tested, so headstart leaves torch.compile alone", remedy)


def check_ptxas(toolchain: Toolchain) -> Iterator[Check]:
    """The assemblers that Triton calls for NVIDIA targets, and whether they run."""
    folder = Path(toolchain.triton_dir, "backends", "nvidia", "bin")
    for tool, variable in _PTXAS.items():
        configured = os.environ.get(variable)
        path = Path(configured) if configured else folder / tool
        if not configured and not path.exists():
            # Which assemblers there are differs between versions of Triton; without any, cuda targets cannot be built.
            if tool == "ptxas" and folder.parent.is_dir():
                yield Check(tool, "fail", f"{path} is missing", "reinstall Triton, or set TRITON_PTXAS_PATH")
            continue
        yield _check_tool(tool, path, f"unset {variable}" if configured else "reinstall Triton")


def _check_tool(tool: str, path: Path, remedy: str) -> Check:
    try:
        run = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=TOOL_TIMEOUT, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return Check(tool, "fail", f"{path} does not run: {error}", f"{remedy}; is its folder mounted noexec?")
    release = re.search(r"release \S+, V(\S+)", run.stdout)
    return Check(tool, "ok", f"{release[1] if release else 'unknown version'}, {path}")


def check_targets(toolchain: Toolchain) -> Check:
    """What this Triton can compile for."""
    folder = Path(toolchain.triton_dir, "backends")
    prefixes = [prefix for name, prefix in _BACKENDS.items() if (folder / name / "compiler.py").is_file()]
    if not prefixes:
        return Check("targets", "fail", f"no backend in {folder}", "reinstall Triton")
    known = [target for target in SHARED_MEMORY_LIMIT if target.partition(":")[0] in prefixes]
    return Check("targets", "ok", ", ".join(known))


def check_processes() -> Check:
    """Whether processes can be made and watched as the service does it."""
    name = "processes"
    if not sys.executable:
        return Check(name, "fail", "sys.executable is empty", "run headstart with a Python interpreter, not embedded")
    try:
        subprocess.run(
            [sys.executable, "-I", "-S", "-c", _PROCESS_TRIAL],
            capture_output=True,
            text=True,
            timeout=TOOL_TIMEOUT,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        reason = error.stderr.strip().rpartition("\n")[2] or f"exit status {error.returncode}"
        remedy = "headstart needs Linux 5.3, and a sandbox that allows fork, pidfd_open and prctl"
        return Check(name, "fail", f"a process cannot be forked and watched: {reason}", remedy)
    except (OSError, subprocess.SubprocessError) as error:
        return Check(
            name,
            "fail",
            f"no process can be started: {error}",
            "raise the process limit (ulimit -u, pids.max)",
        )
    cores = machine.allowed_cpus()
    return Check(name, "ok", f"fork, pidfd and prctl work; {count(cores, 'core')}")


def check_confinement() -> Check:
    """Whether what nobody vouches for can be compiled here."""
    name, why = "confinement", unavailable()
    if why:
        return Check(name, "warn", f"manifests are compiled with --trust only: {why}", "allow Landlock and seccomp")
    return Check(name, "ok", f"{mechanism()} confine what nobody vouches for")


def check_settings() -> Check:
    """Whether what the user set can be read."""
    try:
        settings = Settings.load()
        mode()
        patience()
    except UsageError as error:
        return Check("settings", "fail", str(error), "set it right, or unset it")
    time_limit = "none" if settings.time_limit is None else f"{settings.time_limit:g} s"
    memory_limit, store_limit = (
        "none" if limit is None else human_bytes(limit) for limit in (settings.memory_limit, settings.store_limit)
    )
    workers = count(settings.workers, "worker")
    limits = f"time limit {time_limit}; memory limit {memory_limit}; cache limit {store_limit}"
    return Check("settings", "ok", f"{workers}; {limits}")


def check_cache_folder() -> Check:
    """Whether results can be kept."""
    name, folder = "cache folder", cache_dir()
    remedy = "set HEADSTART_CACHE_DIR to a folder that you can write"
    try:
        trusted = trusts_cache_dir()
    except UsageError:
        trusted = False  # `check_settings` says so
    for part in (folder, *(folder / name for name in ("store", "failed", "toolchains", "manifests", "torch"))):
        if not trusted and (why := refusal(part)):
            return Check(name, "fail", f"{part} is not used: {why}", REMEDY)
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not existing.is_dir():
        return Check(name, "fail", f"{folder} cannot be a folder: {existing} is none", remedy)
    try:
        # Permissions do not tell about read-only or full disks; a file does.
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"headstart")
        free = shutil.disk_usage(existing).free
    except OSError as error:
        return Check(name, "fail", f"{folder} cannot be written: {error.strerror}; results are not kept", remedy)
    found = f"{folder}, {human_bytes(free)} free"
    if free < LOW_SPACE:
        return Check(name, "warn", found, "headstart cache prune --max-size, or set HEADSTART_CACHE_DIR elsewhere")
    return Check(name, "ok", found if folder.exists() else f"{found}; will be made")


def check_store() -> Check:
    """How much is kept."""
    try:
        info = open_store(cache_dir()).info()
    except OSError as error:
        return Check("store", "fail", f"cannot be read: {error}", "set HEADSTART_CACHE_DIR to a folder of your own")
    return Check("store", "ok", f"{count(info.entries, 'kernel')}, {human_bytes(info.bytes)}")


def check_earlier_stores() -> Iterator[Check]:
    """What earlier versions of headstart left. They could write kernels into Triton's cache that were not Triton's."""
    folders = open_store(cache_dir()).earlier()
    if folders:
        triton_cache = os.environ.get("TRITON_CACHE_DIR") or os.path.expanduser("~/.triton/cache")
        yield Check(
            "earlier stores",
            "warn",
            f"{', '.join(map(str, folders))}: all that an earlier headstart compiled is invalid, and is not used; what "
            f"it put into Triton's own cache, {triton_cache}, Triton still uses",
            "headstart cache clear removes the former; remove the latter by hand while no program runs: Triton "
            "compiles anew what it misses",
        )


def check_runtime_folder() -> Check:
    """Whether a service has a folder of its own, and could have a socket in it."""
    name = "runtime folder"
    try:
        folder = runtime_dir()
    except HeadstartError as error:
        return _failed(name, error)
    length = len(os.fsencode(folder / LONGEST_SOCKET_NAME))
    if length > MAX_SOCKET_PATH:
        found = f"{folder}: a shared service's socket would have {length} bytes, and {MAX_SOCKET_PATH} are possible"
        return Check(name, "warn", found, "set XDG_RUNTIME_DIR to a folder with a shorter path")
    return Check(name, "ok", str(folder))


def check_environment() -> Iterator[Check]:
    """Variables that it does not know, or that make it step aside or keep nothing; one line if there are none."""
    found = False
    for sentence in misspelt():
        found = True
        said, _, remedy = sentence.partition("; ")
        yield Check("environment", "warn", said, remedy)
    for variable, effect in _stepping_aside():
        found = True
        value = os.environ[variable]
        yield Check("environment", "warn", f"{variable}={value}: {effect}", f"unset {variable} if this is not meant")
    if not found:
        yield Check("environment", "ok", "no variable makes headstart step aside")


def _stepping_aside() -> Iterator[tuple[str, str]]:
    with contextlib.suppress(UsageError):  # said with the settings
        if mode() is Mode.OFF:
            yield "HEADSTART", "headstart is switched off"
    if _is_set("TRITON_INTERPRET"):
        yield "TRITON_INTERPRET", "kernels are interpreted, not compiled"
    if os.environ.get("TORCHINDUCTOR_COMPILE_THREADS") == "1":
        yield "TORCHINDUCTOR_COMPILE_THREADS", "torch.compile compiles in process"
    if _is_set("TORCHINDUCTOR_FORCE_DISABLE_CACHES"):
        yield "TORCHINDUCTOR_FORCE_DISABLE_CACHES", "store and bundles are bypassed"
    asked_for = fingerprint()
    while (variable := bypass_reason(asked_for)) is not None:
        del asked_for[variable]
        yield variable, "somebody wants to see or change compiles: results are neither looked up nor kept"


def _failed(name: str, error: HeadstartError) -> Check:
    # Messages say first what is wrong and then, after a semicolon, what to do.
    found, _, remedy = str(error).partition("; ")
    return Check(name, "fail", found, remedy)


def _is_set(variable: str) -> bool:
    # Triton's and Inductor's own reading of a boolean variable.
    return os.environ.get(variable, "").lower() in ("1", "true", "on", "yes", "y")
