"""Launchers, which Triton 3.6 has built by gcc: a worker builds them, and a bundle brings them.

There is no GPU and no driver here: a library with the names of CUDA's driver stands in for it, which does nothing.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

from conftest import PATIENCE, client_environment


def _builds_launchers() -> bool:
    try:
        return tuple(map(int, version("triton").split(".")[:2])) <= (3, 6)
    except PackageNotFoundError:
        return False


pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(not _builds_launchers(), reason="this Triton builds no launchers"),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc"),
]

PROGRAM = """
import json, os, sys
order = json.loads(sys.argv[1])
import headstart
if order.get("gpu"):
    from headstart.adapters.triton import launchers
    from headstart.system import machine
    machine.has_gpu = lambda: True
    launchers._NVIDIA = "/dev/null"
if order.get("enable", True):
    headstart.enable(bundle=order.get("bundle"))
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia
from triton.runtime.jit import MockTensor

class Driver(nvidia.CudaDriver):
    __module__ = nvidia.__name__
    def __init__(self): self.launcher_cls = nvidia.CudaLauncher
    def get_current_target(self): return GPUTarget("cuda", 90, 32)
    def get_current_device(self): return 0
    def get_current_stream(self, device): return 0

if order.get("gpu"):
    from headstart.adapters import process
    for future in process.current().jit._launchers._started.values():
        future.result()
    nvidia.CudaUtils()
triton.runtime.driver.set_active(Driver())

@triton.jit
def scale(x, y, n, factor, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i, mask=i < n) * factor, mask=i < n)

error = ""
for block in order["blocks"]:
    kernel = scale.warmup(MockTensor(tl.float32), MockTensor(tl.float32), 100, 2.0, BLOCK=block, grid=(1,))
    try:
        launcher = nvidia.CudaLauncher(kernel.src, kernel.metadata)
        assert callable(launcher.launch)
    except Exception as raised:
        error = type(raised).__name__
from headstart.adapters import process
adapter = process.current().jit if process.current() else None
def is_replaced(): return "headstart" in nvidia.compile_module_from_src.__code__.co_filename
told = {"pid": os.getpid(), "error": error, "replaced": is_replaced()}
if adapter is not None:
    use = adapter.used()
    told.update(services=adapter.compiler.services_started, compiled=use.compiled, kernels=use.kernels)
headstart.disable()
told["restored"] = not is_replaced()
print(json.dumps(told))
"""


class Machine:
    """With a stand-in for CUDA's driver, and a C compiler that writes down who calls it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        import triton.backends.nvidia.driver as nvidia

        texts = [Path(str(nvidia.__file__)).read_text(), Path(nvidia.dirname, "driver.c").read_text()]
        names = set(re.findall(r"\b(cu[A-Z]\w+)\(", "".join(texts)))
        source = folder / "cuda.c"
        source.write_text("".join(f"int {name}(void) {{ return 1; }}\n" for name in sorted(names)))
        library = str(folder / "libcuda.so.1")
        subprocess.run(["gcc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", str(source), "-o", library], check=True)
        self._calls = folder / "calls"
        self.compiler = self.script(f'echo $PPID >> {self._calls}\nexec gcc "$@"\n')
        (folder / "app.py").write_text(PROGRAM)

    def script(self, text: str) -> str:
        path = self.folder / f"cc-{len(list(self.folder.glob('cc-*')))}"
        path.write_text(f"#!/bin/sh\n{text}")
        path.chmod(0o755)
        return str(path)

    def run(self, *, CC: str = "", forget: bool = True, **order: Any) -> dict[str, Any]:
        """What the program told, and which processes called the compiler."""
        self._calls.unlink(missing_ok=True)
        if forget:
            for cache in ("TRITON_CACHE_DIR", "HEADSTART_CACHE_DIR"):
                shutil.rmtree(os.environ[cache], ignore_errors=True)
        environment = {
            **os.environ,
            **client_environment(),
            "CC": CC or self.compiler,
            "LD_LIBRARY_PATH": str(self.folder),
            "TRITON_LIBCUDA_PATH": str(self.folder),
        }
        command = [sys.executable, str(self.folder / "app.py"), json.dumps({"blocks": [32], **order})]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE * 2)
        assert done.returncode == 0, done.stderr
        calls = self._calls.read_text().split() if self._calls.exists() else []
        told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return {**told, "callers": list(map(int, calls)), "log": done.stderr}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_without_headstart_the_program_calls_the_compiler(machine: Machine) -> None:
    told = machine.run(enable=False)
    assert told["error"] == ""
    assert told["callers"] == [told["pid"]]


def test_a_worker_builds_the_launcher_once_for_all_configurations(machine: Machine) -> None:
    told = machine.run(blocks=[32, 64, 128])
    assert told["error"] == ""
    assert len(told["callers"]) == 1
    assert told["callers"] != [told["pid"]]
    assert (told["replaced"], told["restored"]) == (True, True)
    assert told["compiled"] == 3, "launchers are not counted as kernels"


def test_what_the_driver_needs_first_is_built_from_the_start(machine: Machine) -> None:
    bundle = str(machine.folder / "app.bundle")
    told = machine.run(gpu=True, blocks=[], bundle=bundle)
    assert len(told["callers"]) == 1
    assert told["callers"] != [told["pid"]]
    assert machine.run(gpu=True, blocks=[], bundle=bundle, CC="/bin/false")["services"] == 0


def test_from_a_bundle_no_compiler_is_called_and_no_process_started(machine: Machine) -> None:
    bundle = str(machine.folder / "app.bundle")
    machine.run(bundle=bundle)
    before = Path(bundle).read_bytes()
    told = machine.run(bundle=bundle, CC="/bin/false")
    assert told["error"] == ""
    assert (told["kernels"], told["compiled"], told["services"]) == (1, 0, 0)
    assert Path(bundle).read_bytes() == before


def test_what_tritons_own_cache_has_goes_into_the_bundle_too(machine: Machine) -> None:
    bundle = str(machine.folder / "app.bundle")
    machine.run(enable=False)
    assert machine.run(bundle=bundle, forget=False)["callers"] == []
    assert machine.run(bundle=bundle, CC="/bin/false")["error"] == ""


def test_a_launcher_is_code_and_comes_from_trusted_bundles_only(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = str(machine.folder / "app.bundle")
    machine.run(bundle=bundle)
    monkeypatch.setenv("HEADSTART_CONFIG_DIR", str(tmp_path / "another user's"))
    told = machine.run(bundle=bundle)
    assert told["error"] == ""
    assert told["callers"] == [told["pid"]], "its kernel is used, and no process started for the launcher alone"
    assert "1 launcher" in told["log"]


def test_a_compiler_that_fails_fails_as_without_headstart(machine: Machine) -> None:
    stock, ours = (machine.run(enable=enable, CC="/bin/false") for enable in (False, True))
    assert stock["error"] == ours["error"] == "CalledProcessError"


@pytest.mark.parametrize("damage", [b"", b"\x7fELF no library"])
def test_a_file_that_cannot_be_loaded_is_built_anew(
    machine: Machine, damage: bytes, tmp_path: Path, edit_launchers: Callable[[str, bytes], None]
) -> None:
    """Of a machine with another C library, say."""
    bundle = str(machine.folder / "app.bundle")
    machine.run(bundle=bundle)
    edit_launchers(bundle, damage)
    told = machine.run(bundle=bundle)
    assert told["error"] == ""
    assert told["callers"] == [told["pid"]]


@pytest.fixture
def edit_launchers() -> Callable[[str, bytes], None]:
    """Gives each launcher of a bundle another content, under this user's signature."""

    def edit(bundle: str, content: bytes) -> None:
        from headstart.artifacts.bundle import Bundle
        from headstart.artifacts.entry import Entry, pack_entry
        from headstart.artifacts.kinds import LAUNCHER
        from headstart.client.bundler import TritonBundler

        held = Bundle.open(bundle)
        bundler = TritonBundler()
        bundler.begin_compile()
        for item in held:
            entry = held.entry(item.key)
            if item.kind == LAUNCHER:
                header = entry.header
                parts = pack_entry(
                    key=header.key,
                    kind=header.kind,
                    name=header.name,
                    request_digest=header.request_digest,
                    toolchain=header.toolchain,
                    target=header.target,
                    components=header.components,
                    metadata=header.metadata,
                    artifacts={"so": content},
                    compile_wall_s=0.0,
                    compile_cpu_s=0.0,
                    triton_version=header.triton_version,
                    request=b"",
                    output="",
                )
                entry = Entry.from_bytes(b"".join(parts))
            else:
                entry = Entry.from_bytes(bytes(entry.raw()))
            bundler.put(item.key, lambda entry=entry: entry)
        bundler.collect(bundle)

    return edit
