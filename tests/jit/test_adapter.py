"""Programs that use @triton.jit, with the adapter: what their own process does, and what they get.

Each program is a process of its own, on a driver that launches nothing (`gpuless`), and prints what a test asks about.
"""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import Client
from headstart.artifacts.manifest import Manifest

pytestmark = pytest.mark.triton

Start = Callable[..., Client]
Run = Callable[..., dict[str, Any]]

HEAD = """
import json, logging, os, sys, threading
logging.basicConfig(level=logging.WARNING, format="%(message)s")
from headstart.client.client import Client
from headstart.adapters.triton.adapter import Adapter

def enable(**more):
    adapter = Adapter(Client(workers=2, bundle=more.pop("bundle", None)), **more)
    adapter.install()
    return adapter
"""

KERNEL = """
import hashlib, json, sys
import triton, triton.language as tl
import gpuless
from gpuless import Tensor, launches, stages

@triton.jit
def scaled(value, BY: tl.constexpr):
    return value * BY

@triton.jit
def kernel(x, y, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, scaled(tl.load(x + i, mask=i < n), 3), mask=i < n)

x, y = Tensor(), Tensor()

def cubins(fn=kernel):
    found = fn.device_caches[0][0].values()
    return sorted(hashlib.sha256(kernel.asm["cubin"]).hexdigest() for kernel in found)

def told(**more):  # what the test asks about
    sys.stdout.flush()
    print("TOLD", json.dumps(dict(stages=stages, launches=len(launches), **more)))
"""


@pytest.fixture
def run(start_client: Start, tmp_path: Path) -> Run:
    """Runs a program: what it told; `log` is what it logged. `before`: a text to stand before Triton is imported."""

    def start(body: str, *, before: str = "adapter = enable()", **variables: str) -> dict[str, Any]:
        # In a module of its own: debug lines hold the file's name, and ptxas adds when it was modified.
        if not (tmp_path / "some_kernels.py").exists():
            (tmp_path / "some_kernels.py").write_text(KERNEL)
        path = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        program = HEAD + textwrap.dedent(before) + "\nfrom some_kernels import *\n" + textwrap.dedent(body)
        client = start_client(path + program, **variables)
        output, errors = client.process.communicate(timeout=60)
        assert client.process.returncode == 0, errors.decode()
        (line,) = [line for line in output.decode().splitlines() if line.startswith("TOLD ")]
        return {**json.loads(line.removeprefix("TOLD ")), "log": errors.decode()}

    return start


LAUNCH = """
kernel[(1,)](x, y, 10, BLOCK=64)
kernel[(1,)](x, y, 16, BLOCK=64)
kernel[(1,)](x, y, 1, BLOCK=64, num_warps=8)
kernel[(1,)](x, y, 11, BLOCK=64)
told(cubins=cubins(), counts=adapter.counts, services=adapter.compiler.services_started)
adapter.close(); adapter.compiler.client.close()
"""

STOCK = LAUNCH.replace("counts=adapter.counts, services=adapter.compiler.services_started", "").replace(
    "adapter.close(); adapter.compiler.client.close()", ""
)


def test_a_program_never_enters_the_pipeline_and_gets_the_bytes_that_triton_makes(run: Run, tmp_path: Path) -> None:
    cold = run(LAUNCH)
    assert cold["stages"] == []
    assert cold["launches"] == 4
    assert cold["counts"] == {
        "asked": 3, "kicked_off": 3, "from_cache": 0, "late": 3, "in_process": 0, "failed": 0, "refuted": 0,
        "autotuned": 0, "reused": 0,
    }  # fmt: skip
    again = run(LAUNCH)  # from Triton's own cache
    assert again["stages"] == []
    assert (again["counts"]["from_cache"], again["counts"]["kicked_off"]) == (3, 0)
    stock = run(STOCK, before="", TRITON_CACHE_DIR=str(tmp_path / "stock"))
    assert "make_ir" in stock["stages"]
    assert cold["cubins"] == again["cubins"] == stock["cubins"]


def test_stock_triton_finds_what_headstart_wrote_into_its_cache(run: Run, tmp_path: Path) -> None:
    cold = run(LAUNCH, TRITON_CACHE_DIR=str(tmp_path / "here"))
    stock = run(STOCK, before="", TRITON_CACHE_DIR=str(tmp_path / "here"))
    assert (stock["stages"], stock["cubins"]) == ([], cold["cubins"])


def test_a_program_with_a_bundle_starts_no_service(run: Run, tmp_path: Path) -> None:
    before = f"adapter = enable(bundle={str(tmp_path / 'it.bundle')!r})"
    first = run(LAUNCH, before=before)
    assert first["services"] == 1
    elsewhere = {"TRITON_CACHE_DIR": str(tmp_path / "t"), "HEADSTART_CACHE_DIR": str(tmp_path / "h")}
    second = run(LAUNCH, before=before, **elsewhere)
    assert (second["stages"], second["services"], second["counts"]["late"]) == ([], 0, 0)
    assert second["cubins"] == first["cubins"]


def test_what_was_submitted_before_is_not_late(run: Run) -> None:
    first = run(
        """
        from headstart.adapters.recording import Recorder
        adapter.recorder = Recorder("it.manifest")
        kernel[(1,)](x, y, 10, BLOCK=64)
        adapter.recorder.close()
        from headstart.artifacts.manifest import Manifest
        found = Manifest.open("it.manifest").in_compile_order()
        told(asked_by=[each.asked_by for each in found], seconds=[each.duration_s for each in found])
        adapter.close(); adapter.compiler.client.close()
        """
    )
    (asked_by,), (seconds,) = first["asked_by"], first["seconds"]
    assert asked_by.rpartition(":")[0].endswith("client0.py")
    assert seconds > 0
    second = run(
        """
        from headstart.artifacts.manifest import Manifest
        (each,) = Manifest.open("it.manifest").in_compile_order()
        adapter.compiler.submit(each.request).result()
        kernel[(1,)](x, y, 10, BLOCK=64)
        told(counts=adapter.counts, seen=len(adapter.compiler.timeline))
        adapter.close(); adapter.compiler.client.close()
        """,
        TRITON_CACHE_DIR=os.environ["TRITON_CACHE_DIR"] + "-2",
    )
    assert second["counts"]["late"] == 0
    assert (second["counts"]["kicked_off"], second["seen"]) == (0, 1)


def test_what_triton_had_in_its_cache_is_recorded_too(run: Run, tmp_path: Path) -> None:
    run(LAUNCH)
    run(
        LAUNCH + "recorder.close()\n",
        before="from headstart.adapters.recording import Recorder\n"
        "recorder = Recorder('second.manifest')\nadapter = enable(recorder=recorder)",
    )
    assert len(Manifest.open(tmp_path / "second.manifest").specializations) == 3


def test_hooks_and_cache_managers_of_others_are_kept(run: Run) -> None:
    told = run(
        """
        from triton import knobs
        from triton.runtime.cache import FileCacheManager
        seen, put, refuse = [], [], False

        def theirs(**told):
            seen.append(told["fn"].name)
            return refuse

        class Manager(FileCacheManager):
            def put(self, data, filename, binary=True):
                put.append(filename)
                return super().put(data, filename, binary)

        knobs.runtime.jit_cache_hook = theirs
        adapter = enable()
        knobs.cache.manager_class = Manager   # after headstart: it is taken up with the next compile
        kernel[(1,)](x, y, 10, BLOCK=64)
        warm = kernel.warmup(x, y, 1, BLOCK=64, grid=(1,))
        refuse = True
        refused = kernel.warmup(x, y, 16, BLOCK=64, grid=(1,))
        adapter.close(); adapter.compiler.client.close()
        told(
            seen=seen, put=sorted({name.rpartition(".")[2] for name in put}), warm=type(warm).__name__,
            refused=refused, restored=[knobs.runtime.jit_cache_hook is theirs, knobs.cache.manager_class is Manager],
            counts=adapter.counts,
        )
        """,
        before="",
    )
    assert told["stages"] == []
    assert told["seen"] == ["kernel"] * 3
    assert {"cubin", "json", "ptx", "ttir"} <= set(told["put"])
    assert told["warm"] == "CompiledKernel"
    assert told["refused"] is None
    assert told["restored"] == [True, True]
    assert told["counts"]["asked"] == 2


MANAGER = """
from triton.runtime.cache import FileCacheManager

class Manager(FileCacheManager):
    def put(self, data, filename, binary=True):
        with open("put.txt", "a") as file:
            print(filename, file=file)
        return super().put(data, filename, binary)
"""


def test_the_manager_that_a_variable_names_is_kept(run: Run, tmp_path: Path) -> None:
    (tmp_path / "my_manager.py").write_text(MANAGER)
    told = run(LAUNCH, TRITON_CACHE_MANAGER="my_manager:Manager")
    assert told["stages"] == []
    assert "kernel.cubin" in (tmp_path / "put.txt").read_text().split()


def test_a_cache_that_cannot_be_written_costs_one_warning(run: Run, tmp_path: Path) -> None:
    told = run(
        "from triton import knobs\n"
        "from triton.runtime.cache import FileCacheManager\n"
        "class Full(FileCacheManager):\n"
        "    def put(self, data, filename, binary=True):\n"
        "        raise OSError(28, 'No space left on device')\n"
        "knobs.cache.manager_class = Full\n" + LAUNCH,
        TMPDIR=str(tmp_path),
    )
    assert (told["stages"], told["launches"]) == ([], 4)
    assert told["log"].count("No space left on device") == 1
    assert not list(tmp_path.glob("headstart-*"))


def test_threads_that_launch_one_kernel_at_once_get_one_compile(run: Run) -> None:
    told = run(
        """
        barrier, errors = threading.Barrier(8), []
        def launch():
            barrier.wait()
            try:
                kernel[(1,)](x, y, 10, BLOCK=64)
            except BaseException as error:
                errors.append(repr(error))
        threads = [threading.Thread(target=launch) for _ in range(8)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        told(errors=errors, compiled=adapter.compiler.statistics.compiled)
        adapter.close(); adapter.compiler.client.close()
        """
    )
    assert (told["errors"], told["stages"], told["launches"], told["compiled"]) == ([], [], 8, 1)


def test_tritons_own_threads_find_what_its_hook_asked_for(run: Run) -> None:
    told = run(
        """
        from concurrent.futures import ThreadPoolExecutor
        from triton.runtime._async_compile import AsyncCompileMode
        with ThreadPoolExecutor(2) as pool, AsyncCompileMode(pool):
            for block in (64, 128):
                kernel.warmup(x, y, 10, BLOCK=block, grid=(1,))
        told(counts=adapter.counts)
        adapter.close(); adapter.compiler.client.close()
        """
    )
    assert (told["stages"], told["counts"]["kicked_off"]) == ([], 2)


def test_a_fork_launches_what_its_parent_had_kicked_off_and_more(run: Run) -> None:
    told = run(
        """
        with adapter.prefetching():
            kernel.run(x, y, 10, BLOCK=64, grid=(1,), warmup=True)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                kernel[(1,)](x, y, 10, BLOCK=64)
                kernel[(1,)](x, y, 10, BLOCK=128)
                status = 0 if stages == [] and len(launches) == 2 else 2
                adapter.close(); adapter.compiler.client.close()
            finally:
                os._exit(status)
        kernel[(1,)](x, y, 10, BLOCK=64)
        _, status = os.waitpid(child, 0)
        told(status=status)
        adapter.close(); adapter.compiler.client.close()
        """
    )
    assert (told["status"], told["stages"], told["launches"]) == (0, [], 1)


def test_a_kernel_of_a_notebook_cell_that_is_defined_again_is_another_kernel(run: Run) -> None:
    told = run(
        """
        import linecache
        def cell(number, text):
            name = f"<cell {number}>"
            linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
            exec(compile(text, name, "exec"), globals())
        TEXT = "@triton.jit\\ndef told_by_cell(x, FACTOR: tl.constexpr):\\n    tl.store(x, FACTOR + {})\\n"
        found = []
        for number in (1, 2):
            cell(number, TEXT.format(number))
            told_by_cell[(1,)](x, FACTOR=1)
            found += cubins(told_by_cell)
        told(distinct=len(set(found)))
        adapter.close(); adapter.compiler.client.close()
        """
    )
    assert (told["stages"], told["distinct"]) == ([], 2)


def test_a_kernel_that_cannot_travel_is_compiled_here_with_one_warning(run: Run) -> None:
    body = """
        from triton.language import core
        @core.builtin
        def mine(value, _semantic=None):
            return value
        @triton.jit
        def uses_mine(x, n, BLOCK: tl.constexpr):
            tl.store(x + tl.arange(0, BLOCK), mine(n))
        try:
            uses_mine[(1,)](x, 10, BLOCK=64)
            uses_mine[(1,)](x, 16, BLOCK=64)
            error = None
        except Exception as caught:
            error = f"{type(caught).__name__}: {caught}"
        told(counts=adapter.counts, error=error)
        adapter.close(); adapter.compiler.client.close()
        """
    told = run(body)
    assert told["error"] is None
    assert (told["counts"]["in_process"], told["launches"]) == (2, 2)
    assert "make_ir" in told["stages"]
    assert told["log"].count("uses_mine is compiled in this process") == 1
    elsewhere = os.environ["TRITON_CACHE_DIR"] + "-2"
    required = run(body, HEADSTART="require", TRITON_CACHE_DIR=elsewhere)
    assert required["error"].startswith("ServiceError: ")
    assert required["stages"] == []


FAILING = """
@triton.jit
def inner(BLOCK: tl.constexpr):
    return tl.arange(0, BLOCK + 1)

@triton.jit
def nested(x, BLOCK: tl.constexpr):
    tl.store(x + inner(BLOCK), 1.0)

@triton.jit
def asserts(x, BLOCK: tl.constexpr):
    tl.static_assert(BLOCK < 10, "too large")
    tl.store(x, 1.0)

@triton.jit
def unknown(x, BLOCK: tl.constexpr):
    tl.store(x, no_such_name)

errors = []
for fn in (nested, asserts, unknown):
    try:
        fn[(1,)](x, BLOCK=64)
    except Exception as error:
        cause = error.__cause__
        errors.append([type(error).__module__, type(error).__name__, str(error), type(cause).__name__, str(cause)])
told(errors=errors, counts=dict(adapter.counts) if "adapter" in globals() else None)
"""


def test_what_a_failing_kernel_raises_is_what_triton_raises(run: Run, tmp_path: Path) -> None:
    mine = run(FAILING + "adapter.close(); adapter.compiler.client.close()\n")
    stock = run(FAILING, before="\n", TRITON_CACHE_DIR=str(tmp_path / "stock"))
    assert [error[1] for error in stock["errors"]] == [
        "CompilationError", "CompileTimeAssertionFailure", "CompilationError"
    ]  # fmt: skip
    assert mine["errors"] == stock["errors"]
    assert mine["counts"]["failed"] == 3, "Triton compiled each here once, for its own error"


@pytest.mark.parametrize(("variable", "value"), [("TRITON_ALWAYS_COMPILE", "1"), ("TRITON_KERNEL_DUMP", "1")])
def test_asking_to_see_compiles_happen_makes_them_happen_here(
    run: Run, tmp_path: Path, variable: str, value: str
) -> None:
    told = run(LAUNCH, **{variable: value, "TRITON_DUMP_DIR": str(tmp_path / "dump")})
    assert "make_ir" in told["stages"]
    assert (told["counts"]["in_process"], told["counts"]["kicked_off"]) == (3, 0)
    assert told["log"].count(f"leaves Triton's kernels alone: {variable}") == 1


def test_somebody_who_inspects_stages_sees_them(run: Run) -> None:
    told = run(
        """
        from triton import knobs
        seen = []
        def inspect(*stages):
            seen.append(len(stages))
            return ("mine", "mine") if not stages else None
        knobs.runtime.add_stages_inspection_hook = inspect
        """
        + textwrap.indent(LAUNCH, " " * 8)
    )
    assert "make_ir" in told["stages"]
    assert "add_stages_inspection_hook" in told["log"]


def test_off_changes_nothing(run: Run) -> None:
    told = run(
        """
        from triton import knobs
        from triton.runtime.autotuner import Autotuner
        told(
            hook=knobs.runtime.jit_cache_hook, manager=knobs.cache.manager_class,
            prune=Autotuner.prune_configs.__module__, services=adapter.compiler.services_started,
        )
        adapter.close(); adapter.compiler.client.close()
        """,
        HEADSTART="off",
    )
    assert (told["hook"], told["manager"], told["services"]) == (None, None, 0)
    assert told["prune"] == "triton.runtime.autotuner"


def test_close_puts_everything_back_and_nothing_is_done_at_launches(run: Run) -> None:
    told = run(
        """
        from triton import knobs
        from triton.runtime.autotuner import Autotuner
        def state():
            return [
                knobs.runtime.jit_cache_hook, "manager_class" in vars(knobs.cache),
                triton.JITFunction._do_compile.__code__.co_filename.rpartition("/")[2],
                Autotuner.prune_configs.__module__, Autotuner._bench.__module__,
                knobs.runtime.launch_enter_hook.calls, knobs.runtime.launch_exit_hook.calls,
                triton.JITFunction.run.__module__, Autotuner.run.__module__, sys.meta_path == finders,
            ]
        during = state()
        adapter.close(); adapter.compiler.client.close()
        kernel[(1,)](x, y, 10, BLOCK=64)
        told(during=during, after=state())
        """,
        before="finders = list(sys.meta_path)\nadapter = enable()",
    )
    stock = "triton.runtime.autotuner"
    ours = "headstart.adapters.triton.patches"
    launching = [[], [], "triton.runtime.jit", stock, True]
    assert told["during"] == [None, False, "patches.py", ours, ours, *launching]
    assert told["after"] == [None, False, "jit.py", stock, stock, *launching]
    assert "make_ir" in told["stages"]


def test_without_a_service_kernels_are_compiled_here_with_one_warning(run: Run) -> None:
    body = """
        import sys
        sys.executable = "/nowhere/python"
        try:
            kernel[(1,)](x, y, 10, BLOCK=64)
            kernel[(1,)](x, y, 16, BLOCK=64)
            error = None
        except Exception as caught:
            error = type(caught).__name__
        told(counts=adapter.counts, error=error)
        adapter.close(); adapter.compiler.client.close()
        """
    before = "import sys; python = sys.executable; sys.executable = '/nowhere/python'\nadapter = enable()"
    told = run(body, before=before)
    assert (told["error"], told["counts"]["in_process"], told["launches"]) == (None, 2, 2)
    assert told["log"].count("kernels are compiled in this process: no usable Python") == 1
    elsewhere = os.environ["TRITON_CACHE_DIR"] + "-2"
    required = run(body, before=before, HEADSTART="require", TRITON_CACHE_DIR=elsewhere)
    assert required["error"] == "ServiceError"


def test_a_triton_that_is_not_known_is_left_alone(run: Run) -> None:
    told = run(
        """
        from triton import knobs
        told(hook=knobs.runtime.jit_cache_hook)
        adapter.close(); adapter.compiler.client.close()
        """,
        before="import triton\ntriton.__version__ = '9.9.0'\nadapter = enable()",
    )
    assert told["hook"] is None
    assert "headstart leaves Triton 9.9.0 alone: it knows 3.6, 3.7, 3.8, 3.9" in told["log"]


def test_waiting_for_an_import_that_never_comes_costs_nothing(start_client: Start) -> None:
    program = HEAD + (
        "adapter = enable()\n"
        "import colorsys\n"
        "assert 'triton' not in sys.modules\n"
        "assert threading.active_count() == 1\n"
        "assert adapter.compiler.services_started == 0\n"
        "adapter.close(); adapter.compiler.client.close()\n"
    )
    start_client(program).finish()
