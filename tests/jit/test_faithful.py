"""What a worker compiles is what the program would have compiled: same bytes, or Triton compiles it in the program.

Every kernel below is launched twice, in programs of their own: with the adapter, and with Triton alone, which is the
reference. `elsewhere` are those that a worker must have been able to compile; of the others it only counts that the
program got what it would have got.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from conftest import Client

pytestmark = pytest.mark.triton

Start = Callable[..., Client]


class Outcome(NamedTuple):
    worker: set[str]
    here: set[str]
    raised: set[str]


Compare = Callable[..., Outcome]

HEAD = """
import collections, enum, functools, hashlib, json, linecache, logging, math, os, sys, typing
import triton, triton.language as tl
from gpuless import Tensor

x, y = Tensor(), Tensor()
kernels = {}

def case(name, fn, *arguments, **options):
    kernels[name] = (fn, arguments, options)
"""

PROGRAM = """
import logging, sys
logging.basicConfig(level=logging.WARNING, format="%(message)s")
stock = "stock" in sys.argv
if not stock:
    from headstart.client.client import Client
    from headstart.adapters.triton.adapter import Adapter
    adapter = Adapter(Client(workers=2))
    adapter.install()
import hashlib, json, re
from the_kernels import kernels, x, y
told = {}
for name, (fn, arguments, options) in kernels.items():
    before = 0 if stock else adapter.counts["in_process"]
    try:
        made = fn.warmup(*arguments, grid=(1,), **options)
        result = hashlib.sha256(made.asm["cubin"]).hexdigest()
    except Exception as error:
        told[name] = [re.sub("0x[0-9a-f]+", "0x", f"{type(error).__name__}: {error}"), "raised"]
    else:
        told[name] = [result, "here" if stock or adapter.counts["in_process"] > before else "worker"]
if not stock:
    told["counts"] = [adapter.counts, ""]
    adapter.close(); adapter.compiler.client.close()
print("TOLD", json.dumps(told))
"""


@pytest.fixture
def compare(start_client: Start, tmp_path: Path) -> Compare:
    """Runs kernels that a text defines under both. All must have become the same, or raised the same.

    Returns the names of those that a worker compiled, that were compiled here, and that raised.
    """

    def run(text: str, **variables: str) -> Outcome:
        (tmp_path / "the_kernels.py").write_text(HEAD + textwrap.dedent(text), encoding="utf-8", newline="")
        path = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        results: list[dict[str, Any]] = []
        for how in ("headstart", "stock"):
            client = start_client(path + PROGRAM, how, TRITON_CACHE_DIR=str(tmp_path / how), **variables)
            output, errors = client.process.communicate(timeout=100)
            assert client.process.returncode == 0, errors.decode()
            (line,) = [line for line in output.decode().splitlines() if line.startswith("TOLD ")]
            results.append(json.loads(line.removeprefix("TOLD ")))
        mine, stock = results
        counts = mine.pop("counts")[0]
        assert counts["refuted"] == 0, counts
        assert {name: each[0] for name, each in mine.items()} == {name: each[0] for name, each in stock.items()}
        names = {how: {name for name, (_, what) in mine.items() if what == how} for how in ("worker", "here", "raised")}
        return Outcome(**names)

    return run


def test_what_the_front_end_asks_the_driver_is_answered_for_the_target(compare: Compare) -> None:
    outcome = compare(
        """
        from triton.language import target_info

        @triton.jit
        def branches(y):
            if target_info.is_cuda():
                tl.store(y, 1.0)
            else:
                tl.store(y, 2.0)

        @triton.jit
        def capable(y):
            tl.static_assert(tl.target_info.cuda_capability_geq(9, 0))
            tl.store(y, 3.0)

        @triton.constexpr_function
        def arch():
            return tl.target_info.current_target().arch

        @triton.jit
        def targeted(y):
            tl.store(y, arch() * 1.0)

        @triton.constexpr_function
        def shared_memory():
            from triton.runtime import driver
            return driver.active.utils.get_device_properties(0)["max_shared_mem"] // 1024

        @triton.jit
        def of_the_device(y):
            tl.store(y, shared_memory() * 1.0)

        @triton.constexpr_function
        def swallowed():
            from triton.runtime import driver
            try:
                return driver.active.utils.get_device_properties(0)["multiprocessor_count"]
            except AttributeError:
                return 17

        @triton.jit
        def guessing(y):
            tl.store(y, swallowed() * 1.0)

        @triton.jit
        def atomic(y, BLOCK: tl.constexpr):
            described = tl.make_tensor_descriptor(y, [BLOCK, BLOCK], [BLOCK, 1], [BLOCK, BLOCK])
            described.atomic_min([0, 0], tl.full([BLOCK, BLOCK], 1, tl.int32))

        for fn in (branches, capable, targeted, of_the_device, guessing):
            case(fn.__name__, fn, y)
        case("atomic", atomic, Tensor("int32"), BLOCK=16)
        """
    )
    assert outcome.worker == {"branches", "capable", "targeted", "atomic"}


@pytest.mark.parametrize("separator", ["\f", "\v", "\x1c", "\x85", "\u2028"])
def test_a_line_ends_where_python_and_triton_end_it(compare: Compare, separator: str) -> None:
    # Python reads a form feed as white space; the others may stand in a comment.
    page = "\f" if separator == "\f" else f"# {separator}"
    text = f'''
@triton.jit
def first(y):
    """A page {separator} within a line."""
    tl.store(y, 1.0)
{page}
@triton.jit
def second(y):
    tl.store(y, 2.0)

case("first", first, y)
case("second", second, y)
'''
    assert compare(text).worker == {"first", "second"}


def test_values_keep_their_class_or_stay_here(compare: Compare) -> None:
    outcome = compare(
        """
        class Mode(enum.IntEnum):
            FAST = 1
            EXACT = 2

        class Pair(typing.NamedTuple):
            scale: int
            shift: int = 3

        class Richer(typing.NamedTuple):
            scale: int
            EXTRA = 5

        class Name(str):
            pass

        V = tl.constexpr(Pair(2))
        GLOBAL_MODE = tl.constexpr(Mode.EXACT)
        RICH = tl.constexpr(Richer(4))

        @triton.jit
        def of_enum(y, MODE: tl.constexpr):
            tl.static_assert(MODE.name == "FAST")
            tl.store(y, 1.0)

        @triton.jit
        def of_global_enum(y):
            if GLOBAL_MODE.name == "EXACT":
                tl.store(y, 2.0)

        @triton.jit
        def of_named_tuple(y, PAIR: tl.constexpr):
            tl.store(y, 1.0 * PAIR.scale + PAIR.shift)

        @triton.jit
        def of_global_named_tuple(y):
            tl.store(y, 1.0 * V.scale + V.shift)

        @triton.jit
        def of_class_attribute(y):
            tl.store(y, 1.0 * RICH.scale + RICH.EXTRA)

        @triton.jit
        def of_str(y, NAME: tl.constexpr):
            if NAME == "wide":
                tl.store(y, 4.0)

        @triton.jit
        def of_bool(y, FLAG: tl.constexpr):
            tl.store(y, 5.0 + FLAG)

        @triton.jit
        def of_list(y, SHAPE: tl.constexpr):
            tl.store(y, 1.0 * len(SHAPE))

        case("enum", of_enum, y, MODE=Mode.FAST)
        case("global enum", of_global_enum, y)
        case("named tuple", of_named_tuple, y, PAIR=Pair(2, 4))
        case("nested", of_named_tuple, y, PAIR=Pair(2, 5))
        case("global named tuple", of_global_named_tuple, y)
        case("class attribute", of_class_attribute, y)
        case("str", of_str, y, NAME=Name("wide"))
        case("bool", of_bool, y, FLAG=True)
        case("int", of_bool, y, FLAG=1)
        case("float", of_bool, y, FLAG=1.0)
        case("tuple", of_list, y, SHAPE=(1, 2))
        """
    )
    worker = {"named tuple", "nested", "global named tuple", "bool", "int", "float", "tuple"}
    assert outcome.worker == worker - outcome.raised  # Triton 3.6 has no named tuples among its globals


def test_arguments_that_are_tuples_are_compiled_elsewhere(compare: Compare) -> None:
    outcome = compare(
        """
        Named = collections.namedtuple("Named", ["left", "right"])

        @triton.jit
        def plain(y, pair, BLOCK: tl.constexpr):
            i = tl.arange(0, BLOCK)
            tl.store(y + i, tl.load(pair[0] + i) * pair[1])

        @triton.jit
        def named(y, pair, BLOCK: tl.constexpr):
            i = tl.arange(0, BLOCK)
            tl.store(y + i, tl.load(pair.left + i) * pair.right)

        @triton.jit
        def functions(y, pair, BLOCK: tl.constexpr):
            tl.store(y + tl.arange(0, BLOCK), pair[0](pair[1]))

        @triton.jit
        def twice(value):
            return value * 2.0

        case("plain", plain, y, (x, 3), BLOCK=32)
        case("nested constant", plain, y, (x, 1), BLOCK=32)
        case("named", named, y, Named(x, 2), BLOCK=32)
        case("functions", functions, y, (twice, 5.0), BLOCK=32)
        """
    )
    assert outcome.worker == {"plain", "nested constant", "named", "functions"}


def test_a_name_that_may_be_the_global_is_there(compare: Compare) -> None:
    outcome = compare(
        """
        SCALE = tl.constexpr(3)
        i = tl.constexpr(4)

        class Thing:
            def __eq__(self, other):
                return isinstance(other, Thing)

        object_of_ours = Thing()

        @triton.jit
        def branch(y, FLAG: tl.constexpr):
            if FLAG:
                SCALE = 5
            tl.store(y, 1.0 * SCALE)

        @triton.jit
        def loop(y, n):
            for k in range(n):
                SCALE = 2
                tl.store(y + k, 1.0 * SCALE)
            tl.store(y, 1.0 * SCALE)

        @triton.jit
        def comprehension(y):
            squares = [i * 2 for i in (1, 2, 3)]
            tl.store(y, 1.0 * squares[0])

        @triton.constexpr_function
        def inner_parameter():
            def twice(SCALE):
                return SCALE * 2
            return twice(2) + SCALE.value

        @triton.jit
        def inner(y):
            tl.store(y, 1.0 * inner_parameter())

        @triton.jit
        def default(y, SCALE: tl.constexpr = SCALE):
            tl.store(y, 1.0 * SCALE)

        @triton.jit
        def announced(y):
            SCALE_: tl.constexpr
            tl.store(y, 1.0 * SCALE)

        @triton.jit
        def never_needed(y, FLAG: tl.constexpr):
            if FLAG:
                tl.store(y, object_of_ours)
            else:
                tl.store(y, 6.0)

        @triton.jit
        def assigned_in_both(y, n):
            if n > 3:
                object_of_ours = 1.0
            else:
                object_of_ours = 2.0
            tl.store(y, object_of_ours)

        case("branch not taken", branch, y, FLAG=False)
        case("branch taken", branch, y, FLAG=True)
        case("loop", loop, y, 10)
        case("comprehension", comprehension, y)
        case("inner", inner, y)
        case("default", default, y)
        case("announced", announced, y)
        case("not needed", never_needed, y, FLAG=False)
        case("needed", never_needed, y, FLAG=True)
        case("both", assigned_in_both, y, 10)
        """
    )
    assert outcome.worker | outcome.raised == {
        *("branch not taken", "branch taken", "loop", "comprehension", "inner", "default", "announced"),
        *("not needed", "needed", "both"),
    }
    assert "needed" in outcome.raised
    assert outcome.worker >= {"branch not taken", "loop", "inner", "default", "not needed", "both"}


def test_a_module_of_the_users_is_not_taken_for_one_of_the_standard_library(compare: Compare, tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / "queue.py").write_text(f"import triton.language as tl\nSCALE = tl.constexpr({number})\n")
        outcome = compare(
            """
            import queue
            import math as m

            @triton.jit
            def kernel(y):
                tl.store(y, 1.0 * queue.SCALE * m.pi)

            case("kernel", kernel, y)
            """
        )
        assert outcome.worker == {"kernel"}


def test_a_text_that_was_replaced_or_executed_is_the_one_that_counts(compare: Compare) -> None:
    outcome = compare(
        """
        @triton.jit
        def template(y):
            tl.store(y, GENERATED)

        replaced = triton.JITFunction(template.fn)
        replaced._unsafe_update_src(replaced.src.replace("GENERATED", "2.0"))

        @triton.jit
        def called(value):
            return value + 1.0

        @triton.jit
        def caller(y):
            tl.store(y, called(1.0))

        called._unsafe_update_src(called.src.replace("1.0", "41.0"))

        TEXT = "@triton.jit\\ndef executed(y):\\n    tl.store(y, 4.0)\\n"
        linecache.cache["<made>"] = (len(TEXT), None, TEXT.splitlines(keepends=True), "<made>")
        exec(compile(TEXT, "<made>", "exec"))

        @triton.constexpr_function
        def answer():
            return 42

        def other():
            return 43

        answer.fn.__code__ = other.__code__.replace(co_name="answer")

        @triton.jit
        def of_answer(y):
            tl.store(y, 1.0 * answer())

        case("replaced", replaced, y)
        case("caller", caller, y)
        case("executed", executed, y)
        case("answer", of_answer, y)
        """
    )
    assert (outcome.worker, outcome.here) == ({"replaced", "caller", "executed"}, {"answer"})


def test_what_python_functions_see_of_the_process_is_seen_here(compare: Compare) -> None:
    outcome = compare(
        """
        import random, time
        os.environ["FACTOR"] = "7"
        TABLE, SEEN = {"a": 3.0}, [0]

        @triton.constexpr_function
        def of_environment():
            return int(os.environ["FACTOR"]) * 1.0

        @triton.constexpr_function
        def of_import():
            import os
            return int(os.environ["FACTOR"]) * 2.0

        @triton.constexpr_function
        def of_arguments():
            return 1.0 * len(sys.argv[0])

        @triton.constexpr_function
        def remembering():
            SEEN[0] += 1
            return 1.0 * SEEN[0]

        @triton.constexpr_function
        def of_globals():
            return 1.0 * ("TABLE" in globals() and "of_globals" in globals())

        @triton.constexpr_function
        def pure():
            from functools import reduce
            return TABLE["a"] + math.pi + reduce(max, [1, 4, 2])

        def make(fn):
            @triton.jit
            def kernel(y, NUMBER: tl.constexpr):
                tl.store(y, fn() + NUMBER)
            return kernel

        # Triton's own hash does not tell apart what a closure holds.
        for number, fn in enumerate((of_environment, of_import, of_arguments, remembering, of_globals, pure)):
            case(fn.__name__, make(fn), y, NUMBER=number)
        """
    )
    # What `sys.argv` holds is a value like any other.
    assert outcome.worker == {"of_arguments", "pure"}


def test_knobs_and_variables_of_the_moment_count(compare: Compare) -> None:
    outcome = compare(
        """
        from triton import knobs

        @triton.jit
        def kernel(x, y, N: tl.constexpr):
            tl.store(y, tl.load(x) * 2.0 + N)

        class Setting:
            def __init__(self, act):
                self.act = act
            def warmup(self, *arguments, **options):
                self.act()
                return kernel.warmup(*arguments, **options)

        def knob(value):
            knobs.compilation.disable_line_info = value

        def silent():
            knobs.propagate_env = False
            knobs.compilation.disable_line_info = True
            knobs.propagate_env = True

        def variable():
            del knobs.compilation.disable_line_info
            os.environ["TRITON_DISABLE_LINE_INFO"] = "1"

        def unset():
            os.environ.pop("TRITON_DISABLE_LINE_INFO")

        case("plain", kernel, x, y, N=1)
        case("knob", Setting(lambda: knob(True)), x, y, N=2)
        case("knob off", Setting(lambda: knob(False)), x, y, N=3)
        case("silently", Setting(silent), x, y, N=4)
        case("variable", Setting(variable), x, y, N=5)
        case("unset", Setting(unset), x, y, N=6)
        """
    )
    assert outcome.worker == {"plain", "knob", "knob off", "silently", "variable", "unset"}


def test_a_triton_that_the_program_has_changed_compiles_here(compare: Compare) -> None:
    outcome = compare(
        """
        from triton.language import standard

        @triton.jit
        def mine(input, axis=None):
            return tl.load(input) * 0.0

        @triton.jit
        def kernel(x, y, BLOCK: tl.constexpr):
            tl.store(y, tl.sum(tl.load(x + tl.arange(0, BLOCK)), 0))

        class Changed:
            def warmup(self, *arguments, **options):
                tl.sum = tl.max
                try:
                    return kernel.warmup(*arguments, **options)
                finally:
                    tl.sum = standard.sum

        case("before", kernel, x, y, BLOCK=32)
        case("changed", Changed(), x, y, BLOCK=64)
        case("after", kernel, x, y, BLOCK=128)
        """
    )
    assert (outcome.worker, outcome.here) == ({"before", "after"}, {"changed"})
