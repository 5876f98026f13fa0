"""Where workers keep their files: what is left of a kernel, and what happens when there is no space."""

from __future__ import annotations

import errno
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import PATIENCE, client_environment, wait_until
from headstart import AsyncCompile
from headstart.client import launch
from headstart.service import runtime
from headstart.service.runtime import Workplace
from headstart.system import space
from headstart.system.folders import runtime_dir, work_dirs
from headstart.wire import Failure
from headstart.worker import worker
from headstart.worker.whole import cut_short, is_whole
from kernels import _real_ptxas, pointwise

Open = Callable[..., AsyncCompile]


@pytest.fixture
def second_place(runtime_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where workers' folders are if not in the runtime folder."""
    places = [runtime_folder / "headstart", tmp_path / "second"]
    for place in places:
        place.mkdir(0o700)
    monkeypatch.setattr(runtime, "work_dirs", lambda *, make=True: iter(places))
    return places[1]


@pytest.mark.triton
def test_a_worker_s_folder_is_emptied_after_each_kernel(open_compile: Open, runtime_folder: Path) -> None:
    async_compile = open_compile(workers=1)
    for factor in range(3):
        assert async_compile.triton(**pointwise(factor)).result(PATIENCE).asm["cubin"]
    (folder,) = runtime_folder.glob("headstart/service-*/worker-*")
    wait_until(lambda: {path.name for path in folder.iterdir()} <= {"stage", "stdout", "stderr"})


def test_folders_of_workers_are_made_elsewhere_where_there_is_no_space(
    second_place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    full: set[Path] = set()
    mkdir = Path.mkdir

    def refuse(path: Path, *arguments: Any, **options: Any) -> None:
        if full & set(path.parents):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        mkdir(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", refuse)
    workplace = Workplace()
    try:
        first = workplace.folder
        assert workplace.new_folder("worker-1").parent == first
        full.add(first)
        second = workplace.new_folder("worker-2")
        assert second.parent.parent == second_place
        assert f"workers have their folders in {second_place} from now on" in caplog.text
        workplace.move_from(first / "worker-1")  # another of those that are there, of which one is known by now
        assert workplace.folder == second.parent
        full = {second.parent}
        workplace.move_from(second)
        assert workplace.folder == first
    finally:
        workplace.close()
    assert not list(second_place.iterdir())


def test_where_little_space_is_left_workers_go_elsewhere_before_there_is_none(
    second_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workplace = Workplace()
    try:
        little = workplace.folder
        monkeypatch.setattr(
            runtime, "is_short_of_space", lambda folder, needed: Path(folder) in (little, little.parent)
        )
        assert workplace.new_folder("worker-1").parent.parent == second_place
        # Nowhere is any: it stays where it is.
        monkeypatch.setattr(space, "is_short_of_space", lambda folder, needed: needed > 0)
        assert workplace.new_folder("worker-2").parent.parent == second_place
    finally:
        workplace.close()


@pytest.mark.parametrize(
    ("failure", "little_left", "lacks"),
    [
        (Failure("compile", "PTXASError", stage="cubin"), False, False),
        (Failure("compile", "PTXASError", stage="cubin"), True, True),
        (Failure("source", "CompilationError", stage="ttir"), True, False),
        (Failure("compile", "OSError", stage="ttir", message="[Errno 28] No space left on device"), False, True),
    ],
)
def test_a_failure_is_for_lack_of_space_where_it_says_so_or_a_tool_had_little(
    failure: Failure, little_left: bool, lacks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "is_short_of_space", lambda folder, needed: little_left)
    assert worker._may_lack_space(failure, str(tmp_path)) is lacks


def test_the_runtime_folder_is_elsewhere_where_there_is_no_space_for_it(
    runtime_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir = Path.mkdir

    def refuse(path: Path, *arguments: Any, **options: Any) -> None:
        if path.parent in (runtime_folder, Path("/dev/shm")):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        mkdir(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert runtime_dir() == tmp_path / f"headstart-{os.getuid()}"
    assert next(work_dirs()) == runtime_dir()


# A cubin of `ptxas`, cut down to what an ELF file consists of: header, one section, the table of sections.
_SECTION_AT, _TABLE_AT = 64, 80
_ELF = (
    b"\x7fELF\x02\x01".ljust(16, b"\0")
    + struct.pack("<2HI3QI6H", 2, 190, 1, 0, 0, _TABLE_AT, 0, 64, 56, 0, 64, 1, 0)
    + b"instructions".ljust(_TABLE_AT - _SECTION_AT)
    + struct.pack("<2I4Q2I2Q", 0, 1, 0, 0, _SECTION_AT, _TABLE_AT - _SECTION_AT, 0, 0, 1, 0)
)


def test_half_a_file_of_an_assembler_is_told_from_a_whole_one() -> None:
    assert is_whole(_ELF)
    assert not any(is_whole(_ELF[:size]) for size in range(len(_ELF)))
    assert is_whole(b"; assembly of somebody's own tool")
    assert cut_short({"ptx": b"", "cubin": _ELF}) == ""
    assert cut_short({"ptx": b"", "cubin": b""}) == "cubin"


@pytest.mark.triton
def test_a_kernel_is_never_half_of_what_the_assembler_made(
    open_compile: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ptxas that does what the real one does on a full disk: it leaves half a file, and exits with 0, once."""
    ptxas = _real_ptxas()
    tool = tmp_path / "ptxas"
    tool.write_text(
        f"""#!{sys.executable}
import os, subprocess, sys
status = subprocess.run([{str(ptxas)!r}, *sys.argv[1:]]).returncode
if "-o" in sys.argv:
    made = sys.argv[sys.argv.index("-o") + 1]
    try:
        os.mkdir({str(tmp_path / "once")!r})
        os.truncate(made, os.path.getsize(made) // 2)
    except FileExistsError:
        pass
sys.exit(status)
"""
    )
    tool.chmod(0o755)
    whole = open_compile(cache_dir=tmp_path / "whole").triton(**pointwise()).result(PATIENCE).asm["cubin"]
    for variable in ("TRITON_PTXAS_PATH", "TRITON_PTXAS_BLACKWELL_PATH"):  # which, the version of Triton decides
        monkeypatch.setenv(variable, str(tool))
    assert open_compile(cache_dir=tmp_path / "half").triton(**pointwise()).result(PATIENCE).asm["cubin"] == whole
    assert (tmp_path / "once").exists()


def test_a_shared_service_starts_without_a_log_where_there_is_no_space_for_one(
    runtime_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(launch, "Replacement", full)
    with launch._new_log(runtime_folder / "headstart" / "shared.log") as log:
        assert log.write(b"words") == 5


def test_what_others_left_where_they_had_to_go_is_removed_with_the_next_start(
    runtime_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("HEADSTART_CACHE_DIR", str(tmp_path / "cache"))
    elsewhere = tmp_path / f"headstart-{os.getuid()}"
    (elsewhere / "service-left" / "worker-1").mkdir(parents=True)
    elsewhere.chmod(0o700)
    workplace = Workplace()
    workplace.close()
    assert not list(elsewhere.iterdir())
    assert not (tmp_path / "cache").exists()  # nothing is made for that


_PROGRAM = """
import logging, os, pathlib, sys, time
import headstart
from kernels import pointwise
logging.basicConfig(level=logging.WARNING, format="%(message)s")
place = os.environ["XDG_RUNTIME_DIR"]
with headstart.AsyncCompile("cuda:90", workers=1) as compiler:
    assert compiler.triton(**pointwise(1)).result(30).asm["cubin"]
    # What the worker has not removed yet would be space for the next kernel.
    while any(path.name.startswith("pointwise") for path in pathlib.Path(place).rglob("worker-*/*")):
        time.sleep(0.01)
    ballast = os.open(os.path.join(place, "ballast"), os.O_WRONLY | os.O_CREAT)
    try:
        while True:
            os.write(ballast, bytes(4096))
    except OSError as error:
        assert error.errno == 28, error
    assert compiler.triton(**pointwise(2)).result(30).asm["cubin"]
    assert compiler.services_started == 1
os.remove(os.path.join(place, "ballast"))
print(os.listdir(os.path.join(place, "headstart")), os.listdir("/dev/shm/headstart-0"))
"""


@pytest.mark.triton
def test_a_compile_that_finds_no_space_is_done_elsewhere(runtime_folder: Path, tmp_path: Path) -> None:
    mount = 'mount -t tmpfs -o size=12m none "$XDG_RUNTIME_DIR" && mount -t tmpfs none /dev/shm && exec "$@"'
    within = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount, "sh"]
    if not shutil.which("unshare") or subprocess.run([*within, "true"], capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    (tmp_path / "program.py").write_text(_PROGRAM)
    done = subprocess.run(
        [*within, sys.executable, str(tmp_path / "program.py")],
        env={**os.environ, **client_environment()},
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    assert "workers have their folders in /dev/shm/headstart-0 from now on" in done.stderr
    assert done.stdout == "[] []\n"
