"""The kernels of examples/kernels: buildable, runnable under headstart, and what a worker makes of them is a kernel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import client_environment
from headstart.artifacts.bundle import Bundle
from headstart.artifacts.manifest import Manifest

pytestmark = pytest.mark.triton

FOLDER = Path(__file__).parent.parent / "examples" / "kernels"
FAMILIES = ("matmul", "attention", "softmax", "layer_norm", "cross_entropy", "rotary", "quantized", "grouped")
DRY = ("run", "--dry-run", "--target", "cuda:90")


def headstart(*arguments: object, seconds: float = 100, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "headstart", *map(str, arguments)],
        env={**os.environ, **client_environment(), "TRITON_DEFAULT_FP_FUSION": "1", **variables},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def outcome(output: str) -> Any:
    return json.loads(output.splitlines()[-1])


def test_each_family_runs_and_its_record_is_built_into_a_bundle(tmp_path: Path) -> None:
    record, bundle = tmp_path / "app.manifest", tmp_path / "app.bundle"
    app = FOLDER / "app.py"
    output = headstart(*DRY, "--record", record, app, "--first", 1)
    assert [line.split()[0] for line in output.splitlines()] == list(FAMILIES)
    manifest = Manifest.open(record)
    assert len(manifest.specializations) == len(FAMILIES)
    built = outcome(headstart("build", record, "-o", bundle, "--json"))  # without --trust
    assert (built["failed"], built["cached"]) == (0, len(FAMILIES))
    assert len(Bundle.open(bundle)) == len(FAMILIES)


def test_the_plan_builds(tmp_path: Path) -> None:
    bundle = tmp_path / "kernels.bundle"
    arguments = ("build", FOLDER / "plan.py", "--target", "cuda:90", "-o", bundle, "--json")
    built = outcome(headstart(*arguments, EXAMPLE_KERNELS="rotary"))
    assert (built["failed"], built["requested"]) == (0, 24)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_whole_sweep_builds(tmp_path: Path) -> None:
    bundle = tmp_path / "kernels.bundle"
    arguments = ("build", FOLDER / "plan.py", "--target", "cuda:90", "-o", bundle, "--json")
    built = outcome(headstart(*arguments, seconds=1200))
    assert built["failed"] == 0
    assert built["requested"] > 150
