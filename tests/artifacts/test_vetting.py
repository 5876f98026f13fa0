"""What a manifest carries is compiled only if it cannot do anything else."""

from __future__ import annotations

import ast
import functools
import importlib
import math
import os
import textwrap
import types
from typing import Any

import msgspec
import pytest

from headstart.artifacts.vetting import check_request, check_source
from headstart.artifacts.vetting_parsed import check_parsed
from headstart.artifacts.vetting_words import LANGUAGE_NAMES
from headstart.model.captured import (
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
from headstart.model.environment import TOOL_VARIABLES
from headstart.model.request import CompileRequest

HEAD = "import triton\nimport triton.language as tl\n"
KERNEL = "@triton.jit\ndef k(x):\n    tl.store(x, 1)\n"

MANY_IMPORTS = """
from triton import jit
from triton.language import constexpr, float32 as f32
from triton.language.extra import libdevice
from triton.language.extra.cuda.libdevice import rsqrt
import math
LOG2E = constexpr(1.44269504)
SIZES = (1, 2**4, -math.pi)
TYPE: constexpr = f32
exp = libdevice.exp

@jit
def k(x, B: constexpr = 4, C=None): exp(rsqrt(x) * LOG2E)
"""


def body(line: str, decorator: str = "triton.jit") -> str:
    return f"{HEAD}@{decorator}\ndef k(x, n, B: tl.constexpr):\n    {line}\n"


@pytest.mark.parametrize(
    "source",
    [
        HEAD + KERNEL,
        '"""A docstring."""\nfrom __future__ import annotations\n' + HEAD + KERNEL,
        MANY_IMPORTS,
        HEAD + "@triton.jit(noinline=True, do_not_specialize=['n'])\ndef k(x: 'tl.tensor', n) -> tl.tensor: return x\n",
        HEAD + "@triton.constexpr_function\ndef log2(n):\n    return n.bit_length() - 1 if isinstance(n, int) else 0\n",
        body("for i in tl.range(B):\n        a = tl.math.exp(x.to(tl.float32))\n        x += triton.cdiv(n, B)"),
        HEAD + "@triton.jit\ndef k(input, type):\n    id = tl.program_id(0)\n    tl.store(input + id, type)\n",
        body("tl.static_assert(B > 1, f'B is {B}')"),
        body("y = x.dtype.element_ty.primitive_bitwidth; tl.store(x, max(y, n), mask=n < len(B))"),
    ],
)
def test_kernels_may_be_compiled(source: str) -> None:
    assert check_source(source) is None


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import os", "line 1 of its source imports os"),
        ("import triton.runtime.build", "imports triton.runtime.build"),
        ("from triton.language.core import builtins", "imports builtins from triton.language.core"),
        ("from triton.language.extra import modules", "imports modules"),
        ("from triton.language import *", r"imports \*"),
        ("from . import secret", r"imports secret from \."),
        ("from triton import runtime", "imports runtime from triton"),
        ("print('hello')", "is expr, which no kernel needs"),
        ("class K: pass", "is class def"),
        ("if True: pass", "is if"),
        ("x = open('/etc/passwd').read()", "computes"),
        ("x = [open for _ in 'a']", "computes"),
        ("x = __builtins__", "reads __builtins__"),
        ("def k(): pass", "neither a jit nor a constexpr function"),
        ("@print\ndef k(): pass", "decorates a function with print"),
        (HEAD + "@triton.runtime.autotuner.autotune\ndef k(): pass", "decorates"),
        (HEAD + "@triton.jit(repr=print('x'))\ndef k(): pass", "computes"),
        (HEAD + "@triton.jit\ndef k(x=print('x')): pass", "computes"),
        (HEAD + "@triton.jit\ndef k(x: print('x')): pass", "computes"),
        (HEAD + "x = tl.constexpr(open('f'))", "computes"),
        (body("tl.extra.modules['os'].system('id')"), "reads tl.extra.modules"),
        (body("tl.core.inspect.os.system('id')"), "reads tl.core.inspect"),
        (body("triton.runtime.build.subprocess.run('id')"), "reads triton.runtime"),
        (body("t = triton\n    t.runtime"), "passes the module triton on"),
        (body("l = tl\n    l.str_to_ty('x', None)"), "reads l.str_to_ty"),
        (body("tl.str_to_ty('tensordesc<…>', None)"), "reads tl.str_to_ty"),
        (body("f = tl.cdiv\n    f.get_capture_scope()['__builtins__']"), "reads f.get_capture_scope"),
        (body("k.fn"), "reads k.fn"),
        (body("().__class__.__base__"), "reads"),
        (body("f'{x.__class__}'"), "reads x.__class__"),
        (body("'{0.__class__}'.format(x)"), "format"),
        (body("getattr(tl, 'extra')"), "reads getattr"),
        (body("eval('1')", "triton.constexpr_function"), "reads eval, which it does not define"),
        (body("__import__('os')", "triton.constexpr_function"), "reads __import__"),
        (body("eval('1')") + "@triton.jit\ndef other(eval): pass\n", "reads eval"),
        (body("[0 for eval in B]\n    eval('1')", "triton.constexpr_function"), "reads eval"),
        ("eval: int\n" + body("eval('1')", "triton.constexpr_function"), "reads"),
        (body("import os", "triton.constexpr_function"), "has import inside a function"),
        (body("(lambda: x)()"), "has lambda inside a function"),
        (body("[open(f) for f in x]"), "reads open"),
        (body("tl.float32.name = 'x'"), "sets tl.float32.name"),
        (body("del tl.core"), "has delete"),
        (body("def inner(): pass"), "has function def"),
        (body("global x"), "has global"),
        ("import math\n" + body("math = tl.extra\n    math.modules"), "both for what it imports"),
        (body("match x:\n        case tl.core.inspect: pass"), "has match"),
        ("def k(:", "does not parse"),
        ("x = '\0'", "does not parse"),
        ("x = " + "-" * 100_000 + "1", "parse|nested"),
        ("x = " + "(" * 5000 + ")" * 5000, "parse|nested"),
    ],
)
def test_anything_else_is_refused_and_the_reason_says_where(source: str, reason: str) -> None:
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(check_source(source))


def request(**changes: Any) -> CompileRequest:
    fields: dict[str, Any] = {"signature": {"x": "*fp32"}, "target": "cuda:90", "environment": {}} | changes
    return CompileRequest.make("k", HEAD + KERNEL, **fields)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"signature": {"x": "*kfp16", "d": "tensordesc<fp16[64, 64]>", "n": "i32"}},
        {"signature": "*fp32:16, i32, 1024, -1.5, True"},
        {"options": {"num_warps": 4, "maxnreg": 64}},
        {"environment": {"TRITON_DEBUG": "1", "TRITON_PTXAS_PATH": "/ours/ptxas"}},
    ],
)
def test_a_plain_request_may_be_compiled(changes: dict[str, Any]) -> None:
    assert check_request(request(**changes), tools={"TRITON_PTXAS_PATH": "/ours/ptxas"}) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        # Triton evaluates what stands behind the shape.
        ({"signature": {"x": "tensordesc<fp16[64],__import__('os').system('id')>"}}, "signature"),
        ({"signature": "*fp32, tensordesc<fp16[64],print()>"}, "signature"),
        ({"options": {"ptx_options": "-o /home/me/.profile"}}, "option ptx_options"),
        ({"options": {"extern_libs": [["a", "/b.bc"]]}}, "option extern_libs"),
        ({"environment": {"LD_PRELOAD": "/tmp/x.so"}}, "environment variable LD_PRELOAD"),
        ({"environment": {"PTXAS_OPTIONS": "-o x"}}, "environment variable PTXAS_OPTIONS"),
        ({"environment": {"TRITON_DUMP_DIR": "/home"}}, "environment variable TRITON_DUMP_DIR"),
        *(({"environment": {tool: "/theirs"}}, f"asks for {tool}, which names") for tool in sorted(TOOL_VARIABLES)),
        ({"module": "triton.language.extra.libdevice"}, "Triton's module"),
    ],
)
def test_a_request_that_reaches_further_is_refused(changes: dict[str, Any], reason: str) -> None:
    assert reason in str(check_request(request(**changes)))


def test_c_is_never_built_for_somebody_unknown() -> None:
    """Not even what would pass for a kernel's source."""
    launcher = CompileRequest.make_launcher(
        "cuda_utils", HEAD, backend="nvidia", platform="", compiler="/bin/cc", environment={}
    )
    assert check_request(launcher) == "it is no kernel, but a launcher, which is built from C"


def test_a_refusal_says_which_line() -> None:
    source = HEAD + textwrap.dedent(KERNEL) + "import os\n"
    assert check_source(source) == "line 6 of its source imports os"


@pytest.mark.triton
def test_the_language_is_the_one_of_the_installed_triton() -> None:
    language = importlib.import_module("triton.language")
    assert set(language.__all__) - {"str_to_ty"} <= LANGUAGE_NAMES


# Live functions

LIVE = "@anything(at=all)\ndef f(x, n: tl.constexpr = LATER()) -> NEVER:\n    return tl.exp(x) + n\n"


def live(text: str = LIVE, **names: Binding) -> CapturedSource:
    names = {"tl": Import("triton.language"), **names}
    return CapturedSource([CapturedFunction("jit", "m", "f", "f.py", 1, text, names, {})])


def test_what_live_kernels_stand_on_may_be_compiled() -> None:
    harmless: dict[str, Binding] = {
        "math": Import("math"),
        "libdevice": Import("triton.language.extra.libdevice", ["triton.language.extra"]),
        "cdiv": Member("triton.language.standard", "cdiv"),
        "c": Constexpr(Items("tuple", [Constant(1.0), Dtype("fp32"), Table([(Constant("a"), Constant(2))])])),
        "g": FunctionRef(0),
        "u": Namespace("users", {"h": FunctionRef(0), "tl": Import("triton.language"), "v": Namespace("w", {})}),
        "P": NamedTuple("m", "P", ["shape"], [Constant(None)]),
    }
    text = "def f(x):\n    return g(u.h(x)) + u.tl.exp(x) + math.pi + libdevice.tanh(cdiv(x, c[0])) + P(x).shape[0]\n"
    assert check_source(live(text, **harmless)) is None
    python = "y = [max(i, k) for i in range(len(x)) if (k := i) or isinstance(i, int)]; return sum(y)"
    assert check_source(live(f"def f(x):\n    {python}\n")) is None


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
        Member("triton.language.extra", "modules"),
        NamedTuple("m", "P", ["modules"]),
        FunctionRef(7),
        FunctionRef(-1),
    ],
)
def test_a_live_function_may_not_stand_on_anything_else_wherever_it_is(binding: Binding) -> None:
    places: list[dict[str, Any]] = [
        {"a": binding},
        {"a": Constexpr(Items("list", [Table([(Constant(1), binding)])]))},
        {"a": Namespace("u", {"b": binding})},
        {"a": NamedTuple("m", "P", ["shape"], [binding])},
    ]
    for names in places:
        assert str(check_source(live(**names))).startswith("f: it")
    (function,) = live().functions
    assert check_source(CapturedSource([msgspec.structs.replace(function, defaults={"n": binding})]))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("import os", "has import"),
        ("return tl.extra.modules['os']", "reads tl.extra.modules"),
        ("return u.tl.extra.modules['os']", "reads u.tl.extra.modules"),
        ("v = u.tl.extra\n    return v.modules", "reads v.modules"),
        ("return u.nothing", "reads u.nothing"),
        ("u = tl.extra\n    return u.anything", "uses u both"),
        ("return [tl for tl in x]", "uses tl both"),
        ("return getattr(x, '_' + '_class__')", "reads getattr"),
        ("return type(x).mro()", "reads type"),
        ("return f.get_capture_scope()", "reads f"),
        ("return x.__class__", "reads x.__class__"),
        ("return __import__('os')", "reads __import__"),
        ("return somebody", "reads somebody"),
    ],
)
def test_a_live_function_that_reaches_further_is_refused(line: str, reason: str) -> None:
    names = {"u": Namespace("users", {"tl": Import("triton.language"), "anything": Constant(1)})}
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(check_source(live(f"def f(x):\n    {line}\n", **names)))


@pytest.mark.parametrize(
    "text", ["", "def f(x): return x\nimport os\n", "f = 1\n", "def g(x): return x\n", "def f(x:\n", "\x00"]
)
def test_a_live_function_is_one_function(text: str) -> None:
    assert check_source(live(text))


def test_a_captured_source_without_functions_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="there is no kernel"):
        CapturedSource([])


# As Triton parsed it


def parsed(text: str, bound: dict[str, Any] | None = None) -> str | None:
    given = {"tl": importlib.import_module("triton.language"), "triton": importlib.import_module("triton")}
    return check_parsed(ast.parse(text), given | (bound or {}))


def _module(name: str, **members: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    vars(module).update(members)
    return module


def print_everything(*everything: Any) -> None:
    print(everything)


class Place:
    SIZE = 4


class Busy:
    def __getattr__(self, name: str) -> Any:
        raise AssertionError(name)


@pytest.mark.triton
def test_a_function_as_triton_parsed_it_may_be_compiled() -> None:
    tl = importlib.import_module("triton.language")
    text = "def k(x, B: tl.constexpr = 4, s: float = 1e-5):\n    tl.store(x, m.f(math.floor(S)) + Place.SIZE + D[0])\n"
    m = _module("helpers", f=importlib.import_module("triton").cdiv, _unused=1)
    bound = {
        "m": m,
        "math": math,
        "S": tl.constexpr(1.5),
        "Place": Place,
        "D": (tl.float32, [1, {"a": None}]),
    }
    assert parsed(text, bound) is None


@pytest.mark.triton
@pytest.mark.parametrize(
    ("text", "bound", "reason"),
    [
        ("def k(x: tl.core.inspect.os.system('id')): pass", {}, "computes tl.core.inspect"),
        ("def k(x, y=tl.core.inspect.os.system('id')): pass", {}, "computes tl.core.inspect"),
        ("def k(x): pass\nprint(1)", {}, "not one function"),
        ("@tl.core.inspect.os\ndef k(x): pass", {}, "not one function"),
        ("def k(x): os.system('id')", {"os": os}, "uses the module os"),
        ("def k(x): f('id')", {"f": os.system}, "f is a builtins.builtin_function_or_method"),
        ("def k(x): f('id')", {"f": functools.partial(os.system, "id")}, "f is a functools.partial"),
        ("def k(x): f('id')", {"f": print_everything}, "f is a builtins.function"),
        ("def k(x): T[0]('id')", {"T": [os.system]}, "T is a"),
        ("def k(x): T['a']('id')", {"T": {"a": (os.system,)}}, "T is a"),
        ("def k(x): b.x", {"b": Busy()}, "b is a"),
        ("def k(x): Busy.x", {"Busy": Busy}, "Busy is a"),
        ("def k(x): m.f('id')", {"m": _module("m", f=os.system)}, "m.f is a"),
        ("def k(x): m.f", {"m": _module("triton.language.extra.libdevice", f=1)}, "is not that module"),
        ("def k(x): m.g", {"m": _module("m", f=1)}, "reads m.g"),
        ("def k(x): tl.load = 1", {}, "sets tl.load"),
        ("def k(x): undefined", {}, "reads undefined"),
        ("def k(x): getattr(tl, 'core')", {}, "reads getattr"),
        ("def k(x): x(A)", {"A": ".incbin '/etc/passwd'"}, "assembly that reads a file"),
    ],
)
def test_a_function_that_is_not_what_was_checked_is_refused(text: str, bound: dict[str, Any], reason: str) -> None:
    assert reason in str(parsed(text, bound))
