"""What the README shows works as it stands there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.triton

README = Path(__file__).parent.parent / "README.md"
PROGRAM, PLAN = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def run(folder: Path, *arguments: str) -> str:
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_code_generator_runs_and_its_second_start_neither_compiles_nor_imports_triton(tmp_path: Path) -> None:
    report = "\nimport sys\nprint(async_compile.statistics.compiled, 'triton' in sys.modules)\n"
    (tmp_path / "generator.py").write_text(PROGRAM + report)
    assert run(tmp_path, "generator.py").splitlines()[-1] == "3 False"
    assert (tmp_path / "scale.bundle").exists()
    assert run(tmp_path, "generator.py").splitlines()[-1] == "0 False"


def test_the_plan_builds(tmp_path: Path) -> None:
    (tmp_path / "plan.py").write_text(PLAN)
    command = ("-c", "from headstart.cli import main; main()", "build", "plan.py")
    output = run(tmp_path, *command, "--target", "cuda:90", "--target", "hip:gfx942", "-o", "kernels.bundle", "--json")
    outcome = json.loads(output.splitlines()[-1])
    assert (outcome["compiled"], outcome["failed"]) == (4, 0)
