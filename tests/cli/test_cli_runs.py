"""`headstart stats` and `headstart why`: what they make of the logs of runs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from entries import packed
from headstart import AsyncCompile
from headstart.artifacts import runs
from headstart.artifacts.manifest import Manifest
from headstart.artifacts.specialization import Specialization
from headstart.cli import main
from headstart.cli.run_facts import Facts, explain
from headstart.client import about
from headstart.client.run_log import RunLog
from headstart.errors import CompileError
from headstart.model.request import CompileRequest
from kernels import Kernel, matmul, pointwise, raises
from run_logs import ask, result

Open = Callable[..., AsyncCompile]


def cache() -> Path:
    return Path(os.environ["HEADSTART_CACHE_DIR"])


def run(*arguments: str) -> Result:
    done = CliRunner().invoke(main, arguments)
    assert "Traceback" not in done.output
    return done


def lines(*arguments: str) -> list[dict[str, Any]]:
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


def log_of(name: str, *asked: tuple[Kernel, Any], **said: str) -> None:
    """A run that asked for these kernels, which were answered so."""
    about.describe(about.About(run=name, **said))
    log = RunLog(cache(), 100, 2)
    for kernel, answer in asked:
        ask(log, kernel, answer)
    log.fell_back("app.scale", "its option extern_libs names a file")
    log.close()
    about.describe(about.About())


def compile_in_a_run(open_compile: Open, name: str, *kernels: Kernel) -> None:
    """The same with real compiles."""
    about.describe(about.About(run=name))
    with open_compile() as compiler:
        for kernel in kernels:
            compiler.triton(**kernel).result()
    about.describe(about.About())


# stats


def test_stats_say_where_kernels_came_from_and_what_that_saved() -> None:
    error = CompileError("it is wrong", kernel="raises", target="cuda:90", options={}, stage="ttir")
    log_of("0000000a", (matmul(num_warps=8), result()), (raises(), error))
    log_of("0000000b", (matmul(num_warps=8), result(cached=True)), (pointwise(), result(cached=True, remote=True)))
    (found,) = lines("stats", "--json")
    assert (found["runs"], found["asked"]) == (2, 4)
    assert found["origins"] == {"worker": 1, "store": 1, "remote": 1, "failed": 1}
    assert found["compile_s"] == pytest.approx(1.5, abs=0.01)
    assert found["saved_s"] == pytest.approx(3.0, abs=0.01)  # both answers name the key of the one that was compiled
    assert found["stages"]["front end"] == pytest.approx(0.0612, abs=0.001)
    assert found["failures"] == [{"name": "raises", "why": "it is wrong", "times": 1}]
    assert found["fell_back"] == [{"name": "app.scale", "why": "its option extern_libs names a file", "times": 2}]
    assert (found["slowest"][0]["name"], found["slowest"][0]["label"]) == ("matmul", "M=32 N=32 D=32 warps=8")
    shown = run("stats").stdout
    assert "2 runs since " in shown
    assert "  compiled                           1  25.0 %\n" in shown
    assert "1.50 s  matmul M=32 N=32 D=32 warps=8  cuda:90" in shown
    assert "raises: it is wrong" in shown


def test_stats_of_nothing_are_no_error_and_reset_forgets() -> None:
    assert "no runs are kept" in run("stats").stdout
    log_of("0000000a", (pointwise(), result()))
    assert run("stats", "--reset").stdout == "1 run forgotten\n"
    assert lines("stats", "--json")[0]["runs"] == 0
    assert runs.names(cache()) == []


def test_names_of_kernels_and_errors_cannot_command_the_terminal() -> None:
    error = CompileError("\x1b]0;pwned\x07", kernel="raises", target="cuda:90", options={})
    log_of("0000000a", (raises(), error))
    assert "\x1b" not in run("stats").stdout
    assert "\x1b" not in run("why", "raises").stdout


# why


@pytest.mark.triton
def test_why_names_what_of_the_key_differs_from_the_nearest_earlier_kernel(open_compile: Open) -> None:
    first = matmul(num_warps=4)
    compile_in_a_run(open_compile, "0000000a", first)
    (found,) = lines("why", "matmul", "--json")
    assert found["reasons"] == ["first seen: nothing before this run has a kernel named matmul"]

    compile_in_a_run(open_compile, "0000000b", matmul(num_warps=8))
    (found,) = lines("why", "--last", "--json")
    assert found["reasons"] == ["options.num_warps was 4, now 8"]
    assert (found["run"], found["label"]) == ("0000000b", "M=32 N=32 D=32 warps=8")
    assert found["compared_with"] == "M=32 N=32 D=32 warps=4 in the cache"

    changed = {**first, "source": first["source"].replace("left += D\n", "left += D\n        pass\n")}
    compile_in_a_run(open_compile, "0000000c", changed)
    (found,) = lines("why", "matmul", "--json")
    assert found["reasons"] == ["source changed, 1 line, the first at line 12"]

    compile_in_a_run(open_compile, "0000000d", first)
    done = run("why", "--last")
    assert done.exit_code == 1
    assert done.stderr == "headstart: run 0000000d compiled no kernel: of the one that it asked for, all were there\n"


@pytest.mark.triton
def test_why_says_that_the_cache_has_it_no_more(open_compile: Open) -> None:
    compile_in_a_run(open_compile, "0000000a", pointwise())
    assert run("cache", "clear", "--yes").exit_code in (0, 2)
    for path in (cache() / "store").glob("**/*.hse"):
        path.unlink()
    compile_in_a_run(open_compile, "0000000b", pointwise())
    (found,) = lines("why", "pointwise", "--json")
    expected = "the same was there in run 0000000a, and is in the cache no more: evicted, removed, or not kept"
    assert found["reasons"] == [expected]


def test_why_compares_with_the_bundle_and_the_record_of_the_run() -> None:
    record = cache().parent / "app.manifest"
    before, now = (CompileRequest.make(target="cuda:90", **matmul(num_warps=warps)) for warps in (4, 8))
    Manifest.of([Specialization(request=each, digest=each.digest()) for each in (before, now)]).save(record)
    log_of("0000000a", (matmul(num_warps=8), result()), record=str(record))
    (found,) = lines("why", "matmul", "--json")
    assert found["reasons"] == ["options.num_warps was 4 in app.manifest, now 8"]


def test_another_triton_is_told_as_such() -> None:
    facts = [
        Facts("k", [("name", "k"), ("toolchain", f"{version} (abc)")], "ab", "the cache")
        for version in ("3.6.0", "3.9.0")
    ]
    assert explain(*facts) == ["toolchain: Triton 3.6.0 → 3.9.0"]


def test_a_failure_that_is_known_is_told_as_such() -> None:
    error = CompileError("it is wrong", kernel="raises", target="cuda:90", options={})
    for name in ("0000000a", "0000000b"):
        log_of(name, (raises(), error))
    (found,) = lines("why", "raises", "--json")
    assert found["reasons"] == ["the same was compiled in run 0000000a, where it failed: it is wrong"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["why"], 2, "name a kernel, or say --last"),
        (["why", "matmul"], 1, "there is no run yet"),
        (["why", "--run", "zzzz", "x"], 2, "'zzzz' is no run"),
        (["why", "--run", "0000ffff", "x"], 2, "there is no run 0000ffff"),
    ],
)
def test_what_cannot_be_answered_is_said_in_one_line(arguments: list[str], code: int, said: str) -> None:
    done = run(*arguments)
    assert done.exit_code == code
    assert said in done.stderr


def test_an_entry_that_is_not_one_is_no_error() -> None:
    key = "ab" * 32
    place = cache() / "store" / "v2" / "ab" / f"{key}.hse"
    place.parent.mkdir(parents=True)
    log_of("0000000a", (matmul(num_warps=8), result()))
    for data in (b"nonsense", packed(key, "cd" * 32)[:-3], packed(key, "cd" * 32, components=[("name", "matmul")])):
        place.write_bytes(data)
        assert len(lines("why", "matmul", "--json")) == 1
