"""torch.compile in the record: the next start compiles what this one needed before anything asks for it."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from programs import Programs

from headstart.artifacts.manifest import Manifest

pytestmark = [
    pytest.mark.torch,
    pytest.mark.timeout(300),
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="there is no torch"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="the stand-in for CUDA has to be built"),
]

CASES = ["pointwise", "rescaled", "mm", "user_kernels"]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    return Programs(tmp_path_factory.mktemp("programs"))


@pytest.fixture(scope="module")
def first(programs: Programs) -> dict[str, Any]:
    """A process that compiles some models. It leaves a record."""
    record = str(programs.folder / "first.manifest")
    result = programs.run({"cases": CASES, "record": record}, caches="first")
    assert {name: case["error"] for name, case in result["cases"].items()} == dict.fromkeys(CASES, "")
    return {**result, "record": record}


def test_every_source_is_recorded_with_its_recipe(first: dict[str, Any]) -> None:
    manifest = Manifest.open(first["record"])
    assert manifest.uses_torch_compile
    assert {each.name for each in manifest.generated.values()} == {
        name for case in first["cases"].values() for name in case["names"]
    }
    assert sum(each.configurations for each in manifest.generated.values()) <= first["counts"]["jobs"]
    assert {each.target for each in manifest.generated.values()} == {"cuda:90"}
    assert all(each.duration_s > 0 for each in manifest.generated.values())
    assert any(each.added for each in manifest.generated.values()), "rescaling added a configuration"
    late = [each for each in manifest.specializations.values() if each.torch]
    assert len(late) == first["counts"]["late"] == 2
    assert all(each.duration_s > 0 for each in late)


def test_the_next_start_compiles_them_before_anything_asks(first: dict[str, Any], programs: Programs) -> None:
    second = programs.run({"cases": CASES, "manifest": first["record"], "settled": True})
    assert {name: case["error"] for name, case in second["cases"].items()} == dict.fromkeys(CASES, "")
    began = min(case["began"] for case in second["cases"].values())
    assert all(started < began for _, started in second["compiles"]), (
        "something was compiled that the program waited for"
    )
    assert second["statistics"]["compiled"] == first["counts"]["late"]
    assert (second["in process"], second["stock workers"]) == ([], [])
    assert second["counts"]["late"] == first["counts"]["late"]
    sources = len(Manifest.open(first["record"]).generated)
    (line,) = [line for line in second["told"] if "torch.compile" in line]
    assert f"{sources} sources recorded, {sources} prefetched, {sources} used, 0 not used" in line


def test_what_a_program_asks_for_meanwhile_is_compiled_once(first: dict[str, Any], programs: Programs) -> None:
    second = programs.run({"cases": ["rescaled", "mm"], "manifest": first["record"]})
    assert {name: case["error"] for name, case in second["cases"].items()} == {"rescaled": "", "mm": ""}
    begun = [tuple(each) for each in second["compiles"]]
    assert len(set(begun)) == len(begun), "two compiles of one kernel, or one was told twice"


def test_nothing_of_others_is_compiled_ahead(first: dict[str, Any], programs: Programs) -> None:
    told = programs.run({"cases": ["pointwise"], "manifest": first["record"], "stranger": True})
    assert "nobody vouches for them; --trust compiles them" in told["log"]
    assert not any("prefetched" in line and "0 prefetched" not in line for line in told["told"])


def test_a_record_that_says_something_else_than_its_sources_changes_nothing(
    first: dict[str, Any], programs: Programs, tmp_path: Path
) -> None:
    manifest = Manifest.open(first["record"])
    sources = sorted(manifest.generated.values(), key=lambda each: each.name)
    lies: list[dict[str, Any]] = [
        {"recipe": sources[-1].recipe},
        {"question": b"\xc1"},
        {"added_key": "0" * 64, "added": b"\xc1"},
        {"recipe": b"\xc1"},
        {"key": "0" * 64},
        {"torch": "another"},
        {"stem": sources[-1].stem},
    ]
    told = [msgspec.structs.replace(each, **lie) for each, lie in zip(sources, lies, strict=False)]
    path = tmp_path / "changed.manifest"
    Manifest.of([], [], manifest.origins, told + sources[len(lies) :]).save(path)
    second = programs.run({"cases": CASES, "manifest": str(path), "settled": True})
    assert {name: case["error"] for name, case in second["cases"].items()} == dict.fromkeys(CASES, "")
    assert (second["in process"], second["stock workers"]) == ([], [])
    assert "bug" not in second["log"]


def _headstart(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "HEADSTART_CACHE_DIR": str(folder / "cache"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
    }
    command = [sys.executable, "-m", "headstart", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=200)


@pytest.mark.parametrize("of_another_torch", [False, True], ids=["this torch's recipes", "described again"])
def test_a_manifest_is_built_without_the_program_and_the_program_compiles_nothing(
    first: dict[str, Any], programs: Programs, tmp_path: Path, of_another_torch: bool
) -> None:
    manifest = Manifest.open(first["record"])
    if of_another_torch:
        other = {"generation": "another", "torch": "another", "key": ""}
        generated = [
            msgspec.structs.replace(each, **{**other, "key": f"{number:064x}"})
            for number, each in enumerate(manifest.generated.values())
        ]
        manifest = msgspec.structs.replace(manifest, generated={each.key: each for each in generated})
    manifest.save(tmp_path / "app.manifest")
    done = _headstart(tmp_path, "build", "app.manifest", "--trust", "--json")
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert outcome["compiled"] == first["counts"]["jobs"]
    assert outcome["targets"] == ["cuda:90"]
    bundle = str(tmp_path / "app.bundle")
    run = programs.run({"cases": CASES, "bundle": bundle})
    assert {name: case["error"] for name, case in run["cases"].items()} == dict.fromkeys(CASES, "")
    assert (run["compiles"], run["in process"], run["stock workers"]) == ([], [], [])
    assert run["sent"].get("SubmitSource", 0) == 0, "every recipe came out of the bundle"


def test_what_cannot_be_built_is_left_out_and_said(first: dict[str, Any], tmp_path: Path) -> None:
    untrusted = _headstart(tmp_path, "build", first["record"], "-o", "a.bundle")
    assert untrusted.returncode == 1
    assert "torch's decorators run what a source says" in untrusted.stderr
    elsewhere = _headstart(tmp_path, "build", first["record"], "--trust", "--target", "cuda:80", "-o", "a.bundle")
    assert elsewhere.returncode == 1
    assert "what torch.compile generated for cuda:90 was left out" in elsewhere.stderr
    assert not (tmp_path / "a.bundle").exists()


def test_manifests_are_shown_merged_and_told_apart_with_their_sources(first: dict[str, Any], tmp_path: Path) -> None:
    sources = len(Manifest.open(first["record"]).generated)
    shown = _headstart(tmp_path, "manifest", "show", first["record"])
    assert "triton_poi_fused" in shown.stdout
    assert f"{sources} sources of torch.compile's for cuda:90" in shown.stderr
    merged = _headstart(tmp_path, "manifest", "merge", "-o", "all.manifest", first["record"], first["record"])
    assert f"{sources} sources of torch.compile's of 2 manifests" in merged.stdout
    Manifest().save(tmp_path / "empty.manifest")
    told = _headstart(tmp_path, "manifest", "diff", first["record"], "empty.manifest")
    assert f"{sources} torch.compile) only in {first['record']}" in told.stderr
