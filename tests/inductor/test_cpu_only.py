"""A program that compiles no Triton kernel is what it is without headstart, and nothing of headstart's is started."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from conftest import client_environment

pytestmark = [
    pytest.mark.torch,
    pytest.mark.timeout(600),
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="there is no torch"),
]

# Torch's compiler takes a while where the machine is busy.
_PATIENCE = 240

HEAD = """
import os, sys, threading

def ours():
    # Processes that this one has started, and threads in it, that are headstart's.
    processes = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            words = open(f"/proc/{name}/cmdline").read().split("\\0")
            variables = open(f"/proc/{name}/environ").read()
        except OSError:
            continue
        if os.environ["MARK"] in variables and any("headstart.service" in w or "describer" in w for w in words):
            processes.append(words)
    return processes, [thread.name for thread in threading.enumerate() if thread.name.startswith("headstart")]

def main():
    if "enable" in sys.argv:
        import headstart
        headstart.enable()
    import json
    import torch
    torch.manual_seed(0)
    told = body(torch)
    print("TOLD", json.dumps([told, ours()]))
"""

PROGRAMS = {
    "torch.compile": """
def body(torch):
    layer = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.GELU(), torch.nn.LayerNorm(16))
    compiled = torch.compile(layer)
    loss = compiled(torch.randn(4, 16)).square().mean()
    loss.backward()
    return [loss.item(), layer[0].weight.grad.sum().item()]
""",
    "dynamic shapes, max-autotune": """
def body(torch):
    compiled = torch.compile(lambda x, y: torch.relu(x @ y) + x.sum(), dynamic=True, mode="max-autotune")
    return [compiled(torch.randn(size, 8), torch.randn(8, 8)).sum().item() for size in (8, 16)]
""",
    "export and AOTInductor": """
def body(torch):
    import tempfile
    class Model(torch.nn.Module):
        def forward(self, x):
            return torch.softmax(x, -1) * x.sin()
    x = torch.randn(3, 5)
    exported = torch.export.export(Model(), (x,))
    package = torch._inductor.aoti_compile_and_package(exported, package_path=tempfile.mkdtemp() + "/m.pt2")
    return [exported.module()(x).sum().item(), torch._inductor.aoti_load_package(package)(x).sum().item()]
""",
    "DataLoader workers, forked and spawned": """
class Squares:
    def __len__(self):
        return 8
    def __getitem__(self, index):
        import torch
        return torch.tensor(float(index)) ** 2
def body(torch):
    compiled = torch.compile(lambda x: x * 2 + 1)
    return [
        [compiled(batch).tolist() for batch in torch.utils.data.DataLoader(
            Squares(), batch_size=4, num_workers=2, multiprocessing_context=context)]
        for context in ("fork", "spawn")
    ]
""",
    "a pool of spawned processes": """
def square(x):
    import torch
    return torch.compile(lambda x: x * x)(torch.tensor(x)).item()
def body(torch):
    import multiprocessing
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        return pool.map(square, [1.0, 2.0, 3.0])
""",
    "Triton, imported and not used": """
def body(torch):
    import triton, triton.language as tl
    @triton.jit
    def kernel(x):
        tl.store(x, 1.0)
    return [kernel.__name__, triton.__version__]
""",
}


def run(folder: Path, name: str, how: str) -> tuple[Any, Any]:
    """What a program told, and what of headstart's there was when it ended."""
    folder.mkdir()
    app = folder / "app.py"
    app.write_text(HEAD + textwrap.dedent(PROGRAMS[name]) + '\nif __name__ == "__main__":\n    main()\n')
    command = [sys.executable, "-m", "headstart", "run"] if how == "run" else [sys.executable]
    # Each way has empty caches, and nothing hides that there is no GPU.
    variables = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"), "MARK": f"mark{os.getpid()}{folder.name}"}
    process = subprocess.run(
        [*command, str(app), *(["enable"] if how == "enable" else [])],
        capture_output=True,
        text=True,
        timeout=_PATIENCE,
        env={**os.environ, **client_environment(), **variables},
        check=False,
    )
    assert process.returncode == 0, process.stderr
    (line,) = [line for line in process.stdout.splitlines() if line.startswith("TOLD ")]
    told, (processes, threads) = json.loads(line.removeprefix("TOLD "))
    assert "headstart" not in process.stderr, process.stderr
    return told, (processes, threads)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_for_the_cpu_gets_what_it_gets_without_and_nothing_is_started(tmp_path: Path, name: str) -> None:
    stock, _ = run(tmp_path / "stock", name, "stock")
    for how in ("enable", "run"):
        told, ours = run(tmp_path / how, name, how)
        assert told == stock, how
        assert ours == ([], []), how
