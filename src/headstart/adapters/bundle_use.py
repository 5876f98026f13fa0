"""What the processes of one `headstart run` took from its bundle: each tells one of them, which says it.

    the program's process, or the command that waits for it ── UseTally ──▶ a file in memory, whose name the others get
    each other process, at its end ── report ──▶ one line in that file
    who made it, at the end ── UseTally.total ──▶ `sentence`, `statistics`, `complaint`

The file is gone with who made it, however that ends. Nothing is loaded before the end: the program's process makes its
tally before the program's first line.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from headstart.client.use import BundleUse

_NAME = "headstart-bundle-use"
_SHOWN = 40  # lines of a complaint
_WORTH_TELLING = 1.0  # seconds


class UsesBundle(Protocol):
    """An adapter."""

    def used(self, *, why: bool = True) -> BundleUse:
        """What this process took out of bundles, and, if that is asked for, what it did not and why."""


class UseTally:
    """What the other processes told.

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
        return sum((use for _, use in self.told() if use is not None), own)

    def told(self) -> list[tuple[str, BundleUse | None]]:
        """What each program told, and which: see `report`."""
        if not _is_tally(self.path):  # the program has closed whatever files it found
            return []
        import msgspec

        from headstart.client.use import BundleUse

        told = []
        for line in os.pread(self._file, os.fstat(self._file).st_size, 0).splitlines():
            with contextlib.suppress(msgspec.MsgspecError):
                told.append(msgspec.json.decode(line, type=tuple[str, BundleUse | None]))
        return told

    def silent(self) -> int:
        """How many have missed something, and have not lived to say what."""
        told = self.told()
        return len({who for who, use in told if use is None} - {who for who, use in told if use is not None})


def report(path: str, who: str, use: BundleUse | None) -> None:
    """Tell the process that made `path`, if it is still there.

    Args:
        who: a program of a process: its number, and when it began, since one process may become several programs.
        use: what it took; None: it has missed something, and what that is it says at its end.
    """
    import msgspec

    with contextlib.suppress(OSError):
        # Another process may have its number by now: nothing is opened before it is known what it is.
        found = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            here = f"/proc/self/fd/{found}"
            if _is_tally(here):
                with open(here, "ab", buffering=0) as file:
                    file.write(msgspec.json.encode((who, use)) + b"\n")
        finally:
            os.close(found)


class LeftAlone:
    """What headstart has no adapter for in this process.

    Args:
        whose: as `Missed.name`.
        reason: as the end of "headstart leaves …".
    """

    def __init__(self, whose: str, reason: str) -> None:
        self._whose = whose
        self._reason = reason

    def used(self, *, why: bool = True) -> BundleUse:
        """See `UsesBundle`."""
        from headstart.client.use import BundleUse, Missed

        left = [Missed(self._whose, self._reason)]
        return BundleUse(missed=left, fell_back=left)


def use_of(adapters: Iterable[UsesBundle], *, why: bool = True) -> BundleUse:
    """What they took out of bundles, together; `why`: and what they did not, and why, which may take a second."""
    from headstart.client.kernel_log import waited_s
    from headstart.client.use import BundleUse

    return sum((adapter.used(why=why) for adapter in adapters), BundleUse(waited_s=waited_s()))


def statistics(bundle: str | os.PathLike[str] | None, use: BundleUse) -> dict[str, Any]:
    """The same as data for JSON; see `BundleUse`."""
    import msgspec

    is_used = bool(use.kernels or use.graphs)
    return {
        "headstart": 1,
        "bundle": None if bundle is None else os.fspath(bundle),
        "bundle_used": is_used,
        **msgspec.to_builtins(use),
    }


def write_statistics(path: str, bundle: str | None, use: BundleUse) -> None:
    """Raises `OSError` and `UsageError`: it cannot be written, or another file has that name."""
    import msgspec

    from headstart.system.files import STATISTICS, replace

    replace(path, msgspec.json.format(msgspec.json.encode(statistics(bundle, use)), indent=0) + b"\n", STATISTICS)


def complaint(bundle: str | os.PathLike[str], use: BundleUse) -> str:
    """What did not come from a bundle, one line each, and why."""
    missed = sorted(use.missed)
    lines = [f"  {each.name}: {each.why}" for each in missed[:_SHOWN]]
    if len(missed) > _SHOWN:
        lines.append(f"  and {len(missed) - _SHOWN} more; --stats FILE names them")
    return "\n".join([f"not everything came from {os.path.basename(bundle)}:", *lines])


def sentence(bundle: str | os.PathLike[str] | None, use: BundleUse) -> str:
    """For people: many carry a bundle along that is never read, and do not know. Empty if there is nothing to say."""
    asked = use.kernels + use.compiled + use.cached
    graphs = use.graphs + use.made_graphs + use.cached_graphs
    if bundle is None:
        return f"{asked} kernels: {use.compiled} compiled, {_cached(use)}{_times(use)}" if asked else ""
    name = os.path.basename(bundle)
    if not asked and not graphs:
        return f"{name} was not used: no kernel was asked for that is not in Triton's own cache"
    parts = [f"{use.kernels} of {asked} kernels"] if asked else []
    parts += [f"{use.graphs} of {graphs} graphs"] if graphs else []
    said = f"{' and '.join(parts)} from {name}, {use.compiled} compiled"
    if use.in_process:
        said += f", {use.in_process} by Triton in the program's process"
    if use.cached:
        said += f", {_cached(use)}"
    said += _times(use)
    return f"{said}; about {use.saved_s:.0f} s of compiling saved" if use.saved_s >= 1.0 else said


def _times(use: BundleUse) -> str:
    if use.compiling_s < _WORTH_TELLING:
        return ""
    waited = f", {use.waited_s:.1f} s of waiting for it" if use.waited_s >= _WORTH_TELLING else ""
    return f"; {use.compiling_s:.1f} s of compiling{waited}"


def _cached(use: BundleUse) -> str:
    others = f", {use.remote} of them from other hosts" if use.remote else ""
    return f"{use.cached} from headstart's cache{others}"


def _is_tally(path: str) -> bool:
    try:
        return os.readlink(path).startswith(f"/memfd:{_NAME}")
    except OSError:
        return False
