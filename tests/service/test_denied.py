"""Machines that give less: no home, no /proc, refused system calls. It works, or one sentence says why not."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import PATIENCE, Client, client_environment
from headstart.errors import UsageError
from headstart.system import folders
from headstart.system.settings import Settings

Start = Callable[..., Client]


# No home


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user without HOME and without an entry in passwd. Returns the folder for temporary files."""

    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("HOME", "XDG_CACHE_HOME", "HEADSTART_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folders._cache_of_the_homeless.cache_clear()
    return tmp_path


def test_whoever_has_no_home_has_a_private_cache_folder_and_is_told_so(
    homeless: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = folders.cache_dir()
    assert found == folders.cache_dir() == homeless / f"headstart-cache-{os.getuid()}"
    assert stat.S_IMODE(found.stat().st_mode) == 0o700
    (said,) = caplog.messages
    assert "has no home folder" in said
    assert f"kernels are kept in {found}; set HEADSTART_CACHE_DIR" in said


@pytest.mark.parametrize("squatter", ["link", "file", "folder that others can enter"])
def test_a_folder_that_somebody_else_may_have_made_is_not_used_for_it(homeless: Path, squatter: str) -> None:
    place = homeless / f"headstart-cache-{os.getuid()}"
    if squatter == "link":
        (homeless / "theirs").mkdir(0o700)
        place.symlink_to(homeless / "theirs")
    elif squatter == "file":
        place.touch()
    else:
        place.mkdir()
        place.chmod(0o777)
    found = folders.cache_dir()
    assert found != place
    assert found.parent == homeless
    assert stat.S_IMODE(found.lstat().st_mode) == 0o700


def test_a_setting_that_begins_with_a_home_that_is_not_there_is_told(
    homeless: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"cache_dir: '~/k' begins with ~"):
        Settings.load(cache_dir="~/k")
    monkeypatch.setenv("HEADSTART_CACHE_DIR", "~/kernels")
    with pytest.raises(UsageError, match=r"HEADSTART_CACHE_DIR: '~/kernels' begins with ~"):
        folders.cache_dir()
    monkeypatch.setenv("HEADSTART_CACHE_DIR", "/somewhere")
    monkeypatch.setenv("HEADSTART_SERVICE", "~/service.sock")
    with pytest.raises(UsageError, match=r"HEADSTART_SERVICE: '~/service.sock' begins with ~"):
        Settings.load()


_HOMELESS = """
import os, pwd, sys

def unknown(uid):
    raise KeyError("uid not found")

pwd.getpwuid = unknown
for name in ("HOME", "XDG_CACHE_HOME", "HEADSTART_CACHE_DIR"):
    os.environ.pop(name, None)
"""


@pytest.mark.triton
def test_a_program_of_somebody_without_a_home_is_enabled(start_client: Start, tmp_path: Path) -> None:
    program = "import headstart\nheadstart.enable()\nimport triton\nheadstart.disable()\nprint('done')"
    client = start_client(_HOMELESS + program, TMPDIR=str(tmp_path), TRITON_CACHE_DIR=str(tmp_path / "triton"))
    output, errors = client.process.communicate(timeout=PATIENCE)
    assert (client.process.returncode, output) == (0, b"done\n"), errors.decode()
    assert b"Traceback" not in errors
    assert b"has no home folder" in errors


@pytest.mark.parametrize("command", [["doctor"], ["cache", "info"], ["run", "app.py"]])
def test_commands_of_somebody_without_a_home_give_no_traceback(
    command: list[str], start_client: Start, tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text("print('ran')")
    main = f"import sys\nsys.argv[1:] = {command}\nfrom headstart.cli import main\nmain()"
    client = start_client(_HOMELESS + main, TMPDIR=str(tmp_path))
    output, errors = client.process.communicate(timeout=PATIENCE)
    assert b"Traceback" not in errors, errors.decode()
    assert b"has no home folder" in errors
    assert client.process.returncode == 0 or command == ["doctor"], errors.decode()
    assert output == b"ran\n" or "run" not in command


# A sandbox


_COMPILES = """
import logging, sys
logging.basicConfig(level=logging.WARNING, format="%(message)s")
import denied
if not denied.deny(*sys.argv[1:]):
    print("no filters")
    sys.exit()
import headstart
from kernels import pointwise
with headstart.AsyncCompile("cuda:90", workers=1) as compiler:
    error = compiler.triton(**pointwise()).exception(30)
    print(type(error).__name__, error)
"""


def _under(start_client: Start, *calls: str, **variables: str) -> str:
    told = start_client(_COMPILES, *calls, **variables).finish()
    if told == "no filters\n":
        pytest.skip("no system call can be refused here")
    return told


@pytest.mark.triton
@pytest.mark.parametrize("service", ["private", "shared"])
def test_where_pidfd_open_is_refused_one_sentence_says_so(start_client: Start, service: str) -> None:
    told = _under(start_client, "pidfd_open", HEADSTART_SERVICE=service)
    assert told.startswith("ServiceError")
    assert "pidfd_open, by which headstart watches its workers, is refused here" in told
    assert told.count("\n") == 1


@pytest.mark.triton
def test_where_memory_files_and_the_affinity_are_refused_kernels_are_compiled(start_client: Start) -> None:
    assert _under(start_client, "memfd_create", "sched_getaffinity") == "NoneType None\n"


@pytest.mark.triton
def test_where_eventfd_is_refused_one_sentence_says_so(start_client: Start) -> None:
    told = _under(start_client, "eventfd2")
    assert told.startswith("ServiceError no compile service")
    assert "Operation not permitted" in told


@pytest.mark.triton
def test_where_proc_is_not_mounted_kernels_are_compiled(tmp_path: Path, start_client: Start) -> None:
    hidden = ["unshare", "--map-root-user", "--mount", "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh"]
    if not shutil.which("unshare") or subprocess.run([*hidden, "true"], capture_output=True).returncode:
        pytest.skip("/proc cannot be hidden here")
    (tmp_path / "program.py").write_text(_COMPILES.replace("not denied.deny(*sys.argv[1:])", "False"))
    for service in ("private", "shared"):
        done = subprocess.run(
            [*hidden, sys.executable, str(tmp_path / "program.py")],
            env={**os.environ, **client_environment(), "HEADSTART_SERVICE": service},
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE,
        )
        assert done.stdout == "NoneType None\n", done.stdout + done.stderr
