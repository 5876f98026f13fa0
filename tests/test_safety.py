"""What a source from elsewhere may hold, and what is refused unless somebody trusts it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from headstart.captured import (
    Binding,
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
)
from headstart.safety import check_safe
from kernels import matmul, pointwise

TEXT = "@anything(at=all)\ndef f(x, n: tl.constexpr = LATER()):\n    return tl.exp(x) + n\n"


def source(text: str = TEXT, **names: Binding) -> CapturedSource:
    names = {"tl": Import("triton.language"), "LATER": Constant(1), **names}
    return CapturedSource([CapturedFunction("jit", "m", "f", "f.py", 1, text, names, {})])


def body(line: str, **names: Binding) -> CapturedSource:
    return source(f"def f(x):\n    {line}\n", **names)


def test_imports_from_triton_literals_and_functions_are_safe() -> None:
    harmless: dict[str, Binding] = {
        "math": Import("math"),
        "libdevice": Import("triton.language.extra.libdevice", ["triton.language.extra"]),
        "cdiv": Member("triton.language.standard", "cdiv"),
        "c": Constexpr(Items("tuple", [Constant(1.0), Dtype("fp32"), Table([(Constant("a"), Constant(2))])])),
        "g": FunctionRef(0),
        "u": Namespace("users", {"h": FunctionRef(0)}),
        "P": NamedTuple("m", "P", ["a"], [Constant(None)]),
    }
    assert check_safe(source(**harmless)) is None


@pytest.mark.parametrize(
    "binding",
    [
        Import("os"),
        Import("tritonic"),
        Import("triton.runtime.build"),
        Import("triton.language", ["os"]),
        Import("triton.__main__"),
        Member("builtins", "eval"),
        Member("triton.language.core", "builtins.eval"),
        Member("triton.language.core", "tensor.__init__"),
        FunctionRef(7),
        FunctionRef(-1),
    ],
)
def test_what_is_bound_to_anything_else_is_refused_wherever_it_is(binding: Binding) -> None:
    places: list[dict[str, Any]] = [
        {"a": binding},
        {"a": Constexpr(Items("list", [Table([(Constant(1), binding)])]))},
        {"a": Namespace("u", {"b": binding})},
        {"a": NamedTuple("m", "P", ["a"], [binding])},
    ]
    for names in places:
        assert str(check_safe(source(**names))).startswith("f: a: ")
    (function,) = source().functions
    assert check_safe(CapturedSource([msgspec.structs.replace(function, defaults={"n": binding})]))


@pytest.mark.parametrize(
    "line",
    [
        "import os",
        "from os import system",
        "global x",
        "return open('/etc/passwd')",
        "return __import__('os')",
        "return eval('1')",
        "return tl.core.builtins.eval('1')",
        "return tl.core.inspect.os",
        "return x.__class__",
        "return getattr(x, '__class__')",
        "return [c for c in ().__class__.__subclasses__()]",
        "return (lambda: exec('1'))()",
        "return somebody",
    ],
)
def test_a_body_that_reaches_for_the_system_is_refused(line: str) -> None:
    assert check_safe(body(line))


def test_a_body_of_python_that_computes_is_safe() -> None:
    line = "y = [max(i, k) for i in range(len(x)) if (k := i) or isinstance(i, int)]; return sum(y) * math.pi"
    assert check_safe(body(line, math=Import("math"))) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "def f(x): return x\nimport os\n",
        "f = 1\n",
        "def g(x): return x\n",
        "def f(x:\n",
        "class f: pass\n",
        "\x00",
    ],
)
def test_a_text_that_is_not_the_one_function_is_refused(text: str) -> None:
    assert check_safe(source(text))


def test_a_source_without_functions_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="there is no kernel"):
        CapturedSource([])


# Sources that are text


@pytest.mark.parametrize("kernel", [pointwise(), matmul()])
def test_an_ordinary_text_is_safe(kernel: dict[str, Any]) -> None:
    assert check_safe(kernel["source"]) is None


HEAD = "import triton\nimport triton.language as tl\n"


def test_constants_and_constexpr_functions_of_a_text_are_safe() -> None:
    text = (
        f'"""Kernels."""\nfrom __future__ import annotations\nfrom math import pi\n{HEAD}'
        "from triton.language.extra import libdevice\nN: int = 4\nC = tl.constexpr((1, 2.0))\n\n"
        "@triton.constexpr_function\ndef half(n=N): return n / 2\n\n"
        "@triton.jit(noinline=True)\ndef f(x, n: tl.constexpr = -1): return half(C) + pi + libdevice.exp(x)\n"
    )
    assert check_safe(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "import os\n",
        "from os import path\n",
        "from . import kernels\n",
        "from triton import knobs\n",
        "from triton.language.core import builtins\n",
        "from triton.language import *\n",
        "print('hello')\n",
        "N = open('x')\n",
        "N = [i for i in (1, 2)]\n",
        "class K: pass\n",
        "if True: pass\n",
        "@decorated\ndef f(x): return x\n",
        "@triton.jit(repr=print)\ndef f(x): return x\n",
        "@triton.jit\ndef f(x=print('hello')): return x\n",
        "@triton.jit\ndef f(x): return open(x)\n",
        "@triton.jit\ndef f(x: os.system('true')): return x\n",
        "N: open('x') = 1\n",
        "def broken(:\n",
    ],
)
def test_a_text_with_anything_else_is_refused(text: str) -> None:
    assert check_safe(HEAD + text)
