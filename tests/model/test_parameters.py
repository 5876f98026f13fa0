"""Names of parameters, read off a source that is not run."""

from __future__ import annotations

import pytest

from headstart.model.captured import CapturedFunction, CapturedSource, Parameter
from headstart.model.parameters import named, parameters_of, with_names
from headstart.model.request import CompileRequest

TEXT = """
raise SystemExit("this runs")
def k(other): pass
@triton.jit
def k(x, n, /, BLOCK: tl.constexpr, *rest, WARPS: tl.constexpr = 4): "\\d"
def helper(y): pass
"""


def request(source: str | CapturedSource, name: str = "k") -> CompileRequest:
    return CompileRequest.make(name, source, signature={}, target="cuda:90", environment={})


def test_a_text_is_parsed_and_not_run(recwarn: pytest.WarningsRecorder) -> None:
    assert parameters_of(request(TEXT)) == ("x", "n", "BLOCK", "rest", "WARPS")
    assert not recwarn.list


def test_a_captured_function_says_its_parameters() -> None:
    kernel = CapturedFunction(
        "jit",
        "m",
        "k",
        "k.py",
        1,
        "def k(x, B): pass",
        {},
        {},
        parameters=[Parameter("x", "positional_or_keyword"), Parameter("B", "positional_or_keyword")],
    )
    assert parameters_of(request(CapturedSource([kernel]))) == ("x", "B")


@pytest.mark.parametrize(
    "text", ["def k(", "\0", "def other(x): pass", "(" * 10_000, "-" * 1_000_000 + "1", "x." * 100_000 + "x", "k = 1"]
)
def test_what_has_no_such_function_has_no_names(text: str) -> None:
    assert parameters_of(request(text)) == ()


@pytest.mark.parametrize(
    ("path", "shown"),
    [("#1", "n"), ("#0.2.1", "x.2.1"), ("#2", "#2"), ("x", "x"), ("#", "#"), ("#-1", "#-1"), ("#²", "#²")],
)
def test_a_position_gets_its_name(path: str, shown: str) -> None:
    assert named(path, ("x", "n")) == shown


def test_components_stay_different_from_one_another() -> None:
    components = [("constants.#0", "1"), ("constants.n", "2"), ("constants.#1", "3"), ("attributes.#1", "4")]
    shown = [("constants.x", "1"), ("constants.n", "2"), ("constants.#1", "3"), ("attributes.n", "4")]
    assert with_names(components, lambda: ("x", "n")) == shown


def test_a_source_whose_constants_have_names_is_not_looked_at() -> None:
    components = [("name", "k"), ("constants.B", "1"), ("source", "whatever")]
    assert with_names(components, lambda: pytest.fail("it is")) == components
