"""Kernels that others wrote: all are captured, and those that their operators launch compile to the same bytes."""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import client_environment

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.mark.parametrize(("library", "functions", "launched"), [("liger_kernel", 80, 10), ("fla", 300, 25)])
def test_kernels_of_a_library_are_captured_and_compile_to_the_bytes_that_triton_makes(
    library: str, functions: int, launched: int
) -> None:
    for needed in (library, "torch", "triton"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"there is no {needed}")
    program = Path(__file__).with_name("libraries.py")
    done = subprocess.run(
        [sys.executable, str(program), library],
        capture_output=True,
        text=True,
        env={**os.environ, **client_environment()},
        timeout=390,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    seconds = found["capture_s"]
    print(
        f"{library}: {len(seconds)} of {found['functions']} functions captured, median "
        f"{statistics.median(seconds) * 1e3:.1f} ms; {found['compared']} kernels compared"
    )
    assert found["functions"] > functions
    assert [reason for reason in found["refused"] if "is a Gluon function" not in reason] == []
    assert found["unsafe"] == []
    assert found["changed"] == []
    assert found["compared"] >= launched
    assert found["differing"] == []
