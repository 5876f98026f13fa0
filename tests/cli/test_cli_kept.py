"""`headstart cache clear` and `headstart records`: what headstart keeps beside kernels."""

from __future__ import annotations

import datetime as dt
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from conftest import client_environment
from headstart.adapters.journal import Journal
from headstart.adapters.recording import module_program, record_path, script_program
from headstart.artifacts.manifest import Manifest
from headstart.artifacts.specialization import Origin, Specialization
from headstart.cli import main
from headstart.cli.kept import KINDS, kept
from headstart.model.request import CompileRequest
from headstart.system.folders import cache_dir

KERNEL = "import triton\n\n@triton.jit\ndef add(x):\n    pass\n\n@triton.jit\ndef mul(x):\n    pass\n"
APP = """
import triton
import triton.language as tl
from triton.runtime.jit import MockTensor

@triton.jit
def scale(x, FACTOR: tl.constexpr):
    tl.store(x, tl.load(x) * FACTOR)

scale.warmup(MockTensor(tl.float32), FACTOR=2, grid=(1,))
"""
DIGEST = "a" * 64
NAMES = {
    "records of programs": "manifests/app-0123456789abcdef.manifest",
    "failures remembered": f"failed/{DIGEST}.json",
    "plans to reproduce a failure": "failed/scale-0123456789ab.py",
    "bundles pulled": f"pulled/0123456789abcdef/{DIGEST}.bundle",
    "notes on what bundles were used for": "bundles/app-0123456789abcdef.used",
    "logs of runs": "runs/01234567/17-89abcdef.run",
    "digests of toolchains": f"toolchains/{DIGEST}.sha256",
    "stand-ins for torch's CUDA": "torch/shim-0123456789abcdef.so",
}
OTHERS = (
    "manifests/mine.manifest",
    "runs/01234567/mine.run",
    "runs/mine/1-01234567.run",
    "failed/notes.py",
    "pulled/mine/x.bundle",
    "torch/model.pt",
    "notes.txt",
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEADSTART_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HEADSTART_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def fill(cache: Path, *names: str) -> None:
    for name in names:
        path = cache / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_bytes(b"1234")


def files(cache: Path) -> set[str]:
    return {str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file()}


def run(*arguments: object, **settings: str) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], **settings)  # type: ignore[arg-type]
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def record(program: str, *kernels: str) -> Path:
    path = record_path(program)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    several = [
        Specialization(request=each, digest=each.digest(), last_seen=dt.date(2026, 11, 23))
        for each in (CompileRequest.make(name, KERNEL, signature="*fp32", target="cuda:90") for name in kernels)
    ]
    Manifest.of(several, origins=[Origin(program=program)]).save(path)
    return path


# headstart cache clear


def test_clear_names_what_it_leaves_and_leaves_it(cache: Path) -> None:
    fill(cache, *NAMES.values(), *OTHERS)
    said = run("cache", "clear", "--yes").stdout
    assert f"left in {cache}: 1 record of programs (4 bytes), 1 failure remembered (4 bytes), " in said
    assert "--all removes these too" in said
    assert files(cache) >= {*NAMES.values(), *OTHERS}


def test_clear_of_a_cache_without_anything_else_says_nothing_more(cache: Path) -> None:
    assert run("cache", "clear", "--yes").stdout == "removed 0 kernels (0 bytes), 0 left (0 bytes)\n"


def test_all_that_headstart_keeps_is_cleared_and_nothing_of_anybody_else(cache: Path) -> None:
    fill(cache, *NAMES.values(), *OTHERS, "manifests/.app-0123456789abcdef.manifest.lock")
    keys = Path(os.environ["HEADSTART_CONFIG_DIR"], "keys")
    fill(keys.parent, "keys/release")
    asked = run("cache", "clear", "--all", input="n\n")
    assert asked.exit_code == 1
    assert "1 bundle pulled (4 bytes)" in asked.stdout
    assert files(cache) >= {*NAMES.values()}
    done = run("cache", "clear", "--all", "--yes")
    assert done.exit_code == 0
    assert files(cache) - {"store/v2/prune.lock"} == {*OTHERS}
    assert not (cache / "bundles").exists()
    assert "1 record of programs (4 bytes)" in done.stdout
    assert f"keys stay, in {keys}" in done.stdout
    assert files(keys) == {"release"}


def test_a_link_in_the_place_of_a_folder_is_not_followed(cache: Path, tmp_path: Path) -> None:
    fill(tmp_path / "elsewhere", NAMES["records of programs"])
    cache.mkdir(mode=0o700)
    (cache / "manifests").symlink_to(tmp_path / "elsewhere" / "manifests")
    run("cache", "clear", "--all", "--yes")
    assert files(tmp_path / "elsewhere") == {NAMES["records of programs"]}


def test_every_kind_is_told_in_the_plural(cache: Path) -> None:
    fill(cache, *NAMES.values())
    fill(cache, *(name.replace("0123", "4567").replace("a" * 64, "b" * 64) for name in NAMES.values()))
    assert [str(each) for each in kept(cache)] == [f"2 {noun} (8 bytes)" for noun in NAMES]
    assert len(KINDS) == len(NAMES)


@pytest.mark.triton
def test_what_a_program_leaves_in_the_cache_folder_is_of_a_kind_that_is_known(cache: Path) -> None:
    """Whoever keeps something new there has to say in `KINDS` what it is."""
    Path("app.py").write_text(APP, encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "headstart",
        "run",
        "--dry-run",
        "--target",
        "h100",
        "--bundle",
        "app.bundle",
        "app.py",
    ]
    environment = {**os.environ, **client_environment(), "HEADSTART_CACHE_DIR": str(cache)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert cache.exists()
    assert run("cache", "clear", "--all", "--yes").exit_code == 0
    assert {name.partition("/")[0] for name in files(cache)} <= {"store"}


# headstart records


def test_records_are_listed_with_their_programs(cache: Path) -> None:
    record(script_program("app.py"), "add", "mul")
    record(module_program("package.train", "train.py"), "add")
    lines = run("records", "list").stdout.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [
        os.path.realpath("app.py"),
        f"-m package.train {os.path.realpath('train.py')}",
    ]
    assert ": 2 kernels, " in lines[0]
    first, second = map(json.loads, run("records", "list", "--json").stdout.splitlines())
    assert (first["programs"], first["kernels"], first["targets"]) == ([os.path.realpath("app.py")], 2, ["cuda:90"])
    assert first["last_seen"] is not None
    assert (second["kernels"], second["error"]) == (1, None)


def test_nothing_recorded_is_said_on_stderr() -> None:
    result = run("records", "list")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "headstart run records one" in result.stderr


@pytest.mark.parametrize("name", ["app.py", "./app.py", "record"])
def test_a_record_is_forgotten_by_the_program_s_name_or_its_own(name: str, cache: Path) -> None:
    path = record(script_program("app.py"), "add")
    other = record(script_program("other.py"), "add")
    journal = Journal(path)
    journal.append(Manifest())
    journal.let_go()
    result = run("records", "forget", path.name if name == "record" else name)
    assert result.stdout.startswith(f"forgotten: {os.path.realpath('app.py')}: 1 kernel")
    assert files(cache) == {str(other.relative_to(cache))}


def test_a_module_s_record_is_forgotten_by_its_name(cache: Path) -> None:
    record(module_program("package.train", "train.py"), "add")
    assert run("records", "forget", "--", "-m package.train").exit_code == 0
    assert files(cache) == set()


def test_a_record_that_cannot_be_read_is_listed_and_can_be_forgotten(cache: Path) -> None:
    path = record(script_program("app.py"), "add")
    path.write_bytes(b"garbage")
    assert "not a manifest" in run("records", "list").stdout
    assert json.loads(run("records", "list", "--json").stdout)["error"]
    assert run("records", "forget", path.name).exit_code == 0
    assert files(cache) == set()


def test_all_records_are_forgotten_at_once(cache: Path) -> None:
    record(script_program("app.py"), "add")
    record(script_program("other.py"), "add")
    fill(cache, NAMES["failures remembered"])
    assert run("records", "forget", "--all").stdout.startswith("forgotten: 2 records of programs (")
    assert files(cache) == {NAMES["failures remembered"]}
    assert run("records", "forget", "--all").stdout == "forgotten: nothing was recorded\n"


@pytest.mark.parametrize("arguments", [[], ["app.py", "--all"], ["no-such.py"]])
def test_what_is_to_be_forgotten_has_to_be_there_and_named_once(arguments: list[str]) -> None:
    record(script_program("app.py"), "add")
    assert run("records", "forget", *arguments).exit_code == 2
    assert record_path(script_program("app.py")).exists()


def test_a_folder_that_others_can_write_is_left_alone(cache: Path) -> None:
    path = record(script_program("app.py"), "add")
    cache.chmod(0o777)
    result = run("records", "forget", "--all")
    assert result.exit_code == 2
    assert path.exists()
    assert cache_dir() == cache


def test_a_module_s_record_is_forgotten_by_an_option_and_no_other_goes_with_it(cache: Path) -> None:
    record("-m package.train /src/train.py", "scale")
    record("-m package.train_more /src/more.py", "scale")
    record("/src/my app.py", "scale")
    assert run("records", "forget", "-m", "package.train").exit_code == 0
    assert run("records", "forget", "/src/my").exit_code == 2
    assert run("records", "forget", "--", "-m").exit_code == 2
    left = [json.loads(line)["programs"] for line in run("records", "list", "--json").stdout.splitlines()]
    assert sorted(left) == [["-m package.train_more /src/more.py"], ["/src/my app.py"]]
