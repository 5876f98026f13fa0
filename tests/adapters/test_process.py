"""`headstart.enable()` and `disable()`: nothing until it is needed, everything put back; background work comes last."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import Client, client_environment
from headstart import AsyncCompile
from headstart.adapters.recording import Recorder, record_path, script_program
from headstart.artifacts.manifest import Manifest
from headstart.artifacts.specialization import Origin
from headstart.model.request import CompileRequest
from kernels import Gate, pointwise

Start = Callable[..., Client]
Open = Callable[..., AsyncCompile]

KERNEL = """
import triton
import triton.language as tl
from triton.runtime.jit import MockTensor
from headstart.adapters.triton import dry_run
from headstart.model.target import Target

@triton.jit
def kernel(x, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(x + i, tl.load(x + i) + 1)

dry_run.install(Target.parse("cuda:90"))

def warm_up(*blocks):
    for block in blocks:
        kernel.warmup(MockTensor(tl.float32), BLOCK=block, grid=(1,))
"""


def request_of(kernel: dict[str, Any]) -> CompileRequest:
    return CompileRequest.make(kernel.pop("name"), kernel.pop("source"), target="cuda:90", **kernel)


def test_enabling_costs_nothing_until_triton_comes(start_client: Start) -> None:
    client = start_client(
        """
        import sys, threading
        import headstart
        import psutil
        headstart.enable(record="app.manifest", workers=1)
        headstart.enable()
        loaded = [name for name in ("triton", "torch", "msgspec") if name in sys.modules]
        print(loaded, threading.active_count(), psutil.Process().children())
        headstart.disable()
        headstart.disable()
        print([finder for finder in sys.meta_path if type(finder).__module__.startswith("headstart")])
        """
    )
    assert client.finish().splitlines() == ["[] 1 []", "[]"]


@pytest.mark.triton
def test_what_is_enabled_before_triton_records_replays_and_is_put_back(start_client: Start, tmp_path: Path) -> None:
    program = f"""
import json, sys
import headstart
headstart.enable(record="app.manifest", manifest="app.manifest", bundle="app.bundle", workers=1)
{KERNEL}
from headstart.adapters import process as enabling
warm_up(32, 64)
counts = enabling.current().jit.counts
headstart.disable()
assert triton.knobs.runtime.jit_cache_hook is None
print(json.dumps(counts))
"""
    first = json.loads(start_client(program).finish())
    assert (first["kicked_off"], first["in_process"]) == (2, 0)
    assert len(Manifest.open(tmp_path / "app.manifest").specializations) == 2
    second = json.loads(start_client(program, TRITON_CACHE_DIR=str(tmp_path / "other")).finish())
    assert (second["asked"], second["in_process"]) == (2, 0)


@pytest.mark.triton
def test_a_manifest_from_elsewhere_is_checked_before_it_is_compiled(start_client: Start, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    recorder = Recorder(tmp_path / "bad.manifest")
    bad = request_of(pointwise(before=f"open({str(witness)!r}, 'w')"))
    recorder.note(bad, bad.digest())
    recorder.close()
    client = start_client(
        """
        import headstart, time
        from headstart.adapters import process as enabling
        headstart.enable(manifest="bad.manifest", workers=1)
        enabling.current()._thread.join(30)
        print(len(enabling.current().jit.compiler.timeline))
        """
    )
    assert client.finish() == "0\n"
    assert not witness.exists()


@pytest.mark.triton
def test_what_the_program_asks_for_goes_before_what_is_prefetched(open_compile: Open, tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")
    client = open_compile(workers=1)
    client.triton(**gate.kernel())
    gate.began()
    prefetched = [request_of(pointwise(factor, name=f"prefetched{factor:.0f}")) for factor in (2.0, 3.0)]
    for each in prefetched:
        client.submit(each, background=True)
    asked = client.triton(**pointwise(4.0, name="asked"))
    again = client.submit(prefetched[1])  # by now the program wants this one, too
    gate.open()
    asked.result(30)
    again.result(30)
    client.submit(prefetched[0]).result(30)
    order = sorted(client.timeline, key=lambda span: span.started or 0.0)
    assert order[-1].name == "prefetched2"
    assert {span.name for span in order[1:3]} == {"asked", "prefetched3"}


def test_a_record_says_whether_torch_compile_was_used(tmp_path: Path) -> None:
    path = tmp_path / "app.manifest"
    recorder = Recorder(path, program="app.py")
    recorder.close()
    assert not path.exists()
    recorder = Recorder(path, program="app.py")
    recorder.note_torch("2.13.0")
    recorder.close()
    manifest = Manifest.open(path)
    assert manifest.uses_torch_compile
    assert not Manifest(origins=(Origin(program="app.py"),)).uses_torch_compile


def test_python_dash_m_headstart_is_the_command() -> None:
    command = [sys.executable, "-m", "headstart", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.startswith("headstart, version")


@pytest.mark.triton
def test_a_setting_that_is_wrong_does_not_fail_an_import(start_client: Start) -> None:
    client = start_client("import headstart; headstart.enable(); import triton; print('ran')", HEADSTART_WORKERS="many")
    output, errors = client.process.communicate(timeout=30)
    assert output == b"ran\n"
    assert b"the program runs without headstart: HEADSTART_WORKERS" in errors


@pytest.mark.triton
def test_a_program_may_fork_as_soon_as_it_runs(start_client: Start, tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "app.manifest")
    recorded = request_of(pointwise())
    recorder.note(recorded, recorded.digest())
    recorder.close()
    client = start_client(
        f"""
import os, headstart
headstart.enable(manifest="app.manifest", workers=1)
if (child := os.fork()) == 0:
    {textwrap.indent(KERNEL, "    ").strip()}
    warm_up(32)
    headstart.disable()
    os._exit(0)
print(os.waitpid(child, 0)[1])
"""
    )
    assert client.finish() == "0\n"


# torch.compile, with a torch that is none: which one it is is all that is looked at before headstart stays away from it


@pytest.fixture
def torch(tmp_path: Path) -> str:
    """The folder of a torch of an unknown version, to be put on the path."""
    folder = tmp_path / "torchs" / "torch"
    (folder / "_inductor").mkdir(parents=True)
    (folder / "version.py").write_text('__version__ = "9.9.0"\n', encoding="utf-8")
    for name in ("__init__.py", "_inductor/__init__.py", "_inductor/async_compile.py"):
        (folder / name).write_text("", encoding="utf-8")
    return str(folder.parent)


MET = "headstart leaves torch 9.9.0 alone"


def run_under_headstart(torch: str, program: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([torch, client_environment()["PYTHONPATH"]])}
    command = [sys.executable, "-m", "headstart", "run", str(program)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "ended\n"
    return done.stderr


def test_under_run_torch_compile_is_met_when_it_is_used(torch: str, tmp_path: Path) -> None:
    program = tmp_path / "app.py"
    program.write_text("import torch, torch._inductor\nprint('ended')\n", encoding="utf-8")
    assert run_under_headstart(torch, program) == ""
    program.write_text("import torch._inductor.async_compile\nprint('ended')\n", encoding="utf-8")
    assert MET in run_under_headstart(torch, program)


def test_under_run_torch_compile_is_met_at_once_if_it_was_used_before(torch: str, tmp_path: Path) -> None:
    program = tmp_path / "app.py"
    program.write_text("import time\ntime.sleep(1)\nprint('ended')\n", encoding="utf-8")
    recorder = Recorder(record_path(script_program(program)), program=script_program(program))
    recorder.note_torch("9.9.0")
    recorder.close()
    assert MET in run_under_headstart(torch, program)


def test_enable_meets_torch_compile_at_once(torch: str, start_client: Start) -> None:
    client = start_client(f"import sys; sys.path.insert(0, {torch!r}); import headstart; headstart.enable()")
    _, errors = client.process.communicate(timeout=30)
    assert MET in errors.decode()
