"""A short run of `make chaos-farm`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import client_environment
from test_chaos import times_of

pytest.importorskip("ray")

TESTS = Path(__file__).parent.parent
LONGEST = (
    400  # seconds; a cluster takes tens to start where machines do other work, and one that lost its head is replaced
)
FAULTS = ("kill actor", "stop actor", "kill node service", "kill bridge", "lose node", "lose head")


@pytest.mark.farm
@pytest.mark.triton
@pytest.mark.timeout(LONGEST + 20)
def test_whatever_breaks_of_a_farm_no_kernel_is_lost_and_nothing_is_left() -> None:
    path = os.pathsep.join(str(TESTS / each) for each in ("", "farm", "stores/remote"))
    done = subprocess.run(
        [sys.executable, "-m", "chaos", "--seed", "5", "--seconds", "8", "--farm", "--stores", "folder"],
        env={**os.environ, **client_environment(), "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=LONGEST,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| **lost** | **0** |" in done.stdout
    assert "| **processes left** | **0** |" in done.stdout
    for what in FAULTS:
        assert times_of(done.stdout, what) > 0
    assert times_of(done.stdout, "made on the farm") > 0
