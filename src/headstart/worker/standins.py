"""Lets Inductor's generated Triton sources be executed where torch is not imported.

Of torch, `TORCH_FILES` end up in what is compiled: they are loaded under their real names and paths. All other modules
below `torch` are stand-ins, whose attributes can be called, subscripted and used as a decorator that returns the kernel
as it is: what a decorator of Inductor's would make of a kernel matters where it is launched, not to the compiler.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import types
from collections.abc import Iterator, Sequence
from typing import Any

from headstart.model.toolchain import TORCH_FILES

_REAL = tuple(f"torch.{part.removesuffix('.py').replace('/', '.')}" for part in TORCH_FILES)


class Unusable(Exception):
    """There are no stand-ins for this torch; the text says why."""


_kept: dict[str, dict[str, types.ModuleType]] = {}  # by folder of torch: what was imported of it


@contextlib.contextmanager
def shown(torch_dir: str) -> Iterator[None]:
    """Answer imports of `torch` meanwhile; a kernel that has nothing to do with it, before or after, sees none of it.

    Args:
        torch_dir: the folder of the torch package; empty: nothing is done.

    Raises:
        Unusable: its helpers are not where they are expected, or do not work with this Triton.
    """
    if not torch_dir:
        yield
        return
    finder = _Finder(torch_dir)
    found = _taken()  # another kernel's source may have imported the real one
    sys.meta_path.insert(0, finder)
    sys.modules.update(_kept.get(torch_dir, {}))
    try:
        try:
            for name in _REAL:
                _real(name)
        except Exception as error:
            raise Unusable(f"what generated kernels import of torch ({torch_dir}) cannot be used: {error}") from error
        yield
    finally:
        sys.meta_path.remove(finder)
        _kept[torch_dir] = _taken()
        sys.modules.update(found)


def _taken() -> dict[str, types.ModuleType]:
    """All modules of torch, which are then as if they had not been imported."""
    names = [name for name in sys.modules if name.partition(".")[0] == "torch"]
    return {name: sys.modules.pop(name) for name in names}


def are_shown() -> bool:
    """Whether torch is a stand-in just now."""
    return any(isinstance(finder, _Finder) for finder in sys.meta_path)


class _Anything:
    """Stands for whatever a decorator of a generated source is given."""

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        if len(arguments) == 1 and not keywords and type(arguments[0]).__name__ == "JITFunction":
            return arguments[0]
        return self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __getitem__(self, key: Any) -> Any:
        return self


class _StandIn(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        submodule = f"{self.__name__}.{name}"
        if submodule in _REAL:  # `from package import module` asks for an attribute first
            return _real(submodule)
        return _Anything()


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, torch_dir: str) -> None:
        self._folder = torch_dir

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] != "torch":
            return None
        if name in _REAL:
            file = os.path.join(self._folder, *name.split(".")[1:]) + ".py"
            return importlib.util.spec_from_file_location(name, file)
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = _StandIn(spec.name)
        if spec.name == "torch":
            # The helpers ask which GPUs this torch is for; what they then choose, Triton's target decides anyway.
            module.__dict__["version"] = types.SimpleNamespace(hip=None, cuda="12.8")
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def _real(name: str) -> types.ModuleType:
    module = importlib.import_module(name)
    if name.endswith("triton_helpers"):
        # Generated sources call these at their top. There is no device here, and looking for one costs a run of gcc.
        module.__dict__["set_driver_to_gpu"] = module.__dict__["set_driver_to_cpu"] = lambda: None
    return module
