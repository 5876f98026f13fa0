"""A bundle that has to have everything, and what is told of what came from where."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import PATIENCE, client_environment, wait_until

DRY = ("--dry-run", "--target", "cuda:90")

IMPORTS = "import os, signal, sys, time\n"
KERNEL = """
import triton
import triton.language as tl
from triton.runtime.jit import MockTensor

@triton.jit
def scale(x, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(x + i, tl.load(x + i, mask=i < n) * 2.0, mask=i < n)

def warm_up(*blocks, **options):
    for block in blocks:
        scale.warmup(MockTensor(tl.float32), 100, BLOCK=block, grid=(1,), **options)
"""


class Programs:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bundle = folder / "app.bundle"

    def start(self, text: str, *options: object, **variables: str) -> subprocess.Popen[str]:
        app = self.folder / "app.py"
        app.write_text(IMPORTS + (KERNEL if "warm_up" in text else "") + textwrap.dedent(text))
        for cache in ("TRITON_CACHE_DIR", "HEADSTART_CACHE_DIR"):  # another machine
            shutil.rmtree(os.environ[cache], ignore_errors=True)
        command = [sys.executable, "-m", "headstart", "run", "--no-record", "--bundle", self.bundle, *options, app]
        environment = {**os.environ, **client_environment(), "TRITON_DEFAULT_FP_FUSION": "1", **variables}
        pipe = subprocess.PIPE
        words = list(map(str, command))
        return subprocess.Popen(words, env=environment, cwd=self.folder, stdout=pipe, stderr=pipe, text=True)

    def run(self, text: str, *options: object, **variables: str) -> tuple[int, str]:
        """Exit code, and what was said on stderr."""
        process = self.start(text, *options, **variables)
        try:
            _, errors = process.communicate(timeout=PATIENCE * 2)
        finally:
            process.kill()
        return process.returncode, errors


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    return Programs(tmp_path)


@pytest.fixture
def bundled(programs: Programs) -> Programs:
    """With a bundle of one kernel."""
    assert programs.run("warm_up(32)", *DRY)[0] == 0
    return programs


@pytest.mark.triton
def test_a_program_whose_kernels_all_come_from_the_bundle_succeeds_and_nothing_is_said(bundled: Programs) -> None:
    assert bundled.run("warm_up(32)", "--require-bundle", *DRY) == (0, "")


@pytest.mark.triton
def test_what_was_compiled_all_the_same_is_named_with_what_the_bundle_has_instead(bundled: Programs) -> None:
    code, errors = bundled.run("warm_up(32, num_warps=8)", "--require-bundle", *DRY)
    assert code == 3
    assert errors.splitlines() == [
        "headstart: not everything came from app.bundle:",
        "  scale: the bundle has another one of this name: options.num_warps was not given, now 8",
    ]


@pytest.mark.triton
def test_a_kernel_that_the_programs_process_compiled_counts(bundled: Programs) -> None:
    code, errors = bundled.run("warm_up(32)", "--require-bundle", *DRY, TRITON_ALWAYS_COMPILE="1")
    assert code == 3
    assert "Triton's kernels: headstart leaves them alone: TRITON_ALWAYS_COMPILE" in errors


@pytest.mark.triton
def test_what_children_compiled_counts(bundled: Programs) -> None:
    code, errors = bundled.run(
        """
        import multiprocessing
        if __name__ == "__main__":
            child = multiprocessing.get_context("fork").Process(target=warm_up, args=(64,))
            child.start()
            child.join()
        """,
        "--require-bundle",
        *DRY,
    )
    assert code == 3
    assert "  scale: the bundle has another one of this name: constants.BLOCK was 32, now 64" in errors


@pytest.mark.triton
def test_a_bundle_that_is_damaged_has_nothing(bundled: Programs) -> None:
    bundled.bundle.write_bytes(bundled.bundle.read_bytes()[:-200])
    code, errors = bundled.run("warm_up(32)", "--require-bundle", *DRY)
    assert code == 3
    assert "  scale: the bundle could not be read: " in errors


@pytest.mark.triton
@pytest.mark.parametrize("end", ["os._exit(0)", "os.kill(os.getpid(), signal.SIGTERM)"])
def test_a_child_that_missed_something_and_did_not_live_to_say_so_counts(end: str, bundled: Programs) -> None:
    code, errors = bundled.run(
        f"""
        warm_up(32)
        child = os.fork()
        if child == 0:
            warm_up(64)
            {end}
        os.waitpid(child, 0)
        """,
        "--require-bundle",
        *DRY,
    )
    assert code == 3
    assert "1 process missed something in app.bundle, and ended without telling what" in errors


@pytest.mark.triton
def test_a_program_that_becomes_another_one_is_judged_by_both(bundled: Programs) -> None:
    code, _ = bundled.run(
        """
        if len(sys.argv) == 1:
            warm_up(64)
            os.execv(sys.executable, [sys.executable, __file__, "again"])
        """,
        "--require-bundle",
        *DRY,
    )
    assert code == 3


def test_a_program_that_leaves_without_its_end_cannot_be_judged(programs: Programs) -> None:
    programs.bundle.write_bytes(b"")
    code, errors = programs.run("os._exit(0)", "--require-bundle", *DRY)
    assert code == 3
    assert "the program ended without telling what it took from app.bundle" in errors


@pytest.mark.parametrize("ending", ["sys.exit(7)", "raise SystemExit(7)", "os._exit(7)"])
def test_a_program_that_fails_keeps_its_exit_code(ending: str, programs: Programs) -> None:
    programs.bundle.write_bytes(b"")
    assert programs.run(ending, "--require-bundle", *DRY)[0] == 7


def test_a_program_that_a_signal_ends_ends_the_command_so(programs: Programs) -> None:
    programs.bundle.write_bytes(b"")
    code, _ = programs.run("os.kill(os.getpid(), signal.SIGKILL)", "--require-bundle", *DRY)
    assert code == -signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_to_the_command_reach_the_program_once(number: int, programs: Programs) -> None:
    programs.bundle.write_bytes(b"")
    process = programs.start(
        f"""
        got = []
        signal.signal({int(number)}, lambda *_: got.append(1))
        open("ready", "w").close()
        while not got:
            time.sleep(0.01)
        time.sleep(0.2)
        sys.exit(10 + len(got))
        """,
        "--require-bundle",
        *DRY,
    )
    try:
        wait_until((programs.folder / "ready").exists)
        process.send_signal(number)
        assert process.wait(PATIENCE) == 11
    finally:
        process.kill()
        process.communicate()


def test_children_are_waited_for_where_their_signal_is_inherited_as_ignored(programs: Programs) -> None:
    programs.bundle.write_bytes(b"")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        process = programs.start("sys.exit(4)", "--require-bundle", *DRY)
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        assert process.wait(PATIENCE) == 4
    finally:
        process.kill()
        process.communicate()


def test_a_command_that_is_killed_takes_the_program_along(programs: Programs) -> None:
    programs.bundle.write_bytes(b"")
    process = programs.start("open('ready', 'w').write(str(os.getpid()))\ntime.sleep(60)", "--require-bundle", *DRY)
    ready = programs.folder / "ready"
    wait_until(lambda: ready.exists() and ready.read_text())
    program = int(ready.read_text())
    process.kill()
    process.communicate()
    wait_until(lambda: not Path(f"/proc/{program}").exists() or "Z" in Path(f"/proc/{program}/stat").read_text())


@pytest.mark.parametrize(
    ("options", "variables", "said"),
    [
        (["--require-bundle"], {}, "there is no"),
        (["--require-bundle"], {"HEADSTART": "off"}, "HEADSTART=off"),
    ],
)
def test_a_bundle_that_cannot_be_required_is_said_before_the_program_runs(
    options: list[str], variables: dict[str, str], said: str, programs: Programs
) -> None:
    code, errors = programs.run("print('it ran', file=sys.stderr)", *options, *DRY, **variables)
    assert code == 2
    assert said in errors
    assert "it ran" not in errors


def test_a_program_that_cannot_be_started_is_one_line(programs: Programs) -> None:
    programs.bundle.write_bytes(b"")
    command = [sys.executable, "-I", "-m", "headstart", "run", "--require-bundle", "--bundle", programs.bundle, "a.py"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.triton
def test_statistics_are_the_same_as_data_and_for_all_processes(bundled: Programs) -> None:
    file = bundled.folder / "stats.json"
    for judged in ([], ["--require-bundle"]):
        code, _ = bundled.run("warm_up(32, 64)", "--stats", file, *judged, *DRY)
        told: dict[str, Any] = json.loads(file.read_text())
        assert code == (3 if judged and told["compiled"] else 0)
        assert told["bundle"] == str(bundled.bundle)
        assert told["bundle_used"]
        assert told["kernels"] + told["compiled"] == 2
        assert len(told["missed"]) == told["compiled"]


def test_statistics_take_no_other_files_place(programs: Programs) -> None:
    file = programs.folder / "theirs.json"
    file.write_text('{"theirs": 1}')
    programs.bundle.write_bytes(b"")
    for place, words in (programs.bundle, "is to be another file"), (Path("/none/s.json"), "there is no folder"):
        code, errors = programs.run("print('it ran')", "--stats", place, *DRY)
        assert code == 2
        assert words in errors
    code, errors = programs.run("print('it ran')", "--stats", file, *DRY)
    assert code == 2
    assert "theirs.json is there already" in errors
    assert file.read_text() == '{"theirs": 1}'


@pytest.mark.triton
def test_a_program_can_ask_what_came_from_its_bundle(bundled: Programs) -> None:
    code, errors = bundled.run(
        """
        import headstart
        warm_up(32, 64)
        use = headstart.report()
        print(use.kernels, use.compiled, [each.name for each in use.missed], file=sys.stderr)
        headstart.disable()
        assert headstart.report() == use, headstart.report()
        """,
        *DRY,
    )
    assert (code, errors) == (0, "1 1 ['scale']\n")


@pytest.mark.triton
def test_one_line_on_a_terminal_says_what_a_recorded_run_compiled(
    programs: Programs, tmp_path: Path, run_on_terminal: Callable[..., str]
) -> None:
    app = tmp_path / "app.py"
    app.write_text(IMPORTS + KERNEL + "warm_up(32, 64)")
    said = run_on_terminal("run", *DRY, app)
    assert "headstart: 2 kernels: 2 compiled, 0 from headstart's cache" in said
    assert said.endswith(" (headstart report)\r\n")
    shutil.rmtree(os.environ["TRITON_CACHE_DIR"])
    assert "headstart: 2 kernels: 0 compiled, 2 from headstart's cache" in run_on_terminal("run", *DRY, app)
    shutil.rmtree(os.environ["TRITON_CACHE_DIR"])
    assert "2 kernels" not in run_on_terminal("run", "--quiet", *DRY, app)


@pytest.fixture
def run_on_terminal() -> Callable[..., str]:
    """Runs the command with a terminal for stderr; what it says there."""
    import pty

    def run(*arguments: object) -> str:
        ours, theirs = pty.openpty()
        environment = {**os.environ, **client_environment(), "TRITON_DEFAULT_FP_FUSION": "1"}
        command = [sys.executable, "-m", "headstart", *map(str, arguments)]
        try:
            subprocess.run(command, env=environment, stderr=theirs, check=True, timeout=PATIENCE * 2)
        finally:
            os.close(theirs)
        said = b""
        try:
            while chunk := os.read(ours, 65536):
                said += chunk
        except OSError:  # the other end is closed
            pass
        os.close(ours)
        return said.decode()

    return run
