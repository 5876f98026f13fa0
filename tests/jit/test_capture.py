"""What of a live kernel is captured, when that is done again, and what cannot travel."""

from __future__ import annotations

import copy
import gc
import importlib
import linecache
import math
import pickle
import textwrap
import types
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headstart.artifacts.vetting import check_source
from headstart.capture.functions import capture, capture_call
from headstart.errors import CannotTravel, UsageError
from headstart.model.captured import (
    CapturedFunction,
    CapturedSource,
    Constant,
    Constexpr,
    Dtype,
    FunctionRef,
    Import,
    Items,
    Member,
    NamedTuple,
    Namespace,
    Table,
    Unbound,
)
from headstart.model.request import CompileRequest
from headstart.model.values import Encoded

pytestmark = pytest.mark.triton

HEAD = """
import math
import triton
import triton.language as tl
from collections import namedtuple
"""
Define = Callable[..., types.SimpleNamespace]


@pytest.fixture
def define(monkeypatch: pytest.MonkeyPatch) -> Define:
    """Runs a text as a notebook runs a cell: in a scope of its own, with its lines in linecache and no file."""
    cells = iter(range(1000))

    def run(text: str, scope: dict[str, Any] | None = None, filename: str = "") -> types.SimpleNamespace:
        filename = filename or f"<cell {next(cells)}>"
        text = HEAD + textwrap.dedent(text)
        monkeypatch.setitem(linecache.cache, filename, (len(text), None, text.splitlines(keepends=True), filename))
        scope = {"__name__": "__main__"} if scope is None else scope
        exec(compile(text, filename, "exec", dont_inherit=True), scope)
        return types.SimpleNamespace(scope=scope, **scope)

    return run


def kernel_of(kernel: Any) -> CapturedFunction:
    return capture(kernel).kernel


def digest(kernel: Any) -> str:
    source = capture(kernel)
    return CompileRequest.make(source.kernel.name, source, signature={"x": "*fp32"}, target="cuda:90").digest()


# What names stand for


def test_constants_are_bound_to_their_values(define: Define) -> None:
    cell = define(
        """
        A, B, C, D, E, F = 3, 2.5, True, "text", None, tl.float16
        G, H, I = (1, (2, None)), [1.0], {"a": 1}
        J, K = tl.constexpr(3), tl.constexpr((1, tl.float32))

        @triton.jit
        def kernel(x):
            tl.store(x, A + B + C + D + E + F + G + H + I + J + K)
        """
    )
    names = kernel_of(cell.kernel).names
    assert names.pop("tl") == Import("triton.language")
    assert names == {
        "A": Constant(3),
        "B": Constant(2.5),
        "C": Constant(True),
        "D": Constant("text"),
        "E": Constant(None),
        "F": Dtype("fp16"),
        "G": Items("tuple", [Constant(1), Items("tuple", [Constant(2), Constant(None)])]),
        "H": Items("list", [Constant(1.0)]),
        "I": Table([(Constant("a"), Constant(1))]),
        "J": Constexpr(Constant(3)),
        "K": Constexpr(Items("tuple", [Constant(1), Dtype("fp32")])),
    }


def test_what_triton_has_is_named_and_not_carried(define: Define) -> None:
    cell = define(
        """
        from triton.language import cdiv, constexpr, exp as e
        from triton.language.extra import libdevice

        @triton.jit
        def kernel(x, n: tl.constexpr = constexpr(4)):
            tl.store(x, e(1.0) + cdiv(3, 2) + libdevice.tanh(1.0) + math.pi + tl.math.log(2.0))
        """
    )
    source = capture(cell.kernel)
    assert len(source.functions) == 1
    names = source.kernel.names
    assert isinstance(names["e"], Member)
    assert isinstance(names["cdiv"], Member)
    assert isinstance(names["constexpr"], Member)
    assert names["libdevice"] == Import("triton.language.extra.libdevice")
    assert names["math"] == Namespace("math", {"pi": Constant(math.pi)})
    assert names["tl"] == Import("triton.language", ["triton.language.math"])


def test_functions_are_carried_once_under_whatever_names(define: Define) -> None:
    cell = define(
        """
        @triton.jit
        def inner(x):
            return x + 1

        other = inner

        @triton.jit
        def outer(x):
            return inner(x) + other(x)

        @triton.jit
        def kernel(x):
            tl.store(x, outer(1) + other(2))
        """
    )
    source = capture(cell.kernel)
    assert [function.name for function in source.functions] == ["kernel", "outer", "inner"]
    assert source.functions[1].names == {"inner": FunctionRef(2), "other": FunctionRef(2)}
    assert source.kernel.names["other"] == FunctionRef(2)


def test_functions_may_call_each_other_in_a_circle(define: Define) -> None:
    cell = define(
        """
        @triton.jit
        def down(x):
            return kernel(x)

        @triton.jit
        def kernel(x):
            return down(x)
        """
    )
    assert [function.names for function in capture(cell.kernel).functions] == [
        {"down": FunctionRef(1)},
        {"kernel": FunctionRef(0)},
    ]


def test_of_a_module_of_the_user_s_the_attributes_used_are_carried(
    define: Define, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "used_by_capture.py").write_text(
        HEAD + "import used_by_capture_too as more\nHUGE = object()\nK = tl.constexpr(7)\n\n\n"
        "@triton.jit\ndef helper(x):\n    return x\n"
    )
    (tmp_path / "used_by_capture_too.py").write_text("EPS = 1e-6\nOTHER = object()\n")
    cell = define(
        """
        import used_by_capture as u

        @triton.jit
        def kernel(x):
            tl.store(x, u.helper(1) + u.K + u.more.EPS + u.missing)
        """
    )
    source = capture(cell.kernel)
    assert source.kernel.names["u"] == Namespace(
        "used_by_capture",
        {
            "helper": FunctionRef(1),
            "K": Constexpr(Constant(7)),
            "more": Namespace("used_by_capture_too", {"EPS": Constant(1e-6)}),
        },
    )
    assert source.functions[1].filename == str(tmp_path / "used_by_capture.py")


def test_closures_are_captured_as_they_are(define: Define) -> None:
    cell = define(
        """
        def make(n):
            factor = tl.constexpr(n)

            @triton.jit
            def inner(x):
                return x * factor

            @triton.jit
            def kernel(x):
                tl.store(x, inner(1))

            return kernel
        """
    )
    two, three = cell.make(2), cell.make(3)
    assert kernel_of(two).qualname == "make.<locals>.kernel"
    assert capture(two).functions[1].names == {"factor": Constexpr(Constant(2))}
    assert capture(three).functions[1].names == {"factor": Constexpr(Constant(3))}
    assert digest(two) != digest(three)


def test_constexpr_functions_and_named_tuples_are_carried(define: Define) -> None:
    cell = define(
        """
        Pair = namedtuple("Pair", ["a", "b"], defaults=[4])
        BASE = 2

        @triton.constexpr_function
        def power(n, base=BASE):
            inner = lambda k: base**k
            return [inner(k) for k in range(n)][-1]

        @triton.jit
        def kernel(x):
            tl.store(x, Pair(power(3)).b)
        """
    )
    source = capture(cell.kernel)
    assert source.functions[1].kind == "constexpr_function"
    assert source.functions[1].names == {}
    assert source.functions[1].defaults == {"base": Constant(2)}
    assert source.kernel.names["Pair"] == NamedTuple("__main__", "Pair", ["a", "b"], [Constant(4)])


def test_defaults_are_the_values_from_when_the_function_was_made(define: Define) -> None:
    cell = define(
        """
        N = 4

        @triton.jit
        def kernel(x, n: tl.constexpr = N, *, dtype: tl.constexpr = tl.float32):
            tl.store(x, n)
        """
    )
    cell.scope["N"] = 5
    kernel = kernel_of(cell.kernel)
    assert kernel.defaults == {"n": Constant(4), "dtype": Dtype("fp32")}
    assert kernel.names["N"] == Constant(5), "Triton looks at the text of a default, too"


def test_an_annotation_may_be_anything(define: Define) -> None:
    cell = define(
        """
        class Tensor: ...
        torch = type(math)("torch")
        torch.Tensor = Tensor

        @triton.jit
        def kernel(x: torch.Tensor, y: Tensor = None, z: torch.Tensor = 1):
            v: Tensor = 1
            tl.store(x, v)
        """
    )
    names = kernel_of(cell.kernel).names
    assert names["torch"] == Namespace("torch", {"Tensor": Constant(None)})
    assert names["Tensor"] == Constant(None)


def test_a_module_that_only_annotations_name_travels(define: Define) -> None:
    cell = define(
        """
        @triton.jit
        def smaller(value, LIMIT: tl.constexpr):
            return min(value, LIMIT)

        @triton.jit
        def kernel(x):
            tl.store(x, smaller(tl.load(x), 4))
        """
    )
    smaller = next(each for each in capture(cell.kernel).functions if each.qualname == "smaller")
    assert smaller.names["tl"] == Import("triton.language")


def test_a_local_name_hides_a_global_one(define: Define) -> None:
    cell = define(
        """
        v, w, i, x, j = object(), tl.constexpr(1), object(), object(), object()

        @triton.jit
        def kernel(x):
            w = w + 1
            v = tl.load(x)
            for i in range(3):
                v += i
            v = [j for j in (v, w)]
            tl.store(x, v)
        """
    )
    assert set(kernel_of(cell.kernel).names) == {"tl", "w"}


def test_a_function_keeps_its_place(define: Define) -> None:
    cell = define(
        """
        @triton.jit(noinline=True)
        def callee(x):
            return x

        class Kernels:
            @staticmethod
            @triton.jit
            def kernel(x):
                tl.store(x, callee(1))
        """,
        filename="<the cell>",
    )
    kernel, callee = capture(cell.Kernels.kernel).functions
    assert (kernel.module, kernel.qualname, kernel.filename) == ("__main__", "Kernels.kernel", "<the cell>")
    assert kernel.text.startswith("    @staticmethod\n    @triton.jit\n    def kernel(x):\n")
    assert (callee.first_line, kernel.first_line) == (7, 12)
    assert (callee.noinline, kernel.noinline) == (True, None)


def test_tuned_kernels_are_looked_through(define: Define) -> None:
    cell = define(
        """
        @triton.autotune([triton.Config({"N": 4})], key=[])
        @triton.heuristics({"M": lambda arguments: 4})
        @triton.jit
        def kernel(x, N: tl.constexpr, M: tl.constexpr):
            tl.store(x, N + M)
        """
    )
    assert kernel_of(cell.kernel).name == "kernel"
    assert kernel_of(cell.kernel).text.startswith("@triton.autotune")


def test_a_name_of_its_own_is_that_of_a_specialization(define: Define) -> None:
    cell = define(
        """
        def named(specialization):
            return f"kernel_{specialization.constants['N']}_{specialization.signature['x'][1:]}"

        @triton.jit(repr=named)
        def kernel(x, n, N: tl.constexpr, M: tl.constexpr = 3):
            tl.store(x, N)
        """
    )
    signature = {"x": "*fp32", "n": "i32"}
    four, eight = (capture_call(cell.kernel, constants, signature)[0] for constants in ({"N": 4}, {(2,): 8}))
    assert (four.entry_name, eight.entry_name) == ("kernel_4_fp32", "kernel_8_fp32")
    assert four.functions is eight.functions
    with pytest.raises(UsageError, match="needs the signature as a mapping"):
        capture_call(cell.kernel, None, "*fp32, i32, 4, 3")


def test_a_function_given_as_an_argument_travels_too_and_is_the_one_that_the_kernel_knows(define: Define) -> None:
    cell = define(
        """
        @triton.jit
        def relu(x):
            return x

        @triton.jit
        def other(x):
            return x

        @triton.jit
        def kernel(x, ACT: tl.constexpr):
            if ACT == relu:
                tl.store(x, ACT(1))
        """
    )
    plain = {"x": "*fp32"}
    source, constants = capture_call(cell.kernel, {"ACT": cell.relu}, plain)
    assert constants == {"ACT": Encoded({"function": 1})}
    assert source.kernel.names["relu"] == FunctionRef(1)
    assert capture_call(cell.kernel, {"ACT": cell.relu}, plain)[0] is source
    source, constants = capture_call(cell.kernel, {"ACT": cell.other}, plain)
    assert (source.functions[2].name, constants) == ("other", {"ACT": Encoded({"function": 2})})


# When it is captured again


def test_the_same_capture_is_given_while_nothing_has_changed(define: Define) -> None:
    cell = define("@triton.jit\ndef kernel(x):\n    tl.store(x, 1)\n")
    assert capture(cell.kernel) is capture(cell.kernel)


CHANGING = """
def make():
    inside = 1

    def change(value):
        nonlocal inside
        inside = value

    @triton.jit
    def closed(x):
        tl.store(x, inside)

    return closed, change

N, L, C, M = 1, [1], tl.constexpr(1), type(math)("M")
M.n = 1

@triton.jit
def callee(x):
    return x + N

@triton.jit
def kernel(x):
    tl.store(x, callee(1) + len(L) + C + M.n + late)

closed, change = make()
"""


def changes() -> dict[str, Callable[[dict[str, Any]], object]]:
    return {
        "a global of a callee": lambda scope: scope.update(N=2),
        "of another type": lambda scope: scope.update(N=True),
        "a list": lambda scope: scope["L"].append(2),
        "a constexpr": lambda scope: setattr(scope["C"], "value", 2),
        "an attribute of a module": lambda scope: setattr(scope["M"], "n", 2),
        "a name that was missing": lambda scope: scope.update(late=1),
        "a callee": lambda scope: scope.update(callee=scope["other"]),
    }


@pytest.mark.parametrize("what", changes())
def test_a_change_makes_another_kernel_of_it_and_undoing_it_the_same(define: Define, what: str) -> None:
    cell = define(CHANGING + "\n@triton.jit\ndef other(x):\n    return x - N\n")
    before = capture(cell.kernel)
    old = dict(cell.scope)
    changes()[what](cell.scope)
    after = capture(cell.kernel)
    assert after.identity != before.identity
    if what in ("a global of a callee", "of another type", "a callee"):
        cell.scope.update(old)
        assert capture(cell.kernel) == before


def test_a_closure_variable_is_read_anew(define: Define) -> None:
    cell = define(CHANGING)
    assert kernel_of(cell.closed).names["inside"] == Constant(1)
    cell.change(2)
    assert kernel_of(cell.closed).names["inside"] == Constant(2)


def test_a_function_that_is_defined_again_is_another_one(define: Define) -> None:
    text = "@triton.jit\ndef kernel(x):\n    tl.store(x, {})\n"
    first = define(text.format(1), filename="<the cell>").kernel
    assert "tl.store(x, 1)" in kernel_of(first).text
    second = define(text.format(2), filename="<the cell>").kernel
    assert "tl.store(x, 2)" in kernel_of(second).text
    assert "tl.store(x, 1)" in kernel_of(first).text, "taken when it was made, not read again"
    assert digest(first) != digest(second)


def test_what_is_kept_on_a_function_goes_with_it_and_is_given_to_no_copy(define: Define) -> None:
    cell = define("@triton.jit\ndef kernel(x):\n    tl.store(kernel, x)\n")
    kernel = cell.scope["kernel"]
    capture(kernel)
    duplicate = copy.copy(kernel)
    duplicate._src = kernel._src.replace("x", "x ")
    assert kernel_of(kernel).replaced == ""
    assert kernel_of(duplicate).replaced == duplicate._src
    pickle.dumps(vars(kernel)["__headstart__"])
    alive = weakref.ref(kernel)
    del kernel, duplicate, cell
    registry = getattr(importlib.import_module("triton.runtime.jit"), "_triton_jit_function_registry", {})
    registry.pop("__main__:kernel", None)  # Triton 3.9 itself keeps every function
    gc.collect()
    assert alive() is None


# Identity


def test_where_a_file_lies_is_no_part_of_the_identity(
    define: Define, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "@triton.jit\ndef kernel(x):\n    tl.store(x, 1)\n"
    here, there = (define(text, filename=name).kernel for name in ("/here/k.py", "/there/k.py"))
    assert capture(here) != capture(there)
    assert digest(here) == digest(there)
    assert "/here" not in capture(here).identity


def test_place_and_module_are_part_of_the_identity(define: Define) -> None:
    text = "@triton.jit\ndef kernel(x):\n    tl.store(x, 1)\n"
    kernels = [
        define(text).kernel,
        define("\n" + text).kernel,
        define(text, {"__name__": "elsewhere"}).kernel,
        define(text.replace("jit", "jit(noinline=True)")).kernel,
    ]
    assert len(set(map(digest, kernels))) == len(kernels)


def test_a_captured_source_survives_its_travels(define: Define) -> None:
    cell = define(CHANGING)
    source = capture(cell.kernel)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(source), type=CapturedSource) == source
    assert CapturedSource.from_plain(source.plain()) == source
    assert source.named("other").identity == source.identity


# What cannot travel

AGGREGATE = """
from triton.language.core import _aggregate

@_aggregate
class bad:
    x: tl.tensor

    def __init__(self, x):
        self.x = x
"""


@pytest.mark.parametrize(
    ("text", "name", "why"),
    [
        ("bad = object()", "bad", "a builtins.object"),
        ("bad = 2**64", "bad", "does not fit 64 bits"),
        ("bad = tl.constexpr(object())", "bad", "a builtins.object"),
        ("def bad(x): return x", "bad", "a Python function that is not decorated"),
        ("bad = lambda x: x", "bad", "a Python function that is not decorated"),
        ("class bad: pass", "bad", "a class of which not only attributes are used"),
        ("bad = type(math)('mine')", "bad", "a module of which not only attributes are used"),
        ("import enum\nbad = enum.IntEnum('E', 'A').A", "bad", "a __main__.E"),
        ("bad = triton.heuristics({})(triton.jit(callee.fn))", "bad", "which is tuned by Triton"),
        (AGGREGATE, "bad", "an aggregate"),
        (
            "import triton.language.core as core\n@core.builtin\ndef bad(x): return x",
            "bad",
            "takes part in compiling",
        ),
    ],
)
def test_what_cannot_travel_is_named_with_who_uses_it_and_where(define: Define, text: str, name: str, why: str) -> None:
    before = "@triton.jit\ndef callee(x):\n    return x\n"
    after = "\n\n@triton.jit\ndef user(x):\n    return x + bad\n"
    after += "\n\n@triton.jit\ndef kernel(x):\n    tl.store(x, user(1))\n"
    cell = define(before + textwrap.dedent(text) + after, filename="<the cell>")
    with pytest.raises(CannotTravel) as caught:
        capture(cell.kernel)
    error = caught.value
    assert (error.kernel, error.name) == ("__main__.user", name)
    assert why in error.why
    assert error.where == f"<the cell>:{cell.user.starting_line_number}"
    assert str(error).startswith("__main__.user cannot travel: it uses bad, ")


@pytest.mark.parametrize("wrong", [3, print, lambda x: x, types.SimpleNamespace(fn=print)])
def test_what_is_no_kernel_is_refused(wrong: Any) -> None:
    with pytest.raises(UsageError):
        capture(wrong)


# What may come from elsewhere


def test_what_was_captured_is_safe(define: Define) -> None:
    assert check_source(capture(define(CHANGING.replace("+ late", "")).kernel)) is None


def test_of_the_standard_library_too_the_values_used_are_carried_and_the_process_is_not_looked_at(
    define: Define,
) -> None:
    cell = define("import os\n\n\n@triton.jit\ndef kernel(x):\n    tl.store(x, os.sep + os.environ)\n")
    assert isinstance(capture(cell.kernel, lenient=True).kernel.names["os"], Unbound)
    with pytest.raises(CannotTravel, match=r"it uses os\.environ"):
        capture(cell.kernel)


def test_importing_the_capture_does_not_import_triton() -> None:
    assert (
        "import triton"
        not in Path(importlib.import_module("headstart.adapters.triton.compat").__file__ or "").read_text()
    )
