"""Acting on a module when the program imports it, without importing it.

    Awaited.before("triton", act)   act when its import begins
    Awaited.after("triton", act)    act when it has been imported

What is in `sys.modules` already counts as imported. The importing thread acts; an exception from `act` is the import's.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Callable
from typing import Any

Act = Callable[[], None]


class Awaited:
    """Imports that one party waits for."""

    def __init__(self) -> None:
        self._before: dict[str, list[Act]] = {}
        self._after: dict[str, list[Act]] = {}

    def before(self, module: str, act: Act) -> None:
        """Call `act` once somebody begins to import `module`: now, if it is imported, or later."""
        self._await(self._before, module, act)

    def after(self, module: str, act: Act) -> None:
        """Call `act` once `module` is imported: now or later."""
        self._await(self._after, module, act)

    def forget(self) -> None:
        """Wait for no import any more."""
        self._before.clear()
        self._after.clear()
        if self in _parties:
            _parties.remove(self)
        if not _parties:
            sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]

    def _await(self, acts: dict[str, list[Act]], module: str, act: Act) -> None:
        if module in sys.modules:
            act()
            return
        acts.setdefault(module, []).append(act)
        if self not in _parties:
            _parties.append(self)
        if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
            sys.meta_path.insert(0, _Finder())

    def begun(self, module: str) -> list[Act]:
        """The acts, not to be done twice, for the beginning of an import."""
        return self._before.pop(module, [])

    def done(self, module: str) -> list[Act]:
        """The acts, not to be done twice, for its end."""
        return self._after.pop(module, [])

    def awaits(self, module: str) -> bool:
        """Whether there is anything to do for `module`."""
        return module in self._before or module in self._after


_parties: list[Awaited] = []


class _Finder(importlib.abc.MetaPathFinder):
    """Finds what is awaited as it would be found anyway, and has it acted upon."""

    def find_spec(
        self, name: str, path: Any, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not any(party.awaits(name) for party in _parties):
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader, name)
                return spec
        return None


class _Loader(importlib.abc.Loader):
    """Not made unless the module is there: whoever only looks for one (`find_spec`) has nothing done."""

    def __init__(self, loader: Any, name: str) -> None:
        self._loader = loader
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType | None:
        module: types.ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        # From here on it is loaded as if we had not been here.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        for party in list(_parties):
            for act in party.begun(self._name):
                act()
        self._loader.exec_module(module)
        for party in list(_parties):
            for act in party.done(self._name):
                act()
