"""torch.compile's graphs travel in the bundle: the next process generates no code for them."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest
from programs import Programs

from headstart.adapters.inductor import graphs
from headstart.artifacts.bundle import Bundle

pytestmark = [
    pytest.mark.torch,
    pytest.mark.timeout(300),
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="there is no torch"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="the stand-in for CUDA has to be built"),
]

CASES = ["pointwise", "trained", "mm", "user_kernels", "dynamic_shapes", "flex"]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    return Programs(tmp_path_factory.mktemp("programs"))


@pytest.fixture(scope="module")
def first(programs: Programs) -> dict[str, Any]:
    """A process that compiles some models. It leaves a bundle."""
    bundle = str(programs.folder / "first.bundle")
    result = programs.run({"cases": CASES, "bundle": bundle}, caches="first")
    assert {name: case["error"] for name, case in result["cases"].items()} == dict.fromkeys(CASES, "")
    return {**result, "bundle": bundle}


def _artifacts(bundle: str | Path) -> list[tuple[str, str]]:
    held = Bundle.open(bundle)
    about = [held.entry(item.key).header.metadata for item in held if item.kind == graphs.KIND]
    return sorted((each["type"], each["key"]) for each in about)


def test_the_bundle_has_what_torchs_own_portable_cache_would_have(first: dict[str, Any]) -> None:
    assert [list(each) for each in _artifacts(first["bundle"])] == first["portable"]
    assert first["graph_cache"]["miss"] == first["use"][1] > len(CASES)
    assert first["use"][0] == 0


def test_a_second_process_with_empty_caches_generates_no_code_and_compiles_nothing(
    first: dict[str, Any], programs: Programs
) -> None:
    before = Path(first["bundle"]).read_bytes()
    second = programs.run({"cases": CASES, "bundle": first["bundle"]})
    assert {name: case["error"] for name, case in second["cases"].items()} == dict.fromkeys(CASES, "")
    assert second["graph_cache"] == {"hit": first["graph_cache"]["miss"]}
    assert second["use"] == [first["use"][1], 0]
    # Whoever generates code kicks off; what is left are the generated modules themselves.
    assert [case["kicks"] - case["from_module"] for case in second["cases"].values()] == [0] * len(CASES)
    assert (second["in process"], second["stock workers"], second["compiles"]) == ([], [], [])
    assert second["services"] == 0
    assert Path(first["bundle"]).read_bytes() == before, "nothing was missing in it"


def test_graphs_are_pickles_and_are_taken_from_trusted_bundles_only(
    first: dict[str, Any], programs: Programs, tmp_path: Path
) -> None:
    stranger = {"HEADSTART_CONFIG_DIR": str(tmp_path / "config")}
    bundle = shutil.copy(first["bundle"], tmp_path)
    untrusted = programs.run({"cases": ["pointwise"], "bundle": bundle}, **stranger)
    assert untrusted["graph_cache"] == {"miss": 1}
    assert untrusted["log"].count("held back, because it is signed by runs of another user, or on another machine") == 1
    assert untrusted["statistics"]["compiled"] == 0, "its kernels are used all the same"

    bundle = shutil.copy(first["bundle"], tmp_path)
    trusted = programs.run({"cases": ["pointwise"], "bundle": bundle, "trust": True}, **stranger)
    assert trusted["graph_cache"] == {"hit": 1}


def test_with_caches_switched_off_no_graph_goes_into_a_bundle_or_comes_out(
    first: dict[str, Any], programs: Programs
) -> None:
    off = programs.run({"cases": ["pointwise"], "bundle": first["bundle"]}, TORCHINDUCTOR_FORCE_DISABLE_CACHES="1")
    assert "hit" not in off["graph_cache"]
    assert off["use"] == [0, 0]
    assert not list((off["folder"] / "inductor").glob("fxgraph/*/*/*"))
    bundle = str(programs.folder / "off.bundle")
    programs.run({"cases": ["pointwise"], "bundle": bundle}, TORCHINDUCTOR_FORCE_DISABLE_CACHES="1")
    assert not Path(bundle).exists() or _artifacts(bundle) == []


def test_a_process_adds_what_is_missing_and_nobody_loses_anothers(programs: Programs) -> None:
    bundle = str(programs.folder / "added.bundle")
    one = programs.run({"cases": ["pointwise"], "bundle": bundle})
    other = programs.run({"cases": ["dynamic_shapes", "pointwise"], "bundle": bundle})
    assert other["use"] == [1, 1]
    assert _artifacts(bundle) == [tuple(each) for each in other["portable"]]
    assert {tuple(each) for each in one["portable"]} < set(_artifacts(bundle))


def test_two_ranks_leave_the_graphs_of_both(programs: Programs) -> None:
    bundle = str(programs.folder / "ranks.bundle")
    ranks = programs.run_ranks({"cases": ["pointwise"], "bundle": bundle})
    noted = {tuple(each) for rank in ranks for each in rank["portable"]}
    assert set(_artifacts(bundle)) == noted


def test_a_profile_is_there_before_the_first_function_is_traced(programs: Programs) -> None:
    bundle = str(programs.folder / "profiled.bundle")
    job = {"TORCH_COMPILE_JOB_ID": "job"}
    first = programs.run({"cases": ["resized", "resized"], "bundle": bundle}, **job)
    assert first["graph_cache"] == {"miss": 2}, "one for the first size, one for all"
    told = programs.run({"cases": ["resized"], "bundle": bundle}, **job)
    untold = programs.run({"cases": ["resized"], "bundle": bundle})
    assert told["graph_cache"] == untold["graph_cache"] == {"hit": 1}
    graph_of = {id(run): [each for each in run["portable"] if each[0] == "inductor"] for run in (told, untold)}
    assert graph_of[id(told)] != graph_of[id(untold)], "the graph for all sizes, and that for the first"


def test_graphs_of_somebody_who_is_not_trusted_are_held_back_and_made_anew(programs: Programs) -> None:
    bundle = str(programs.folder / "theirs.bundle")
    theirs = programs.run(
        {"cases": ["pointwise"], "bundle": bundle}, HEADSTART_CONFIG_DIR=str(programs.folder / "them")
    )
    assert "held back" not in theirs["log"]
    mine = programs.run({"cases": ["pointwise"], "bundle": bundle})
    assert mine["use"] == [0, 1]
    assert "graphs) are held back" in mine["log"]
    assert "it is signed by runs of another user, or on another machine" in mine["log"]
    again = programs.run({"cases": ["pointwise"], "bundle": bundle})
    assert again["use"] == [1, 0], "those that were made are there, under an own signature"
