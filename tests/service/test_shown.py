"""What people see of services: `headstart status` and `serve`, who is told of `resume`, and names of processes."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

import headstart
from conftest import PATIENCE, Client, client_environment, wait_until
from headstart.cli import main
from headstart.client import control, sharing
from headstart.service.runtime import Owned, owners
from headstart.system import machine, titles
from headstart.system.folders import runtime_dir
from headstart.system.titles import set_title
from kernels import pointwise

Open = Callable[..., headstart.AsyncCompile]
Start = Callable[..., Client]

HEADSTART = [sys.executable, "-c", "from headstart.cli import main; main()"]

WAITING = """
    import sys
    import headstart
    from kernels import pointwise
    with headstart.AsyncCompile("cuda:90", workers=1) as compiler:
        print(compiler.triton(**pointwise(name="scale")).result().name)
"""


def status(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["status", *arguments])
    return result.exit_code, result.stdout


# Private services


@pytest.mark.triton
def test_a_private_service_is_shown_with_whose_it_is(open_compile: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_SERVICE", "private")
    assert status("--json") == (0, '{"services":[],"private":[]}\n')
    compiler = open_compile()
    compiler.triton(**pointwise(name="scale")).result()
    (owned,) = [owned for owned, _ in owners()]
    assert owned.client == os.getpid()
    code, shown = status()
    assert code == 0
    assert f"private, process {owned.pid}, " in shown
    assert f": of process {os.getpid()}, " in shown
    (told,) = json.loads(status("--json")[1])["private"]
    assert (told["pid"], told["client"]) == (owned.pid, os.getpid())
    assert told["workers"] >= 1
    assert told["command"] == machine.command_of(os.getpid()) != ""
    compiler.close()
    wait_until(lambda: owners() == [])


def test_what_a_killed_service_left_is_no_service() -> None:
    folder = runtime_dir() / "service-dead"
    folder.mkdir(mode=0o700)
    (folder / "owner.json").write_text('{"pid": 1, "client": 1}', encoding="utf-8")
    assert owners() == []
    for nonsense in ("", "{", '{"pid": "x"}'):
        (folder / "owner.json").write_text(nonsense, encoding="utf-8")
        assert owners() == []
    (folder / "owner.json").unlink()
    folder.rmdir()
    assert Owned(1, 2) == Owned(pid=1, client=2)


# headstart serve, and resume


@pytest.mark.triton
@pytest.mark.parametrize("end", ["stop", "signal"])
def test_serve_says_where_it_listens_and_when_it_stops(end: str) -> None:
    environment = {**os.environ, **client_environment()}
    process = subprocess.Popen(
        [*HEADSTART, "serve", "--workers", "2"], env=environment, stderr=subprocess.PIPE, text=True
    )
    path = sharing.user_socket()
    try:
        assert process.stderr is not None
        assert process.stderr.readline() == (
            f"headstart: a compile service listens at {path} (process {process.pid}, up to 2 workers), until headstart "
            "stop or Ctrl-C\n"
        )
        wait_until(lambda: control.ask(path, "status"))
        if end == "stop":
            control.ask(path, "stop")
        else:
            process.send_signal(signal.SIGINT)
        by = "headstart stop" if end == "stop" else "a signal"
        _, rest = process.communicate(timeout=PATIENCE)
        assert rest == f"headstart: the compile service at {path} has stopped, by {by}\n"
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait(PATIENCE)


@pytest.mark.triton
def test_who_waits_at_a_quiesced_service_is_told_of_resume(
    start_client: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = subprocess.Popen([*HEADSTART, "serve"], env={**os.environ, **client_environment()})
    path = sharing.user_socket()
    try:
        wait_until(lambda: control.ask(path, "status"))
        control.ask(path, "quiesce")
        client = start_client(WAITING)
        assert client.process.stderr is not None
        said = client.process.stderr.readline().decode()
        assert "is quiesced" in said
        assert "headstart resume" in said
        control.ask(path, "resume")
        assert client.finish() == "scale\n"
    finally:
        process.terminate()
        process.wait(PATIENCE)


# Names of processes


def test_without_setproctitle_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "setproctitle", None)  # which has it raise ImportError
    monkeypatch.setattr(titles, "_setproctitle", functools.cache(titles._setproctitle.__wrapped__))
    command = Path("/proc/self/cmdline").read_bytes()
    set_title("worker 3")
    assert Path("/proc/self/cmdline").read_bytes() == command


@pytest.mark.triton
def test_processes_have_names_if_setproctitle_is_installed(
    open_compile: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, told = tmp_path / "modules", tmp_path / "titles"
    folder.mkdir()
    (folder / "setproctitle.py").write_text(
        "import os\n"
        "def setproctitle(title):\n"
        f"    fd = os.open({str(told)!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)\n"
        "    os.write(fd, (title + '\\n').encode())\n"
        "    os.close(fd)\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("HEADSTART_SERVICE", "private")
    compiler = open_compile(workers=1)
    compiler.triton(**pointwise(name="scale")).result()
    found = told.read_text(encoding="utf-8").splitlines()
    assert f"headstart: service of {os.getpid()}" in found
    assert any(title.startswith("headstart: zygote, Triton 3.") for title in found)
    worker = next(title for title in found if title.startswith("headstart: worker "))
    assert f"{worker} scale" in found
