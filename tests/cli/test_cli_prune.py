"""`headstart bundle prune`: which entries go, who signs what is left, and what is never lost."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from test_cli import KERNEL, run

from headstart.artifacts import known_failure
from headstart.artifacts.bundle import Bundle, BundleWriter, merge_bundles
from headstart.artifacts.entry import Entry, pack_entry
from headstart.artifacts.generated import GeneratedSource
from headstart.artifacts.keyring import Keyring
from headstart.artifacts.last_used import note, record_path
from headstart.artifacts.manifest import Manifest
from headstart.artifacts.retargeting import retarget
from headstart.artifacts.seal import sign_bundle
from headstart.artifacts.signing import sign, sign_locally
from headstart.artifacts.specialization import Specialization
from headstart.artifacts.trust import Trust
from headstart.describe.recipe import Describe, Function, Recipe, RecipeJob, request_of
from headstart.errors import CompileError
from headstart.model import keys
from headstart.model.request import CompileRequest
from headstart.model.target import Target
from headstart.system.settings import Settings

TODAY = dt.datetime.now(dt.timezone.utc).date()
PATH = Path("app.bundle")


@pytest.fixture(autouse=True)
def _a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def request(name: str = "scale", **changes: Any) -> CompileRequest:
    fields: dict[str, Any] = {"signature": {"x": "*fp32"}, "target": "cuda:90", "environment": {}} | changes
    return CompileRequest.make(name, KERNEL, **fields)


def entry(
    of: CompileRequest | str, kind: str = "kernel", toolchain: str = "d" * 64, content: bytes = b"\x7fELF"
) -> Entry:
    made = request(of) if isinstance(of, str) else of
    key = keys.digest([("kind", kind), ("key", keys.entry_key(toolchain, made.digest()))])
    parts = pack_entry(
        key=key,
        kind=kind,
        name=made.name,
        request_digest=made.digest() if kind == "kernel" else key,
        toolchain=toolchain,
        target=made.target,
        components=[],
        metadata={},
        artifacts={"cubin" if kind == "kernel" else kind: content},
        compile_wall_s=0.0,
        compile_cpu_s=0.0,
        triton_version="",
        request=b"",
        output="",
    )
    return Entry.from_bytes(b"".join(parts))


def failure(of: CompileRequest) -> Entry:
    error = CompileError("no", kernel=of.name, target=of.target, raised="triton.X")
    return known_failure.pack(of, of.digest(), "d" * 64, error)


def recipe(name: str, *jobs: str) -> Entry:
    made = [RecipeJob("", "", job, {}, [], [], {}, "cuda:90:32", None) for job in jobs]
    function = Function(name, "", "", [], [], "", "", "")
    return entry(name, "recipe", content=msgspec.msgpack.encode(Recipe("", "", 0, [], function, made, False, 0.0)))


def write(*entries: Entry, signer: Any = None) -> None:
    with BundleWriter(PATH, signer) as writer:
        for each in entries:
            assert writer.add(each)


def used(days_ago: int, *entries: Entry) -> None:
    """A run, so many days ago, met what the bundle has and used these."""
    held = {item.key for item in Bundle.open(PATH)}
    day = TODAY - dt.timedelta(days_ago)
    note(PATH, Settings.load().cache_dir, held, {each.key for each in entries}, today=day)


def manifest(*requests: CompileRequest, path: str = "app.manifest") -> str:
    Manifest.of([Specialization(request=each, digest=each.digest()) for each in requests]).save(path)
    return path


def left(path: Path = PATH) -> set[str]:
    return {f"{item.name}" if item.kind == "kernel" else f"{item.name} {item.kind}" for item in Bundle.open(path)}


# --unused-since


def test_what_no_run_used_of_late_is_dropped() -> None:
    new, old = entry("new"), entry("old")
    write(new, old, failure(request("broken")))
    used(30, new, old)
    used(3, new)
    result = run("bundle", "prune", PATH, "--unused-since", "7")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("app.bundle: 1 kernel (and 1 failure) dropped, 1 kept, ")
    assert left() == {"new"}


def test_the_day_itself_counts_as_used() -> None:
    one = entry("one")
    write(one)
    used(7, one)
    assert "nothing to drop" in run("bundle", "prune", PATH, "--unused-since", "7").stdout
    since = (TODAY - dt.timedelta(6)).isoformat()
    assert "1 kernel dropped" in run("bundle", "prune", PATH, "--unused-since", since).stdout


def test_what_no_run_has_met_is_kept() -> None:
    old = entry("old")
    write(old)
    used(30, old)
    write(old, entry("merged"))
    run("bundle", "prune", PATH, "--unused-since", "7")
    assert left() == {"merged"}


def test_a_bundle_that_no_run_used_is_left_alone() -> None:
    write(entry("one"))
    before = PATH.read_bytes()
    result = run("bundle", "prune", PATH, "--unused-since", "0")
    assert result.exit_code == 1
    assert "no run of yours on this machine has used" in result.stderr
    assert PATH.read_bytes() == before


def test_a_damaged_record_drops_nothing() -> None:
    write(entry("one"))
    used(30)
    record_path(PATH, Settings.load().cache_dir).write_bytes(b"garbage")
    result = run("bundle", "prune", PATH, "--unused-since", "7")
    assert result.exit_code == 1
    assert "nothing is dropped" in result.stderr
    assert left() == {"one"}


def test_graphs_and_recipes_go_like_kernels_if_a_run_had_them_and_did_not_use_them() -> None:
    write(entry("k"), recipe("k", "k"), entry("g", "graphs"), entry("l", "launcher"), entry("x", "of the future"))
    used(30)
    result = run("bundle", "prune", PATH, "--unused-since", "7")
    assert left() == {"l launcher", "x of the future"}
    assert (
        "kept, since nobody can tell whether they are used: 0 kernels (and 1 launcher, 1 of the future)"
        in result.stderr
    )


def test_kernels_behind_a_graph_that_is_used_stay() -> None:
    graph = entry("g", "graphs")
    write(graph, entry("triton_poi"), recipe("triton_poi", "triton_poi"), entry("other"), entry("old", "graphs"))
    used(30)
    used(1, graph)
    result = run("bundle", "prune", PATH, "--unused-since", "7")
    assert left() == {"g graphs", "triton_poi", "triton_poi recipe"}
    assert "nobody can tell whether they are used: 1 kernel (and 1 recipe)" in result.stderr


# --keep


def test_what_a_manifest_asks_for_is_kept_whatever_compiled_it() -> None:
    wanted, broken = request("wanted"), request("broken")
    write(entry(wanted), entry(wanted, toolchain="e" * 64), failure(broken), entry("other"), failure(request("gone")))
    result = run("bundle", "prune", PATH, "--keep", manifest(wanted, broken))
    assert result.exit_code == 0
    assert left() == {"wanted", "broken failure"}
    assert len(Bundle.open(PATH)) == 3


def test_what_was_built_of_a_manifest_for_another_device_is_kept() -> None:
    wanted = request("wanted", options={"num_warps": 4, "maxnreg": 64})
    moved, _ = retarget(wanted, Target.parse("hip:gfx942"))
    write(entry(moved), entry(request("other", target="hip:gfx942")))
    run("bundle", "prune", PATH, "--keep", manifest(wanted))
    assert left() == {"wanted"}


def test_what_one_of_several_manifests_asks_for_is_kept() -> None:
    write(entry("a"), entry("b"), entry("c"))
    run("bundle", "prune", PATH, "--keep", manifest(request("a")), "--keep", manifest(request("b"), path="b.manifest"))
    assert left() == {"a", "b"}


def test_of_torch_compile_everything_is_kept_and_named() -> None:
    wanted = request("wanted")
    damaged = entry("triton_red", "recipe", content=b"no recipe")
    write(
        entry(wanted),
        entry("other"),
        entry("triton_poi"),
        recipe("triton_", "triton_poi", "triton_fused"),
        entry("triton_red"),
        damaged,
        entry("g", "graphs"),
    )
    result = run("bundle", "prune", PATH, "--keep", manifest(wanted))
    assert left() == {
        "wanted", "triton_poi", "triton_ recipe", "triton_red", "triton_red recipe", "g graphs"
    }  # fmt: skip
    assert "nobody can tell whether they are used: 2 kernels (and 1 graphs, 2 recipe)" in result.stderr
    assert "triton_red: a recipe of another headstart" in result.stderr


def test_a_manifest_of_another_program_drops_nothing() -> None:
    write(entry("one"))
    result = run("bundle", "prune", PATH, "--keep", manifest(request("two")))
    assert result.exit_code == 1
    assert "none of the kernels of app.manifest" in result.stderr
    assert left() == {"one"}


def test_with_both_what_either_would_keep_is_kept() -> None:
    recent, wanted = entry("recent"), request("wanted")
    write(recent, entry(wanted), entry("other"), recipe("triton_poi", "triton_poi"))
    used(30)
    used(1, recent)
    run("bundle", "prune", PATH, "--unused-since", "7", "--keep", manifest(wanted))
    assert left() == {"recent", "wanted"}


def test_what_torch_compile_generated_in_a_manifest_is_kept_with_its_kernels() -> None:
    nothing: dict[str, Any] = {"dict": []}
    jobs = [
        RecipeJob("", "", "triton_poi", {"x": "*fp32"}, nothing, nothing, {"num_warps": warps}, "cuda:90:32", None)
        for warps in (4, 8)
    ]
    function = Function("triton_poi", "", "", [], [], "", "", "")
    made = Recipe("", KERNEL, 0, [], function, jobs[:1], True, 0.0)
    described = Describe("triton_poi", KERNEL, {}, None, {}, {})
    kernels = [entry(request_of(job, text=KERNEL, path="", module="", variables={})) for job in jobs]
    recipe_itself, stranger = recipe("triton_poi", "triton_poi"), recipe("triton_red", "triton_red")
    write(*kernels, recipe_itself, entry("triton_red"), stranger)
    used(30)
    source = GeneratedSource(
        key=recipe_itself.key,
        name="triton_poi",
        target="cuda:90",
        configurations=1,
        question=msgspec.msgpack.encode(described),
        recipe=msgspec.msgpack.encode(made),
        added_key="e" * 64,
        added=msgspec.msgpack.encode(jobs[1:]),
        stem="c",
        torch="torch",
        generation="generation",
    )
    Manifest.of([], generated=[source]).save("app.manifest")
    result = run("bundle", "prune", PATH, "--unused-since", "7", "--keep", "app.manifest")
    assert result.exit_code == 0, result.stderr
    assert sorted(item.name for item in Bundle.open(PATH)) == ["triton_poi"] * 3


# What is written


def test_a_dry_run_lists_and_changes_nothing() -> None:
    write(entry("stays"), entry("go"), entry("g", "graphs"))
    before = PATH.read_bytes()
    result = run("bundle", "prune", PATH, "--keep", manifest(request("stays")), "--dry-run")
    (line,) = result.stdout.splitlines()
    assert line.split()[1:] == ["cuda:90", "go"]
    assert "1 kernel would be dropped, 2 kept" in result.stderr
    assert PATH.read_bytes() == before


def test_the_rest_may_go_elsewhere() -> None:
    write(entry("stays"), entry("goes"))
    before = PATH.read_bytes()
    assert run("bundle", "prune", PATH, "-o", "out.bundle", "--keep", manifest(request("stays"))).exit_code == 0
    assert left(Path("out.bundle")) == {"stays"}
    assert PATH.read_bytes() == before


def test_another_file_than_a_bundle_is_not_written_over() -> None:
    write(entry("stays"), entry("goes"))
    Path("plan.py").write_text("a plan")
    result = run("bundle", "prune", PATH, "-o", "plan.py", "--keep", manifest(request("stays")))
    assert result.exit_code == 2
    assert Path("plan.py").read_text() == "a plan"


def test_a_damaged_entry_leaves_the_bundle_as_it_was() -> None:
    write(entry("stays"), entry("goes"))
    data = bytearray(PATH.read_bytes())
    data[60] ^= 1
    PATH.write_bytes(data)
    result = run("bundle", "prune", PATH, "--keep", manifest(request("stays")))
    assert result.exit_code == 2
    assert PATH.read_bytes() == data
    assert {name for name in os.listdir() if name.endswith(".tmp")} == set()


def test_a_bundle_that_a_program_wrote_meanwhile_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    write(entry("stays"), entry("goes"))
    program: list[Callable[[], None]] = [lambda: write(entry("stays"), entry("goes"), entry("comes"))]
    added = BundleWriter.add

    def add(self: BundleWriter, one: Entry) -> bool:
        done = added(self, one)
        if program:
            program.pop()()
        return done

    monkeypatch.setattr(BundleWriter, "add", add)
    result = run("bundle", "prune", PATH, "--keep", manifest(request("stays")))
    assert result.exit_code == 1
    assert "replaced meanwhile" in result.stderr
    assert left() == {"stays", "goes", "comes"}


@pytest.mark.parametrize(
    "arguments",
    [[], ["--unused-since", "soon"], ["--unused-since", "-3"], ["--unused-since", "2990-01-01"], ["--keep", "none"]],
)
def test_bad_usage(arguments: list[str]) -> None:
    write(entry("one"))
    assert run("bundle", "prune", PATH, *arguments).exit_code == 2


# Signatures


def prune_to(*names: str) -> Any:
    return run("bundle", "prune", PATH, "--keep", manifest(*map(request, names)))


def is_trusted() -> bool:
    return Trust(Keyring()).judge(Bundle.open(PATH).index).trusted


def local(version: int, digest: bytes) -> Any:
    secret = Keyring().local(make=True)
    assert secret is not None
    return [sign_locally(secret, version, digest)]


def test_what_an_own_run_wrote_stays_trusted() -> None:
    write(entry("stays"), entry("goes"), entry("g", "graphs"), signer=local)
    assert "signed by your local key" in prune_to("stays").stdout
    assert is_trusted()


def test_of_a_release_that_is_trusted_the_rest_is_trusted_while_its_key_is() -> None:
    ring = Keyring()
    ring.trust(ring.new("release"))
    write(entry("stays"), entry("goes"), entry("g", "graphs"))
    sign_bundle(PATH, lambda version, digest: [sign(ring.secret("release"), "release", version, digest)])
    assert "signed by your local key" in prune_to("stays").stdout
    (signature,) = Bundle.open(PATH).signatures
    assert signature.relies_on
    assert is_trusted()
    ring.forget("release")
    assert not is_trusted()


@pytest.mark.parametrize("by", ["nobody", "a stranger"])
def test_code_that_is_not_trusted_is_not_signed(by: str, tmp_path: Path) -> None:
    Keyring().local(make=True)
    write(entry("stays"), entry("goes"), entry("g", "graphs"))
    if by == "a stranger":
        stranger = Keyring(tmp_path / "stranger")
        stranger.new("vendor")
        sign_bundle(PATH, lambda version, digest: [sign(stranger.secret("vendor"), "vendor", version, digest)])
    result = prune_to("stays")
    assert "not signed" in result.stdout
    assert "1 entry of it could run code, and will not be used until it is signed" in result.stderr
    assert Bundle.open(PATH).signatures == ()


def test_a_merged_bundle_does_not_become_trusted_by_being_pruned(tmp_path: Path) -> None:
    write(entry("stays"), entry("goes"), signer=local)
    os.rename(PATH, "own.bundle")
    write(entry("g", "graphs"))
    os.rename(PATH, "strange.bundle")
    merge_bundles(PATH, "own.bundle", "strange.bundle")
    assert "not signed" in prune_to("stays").stdout
    assert not is_trusted()


def test_a_bundle_in_which_nothing_is_dropped_keeps_its_signatures() -> None:
    write(entry("stays"), entry("g", "graphs"), signer=local)
    before = PATH.read_bytes()
    assert "left as it is" in prune_to("stays").stdout
    assert PATH.read_bytes() == before
