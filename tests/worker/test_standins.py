"""Stand-ins for torch are there for the kernels that need them, and for no others."""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path

import pytest

from headstart.model.toolchain import TORCH_FILES
from headstart.worker import standins


@pytest.fixture
def torch_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torch"]:
        monkeypatch.delitem(sys.modules, name)
    for part in TORCH_FILES:
        path = tmp_path / part
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"from torch import version\nNAME = {path.stem!r}\n")
    return str(tmp_path)


def test_they_are_there_meanwhile_and_the_same_the_next_time(torch_dir: str) -> None:
    with standins.shown(torch_dir):
        assert standins.are_shown()
        helpers = importlib.import_module("torch._inductor.runtime.triton_helpers")
        assert (helpers.NAME, helpers.version.hip) == ("triton_helpers", None)
        assert importlib.import_module("torch.anything.at.all").whatever(1)[2] is not None
    assert not standins.are_shown()
    assert not [name for name in sys.modules if name.partition(".")[0] == "torch"]
    with standins.shown(torch_dir):
        assert importlib.import_module("torch._inductor.runtime.triton_helpers") is helpers


def test_a_torch_that_another_kernel_has_imported_is_there_again_afterwards(
    torch_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = types.ModuleType("torch")
    monkeypatch.setitem(sys.modules, "torch", real)
    with standins.shown(torch_dir):
        assert sys.modules["torch"] is not real
    assert sys.modules["torch"] is real


def test_a_torch_whose_helpers_do_not_work_is_named(torch_dir: str) -> None:
    Path(torch_dir, TORCH_FILES[0]).write_text("import no_such_module_at_all")
    with pytest.raises(standins.Unusable, match="no_such_module_at_all"), standins.shown(torch_dir):
        pass
    assert not standins.are_shown()


def test_without_a_torch_nothing_is_done() -> None:
    with standins.shown(""):
        assert not standins.are_shown()
