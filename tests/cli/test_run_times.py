"""Where the seconds of runs went, as report and stats say it: of logs that were written by hand."""

from __future__ import annotations

import json
import os
import socket
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from entries import packed
from headstart.artifacts import run_records as records
from headstart.artifacts import runs
from headstart.cli import main
from headstart.cli.report_data import report_data
from headstart.cli.run_facts import Facts, Library
from headstart.cli.run_times import union, without

RUN = "0000000a"
ZERO = 1000.0
TEXTS = ["MainThread", "app.py:1", "cuda:90", "matmul", "scale", "ptx"]


def ticks(seconds: float) -> int:
    return round(seconds / records.TICK)


def number(text: str) -> int:
    return TEXTS.index(text)


def cache() -> Path:
    return Path(os.environ["HEADSTART_CACHE_DIR"])


def written(
    *more: records.Record,
    run: str = RUN,
    pid: int = 1,
    began: float | None = None,
    ended: float | None = 100.0,
    **said: Any,
) -> Path:
    """The log of one process that began 100 s ago, or then."""
    head = records.Head(
        run=run,
        kind="api",
        program="/srv/app.py",
        pid=pid,
        parent=0,
        rank="",
        host=socket.gethostname(),
        began=time.time() - 100.0 if began is None else began,
        zero=ZERO,
        headstart="0.1.0",
        python="3.12",
        bundle="",
        record="",
        workers=4,
    )
    for name, value in said.items():
        setattr(head, name, value)
    texts = [records.Text(place, text) for place, text in enumerate(TEXTS)]
    ends = [] if ended is None else [records.Ended(ticks(ended), 0)]
    path = cache() / "runs" / run / f"{pid}-{pid:08x}.run"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(records.beginning() + records.frame([head, *texts, *more, *ends]))
    return path


def asked(kernel: int, at: float = 0.0, name: str = "matmul", digest: bytes = b"") -> records.Record:
    texts = (number(name), number("MainThread"), number("app.py:1"), number("cuda:90"))
    return records.Asked(kernel, ticks(at), *texts, digest or bytes([kernel]) * 16, "", False)


def compiled(kernel: int, began: float, ended: float, worker: int = 0, key: bytes = b"") -> records.Record:
    stages = [number("ptx"), ticks(ended - began)]
    key = key or bytes([kernel + 100]) * 16
    return records.Done(kernel, ticks(ended), 0, key, ticks(began), ticks(ended), worker, 0, stages)


def blocked(kernel: int, begun: float, ended: float | None) -> list[records.Record]:
    thread = number("MainThread")
    begins = records.Blocked(kernel, ticks(begun), thread)
    return [begins] if ended is None else [begins, records.Unblocked(kernel, ticks(ended), thread)]


def shown() -> dict[str, Any]:
    found = runs.open_run(cache(), RUN)
    assert found is not None
    return report_data(cache(), found)


def stats() -> dict[str, Any]:
    said: dict[str, Any] = json.loads(CliRunner().invoke(main, ["stats", "--json"]).stdout)
    return said


def test_what_is_compiled_side_by_side_while_the_program_waits_is_not_hidden() -> None:
    made = [record for worker in range(4) for record in (asked(worker), compiled(worker, 0.0, 10.0, worker))]
    written(*made, *blocked(0, 0.0, 10.0))
    figures = shown()["figures"]
    assert (figures["compile_s"], figures["waited_s"], figures["hidden_s"]) == (40.0, 10.0, 0.0)
    assert shown()["sentence"] == (
        "4 kernels, 4 compiled in 40.0 s of compiling (10.0 s in parallel), 10.0 s waited for, 0 ms hidden."
    )


def test_what_is_compiled_while_nobody_waits_is_hidden_once() -> None:
    made = [record for worker in range(2) for record in (asked(worker), compiled(worker, 0.0, 10.0, worker))]
    # A wait for something else is none for these, once they are there.
    written(*made, asked(2), *blocked(0, 2.0, 3.0), *blocked(1, 8.0, 12.0), *blocked(2, 50.0, 60.0))
    assert shown()["figures"]["hidden_s"] == pytest.approx(7.0)


def test_a_compile_that_answers_several_processes_is_counted_once() -> None:
    for rank in range(8):
        # Each counts from a beginning of its own: the compile begins at the same time.
        late = rank * 0.12345
        begun = 5.0 - late
        answered = compiled(0, begun, begun + 10.0, 1, key=b"k" * 16)
        written(asked(0), answered, *blocked(0, begun, begun + 10.0), pid=rank + 1, zero=ZERO + late, rank=str(rank))
    data = shown()
    assert data["sentence"] == (
        "8 kernels, 1 compiled in 10.0 s of compiling, 7 answered by the same compiles, 10.0 s waited for, 0 ms hidden."
    )
    assert data["stages"] == {"ptx": 10.0}
    assert sum(lane["kind"] == "worker" for lane in data["lanes"]) == 1
    assert max(level for _, level in data["queue"]["running"]) == 1
    assert stats()["compile_s"] == pytest.approx(10.0)
    assert stats()["stages"]["ptx"] == pytest.approx(10.0)


def test_a_rank_that_waits_hides_nothing_for_one_that_does_not() -> None:
    answered = compiled(0, 0.0, 10.0, 1, key=b"k" * 16)
    written(asked(0), answered, *blocked(0, 0.0, 10.0), pid=1)
    written(asked(0), answered, pid=2)
    assert shown()["figures"]["hidden_s"] == 0.0


def test_a_wait_that_never_ended_counts_as_long_as_is_known() -> None:
    path = written(asked(0), records.Began(0, ticks(1.0), 0), *blocked(0, 2.0, None), ended=None)
    os.utime(path, (time.time(), time.time() - 40.0))
    data = shown()
    (stall,) = data["stalls"]
    assert stall["seconds"] == pytest.approx(58.0, abs=2.0)
    assert data["kernels"][0]["waited_s"] == pytest.approx(58.0, abs=2.0)
    assert data["figures"]["waited_s"] == pytest.approx(58.0, abs=2.0)
    assert stats()["waited_s"] == pytest.approx(58.0, abs=2.0)
    assert stall["advice"].startswith("There was no answer before the process was killed; a worker was at it for 59")


def reason(run: str, *more: str) -> str:
    done = CliRunner().invoke(main, ["why", "--run", run, "--json", *more])
    assert done.exit_code == 0, done.output
    (said,) = json.loads(done.stdout.splitlines()[0])["reasons"]
    return str(said)


def entry(key: bytes, at: float) -> None:
    path = cache() / "store" / "v2" / f"{key.hex()[:2]}" / f"{key.hex() * 2}.hse"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(packed(key.hex() * 2, "cd" * 32, components=[("name", "matmul")]))
    os.utime(path, (at, at))


FIRST = "first seen: nothing before this run has a kernel named matmul"


def test_before_is_before_the_kernel_was_asked_for_and_not_before_the_run() -> None:
    now, key = time.time(), b"k" * 16
    # A server that began earlier has it from the cache, after this run has compiled it.
    hit = records.Done(0, ticks(950.0), 1, key)
    written(asked(0, 940.0, digest=key), hit, run="0000000b", began=now - 1000.0, ended=999.0)
    written(asked(0, digest=key), compiled(0, 0.0, 1.0, key=key))
    assert reason(RUN) == FIRST
    written(asked(0, 95.0, digest=key), compiled(0, 95.0, 96.0, key=key))
    assert reason(RUN).startswith("the same was there in run 0000000b, and is in the cache no more")


def test_the_cache_is_not_said_to_lack_what_it_has() -> None:
    now, key = time.time(), b"k" * 16
    written(asked(0, digest=key), compiled(0, 0.0, 1.0, key=key), run="0000000b", began=now - 1000.0)
    written(asked(0, digest=key), ended=None)
    entry(key, now - 500.0)
    assert "and is in the cache: no answer had come" in reason(RUN)
    written(asked(0, digest=key), compiled(0, 0.0, 1.0, key=key))
    assert "and is in the cache, which was not to be used" in reason(RUN)
    entry(key, now)
    assert "and is in the cache no more" in reason(RUN)


def test_what_has_no_digest_is_known_by_its_key() -> None:
    asks, made = asked(0), compiled(0, 0.0, 1.0, key=b"k" * 16)
    asks.digest = b""  # type: ignore[union-attr]
    written(asks, made, run="0000000b", began=time.time() - 1000.0)
    written(asks, made)
    assert reason(RUN).startswith("the same was there in run 0000000b")


def test_a_name_that_the_run_does_not_have_is_said_to_be_none() -> None:
    written(asked(0), compiled(0, 0.0, 1.0))
    done = CliRunner().invoke(main, ["why", "--run", RUN, "matmu"])
    assert (done.exit_code, done.stderr) == (1, f"headstart: run {RUN} asked for no kernel named matmu\n")


def test_kernels_are_compared_with_each_other_kernel_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    facts = Library.facts

    def noted(self: Library, kernel: runs.Kernel, head: records.Head) -> Facts | None:
        looked.append(kernel.name)
        return facts(self, kernel, head)

    monkeypatch.setattr(Library, "facts", noted)
    key = b"k" * 16
    entry(b"n" * 16, time.time())
    for number in range(10):
        hit = records.Done(0, ticks(1.0), 1, key)
        written(asked(0, digest=key), hit, run=f"{number + 16:08x}", began=time.time() - 1000.0 - number)
    written(asked(0, digest=b"n" * 16), compiled(0, 0.0, 1.0, key=b"n" * 16))
    assert reason(RUN) == FIRST
    assert len(looked) == 2


def test_a_kernel_whose_key_is_not_known_was_spared_nobody_knows_what() -> None:
    bundled = [each for kernel in range(1, 6) for each in (asked(kernel), records.Done(kernel, ticks(1.0), 2, b""))]
    made = compiled(0, 0.0, 10.0)
    made.key = b""  # type: ignore[union-attr]
    written(asked(0), made, *bundled)
    assert stats()["saved_s"] == 0.0


def test_a_log_with_names_that_are_none_costs_no_page() -> None:
    (cache() / "failed" / "x").mkdir(parents=True)
    (cache() / "failed" / f"evil-{'00' * 6}.py").write_text("")
    TEXTS.append("x/../evil")
    try:
        failed = records.Failed(0, ticks(1.0), number("ptx"), number("ptx"), "no")
        written(asked(0, name="x/../evil", digest=bytes(16)), failed, bundle="a\0b", record="a\0b")
        assert shown()["kernels"][0]["commands"] == []
    finally:
        TEXTS.pop()


def test_a_run_in_the_last_year_of_all_costs_no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        written(asked(0), began=253402300799.0, run="0000000b")
        written(asked(0))
        done = CliRunner().invoke(main, ["report", "--list"])
        assert (done.exit_code, done.stdout.count("\n")) == (0, 1)
    finally:
        monkeypatch.undo()
        time.tzset()


def test_what_is_read_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(*(asked(number % 200) for number in range(1000)))
    monkeypatch.setattr(runs, "_MAX_RECORDS", 500)
    found = runs.open_run(cache(), RUN)
    assert found is not None
    assert "more than 500 records" in found.processes[0].damage
    monkeypatch.setattr(runs, "_MAX_RUN_BYTES", path.stat().st_size + 5)
    written(asked(0), pid=2)
    found = runs.open_run(cache(), RUN)
    assert found is not None
    assert len(found.processes) == 1
    monkeypatch.undo()
    many = b"\xdd" + (2_000_000).to_bytes(4, "big") + b"\x92\x0d\x00" * 2_000_000
    frame = records._FRAME.pack(len(many), zlib.crc32(many)) + many
    with pytest.raises(records.Damage, match="too many records"):
        list(records.records_of(records.beginning() + frame))


def test_spans_are_taken_from_spans() -> None:
    assert union([(3.0, 4.0), (0.0, 1.0), (1.0, 2.0), (0.5, 0.6)]) == [(0.0, 2.0), (3.0, 4.0)]
    spans, others = [(0.0, 2.0), (3.0, 8.0)], [(-1.0, 0.5), (1.0, 4.0), (5.0, 6.0), (9.0, 10.0)]
    assert list(without(spans, others)) == [(0.5, 1.0), (4.0, 5.0), (6.0, 8.0)]
