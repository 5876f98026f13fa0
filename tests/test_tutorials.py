"""The tutorials can be followed, word for word. That of torch.compile is in `inductor/test_tutorial.py`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tutorial import DOCS, check, follow

pytestmark = pytest.mark.triton


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("page", "commands"), [("triton-program.md", 4), ("code-generator.md", 3)])
def test_a_tutorial_can_be_followed(page: str, commands: int, tmp_path: Path) -> None:
    assert follow(f"tutorials/{page}", tmp_path) == commands


def test_what_is_not_printed_is_noticed() -> None:
    check("one\nt… three\n", "one\nand\ntwo three\n")
    for wrong in ("two\none\n", "on\n", "one\nfour\n"):
        with pytest.raises(AssertionError, match="not printed"):
            check(wrong, "one\ntwo three\n")


def test_the_difference_between_two_keys_is_what_the_page_says(tmp_path: Path) -> None:
    page = (DOCS / "explanation/identity.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.stdout.strip() == "['options.num_warps was 4, now 8']", done.stderr
    assert f"It prints `{done.stdout.strip()}`." in page
