"""A request has one form: equal compiles are equal requests, and different ones are not."""

from __future__ import annotations

import copy
import enum
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from headstart import wire
from headstart.errors import UsageError
from headstart.model import keys
from headstart.model.environment import FINGERPRINT_VARIABLES, TOOL_VARIABLES
from headstart.model.request import CompileRequest, to_target
from headstart.model.target import Target
from kernels import TOOLCHAIN

SOURCE = "@triton.jit\ndef add(x, n, BLOCK: tl.constexpr): ...\n"
DEFAULTS: dict[str, Any] = {
    "signature": {"x": "*fp32", "n": "i32"},
    "constants": {"BLOCK": 1024},
    "attrs": {"x": 16},
    "options": {"num_warps": 4, "num_stages": 3},
    "target": "cuda:90",
}


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in FINGERPRINT_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def request(name: str = "add", source: str = SOURCE, **changes: Any) -> CompileRequest:
    return CompileRequest.make(name, source, **{**DEFAULTS, **changes})


def digest(**changes: Any) -> str:
    return request(**changes).digest()


def travelled(sent: CompileRequest) -> CompileRequest:
    message = wire.decode(wire.decoder(wire.FromClient), wire.encode(wire.Submit(1, TOOLCHAIN, sent, True)))
    return message.request


scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text()
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner),
    max_leaves=6,
)
options = values | st.dictionaries(st.text(max_size=3), values, max_size=3)
names = st.from_regex(r"[a-z_][a-z0-9_]{0,4}", fullmatch=True)
parameters = names | st.integers(0, 9) | st.lists(st.integers(0, 9), min_size=1, max_size=3).map(tuple)
fact = st.tuples(st.text(max_size=4), st.integers(0, 64) | st.text(max_size=4))
facts = st.integers(1, 64) | st.lists(fact, max_size=3)


@st.composite
def arguments(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "name": draw(names),
        "source": draw(st.text()),
        "signature": draw(st.dictionaries(names, st.sampled_from(["*fp32", "i32"]), max_size=3) | st.text(max_size=10)),
        "constants": draw(st.dictionaries(parameters, values, max_size=3)),
        "attrs": draw(st.dictionaries(parameters, facts, max_size=2)),
        "options": draw(st.dictionaries(names, options, max_size=3)),
        "target": draw(st.sampled_from(["cuda:90", "hip:gfx942"])),
    }


# What is the same


def test_the_order_of_arguments_does_not_matter() -> None:
    turned = {name: dict(reversed(value.items())) for name, value in DEFAULTS.items() if isinstance(value, dict)}
    assert digest(**turned) == digest()


def test_naming_a_constexpr_in_the_signature_too_changes_nothing() -> None:
    assert digest(signature={**DEFAULTS["signature"], "BLOCK": "constexpr"}) == digest()


def test_spaces_in_a_signature_string_do_not_matter() -> None:
    assert digest(signature="*fp32:16,i32 ,  1024") == digest(signature="*fp32:16, i32, 1024")


def test_lists_and_tuples_are_the_same_in_options_and_not_among_constants() -> None:
    assert digest(options={"shape": [1, [2]]}) == digest(options={"shape": (1, (2,))})
    assert digest(constants={"SHAPE": [1, [2]]}) != digest(constants={"SHAPE": (1, (2,))})


def test_divisibility_has_a_short_form() -> None:
    long = {"x": [["tt.divisibility", 16]]}
    assert digest(attrs={"x": 16}) == digest(attrs=long) == digest(attrs={"x": [("tt.divisibility", 16)]})


def test_a_position_may_be_a_number_or_a_path() -> None:
    made = request(attrs={0: 16, (1, 2): 8}, constants={(3,): 4})
    assert made.attributes == {"#0": [("tt.divisibility", 16)], "#1.2": [("tt.divisibility", 8)]}
    assert made.constants == {"#3": 4}
    assert digest(attrs={0: 16}) == digest(attrs={(0,): 16})


def test_leaving_an_argument_out_is_the_same_as_giving_nothing() -> None:
    nothing: dict[str, Any] = {"constants": None, "attrs": None, "options": None}
    assert digest(**nothing) == digest(constants={}, attrs={}, options={})


def test_a_constexpr_counts_as_its_value() -> None:
    class constexpr:
        def __init__(self, value: object) -> None:
            self.value = value

    constexpr.__module__ = "triton.language.core"
    assert digest(constants={"BLOCK": constexpr(constexpr(1024))}) == digest()


def test_a_triton_type_travels_by_its_name() -> None:
    dtype = type("dtype", (), {"__module__": "triton.language.core", "name": "fp16"})
    assert request(constants={"DTYPE": dtype()}).constants == {"DTYPE": {"dtype": "fp16"}}


class Level(enum.IntEnum):
    HIGH = 3


class Precision(str, enum.Enum):
    TF32 = "tf32"


class Float64(float):
    """Like numpy.float64, which is a float with a repr of its own."""

    def __repr__(self) -> str:
        return f"np.float64({float(self)})"


@pytest.mark.parametrize(("special", "plain"), [(Level.HIGH, 3), (Precision.TF32, "tf32"), (Float64(0.5), 0.5)])
def test_numbers_and_strings_of_classes_of_their_own_are_refused_and_not_taken_for_plain_ones(
    special: Any, plain: Any
) -> None:
    for where in ({"constants": {"A": special}}, {"constants": {"A": (1, special)}}, {"options": {"a": special}}):
        with pytest.raises(UsageError, match="if they are of exactly these classes"):
            request(**where)
        assert request(constants={"A": plain}).constants == {"A": plain}


class Pair(NamedTuple):
    scale: int
    shift: int = 3


class Method(NamedTuple):
    scale: int

    def twice(self) -> int:
        return 2 * self.scale


class Attribute(NamedTuple):
    scale: int
    EXTRA = 5


def test_a_named_tuple_keeps_its_class_and_one_that_has_more_than_fields_is_refused() -> None:
    made = request(constants={"A": Pair(2), "B": (Pair(1, 4),)})
    assert made.constants["A"] == {"namedtuple": ["test_request", "Pair", ["scale", "shift"], [2, 3]]}
    assert travelled(made).digest() == made.digest()
    assert made.digest() != digest(constants={"A": (2, 3), "B": ((1, 4),)})
    copy.deepcopy(Pair(2))  # which leaves something on the class
    assert request(constants={"A": Pair(2)}).constants == {"A": made.constants["A"]}
    for value in (Method(1), Attribute(1), type("Derived", (Pair,), {})(1, 2)):
        with pytest.raises(UsageError, match="cannot travel"):
            request(constants={"A": value})


def test_the_types_of_tuples_travel_and_tell_kernels_apart() -> None:
    signatures = [
        {"x": ("i32", "*fp32")},
        {"x": ("i32", ("*fp32",))},
        {"x": ("i32, '*fp32'",)},
        {"x": Pair("i32", "*fp32")},  # type: ignore[arg-type]
        {"x": "(i32, *fp32)"},
    ]
    made = [request(signature=signature) for signature in signatures]
    assert len({each.digest() for each in made}) == len(made)
    assert [travelled(each) for each in made] == made


def test_what_is_nested_too_deep_is_refused() -> None:
    value: list[Any] = []
    for _ in range(2000):
        value = [value]
    with pytest.raises(UsageError, match=r"constants\['BLOCK'\]: nested more than 64 deep"):
        request(constants={"BLOCK": value})


def test_the_file_name_is_no_part_of_the_identity() -> None:
    assert request().filename == "add.py"
    assert request(filename="/home/me/model.py").filename == "/home/me/model.py"
    assert digest(filename="/home/me/model.py") == digest()


# What is not


@pytest.mark.parametrize(
    "change",
    [
        {"name": "sub"},
        {"source": SOURCE + "\n"},
        {"signature": {"x": "*fp16", "n": "i32"}},
        {"signature": {"x": "*fp32"}},
        {"signature": "*fp32, i32"},
        {"constants": {"BLOCK": 512}},
        {"constants": {"BLOCKS": 1024}},
        {"constants": {}},
        {"attrs": {"x": 8}},
        {"attrs": {"n": 16}},
        {"attrs": {}},
        {"options": {"num_warps": 8, "num_stages": 3}},
        {"options": {"num_warps": 4}},
        {"target": "cuda:89"},
    ],
    ids=repr,
)
def test_every_part_is_part_of_the_identity(change: dict[str, Any]) -> None:
    assert digest(**change) != digest()


def test_values_that_compare_equal_but_compile_differently_are_told_apart() -> None:
    alike = [
        1,
        1.0,
        True,
        "1",
        [1],
        None,
        "None",
        0,
        -0.0,
        0.0,
        False,
        math.nan,
        math.inf,
        "inf",
        [],
        "",
    ]
    assert len({digest(constants={"A": value}) for value in alike}) == len(alike)
    assert len({digest(options={"a": value}) for value in alike}) == len(alike)


def marked(value: Any) -> Any:
    """With lists told from tuples."""
    if isinstance(value, (list, tuple)):
        return [type(value).__name__, *map(marked, value)]
    return {key: marked(member) for key, member in value.items()} if isinstance(value, dict) else value


@example([[], ((None,),)], ([], ((None,),)))
@given(values, values)
def test_different_values_are_different_requests(one: Any, other: Any) -> None:
    # msgpack tells types apart, but for lists and tuples, and all NaNs are one.
    same = msgspec.msgpack.encode(marked(one), order="sorted") == msgspec.msgpack.encode(marked(other), order="sorted")
    assume(same or "nan" not in repr((one, other)))
    assert (digest(constants={"A": one}) == digest(constants={"A": other})) == same


def test_the_environment_is_part_of_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = digest()
    monkeypatch.setenv("DISABLE_LLVM_OPT", "1")
    optimized = digest()
    assert optimized != plain
    monkeypatch.setenv("DISABLE_LLVM_OPT", "disable-lsr")
    assert digest() not in (plain, optimized)
    monkeypatch.delenv("DISABLE_LLVM_OPT")
    monkeypatch.setenv("SOMETHING_ELSE", "1")
    assert digest() == plain


@pytest.mark.parametrize("name", sorted(TOOL_VARIABLES))
def test_paths_of_tools_travel_but_are_no_part_of_the_identity(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = digest()
    monkeypatch.setenv(name, "/opt/tool")
    assert request().environment == {name: "/opt/tool"}
    assert digest() == plain


def test_components_have_distinct_names_and_explain_a_miss() -> None:
    parts = request().components()
    assert len(dict(parts)) == len(parts)
    assert [name for name, _ in parts] == [
        "name",
        "target",
        "signature.n",
        "signature.x",
        "constants.BLOCK",
        "attributes.x",
        "options.num_stages",
        "options.num_warps",
        "source",
    ]
    changed = request(options={"num_warps": 8, "num_stages": 3}).components()
    assert keys.explain(parts, changed) == ["options.num_warps was 4, now 8"]


# Travelling


@given(arguments())
def test_a_request_keeps_its_identity_on_its_way(given_arguments: dict[str, Any]) -> None:
    sent = CompileRequest.make(**given_arguments)
    received = travelled(sent)
    assert received.digest() == sent.digest()
    assert received.components() == sent.components()
    assert wire.encode(received) == wire.encode(sent)


# What is refused


def refusals() -> Iterator[Any]:
    for name in ("not a name", "", "a.b", "1st", None):
        yield pytest.param({"name": name}, ["name:", "@triton.jit", repr(name)], id=f"name={name!r}")
    yield pytest.param({"source": b"def"}, ["add: source", "Python text", "bytes"], id="source of bytes")
    yield pytest.param({"source": "\ud800"}, ["add: source", "not valid text"], id="source with half a character")
    yield pytest.param({"signature": ["*fp32"]}, ["add: signature", "mapping", "'*fp32:16, i32, 1024'"], id="list")
    yield pytest.param({"signature": None}, ["add: signature", "None"], id="no signature")
    yield pytest.param({"signature": {"x": 32}}, ["add: signature", "'x': 32", "a name and a type"], id="type 32")
    yield pytest.param({"signature": {0: "i32"}}, ["add: signature", "0 is not the name of a parameter"], id="name 0")
    yield pytest.param({"constants": {"A": 2**64}}, ["add: constants['A']", str(2**64), "64 bits"], id="too big")
    yield pytest.param({"constants": {"A": -(2**63) - 1}}, ["add: constants['A']", "64 bits"], id="too small")
    yield pytest.param({"constants": {"A": [object()]}}, ["add: constants['A']", "object", "travel"], id="object")
    yield pytest.param({"constants": {"A": b"x"}}, ["add: constants['A']", "bytes", "travel"], id="bytes")
    for alike in (
        type("dtype", (), {"name": "fp16"}),
        type("constexpr", (), {}),
        type("Box", (), {"value": 1}),
    ):
        yield pytest.param(
            {"constants": {"A": alike()}}, [alike.__name__, "travel"], id=f"not Triton's {alike.__name__}"
        )
    yield pytest.param({"options": {"f": len}}, ["add: options['f']", "travel"], id="a function")
    for key in ("not a name", (), ("x",), 1.5, None, True, "\ud800"):
        yield pytest.param({"constants": {key: 1}}, ["add: constants", repr(key), "(0,)"], id=f"constant {key!r}")
        yield pytest.param({"attrs": {key: 16}}, ["add: attrs", repr(key), "(0,)"], id=f"attr {key!r}")
    for value in (True, None, 1.5, "16", [16], [("a", 1, 2)]):
        yield pytest.param({"attrs": {"x": value}}, ["add: attrs['x']", "tt.divisibility"], id=f"fact {value!r}")


@pytest.mark.parametrize(("change", "told"), list(refusals()))
def test_a_wrong_argument_is_refused_with_its_place_and_what_is_accepted(
    change: dict[str, Any], told: list[str]
) -> None:
    with pytest.raises(UsageError) as refusal:
        request(**change)
    for part in told:
        assert part in str(refusal.value)


@pytest.mark.parametrize("value", [-(2**63), 2**64 - 1])
def test_whole_numbers_of_64_bits_are_accepted(value: int) -> None:
    sent = request(constants={"A": value})
    assert travelled(sent).constants == {"A": value}


NOT_TEXT = "caf\udce9"  # Latin-1, as Python shows it in os.environ and in file names


@pytest.mark.parametrize(
    "change",
    [
        {"signature": {"x": NOT_TEXT}},
        {"signature": NOT_TEXT},
        {"constants": {"A": [NOT_TEXT]}},
        {"attrs": {"x": [[NOT_TEXT, 16]]}},
        {"options": {"A": NOT_TEXT}},
        {"options": {NOT_TEXT: 1}},
        {"filename": f"/home/{NOT_TEXT}/model.py"},
    ],
    ids=ascii,
)
def test_what_is_not_text_is_refused_or_can_travel(change: dict[str, Any]) -> None:
    try:
        sent = request(**change)
    except UsageError:
        pass
    else:
        assert travelled(sent).digest() == sent.digest()


@pytest.mark.parametrize("name", ["PTXAS_OPTIONS", "TRITON_PTXAS_PATH"])
def test_a_variable_that_is_not_text_is_refused_or_can_travel(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, f"/opt/{NOT_TEXT}")
    try:
        sent = request()
    except UsageError:
        pass
    else:
        assert travelled(sent).digest() == sent.digest()


# Targets


def test_a_kernels_own_target_goes_before_the_default() -> None:
    default = Target.parse("cuda:90")
    assert to_target("hip:gfx942", default) == Target.parse("hip:gfx942")
    assert to_target(Target.parse("cuda:80"), default) == Target.parse("cuda:80")
    assert to_target(None, default) is default


def test_no_target_at_all_is_refused_with_an_example() -> None:
    with pytest.raises(UsageError, match=r"target='cuda:90'"):
        to_target(None, None)
