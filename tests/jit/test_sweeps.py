"""What a sweep has recorded, failures included, is built; and who has the bundle tries nothing again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import PATIENCE, Client, client_environment
from headstart.artifacts import known_failure
from headstart.artifacts.bundle import Bundle
from headstart.artifacts.manifest import Manifest, merge
from headstart.errors import CompilerCrashed, CompileTimeout, SourceError
from headstart.model.request import CompileRequest

pytestmark = pytest.mark.triton

Start = Callable[..., Client]
Run = Callable[..., dict[str, Any]]

# Of four configurations one is good, one fails in the front end, one is refused at launch, one by the assembler.
SWEEP = """
import json, logging, os, sys
logging.basicConfig(level=logging.WARNING, format="%(message)s")
sys.path.insert(0, HELPERS)
if "STOCK" not in os.environ:
    import headstart
    headstart.enable(record=os.environ.get("RECORD"), bundle=os.environ.get("BUNDLE"), workers=2)
import triton, triton.language as tl
import gpuless
from gpuless import Tensor, launches, stages
triton.runtime.driver.active.utils.get_device_properties = lambda device: {"max_shared_mem": 20000}

def benchmark(call, quantiles):
    call()
    return [1.0] * 3

CASES = {"good": 0, "assert": 1, "large": 2, "ptx": 3}

@triton.autotune([triton.Config({"BLOCK": 128 if case == "large" else 16, "CASE": number})
                  for case, number in CASES.items()], key=["n"], do_bench=benchmark)
@triton.jit
def kernel(x, y, n, BLOCK: tl.constexpr, CASE: tl.constexpr):
    tl.static_assert(CASE != 1, "never this one")
    i = tl.arange(0, BLOCK)
    values = tl.load(x + i[:, None] * BLOCK + i[None, :])
    if CASE == 3:
        values = tl.inline_asm_elementwise("no_such_instruction $0, $1;", "=r,r", [values], dtype=tl.float32,
                                           is_pure=True, pack=1)
    tl.store(y + i[:, None] * BLOCK + i[None, :], tl.dot(values, values))

kernel[(1,)](x := Tensor(), Tensor(), 10)
told = dict(
    best=kernel.best_config.all_kwargs(), launches=len(launches), stages=stages,
    failed=[str(config) for config, timing in kernel.configs_timings.items() if timing[0] == float("inf")],
)
if "STOCK" not in os.environ:
    from headstart.adapters import process as enabling
    adapter = enabling.current().jit
    told |= dict(counts=adapter.counts, services=adapter.compiler.services_started)
print("TOLD", json.dumps(told))
"""


@pytest.fixture
def run(start_client: Start, tmp_path: Path) -> Run:
    """Runs the program: what it told. Each has a Triton cache of its own, but one file for its source."""
    started = []

    def start(**variables: str) -> dict[str, Any]:
        started.append(1)
        program = f"HELPERS = {str(Path(__file__).parent)!r}\n" + textwrap.dedent(SWEEP)
        caches = {"TRITON_CACHE_DIR": str(tmp_path / f"triton{len(started)}")}
        client = start_client(program, **caches | variables)
        output, errors = client.process.communicate(timeout=PATIENCE)
        assert client.process.returncode == 0, errors.decode()
        (line,) = [line for line in output.decode().splitlines() if line.startswith("TOLD ")]
        return {**json.loads(line.removeprefix("TOLD ")), "log": errors.decode()}

    return start


def build(*arguments: object, status: int = 0) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "headstart", "build", "--json", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**client_environment(), "HEADSTART_CONFIG_DIR": os.environ["HEADSTART_CONFIG_DIR"]},
        check=False,
    )
    assert done.returncode == status, done.stderr
    return {**json.loads(done.stdout.splitlines()[-1]), "log": done.stderr}


@pytest.mark.parametrize("trust", [True, False])
def test_what_failed_when_it_was_recorded_fails_no_build_and_is_tried_by_nobody_who_has_the_bundle(
    run: Run, tmp_path: Path, trust: bool
) -> None:
    record, bundle = tmp_path / "app.manifest", tmp_path / "app.bundle"
    first, stock = run(RECORD=str(record)), run(STOCK="1")
    choice = ("best", "failed", "launches")
    assert [first[what] for what in choice] == [stock[what] for what in choice]
    assert len(stock["failed"]) == 3
    recorded = Manifest.open(record).specializations.values()
    failures = {each.request.constants["#4"]: each.failed for each in recorded}
    assert failures == {
        0: "",
        1: "triton.compiler.errors.CompileTimeAssertionFailure",
        2: "",
        3: "triton.runtime.errors.PTXASError",
    }

    outcome = build(record, "-o", bundle, *["--trust"] * trust)
    assert (outcome["failed"], outcome["failed_as_recorded"], outcome["requested"]) == (0, 2, 4), outcome["log"]
    kinds = sorted(item.kind for item in Bundle.open(bundle))
    assert kinds == ["failure", "failure", "kernel", "kernel"]
    assert Bundle.open(bundle).verify() == []

    bundle.chmod(0o444)
    tmp_path.joinpath("empty").mkdir()
    again = run(BUNDLE=str(bundle), HEADSTART_CACHE_DIR=str(tmp_path / "empty"))
    assert [again[what] for what in choice] == [stock[what] for what in choice]
    assert again["services"] == 0, again["log"]
    assert again["counts"]["refuted"] == 0


def test_a_program_that_extends_a_bundle_adds_its_failures(run: Run, tmp_path: Path) -> None:
    bundle = tmp_path / "app.bundle"
    first = run(BUNDLE=str(bundle))
    assert first["services"] == 1
    assert sorted(item.kind for item in Bundle.open(bundle)) == ["failure", "failure", "kernel", "kernel"]
    again = run(BUNDLE=str(bundle), HEADSTART_CACHE_DIR=str(tmp_path / "empty"))
    assert (again["services"], again["best"], again["failed"]) == (0, first["best"], first["failed"]), again["log"]


def test_a_failure_that_nobody_recorded_fails_the_build(run: Run, tmp_path: Path) -> None:
    record = tmp_path / "app.manifest"
    run(RECORD=str(record))
    manifest = Manifest.open(record)
    forgetful = Manifest.of(
        [each_without_failure(each) for each in manifest.specializations.values()], origins=manifest.origins
    )
    forgetful.save(tmp_path / "other.manifest")
    outcome = build(tmp_path / "other.manifest", "-o", tmp_path / "b.bundle", "--trust", status=1)
    assert (outcome["failed"], outcome["failed_as_recorded"]) == (2, 0)
    assert "never this one" in outcome["log"]
    # One of another class is not alike either.
    others = [each_without_failure(each, "builtins.SyntaxError") for each in manifest.specializations.values()]
    Manifest.of(others).save(tmp_path / "third.manifest")
    outcome = build(tmp_path / "third.manifest", "-o", tmp_path / "b.bundle", "--trust", status=1)
    assert (outcome["failed"], outcome["failed_as_recorded"]) == (2, 0)


def each_without_failure(each: Any, failed: str = "") -> Any:
    import msgspec

    return msgspec.structs.replace(each, failed=failed)


def test_merging_keeps_a_failure_whatever_the_order(run: Run, tmp_path: Path) -> None:
    record = tmp_path / "app.manifest"
    run(RECORD=str(record))
    manifest = Manifest.open(record)
    forgetful = Manifest.of([each_without_failure(each) for each in manifest.specializations.values()])
    assert merge(manifest, forgetful).specializations == merge(forgetful, manifest).specializations
    assert merge(manifest, forgetful).specializations == manifest.specializations


def test_a_failure_of_the_machine_is_carried_by_no_bundle() -> None:
    known = SourceError("it fails", kernel="k", target="cuda:90", raised="builtins.NameError")
    assert known_failure.is_known(known)
    assert not known_failure.is_known(SourceError("it fails", kernel="k", target="cuda:90"))
    for kind in (CompilerCrashed, CompileTimeout):
        assert not known_failure.is_known(kind("no", kernel="k", target="cuda:90", raised="builtins.OSError"))
    needs = SourceError("no", kernel="k", target="cuda:90", raised="builtins.NameError", needs_program=True)
    assert not known_failure.is_known(needs)


def test_a_failure_survives_the_bundle() -> None:
    request = CompileRequest.make("k", "", signature={}, target="cuda:90", options={"num_warps": 8})
    fields = {"raised": "builtins.NameError", "message": "x", "stage": "ttir", "detail": "why"}
    error = SourceError("NameError: x", kernel="k", target="cuda:90", **fields)
    told = known_failure.unpack(known_failure.pack(request, request.digest(), "t", error), request)
    assert type(told) is SourceError
    shown = ("summary", "kernel", "target", *fields)
    assert [getattr(told, field) for field in shown] == [getattr(error, field) for field in shown]
    assert told.options == {"num_warps": 8}
