"""What becomes of torch.compile's artifacts in bundles, whatever they hold. Needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from headstart.adapters.bundle_use import LeftAlone, sentence
from headstart.adapters.fallback import Fallback
from headstart.adapters.inductor import compat, compat_artifacts
from headstart.adapters.inductor.compat_artifacts import Artifact, LookUps
from headstart.adapters.inductor.graphs import KIND, Graphs
from headstart.artifacts.bundle import Bundle
from headstart.client.bundler import TritonBundler
from headstart.client.policy import Policy
from headstart.client.use import BundleUse, Missed
from headstart.describe.facts import Torch
from headstart.model.toolchain import Toolchain
from headstart.system import machine

GRAPH = Artifact("inductor", "fabc", b"graph" * 50)
OTHER_GUARD = Artifact("inductor", "fabc", b"for other sizes")
CHOICE = Artifact("autotune", "ab/c.best_config", b"{}")
PROFILE = Artifact("pgo", "job:0", b"profile")
ALL = [GRAPH, OTHER_GUARD, CHOICE, PROFILE]


class FakePolicy(Policy):
    def __init__(self, digest: str = "d" * 64) -> None:
        super().__init__(find=lambda: Toolchain("/python", "3.11", "/triton", "3.6.0", ()))
        self._digest = digest

    def toolchain_digest(self, *_: Any) -> str:
        return self._digest


class FakeTorch:
    """What torch noted, and where it was given artifacts."""

    def __init__(self) -> None:
        self.noted: list[Artifact] = []
        self.put: list[Artifact] = []
        self.refuses: Artifact | None = None
        self.disabled = False
        self.ages: dict[Artifact, float] = {}  # seconds
        self.counted = LookUps()
        self.keeps = True

    def take(self, artifact: Artifact) -> None:
        if artifact == self.refuses:
            raise RuntimeError("the pickle raises")
        self.put.append(artifact)


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> FakeTorch:
    fake = FakeTorch()
    monkeypatch.setattr(compat_artifacts, "noted", lambda: fake.noted)
    monkeypatch.setattr(compat_artifacts, "missing", lambda: None)
    monkeypatch.setattr(compat_artifacts, "looked_up", lambda: fake.counted)
    monkeypatch.setattr(compat_artifacts, "keeps_graphs", lambda: fake.keeps)
    monkeypatch.setattr(compat_artifacts, "are_caches_off", lambda: fake.disabled)
    monkeypatch.setattr(compat_artifacts, "put", fake.take)
    monkeypatch.setattr(compat_artifacts, "age", lambda artifact: fake.ages.get(artifact, 0.0))
    monkeypatch.setattr(compat, "caches_disabled", lambda: fake.disabled)
    return fake


def _open(bundle: Path, folder: Path, version: str = "2.13.0", policy: Policy | None = None) -> Graphs:
    bundler = TritonBundler()
    bundler.begin_compile()
    if bundle.exists():
        bundler.read_and_emit(bundle)
    return Graphs(bundler, policy or FakePolicy(), folder, Torch("/torch", version))


def _write(bundle: Path, folder: Path, torch: FakeTorch, artifacts: list[Artifact]) -> BundleUse:
    torch.noted = artifacts
    graphs = _open(bundle, folder)
    use = graphs.save()
    if graphs._bundler.noted:
        graphs._bundler.extend(bundle)
    return use


@pytest.fixture
def bundle(tmp_path: Path, torch: FakeTorch) -> Path:
    """Holds `ALL`."""
    path = tmp_path / "a.bundle"
    _write(path, tmp_path, torch, ALL)
    return path


def test_each_artifact_is_put_where_torch_looks_profiles_first(bundle: Path, tmp_path: Path, torch: FakeTorch) -> None:
    graphs = _open(bundle, tmp_path)
    graphs.load_profiles()
    assert torch.put == [PROFILE]
    graphs.load()
    assert sorted(torch.put) == sorted(ALL)


def test_what_came_from_the_bundle_is_not_added_again_and_is_counted(
    bundle: Path, tmp_path: Path, torch: FakeTorch
) -> None:
    graphs = _open(bundle, tmp_path)
    graphs.load()
    new, found = Artifact("inductor", "fdef", b"new"), Artifact("inductor", "fghi", b"found in torch's own cache")
    torch.noted = [GRAPH, CHOICE, PROFILE, new, found]
    torch.ages[found] = 3600.0
    use = graphs.save()
    assert (use.graphs, use.made_graphs, use.cached_graphs) == (1, 1, 1)
    assert use.missed == [Missed("graph fdef", "it is not in the bundle")]
    assert graphs._bundler.noted == 2


def test_a_graph_that_another_process_has_made_meanwhile_is_not_made_here(
    bundle: Path, tmp_path: Path, torch: FakeTorch
) -> None:
    graphs = _open(bundle, tmp_path)
    torch.noted = [Artifact("inductor", "fghi", b"of another rank")]
    torch.counted = LookUps(found=1)
    use = graphs.save()
    assert (use.made_graphs, use.cached_graphs, use.missed) == (0, 1, [])


def test_graphs_count_though_the_program_has_emptied_what_torch_noted(
    bundle: Path, tmp_path: Path, torch: FakeTorch
) -> None:
    graphs = _open(bundle, tmp_path)
    torch.noted, torch.counted = [], LookUps(made=2)
    use = graphs.save()
    assert use.made_graphs == 2
    assert use.missed == [Missed("graphs", "2 were made that torch does not keep")]


def test_graphs_that_torch_does_not_look_up_are_all_missed(bundle: Path, tmp_path: Path, torch: FakeTorch) -> None:
    graphs = _open(bundle, tmp_path)
    torch.noted, torch.counted, torch.keeps = [], LookUps(traced=1), False
    assert not graphs.save().missed_nothing


def test_a_fork_tells_and_keeps_only_what_it_has_made_itself(bundle: Path, tmp_path: Path, torch: FakeTorch) -> None:
    graphs = _open(bundle, tmp_path)
    torch.noted, torch.counted = [GRAPH, Artifact("inductor", "fdef", b"the parent's")], LookUps(found=1, made=1)
    graphs.after_fork()
    torch.noted = [*torch.noted, Artifact("inductor", "fghi", b"its own")]
    torch.counted = LookUps(found=1, made=2)
    use = graphs.save()
    assert (use.graphs, use.made_graphs) == (0, 1)
    assert graphs._bundler.noted == 1


def test_a_bundle_does_not_grow_with_each_run_of_a_program_that_empties_torchs_cache(
    tmp_path: Path, torch: FakeTorch
) -> None:
    path = tmp_path / "grown.bundle"
    for run in range(20):
        _write(path, tmp_path, torch, [Artifact("inductor", "fabc", b"made anew %d" % run)])
    assert len(Bundle.open(path)) == 8


def test_a_profile_that_has_changed_takes_the_place_of_the_one_before(
    bundle: Path, tmp_path: Path, torch: FakeTorch
) -> None:
    held = _open(bundle, tmp_path)
    held.load()
    torch.noted = [Artifact("pgo", "job:0", b"more is known")]
    held.save()
    held._bundler.extend(bundle)
    assert len(Bundle.open(bundle)) == len(ALL)
    torch.put = []
    _open(bundle, tmp_path).load_profiles()
    assert torch.put == [Artifact("pgo", "job:0", b"more is known")]


@pytest.mark.parametrize(
    ("version", "policy", "said"),
    [
        ("2.14.1", None, "made for torch 2.13.0 (this is 2.14.1)"),
        ("2.13.0", FakePolicy("e" * 64), "made for another Triton, Python or kind of CPU"),
    ],
)
def test_artifacts_of_another_torch_are_left_alone_and_one_line_says_so(
    version: str,
    policy: Policy | None,
    said: str,
    bundle: Path,
    tmp_path: Path,
    torch: FakeTorch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    graphs = _open(bundle, tmp_path, version, policy)
    graphs.load_profiles()
    graphs.load()
    assert torch.put == []
    assert [record.getMessage() for record in caplog.records] == [
        f"torch.compile's graphs in the bundle were not used: {said}"
    ]


def test_graphs_of_another_kind_of_cpu_are_left_alone(
    bundle: Path, tmp_path: Path, torch: FakeTorch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's key of a graph does not name the CPU; C++ for wider vectors would leave out elements."""
    monkeypatch.setattr(machine, "vector_instructions", lambda: "x86_64 avx2")
    _open(bundle, tmp_path).load()
    assert torch.put == []


def test_an_artifact_that_torch_refuses_costs_only_itself(
    bundle: Path, tmp_path: Path, torch: FakeTorch, caplog: pytest.LogCaptureFixture
) -> None:
    torch.refuses = OTHER_GUARD
    _open(bundle, tmp_path).load()
    assert sorted(torch.put) == sorted({*ALL} - {OTHER_GUARD})
    assert "RuntimeError: the pickle raises" in caplog.text


def test_a_damaged_artifact_costs_only_itself(bundle: Path, tmp_path: Path, torch: FakeTorch) -> None:
    held = Bundle.open(bundle)
    item = next(item for item in held if item.name == "torch.compile pgo")
    data = bytearray(bundle.read_bytes())
    data[item.offset + item.length // 2] ^= 1
    bundle.write_bytes(data)
    _open(bundle, tmp_path).load()
    assert sorted(torch.put) == sorted({*ALL} - {PROFILE})


def test_a_torch_without_what_is_relied_on_makes_its_own(
    bundle: Path,
    tmp_path: Path,
    torch: FakeTorch,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(compat_artifacts, "missing", lambda: "torch.compiler._cache.CacheArtifactFactory")
    _open(bundle, tmp_path).load()
    assert torch.put == []
    assert "torch has no torch.compiler._cache.CacheArtifactFactory" in caplog.text


def test_profiles_are_put_before_inductor_is_there_to_be_looked_at(
    bundle: Path, tmp_path: Path, torch: FakeTorch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compat_artifacts, "missing", lambda: pytest.fail("it imports what torch is just importing"))
    _open(bundle, tmp_path).load_profiles()
    assert torch.put == [PROFILE]


def test_with_caches_switched_off_nothing_is_put_or_noted(bundle: Path, tmp_path: Path, torch: FakeTorch) -> None:
    torch.disabled = True
    graphs = _open(bundle, tmp_path)
    graphs.load()
    torch.noted = [Artifact("inductor", "fdef", b"new")]
    assert graphs.save() == BundleUse()
    assert (torch.put, graphs._bundler.noted) == ([], 0)


def test_without_a_bundle_nothing_is_asked_of_torch(
    tmp_path: Path, torch: FakeTorch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compat_artifacts, "noted", lambda: pytest.fail("nobody keeps it"))
    graphs = Graphs(TritonBundler(), FakePolicy(), tmp_path, Torch("/torch", "2.13.0"))
    assert graphs.save() == BundleUse()


def test_the_line_at_the_end_counts_graphs_beside_kernels() -> None:
    assert sentence("/a/app.bundle", BundleUse(graphs=2)) == "2 of 2 graphs from app.bundle, 0 compiled"
    assert sentence("app.bundle", BundleUse(kernels=3, compiled=1, graphs=1, made_graphs=1)) == (
        "3 of 4 kernels and 1 of 2 graphs from app.bundle, 1 compiled"
    )


def test_the_line_at_the_end_says_how_long_compiling_took_where_that_is_worth_telling() -> None:
    assert sentence(None, BundleUse(compiled=2, compiling_s=22.52, waited_s=3.04)) == (
        "2 kernels: 2 compiled, 0 from headstart's cache; 22.5 s of compiling, 3.0 s of waiting for it"
    )
    assert sentence("app.bundle", BundleUse(kernels=1, compiled=1, compiling_s=5.0, saved_s=4.0)) == (
        "1 of 2 kernels from app.bundle, 1 compiled; 5.0 s of compiling; about 4 s of compiling saved"
    )
    assert sentence(None, BundleUse(compiled=2, compiling_s=0.5, waited_s=0.5)) == (
        "2 kernels: 2 compiled, 0 from headstart's cache"
    )


def test_what_fell_back_is_told_apart_from_what_the_bundle_lacked() -> None:
    fallback = Fallback("Triton's kernels", {"in_process": 0})
    fallback.in_process("app.scale", "its option extern_libs names a file")
    left = [Missed("app.scale", "compiled in the program's process: its option extern_libs names a file")]
    assert (fallback.use.fell_back, fallback.use.missed, fallback.use.in_process) == (left, left, 1)
    assert LeftAlone("torch.compile", "it is unknown").used().fell_back == [Missed("torch.compile", "it is unknown")]


def test_entries_of_one_kind_are_packed_together(tmp_path: Path, torch: FakeTorch) -> None:
    alike = [Artifact("autotune", f"{number}.best_config", bytes(range(256)) * 4) for number in range(20)]
    bundle = tmp_path / "b.bundle"
    _write(bundle, tmp_path, torch, alike)
    assert all(item.kind == KIND for item in Bundle.open(bundle))
    assert bundle.stat().st_size < 20 * 700
