"""The process that compiles: one job at a time, until its socket closes.

    service ── Assign ──▶ worker: compile, publish
            ◀─ Finished ─         (or Failure: the compile raised; the worker goes on)

With early cutoff, on the way (`cutoff.py`):

            ◀─ Reached ──         it has come to a cut point
            ── Proceed ─▶         nobody else is at this suffix: take over a known one, or go on
      (or   ── StandAside ▶
            ◀─ StoodAside ─       with what was made so far; free for another job)

A confined worker (`confinement.py`) checks what it is given once more, as it is and as Triton parsed it, sends the
entry instead of publishing it, and has one job in its life.

A worker is a fork of a zygote, alone in its process group, with its own TMPDIR; what it and its tools print goes to
files in there, which the service reads if the worker dies. It sees no GPU. It dies with its zygote (PDEATHSIG), and
by EOF with its service.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from headstart.artifacts import triton_cache
from headstart.artifacts.entry import entry_digest, pack_entry
from headstart.artifacts.vetting import check_request, unvouched
from headstart.errors import DamagedError, StoreUnavailable
from headstart.model import keys
from headstart.model.environment import TOOL_VARIABLES
from headstart.model.request import KERNEL, CompileRequest
from headstart.stores import open_store
from headstart.stores.disk import DiskStore
from headstart.system.confinement import Unconfined, confine
from headstart.system.folders import FULL
from headstart.system.space import is_short_of_space
from headstart.system.titles import set_title
from headstart.wire import (
    Assign,
    CompileLog,
    Deframer,
    Failure,
    Finished,
    Proceed,
    Reached,
    StandAside,
    StoodAside,
    ToWorker,
    encode,
    frame,
    receive_blocking,
)
from headstart.wire.worker_folder import STAGE_FILE, STAGE_WIDTH
from headstart.worker import launchers, standins, vetting_again
from headstart.worker.compiling import Compiled, Compiler
from headstart.worker.cutoff import (
    Cut,
    CutPoint,
    Cutter,
    Prefix,
    Product,
    Suffixes,
    pack_prefix,
    unpack_prefix,
)
from headstart.worker.output import Output
from headstart.worker.refusing import Refused
from headstart.worker.whole import cut_short

_KEPT = frozenset({"stage", "stdout", "stderr"})  # of a worker's folder, from one kernel to the next
_TOOL_STAGES = frozenset({"cubin", "hsaco", "amdgcn"})  # in which tools write files
_LITTLE = 16 << 20  # bytes; with less left, a tool's failure may be for lack of space


def run(sock: socket.socket, folder: str, *, confined: bool = False, title: str = "worker") -> None:
    """Serve `sock` (blocking, owned) until it closes. `folder` is this worker's own.

    Args:
        confined: what it compiles nobody vouches for.
        title: what ps shows of it, before the kernel's name.
    """
    set_title(title)
    output = Output(folder)
    os.environ["TMPDIR"] = tempfile.tempdir = folder
    stage_file = os.open(os.path.join(folder, STAGE_FILE), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    refusal = _confine(folder, [sock.fileno(), stage_file]) if confined else None
    compiler = Compiler(folder, lambda stage: os.pwrite(stage_file, stage.ljust(STAGE_WIDTH).encode(), 0))
    environment = dict(os.environ)
    messages = receive_blocking(sock, Deframer(ToWorker))

    def ask(suffix: str) -> bool:
        sock.sendall(frame(Reached(suffix)))
        answer: Proceed | StandAside | None = next(messages, None)
        if answer is None:
            raise ConnectionAbortedError("the service is gone")
        return isinstance(answer, Proceed)

    try:
        for job in messages:
            if os.environ != environment:
                # A kernel's source has changed it, which must not reach the next kernel.
                os.environ.clear()
                os.environ.update(environment)
            set_title(f"{title} {job.request.name}")
            if confined:
                refusal = refusal or _vet(job.request)
            done = refusal or _do_where_there_is_space(compiler, output, job, ask, folder)
            sock.sendall(frame(done))
            set_title(title)
            _empty(folder)
    except ConnectionError:
        return  # the service is gone, and with it the clients that wanted this


def _empty(folder: str) -> None:
    """Remove what a compile and its tools have left; the next kernel's files have other names."""
    for entry in os.scandir(folder):
        if entry.name not in _KEPT:
            with contextlib.suppress(OSError):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path)
                else:
                    os.unlink(entry.path)


def _do_where_there_is_space(
    compiler: Compiler, output: Output, job: Assign, ask: Callable[[str], bool], folder: str
) -> Finished | Failure | StoodAside:
    """As `_do`; a failure of kind `"space"` where there was none left in this worker's folder."""
    try:
        done = _do(compiler, output, job, ask)
    except OSError as error:
        if error.errno not in FULL:
            raise
        why = error.strerror or str(error)
    else:
        why = "it may be: a tool failed with little left"
        if not (isinstance(done, Failure) and _may_lack_space(done, folder)):
            return done
    return Failure(
        "space",
        f"no space is left in {os.path.dirname(os.path.dirname(folder))}, where its compile keeps its files ({why}); "
        "make some, or set XDG_RUNTIME_DIR to a folder that has some",
    )


def _may_lack_space(failure: Failure, folder: str) -> bool:
    """Whether a compile may have failed for lack of space. Tools do not say so: they say what they could not read."""
    words = os.strerror(errno.ENOSPC)
    return any(words in text for text in (failure.message, failure.detail, failure.output)) or (
        failure.stage in _TOOL_STAGES and is_short_of_space(folder, _LITTLE)
    )


def _confine(folder: str, descriptors: list[int]) -> Failure | None:
    """Confine this process; why that failed, for the client that wants something compiled."""
    packages = [os.path.dirname(str(sys.modules[name].__file__)) for name in ("triton", "headstart", "msgspec")]
    try:
        vetting_again.install()
        confine(folder, packages, descriptors, TOOL_VARIABLES)
    except (Unconfined, AttributeError, OSError) as error:
        return Failure("service", unvouched(f"its worker could not be confined: {error}"))
    return None


def _vet(request: CompileRequest) -> Failure | None:
    # The environment is the one that the service gave this process, after it had looked at it.
    reason = check_request(request, tools=os.environ)
    return None if reason is None else Failure("source", unvouched(reason), stage="source")


def _do(compiler: Compiler, output: Output, job: Assign, ask: Callable[[str], bool]) -> Finished | Failure | StoodAside:
    output.begin()
    with _sole_compiler(job) as made_elsewhere:
        if made_elsewhere is not None:
            return made_elsewhere
        if job.prefix:
            taken = _take_up(job)
            if taken is not None:
                return taken
        return _compile(compiler, output, job, ask)


@contextlib.contextmanager
def _sole_compiler(job: Assign) -> Iterator[Finished | None]:
    """Wait for any other service's worker that compiles the same kernel into the same store; its entry is then ours."""
    if not job.store:
        yield None
        return
    store = _store_of(job)
    with store.claim(job.key):
        entry = store.find(job.key, kind=job.request.kind, request_digest=job.request.digest())
        now = time.monotonic()
        yield (
            None
            if entry is None
            else Finished(
                stored=True,
                started=now,
                finished=now,
                cached=True,
                shared=int(entry.metadata.get("shared") or 0),
                **_as_tritons(
                    job, lambda: {name: entry.artifact(name) for name in entry.artifact_names}, entry.metadata
                ),
            )
        )


def _store_of(job: Assign) -> DiskStore:
    return open_store(os.fsdecode(job.store), trusted=job.trusted)


def _compile(
    compiler: Compiler, output: Output, job: Assign, ask: Callable[[str], bool]
) -> Finished | Failure | StoodAside:
    meter = _Meter()
    cutter = None
    # A job that has stood aside once, for nothing, is not to do so again.
    if job.early_cutoff and not job.prefix and job.request.kind == KERNEL:
        suffixes = Suffixes(_store_of(job))
        cutter = Cutter(
            job.toolchain, job.request, suffixes, lambda suffix: ask(_in_store(suffix, job)), output.printed
        )
    try:
        with output.warnings(), standins.shown(job.torch_dir):
            if job.request.kind == KERNEL:
                compiled = compiler.compile(job.request, cutter.reached if cutter else None)
            else:
                compiled = launchers.build(job.request)
    except standins.Unusable as error:
        return Failure("service", str(error))
    except Refused as refused:
        refused.failure.log = log = output.log([])
        refused.failure.output = log.text
        return refused.failure
    except Cut as cut:
        prefix = meter.add_to(cut.prefix, output.log([]))
        if cut.product is None:
            return StoodAside(_in_store(prefix.cut_points[-1].suffix, job), pack_prefix(prefix))
        return _publish_taken(job, prefix, cut.product)
    if name := cut_short(compiled.artifacts):
        raise OSError(errno.ENOSPC, f"an assembler said that all went well, and left half a {name}")
    return _publish(
        job, compiled, meter, output.log(compiled.times), cutter.cut_points if cutter else [], output.printed()
    )


def _in_store(suffix: str, job: Assign) -> str:
    """A suffix as the service knows it: what another store's job makes of it is not found in this one."""
    return f"{suffix} {job.store.hex()}"


def _take_up(job: Assign) -> Finished | None:
    """Finish what a worker began before it stood aside; None: there is no suffix for it after all."""
    meter = _Meter()
    prefix = unpack_prefix(job.prefix)
    product = Suffixes(_store_of(job)).finish(prefix)
    return None if product is None else _publish_taken(job, meter.add_to(prefix, prefix.log), product)


def _publish_taken(job: Assign, prefix: Prefix, product: Product) -> Finished:
    meter = _Meter(prefix.wall_s, prefix.cpu_s)
    *earlier, last = prefix.cut_points
    compiled = Compiled(product.artifacts, product.metadata, [], [])
    return _publish(job, compiled, meter, prefix.log, earlier, last.printed, taken_over=True)


def _publish(
    job: Assign,
    compiled: Compiled,
    meter: _Meter,
    log: CompileLog,
    cut_points: list[CutPoint],
    printed: int,
    *,
    taken_over: bool = False,
) -> Finished:
    parts = _entry(job, compiled, meter.wall_s, meter.cpu_s, log.text)
    stored, notice = False, ""
    if compiled.reaches:
        notice = (
            f"{job.request.name} uses {', '.join(compiled.reaches)}, which its source does not contain: the result is "
            "not stored, and is compiled anew in each process"
        )
    elif job.store:
        store = _store_of(job)
        try:
            entry = store.publish(job.key, parts)
            stored = True
            if entry is not None:
                Suffixes(store).keep(entry, cut_points, printed)
        except StoreUnavailable as error:
            notice = f"{error}; kernels are kept in memory only"
    return Finished(
        stored=stored,
        started=meter.started,
        finished=time.monotonic(),
        entry=b"" if stored else b"".join(parts),
        cpu_s=meter.cpu_s,
        shared=int(compiled.metadata.get("shared") or 0),
        log=log,
        notice=notice,
        taken_over=taken_over,
        sha256=entry_digest(parts) if stored else b"",
        **_as_tritons(job, lambda: compiled.artifacts, compiled.metadata),
    )


def _as_tritons(
    job: Assign, artifacts: Callable[[], Mapping[str, bytes]], metadata: Mapping[str, Any]
) -> dict[str, Any]:
    """What `Finished` says of a kernel that was to be in Triton's cache too. If it is not, its client sees to it."""
    if job.triton_cache is None:
        return {}
    try:
        folder, registers = triton_cache.keep(job.triton_cache, artifacts(), metadata)
    except (DamagedError, OSError):
        return {}
    return {"in_triton_cache": folder, "registers": registers}


class _Meter:
    """What a compile takes from now on, on top of what it took earlier."""

    def __init__(self, wall_s: float = 0.0, cpu_s: float = 0.0) -> None:
        self.started = time.monotonic()
        self._wall_s = wall_s - self.started
        self._cpu_s = cpu_s - _cpu_seconds()

    @property
    def wall_s(self) -> float:
        return self._wall_s + time.monotonic()

    @property
    def cpu_s(self) -> float:
        return self._cpu_s + _cpu_seconds()

    def add_to(self, prefix: Prefix, log: CompileLog) -> Prefix:
        """`prefix`, which has taken this and printed `log`."""
        return msgspec.structs.replace(
            prefix, wall_s=prefix.wall_s + self.wall_s, cpu_s=prefix.cpu_s + self.cpu_s, log=log
        )


def _entry(job: Assign, compiled: Compiled, wall_s: float, cpu_s: float, output: str) -> list[bytes]:
    request = job.request
    return pack_entry(
        key=job.key,
        kind=request.kind,
        name=request.name,
        request_digest=request.digest(),
        toolchain=job.toolchain,
        target=request.target,
        components=[("format", keys.KEY_FORMAT), ("toolchain", job.toolchain), *request.components()],
        metadata=compiled.metadata,
        artifacts=compiled.artifacts,
        compile_wall_s=wall_s,
        compile_cpu_s=cpu_s,
        triton_version=str(compiled.metadata.get("triton_version", "")),
        request=encode(request),
        output=output,
    )


def _cpu_seconds() -> float:
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    )
