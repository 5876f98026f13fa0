"""As test_faithful: what its kinds have besides, found by people who tried to break it."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from test_faithful import Compare, compare  # noqa: F401 - a fixture

from conftest import Client
from kernels import HEAD

pytestmark = pytest.mark.triton

Start = Callable[..., Client]


def test_values_of_every_make(compare: Compare) -> None:  # noqa: F811
    outcome = compare(
        """
        import dataclasses, fractions, decimal
        from typing import NamedTuple

        class Level(enum.IntFlag):
            LOW = 1
            HIGH = 4

        class Name(enum.StrEnum if hasattr(enum, "StrEnum") else str):
            ADD = "add"

        class Text(str):
            def __eq__(self, other): return True
            __hash__ = str.__hash__

        class Number(int):
            def __add__(self, other): return 100
            __radd__ = __add__

        class Real(float):
            def __mul__(self, other): return 7.0
            __rmul__ = __mul__

        class Config(NamedTuple):
            block: int
            flags: tuple
            name: str = "x"
            @property
            def double(self): return self.block * 2
            SCALE = 5

        class Inner(NamedTuple):
            a: Config
            b: int

        @dataclasses.dataclass(frozen=True)
        class Frozen:
            width: int
            def area(self): return self.width ** 2

        CONFIG = Config(4, (1, 2))
        NESTED = Inner(CONFIG, 3)
        FROZEN = Frozen(6)
        HUGE = tl.constexpr(2 ** 40 + 1)
        NEGATIVE_ZERO = tl.constexpr(-0.0)
        NAN = tl.constexpr(float("nan"))
        INF = tl.constexpr(float("-inf"))
        TINY = tl.constexpr(5e-324)
        TUPLE = tl.constexpr((1, (2, 3), "four", None, True))
        DTYPE = tl.constexpr(tl.float16)
        CC = tl.constexpr(tl.constexpr(3))
        NESTED_CONSTEXPR = tl.constexpr(NESTED)

        def constant(name, value):
            @triton.jit
            def kernel(x, y, V: tl.constexpr):
                tl.store(y, V * 1.0)
            case(name, kernel, x, y, value)

        for name, value in dict(flag=Level.HIGH, both=Level.HIGH | Level.LOW, number=Number(3), real=Real(2.0),
                                zero=-0.0, nan=float("nan"), inf=float("inf"), huge=2 ** 40, negative=-2 ** 63,
                                true=True, tiny=5e-324,
                                wrapped=tl.constexpr(4)).items():
            constant(name, value)

        @triton.jit
        def text(x, y, V: tl.constexpr):
            if V == "add":
                tl.store(y, 1.0)
            elif V == "sub":
                tl.store(y, 2.0)
            else:
                tl.store(y, 3.0)

        case("text", text, x, y, "sub")
        case("name", text, x, y, Name.ADD if hasattr(enum, "StrEnum") else "add")
        case("odd text", text, x, y, Text("mul"))

        @triton.jit
        def config(x, y, V: tl.constexpr):
            tl.store(y, V.block * 1.0 + V.flags[1])

        case("config", config, x, y, CONFIG)

        @triton.jit
        def double(x, y, V: tl.constexpr):
            tl.store(y, V.double * 1.0 + V.SCALE)

        case("property", double, x, y, CONFIG)

        @triton.jit
        def nested(x, y, V: tl.constexpr):
            tl.store(y, V.a.block * 1.0 + V.b)

        case("nested", nested, x, y, NESTED)

        @triton.jit
        def frozen(x, y, V: tl.constexpr):
            tl.store(y, V.width * 1.0)

        case("frozen", frozen, x, y, FROZEN)

        @triton.jit
        def area(x, y, V: tl.constexpr):
            tl.store(y, V.area() * 1.0)

        case("method", area, x, y, FROZEN)

        @triton.jit
        def globals_(x, y):
            tl.store(y, HUGE)
            tl.store(y + 1, NEGATIVE_ZERO)
            tl.store(y + 2, INF)
            tl.store(y + 3, TINY)

        case("globals", globals_, x, y)

        @triton.jit
        def nan_global(x, y):
            tl.store(y, NAN)

        case("nan global", nan_global, x, y)

        @triton.jit
        def in_tuple(x, y):
            tl.store(y, TUPLE[1][1] * 1.0)
            if TUPLE[4]:
                tl.store(y + 1, 1.0)
            if TUPLE[3] is None:
                tl.store(y + 2, 1.0)

        case("tuple", in_tuple, x, y)

        @triton.jit
        def dtype(x, y):
            tl.store(y, tl.load(x).to(DTYPE).to(tl.float32) + CC)

        case("dtype", dtype, x, y)

        @triton.jit
        def of_nested(x, y):
            tl.store(y, NESTED_CONSTEXPR.a.block * 1.0)

        case("nested constexpr", of_nested, x, y)
        """
    )
    assert outcome.raised <= {"nan global", "property", "nested constexpr"}  # which of them depends on the Triton
    own = {"number", "frozen", "method", "flag", "both", "nested", "real", "name", "config", "property"}
    own |= {"nested constexpr", "odd text"}
    assert outcome.here <= own, "of classes of the program's, which no worker has"
    assert len(outcome.worker) > 10


def test_names_wherever_they_are_bound(compare: Compare) -> None:  # noqa: F811
    outcome = compare(
        """
        import math as m
        from math import pi as PI_PLAIN
        SCALE = tl.constexpr(3.0)
        OFFSET = tl.constexpr(2)
        N = tl.constexpr(4)
        PI = tl.constexpr(PI_PLAIN)

        @triton.jit
        def helper(v, SCALE):
            return v * SCALE

        @triton.jit
        def default(v, k: tl.constexpr = SCALE):
            return v + k

        @triton.jit
        def parameter_like_global(x, y):
            tl.store(y, helper(tl.load(x), 2.0) + SCALE)

        @triton.jit
        def loop_variable(x, y):
            total = 0.0
            for N_ in tl.static_range(N):
                total += N_ * SCALE
            for i in range(N):
                total += OFFSET
            tl.store(y, total)

        @triton.jit
        def loop_over(x, y):
            acc = 0.0
            for OFFSET in tl.static_range(3):
                acc += OFFSET
            tl.store(y, acc)

        @triton.jit
        def nested_if(x, y, F: tl.constexpr):
            if F:
                if F > 1:
                    v = SCALE
                else:
                    v = 2.0
            else:
                v = PI
            tl.store(y, v)

        @triton.jit
        def ternary(x, y, F: tl.constexpr):
            v = SCALE if F else default(1.0)
            tl.store(y, v)

        @triton.jit
        def shadows_builtin(x, y):
            min = 3.0
            tl.store(y, min + max(1, 2))

        @triton.jit
        def tuple_targets(x, y):
            a, (b, SCALE_) = 1.0, (2.0, SCALE)
            tl.store(y, a + b + SCALE_)

        @triton.jit
        def while_loop(x, y):
            i = 0
            while i < OFFSET:
                i += 1
            tl.store(y, i)

        @triton.jit
        def comprehension(x, y, V: tl.constexpr):
            values = [SCALE_ * 2.0 for SCALE_ in V]
            tl.store(y, values[0] + SCALE)

        @triton.jit
        def keyword(x, y):
            tl.store(y, default(v=tl.load(x), k=OFFSET))

        class Space:
            K = tl.constexpr(9)
            class Inner:
                D = tl.constexpr(5)

        @triton.jit
        def class_attribute(x, y):
            tl.store(y, Space.K * 1.0)

        @triton.jit
        def inner_class(x, y):
            tl.store(y, Space.Inner.D * 1.0)

        @triton.jit
        def module_alias(x, y):
            tl.store(y, m.pi)

        def maker(factor):
            bias = tl.constexpr(factor * 2)
            @triton.jit
            def inner(v):
                return v + bias
            @triton.jit
            def closure(x, y):
                tl.store(y, inner(tl.load(x)) * factor)
            return closure

        def cond(flag):
            if flag:
                @triton.jit
                def same(v): return v * 2.0
            else:
                @triton.jit
                def same(v): return v * 3.0
            @triton.jit
            def kernel(x, y):
                tl.store(y, same(tl.load(x)))
            return kernel

        @triton.jit
        def twice(x, y): tl.store(y, 1.0)
        first = twice
        @triton.jit
        def twice(x, y): tl.store(y, 2.0)

        for name in ("parameter_like_global loop_variable loop_over shadows_builtin tuple_targets while_loop "
                     "keyword "
                     "class_attribute inner_class module_alias").split():
            case(name, globals()[name], x, y)
        for flag in (0, 1, 2):
            case(f"nested_if{flag}", nested_if, x, y, flag)
            case(f"ternary{flag}", ternary, x, y, flag)
        case("comprehension", comprehension, x, y, (1.0, 2.0))
        case("closure", maker(tl.constexpr(3)), x, y)
        case("plain closure", maker(3), x, y)
        case("true", cond(True), x, y)
        case("false", cond(False), x, y)
        case("first", first, x, y)
        case("second", twice, x, y)
        """
    )
    # Older Tritons know neither of the last two.
    assert outcome.raised <= {"plain closure", "inner_class", "class_attribute", "tuple_targets", "comprehension"}
    assert len(outcome.worker) > 12
    assert not outcome.here


def test_texts_of_every_shape(compare: Compare) -> None:  # noqa: F811
    outcome = compare(
        r'''
        @triton.jit
        def docstring(x, y):
            """def other(x, y): @triton.jit
        def fake(x, y):
            tl.store(y, 9.0)
            """
            tl.store(y, 1.0)

        @triton.jit
        def strings(x, y):
            # def commented(x, y): pass
            tl.static_print("def printed(x): \\\n", 3)
            tl.device_print("def k(", 3)
            tl.store(y, 2.0)

        @triton.jit
        def continued(x,
                      y,
                      BLOCK: tl.constexpr = (1 +
                                             1)
                      ):
            tl.store(y,
                     BLOCK \
                     * 1.0)

        @triton.jit
        def tabs(x, y):
        →if 1:
        →→tl.store(y, 3.0)

        @triton.jit
        def one_liner(x, y): tl.store(y, 4.0); tl.store(y + 1, 5.0)

        @triton.jit(
            do_not_specialize=["n"],
        )
        def decorated(x, y, n):
            tl.store(y, n)

        @triton.jit(debug=True, noinline=False)
        def debugged(x, y):
            tl.device_assert(tl.load(x) > 0, "must be")
            tl.store(y, 6.0)

        @triton.jit(noinline=True)
        def apart(v):
            return v * 2

        @triton.jit
        def calls_apart(x, y):
            tl.store(y, apart(tl.load(x)))

        def outer():
                # oddly indented
                @triton.jit
                def odd(x, y):
                                v = tl.load(x)
                                tl.store(y, v)
                return odd

        class Holder:
            @staticmethod
            @triton.jit
            def static(x, y):
                tl.store(y, 7.0)

        @triton.jit
        def ünïcode(x, y):
            größe = 8.0  # naïve
            tl.store(y, größe)

        @triton.heuristics({"E": lambda arguments: arguments["n"] % 2 == 0})
        @triton.jit
        def heuristic(x, y, n, E: tl.constexpr):
            if E:
                tl.store(y, 1.0)
            else:
                tl.store(y, 2.0)

        @triton.jit(repr=lambda specialization: "renamed")
        def named(x, y):
            tl.store(y, 9.0)

        for name in "docstring strings continued tabs one_liner debugged calls_apart ünïcode named".split():
            case(name, globals()[name], x, y)
        case("decorated", decorated, x, y, 1)
        case("odd", outer(), x, y)
        case("static", Holder.static, x, y)
        case("heuristic", heuristic.fn, x, y, 3, True)
        '''.replace("→", "\t")
    )
    assert outcome.raised <= {"ünïcode"}
    assert not outcome.here


def test_options_and_arguments_of_every_kind(compare: Compare) -> None:  # noqa: F811
    outcome = compare(
        """
        @triton.jit
        def add(x, y, n, BLOCK: tl.constexpr):
            i = tl.arange(0, BLOCK)
            tl.store(y + i, tl.load(x + i, mask=i < n) + n, mask=i < n)

        case("int32", add, x, y, 17, 16)
        case("divisible", add, x, y, 32, 16)
        case("one", add, x, y, 1, 16)
        case("int64", add, x, y, 2 ** 40, 16)
        case("unsigned", add, x, y, 2 ** 63 + 1, 16)
        case("float", add, x, y, 2.5, 16)
        case("bool", add, x, y, True, 16)
        case("warps", add, x, y, 17, 64, num_warps=8)
        case("stages", add, x, y, 17, 64, num_stages=5)
        case("maxnreg", add, x, y, 17, 64, maxnreg=32)
        case("ctas", add, x, y, 17, 64, num_ctas=2)
        case("fusion", add, x, y, 17, 64, enable_fp_fusion=False)
        case("debug", add, x, y, 17, 64, debug=True)
        case("bad option", add, x, y, 17, 64, no_such_option=1)
        case("bad warps", add, x, y, 17, 64, num_warps=3)
        case("too few", add, x, y)
        case("bad block", add, x, y, 17, 15)

        @triton.jit
        def none(x, y, z):
            if z is None:
                tl.store(y, 1.0)
            else:
                tl.store(y, 2.0)

        case("none", none, x, y, None)
        case("some", none, x, y, x)

        @triton.jit
        def tuples(x, y, pair, n):
            tl.store(y, pair[0] + pair[1][0] + n)

        case("tuples", tuples, x, y, (1, (2.0, 3)), 4)

        Pair = collections.namedtuple("Pair", "left right")

        @triton.jit
        def named(x, y, pair):
            tl.store(y, tl.load(pair.left) + pair.right)

        case("named", named, x, y, Pair(x, 3))

        @triton.jit
        def function(x, y, f: tl.constexpr, g: tl.constexpr):
            tl.store(y, f(tl.load(x)) + g(2.0))

        @triton.jit
        def square(v): return v * v

        @triton.constexpr_function
        def half(v): return v / 2

        case("functions", function, x, y, square, half)

        @triton.jit
        def asserts(x, y, N: tl.constexpr):
            tl.static_assert(N > 3, "N is too small")
            tl.store(y, N)

        case("assert", asserts, x, y, 2)
        case("no assert", asserts, x, y, 4)

        @triton.jit
        def undefined(x, y):
            tl.store(y, no_such_name)

        case("undefined", undefined, x, y)

        @triton.jit
        def wrong_type(x, y):
            tl.store(y, tl.load(3.0))

        case("wrong type", wrong_type, x, y)

        @triton.jit
        def plain_global(x, y):
            tl.store(y, PLAIN)
        PLAIN = 3.0
        case("plain global", plain_global, x, y)

        @triton.jit
        def inline(x, y):
            v = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=f,f", [tl.load(x)], dtype=tl.float32,
                                          is_pure=True, pack=1)
            tl.store(y, v)
        case("asm", inline, x, y)

        @triton.jit
        def libdevice(x, y):
            from_ = tl.load(x)
            tl.store(y, tl.extra.cuda.libdevice.tanh(from_) + tl.math.exp2(from_))
        case("libdevice", libdevice, x, y)

        @triton.jit
        def random(x, y, seed):
            i = tl.arange(0, 16)
            tl.store(y + i, tl.rand(seed, i) + tl.randn(seed, i))
        case("random", random, x, y, 7)

        @triton.jit
        def combine(a, b): return a + b * 2

        @triton.jit
        def reduces(x, y):
            i = tl.arange(0, 32)
            tl.store(y, tl.reduce(tl.load(x + i), 0, combine))
            tl.store(y + i, tl.associative_scan(tl.load(x + i), 0, combine))
        case("reduce", reduces, x, y)
        """
    )
    assert outcome.raised == {
        *("bad warps", "too few", "bad option", "assert", "plain global", "bad block", "undefined", "wrong type"),
    }
    assert not outcome.here


MAIN = """
import sys
sys.path.insert(0, {helpers!r})
import logging
logging.basicConfig(level=logging.WARNING, format="%(message)s")
stock = "stock" in sys.argv
if not stock:
    from headstart.client.client import Client
    from headstart.adapters.triton.adapter import Adapter
    adapter = Adapter(Client(workers=2))
    adapter.install()
import hashlib, json, os, re
import triton, triton.language as tl
from gpuless import Tensor
x, y = Tensor(), Tensor()
told = []

def tell(fn, *arguments, **options):
    try:
        made = fn.warmup(*arguments, grid=(1,), **options)
        # Not the cubin: its debug lines have the time at which the source was written.
        told.append(hashlib.sha256((made.asm["ttgir"] + made.asm["ptx"]).encode()).hexdigest())
    except Exception as error:
        told.append(re.sub("0x[0-9a-f]+", "0x", f"{{type(error).__name__}}: {{error}}"))

{body}
counts = None if stock else adapter.counts
if not stock:
    adapter.close(); adapter.compiler.client.close()
print("TOLD", json.dumps([told, counts]))
"""

MODULES = {
    "a module that is loaded again with another text": (
        """
        open("again.py", "w").write(TEXT.format(2.0))
        import importlib, again
        tell(again.kernel, x, y)
        open("again.py", "w").write("# longer by a line\\n" + TEXT.format(33.0))
        importlib.reload(again)
        tell(again.kernel, x, y)
        """
    ),
    "a file that is edited after it was imported": (
        """
        open("edited.py", "w").write(TEXT.format(2.0))
        import edited
        open("edited.py", "w").write(TEXT.format(44.0))
        tell(edited.kernel, x, y)
        """
    ),
    "a module in an archive": (
        """
        import zipfile
        with zipfile.ZipFile("archive.zip", "w") as archive:
            archive.writestr("zipped.py", TEXT.format(5.0))
        sys.path.insert(0, "archive.zip")
        import zipped
        tell(zipped.kernel, x, y)
        """
    ),
    "a package of a namespace, relative imports, and a star": (
        """
        os.makedirs("space/inner")
        open("space/inner/__init__.py", "w").write("from .constants import *\\nfrom .kernels import kernel\\n")
        open("space/inner/constants.py", "w").write("import triton.language as tl\\nFACTOR = tl.constexpr(6.0)\\n")
        open("space/inner/kernels.py", "w").write(
            "from .constants import *\\n" + TEXT.replace("{}", "FACTOR * constants.FACTOR").replace("import triton\\n",
            "import triton\\nfrom . import constants\\n"))
        from space.inner import kernel
        tell(kernel, x, y)
        """
    ),
    "a module whose names are made when they are asked for": (
        """
        open("lazy.py", "w").write("import triton.language as tl\\ndef __getattr__(name):\\n"
                                   "    if name == 'F': return tl.constexpr(8.0)\\n    raise AttributeError(name)\\n")
        open("user.py", "w").write("import lazy\\n" + TEXT.format("lazy.F"))
        import user
        tell(user.kernel, x, y)
        """
    ),
    "modules with names of the standard library and of packages": (
        """
        for name, value in (("queue", 1.0), ("token", 2.0), ("numpy", 3.0)):
            open(f"{name}.py", "w").write(f"import triton.language as tl\\nF = tl.constexpr({value})\\n")
        sys.path.insert(0, os.getcwd())
        for name in ("queue", "token", "numpy"):
            sys.modules.pop(name, None)
        open("uses.py", "w").write("import queue, token, numpy\\n" + TEXT.format("queue.F + token.F + numpy.F"))
        import uses
        tell(uses.kernel, x, y)
        """
    ),
    "a text with a mark, another encoding, and other ends of lines": (
        """
        for number, (data) in enumerate((
            b"\\xef\\xbb\\xbf" + TEXT.format(9.0).encode(),
            b"# -*- coding: latin-1 -*-\\n# \\xe9\\n" + TEXT.format(10.0).encode(),
            TEXT.format(11.0).replace("\\n", "\\r\\n").encode(),
            TEXT.format(12.0).replace("    ", "\\t").encode(),
            TEXT.format(13.0).replace("\\n", "\\r").encode(),
        )):
            open(f"text{number}.py", "wb").write(data)
            tell(__import__(f"text{number}").kernel, x, y)
        """
    ),
    "kernels that were executed, and a copy of one": (
        """
        namespace = {"triton": triton, "tl": tl, "__name__": "made"}
        import linecache
        text = TEXT.format(14.0)
        linecache.cache["<made>"] = (len(text), None, text.splitlines(True), "<made>")
        exec(compile(text, "<made>", "exec"), namespace)
        tell(namespace["kernel"], x, y)
        import types
        copy = types.FunctionType(namespace["kernel"].fn.__code__, {**namespace, "F": 3}, "kernel")
        tell(triton.jit(copy), x, y)
        """
    ),
    "hooks, metadata and names that somebody has set": (
        """
        open("it.py", "w").write(TEXT.format(15.0))
        import it
        seen = []
        def hook(*, key, repr, fn, compile, is_manual_warmup, already_compiled):
            seen.append([repr, fn.name, fn.module, sorted(compile), compile["num_warps"], compile["signature"],
                         is_manual_warmup, already_compiled])
        triton.knobs.runtime.jit_post_compile_hook = hook
        tell(it.kernel, x, y)
        told.append([seen, it.kernel.cache_key, it.kernel.hash])
        made = it.kernel.warmup(x, y, grid=(1,), num_warps=2)
        told.append([made.name, made.metadata.num_warps, made.metadata.shared, sorted(made.asm)])
        told.append(len(it.kernel.device_caches[0][0]))
        """
    ),
}


@pytest.mark.parametrize("name", MODULES)
def test_where_a_kernel_comes_from_changes_nothing(start_client: Start, tmp_path: Path, name: str) -> None:
    text = HEAD + "@triton.jit\ndef kernel(x, y):\n    tl.store(y, tl.load(x) + {})\n"
    body = f"TEXT = {text!r}\n" + textwrap.dedent(MODULES[name])
    results = []
    for how in ("headstart", "stock"):
        # The same path both times: it is in the cubin.
        folder = tmp_path / "program"
        folder.mkdir()
        program = f"import os, sys\nos.chdir({str(folder)!r})\nsys.path.insert(0, {str(folder)!r})\n"
        program += MAIN.format(helpers=str(Path(__file__).parent), body=body)
        client = start_client(program, how, TRITON_CACHE_DIR=str(tmp_path / how), PYTHONDONTWRITEBYTECODE="1")
        output, errors = client.process.communicate(timeout=100)
        assert client.process.returncode == 0, errors.decode()
        (line,) = [line for line in output.decode().splitlines() if line.startswith("TOLD ")]
        results.append(json.loads(line.removeprefix("TOLD ")))
        shutil.rmtree(folder)
    (mine, counts), (stock, _) = results
    assert mine == stock
    assert not [each for each in mine if isinstance(each, str) and "Error" in each]
    assert counts["refuted"] == 0
