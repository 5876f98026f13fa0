"""The same program gives the same keys: what a run put into its bundle, the next one finds there."""

from __future__ import annotations

import datetime as dt
import importlib.util
import shutil
from pathlib import Path

import pytest
from programs import Programs

from headstart.artifacts.bundle import Bundle
from headstart.artifacts.comparing import compare_bundles, counts_by_kind
from headstart.artifacts.last_used import last_used, note

pytestmark = [
    pytest.mark.torch,
    pytest.mark.timeout(300),
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="there is no torch"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="the stand-in for CUDA has to be built"),
]

NO_GRAPHS = {"TORCHINDUCTOR_FX_GRAPH_CACHE": "0", "TORCHINDUCTOR_AUTOGRAD_CACHE": "0"}


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    return Programs(tmp_path)


def test_the_same_program_twice_from_nothing_gives_the_same_keys(programs: Programs) -> None:
    paths = [programs.folder / name for name in ("a.bundle", "b.bundle")]
    for seed, path in enumerate(paths):
        order = {"cases": ["trained", "mm", "rescaled"], "bundle": str(path), "wait": True}
        programs.run(order, **NO_GRAPHS, PYTHONHASHSEED=str(seed))
    first, second = map(Bundle.open, paths)
    difference = compare_bundles(first, second)
    assert (difference.removed, difference.added, difference.changed) == ([], [], [])
    assert counts_by_kind(first)["kernel"] > 20


def test_the_next_run_finds_what_was_late_in_the_bundle_too(programs: Programs) -> None:
    # Late is what is benchmarked as a fusion: assembled by Triton's assembler, where all else is by torch's.
    from triton.backends import nvidia

    assembler = programs.folder / "another ptxas"
    assembler.write_text(f'#!/bin/sh\nexec {Path(nvidia.__file__).parent / "bin" / "ptxas"} "$@"\n')
    assembler.chmod(0o755)
    order = {"cases": ["mm"], "assembler": str(assembler), "bundle": str(programs.folder / "late.bundle")}
    first, second = (programs.run(order, **NO_GRAPHS) for _ in range(2))
    assert first["counts"]["late"] > 0
    assert second["counts"] == first["counts"]
    assert first["statistics"]["compiled"] == first["counts"]["jobs"]
    assert (second["statistics"]["compiled"], second["services"]) == (0, 0)


def test_graphs_that_torch_took_are_noted_as_used_and_others_are_not(programs: Programs) -> None:
    order = {"cases": ["trained", "pointwise"], "bundle": str(programs.folder / "used.bundle")}
    programs.run(order)
    bundle, cache = Bundle.open(order["bundle"]), programs.folder / "2" / "headstart"
    keys, long_ago = {item.key for item in bundle}, dt.date(2026, 1, 1)
    note(bundle.path, cache, keys, keys, today=long_ago)
    second = programs.run({**order, "cases": ["pointwise"]})
    assert second["graph_cache"].get("hit") == 1
    days = last_used(bundle.path, cache)
    graphs = [bundle.entry(item.key) for item in bundle if item.kind == "graphs"]
    taken = {entry.header.metadata["key"] for entry in graphs if days[entry.key] > long_ago}
    assert taken == {key for _, key in second["portable"]} & {entry.header.metadata["key"] for entry in graphs}
    of_inductor = [days[entry.key] > long_ago for entry in graphs if entry.header.metadata["type"] == "inductor"]
    assert sorted(of_inductor) == [False, False, True]
