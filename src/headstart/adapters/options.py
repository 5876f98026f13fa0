"""What `headstart.enable` and `headstart run` choose for a process, and whether results may be written where they say.

Nothing is loaded for it: `headstart run` reads it in a program that may need nothing of headstart's.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from headstart.system.files import BUNDLE, MANIFEST, check_replaceable

if TYPE_CHECKING:
    from headstart.client.async_compile import AsyncCompile

_log = logging.getLogger("headstart")

StrPath = str | os.PathLike[str]


def _log_use(compilers: Sequence[AsyncCompile]) -> None:
    if compilers:
        from headstart.adapters.bundle_use import use_of

        _log.info("of the bundle: %s", use_of(compilers))


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
        tell_use: given at the end, if there is a bundle, those that may have used it.
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
    tell_use: Callable[[Sequence[AsyncCompile]], None] = _log_use


def check_outputs(bundle: StrPath | None, record: StrPath | None) -> None:
    """Find out before the work is done whether its results may be written there.

    Raises:
        UsageError: one of them is a file that headstart did not write in this form.
    """
    if bundle is not None:
        check_replaceable(bundle, BUNDLE)
    if record is not None:
        check_replaceable(record, MANIFEST)
