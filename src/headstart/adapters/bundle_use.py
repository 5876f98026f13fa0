"""What the processes of one `headstart run` took from its bundle: each tells the program's own process, which says it.

    the program's process ── UseTally ──▶ a file in memory; its name goes to the children with the orders
    each other process, at its end ── report ──▶ one line in that file
    the program's process, at its end ── UseTally.total ──▶ `sentence`

The file is gone with the program's process, however that ends. Nothing is loaded before the end: the program's process
makes its tally before the program's first line.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headstart.client.async_compile import AsyncCompile
    from headstart.client.bundler import BundleUse

_NAME = "headstart-bundle-use"


class UseTally:
    """The program's process: what its children told.

    Attributes:
        path: for `report`.

    Raises:
        OSError: there can be no such file.
    """

    def __init__(self) -> None:
        self._file = os.memfd_create(_NAME, os.MFD_CLOEXEC)
        self.path = f"/proc/{os.getpid()}/fd/{self._file}"

    def total(self, own: BundleUse) -> BundleUse:
        """`own` and what was told until now."""
        if not _is_tally(self.path):  # the program has closed whatever files it found
            return own
        import msgspec

        total = own
        for line in os.pread(self._file, os.fstat(self._file).st_size, 0).splitlines():
            with contextlib.suppress(msgspec.MsgspecError):
                total += msgspec.json.decode(line, type=type(own))
        return total


def report(path: str, use: BundleUse) -> None:
    """Tell the process that made `path`, if it is still there."""
    import msgspec

    with contextlib.suppress(OSError):
        # Another process may have its number by now: nothing is opened before it is known what it is.
        found = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            here = f"/proc/self/fd/{found}"
            if _is_tally(here):
                with open(here, "ab", buffering=0) as file:
                    file.write(msgspec.json.encode(use) + b"\n")
        finally:
            os.close(found)


def use_of(compilers: Iterable[AsyncCompile]) -> BundleUse:
    """What they took out of bundles, together."""
    from headstart.client.bundler import BundleUse

    return sum((compiler.use for compiler in compilers), BundleUse())


def sentence(bundle: str | os.PathLike[str], use: BundleUse) -> str:
    """For people: many carry a bundle along that is never read, and do not know."""
    name = os.path.basename(bundle)
    asked = use.kernels + use.compiled + use.cached
    graphs = use.graphs + use.made_graphs
    if not asked and not graphs:
        return f"{name} was not used: no kernel was asked for that is not in Triton's own cache"
    parts = [f"{use.kernels} of {asked} kernels"] if asked else []
    parts += [f"{use.graphs} of {graphs} graphs"] if graphs else []
    said = f"{' and '.join(parts)} from {name}, {use.compiled} compiled"
    if use.cached:
        said += f", {use.cached} from headstart's cache"
    return f"{said}; about {use.saved_s:.0f} s of compiling saved" if use.saved_s >= 1.0 else said


def _is_tally(path: str) -> bool:
    try:
        return os.readlink(path).startswith(f"/memfd:{_NAME}")
    except OSError:
        return False
