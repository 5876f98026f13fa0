"""A short run of `make chaos`, and what it rests on: that no clock which can be set decides anything."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import servers
from test_store import A, parts

import headstart
from conftest import client_environment
from headstart.stores.disk import ABANDONED_AGE, DiskStore

PACKAGE = Path(headstart.__file__).parent
SEED = 5
SECONDS = 8.0  # in which rounds are begun; there are as many as it takes to do everything once
LONGEST = 230  # seconds on a machine that does much else
SERVERS = ("redis", "s3", "registry")

# Who may ask for the time of day: for the age of files, for people, and for the day on which a kernel was used.
TIME_OF_DAY = {
    *("stores/disk.py", "stores/remote/folder.py", "artifacts/reproduce.py", "cli/pulled.py"),
    *("client/run_file.py", "artifacts/runs.py"),
    *("adapters/recording.py", "adapters/triton/autotune.py", "adapters/inductor/compat_artifacts.py"),
}  # files, and what people read


@pytest.mark.timeout(LONGEST + 10)
def test_whatever_breaks_no_kernel_is_lost_and_nothing_is_left() -> None:
    done = run("folder")
    assert times_of(done, "damage folder") > 0
    assert times_of(done, "damage redis") == 0


@pytest.mark.remote
@pytest.mark.skipif(not all(map(servers.program, SERVERS)), reason="a server is missing: make test-remote gets them")
@pytest.mark.timeout(LONGEST + 10)
def test_whatever_breaks_of_the_stores_that_hosts_share_no_kernel_is_lost_and_nothing_is_left() -> None:
    done = run("folder", "redis", "s3", "oci")
    for kind in SERVERS:
        for what in ("kill", "stop", "damage"):
            assert times_of(done, f"{what} {kind}") > 0
    for what in ("flush redis", "fill redis", "damage folder", "kill worker"):
        assert times_of(done, what) > 0
    assert times_of(done, "found in stores that hosts share") > 0


def times_of(table: str, what: str) -> int:
    """How often something has happened."""
    (times,) = re.findall(rf"^\| {what} \| (\d+) \|$", table, re.M)
    return int(times)


def run(*stores: str) -> str:
    """The table of a short run, in which nothing was lost."""
    done = subprocess.run(
        [sys.executable, "-m", "chaos", "--seed", str(SEED), "--seconds", str(SECONDS), "--stores", *stores],
        env={**os.environ, **client_environment()},
        capture_output=True,
        text=True,
        timeout=LONGEST,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| **lost** | **0** |" in done.stdout
    assert "| **processes left** | **0** |" in done.stdout
    return done.stdout


def test_nothing_asks_for_the_time_of_day_but_for_files_and_people() -> None:
    asking = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                called = f"{node.value.id}.{node.attr}"
                if called in ("time.time", "time.time_ns", "datetime.now", "dt.datetime.now", "date.today"):
                    asking.add(str(path.relative_to(PACKAGE)))
    assert asking <= TIME_OF_DAY


@pytest.mark.parametrize("jump", [-10 * ABANDONED_AGE, 10 * ABANDONED_AGE])
def test_a_clock_that_jumps_costs_a_store_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    store = DiskStore(tmp_path)
    store.publish(A, parts(A))
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + jump)
    assert store.find(A) is not None
    assert store.prune().removed == 0
    store.publish(A, parts(A))
    assert store.find(A) is not None
