"""What nobody meant to give: pipes for files, folders for names, a folder that is gone, closed streams, odd bytes."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

import headstart
from conftest import PATIENCE, Client, client_environment
from fuzz.targets import ENTRY, MANIFEST, REQUESTS
from headstart.adapters.journal import left_behind
from headstart.adapters.recording import Recorder
from headstart.artifacts.bundle import Bundle, BundleWriter
from headstart.artifacts.entry import Entry
from headstart.artifacts.manifest import Manifest, is_manifest
from headstart.artifacts.specialization import Specialization
from headstart.cli import main, printable_lines
from headstart.errors import DamagedError, UsageError
from headstart.model.environment import fingerprint
from headstart.system.files import BUNDLE, check_replaceable
from headstart.system.settings import MAX_WORKERS, Settings
from kernels import HEAD

PLAN = f"""
from headstart import KernelSpec
SOURCE = '''{HEAD}
@triton.jit
def k(x):
    tl.store(x, 1)
'''
def kernels():
    yield KernelSpec(SOURCE, name="k", signature={{"x": "*fp32"}}, target="cuda:90")
"""
NASTY = "\x1b]0;title\x07\x1b[31m\x9b31m\u202e\r"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    with BundleWriter("app.bundle") as writer:
        writer.add(Entry.from_bytes(ENTRY))
    Path("app.manifest").write_bytes(MANIFEST.encode())
    Path("plan.py").write_text(PLAN)
    os.mkfifo("pipe")
    return tmp_path


def command(*arguments: str, **how: Any) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, **client_environment()}
    return subprocess.run(
        [sys.executable, "-m", "headstart", *arguments], env=environment, timeout=PATIENCE, check=False, **how
    )


# A pipe has no writer, and whoever opens it waits for one.


@pytest.mark.timeout(PATIENCE)
@pytest.mark.parametrize(
    "arguments",
    [
        ("bundle", "list", "pipe"),
        ("bundle", "verify", "pipe"),
        ("bundle", "extract", "pipe"),
        ("bundle", "merge", "new.bundle", "pipe"),
        ("manifest", "show", "pipe"),
        ("manifest", "diff", "app.manifest", "pipe"),
        ("manifest", "merge", "-o", "new.manifest", "pipe"),
        ("bundle", "list", "/dev/zero"),
        ("manifest", "show", "/dev/zero"),
    ],
)
def test_a_pipe_or_a_device_is_no_file_to_wait_for(here: Path, arguments: tuple[str, ...]) -> None:
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2, done.output
    assert "it is not a regular file" in done.output


@pytest.mark.timeout(PATIENCE)
def test_no_reader_of_the_library_waits_for_a_pipe(here: Path) -> None:
    for reader in (Bundle.open, Manifest.open):
        with pytest.raises(DamagedError, match="not a regular file"):
            reader("pipe")
    assert not is_manifest("pipe")
    os.mkfifo(".record.manifest.1-2.journal")
    os.mkfifo(".record.manifest.1-2.part")
    assert left_behind(here / "record.manifest") == []


def test_a_folder_that_is_read_is_an_error_of_the_system(here: Path) -> None:
    with pytest.raises(IsADirectoryError):
        Manifest.open(here)


# Names of what is written


@pytest.mark.parametrize("name", ["", "new/", "new/.", "new//"])
@pytest.mark.parametrize(
    "arguments",
    [
        ("build", "plan.py", "-o", "{}"),
        ("bundle", "merge", "{}", "app.bundle"),
        ("manifest", "merge", "-o", "{}", "app.manifest"),
        ("run", "--bundle", "{}", "plan.py"),
        ("run", "--record", "{}", "plan.py"),
    ],
)
def test_a_name_that_only_a_folder_can_have_is_refused_before_any_work(
    here: Path, arguments: tuple[str, ...], name: str
) -> None:
    before = sorted(os.listdir(here))
    done = CliRunner().invoke(main, [each.format(name) for each in arguments])
    assert done.exit_code == 2, done.output
    assert "is no name of a file" in done.output
    assert sorted(os.listdir(here)) == before


def test_a_name_that_is_too_long_is_refused_and_one_that_just_fits_is_written(here: Path) -> None:
    with pytest.raises(UsageError, match="File name too long"):
        check_replaceable("x" * 256, BUNDLE)
    done = CliRunner().invoke(main, ["bundle", "merge", "x" * 256, "app.bundle"])
    assert done.exit_code == 2, done.output
    for name in ("x" * 255, "é" * 127):
        done = CliRunner().invoke(main, ["bundle", "merge", name, "app.bundle"])
        assert done.exit_code == 0, done.output
        assert not Bundle.open(name).verify()


def test_a_hard_link_s_other_name_keeps_what_it_had(here: Path) -> None:
    os.link("app.bundle", "other.bundle")
    before = Path("app.bundle").read_bytes()
    with BundleWriter("other.bundle"):
        pass  # none in it
    assert Path("app.bundle").read_bytes() == before
    assert len(Bundle.open("other.bundle")) == 0


# What a manifest or a bundle says is shown, and obeyed by no terminal


def obeyed(text: str) -> list[str]:
    return [each for each in text if not (each.isprintable() or each in "\n\t")]


def hostile() -> Iterator[Manifest]:
    (request, *_), origin = REQUESTS, msgspec.structs.replace(MANIFEST.origins[0], program=NASTY, triton_version=NASTY)
    for field, value in {
        "target": f"cuda:90{NASTY}",
        "filename": NASTY,
        "options": {NASTY: 1},
        "constants": {NASTY: NASTY},
        "signature": {f"x{NASTY}": f"*fp32{NASTY}"},
        "environment": {f"TRITON_DEBUG{NASTY}": NASTY},
    }.items():
        with contextlib.suppress(ValueError, TypeError):
            changed = msgspec.structs.replace(request, **{field: value})
            yield Manifest.of([Specialization(request=changed, digest=changed.digest(), asked_by=NASTY)], (), [origin])


def test_what_a_manifest_says_moves_no_cursor(here: Path) -> None:
    manifests = list(hostile())
    assert len(manifests) >= 4
    for manifest in manifests:
        manifest.save("hostile.manifest")
        for arguments in (
            ["manifest", "show", "hostile.manifest"],
            ["manifest", "show", "--json", "hostile.manifest"],
            ["manifest", "diff", "hostile.manifest", "app.manifest"],
        ):
            done = CliRunner().invoke(main, arguments)
            assert done.exit_code == 0, done.output
            assert obeyed(done.output) == []
    (told,) = CliRunner().invoke(main, ["manifest", "show", "--json", "hostile.manifest"]).stdout.splitlines()
    assert json.loads(told)["asked_by"] == NASTY  # escaped, and nothing lost


@pytest.mark.triton
def test_what_build_says_of_a_manifest_moves_no_cursor(here: Path) -> None:
    *_, manifest = hostile()
    manifest.save("hostile.manifest")
    done = command("build", "hostile.manifest", capture_output=True)
    output = (done.stdout + done.stderr).decode()
    assert done.returncode == 1, output
    assert "TRITON_DEBUG\\x1b]0;title" in output
    assert obeyed(output) == []


def test_every_control_character_of_a_message_is_escaped_and_lines_stay_lines() -> None:
    text = "".join(map(chr, range(0x300))) + "\u202e\u2028\ud800"
    shown = printable_lines(text)
    assert obeyed(shown) == []
    assert shown.count("\n") == 1
    assert "\\x1b" in shown
    assert "é" in shown


# Where a program is started


@pytest.mark.triton
@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_commands_and_programs_do_without_the_streams_that_are_closed(here: Path, closed: tuple[int, ...]) -> None:
    def close() -> None:
        for fd in closed:
            os.close(fd)

    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "preexec_fn": close}
    assert command("build", "plan.py", "-o", "new.bundle", **quiet).returncode == 0
    assert not Bundle.open("new.bundle").verify()  # and none of its bytes are what somebody printed
    Path("program.py").write_text("import os, triton\nprint('said')\nopen('ran', 'w').close()\n")
    assert command("run", "-v", "program.py", **quiet).returncode == 0
    assert Path("ran").exists()


def in_a_folder_that_is_gone(here: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    gone = here / "gone"
    gone.mkdir()
    script = 'rmdir ../gone && exec "$0" "$@"'
    return subprocess.run(
        ["/bin/sh", "-c", script, sys.executable, *arguments],
        cwd=gone,
        env={**os.environ, **client_environment()},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("build", "{here}/plan.py"), 2, "current folder has been removed"),
        (("build", "plan"), 2, "current folder has been removed"),
        (("bundle", "merge", "new.bundle", "{here}/app.bundle"), 2, "current folder has been removed"),
        (("run", "--record", "record", "{here}/plan.py"), 2, "current folder has been removed"),
        (("run", "-m", "no.module"), 1, "No module named"),
        (("bundle", "merge", "{here}/new.bundle", "{here}/app.bundle"), 0, ""),
        (("run", "{here}/plan.py"), 0, ""),
    ],
)
def test_a_current_folder_that_is_gone_is_told_where_it_is_needed(
    here: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    given = [each.format(here=here) for each in arguments]
    done = in_a_folder_that_is_gone(here, "-m", "headstart", *given)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.triton
def test_a_program_whose_name_is_no_text_is_compiled_for_and_recorded(here: Path) -> None:
    program = os.fsdecode(b"pro\xff.py")
    Path(program).write_text(
        "import headstart, plan\n"
        "with headstart.AsyncCompile('cuda:90', workers=1) as compile:\n"
        "    compile.triton('k', plan.SOURCE, signature={'x': '*fp32'}).result()\n"
    )
    done = command("run", program, capture_output=True)
    assert done.returncode == 0, done.stderr
    recorder = Recorder("of_bytes.manifest", program=str(here / program))
    recorder.note(REQUESTS[0], REQUESTS[0].digest())
    recorder.close()
    assert Manifest.open("of_bytes.manifest").origins[0].program == f"{here}/pro\\xff.py"


def test_a_variable_that_is_no_text_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_LIBDEVICE_PATH", os.fsdecode(b"/\xff"))
    with pytest.raises(UsageError, match=r"TRITON_LIBDEVICE_PATH is set to .* which is no text"):
        fingerprint()


@pytest.mark.triton
@pytest.mark.parametrize("session", ["/nonexistent/run/user/1000", "run", "/tmp/" + "x" * 200])
def test_a_session_s_folder_that_is_not_there_stops_no_program(
    session: str, start_client: Callable[..., Client]
) -> None:
    client = start_client(
        """
        import headstart, kernels
        from headstart.system.folders import runtime_dir
        print(runtime_dir())
        with headstart.AsyncCompile("cuda:90", workers=1) as compile:
            source = kernels.HEAD + "@triton.jit\\ndef k(x):\\n    tl.store(x, 1)\\n"
            print(compile.triton("k", source, signature={"x": "*fp32"}).result().name)
        """,
        XDG_RUNTIME_DIR=session,
    )
    folder, kernel = client.finish().split()
    assert folder.startswith(("/dev/shm/", "/tmp/"))
    assert kernel == "k"


# How many


@pytest.mark.parametrize("many", [str(MAX_WORKERS + 1), "9" * 20, "9" * 5000])
def test_more_workers_than_can_be_meant_are_refused(many: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_WORKERS", many)
    with pytest.raises(UsageError, match=f"HEADSTART_WORKERS: expected a number from 1 to {MAX_WORKERS}"):
        Settings.load()
    with pytest.raises(UsageError, match=f"workers: expected a number from 1 to {MAX_WORKERS}"):
        headstart.AsyncCompile("cuda:90", workers=MAX_WORKERS + 1)
    monkeypatch.setenv("HEADSTART_WORKERS", str(MAX_WORKERS))
    assert Settings.load().workers == MAX_WORKERS


@pytest.mark.triton
def test_a_file_of_the_program_s_that_is_called_like_one_of_the_standard_library_stops_no_service(here: Path) -> None:
    for name in ("resource", "shelve"):
        (here / f"{name}.py").write_text("raise RuntimeError('it is the program’s own')")
    (here / "program.py").write_text(
        f"""
import headstart
from kernels import pointwise
with headstart.AsyncCompile(target="cuda:90") as compiler:
    print(len(compiler.triton(**pointwise()).result({PATIENCE}).asm["cubin"]) > 0)
    # What a source imports is looked for where the program would look for it.
    own = pointwise(before="import shelve")
    print("own" in str(compiler.triton(**own).exception({PATIENCE})))
"""
    )
    environment = {**os.environ, **client_environment()}
    program = [sys.executable, "program.py"]
    done = subprocess.run(program, env=environment, timeout=2 * PATIENCE, capture_output=True, text=True)
    assert done.stdout.split() == ["True", "True"], done.stderr
