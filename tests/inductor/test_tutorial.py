"""The tutorial of torch.compile can be followed, word for word, on a machine without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from tutorial import follow

pytestmark = [pytest.mark.torch, pytest.mark.timeout(900)]


def test_the_tutorial_can_be_followed(tmp_path: Path) -> None:
    # On a machine without a GPU the first start has g++ read all of torch's headers.
    assert follow("tutorials/torch-compile.md", tmp_path, timeout=400) == 3
