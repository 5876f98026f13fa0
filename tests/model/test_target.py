"""Targets are read and written as Triton names them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.errors import UsageError
from headstart.model.target import ALIASES, SHARED_MEMORY_LIMIT, Target

cuda = st.integers(50, 199).map(lambda arch: ("cuda", str(arch)))
hip = st.from_regex(r"gfx(9[0-9a-f]{2}|1[0-9a-f]{3})", fullmatch=True).map(lambda arch: ("hip", arch))
targets = st.builds(lambda family, warp: Target(*family, warp), cuda | hip, st.sampled_from([32, 64]))


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("cuda:90", Target("cuda", "90", 32)),
        ("cuda:100", Target("cuda", "100", 32)),
        ("cuda:90:32", Target("cuda", "90", 32)),
        ("cuda:90:64", Target("cuda", "90", 64)),
        ("hip:gfx90a", Target("hip", "gfx90a", 64)),
        ("hip:gfx942", Target("hip", "gfx942", 64)),
        ("hip:gfx1100", Target("hip", "gfx1100", 32)),
        ("hip:gfx1200:64", Target("hip", "gfx1200", 64)),
    ],
)
def test_a_target_is_read(text: str, target: Target) -> None:
    assert Target.parse(text) == target


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("h100", "cuda:90"),
        ("H200", "cuda:90"),
        ("a100", "cuda:80"),
        ("B200", "cuda:100"),
        ("RTX 4090", "cuda:89"),
        ("sm_90", "cuda:90"),
        ("sm_90a", "cuda:90"),
        ("sm_100f", "cuda:100"),
        ("compute_80", "cuda:80"),
        ("SM89", "cuda:89"),
        ("gfx942", "hip:gfx942"),
        ("GFX90A", "hip:gfx90a"),
        ("mi300x", "hip:gfx942"),
        ("MI355X", "hip:gfx950"),
    ],
)
def test_what_people_and_compilers_say_is_a_target(text: str, target: str) -> None:
    assert Target.parse(text) == Target.parse(target)
    assert str(Target.parse(text)) == target


@pytest.mark.parametrize("name", sorted(ALIASES))
def test_a_device_s_name_stands_for_one_whose_limits_are_known(name: str) -> None:
    assert str(Target.parse(name)) in SHARED_MEMORY_LIMIT


@given(targets)
def test_what_a_target_is_written_as_reads_back(target: Target) -> None:
    assert Target.parse(str(target)) == target
    assert Target.parse(f"{target.backend}:{target.arch}:{target.warp_size}") == target


@pytest.mark.parametrize(
    ("text", "short"),
    [("cuda:90:32", "cuda:90"), ("hip:gfx942:64", "hip:gfx942"), ("hip:gfx1100:32", "hip:gfx1100")],
)
def test_the_usual_warp_size_is_not_written(text: str, short: str) -> None:
    assert str(Target.parse(text)) == short


@pytest.mark.parametrize("text", ["cuda:90:64", "hip:gfx942:32", "hip:gfx1100:64"])
def test_an_unusual_warp_size_is_written(text: str) -> None:
    assert str(Target.parse(text)) == text


def test_a_target_is_a_target_already() -> None:
    target = Target.parse("cuda:90")
    assert Target.parse(target) is target


@pytest.mark.parametrize(
    "text",
    [
        "cuda",
        "cuda:",
        "cuda:9",
        "cuda:502",
        "cuda:40",
        "cuda:sm_90",
        "cuda:90a",
        "cuda:90:",
        "hip:942",
        "hip:gfx",
        "hip:gfx42",
        "hip:gfx2000",
        "cuda:90\n",
        "cuda: 90",
    ],
)
def test_an_unknown_architecture_is_refused_with_examples(text: str) -> None:
    with pytest.raises(UsageError) as refusal:
        Target.parse(text)
    for part in (repr(text), "cuda:90 (H100)", "hip:gfx942 (MI300)"):
        assert part in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert f"expected an architecture of {text.strip()[:4].rstrip(':')}" in str(refusal.value)


def test_an_architecture_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(UsageError, match="70, 75, 80, 86, 87, 89, 90, 100"):
        Target.parse("cuda:502")


def test_a_name_that_is_nearly_right_is_refused_with_the_right_one() -> None:
    with pytest.raises(UsageError, match=r"did you mean .*mi300x"):
        Target.parse("mi300y")


@pytest.mark.parametrize("text", ["", "90", "CUDA:90", "rocm:gfx942", "xpu:1", "sm_9", "sm_502", "hopper", None, 90])
def test_an_unknown_backend_is_refused_with_those_there_are(text: str) -> None:
    with pytest.raises(UsageError, match="a backend of cuda or hip"):
        Target.parse(text)


@given(st.text(max_size=12))
def test_any_text_is_a_plain_target_or_refused(text: str) -> None:
    try:
        target = Target.parse(text)
    except UsageError:
        return
    assert text.isascii()
    assert Target.parse(str(target)) == target


def test_digits_of_other_scripts_are_no_architecture() -> None:
    with pytest.raises(UsageError):
        Target.parse("cuda:９０")


def test_the_artifact_for_the_driver_depends_on_the_backend() -> None:
    assert Target.parse("cuda:90").binary == "cubin"
    assert Target.parse("hip:gfx942").binary == "hsaco"


@pytest.mark.parametrize(
    ("text", "limit"), [("cuda:90", 232448), ("hip:gfx942", 65536), ("cuda:90:64", 232448), ("cuda:60", None)]
)
def test_shared_memory_is_limited_by_the_device_where_it_is_known(text: str, limit: int | None) -> None:
    assert Target.parse(text).shared_memory_limit == limit


@pytest.mark.parametrize("text", sorted(SHARED_MEMORY_LIMIT))
def test_every_device_with_a_known_limit_is_a_target(text: str) -> None:
    target = Target.parse(text)
    assert str(target) == text
    assert target.shared_memory_limit == SHARED_MEMORY_LIMIT[text]
