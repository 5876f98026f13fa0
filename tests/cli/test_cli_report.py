"""`headstart report`: what it writes and prints, without a browser."""

from __future__ import annotations

import json
import math
import os
import re
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from entries import packed
from headstart.artifacts import runs
from headstart.cli import main, report_kernels, report_page
from headstart.cli.report_data import report_data
from headstart.cli.report_kernels import Page
from headstart.cli.run_facts import Library
from headstart.client import about
from headstart.client.run_log import RunLog
from headstart.errors import CompileError
from kernels import matmul, pointwise, raises
from run_logs import ask, result

ASSETS = Path(report_page.__file__).parent / "assets"


def cache() -> Path:
    return Path(os.environ["HEADSTART_CACHE_DIR"])


def run(*arguments: str) -> Result:
    done = CliRunner().invoke(main, arguments)
    assert "Traceback" not in done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BROWSER", raising=False)
    return tmp_path


def log_of(name: str = "0000000a", **said: str) -> RunLog:
    about.describe(about.About(run=name, program="/srv/app.py", **said))
    log = RunLog(cache(), 100, 2)
    ask(log, matmul(num_warps=8), result())
    ask(log, pointwise(), result(cached=True))
    ask(log, raises(), CompileError("</script><b>", kernel="raises", target="cuda:90", options={}, stage="ttir"))
    ask(log, pointwise(9.0))
    return log


def test_it_writes_one_page_and_says_what_was_gained(here: Path) -> None:
    log_of().close()
    done = run("report")
    assert done.exit_code == 0, done.output
    sentence, path = done.stdout.splitlines()
    assert re.fullmatch(
        r"4 kernels, 1 compiled in 1\.5 s of compiling, 1 there already, 1 failed, 1 without an answer, 0 ms waited "
        r"for, 1\.5 s hidden\.",
        sentence,
    )
    assert path == "headstart-report.html"
    text = (here / path).read_text()
    assert "</script><b>" not in text
    assert re.findall(r"@[A-Z]+@", text) == []
    assert re.findall(r"(?:src|href|action)\s*=\s*[\"']?https?:", text) == []
    assert os.listdir(here) == [path]


def test_a_page_that_nobody_named_is_for_this_user_and_follows_no_link(here: Path) -> None:
    log_of().close()
    assert run("report").exit_code == 0
    page = here / "headstart-report.html"
    assert page.stat().st_mode & 0o777 == 0o600
    page.unlink()
    page.symlink_to(here / "anywhere.html")
    done = run("report")
    assert done.exit_code == 2
    assert "is a symbolic link" in done.stderr
    assert not (here / "anywhere.html").exists()


@pytest.mark.parametrize("more", [["--run", "0000000a"], ["--perfetto", "t.json"], ["-o", "a.html"], ["--open"]])
def test_a_list_is_nothing_but_a_list(here: Path, more: list[str]) -> None:
    log_of().close()
    done = run("report", "--list", *more)
    assert done.exit_code == 2
    assert "--list" in done.stderr
    assert os.listdir(here) == []


@pytest.mark.parametrize("option", ["-o", "--perfetto"])
def test_a_device_is_no_place_for_a_page(option: str) -> None:
    log_of().close()
    done = run("report", option, "/dev/null")
    assert done.exit_code == 2
    assert "/dev/null is not a regular file" in done.stderr
    reading, writing = os.pipe()
    try:
        done = run("report", option, f"/proc/self/fd/{writing}")
    finally:
        os.close(reading)
        os.close(writing)
    assert done.exit_code == 2
    assert "is not a regular file" in done.stderr


def test_a_page_replaces_a_page_and_nobody_else_s_file(here: Path) -> None:
    log_of().close()
    assert run("report", "-o", "a.html").exit_code == 0
    assert run("report", "-o", "a.html").exit_code == 0
    (here / "notes.html").write_text("<!DOCTYPE html>mine")
    done = run("report", "-o", "notes.html")
    assert done.exit_code == 2
    assert (here / "notes.html").read_text() == "<!DOCTYPE html>mine"
    (here / "plan.json").write_text("{}")
    assert run("report", "--perfetto", "plan.json").exit_code == 2
    assert run("report", "-o", "missing/a.html").exit_code == 1


def test_what_it_says_as_json_is_what_the_page_has(here: Path) -> None:
    log_of().close()
    done = run("report", "--json")
    said = json.loads(done.stdout)
    assert done.stdout.isprintable() or done.stdout.count("\n") == 1
    assert os.listdir(here) == []
    assert [kernel["name"] for kernel in said["kernels"]] == ["matmul", "pointwise", "raises", "pointwise"]
    assert [kernel["origin"] for kernel in said["kernels"]] == ["worker", "store", "failed", "pending"]
    assert said["run"]["program"] == "/srv/app.py"
    assert dict(said["stages"]).keys() == {"front end", "ttgir", "llir", "ptx", "assembler"} | (
        {"other"} & said["stages"].keys()
    )
    run("report")
    (embedded,) = re.findall(r'id="data">(.*?)</script>', (here / "headstart-report.html").read_text(), re.S)
    assert json.loads(embedded) == said


def test_a_trace_has_what_perfetto_needs(here: Path) -> None:
    log_of().close()
    done = run("report", "--perfetto", "trace.json")
    assert done.stdout == "trace.json: open it at ui.perfetto.dev\n"
    assert run("report", "--perfetto", "trace.json").exit_code == 0
    trace = json.loads((here / "trace.json").read_text())
    events = trace["traceEvents"]
    assert {event["ph"] for event in events} == {"M", "X", "i", "C"}
    for event in events:
        assert isinstance(event["pid"], int)
        assert event["ph"] == "M" or event["ts"] >= -2e6
        assert event["ph"] != "X" or event["dur"] >= 0
    names = {event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert {"worker 1", "MainThread"} <= names
    bars = [event for event in events if event["ph"] == "X" and event["name"].startswith("matmul")]
    assert {bar["cat"] for bar in bars} >= {"front end", "llir", "assembler"}


def test_runs_are_listed_the_latest_first_and_any_can_be_shown(here: Path) -> None:
    log_of("0000000a").close()
    living = log_of("0000000b", kind="run")
    living._write(10.0)
    os.utime(next((cache() / "runs" / "0000000a").iterdir()), (1, 1))
    first, second = run("report", "--list").stdout.splitlines()
    assert first.startswith("0000000b  ")
    assert first.endswith("  run        4 kernels, 1 compiled  app.py  running")
    assert second.startswith("0000000a  ")
    living.close()
    listed = [json.loads(line) for line in run("report", "--list", "--json").stdout.splitlines()]
    assert [each["run"] for each in listed] == ["0000000b", "0000000a"]
    assert run("report", "--run", "0000000a").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 1, "there is no run yet"),
        (["--run", "0000ffff"], 2, "there is no run 0000ffff"),
        (["--run", "../../etc"], 2, "'../../etc' is no run"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(arguments: list[str], code: int, said: str) -> None:
    done = run("report", *arguments)
    assert done.exit_code == code
    assert said in done.stderr


def test_a_stall_is_told_with_what_would_have_hidden_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_kernels, "_AT_ONCE", 10.0)  # seconds: a busy machine is no fault
    about.describe(about.About(run="0000000a"))
    log = RunLog(cache(), 100, 2)
    kickoff = ask(log, matmul())
    with kickoff.log.blocked():  # type: ignore[union-attr]
        kickoff.began(kickoff.kicked_off + 0.0001, 1)
        kickoff.answer.set_result(result())
    log.close()
    found = runs.open_run(cache(), "0000000a")
    assert found is not None
    (stall,) = report_data(cache(), found)["stalls"]
    assert stall["advice"] == (
        "It was asked for when it was needed, and its compile takes 1.5 s: a record kicks it off at the start of the "
        "program, a bundle has it ready."
    )


def test_ranks_are_on_one_clock() -> None:
    page = Page(Library(cache()))
    about.describe(about.About(run="0000000a"))
    for offset in (0.0, 2.5):
        log = RunLog(cache(), 100, 2)
        ask(log, pointwise(), result())
        log.close()
        process = runs.open_run(cache(), "0000000a").processes[-1]  # type: ignore[union-attr]
        page.add(process, offset)
    first, second = page.kernels
    assert second["asked"] - first["asked"] == pytest.approx(2.5, abs=0.5)
    assert len({lane["label"] for lane in page.lanes}) == len(page.lanes)


def test_figures_that_are_none_cost_no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    log_of().close()
    key = "ab" * 32
    place = cache() / "store" / "v2" / "ab" / f"{key}.hse"
    place.parent.mkdir(parents=True)
    metadata = {"name": "matmul", "shared": math.nan}
    place.write_bytes(packed(key, "cd" * 32, metadata=metadata, compile_wall_s=math.inf, compile_cpu_s=1.0))
    assert run("report").exit_code == 0
    assert run("report", "--json", "--perfetto", "t.json").exit_code == 0
    kernels = json.loads(run("report", "--json").stdout)["kernels"]
    assert kernels[0]["shared"] is None
    assert kernels[1]["saved_s"] == 0.0


def test_nothing_in_embedded_data_can_end_its_element() -> None:
    data: Any = {"</script>": ["<!--", "]]>", "&amp;", "\u2028", "\ud800"]}
    text = report_page.embedded(data)
    assert not set(text) & set("<>&\u2028\u2029")
    assert json.loads(text) == data


def test_the_library_in_the_page_is_the_one_that_is_written_down() -> None:
    library = (ASSETS / "echarts.min.js").read_bytes()
    assert sha256(library).hexdigest() == report_page.ECHARTS_SHA256
    said = (ASSETS / "README.md").read_text()
    assert report_page.ECHARTS_SHA256 in said
    assert f"echarts` {report_page.ECHARTS}" in said
    assert f"{len(library):,} bytes" in said
    assert b"</script" not in library.lower()
    for licence in ("echarts.LICENSE", "echarts.LICENSE-d3", "echarts.NOTICE", "zrender.LICENSE"):
        assert (ASSETS / licence).stat().st_size > 100
