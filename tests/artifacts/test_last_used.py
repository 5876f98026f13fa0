"""When what a bundle holds was last used."""

from __future__ import annotations

import datetime as dt
import logging
import os
import threading
from pathlib import Path

import pytest

from headstart.artifacts import last_used as last_used_module
from headstart.artifacts.last_used import MAGIC, last_used, note, record_path
from headstart.errors import DamagedError

A, B, C = ("aa" * 32, "bb" * 32, "cc" * 32)
DAY = dt.date(2026, 11, 30)
BEFORE = dt.date(2026, 10, 1)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return tmp_path / "app.bundle"


def test_what_a_run_met_and_did_not_use_has_the_day_on_which_it_was_met_first(bundle: Path, cache: Path) -> None:
    note(bundle, cache, {A, B}, {A}, today=BEFORE)
    note(bundle, cache, {A, B, C}, {A}, today=DAY)
    assert last_used(bundle, cache) == {A: DAY, B: BEFORE, C: DAY}


def test_what_was_used_once_is_remembered_by_later_runs_that_do_not(bundle: Path, cache: Path) -> None:
    note(bundle, cache, {A, B}, {A, B}, today=BEFORE)
    note(bundle, cache, {A, B}, (), today=DAY)
    assert last_used(bundle, cache) == {A: BEFORE, B: BEFORE}


def test_an_earlier_run_that_ends_late_takes_no_day_back(bundle: Path, cache: Path) -> None:
    note(bundle, cache, {A}, {A}, today=DAY)
    note(bundle, cache, {A}, (), today=DAY)
    assert last_used(bundle, cache) == {A: DAY}


def test_a_day_that_is_still_to_come_is_not_kept(bundle: Path, cache: Path) -> None:
    note(bundle, cache, {A, B}, {A}, today=dt.date(2090, 1, 1))
    note(bundle, cache, {A, B}, (), today=DAY)
    assert last_used(bundle, cache) == {A: DAY, B: DAY}


def test_what_the_bundle_has_no_longer_is_forgotten_but_for_what_another_rank_added_just_now(
    bundle: Path, cache: Path
) -> None:
    note(bundle, cache, {A, B}, {A}, today=BEFORE)
    note(bundle, cache, {C}, {C}, today=DAY)
    note(bundle, cache, {A}, (), today=DAY)
    assert last_used(bundle, cache) == {A: DAY, C: DAY}


def test_ranks_that_end_at_once_lose_nothing_of_each_other(bundle: Path, cache: Path) -> None:
    keys = [f"{number:064x}" for number in range(16)]
    threads = [threading.Thread(target=note, args=(bundle, cache, {key}, {key})) for key in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert last_used(bundle, cache).keys() == set(keys)


def test_a_link_to_a_bundle_is_the_bundle(bundle: Path, cache: Path, tmp_path: Path) -> None:
    bundle.touch()
    (tmp_path / "link.bundle").symlink_to(bundle)
    assert record_path(tmp_path / "link.bundle", cache) == record_path(bundle, cache)
    assert record_path(tmp_path / "other" / "app.bundle", cache) != record_path(bundle, cache)


def test_nothing_is_known_of_a_bundle_that_no_run_used(bundle: Path, cache: Path) -> None:
    with pytest.raises(FileNotFoundError):
        last_used(bundle, cache)


@pytest.mark.parametrize("data", [b"", b"garbage", MAGIC, MAGIC + b"\x01\0" + bytes(40)])
def test_a_damaged_record_is_told_and_begun_anew(data: bytes, bundle: Path, cache: Path) -> None:
    note(bundle, cache, {A}, {A}, today=BEFORE)
    record_path(bundle, cache).write_bytes(data)
    with pytest.raises(DamagedError):
        last_used(bundle, cache)
    note(bundle, cache, {A, B}, (), today=DAY)
    assert last_used(bundle, cache) == {A: DAY, B: DAY}  # nothing looks unused for that


def test_every_flipped_byte_is_noticed(bundle: Path, cache: Path) -> None:
    note(bundle, cache, {A, B}, {A}, today=BEFORE)
    path = record_path(bundle, cache)
    data = path.read_bytes()
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(DamagedError):
            last_used(bundle, cache)


def test_a_record_that_others_can_write_does_not_count_and_is_not_written(
    bundle: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "headstart")
    note(bundle, cache, {A}, {A}, today=BEFORE)
    folder = record_path(bundle, cache).parent
    assert folder.stat().st_mode & 0o777 == 0o700
    assert record_path(bundle, cache).stat().st_mode & 0o777 == 0o600
    folder.chmod(0o777)
    with pytest.raises(DamagedError):
        last_used(bundle, cache)
    before = record_path(bundle, cache).read_bytes()
    note(bundle, cache, {A}, {A}, today=DAY)
    assert record_path(bundle, cache).read_bytes() == before
    assert "is not noted" in caplog.text


def test_a_folder_that_cannot_be_made_costs_a_program_nothing(bundle: Path, cache: Path) -> None:
    cache.write_text("a file")
    note(bundle, cache, {A}, {A})


def test_a_run_that_says_nothing_new_writes_nothing(bundle: Path, cache: Path) -> None:
    note(bundle, cache, {A}, {A}, today=DAY)
    before = record_path(bundle, cache).stat()
    note(bundle, cache, {A}, {A}, today=DAY)
    assert record_path(bundle, cache).stat().st_ino == before.st_ino


def test_there_are_only_so_many_records(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(last_used_module, "MOST_RECORDS", 3)
    for number in range(5):
        note(tmp_path / f"{number}.bundle", cache, {A}, {A})
        record = record_path(tmp_path / f"{number}.bundle", cache)
        os.utime(record, (number, number))
    left = {path.name.partition("-")[0] for path in (cache / "bundles").glob("*.used")}
    assert left == {"2", "3", "4"}
    assert len(list((cache / "bundles").glob(".*.lock"))) == 3
