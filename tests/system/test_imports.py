from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from pathlib import Path
from typing import Any

import pytest

from headstart.system.imports import when_imported


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module that can be imported, and is not yet."""
    (tmp_path / "awaited_module.py").write_text("VALUE = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "awaited_module", raising=False)
    return "awaited_module"


def test_everybody_who_waits_for_a_module_acts_once_when_it_is_complete(module: str) -> None:
    finders = list(sys.meta_path)
    seen: list[Any] = []
    when_imported(module, lambda: seen.append(sys.modules[module].VALUE))
    when_imported(module, lambda: seen.append("second"))
    assert seen == []
    imported = importlib.import_module(module)
    assert seen == [1, "second"]
    assert type(imported.__loader__) is type(imported.__spec__.loader) is importlib.machinery.SourceFileLoader
    assert sys.meta_path == finders
    when_imported(module, lambda: seen.append("at once"))
    assert seen[2:] == ["at once"]


def test_one_who_waits_no_more_does_not_take_the_others_along(module: str) -> None:
    finders = list(sys.meta_path)
    seen: list[str] = []
    forget = when_imported(module, lambda: seen.append("first"))
    forget_other = when_imported(module, lambda: seen.append("other"))
    forget()
    forget()
    importlib.import_module(module)
    assert seen == ["other"]
    forget_other()
    assert sys.meta_path == finders


def test_a_module_that_another_finder_knows_is_found_too(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.machinery.PathFinder.find_spec(module)

    class Editable(importlib.abc.MetaPathFinder):
        def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
            return spec if name == module else None

    monkeypatch.setattr(sys, "path", sys.path[1:])
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Editable()])
    seen: list[str] = []
    when_imported(module, lambda: seen.append("here"))
    importlib.import_module(module)
    assert seen == ["here"]
