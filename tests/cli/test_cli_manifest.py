"""`headstart manifest`, and `headstart build` of a manifest."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest
from test_cli import KERNEL, FakeCompile, fake, outcome, run

from conftest import needs_confinement
from headstart.artifacts.bundle import Bundle
from headstart.artifacts.manifest import MAGIC, Manifest
from headstart.artifacts.specialization import Origin, Specialization, Tuning
from headstart.cli import build as build_module
from headstart.errors import ServiceError
from headstart.model.request import CompileRequest
from headstart.model.toolchain import find_toolchain

__all__ = ["fake"]


@pytest.fixture(autouse=True)
def _a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cwd é").mkdir()
    monkeypatch.chdir(tmp_path / "cwd é")


def specialization(name: str = "scale", source: str = KERNEL, **fields: Any) -> Specialization:
    known = {field: fields.pop(field) for field in ("duration_s", "winner", "asked_by") if field in fields}
    arguments: dict[str, Any] = {
        "signature": {"x": "*fp32", "n": "i32"},
        "constants": {"FACTOR": 2, "BLOCK": 64},
        "target": "cuda:90",
        "environment": {},
    }
    request = CompileRequest.make(name, source, **(arguments | fields))
    return Specialization(request=request, digest=request.digest(), last_seen=dt.date(2026, 11, 23), **known)


def write(*specializations: Specialization, path: str = "app.manifest", triton: str = "") -> str:
    origin = Origin(program="/srv/app.py", headstart_version="0.1.0", triton_version=triton, recorded_at=1.8e9)
    tuning = Tuning(autotuner="scale", key=[1], target="cuda:90", configuration={"BLOCK": 64})
    Manifest.of(specializations, [tuning], [origin]).save(path)
    return path


# show


def test_show_lists_kernels_in_the_order_of_compiling() -> None:
    write(
        specialization("short", duration_s=0.25),
        specialization("long", duration_s=12.5, asked_by="/srv/app.py:12"),
        specialization("best", duration_s=0.125, winner=True, options={"num_warps": 8}),
        triton="3.9.0",
    )
    result = run("manifest", "show", "app.manifest")
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines() if "cuda:90" in line]
    assert [row[0] for row in rows] == ["best", "long", "short"]
    assert rows[0][1:] == ["cuda:90", "BLOCK=64,", "FACTOR=2,", "num_warps=8", "0.12", "yes"]
    assert rows[1][-2:] == ["12.50", "/srv/app.py:12"]
    assert "3 kernels for cuda:90, 12.9 s to compile, the longest 12.5 s, 1 tuned key" in result.stderr
    assert "recorded 2027-01-15 08:00 UTC, headstart 0.1.0, Triton 3.9.0: /srv/app.py" in result.stderr


def test_show_as_json_is_one_object_per_kernel() -> None:
    each = specialization(duration_s=1.5, winner=True, asked_by="app.py:1")
    write(each)
    (line,) = run("manifest", "show", "app.manifest", "--json").stdout.splitlines()
    shown = json.loads(line)
    assert shown["digest"] == each.digest
    assert (shown["name"], shown["target"], shown["constants"]) == ("scale", "cuda:90", {"FACTOR": 2, "BLOCK": 64})
    assert (shown["duration_s"], shown["winner"], shown["asked_by"]) == (1.5, True, "app.py:1")
    assert "source" not in shown


def test_constants_that_are_known_by_position_are_shown_by_name() -> None:
    write(specialization(constants={(3,): 64, (2,): 2}))
    assert "BLOCK=64" in run("manifest", "show", "app.manifest").stdout
    write(specialization(constants={(3,): 128, (2,): 2}), path="b.manifest")
    lines = run("manifest", "diff", "app.manifest", "b.manifest").stdout.splitlines()
    assert lines[0].endswith("scale  FACTOR=2, BLOCK=128")
    assert lines[1] == "    constants.BLOCK was 64, now 128"


def test_what_a_manifest_says_is_not_trusted_with_the_terminal() -> None:
    write(specialization(asked_by="\x1b[31mred", constants={"B": "[bold]\x07"}))
    result = run("manifest", "show", "app.manifest")
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout
    assert "\x07" not in result.stdout
    assert "[bold]" in result.stdout


def test_an_empty_manifest_can_be_shown() -> None:
    Manifest().save("empty.manifest")
    assert "0 kernels for nothing" in run("manifest", "show", "empty.manifest").stderr


# merge


def test_merge_writes_what_all_say() -> None:
    write(specialization("a", duration_s=1.0), path="a.manifest")
    write(specialization("a", duration_s=2.0), specialization("b"), path="b.manifest")
    result = run("manifest", "merge", "-o", "a.manifest", "a.manifest", "b.manifest", "b.manifest")
    assert result.exit_code == 0
    assert result.stdout == "a.manifest: 2 kernels of 3 manifests\n"
    found = Manifest.open("a.manifest").specializations.values()
    assert {each.request.name: each.duration_s for each in found} == {"a": 2.0, "b": 0.0}


def test_merge_leaves_the_output_alone_if_an_input_is_damaged() -> None:
    write(specialization("a"), path="a.manifest")
    before = Path("a.manifest").read_bytes()
    Path("b.manifest").write_bytes(before[:-1])
    result = run("manifest", "merge", "-o", "a.manifest", "a.manifest", "b.manifest")
    assert result.exit_code == 2
    assert "truncated" in result.stderr
    assert Path("a.manifest").read_bytes() == before


def test_merge_into_a_folder_that_is_not_there_is_a_message() -> None:
    write(specialization())
    result = run("manifest", "merge", "-o", "no/out.manifest", "app.manifest")
    assert result.exit_code == 2
    assert "there is no folder" in result.stderr


# diff


def test_diff_says_what_only_one_side_has_and_why_kernels_differ() -> None:
    write(specialization("gone"), specialization("k", options={"num_warps": 4}), path="a.manifest")
    write(specialization("come"), specialization("k", options={"num_warps": 8}), path="b.manifest")
    result = run("manifest", "diff", "a.manifest", "b.manifest")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert [line[0] for line in lines] == ["-", "+", "~", " "]
    assert "gone" in lines[0]
    assert "come" in lines[1]
    assert lines[3] == "    options.num_warps was 4, now 8"
    assert result.stderr == "1 kernel only in a.manifest, 1 kernel only in b.manifest, 1 changed\n"


def test_diff_of_equals_is_empty() -> None:
    write(specialization())
    assert run("manifest", "diff", "app.manifest", "app.manifest").stdout == ""


# What is no manifest


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not a manifest"),
        (b"import triton\n", "not a manifest"),
        (MAGIC, "truncated"),
        (MAGIC + b"\x03\0" + bytes(40), "format 3 is newer than 2"),
        (b"\x89HSE\r\n\x1a\n", "not a manifest"),
    ],
)
@pytest.mark.parametrize("command", [["show"], ["diff", "bad.manifest"], ["merge", "-o", "out.manifest"]])
def test_a_file_that_is_no_manifest_is_a_message(command: list[str], data: bytes, said: str) -> None:
    Path("bad.manifest").write_bytes(data)
    result = run("manifest", *command, "bad.manifest")
    assert result.exit_code == 2
    assert said in result.stderr
    assert "bad.manifest" in result.stderr


@pytest.mark.parametrize("path", [".", "missing.manifest"])
def test_a_place_that_is_no_file_is_bad_usage(path: str) -> None:
    assert run("manifest", "show", path).exit_code == 2


# build


def test_build_compiles_what_a_manifest_holds_winners_and_longest_first(fake: list[FakeCompile]) -> None:
    write(
        specialization("short", duration_s=1.0),
        specialization("long", duration_s=9.0),
        specialization("best", duration_s=0.5, winner=True, target="cuda:80"),
    )
    result = run("build", "app.manifest", "--json")
    assert result.exit_code == 0, result.stderr
    assert fake[0].requests == [("best", "cuda:80"), ("long", "cuda:90"), ("short", "cuda:90")]
    assert outcome(result)["targets"] == ["cuda:80", "cuda:90"]
    assert fake[0].written == [Path("app.bundle")]


def test_build_for_another_target(fake: list[FakeCompile]) -> None:
    write(specialization(options={"num_warps": 8, "maxnreg": 64}), specialization(target="cuda:80"))
    result = run("build", "app.manifest", "--target", "hip:gfx942", "--target", "cuda:90")
    assert result.exit_code == 0, result.stderr
    submitted = {(each.target, tuple(each.options)) for each in fake[0].submitted}
    assert submitted == {
        ("hip:gfx942", ("num_warps",)),
        ("cuda:90", ("maxnreg", "num_warps")),
        ("hip:gfx942", ()),
        ("cuda:90", ()),
    }


def test_a_kernel_that_could_do_anything_is_left_out_unless_trusted(fake: list[FakeCompile]) -> None:
    write(specialization("good"), specialization("evil", KERNEL + "\nimport os\n"))
    result = run("build", "app.manifest", "--json")
    assert result.exit_code == 1
    assert "evil (cuda:90) was left out: line 10 of its source imports os" in result.stderr
    assert "--trust" in result.stderr
    assert [name for name, _ in fake[0].requests] == ["good"]
    assert (outcome(result)["requested"], outcome(result)["failed"]) == (2, 1)

    assert run("build", "app.manifest", "--trust").exit_code == 0
    assert {name for name, _ in fake[1].requests} == {"good", "evil"}
    assert (fake[0].vouched, fake[1].vouched) == ([False], [True, True])


def test_the_recorded_environment_is_kept_and_tools_are_this_machines(
    fake: list[FakeCompile], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_PTXAS_PATH", "/here/ptxas")
    recorded = {"TRITON_DEBUG": "1", "TRITON_PTXAS_PATH": "/there/ptxas", "TRITON_LIBDEVICE_PATH": "/there/libdevice"}
    write(specialization(environment=recorded))
    assert run("build", "app.manifest", "--trust").exit_code == 0
    (request,) = fake[0].submitted
    assert request.environment == {"TRITON_DEBUG": "1", "TRITON_PTXAS_PATH": "/here/ptxas"}


def test_whoever_vouches_for_nothing_brings_no_tools(fake: list[FakeCompile], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_PTXAS_PATH", "/here/ptxas")
    tools = {"TRITON_PTXAS_PATH": "/here/ptxas", "LLVM_PASS_PLUGIN_PATH": "/there/evil.so"}
    write(
        *(specialization(f"k{number}", environment={name: path}) for number, (name, path) in enumerate(tools.items()))
    )
    result = run("build", "app.manifest")
    assert result.exit_code == 1
    assert "k1 (cuda:90) was left out: it asks for LLVM_PASS_PLUGIN_PATH, which names a tool" in result.stderr
    assert [request.name for request in fake[0].submitted] == ["k0"]


def test_a_target_that_nobody_knows_is_left_out(fake: list[FakeCompile]) -> None:
    write(specialization("good"), specialization("odd", target="xpu:1"))
    result = run("build", "app.manifest")
    assert result.exit_code == 1
    assert "odd (xpu:1) was left out: unknown target" in result.stderr


def test_a_manifest_of_another_triton_is_built_and_it_is_said(
    fake: list[FakeCompile], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(specialization(), triton="3.5.0")
    result = run("build", "app.manifest")
    assert result.exit_code == 0
    version = find_toolchain().triton_version
    assert f"app.manifest was recorded with Triton 3.5.0 and is built with {version}" in result.stderr
    assert "recorded with" not in run("build", "app.manifest", "--quiet").stderr
    write(specialization(), triton=version)
    assert "recorded with" not in run("build", "app.manifest").stderr

    def nowhere() -> None:
        raise ServiceError("no Triton")

    monkeypatch.setattr(build_module, "find_toolchain", nowhere)
    assert run("build", "app.manifest").exit_code == 0


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("app.manifest", b"", "not a manifest"),
        ("app.manifest", MAGIC[:5], "not a manifest"),
        ("renamed", MAGIC + b"\x02\0", "truncated"),
        ("old", MAGIC + b"\x01\0", "of an older headstart"),
        ("app.manifest", MAGIC + b"\x03\0", "newer"),
        ("app.manifest", Manifest().encode(), "holds no kernels"),
        ("app.bundle", b"\x89HSE\r\n\x1a\n" + bytes(80), "is a bundle: it is built already"),
    ],
)
def test_bad_input(fake: list[FakeCompile], name: str, data: bytes, said: str) -> None:
    Path(name).write_bytes(data)
    result = run("build", name, "-o", "out.bundle")
    assert result.exit_code == 2
    assert said in result.stderr
    assert not fake
    assert not Path("out.bundle").exists()


def test_a_folder_or_nothing_at_all_is_bad_usage(fake: list[FakeCompile]) -> None:
    Path("folder.manifest").mkdir()
    assert run("build", "folder.manifest").exit_code == 2
    assert run("build", "missing.manifest").exit_code == 2


def test_trust_is_for_manifests(fake: list[FakeCompile]) -> None:
    Path("plan.py").write_text("def kernels(): yield from ()\n")
    result = run("build", "plan.py", "--trust", "--target", "cuda:90")
    assert result.exit_code == 2
    assert "--trust is for manifests" in result.stderr


@pytest.mark.triton
@needs_confinement
def test_a_manifest_becomes_a_bundle() -> None:
    recorded = [
        specialization(constants={"FACTOR": factor, "BLOCK": 64}, options={"num_warps": 4, "maxnreg": 64})
        for factor in (2, 3)
    ]
    write(*recorded)
    result = run("build", "app.manifest", "--target", "cuda:90", "--target", "hip:gfx942", "-o", "app.bundle")
    assert result.exit_code == 0, result.stderr
    bundle = Bundle.open("app.bundle")
    assert sorted(item.target for item in bundle) == ["cuda:90", "cuda:90", "hip:gfx942", "hip:gfx942"]
    # What the program will ask for is what was recorded.
    assert {each.digest for each in recorded} <= {item.request_digest for item in bundle}
