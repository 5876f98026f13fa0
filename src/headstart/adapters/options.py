"""What `headstart.enable` and `headstart run` choose for a process, and whether results may be written where they say.

Nothing is loaded for it: `headstart run` reads it in a program that may need nothing of headstart's.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from headstart.client.about import About, describe
from headstart.system.files import BUNDLE, MANIFEST, check_replaceable
from headstart.system.variables import misspelt

if TYPE_CHECKING:
    from headstart.adapters.bundle_use import UsesBundle

_log = logging.getLogger("headstart")
_said: set[str] = set()

StrPath = str | os.PathLike[str]


class EnableOptions(NamedTuple):
    """What was asked for. `process.enable` says what those mean that it takes.

    Attributes:
        program: as `headstart.adapters.recording` names it.
        kept_days: as `headstart.adapters.recording.Recorder` takes it.
        trusted: whether the manifest was recorded by this user's own programs.
        target: of a dry run; None: this is none.
        replays: whether the manifest is compiled ahead, and not only asked for what autotuners chose.
        torch_when_used: whether torch.compile's processes wait until the program uses it, or the manifest says that it
            will; else they start at once.
        report: told at the end what became of the replay.
        tell_use: given at the end those that may have used the bundle; None: nobody is told.
        run: name of the `headstart run` that this process is of; empty: it is of none.
    """

    manifest: StrPath | None = None
    bundle: StrPath | None = None
    record: StrPath | None = None
    reuse_tuning: bool = False
    workers: int | None = None
    cache_dir: StrPath | None = None
    program: str = ""
    kept_days: int | None = None
    trusted: bool = False
    target: str | None = None
    trust_bundle: bool = False
    replays: bool = True
    torch_when_used: bool = False
    report: Callable[[str], None] = functools.partial(_log.debug, "replay: %s")
    tell_use: Callable[[Sequence[UsesBundle]], None] | None = None
    farm: str | None = None
    run: str = ""

    def describe(self) -> None:
        """Say it to whoever writes down what becomes of this process's kernels. Never raises."""
        given = [_shown(each) for each in (self.bundle, self.record)]
        describe(About("run" if self.run else "enable", self.program, self.run, *given))

    def for_client(self) -> dict[str, Any]:
        """The arguments of `client.acquire`."""
        return {each: getattr(self, each) for each in ("bundle", "trust_bundle", "workers", "cache_dir", "farm")}


def _shown(path: StrPath | None) -> str:
    """A path that is one from anywhere, if that can be told."""
    if path is None:
        return ""
    try:
        return os.fsdecode(os.path.abspath(path))
    except (OSError, ValueError):  # the current folder is gone
        return os.fsdecode(path)


def check_outputs(bundle: StrPath | None, record: StrPath | None) -> None:
    """Find out before the work is done whether its results may be written there.

    Raises:
        UsageError: one of them is a file that headstart did not write in this form.
    """
    if bundle is not None:
        check_replaceable(bundle, BUNDLE)
    if record is not None:
        check_replaceable(record, MANIFEST)


def say_misspelt() -> None:
    """Name each variable that looks like one of headstart's and is none, once in a process."""
    for sentence in misspelt():
        if sentence not in _said:
            _said.add(sentence)
            _log.warning("%s", sentence)
