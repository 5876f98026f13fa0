"""A plan written for a failed request asks for the same compile again."""

from __future__ import annotations

import math
import os
import shlex
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headstart.artifacts import reproduce
from headstart.artifacts.reproduce import write_plan
from headstart.cli.plans import load_plan
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
)
from headstart.model.environment import FINGERPRINT_VARIABLES, OUTCOME_VARIABLES
from headstart.model.request import CompileRequest
from headstart.model.values import Encoded

SOURCE = """\
import triton
import triton.language as tl

@triton.jit
def add(x, n, BLOCK: tl.constexpr):
    "adds"
    tl.store(x, n)
"""
patient = settings(deadline=None)  # files are written


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in FINGERPRINT_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def make(name: str = "add", source: str | CapturedSource = SOURCE, **changes: Any) -> CompileRequest:
    return CompileRequest.make(name, source, **{"signature": {"x": "*fp32"}, "target": "cuda:90", **changes})


def plan_of(command: str) -> Path:
    words = shlex.split(command)
    assert words[-3:-1] == ["headstart", "build"]
    return Path(words[-1])


def loaded(path: Path) -> CompileRequest:
    """The one request that a plan asks for."""
    (spec,) = load_plan(str(path))
    return CompileRequest.make(
        spec.name,
        spec.source,
        signature=spec.signature,
        constants=spec.constants,
        attrs=spec.attrs,
        options=spec.options,
        target=str(spec.target),
        filename=spec.filename,
    )


def again(request: CompileRequest) -> CompileRequest:
    """What the plan of `request` asks for, in the environment that its command sets."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        command = write_plan(Path(folder), request)
        for word in shlex.split(command)[:-3]:
            name, _, value = word.partition("=")
            patch.setenv(name, value)
        return loaded(plan_of(command))


scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text()
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner),
    max_leaves=6,
)
names = st.from_regex(r"[a-z_][a-z0-9_]{0,4}", fullmatch=True)
parameters = names | st.integers(0, 9) | st.lists(st.integers(0, 9), min_size=1, max_size=3).map(tuple)
fact = st.tuples(st.text(max_size=4), st.integers(0, 64) | st.text(max_size=4))
facts = st.integers(1, 64) | st.lists(fact, max_size=2)
# Quotes, escapes, and line ends of all sorts are where a literal can go wrong.
sources = st.text() | st.text("'\"\\\n\r\t {}#é核\x0c\x85\u2028\x00aN", max_size=20)


@given(source=sources, filename=sources)
@example(source="'", filename="'")
@example(source="''' + 1", filename="{0}")
@example(source='\'a\'\n"""b"""\\\n', filename="a\\N{DASH}.py")
@example(source="\n", filename="\n")
@example(source="a\r\nb\rc", filename="é")
@patient
def test_any_source_comes_back_as_it_was(source: str, filename: str) -> None:
    request = make(source=source, filename=filename)
    assert again(request) == request


@given(
    constants=st.dictionaries(parameters, values, max_size=3),
    options=st.dictionaries(st.text(max_size=4), values | st.dictionaries(st.text(max_size=3), values), max_size=3),
    attrs=st.dictionaries(parameters, facts, max_size=3),
    signature=st.dictionaries(names, st.text(max_size=6), max_size=3) | st.text(max_size=12),
)
@patient
def test_any_arguments_make_the_same_request_again(constants: Any, options: Any, attrs: Any, signature: Any) -> None:
    request = make(constants=constants, options=options, attrs=attrs, signature=signature)
    repeated = again(request)
    assert repeated.components() == request.components()
    assert repeated.digest() == request.digest()


@pytest.mark.parametrize(
    "value",
    [math.inf, -math.inf, math.nan, -0.0, -1, 1e300, "né", [1, [None]], (1, (None,)), Encoded({"dtype": "fp16"})],
)
def test_a_constant_of_any_kind_comes_back(value: Any) -> None:
    request = make(constants={"A": value, (1, 0): [value]}, signature={"x": ("i32", ("*fp32",))})
    assert again(request).digest() == request.digest()


def captured(text: str = "def f(x): ...\n", value: Any = math.inf) -> CapturedSource:
    names: dict[str, Binding] = {
        "tl": Import("triton.language"),
        "C": Constexpr(Items("tuple", [Constant(value), Constant(None)])),
        "g": FunctionRef(0),
    }
    function = CapturedFunction("jit", "m", "outer.<locals>.f", "/a/f.py", 3, text, names, {"x": Dtype("fp16")}, True)
    return CapturedSource([function, function], entry_name="f_4")


@given(text=sources, value=scalars)
@example(text="'''", value=-0.0)
@patient
def test_a_captured_source_comes_back_as_it_was(text: str, value: Any) -> None:
    request = make("f", captured(text, value))
    repeated = again(request)
    assert repeated.components() == request.components()
    assert repeated.digest() == request.digest()


def test_the_plan_of_a_captured_source_shows_the_text_as_it_was_written(tmp_path: Path) -> None:
    text = plan_of(write_plan(tmp_path, make("f", captured("def f(x):\n    return x\n")))).read_text()
    assert "def f(x):\n    return x\n" in text


@pytest.mark.parametrize("target", ["cuda:90", "cuda:90:64", "hip:gfx942"])
def test_the_target_comes_back(target: str) -> None:
    assert again(make(target=target)).target == target


@given(value=st.text(min_size=1).filter(lambda text: "\x00" not in text))
@example(value='a"""b')
@example(value='"""')
@example(value="a'b c\\d\\")
@example(value="a\nb")
@patient
def test_the_command_sets_the_environment_and_the_plan_loads_whatever_is_in_it(value: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PTXAS_OPTIONS", value)
        request = make()
    assert request.environment == {"PTXAS_OPTIONS": value}
    assert again(request) == request


def test_the_command_sets_every_variable_of_the_request(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in OUTCOME_VARIABLES:
        monkeypatch.setenv(name, "1 2")
    words = shlex.split(write_plan(tmp_path, make()))
    assert words[:-3] == sorted(f"{name}=1 2" for name in OUTCOME_VARIABLES)


@pytest.mark.parametrize("folder", ["with space", "it's", "é", 'a"b', 'a"""b', "a\\x", "{name}"])
def test_the_command_works_in_any_folder(folder: str, tmp_path: Path) -> None:
    request = make()
    path = plan_of(write_plan(tmp_path / folder, request))
    assert path.parent == tmp_path / folder
    assert loaded(path) == request


def test_a_plan_can_be_read_by_people(tmp_path: Path) -> None:
    text = plan_of(write_plan(tmp_path, make(constants={"BLOCK": 4}))).read_text()
    assert SOURCE in text, "as it was written, not escaped"
    assert text.splitlines()[1].startswith('"""add for cuda:90, which failed to compile.')
    assert "headstart build" in text
    assert "constants={'BLOCK': 4}" in text


def test_the_same_request_has_one_plan_and_another_one_another(tmp_path: Path) -> None:
    assert write_plan(tmp_path, make()) == write_plan(tmp_path, make())
    write_plan(tmp_path, make(target="cuda:80"))
    assert len(list(tmp_path.iterdir())) == 2


def test_only_the_youngest_plans_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduce, "_KEPT", 3)
    paths = []
    for number in range(5):
        paths.append(plan_of(write_plan(tmp_path, make(constants={"A": number}))))
        os.utime(paths[-1], (number, number))
    mine = [tmp_path / name for name in ("notes.txt", "attention.py", "attention-0123456789ab.py", ".hidden", ".a.tmp")]
    for path in mine:
        path.write_text("x = 1\n")
        os.utime(path, (0, 0))
    plan_of(write_plan(tmp_path, make(constants={"A": 5})))
    kept = set(tmp_path.iterdir()).difference(mine)
    assert len(kept) == 3
    assert {paths[3], paths[4]} < kept
    assert all(path.exists() for path in mine), "headstart removes what it wrote, whatever else is in the folder"


def test_a_plan_replaces_no_file_of_the_user_s(tmp_path: Path) -> None:
    path = plan_of(write_plan(tmp_path, make()))
    path.write_text("x = 1\n")
    assert write_plan(tmp_path, make()) == ""
    assert path.read_text() == "x = 1\n"


def test_what_a_killed_writer_left_is_removed_after_a_while(tmp_path: Path) -> None:
    path = plan_of(write_plan(tmp_path, make()))
    names = [f".{path.name}.{'ab' * 8}.tmp", f".{'cd' * 32}.json.{'ab' * 8}.tmp"]
    for name in names:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    write_plan(tmp_path, make())
    assert os.listdir(tmp_path) == [path.name]


def test_a_folder_that_cannot_be_written_means_no_command(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert write_plan(tmp_path / "file", make()) == ""
    assert write_plan(tmp_path / "file" / "below", make()) == ""


def test_a_name_that_no_file_can_have_means_no_command_or_a_plan_that_loads(tmp_path: Path) -> None:
    request = make(name="𝒜" * 100)
    command = write_plan(tmp_path, request)
    assert command == "" or loaded(plan_of(command)) == request
