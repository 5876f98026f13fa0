"""What a worker's compile said, said again here, where Triton would have said it."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import warnings
from typing import Any, NamedTuple

from headstart.adapters.triton import compat
from headstart.capture import reading
from headstart.errors import CompileError
from headstart.wire import CompileLog, Warned


class Fetched(NamedTuple):
    """A kernel that is an entry of Triton's cache now.

    Attributes:
        group: its files, by name.
        times: of its compile, microseconds by stage; None if it was compiled before.
    """

    group: dict[str, str]
    times: dict[str, int] | None


_registries: dict[str, dict[Any, Any]] = {}  # by file: what the filter "default" has let through


def show(log: CompileLog | None) -> None:
    """Print what a compile printed, to the same streams, and give its warnings.

    Raises:
        Warning: the program's filters make an error of one.
    """
    if log is None:
        return
    for stream, text in ((sys.stdout, log.stdout), (sys.stderr, log.stderr)):
        if text and stream is not None:
            stream.write(text)
    for each in log.warnings:
        if not (each.once and compat.warn_once(each.text)):
            registry = _registries.setdefault(each.filename, {})
            warnings.warn_explicit(each.text, _category(each), each.filename, each.line, registry=registry)


def _category(warned: Warned) -> type[Warning]:
    module, _, name = warned.category.rpartition(".")
    # A class of the program's own would be another one there; what is not there is a warning all the same.
    if module == "builtins" or reading.is_triton(module):
        found: Any = getattr(importlib.import_module(module), name, None)
        if isinstance(found, type) and issubclass(found, Warning):
            return found
    return UserWarning


def with_files(error: CompileError) -> CompileError:
    """The same error, with the files that its text names here: the worker's are gone."""
    for path, content in error.files.items():
        with tempfile.NamedTemporaryFile(suffix=os.path.splitext(path)[1], delete=False) as file:
            file.write(content)
        error = error.naming(path, file.name)
    return error
