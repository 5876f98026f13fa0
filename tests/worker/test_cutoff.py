"""Early cutoff: compiles that become the same program are one from there on, and nobody can tell by what they get."""

from __future__ import annotations

import itertools
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import headstart
from conftest import PATIENCE, client_environment, wait_until
from headstart import AsyncCompile, CompileError, LambdaFuture
from headstart.stores.disk import DiskStore
from headstart.worker import cutoff
from kernels import Kernel, Ptxas, assembly, matmul, pointwise, prints

pytestmark = pytest.mark.triton

MORE_TARGETS = ("cuda:100", "hip:gfx942")

Open = Callable[..., AsyncCompile]
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def ptxas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ptxas:
    """Turns early cutoff on, and counts what it is to save."""
    monkeypatch.setenv("HEADSTART_EARLY_CUTOFF", "1")
    found = Ptxas(tmp_path / "ptxas")
    for name, value in found.environment.items():
        monkeypatch.setenv(name, value)
    return found


def staged(stages: int, name: str = "pointwise", **how: Any) -> Kernel:
    """A kernel without a loop: what it becomes does not depend on `stages`, and its key does."""
    return pointwise(name=name, options={"num_stages": stages}, **how)


def suffixes(cache: Path | None = None) -> list[str]:
    store = DiskStore(cache or headstart.cache_dir())
    return [entry.key for entry in store.entries() if entry.header.kind == cutoff.KIND]


# The same as without


def sweeps() -> Iterator[Kernel]:
    """Kernels of these tests and of examples/, each in configurations that become the same, and others."""
    small = [pointwise(), matmul(), prints(), assembly("add.u32 $0, $1, 1;", "=r,r")]
    sys.path.insert(0, str(EXAMPLES))
    try:
        import codegen

        generated = [{"name": name, "source": source, **how} for name, source, how in codegen.collect()[1][::79]]
    finally:
        sys.path.remove(str(EXAMPLES))
    for kernel, warps, stages in itertools.product(small, (4, 8), (1, 3)):
        yield {**kernel, "options": {"num_warps": warps, "num_stages": stages}}
    for kernel, stages in itertools.product(generated, (2, 4)):
        yield {**kernel, "options": {**kernel.get("options", {}), "num_stages": stages}}


@pytest.mark.parametrize("target", ["cuda:90", *(pytest.param(more, marks=pytest.mark.slow) for more in MORE_TARGETS)])
def test_whatever_is_taken_over_is_what_the_whole_pipeline_gives(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_compile: Open
) -> None:
    def contents(switch: str) -> dict[str, Any]:
        monkeypatch.setenv("HEADSTART_EARLY_CUTOFF", switch)
        cache = tmp_path / switch
        with open_compile(target, cache_dir=cache) as async_compile:
            kernels = [kernel for kernel in sweeps() if not (target.startswith("hip") and "assembly" in kernel["name"])]
            for future in [async_compile.triton(**kernel) for kernel in kernels]:
                future.result()
        entries = [entry for entry in DiskStore(cache).entries() if entry.header.kind != cutoff.KIND]
        assert len(entries) == len(kernels)
        return {
            entry.key: (list(entry.metadata.items()), [(name, entry.artifact(name)) for name in entry.artifact_names])
            for entry in entries
        }

    whole, cut = contents("0"), contents("1")
    assert cut == whole
    assert suffixes(tmp_path / "1")
    assert not suffixes(tmp_path / "0")


WATCHED = """
import json
from triton import knobs
from triton.backends.compiler import GPUTarget
from kernels import matmul, pointwise
from test_identity import IN_PROCESS

made = IN_PROCESS[: IN_PROCESS.index("print(")]
exec(made)
read, stage_now = {}, [""]

class Options:
    def __init__(self, options): object.__setattr__(self, "given", options)
    def __getattr__(self, name):
        read.setdefault(stage_now[0], []).append(name)
        return getattr(self.given, name)

class Metadata(dict):
    def __getitem__(self, name):
        read.setdefault(stage_now[0], []).append(name)
        return super().__getitem__(name)
    def get(self, name, default=None):
        return self[name] if name in self else default

def watched(name, run):
    def stage(source, metadata):
        stage_now[0] = name
        copy = Metadata(metadata)
        made = run(source, copy)
        metadata.update(copy)
        return made
    return stage

def hook(*arguments):
    if not arguments:
        return "", ""
    backend, stages, options, language = arguments[:4]
    knobs.runtime.add_stages_inspection_hook = None
    backend.add_stages(stages, Options(options), language)
    for name, run in list(stages.items()):
        stages[name] = watched(name, run)

amd = [{"backend": "hip", "arch": arch} for arch in ("gfx942", "gfx1100")]
for target in ({}, {"arch": 80}, {"arch": 100}, *amd):
    for kernel in (pointwise(), matmul(), matmul(64, 64, 64, num_warps=8, num_stages=4)):
        knobs.runtime.add_stages_inspection_hook = hook
        compile_here(**kernel, **target)
print(json.dumps(read))
"""


def test_no_stage_behind_a_seam_reads_what_is_left_out_of_its_key() -> None:
    environment = {**os.environ, **client_environment()}
    program = [sys.executable, "-c", WATCHED]
    done = subprocess.run(program, env=environment, capture_output=True, check=False, timeout=4 * PATIENCE)
    assert done.returncode == 0, done.stderr.decode()
    read = {stage: set(names) for stage, names in json.loads(done.stdout).items()}
    assert "num_stages" in read["ttgir"]  # or nothing was watched
    behind = {"llir": ("llir", "ptx", "cubin", "amdgcn", "hsaco"), "cubin": ("cubin",), "hsaco": ("hsaco",)}
    assert behind.keys() == cutoff.SEAMS.keys()
    for cut_point, stages in behind.items():
        for stage in stages:
            assert not read[stage] & cutoff.UNREAD[cut_point]


# Once


def test_what_becomes_the_same_is_lowered_once(ptxas: Ptxas, open_compile: Open) -> None:
    with open_compile() as async_compile:
        futures = [async_compile.triton(**staged(stages)) for stages in (1, 2, 3, 4)]
        binaries = {future.result().asm["cubin"] for future in futures}
    assert len(binaries) == 1
    assert len(ptxas.callers("pointwise")) == 1


def test_it_is_off_unless_asked_for(ptxas: Ptxas, open_compile: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEADSTART_EARLY_CUTOFF")
    with open_compile() as async_compile:
        for future in [async_compile.triton(**staged(stages)) for stages in (1, 2)]:
            future.result()
    assert len(ptxas.callers("pointwise")) == 2
    assert not suffixes()


def test_a_later_service_finds_it_in_the_store(ptxas: Ptxas, open_compile: Open) -> None:
    for stages in (1, 2):
        with open_compile() as async_compile:
            assert async_compile.triton(**staged(stages)).result().metadata.num_stages == stages
    assert len(ptxas.callers("pointwise")) == 1


def test_other_options_and_other_lines_are_other_programs(ptxas: Ptxas, open_compile: Open) -> None:
    moved = staged(1)
    with open_compile() as async_compile:
        kernels = [
            staged(1),
            {**moved, "source": "\n" + moved["source"]},
            pointwise(options={"num_stages": 2, "num_warps": 8}),
            pointwise(options={"num_stages": 2, "enable_fp_fusion": False}),
        ]
        for future in [async_compile.triton(**kernel) for kernel in kernels]:
            future.result()
    assert len(ptxas.callers("pointwise")) == len(kernels)


def test_the_same_assembly_is_assembled_once(ptxas: Ptxas, open_compile: Open) -> None:
    """`tl.assume` ends before PTX."""
    kernel = pointwise()
    assumed = {**kernel, "source": kernel["source"].replace("mask = i < n", "mask = i < n; tl.assume(n > 0)")}
    with open_compile(workers=1) as async_compile:
        first, second = [async_compile.triton(**each).result() for each in (kernel, assumed)]
    assert first.asm["ttgir"] != second.asm["ttgir"]
    assert first.asm["cubin"] == second.asm["cubin"]
    assert len(ptxas.callers("pointwise")) == 1


# Somebody else is at it


def one_waits_for_the_other(ptxas: Ptxas, async_compile: AsyncCompile) -> list[LambdaFuture]:
    """The first is in ptxas; the second has stood aside for it, or else the other kernel had found no worker."""
    first = async_compile.triton(**staged(1, "gated"))
    wait_until(lambda: ptxas.callers("gated"))
    second = async_compile.triton(**staged(2, "gated"))
    async_compile.triton(**pointwise(name="other")).result()
    assert not first.done()
    assert not second.done()
    return [first, second]


def test_who_waits_for_a_tail_holds_no_worker(ptxas: Ptxas, open_compile: Open) -> None:
    with open_compile() as async_compile:
        futures = one_waits_for_the_other(ptxas, async_compile)
        ptxas.open()
        first, second = [future.result() for future in futures]
    assert first.asm["cubin"] == second.asm["cubin"]
    assert (first.metadata.num_stages, second.metadata.num_stages) == (1, 2)
    assert len(ptxas.callers("gated")) == 1


def test_when_a_worker_dies_at_a_tail_everybody_gets_a_kernel(ptxas: Ptxas, open_compile: Open) -> None:
    with open_compile() as async_compile:
        futures = one_waits_for_the_other(ptxas, async_compile)
        os.kill(ptxas.callers("gated")[0], signal.SIGKILL)
        ptxas.open()
        assert [future.result().metadata.num_stages for future in futures] == [1, 2]
    assert len(ptxas.callers("gated")) == 3


def test_a_failure_behind_a_seam_fails_its_own_configuration_only(ptxas: Ptxas, open_compile: Open) -> None:
    with open_compile() as async_compile:
        first, second = one_waits_for_the_other(ptxas, async_compile)
        ptxas.open(fail=True)
        with pytest.raises(CompileError, match="ptxas"):
            first.result()
        assert second.result().metadata.num_stages == 2
    assert len(ptxas.callers("gated")) == 2


def test_nobody_waits_for_what_goes_into_another_store(
    ptxas: Ptxas, open_compile: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADSTART_SERVICE", "shared")
    with open_compile(cache_dir=tmp_path / "a") as one, open_compile(cache_dir=tmp_path / "b") as other:
        futures = [one.triton(**staged(1, "gated")), other.triton(**staged(2, "gated"))]
        wait_until(lambda: len(ptxas.callers("gated")) == 2)
        ptxas.open()
        assert [future.result().metadata.num_stages for future in futures] == [1, 2]


# What cannot be taken over is compiled


def test_a_tail_whose_entry_is_gone_is_made_again(ptxas: Ptxas, open_compile: Open) -> None:
    with open_compile() as async_compile:
        key = async_compile.triton(**staged(1)).result().key
    DiskStore(headstart.cache_dir()).path_of(key).unlink()
    with open_compile() as async_compile:
        assert async_compile.triton(**staged(2)).result().asm["cubin"]
    assert len(ptxas.callers("pointwise")) == 2


@pytest.mark.parametrize("what", ["suffix", "entry"])
def test_a_damaged_tail_is_made_again(
    what: str, ptxas: Ptxas, open_compile: Open, caplog: pytest.LogCaptureFixture
) -> None:
    with open_compile() as async_compile:
        key = async_compile.triton(**staged(1)).result().key
    store = DiskStore(headstart.cache_dir())
    for path in [store.path_of(key)] if what == "entry" else map(store.path_of, suffixes()):
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    with caplog.at_level(logging.ERROR), open_compile() as async_compile:
        assert async_compile.triton(**staged(2)).result().asm["cubin"][:4] == b"\x7fELF"
    assert len(ptxas.callers("pointwise")) == 2


@pytest.mark.parametrize(
    "before",
    ["triton.knobs.nvidia.disable_ptxas_opt = True", "import os\nos.environ['DISABLE_PTXAS_OPT'] = '1'"],
    ids=["knob", "variable"],
)
def test_a_source_that_sets_something_takes_no_part(before: str, ptxas: Ptxas, open_compile: Open) -> None:
    before += "\n"
    kernels = [staged(1, before=before), staged(2, before="\n" * before.count("\n"))]
    with open_compile() as async_compile:
        first, second = [async_compile.triton(**kernel).result() for kernel in kernels]
    assert first.asm["ptx"] == second.asm["ptx"]
    assert first.asm["cubin"] != second.asm["cubin"]
    assert len(ptxas.callers("pointwise")) == 2


def test_what_a_kernel_prints_is_shown_for_each_configuration(ptxas: Ptxas, open_compile: Open) -> None:
    kernels = [{**prints(), "options": {"num_stages": stages}} for stages in (1, 2)]
    with open_compile(workers=1) as async_compile:
        made = [async_compile.triton(**kernel).result() for kernel in kernels]
    assert all("BLOCK is" in kernel.entry.header.output for kernel in made)
    assert len(ptxas.callers("prints")) == 1
