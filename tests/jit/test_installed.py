"""What is installed in the program costs it nothing: hooks, listeners, autotuners and what is printed are as without.

Each program runs twice, with the adapter and without (`STOCK`), and tells the same.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import Client

pytestmark = pytest.mark.triton

Start = Callable[..., Client]
Both = Callable[..., tuple[dict[str, Any], dict[str, Any]]]

HEAD = """
import json, logging, os, sys
sys.path.insert(0, {folder!r})
logging.basicConfig(level=logging.WARNING, format="%(message)s")
STOCK = sys.argv[1] == "stock"
adapter = None
if not STOCK:
    from headstart.client.client import Client
    from headstart.adapters.triton.adapter import Adapter
    adapter = Adapter(Client(workers=2))
    adapter.install()
import triton, triton.language as tl
from triton import knobs
from gpuless import Tensor, launches
from the_kernels import *

def told(**what):
    counts = None if STOCK else dict(adapter.counts)
    if not STOCK:
        adapter.close(); adapter.compiler.client.close()
    sys.stdout.flush()
    print("TOLD", json.dumps(dict(counts=counts, **what)))
"""

KERNELS = """
import collections, dataclasses, enum, typing
import triton, triton.language as tl
from gpuless import Tensor

x, y = Tensor(), Tensor()

@triton.jit
def kernel(x, y, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i, mask=i < n) * 3, mask=i < n)
"""


@pytest.fixture
def both(start_client: Start, tmp_path: Path) -> Both:
    """Runs a program with the adapter and without: what each told, `out` and `err` being what it printed."""

    def run(body: str, kernels: str = "", **variables: str) -> tuple[dict[str, Any], dict[str, Any]]:
        (tmp_path / "the_kernels.py").write_text(KERNELS + textwrap.dedent(kernels))
        program = HEAD.format(folder=str(Path(__file__).parent)) + textwrap.dedent(body)
        results = []
        for how in ("headstart", "stock"):
            client = start_client(program, how, **{"TRITON_CACHE_DIR": str(tmp_path / how), **variables})
            output, errors = client.process.communicate(timeout=100)
            assert client.process.returncode == 0, errors.decode()
            *printed, line = output.decode().splitlines()
            told = json.loads(line.removeprefix("TOLD "))
            results.append({**told, "out": printed, "err": errors.decode()})
        return results[0], results[1]

    return run


CONSTANTS = """
@triton.jit
def function(value):
    return value + 1

class Color(enum.Enum):
    RED = 1

class Mode(enum.IntEnum):
    FAST = 2

@dataclasses.dataclass(frozen=True)
class Tile:
    rows: int = 4

Named = collections.namedtuple("Named", ["a", "b"])

@triton.jit
def ignoring(y, CONSTANT: tl.constexpr):
    tl.store(y, 1.0)

CONSTANTS = {
    "int": 1, "float": 2.5, "bool": True, "None": None, "str": "text", "large": 2**70, "nan": float("nan"),
    "dtype": tl.float16, "function": function, "constexpr": tl.constexpr(3), "Enum": Color.RED, "IntEnum": Mode.FAST,
    "dataclass": Tile(), "frozenset": frozenset({1}), "range": range(3), "bytes": b"bytes", "class": Tile,
    "tuple": (1, 2), "tuple of functions": (function, function), "tuple of dtypes": (tl.float16, tl.int32),
    "namedtuple": Named(1, function), "complex": 1j,
}
"""


def test_every_type_that_triton_accepts_as_a_constant_is_accepted(both: Both) -> None:
    mine, stock = both(
        """
        outcome = {}
        for name, value in CONSTANTS.items():
            try:
                ignoring[(1,)](y, CONSTANT=value)
                outcome[name] = "launched"
            except Exception as error:
                outcome[name] = f"{type(error).__name__}: {error}"
        told(outcome=outcome)
        """,
        CONSTANTS,
    )
    assert mine["outcome"] == stock["outcome"]
    assert {name for name, what in stock["outcome"].items() if what == "launched"} >= {"int", "function"}
    assert "this is a bug" not in mine["err"]


def test_a_hook_of_the_programs_own_is_called_as_without_and_fails_as_without(both: Both) -> None:
    mine, stock = both(
        """
        seen = []
        def hook(**told):
            seen.append([told["fn"].name, sorted(told["compile"]), told["is_manual_warmup"], told["already_compiled"]])
            return told["compile"]["constants"].get((3,)) == 128
        def after(**told):
            seen.append(["after", told["fn"].name])
        knobs.runtime.jit_cache_hook, knobs.runtime.jit_post_compile_hook = hook, after
        kernel[(1,)](x, y, 10, BLOCK=64)
        refused = kernel.warmup(x, y, 10, BLOCK=128, grid=(1,))
        try:
            ignoring[(1,)](y, CONSTANT=Color.RED)
            error = None
        except Exception as caught:
            error = f"{type(caught).__name__}: {caught}"
        told(seen=seen, refused=refused, error=error, launches=len(launches))
        """,
        CONSTANTS,
    )
    for name in ("seen", "refused", "error", "launches"):
        assert mine[name] == stock[name]
    assert stock["error"].startswith("TypeError")  # Triton's own: it writes JSON for a hook
    assert mine["counts"]["asked"] == 1


def test_a_listener_hears_whether_it_was_compiled_and_how_long_it_took(both: Both) -> None:
    mine, stock = both(
        """
        heard = []
        def listener(*, src, metadata, metadata_group, times, cache_hit):
            heard.append(dict(
                name=src.name, kind=type(src).__name__, hit=cache_hit, files=sorted(metadata_group),
                shared=metadata["shared"], target=str(metadata["target"]),
                stages=[name for name, _ in times.lowering_stages],
                took=times.total > 0, ir=times.ir_initialization > 0, type=type(times).__name__,
                there=all(os.path.exists(path) for path in metadata_group.values()),
            ))
        knobs.compilation.listener = listener
        kernel[(1,)](x, y, 10, BLOCK=64)
        kernel.device_caches.clear()
        kernel[(1,)](x, y, 10, BLOCK=64)
        told(heard=heard, kept=knobs.compilation.listener is listener)
        """
    )
    assert [each["hit"] for each in stock["heard"]] == [False, True]
    assert mine["heard"] == stock["heard"]
    assert mine["kept"]


PRINTING = """
@triton.jit
def talking(y, N: tl.constexpr):
    tl.static_print("at compile time", N)
    index = tl.arange(0, 2)
    tl.store(y + index, 1.0, mask=(index > 0) and (index < 5))

@triton.constexpr_function
def told_by_python(n):
    import functools
    print("from Python", n)
    return n

@triton.jit
def of_python(y):
    tl.store(y, 1.0 * told_by_python(7))
"""


def test_what_a_compile_prints_goes_to_where_triton_prints_it(both: Both) -> None:
    mine, stock = both(
        """
        import contextlib, io, warnings
        buffer = io.StringIO()
        with contextlib.redirect_stdout(buffer), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            talking.warmup(y, N=5, grid=(1,))
            of_python.warmup(y, grid=(1,))
        warned = [[each.category.__name__, str(each.message), os.path.basename(each.filename)] for each in caught]
        told(printed=buffer.getvalue(), warned=warned)
        """,
        PRINTING,
    )
    assert "at compile time" in stock["printed"]
    assert mine["printed"] == stock["printed"]
    assert mine["warned"] == stock["warned"]
    assert mine["counts"]["in_process"] == 0


def test_a_warning_that_the_program_makes_an_error_is_the_error_that_triton_raises(both: Both) -> None:
    mine, stock = both(
        """
        import warnings
        kernel.warmup(x, y, 10, BLOCK=64, grid=(1,))
        warnings.simplefilter("error")
        try:
            talking.warmup(y, N=6, grid=(1,))
            error = None
        except Exception as caught:
            error = [type(caught).__name__, str(caught)]
        told(error=error)
        """,
        PRINTING,
        TRITON_DEFAULT_FP_FUSION="1",
    )
    assert mine["error"] == stock["error"]
    assert stock["error"] is not None


ERRORS = """
SCALE = tl.constexpr(2)
LATER = tl.constexpr(3)

@triton.jit(do_not_specialize=["N"])
def not_specialized(y, N: tl.constexpr):
    tl.store(y, N * 1.0)

@triton.jit
def inner(value):
    return value * SCALE

@triton.jit
def outer(y):
    tl.store(y, inner(1.0))

@triton.jit
def other(y):
    tl.store(y, SCALE * inner(1.0))

@triton.jit
def returning(y, N: tl.constexpr):
    tl.store(y, N.no_such_attribute)
"""


def test_errors_are_tritons_own_at_the_same_moment(both: Both) -> None:
    mine, stock = both(
        """
        import the_kernels
        errors = []
        def attempt(call):
            try:
                call()
                errors.append(None)
            except Exception as error:
                cause = error.__cause__
                errors.append([type(error).__module__, type(error).__name__, str(error), str(cause),
                               type(error.__context__).__name__])
        attempt(lambda: not_specialized[(1,)](y, N=4))
        attempt(lambda: returning[(1,)](y, N=4))
        attempt(lambda: outer[(1,)](y))
        the_kernels.SCALE = tl.constexpr(5)
        attempt(lambda: outer[(1,)](y))
        attempt(lambda: other[(1,)](y))
        attempt(lambda: other[(1,)](y))
        told(errors=errors)
        """,
        ERRORS,
    )
    assert mine["errors"] == stock["errors"]
    raised = [error and error[1] for error in stock["errors"]]
    assert raised[:3] == ["CompilationError", "CompilationError", None]
    assert "RuntimeError" in raised[3:]  # at which launch is another matter on 3.6 and 3.7


TUNED = """
from triton.runtime.autotuner import Autotuner

class Choices:
    "As kept in a database: not a dict."
    def __init__(self):
        self.kept = {}
    def __contains__(self, key):
        return key in self.kept
    def __getitem__(self, key):
        return self.kept[key]
    def __setitem__(self, key, config):
        self.kept[key] = config

class Mine(Autotuner):
    def __init__(self, *arguments, **more):
        super().__init__(*arguments, **more)
        self.cache = Choices()

def benchmark(call, quantiles):
    from gpuless import launches
    call()
    return [1.0 / launches[-1].metadata.num_warps] * 3

CONFIGS = [triton.Config({"BLOCK": 64}, num_warps=warps) for warps in (1, 2, 4)]

@triton.jit
def tuned(x, y, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i, mask=i < n), mask=i < n)

def make(kind):
    return kind(tuned, tuned.arg_names, CONFIGS, ["n"], None, None, do_bench=benchmark)

@triton.jit
def conflicting_inner(value):
    return value * SCALE

SCALE = tl.constexpr(2)

@triton.autotune([triton.Config({"BLOCK": 64}, num_warps=warps) for warps in (1, 2)], key=["n"], do_bench=benchmark)
@triton.jit
def conflicting(y, n, BLOCK: tl.constexpr):
    tl.store(y + tl.arange(0, BLOCK), SCALE * conflicting_inner(1.0))

@triton.jit
def first_user(y):
    tl.store(y, conflicting_inner(1.0))
"""


def test_an_autotuner_with_a_cache_of_its_own_keeps_it(both: Both) -> None:
    mine, stock = both(
        """
        tuner = make(Mine)
        tuner[(1,)](x, y, 10)
        tuner[(1,)](x, y, 10)
        told(cache=type(tuner.cache).__name__, best=str(tuner.best_config), kept=len(tuner.cache.kept),
             launches=len(launches))
        """,
        TUNED,
    )
    for name in ("cache", "best", "kept", "launches"):
        assert mine[name] == stock[name]
    assert mine["counts"]["kicked_off"] == 3
    assert "this is a bug" not in mine["err"]


def test_a_failure_of_ours_beside_an_autotuner_is_a_line_in_the_log(both: Both) -> None:
    mine, stock = both(
        """
        if not STOCK:
            from headstart.adapters.triton import compat
            compat.tuned = compat.is_fixed = None
        tuner = make(Autotuner)
        tuner[(1,)](x, y, 10)
        told(best=str(tuner.best_config), launches=len(launches))
        """,
        TUNED,
    )
    assert (mine["best"], mine["launches"]) == (stock["best"], stock["launches"])
    assert "this is a bug" in mine["err"]


def test_kicking_configurations_off_does_not_swallow_what_triton_raises_only_once(both: Both) -> None:
    mine, stock = both(
        """
        import the_kernels
        first_user[(1,)](y)
        the_kernels.SCALE = tl.constexpr(5)
        errors = []
        for _ in range(2):
            try:
                conflicting[(1,)](y, 10)
                errors.append(None)
            except RuntimeError as error:
                errors.append(str(error))
        told(errors=errors)
        """,
        TUNED,
    )
    assert mine["errors"] == stock["errors"]
    assert "conflicting value" in stock["errors"][0]


def test_a_cache_folder_that_cannot_be_made_is_replaced_by_one_of_ours(both: Both, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    body = """
        outcome = []
        for _ in range(2):
            try:
                kernel[(1,)](x, y, 10, BLOCK=64)
                outcome.append("launched")
            except OSError as error:
                outcome.append(type(error).__name__)
        told(outcome=outcome, launches=len(launches))
        """
    mine, stock = both(body, TRITON_CACHE_DIR=str(tmp_path / "file" / "below"), TMPDIR=str(tmp_path))
    assert stock["outcome"] == ["NotADirectoryError"] * 2
    assert (mine["outcome"], mine["launches"]) == (["launched"] * 2, 2)
    assert mine["err"].count("Triton's cache cannot be written") == 1
    assert not list(tmp_path.glob("headstart-*"))


def test_benchmarks_of_tritons_own_run_in_a_dry_run(start_client: Start) -> None:
    pytest.importorskip("torch")  # Triton's `testing` imports it
    program = HEAD.format(folder=str(Path(__file__).parent)) + textwrap.dedent(
        """
        from headstart.adapters.triton import dry_run
        from headstart.model.target import Target
        dry_run.install(Target.parse("cuda:90"))
        from triton.testing import do_bench
        runs = []
        assert do_bench(lambda: runs.append(1)) > 0
        assert len(do_bench(lambda: None, quantiles=[0.5, 0.2])) == 2
        assert len(do_bench(lambda: None, return_mode="all")) > 0
        assert len(runs) < 20, len(runs)
        print("measured")
        """
    )
    client = start_client(program.replace("from the_kernels import *", ""), "stock")
    assert "measured" in client.finish()
