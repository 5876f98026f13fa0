"""What the README and its pages show works as it stands there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.triton

ROOT = Path(__file__).parent.parent


def blocks(document: str) -> list[str]:
    """What a document shows of Python."""
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


def run(folder: Path, *arguments: str) -> str:
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_readme_says_it_on_a_hundred_lines() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 100


def test_the_code_generator_of_the_readme_prints_what_it_says(tmp_path: Path) -> None:
    (program,) = [block for block in blocks("README.md") if "AsyncCompile" in block]
    (tmp_path / "generator.py").write_text(program)
    first, second = (run(tmp_path, "generator.py").split() for _ in range(2))
    assert (first[0], first[2], second[2]) == ("scale", "1", "0")
    assert first[1] == second[1]
    assert "prints `scale 6992 1`, and `scale 6992 0`" in (ROOT / "README.md").read_text()


def test_the_code_generator_runs_and_its_second_start_neither_compiles_nor_imports_triton(tmp_path: Path) -> None:
    report = "\nimport sys\nprint(async_compile.statistics.compiled, 'triton' in sys.modules)\n"
    program, _ = blocks("docs/code-generators.md")
    (tmp_path / "generator.py").write_text(program + report)
    assert run(tmp_path, "generator.py").splitlines()[-1] == "3 False"
    assert (tmp_path / "scale.bundle").exists()
    assert run(tmp_path, "generator.py").splitlines()[-1] == "0 False"


def test_futures_are_waited_for_as_the_page_shows(tmp_path: Path) -> None:
    _, program = blocks("docs/code-generators.md")
    (tmp_path / "waiting.py").write_text(program)
    assert run(tmp_path, "waiting.py").splitlines() == ["fill None"] * 4 + ["4 set()", "dropped True"]


def test_the_plan_builds(tmp_path: Path) -> None:
    (plan,) = blocks("docs/ci.md")
    (tmp_path / "plan.py").write_text(plan)
    command = ("-c", "from headstart.cli import main; main()", "build", "plan.py")
    output = run(tmp_path, *command, "--target", "cuda:90", "--target", "hip:gfx942", "-o", "kernels.bundle", "--json")
    outcome = json.loads(output.splitlines()[-1])
    assert (outcome["compiled"], outcome["failed"]) == (4, 0)
