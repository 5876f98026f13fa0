"""The code generator of examples/: what it generates, that it is right, and that its own check would tell if not."""

from __future__ import annotations

import ast
import hashlib
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
Kernel = tuple[str, str, dict[str, Any]]


@pytest.fixture(scope="module")
def example() -> Iterator[SimpleNamespace]:
    """The example's modules, and what one generation gave: its text, and its kernels in the order of definition."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        names = ("ir", "passes", "printer", "tiling", "check", "programs", "driver")
        modules = {name: importlib.import_module(f"kernelgen.{name}") for name in names}
        codegen = importlib.import_module("codegen")
        text, kernels = codegen.collect()
        yield SimpleNamespace(codegen=codegen, text=text, kernels=kernels, **modules)
    finally:
        sys.path.remove(str(EXAMPLES))


class Recorder:
    """Stands in for an AsyncCompile: keeps what it is asked for, compiles nothing."""

    def __init__(self) -> None:
        self.requests: list[Kernel] = []
        self.waited = False

    def triton(self, name: str, source: str, **how: Any) -> str:
        self.requests.append((name, source, how))
        return f"future of {name}"

    def wait(self, scope: dict[str, Any]) -> None:
        self.waited = True


def identity(kernel: Kernel) -> str:
    name, source, how = kernel
    return repr((source.replace(name, ""), how))


def sources_of(example: SimpleNamespace, kind: str) -> list[str]:
    return [source for name, source, _ in example.kernels if name.startswith(f"triton_{kind}_")]


def test_there_are_at_least_150_distinct_kernels(example: SimpleNamespace) -> None:
    assert len({identity(kernel) for kernel in example.kernels}) == len(example.kernels) >= 150


def test_names_are_unique_identifiers_and_name_the_function(example: SimpleNamespace) -> None:
    names = [name for name, _, _ in example.kernels]
    assert len(set(names)) == len(names)
    for name, source, _ in example.kernels:
        assert name.isidentifier()
        assert f"def {name}(" in source


def test_every_template_is_exercised(example: SimpleNamespace) -> None:
    assert all(len(sources_of(example, kind)) >= 4 for kind in ("poi", "red", "mm", "att"))
    assert any("for roffset in range" in source for source in sources_of(example, "red"))
    assert any("rindex * xnumel" in source for source in sources_of(example, "red"))


def test_sources_import_nothing_but_triton(example: SimpleNamespace) -> None:
    for _, source, _ in example.kernels:
        imports = [x for x in ast.parse(source).body if isinstance(x, ast.Import | ast.ImportFrom)]
        assert [ast.unparse(x) for x in imports] == ["import triton", "import triton.language as tl"]


def test_signatures_name_the_parameters_in_order(example: SimpleNamespace) -> None:
    for name, source, how in example.kernels:
        function = next(x for x in ast.parse(source).body if isinstance(x, ast.FunctionDef))
        parameters = [arg.arg for arg in function.args.args]
        assert list(how["signature"]) == parameters, name
        constants = [x for x, kind in how["signature"].items() if kind == "constexpr"]
        assert list(how["constants"]) == constants, name
        assert all(0 <= i < len(parameters) - len(constants) for (i,) in how["attrs"]), name


def test_the_emitted_module_parses_and_asks_for_the_same_kernels(example: SimpleNamespace) -> None:
    ast.parse(example.text)
    recorder = Recorder()
    scope = example.codegen.run_module(example.text, recorder)
    assert recorder.requests == example.kernels
    assert recorder.waited
    assert all(scope[name] == f"future of {name}" for name, _, _ in example.kernels)


def test_launches_refer_to_kernels_with_as_many_arguments_as_they_take(example: SimpleNamespace) -> None:
    scope = example.codegen.run_module(example.text, Recorder())
    signatures = {f"future of {name}": how["signature"] for name, _, how in example.kernels}
    launched = [launch for launches in scope["PROGRAMS"].values() for launch in launches]
    assert {kernel for kernel, _, _ in launched} == set(signatures)
    for kernel, arguments, grid in launched:
        passed = [kind for kind in signatures[kernel].values() if kind != "constexpr"]
        assert [kind.startswith("*") for kind in passed] == [isinstance(x, str) for x in arguments]
        assert all(0 < dimension < 2**31 for dimension in grid)


def test_kernels_are_kicked_off_while_generation_goes_on(example: SimpleNamespace) -> None:
    class Stop(Exception):
        pass

    seen: list[str] = []

    def define_kernel(name: str, source: str, how: dict[str, Any]) -> None:
        seen.append(name)
        if len(seen) == 3:
            raise Stop

    # If kernels were only announced at the end, all of them would have been generated by now, and checked.
    with pytest.raises(Stop):
        example.codegen.generate(None, define_kernel=define_kernel)
    assert seen == [name for name, _, _ in example.kernels[:3]]


def test_a_kick_off_by_default_goes_to_async_compile_and_gives_the_same_text(
    example: SimpleNamespace,
) -> None:
    recorder = Recorder()
    assert example.codegen.generate(recorder) == example.text
    assert recorder.requests == example.kernels


@pytest.mark.parametrize("seed", ["0", "4711"])
def test_the_text_does_not_depend_on_the_hash_seed(example: SimpleNamespace, seed: str) -> None:
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    command = [sys.executable, str(EXAMPLES / "codegen.py")]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, timeout=100)
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(example.text.encode()).digest()


def test_generation_imports_no_triton() -> None:
    code = "import sys, codegen; from kernelgen import driver; print('triton' in sys.modules, 'torch' in sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=EXAMPLES, check=True, stdout=subprocess.PIPE, timeout=60)
    assert done.stdout.split() == [b"False", b"False"]


def test_the_sweep_is_48_configurations_of_one_kernel(example: SimpleNamespace) -> None:
    sweep = list(example.codegen.matmul_sweep())
    assert len({repr(kernel) for kernel in sweep}) == len(sweep) == 48
    assert len({(name, source) for name, source, _ in sweep}) == 1


# The check itself


def lowered(example: SimpleNamespace, kind: str) -> Iterator[tuple[Any, Any, Any]]:
    """Kernels of one kind, their lowering, and the reference values of their graphs."""
    for graph in example.programs.programs():
        simplified = example.passes.simplify(graph)
        for kernel in example.passes.plan(simplified):
            if kernel.kind == kind:
                yield kernel, example.printer.lower(kernel), example.check.Reference(graph, simplified)


MISTAKES = [
    ("pointwise", r"xindex < xnumel", "xindex <= xnumel", "which has .* elements"),
    ("pointwise", r"XBLOCK \+ tl.arange", "XBLOCK + 1 + tl.arange", "never stored|elements"),
    ("pointwise", r"tmp0 \* ", "tmp0 + ", "element 0 is"),
    ("reduction", r"tl.where\(rmask, ", "tl.where(xmask, ", "element .* is"),
    ("reduction", r"tl.sum", "tl.max", "element .* is"),
    ("matmul", r"acc \+= tl.dot", "acc = tl.dot", "element 0 is"),
    ("matmul", r"for start in range\(0, K", "for start in range(BLOCK_K, K", "element 0 is"),
    ("matmul", r"pid % \(GROUP_M \* blocks_n\) // rows", "0", "never stored"),
    ("attention", r"acc \* decay\[:, None\]", "acc", "element .* is"),
    ("attention", r"\(rm < length\)\[:, None\]\)$", "(rm <= length)[:, None])", "two values stored"),
    ("attention", r"peak = highest", "peek = highest", "element .* is"),
]


@pytest.mark.parametrize(("kind", "pattern", "replacement", "message"), MISTAKES)
def test_a_mistake_in_a_kernel_is_found(
    example: SimpleNamespace, kind: str, pattern: str, replacement: str, message: str
) -> None:
    kernel, good, reference = next(x for x in lowered(example, kind) if re.search(pattern, x[1].source, re.M))
    example.check.verify(kernel, good, reference)
    source = re.sub(pattern, replacement, good.source, flags=re.M)
    bad = type(good)(source, good.pointers, good.sizes, good.constants, good.grid)
    with pytest.raises(example.check.WrongKernel, match=message):
        example.check.verify(kernel, bad, reference)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("    tmp1 = tmp9 + 1", "tmp9 is used before it is bound"),
        ("    n = 0", "never used"),
        ("import os", "imports more"),
    ],
)
def test_malformed_text_is_found(example: SimpleNamespace, line: str, message: str) -> None:
    good = "def f(p, n):\n    tmp0 = p + n\n    tmp1 = tmp0 + 1"
    example.check.well_formed(good)
    bad = good.replace("    tmp0 = p + n", "    tmp0 = p + 1") if line == "    n = 0" else f"{good}\n{line}"
    with pytest.raises(example.check.WrongKernel, match=message):
        example.check.well_formed(bad)


def test_a_wrong_simplification_is_found(example: SimpleNamespace) -> None:
    x = example.ir.load("x", (64, 32))
    right = example.ir.Graph("g", {"y": x / 3.0})
    wrong = example.ir.Graph("g", {"y": x * 0.3333})
    with pytest.raises(example.check.WrongKernel, match="simplification of g"):
        example.check.Reference(right, wrong)


# The passes


def test_equal_subexpressions_become_one(example: SimpleNamespace) -> None:
    x, y = example.ir.load("x", (64, 32)), example.ir.load("y", (64, 32))
    graph = example.passes.simplify(example.ir.Graph("g", {"a": (x + y) * 3.0, "b": 3.0 * (y + x)}))
    assert graph.outputs["a"] is graph.outputs["b"]


def test_a_normalization_with_its_residual_is_one_kernel(example: SimpleNamespace) -> None:
    x, r, w = (example.ir.load(n, s) for n, s in (("x", (64, 32)), ("r", (64, 32)), ("w", (1, 32))))
    h = x + r
    graph = example.ir.Graph("g", {"h": h, "y": example.programs.rms_norm(h, w)})
    (kernel,) = example.passes.plan(example.passes.simplify(graph))
    assert kernel.kind == "reduction"
    assert len(kernel.outputs) == 2


def test_an_epilogue_goes_into_its_product_and_what_comes_before_does_not(example: SimpleNamespace) -> None:
    x, w, b = (example.ir.load(n, s) for n, s in (("x", (64, 32)), ("w", (32, 48)), ("b", (1, 48))))
    product = example.ir.matmul(example.programs.silu(x), w)
    graph = example.ir.Graph("g", {"y": example.programs.gelu(product + b)})
    kernels = example.passes.plan(example.passes.simplify(graph))
    assert [kernel.kind for kernel in kernels] == ["pointwise", "matmul"]
    assert len(kernels[1].nodes) > 5


def test_fusion_makes_no_cycle(example: SimpleNamespace) -> None:
    # `x + 1` and `… + x` share x, but a product stands between them.
    x = example.ir.load("x", (32, 32))
    graph = example.ir.Graph("g", {"y": example.ir.matmul(x + 1.0, x) * 2.0 + (x + 1.0)})
    kernels = example.passes.plan(example.passes.simplify(graph))
    made: set[Any] = set()
    for kernel in kernels:
        inside = {node for node in kernel.inputs if not isinstance(node, example.ir.Load)}
        assert inside <= made
        made |= set(kernel.outputs)


def test_tilings_fit_the_machine(example: SimpleNamespace) -> None:
    for name, _, how in example.kernels:
        constants, options = how["constants"], how["options"]
        blocks = [n for tile, n in constants.items() if tile.endswith("BLOCK") or tile.startswith("BLOCK")]
        assert all(n & (n - 1) == 0 for n in blocks), name
        assert options["num_warps"] in (1, 2, 4, 8, 16), name
