"""KernelSpec and plan files: what they accept, and what they say about what they do not."""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from headstart.cli.plans import KernelSpec, PlanRaised, load_plan
from headstart.errors import UsageError
from headstart.model.captured import CapturedSource
from headstart.model.target import Target

SOURCE = textwrap.dedent(
    """
    import triton
    import triton.language as tl

    @triton.jit
    def double(x, n, BLOCK: tl.constexpr):
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        tl.store(x + i, tl.load(x + i, mask=i < n) * 2, mask=i < n)
    """
)

SPEC = "KernelSpec('source', name='k{0}', signature='*fp32')"

Write = Callable[..., str]


@pytest.fixture(autouse=True)
def _leave_the_import_system_alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if not name.startswith(("triton", "headstart.")):
            del sys.modules[name]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a plan file; returns its path."""

    def write(text: str, name: str = "plan.py", imports: str = "from headstart import KernelSpec\n") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(imports + textwrap.dedent(text), encoding="utf-8")
        return str(path)

    return write


def names(plan: str) -> list[str]:
    return [spec.name for spec in load_plan(plan)]


def refusal(plan: str) -> str:
    """What is said about a plan that yields nothing usable."""
    with pytest.raises(UsageError) as caught:
        list(load_plan(plan))
    return str(caught.value)


# KernelSpec


def test_a_text_keeps_what_it_was_given() -> None:
    spec = KernelSpec(
        SOURCE,
        name="double",
        signature={"x": "*fp32", "n": "i32"},
        constants={"BLOCK": 64},
        attrs={"x": 16},
        options={"num_warps": 2},
        target="cuda:90",
    )
    assert (spec.source, spec.name, spec.filename) == (SOURCE, "double", None)
    assert spec.signature == {"x": "*fp32", "n": "i32"}
    assert (spec.constants, spec.attrs, spec.options) == ({"BLOCK": 64}, {"x": 16}, {"num_warps": 2})
    assert spec.target == Target.parse("cuda:90")


def test_specs_are_values() -> None:
    one, other = (KernelSpec(SOURCE, name="double", signature="*fp32, i32, 64") for _ in range(2))
    assert one == other
    with pytest.raises(AttributeError):
        one.name = "other"  # type: ignore[misc]


def test_the_name_of_a_single_jit_function_may_be_left_out() -> None:
    source = SOURCE + "\n\ndef helper():\n    pass\n"
    assert KernelSpec(source, signature="*fp32, i32, 64").name == "double"


@pytest.mark.parametrize(
    "decorator",
    [
        "@triton.jit",
        "@jit",
        "@triton.jit(do_not_specialize=['n'])",
        "@triton.autotune([], key=[])\n@triton.jit",
    ],
)
def test_a_jit_function_is_recognized_by_its_decorator(decorator: str) -> None:
    assert KernelSpec(f"{decorator}\ndef f(x):\n    pass\n", signature="*fp32").name == "f"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (SOURCE + SOURCE.replace("double", "triple"), "defines several (double, triple)"),
        ("x = 1\n", "defines none"),
        ("def broken(:\n", "does not parse"),
    ],
)
def test_a_missing_name_that_cannot_be_told_is_refused(source: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        KernelSpec(source, signature="*fp32")
    assert said in str(caught.value)


def test_an_unknown_target_is_refused_where_it_is_written() -> None:
    with pytest.raises(UsageError, match="unknown target 'gpu:1'"):
        KernelSpec(SOURCE, signature="*fp32, i32, 64", target="gpu:1")


@pytest.mark.parametrize("wrong", [3, None, object(), print, Path("kernel.py")])
def test_what_is_neither_text_nor_a_jit_function_is_refused(wrong: Any) -> None:
    with pytest.raises(UsageError, match=r"source text or a @triton\.jit function"):
        KernelSpec(wrong, signature="*fp32")


def test_a_plain_function_is_told_that_it_lacks_its_decorator() -> None:
    with pytest.raises(UsageError, match=r"@triton\.jit is missing"):
        KernelSpec(refusal, signature="*fp32")


# A jit function


KERNELS = """
import triton
import triton.language as tl

SCALE = tl.constexpr(2)

@triton.jit
def scaled(value):
    return value * SCALE

@triton.jit
def plain(x, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(x + i, scaled(tl.load(x + i)), mask=i < n)

@triton.autotune([triton.Config({"BLOCK": 64})], key=["n"])
@triton.heuristics({"BLOCK": lambda arguments: 64})
@triton.jit
def tuned(x, n, BLOCK: tl.constexpr):
    tl.store(x, n)
"""


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module with kernels, in a file of its own."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "kernels_of_spec.py").write_text(KERNELS, encoding="utf-8")
    return importlib.import_module("kernels_of_spec")


def captured(spec: KernelSpec) -> CapturedSource:
    assert isinstance(spec.source, CapturedSource)
    return spec.source


@pytest.mark.triton
def test_a_function_travels_with_what_it_calls(kernels: Any) -> None:
    spec = KernelSpec(kernels.plain, signature="*fp32, i32, 64")
    assert spec.name == "plain"
    assert [function.name for function in captured(spec).functions] == ["plain", "scaled"]
    assert spec.filename == kernels.__file__


@pytest.mark.triton
def test_decorators_on_top_of_jit_are_looked_through(kernels: Any) -> None:
    assert KernelSpec(kernels.tuned, signature="*fp32, i32, 64").name == "tuned"


@pytest.mark.triton
def test_a_function_is_not_renamed(kernels: Any) -> None:
    with pytest.raises(UsageError, match="name='other' was given with the function plain"):
        KernelSpec(kernels.plain, name="other", signature="*fp32, i32, 64")


@pytest.mark.triton
def test_a_function_is_taken_as_it_is_when_it_is_asked_for(kernels: Any) -> None:
    before = KernelSpec(kernels.plain, signature="*fp32, i32, 64")
    kernels.SCALE = type(kernels.SCALE)(3)
    after = KernelSpec(kernels.plain, signature="*fp32, i32, 64")
    assert before != after
    assert captured(before).kernel.text == captured(after).kernel.text


@pytest.mark.triton
def test_a_file_name_for_the_debug_lines_of_a_function_can_be_given(kernels: Any) -> None:
    spec = KernelSpec(kernels.plain, signature="*fp32, i32, 64", filename="k.py")
    assert (spec.filename, captured(spec).kernel.filename) == ("k.py", "k.py")


def test_an_interpreted_function_names_the_variable_to_unset() -> None:
    class InterpretedFunction:
        """As Triton makes it of a function."""

    with pytest.raises(UsageError, match="TRITON_INTERPRET is set"):
        KernelSpec(InterpretedFunction(), signature="*fp32")


@pytest.mark.triton
def test_a_real_jit_function_of_a_plan_travels(write: Write) -> None:
    plan = write(
        SOURCE
        + textwrap.dedent(
            """
            @triton.autotune([triton.Config({"BLOCK": 64})], key=["n"])
            @triton.jit
            def tuned(x, n, BLOCK: tl.constexpr):
                tl.store(x, n)

            def kernels():
                yield KernelSpec(double, signature={"x": "*fp32", "n": "i32"}, constants={"BLOCK": 64})
                yield KernelSpec(tuned, signature={"x": "*fp32", "n": "i32"}, constants={"BLOCK": 64})
            """
        )
    )
    specs = list(load_plan(plan))
    assert [spec.name for spec in specs] == ["double", "tuned"]
    for spec in specs:
        assert captured(spec).kernel.text in Path(plan).read_text()
    assert {spec.filename for spec in specs} == {plan}


# Plans


def test_a_plan_is_a_file(write: Write) -> None:
    plan = write(f"def kernels():\n    for i in range(3):\n        yield {SPEC.replace('k{0}', 'k')}\n")
    assert names(plan) == ["k", "k", "k"]


def test_a_plan_is_a_module_of_the_current_folder(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("", name="a_package/__init__.py")
    write(f"def kernels():\n    yield {SPEC.format(1)}\n", name="a_package/a_plan.py")
    monkeypatch.chdir(tmp_path)
    assert names("a_package.a_plan") == ["k1"]


def test_a_file_is_named_as_it_likes_and_lies_where_it_likes(write: Write, tmp_path: Path) -> None:
    assert names(write(f"def kernels():\n    yield {SPEC.format(1)}\n", name="mit Leerzeichen/žlutý-1.py")) == ["k1"]
    assert names(
        write(f"import json; json.dumps(1)\ndef kernels():\n    yield {SPEC.format(2)}\n", name="json.py")
    ) == ["k2"]


def test_a_plan_imports_what_lies_beside_it(write: Write) -> None:
    write(f"SPECS = [{SPEC.format(1)}]\n", name="beside_the_plan.py")
    plan = write(
        """
        import beside_the_plan

        def kernels():
            yield from beside_the_plan.SPECS
        """
    )
    assert names(plan) == ["k1"]


def test_kernels_may_return_any_iterable(write: Write) -> None:
    assert names(write(f"def kernels():\n    return [{SPEC.format(1)}]\n")) == ["k1"]
    assert names(write("kernels = lambda: ()\n")) == []


def test_a_spec_is_handed_over_before_the_plan_goes_on(write: Write) -> None:
    plan = write(
        f"""
        progress = []

        def kernels():
            for i in range(3):
                progress.append(i)
                yield {SPEC.format(1)}
        """
    )
    specs = load_plan(plan)
    next(specs)
    assert sys.modules["__headstart_plan__"].progress == [0]


def test_the_import_guard_of_a_script_stays_closed(write: Write) -> None:
    plan = write(f"def kernels():\n    yield {SPEC.format(1)}\nif __name__ == '__main__':\n    raise SystemExit(3)\n")
    assert names(plan) == ["k1"]


# Plans that are wrong


@pytest.mark.parametrize(
    "plan", ["no_such_plan.py", "no/such/plan", "no_such_package.plan", "no-such-thing", "..x", ""]
)
def test_a_plan_that_is_not_there_is_named(plan: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_plan(plan)
    assert repr(plan) in str(caught.value) or f"plan {plan}:" in str(caught.value)
    assert not isinstance(caught.value, PlanRaised)


@pytest.mark.parametrize("name", ["thesis.tex", "plan", "plan.py.bak"])
def test_a_file_that_is_no_python_file_is_not_run(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("open('ran', 'w')\ndef kernels(): yield")
    with pytest.raises(UsageError, match=f"{name} is neither a manifest nor a plan"):
        load_plan(str(tmp_path / name))
    assert not Path("ran").exists()


def test_a_folder_is_not_a_plan(tmp_path: Path) -> None:
    assert "Is a directory" in refusal(str(tmp_path))


def test_a_plan_that_does_not_parse_shows_where(write: Write) -> None:
    said = refusal(write("def kernels(:\n    pass\n"))
    assert "does not parse" in said
    assert "def kernels(:" in said
    assert "line 2" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("text", [b"x = '\x00'", b"\xff\xfe", b"# coding: nonsense\n"])
def test_a_plan_that_is_no_text_does_not_parse(text: bytes, tmp_path: Path) -> None:
    plan = tmp_path / "plan.py"
    plan.write_bytes(text)
    assert "does not parse" in refusal(str(plan))


def test_a_module_that_does_not_parse_shows_where(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("def kernels(:\n", name="unparsable_plan.py")
    monkeypatch.chdir(tmp_path)
    assert "does not parse" in refusal("unparsable_plan")


def test_a_plan_without_kernels_is_told_what_one_is(write: Write) -> None:
    assert "has no kernels()" in refusal(write("x = 1\n"))


def test_kernels_must_be_a_function(write: Write) -> None:
    assert "not a function but list" in refusal(write(f"kernels = [{SPEC.format(1)}]\n"))


def test_kernels_takes_no_arguments(write: Write) -> None:
    assert "without arguments: missing a required argument: 'config'" in refusal(write("def kernels(config): yield\n"))


@pytest.mark.parametrize("body", ["return None", "return 3", "return " + SPEC.format(1)])
def test_kernels_must_yield(body: str, write: Write) -> None:
    assert "it must yield headstart.KernelSpec" in refusal(write(f"def kernels():\n    {body}\n"))


def test_an_asynchronous_generator_is_no_plan(write: Write) -> None:
    assert "returned async_generator" in refusal(write(f"async def kernels():\n    yield {SPEC.format(1)}\n"))


@pytest.mark.parametrize("wrong", ["None", "'source'", "{'name': 'k'}", "KernelSpec"])
def test_what_is_no_spec_is_named_and_what_came_before_is_kept(wrong: str, write: Write) -> None:
    specs = load_plan(write(f"def kernels():\n    yield {SPEC.format(1)}\n    yield {wrong}\n"))
    assert next(specs).name == "k1"
    with pytest.raises(UsageError, match=r"yielded .*, not headstart\.KernelSpec") as caught:
        next(specs)
    assert not isinstance(caught.value, PlanRaised)


def test_a_plan_that_raises_half_way_shows_the_users_frames_only(write: Write) -> None:
    plan = write(
        f"""
        def kernels():
            yield {SPEC.format(1)}
            yield spec_number(2)

        def spec_number(n):
            raise ValueError(f"no kernel {{n}}")
        """
    )
    specs = load_plan(plan)
    assert next(specs).name == "k1"
    with pytest.raises(PlanRaised) as caught:
        next(specs)
    said = str(caught.value)
    assert f"{plan} raised ValueError" in said
    assert said.endswith("ValueError: no kernel 2")
    assert [line.rpartition(" in ")[2] for line in said.splitlines() if line.startswith("  File")] == [
        "kernels",
        "spec_number",
    ]
    assert isinstance(caught.value.original, ValueError)


def test_what_led_to_an_exception_is_trimmed_too(write: Write) -> None:
    plan = write(
        """
        def kernels():
            try:
                yield KernelSpec(3, signature="*fp32")
            except Exception as error:
                raise RuntimeError("mine") from error
        """
    )
    said = refusal(plan)
    assert "source text or a @triton.jit function, not int" in said
    assert "direct cause" in said
    assert str(Path(sys.modules["headstart.cli.plans"].__file__ or "")) not in said


def test_a_plan_that_raises_when_imported_says_so(write: Write) -> None:
    said = refusal(write("import no_such_module_at_all\n"))
    assert "raised ModuleNotFoundError" in said
    assert "importlib" not in said


def test_a_module_that_raises_when_imported_says_so(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("import no_such_module_at_all\n", name="raising_plan.py")
    monkeypatch.chdir(tmp_path)
    said = refusal("raising_plan")
    assert "raised ModuleNotFoundError" in said
    assert "<frozen" not in said


def test_a_plan_cannot_end_the_command(write: Write) -> None:
    assert "raised SystemExit" in refusal(write("def kernels():\n    yield exit(0)\n"))
    assert "raised SystemExit" in refusal(write("raise SystemExit\n"))


def test_ctrl_c_in_a_plan_is_ctrl_c(write: Write) -> None:
    with pytest.raises(KeyboardInterrupt):
        names(
            write(
                "def kernels():\n    yield 1 / 1 if 0 else raise_it()\n\ndef raise_it():\n    raise KeyboardInterrupt\n"
            )
        )


def test_a_file_name_for_debug_lines_can_be_given() -> None:
    assert KernelSpec(SOURCE, signature="*fp32, i32, 64", filename="/elsewhere/k.py").filename == "/elsewhere/k.py"
