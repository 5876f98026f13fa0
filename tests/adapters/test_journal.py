"""What a process noted that was killed is not lost, and nobody touches the journal of one that lives."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from headstart.adapters import journal, recording
from headstart.adapters.journal import Journal, exists_for, left_behind
from headstart.adapters.recording import Recorder, gather, update
from headstart.artifacts.manifest import Manifest
from headstart.artifacts.specialization import Specialization
from headstart.model.request import CompileRequest


def request(name: str) -> CompileRequest:
    return CompileRequest.make(
        name, f"source of {name}", signature={"x": "*fp32"}, options={}, target="cuda:90", environment={}
    )


def manifest(name: str) -> Manifest:
    made = request(name)
    return Manifest.of([Specialization(request=made, digest=made.digest())])


def names(path: Path) -> set[str]:
    return {each.request.name for each in Manifest.open(path).specializations.values()}


def journals(path: Path) -> list[Path]:
    return sorted(path.parent.glob(".*.journal"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "records [é*]"
    folder.mkdir()
    return folder / "app.manifest"


def killed(path: Path, *kernels: str) -> Path:
    """A journal whose writer is gone."""
    left = Journal(path)
    for each in kernels:
        left.append(manifest(each))
    left.let_go()
    return journals(path)[-1]


def test_what_a_killed_process_noted_is_in_the_record_after_the_next_update(path: Path) -> None:
    killed(path, "a", "b")
    assert update(path, manifest("c"))
    assert names(path) == {"a", "b", "c"}
    assert not journals(path)


def test_the_journal_of_a_process_that_lives_is_left_alone(path: Path) -> None:
    living = Journal(path)
    living.append(manifest("a"))
    assert exists_for(path)
    assert gather(path)
    assert not path.exists()
    assert len(journals(path)) == 1
    living.remove()
    assert not exists_for(path)


@pytest.mark.parametrize("lost", [1, 40, 10**6])
def test_of_a_journal_that_is_cut_short_the_whole_part_counts(path: Path, lost: int) -> None:
    left = killed(path, "a", "b")
    size = left.stat().st_size
    whole = killed_size(path, "a")
    os.truncate(left, max(size - lost, whole // 2) if lost == 10**6 else size - lost)
    assert gather(path)
    assert (names(path) if path.exists() else set()) == (set() if lost == 10**6 else {"a"})
    assert not journals(path)


def killed_size(path: Path, kernel: str) -> int:
    return len(manifest(kernel).encode())


def test_a_scrambled_journal_is_no_error(path: Path) -> None:
    left = killed(path, "a", "b", "c")
    data = bytearray(left.read_bytes())
    data[killed_size(path, "a") + 60] ^= 1  # in the second
    left.write_bytes(data)
    assert gather(path)
    assert names(path) == {"a"}


def test_a_file_that_only_has_such_a_name_is_left_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = path.parent / ".app.manifest.notes.journal"
    foreign.write_text("Dear diary")
    link = path.parent / ".app.manifest.link.journal"
    link.symlink_to(foreign)
    assert update(path, manifest("a"))
    assert foreign.read_text() == "Dear diary"
    assert link.is_symlink()
    others = killed(path, "b")
    me = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: me + 1)
    assert left_behind(path) == []
    assert others.exists()


def test_a_child_s_notes_are_on_the_disk_when_note_returns_and_a_save_empties_the_journal(path: Path) -> None:
    recorder = Recorder(path)
    recorder.after_fork()  # as in a fork of a program that records
    made = request("a")
    recorder.note(made, made.digest())
    assert journals(path)[0].stat().st_size > 0
    assert recorder.save()
    assert journals(path)[0].stat().st_size == 0
    made = request("b")
    recorder.note(made, made.digest())
    assert recorder.close()
    assert names(path) == {"a", "b"}
    assert not journals(path)


def test_what_is_noted_while_a_save_is_under_way_stays_in_the_journal(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(path)
    recorder.after_fork()
    first, second = request("a"), request("b")
    recorder.note(first, first.digest())

    def meanwhile(*arguments: object, **more: object) -> bool:
        recorder.note(second, second.digest())
        return True

    monkeypatch.setattr(recording, "update", meanwhile)
    assert recorder.save()
    assert journals(path)[0].stat().st_size > 0
    monkeypatch.undo()
    assert recorder.close()
    assert names(path) >= {"b"}


def test_a_program_s_own_process_writes_no_journal(path: Path) -> None:
    recorder = Recorder(path)
    made = request("a")
    recorder.note(made, made.digest())
    assert not journals(path)
    recorder.close()
    assert not journals(path)


def test_where_a_journal_cannot_be_written_the_record_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal.os, "write", full)
    recorder = Recorder(path)
    recorder.after_fork()
    made = request("a")
    recorder.note(made, made.digest())
    monkeypatch.undo()
    assert recorder.close()
    assert names(path) == {"a"}
