"""Writes down what a program compiles, while it runs, into a manifest that outlives it.

    note() ──▶ pending, in memory ──▶ daemon thread: SAVE_DELAY after the first unsaved note, ──▶ update(): lock,
    (µs, any thread)                  or at once when there are SAVE_COUNT of them                read, merge, rename
                                      close(): whatever is left

Guarantees:

A program never notices that it is recorded: `note` takes microseconds and, but in a child, does no I/O, and a record
that cannot be read or written costs one warning and is otherwise as if nobody recorded.

Ranks of one job, and any processes that record at once, end in one manifest with what all of them noted: `update`
holds a lock on `.NAME.lock` beside the manifest while it reads, merges and writes. A program that is killed loses
what it noted in the last `SAVE_DELAY` seconds. A child of it (a fork, or one that multiprocessing started) loses
nothing: it also writes what it notes into a journal at once, since it may be killed as soon as its work is done.

A forked child starts with nothing to save: what its parent noted, the parent saves. While nothing is unsaved no
thread waits for a time.
"""

from __future__ import annotations

import datetime as dt
import logging
import os
import sys
import threading
import time
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec

from headstart.adapters.journal import Journal, exists_for, left_behind
from headstart.artifacts.generated import GeneratedSource
from headstart.artifacts.manifest import Manifest, merge
from headstart.artifacts.specialization import Origin, Specialization, Tuning
from headstart.errors import DamagedError, FutureVersionError, PastVersionError, UsageError
from headstart.model.request import CompileRequest
from headstart.system.files import MANIFEST, check_replaceable, rename_onto
from headstart.system.folders import cache_dir, readable
from headstart.system.forks import renew_in_forks
from headstart.system.locks import locked
from headstart.system.private import make_folder

SAVE_DELAY = 30.0  # seconds from the first unsaved note until it is written
SAVE_COUNT = 500  # unsaved kernels that are written at once
_CLOCKS_DIFFER = 86400.0  # seconds by which clocks of one network's machines may differ, and no more
_MAX_NAME = 60  # characters of a program's name in the name of its record

_log = logging.getLogger("headstart")


def script_program(path: str | os.PathLike[str]) -> str:
    """How a script is named in records: its absolute path, symbolic links resolved.

    Working directory, arguments and interpreter are no part of it: the same script for another data set, or in a
    rebuilt virtual environment, needs mostly the same kernels, and a manifest keeps those of all its runs.
    """
    return os.path.realpath(path)


def module_program(name: str, file: str | os.PathLike[str] | None) -> str:
    """How `python -m name` is named in records: the module, and the file that it was found in.

    With the file, since `-m app.main` in two checkouts are two programs.
    """
    return f"-m {name}" if file is None else f"-m {name} {os.path.realpath(file)}"


def record_path(program: str, folder: str | os.PathLike[str] | None = None) -> Path:
    """Where the automatic record of a program lies; `folder` is by default headstart's cache folder."""
    words = program.split()
    name = words[1] if words[:1] == ["-m"] and len(words) > 1 else Path(program).stem
    shown = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)[:_MAX_NAME]
    digest = sha256(program.encode(errors="surrogateescape")).hexdigest()[:16]
    return (cache_dir() if folder is None else Path(folder)) / "manifests" / f"{shown}-{digest}.manifest"


def update(path: str | os.PathLike[str], manifest: Manifest, *, kept_days: int | None = None) -> bool:
    """Merge `manifest` into the one at `path`, which need not exist, among all processes that do the same.

    Nothing is written if it says nothing new. A damaged file is set aside as `NAME.damaged` and replaced; one of a
    newer headstart, and one that is no manifest at all, are left alone.

    Args:
        kept_days: forget kernels that nobody asked for in so many days before the last run but this one; None: keep
            all.

    Returns:
        Whether `path` has all of it now. If not, there was a warning; nothing is raised.
    """
    place = Path(os.path.realpath(path))
    try:
        check_replaceable(place, MANIFEST)
        _make_folder_of(place)
        with locked(place):
            existing = _existing(place)
            left = left_behind(place)
            manifest = merge(*(each for _, said in left for each in said), manifest)
            merged = merge(_without_choices_to_come(existing, manifest), manifest)
            if kept_days is not None:
                last = _last_run_before(manifest, existing)
                merged = merged.seen_since(last - min(dt.timedelta(kept_days), last - dt.date.min))
            if not _same(existing, merged):
                merged.save(place)
            for path, _ in left:
                path.unlink(missing_ok=True)
    except (FutureVersionError, UsageError) as error:
        _log.warning("nothing is recorded: %s", error)
    except OSError as error:
        _log.warning("cannot record in %s: %s", place, error.strerror or error)
    else:
        return True
    return False


def _make_folder_of(place: Path) -> None:
    is_own = place.is_relative_to(os.path.realpath(cache_dir()))
    make_folder(place.parent, 0o700 if is_own else 0o777)


def gather(path: str | os.PathLike[str], *, kept_days: int | None = None) -> bool:
    """Merge what processes that were killed have noted for the manifest at `path`; as `update`."""
    return not exists_for(Path(os.path.realpath(path))) or update(path, Manifest(), kept_days=kept_days)


class Recorder:
    """Collects what one process compiles, and writes it into the manifest at `path`.

    Args:
        path: the manifest; made if need be.
        program: what runs, as `script_program` or `module_program` names it.
        triton_version: the program's, where it is known.
        toolchain: digest of the one that compiles, where it is known.
        kept_days: as for `update`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        program: str = "",
        triton_version: str = "",
        toolchain: str = "",
        kept_days: int | None = None,
    ) -> None:
        self.path = Path(path).absolute()
        self._origin = Origin(
            program=readable(program),
            # By name: the package stands above all its modules.
            headstart_version=import_module("headstart").__version__,
            triton_version=triton_version,
            toolchain=toolchain,
        )
        self._kept_days = kept_days
        self._today = _today()
        self._forked = False
        self._start_empty()
        renew_in_forks(self)

    def _start_empty(self) -> None:
        self._journal: Journal | None = None  # of a process that may end without a word
        self._lock = threading.Lock()
        self._saving = threading.Lock()
        self._specializations: dict[str, Specialization] = {}  # unsaved
        self._tunings: dict[str, Tuning] = {}  # unsaved
        self._generated: dict[str, GeneratedSource] = {}  # unsaved
        self._origin_unsaved = False  # alone worth writing
        self._wakeup = threading.Event()
        self._thread: threading.Thread | None = None
        self._failed = False
        self._closed = False

    def note(
        self,
        request: CompileRequest,
        digest: str,
        *,
        duration_s: float = 0.0,
        asked_by: str = "",
        winner: bool = False,
        failed: str = "",
        torch: str = "",
    ) -> None:
        """The program asked for a kernel. It may be noted again, when its duration or an autotuner's choice is known.

        Args:
            digest: of the request; the adapter that asks for a compile has it already.
            failed, torch: see `Specialization`.
        """
        self._keep(
            Specialization(
                request=request,
                digest=digest,
                duration_s=duration_s,
                winner=winner,
                asked_by=asked_by,
                last_seen=self._today,
                failed=failed,
                torch=torch,
            )
        )

    def note_tuning(self, tuning: Tuning) -> None:
        """A sweep ended."""
        self._keep(tuning)

    def note_generated(self, source: GeneratedSource) -> None:
        """torch.compile generated a source, and it was compiled; its `last_seen` is today."""
        self._keep(msgspec.structs.replace(source, last_seen=self._today))

    def note_torch(self, version: str) -> None:
        """The program uses torch.compile. Written with the next notes, or by `close`.

        Args:
            version: of its torch.
        """
        with self._lock:
            self._origin = msgspec.structs.replace(self._origin, torch_version=version)
            self._origin_unsaved = True

    def save(self) -> bool:
        """Write what is unsaved. After a failure it goes on being collected for `close`, which tries once more.

        Returns:
            Whether nothing is unsaved now.
        """
        with self._saving:
            with self._lock:
                unsaved = self._unsaved()
                self._specializations, self._tunings, self._generated = {}, {}, {}
                self._wakeup.clear()
                origin_unsaved, self._origin_unsaved = self._origin_unsaved, False
                noted = 0 if self._journal is None else self._journal.size
            if unsaved == Manifest() and not origin_unsaved:
                return not self._closed or gather(self.path, kept_days=self._kept_days)
            origin = msgspec.structs.replace(self._origin, recorded_at=time.time())
            unsaved = msgspec.structs.replace(unsaved, origins=(origin,))
            if update(self.path, unsaved, kept_days=self._kept_days):
                self._forget_journal(noted)
                return True
            with self._lock:
                self._failed = True
                self._origin_unsaved = origin_unsaved or self._origin_unsaved
                both = merge(unsaved, self._unsaved())
                self._specializations, self._tunings = both.specializations, both.tunings
                self._generated = both.generated
            return False

    def close(self) -> bool:
        """Write what is unsaved and stop; later notes are lost. As `save`."""
        with self._lock:
            self._closed = True
        self._wakeup.set()
        return self.save()

    def _unsaved(self) -> Manifest:
        return Manifest(specializations=self._specializations, tunings=self._tunings, generated=self._generated)

    def _keep(self, noted: Specialization | Tuning | GeneratedSource) -> None:
        with self._lock:
            if self._closed:
                return
            if isinstance(noted, Specialization):
                _merge_into(self._specializations, noted.digest, noted)
            elif isinstance(noted, Tuning):
                _merge_into(self._tunings, noted.digest(), noted)
            else:
                _merge_into(self._generated, noted.key, noted)
            if self._may_be_killed():
                self._write_at_once(noted)
            if self._thread is None and not self._failed:
                self._thread = threading.Thread(target=self._save_later, name="headstart-recorder", daemon=True)
                try:
                    self._thread.start()
                except RuntimeError:  # no more threads: `close` saves, or a later note finds that there is one again
                    self._thread = None
            if len(self._specializations) + len(self._generated) >= SAVE_COUNT:
                self._wakeup.set()

    def _may_be_killed(self) -> bool:
        """Whether this process ends by its parent's will, as the workers of `with multiprocessing.Pool()` do."""
        process = sys.modules.get("multiprocessing.process")
        return self._forked or (process is not None and process.parent_process() is not None)

    def _write_at_once(self, noted: Specialization | Tuning | GeneratedSource) -> None:
        try:
            if self._journal is None:
                place = Path(os.path.realpath(self.path))
                _make_folder_of(place)
                self._journal = Journal(place)
            if isinstance(noted, Specialization):
                said = Manifest.of([noted])
            elif isinstance(noted, Tuning):
                said = Manifest.of([], [noted])
            else:
                said = Manifest.of([], generated=[noted])
            self._journal.append(msgspec.structs.replace(said, origins=(self._origin,)))
        except OSError as error:
            _log.debug("what is noted is written later: %s", error)

    def _forget_journal(self, size: int) -> None:
        with self._lock:
            if self._journal is not None:
                if self._closed:
                    self._journal.remove()
                    self._journal = None
                else:
                    self._journal.saved(size)

    def _save_later(self) -> None:
        """One thread for one delay: it ends with the save, and the next note starts another."""
        self._wakeup.wait(SAVE_DELAY)
        with self._lock:
            self._thread = None
            if self._closed:
                return
        self.save()

    def after_fork(self) -> None:
        """See `renew_in_forks`."""
        closed = self._closed
        if self._journal is not None:
            self._journal.let_go()
        self._start_empty()
        self._closed, self._forked = closed, True


class DryRecorder(Recorder):
    """Records no choices: in a dry run nothing was measured."""

    def note_tuning(self, tuning: Any) -> None:
        pass

    def note(self, *arguments: Any, winner: bool = False, **keywords: Any) -> None:
        super().note(*arguments, **keywords)


def _merge_into(known: dict[str, Any], digest: str, noted: Any) -> None:
    before = known.get(digest)
    known[digest] = noted if before is None else before.merged(noted)


def _existing(path: Path) -> Manifest:
    """What is there already."""
    try:
        return Manifest.open(path)
    except FileNotFoundError:
        return Manifest()
    except FutureVersionError:
        raise
    except PastVersionError as error:
        _log.info("the record is begun anew: %s", error)
        return Manifest()
    except DamagedError as error:
        aside = path.with_name(f"{path.name}.damaged")
        rename_onto(path, aside, MANIFEST)
        _log.warning("the record is begun anew, and the damaged one kept as %s: %s", aside.name, error)
        return Manifest()


def _last_run_before(new: Manifest, existing: Manifest) -> dt.date:
    """The day from which the age of kernels is counted: the last one of an earlier run.

    The clock of one run may be wrong by years. Were ages counted from its own day, it would have all others forgotten;
    and a day that is still to come is one of such a run.
    """
    today = max(new.last_seen(), default=_today())
    return max((day for day in existing.last_seen() if day < today), default=dt.date.min)


def _without_choices_to_come(existing: Manifest, new: Manifest) -> Manifest:
    """An autotuner's choice that was dated in the future would outdo every later one."""
    soon = time.time() + _CLOCKS_DIFFER
    tunings = {
        digest: tuning
        for digest, tuning in existing.tunings.items()
        if tuning.recorded_at <= soon or digest not in new.tunings
    }
    return msgspec.structs.replace(existing, tunings=tunings)


def _today() -> dt.date:
    return dt.datetime.now(dt.timezone.utc).date()


def _same(before: Manifest, after: Manifest) -> bool:
    """Whether there is nothing to write: only the time of recording may differ."""
    return (
        before.specializations == after.specializations
        and before.tunings == after.tunings
        and before.generated == after.generated
        and [origin.undated() for origin in before.origins] == [origin.undated() for origin in after.origins]
    )
