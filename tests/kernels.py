"""Sources of kernels for the tests, and how to call them: `async_compile.triton(**pointwise())`.

A source may hold any Python at its top level, which the worker runs when it defines the kernel. That is how tests know
and decide when a compile is going on, and where, without sleeping: see `Gate`.
"""

from __future__ import annotations

import textwrap
import time
from pathlib import Path
from typing import Any

from headstart.model.toolchain import Toolchain

# Of no use but to be told.
TOOLCHAIN = Toolchain("/usr/bin/python3", "3.11", "/usr/lib/triton", "3.9.0", ("/usr/lib",))

Kernel = dict[str, Any]  # the arguments of AsyncCompile.triton

HEAD = "import triton\nimport triton.language as tl\n"

_POINTWISE = """
@triton.jit
def {name}(x, y, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < n
    tl.store(y + i, tl.exp(tl.load(x + i, mask=mask)) * {factor}, mask=mask)
"""

_MATMUL = """
@triton.jit
def {name}(a, b, c, K, M: tl.constexpr, N: tl.constexpr, D: tl.constexpr):
    i, j, d = tl.arange(0, M), tl.arange(0, N), tl.arange(0, D)
    left, right = a + i[:, None] * K + d[None, :], b + d[:, None] * N + j[None, :]
    total = tl.zeros((M, N), tl.float32)
    for _ in range(0, K, D):
        total = tl.dot(tl.load(left), tl.load(right), total)
        left += D
        right += D * N
    tl.store(c + i[:, None] * N + j[None, :], total)
"""

_ASSEMBLY = """
@triton.jit
def {name}(x, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    value = tl.load(x + i)
    value = tl.inline_asm_elementwise({text!r}, {constraints!r}, [value], dtype=tl.int32, is_pure=True, pack=1)
    tl.store(x + i, value)
"""


def pointwise(factor: float = 2.0, *, name: str = "pointwise", before: str = "", **how: Any) -> Kernel:
    """A small kernel. Another `factor` makes another one; `before` runs when the worker defines it."""
    return {
        "name": name,
        "source": HEAD + textwrap.dedent(before) + _POINTWISE.format(name=name, factor=factor),
        "signature": {"x": "*fp32", "y": "*fp32", "n": "i32"},
        "constants": {"BLOCK": 128},
        **how,
    }


def matmul(m: int = 32, n: int = 32, d: int = 32, *, name: str = "matmul", **options: Any) -> Kernel:
    """A matrix product with blocks of m × d and d × n."""
    return {
        "name": name,
        "source": HEAD + _MATMUL.format(name=name),
        "signature": {"a": "*fp16", "b": "*fp16", "c": "*fp32", "K": "i32"},
        "constants": {"M": m, "N": n, "D": d},
        "attrs": {"a": 16, "b": 16, "c": 16, "K": 16},
        "options": options,
    }


def too_large_matmul() -> Kernel:
    """It compiles, and needs more shared memory than any device has."""
    return matmul(128, 128, 128, name="too_large", num_warps=8, num_stages=6)


def assembly(text: str, constraints: str, *, name: str = "assembly") -> Kernel:
    """A kernel with a line of PTX of its own."""
    return {
        "name": name,
        "source": HEAD + _ASSEMBLY.format(name=name, text=text, constraints=constraints),
        "signature": {"x": "*i32"},
        "constants": {"BLOCK": 128},
    }


def refused_by_ptxas() -> Kernel:
    """ptxas knows no such instruction."""
    return assembly("bogus.b32 $0, $1;", "=r,r", name="refused_by_ptxas")


def aborts_in_llvm() -> Kernel:
    """LLVM reports a fatal error: there is no operand 5. That ends the process, as a failed assertion does."""
    return assembly("mov.b32 $0, $5;", "=r,r", name="aborts_in_llvm")


def raises() -> Kernel:
    """Triton's front end raises: shapes do not fit."""
    kernel = pointwise(name="raises")
    return {
        **kernel,
        "source": kernel["source"].replace("mask = i < n", "mask = i < tl.arange(0, 2 * BLOCK)"),
    }


def aborts() -> Kernel:
    """As an assertion that fails in C++ would, after some last words."""
    return pointwise(name="aborts", before='import os\nos.write(2, b"Assertion `false` failed\\n")\nos.abort()\n')


def killed() -> Kernel:
    """As when the machine's memory is exhausted."""
    return pointwise(name="killed", before="import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")


def exits() -> Kernel:
    """The compiling process ends."""
    return pointwise(name="exits", before="import os\nos._exit(7)\n")


def prints() -> Kernel:
    """It prints while it is compiled."""
    kernel = pointwise(name="prints")
    return {
        **kernel,
        "source": kernel["source"].replace("mask = i", 'tl.static_print("BLOCK is", BLOCK)\n    mask = i'),
    }


class Gate:
    """Kernels that say when their compile begins, and in which process, and do not go on until the gate is opened.

    Args:
        folder: where that is written down; made if need be.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def kernel(self, name: str = "gated", **how: Any) -> Kernel:
        """A pointwise kernel behind this gate."""
        before = f"""
        import os, pathlib, time
        pathlib.Path({str(self.folder)!r}, "{name}.%d" % os.getpid()).touch()
        while not os.path.exists({str(self.folder / "open")!r}):
            time.sleep(0.002)
        """
        return pointwise(name=name, before=before, **how)

    def pids(self, name: str = "gated") -> list[int]:
        """The processes that began to compile it, first one first."""
        files = sorted(self.folder.glob(f"{name}.*"), key=lambda path: path.stat().st_mtime_ns)
        return [int(path.suffix[1:]) for path in files]

    def began(self, name: str = "gated", times: int = 1) -> int:
        """The process that compiles it, once it was begun for the given time."""
        deadline = time.monotonic() + 30
        while len(self.pids(name)) < times:
            assert time.monotonic() < deadline, f"{name} was begun {len(self.pids(name))} times, not {times}"
            time.sleep(0.005)
        return self.pids(name)[times - 1]

    def wait(self) -> None:
        """Until it is opened, for those who are no kernels."""
        while not (self.folder / "open").exists():
            time.sleep(0.002)

    def open(self) -> None:
        """Let all go on."""
        (self.folder / "open").touch()


def hanging_ptxas(folder: Path) -> dict[str, str]:
    """Environment with a ptxas that never ends for kernels whose name begins with `hang`.

    It writes its process number to `folder`/ptxas.pid first.
    """
    script = folder / "ptxas"
    folder.mkdir(parents=True, exist_ok=True)
    script.write_text(
        textwrap.dedent(
            f"""\
            #!/bin/sh
            for argument in "$@"; do
                case "$argument" in
                *.ptx) if grep -q 'entry hang' "$argument"; then
                    echo $$ > {folder}/.pid && mv {folder}/.pid {folder}/ptxas.pid
                    exec sleep 1000
                fi ;;
                esac
            done
            exec {_real_ptxas()} "$@"
            """
        ),
        encoding="utf-8",
    )
    script.chmod(0o755)
    # Which one is asked for depends on the target and on Triton's version.
    return {"TRITON_PTXAS_PATH": str(script), "TRITON_PTXAS_BLACKWELL_PATH": str(script)}


class Ptxas:
    """A ptxas that writes down its calls, and for kernels whose name begins with `gated` waits until it is let go.

    Args:
        folder: where that is written down; made if need be.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        script = folder / "ptxas"
        script.write_text(
            textwrap.dedent(
                f"""\
                #!/bin/sh
                for argument in "$@"; do
                    case "$argument" in
                    *.ptx) echo $PPID $(grep -o 'entry [a-z0-9_]*' "$argument") >> {folder}/calls
                        if grep -q 'entry gated' "$argument"; then
                            while ! [ -e {folder}/open ]; do sleep 0.01; done
                            if mv {folder}/fail {folder}/failed 2> /dev/null; then exit 1; fi
                        fi ;;
                    esac
                done
                exec {_real_ptxas()} "$@"
                """
            ),
            encoding="utf-8",
        )
        script.chmod(0o755)
        self.environment = {"TRITON_PTXAS_PATH": str(script), "TRITON_PTXAS_BLACKWELL_PATH": str(script)}

    def callers(self, name: str) -> list[int]:
        """The workers that have called it for a kernel, first one first."""
        calls = self.folder / "calls"
        lines = calls.read_text().splitlines() if calls.exists() else []
        return [int(line.split()[0]) for line in lines if line.endswith(f"entry {name}")]

    def open(self, *, fail: bool = False) -> None:
        """Let all go on; with `fail`, the first of them fails."""
        if fail:
            (self.folder / "fail").touch()
        (self.folder / "open").touch()


def _real_ptxas() -> Path:
    from headstart.model.toolchain import find_toolchain

    folder = Path(find_toolchain().triton_dir, "backends", "nvidia", "bin")
    names = ("ptxas-blackwell", "ptxas") if find_toolchain().triton_version.startswith("3.9") else ("ptxas",)
    return next(folder / name for name in names if (folder / name).exists())


def dying_ptxas(folder: Path, deaths: int) -> dict[str, str]:
    """Environment with a ptxas that is killed (SIGKILL) in its first `deaths` compiles; it notes each call."""
    script, calls = folder / "ptxas", folder / "calls"
    folder.mkdir(parents=True, exist_ok=True)
    script.write_text(
        textwrap.dedent(
            f"""\
            #!/bin/sh
            case "$*" in
            *.ptx*)
                echo called >> {calls}
                [ $(wc -l < {calls}) -le {deaths} ] && kill -9 $$ ;;
            esac
            exec {_real_ptxas()} "$@"
            """
        ),
        encoding="utf-8",
    )
    script.chmod(0o755)
    return {"TRITON_PTXAS_PATH": str(script), "TRITON_PTXAS_BLACKWELL_PATH": str(script)}
