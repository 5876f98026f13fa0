"""Acting on a module once the program has imported it, without importing it; and telling whose a module is."""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import types
from collections.abc import Callable
from typing import Any


def is_standard(name: str) -> bool:
    """Whether a module, imported or not, is the standard library's. A file of the user's may have the name of one."""
    top = name.partition(".")[0]
    if top not in sys.stdlib_module_names:
        return False
    try:
        spec = getattr(sys.modules.get(top), "__spec__", None) or importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return False
    return _lies_in_standard_library(getattr(spec, "origin", None))


@functools.lru_cache(maxsize=512)
def _lies_in_standard_library(origin: str | None) -> bool:
    if origin in ("built-in", "frozen"):
        return True
    if not origin or "site-packages" in origin or "dist-packages" in origin:
        return False
    from sysconfig import get_path  # not worth loading for those who only wait for an import

    folders = (get_path("stdlib"), get_path("platstdlib"))
    return any(folder and origin.startswith(f"{folder}{os.sep}") for folder in folders)


_awaited: dict[str, list[Callable[[], None]]] = {}


def when_imported(module: str, act: Callable[[], None]) -> Callable[[], None]:
    """Call `act` once `module` is imported: now, or later, in the thread that imports it.

    Returns:
        What ends the wait.
    """
    if module in sys.modules:
        act()
        return lambda: None
    _awaited.setdefault(module, []).append(act)
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)

    def forget() -> None:
        acts = _awaited.get(module, [])
        if act in acts:
            acts.remove(act)
        if not acts:
            _awaited.pop(module, None)
        _leave_if_idle()

    return forget


def _leave_if_idle() -> None:
    if not _awaited and _finder in sys.meta_path:
        sys.meta_path.remove(_finder)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds what is awaited as it would be found anyway, and has it acted upon."""

    def find_spec(
        self, name: str, path: Any, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in _awaited:
            return None
        for finder in sys.meta_path:  # an editable install has a finder of its own
            find = getattr(finder, "find_spec", None)
            spec: importlib.machinery.ModuleSpec | None = None
            if finder is not self and find is not None:
                spec = find(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader, name)
                return spec
        return None


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: Any, name: str) -> None:
        self._loader = loader
        self._name = name

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType | None:
        module: types.ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        # From here on it is loaded as if we had not been here.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        acts = _awaited.pop(self._name, [])
        _leave_if_idle()
        for act in acts:
            act()


_finder = _Finder()
