"""What a code generator calls: futures, `wait`, statistics, bundles, and what is wrong with a request."""

from __future__ import annotations

import datetime as dt
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

import headstart
from conftest import PATIENCE, Client, client_environment, wait_until
from headstart import AsyncCompile, CompiledKernel, UsageError, as_completed
from headstart.artifacts.bundle import Bundle
from headstart.artifacts.last_used import last_used, note
from headstart.model.request import CompileRequest
from kernels import HEAD, Gate, hanging_ptxas, matmul, pointwise, raises, too_large_matmul

pytestmark = pytest.mark.triton

Open = Callable[..., AsyncCompile]
Start = Callable[..., Client]


# Futures


def test_a_code_generator_and_the_module_it_emits(open_compile: Open) -> None:
    """The example of the documentation: kick off while generating, ask again in the module, wait."""
    async_compile = open_compile()
    kernels = {f"k{number}": pointwise(number) for number in range(6)}
    early = {name: async_compile.triton(**kernel) for name, kernel in kernels.items()}
    scope: dict[str, Any] = {name: async_compile.triton(**kernel) for name, kernel in kernels.items()}
    assert scope == early
    async_compile.wait(scope)
    assert all(isinstance(kernel, CompiledKernel) for kernel in scope.values())
    first = scope["k0"]
    assert first.asm["cubin"][:4] == b"\x7fELF"
    assert "exp" in first.asm["ttir"]
    assert ".entry pointwise" in first.asm["ptx"]
    assert first.metadata.name == "pointwise"
    assert first.metadata["num_warps"] == 4
    assert len(first.key) == 64
    assert (first.name, first.entry.header.target) == ("pointwise", "cuda:90")


def test_the_first_compile_starts_before_generation_ends_and_the_later_call_is_a_hit(
    open_compile: Open, tmp_path: Path
) -> None:
    gate = Gate(tmp_path / "gate")
    async_compile = open_compile()
    early = async_compile.triton(**gate.kernel())
    gate.began()  # while the generator goes on
    others = [async_compile.triton(**pointwise(number)) for number in range(3)]
    generated = time.monotonic()
    gate.open()
    assert async_compile.triton(**gate.kernel()) is early
    for future in (early, *others):
        future.result(PATIENCE)
    span = async_compile.timeline[0]
    assert span.started is not None
    assert span.finished is not None
    assert span.kicked_off <= span.started < generated < span.finished
    assert len(gate.pids()) == 1


def test_one_name_with_many_options_is_many_kernels(open_compile: Open) -> None:
    async_compile = open_compile()
    futures = {warps: async_compile.triton(**matmul(num_warps=warps)) for warps in (1, 2, 4)}
    assert {warps: future.result(PATIENCE).metadata.num_warps for warps, future in futures.items()} == {
        1: 1,
        2: 2,
        4: 4,
    }


def test_a_result_that_is_not_there_in_time_can_be_asked_for_again(open_compile: Open, tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")
    future = open_compile().triton(**gate.kernel())
    with pytest.raises(TimeoutError, match=r"gated is not compiled after 0\.01 s"):
        future.result(timeout=0.01)
    assert not future.done()
    gate.open()
    assert future.result(PATIENCE).asm["cubin"]
    assert future.done()


def test_as_completed_yields_what_is_answered_first(open_compile: Open, tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")
    async_compile = open_compile()
    slow, quick, bad = (async_compile.triton(**kernel) for kernel in (gate.kernel(), pointwise(), raises()))
    completed = as_completed([slow, quick, bad, slow], timeout=PATIENCE)
    assert {next(completed), next(completed)} == {quick, bad}
    gate.open()
    assert list(completed) == [slow]
    gate = Gate(tmp_path / "other gate")
    other = async_compile.triton(**gate.kernel("other"))
    with pytest.raises(TimeoutError, match=r"not compiled after 0\.01 s: other"):
        list(as_completed([other], timeout=0.01))
    gate.open()
    assert list(as_completed([other])) == [other]


def test_what_somebody_waits_for_goes_before_what_was_only_kicked_off(open_compile: Open, tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")
    async_compile = open_compile(workers=1)
    blocking = async_compile.triton(**gate.kernel())
    gate.began()
    early = [async_compile.triton(**pointwise(number)) for number in range(5)]
    wanted = async_compile.triton(**pointwise(99))
    wanted.want()
    gate.open()
    wanted.result(PATIENCE)
    for future in (blocking, *early):
        future.result(PATIENCE)
    started = {span.kicked_off: span.started for span in async_compile.timeline}
    order = sorted(started, key=lambda kicked_off: started[kicked_off] or 0.0)
    assert order[1] == async_compile.timeline[6].kicked_off


def test_the_longest_of_a_sweep_runs_beside_the_others(open_compile: Open, tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")
    async_compile = open_compile(workers=2)
    slow = async_compile.triton(**gate.kernel())
    others = [async_compile.triton(**pointwise(number)) for number in range(5)]
    assert all(other.result(PATIENCE).asm["cubin"] for other in others)
    assert not slow.done()
    gate.open()
    slow.result(PATIENCE)


def test_statistics_add_up(open_compile: Open) -> None:
    with open_compile() as earlier:
        earlier.triton(**pointwise(1)).result(PATIENCE)
    async_compile = open_compile()
    scope = {
        "cached": async_compile.triton(**pointwise(1)),
        "compiled": async_compile.triton(**pointwise(2)),
        "again": async_compile.triton(**pointwise(2)),
        "failed": async_compile.triton(**raises()),
        "too large": async_compile.triton(**too_large_matmul()),
    }
    with pytest.raises(headstart.CompileErrors) as caught:
        async_compile.wait(scope)
    assert len(caught.value.errors) == 2
    statistics = async_compile.statistics
    assert statistics.requested == 5
    assert (statistics.compiled, statistics.cached, statistics.deduplicated, statistics.failed) == (
        1,
        1,
        1,
        2,
    )
    assert statistics.workers == 2
    assert 0 < statistics.longest_s <= statistics.cpu_s
    spans = async_compile.timeline
    assert [span.origin for span in spans] == ["store", "worker", "failed", "failed"]
    assert all(span.finished is not None and span.kicked_off <= span.finished for span in spans)
    assert spans[0].started is None
    assert spans[1].started is not None
    assert async_compile.in_flight() == []


def test_a_kernel_over_the_limit_is_refused_from_the_store_too(open_compile: Open) -> None:
    for _ in range(2):
        error = open_compile().triton(**too_large_matmul()).exception(PATIENCE)
        assert isinstance(error, headstart.OutOfResources)
        assert "393216 bytes of shared memory" in str(error)
        assert "smaller blocks or fewer num_stages" in str(error)


def test_closing_twice_is_fine(open_compile: Open) -> None:
    async_compile = open_compile()
    kernel = async_compile.triton(**pointwise()).result(PATIENCE)
    async_compile.close()
    async_compile.close()
    assert kernel.asm["cubin"]


# Bundles


def test_put_is_called_once_for_each_result(open_compile: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_compile() as earlier:
        earlier.triton(**pointwise(1)).result(PATIENCE)
    async_compile = open_compile()
    put: list[str] = []
    original = async_compile.bundler.put

    def note(key: str, opener: Any) -> None:
        put.append(key)
        original(key, opener)

    monkeypatch.setattr(async_compile.bundler, "put", note)
    async_compile.bundler.begin_compile()
    futures = [async_compile.triton(**pointwise(number)) for number in (1, 2, 3, 3)]
    bad = async_compile.triton(**raises())
    keys = {future.result(PATIENCE).key for future in futures}
    assert bad.exception(PATIENCE)
    assert sorted(put) == sorted(keys)
    assert len(put) == 3
    assert async_compile.bundler.noted == 3


def test_what_fails_is_not_in_the_bundle(open_compile: Open, tmp_path: Path) -> None:
    with open_compile(bundle=tmp_path / "b.bundle") as async_compile:
        futures = [async_compile.triton(**kernel) for kernel in (pointwise(), raises(), too_large_matmul())]
        assert [type(future.exception(PATIENCE)).__name__ for future in futures] == [
            "NoneType",
            "SourceError",
            "OutOfResources",
        ]
    assert [item.name for item in Bundle.open(tmp_path / "b.bundle")] == ["pointwise"]


WARM = """
import json, os, sys

ran = []
events = ("os.exec", "os.fork", "os.posix_spawn", "os.system", "subprocess.Popen")
sys.addaudithook(lambda event, arguments: event in events and ran.append(str(arguments)))

import headstart
from kernels import matmul, pointwise

with headstart.AsyncCompile("cuda:90", workers=2, bundle=sys.argv[1]) as async_compile:
    scope = {f"k{n}": async_compile.triton(**pointwise(n)) for n in range(5)}
    scope["matmul"] = async_compile.triton(**matmul(num_warps=8))
    async_compile.wait(scope)
    print(json.dumps({
        "sizes": {name: len(kernel.asm["cubin"]) for name, kernel in scope.items()},
        "loaded": [name for name in sys.modules if name.partition(".")[0] in ("triton", "torch")],
        "ran": ran,
        "services": async_compile.services_started,
        "compiled": async_compile.statistics.compiled,
        "cached": async_compile.statistics.cached,
        "origins": sorted({span.origin for span in async_compile.timeline}),
        "threads": len(os.listdir("/proc/self/task")),
    }))
"""


def test_a_warm_start_from_a_bundle_compiles_nothing_and_starts_nothing(start_client: Start, tmp_path: Path) -> None:
    path = tmp_path / "warm.bundle"
    cold = json.loads(start_client(WARM, path).finish())
    assert (cold["services"], cold["compiled"]) == (1, 6)
    written = path.read_bytes()
    # Elsewhere, and without the store that it was made from.
    moved = tmp_path / "somewhere else" / "übrig.bundle"
    moved.parent.mkdir()
    shutil.move(path, moved)
    cache = tmp_path / "another cache"
    warm = json.loads(start_client(WARM, moved, HEADSTART_CACHE_DIR=str(cache)).finish())
    assert warm["loaded"] == warm["ran"] == []
    assert (warm["services"], warm["compiled"], warm["cached"]) == (0, 0, 6)
    assert warm["origins"] == ["bundle"]
    assert warm["threads"] == 1
    assert warm["sizes"] == cold["sizes"]
    assert moved.read_bytes() == written
    assert not (cache / "store").exists()


def test_what_is_missing_in_a_bundle_is_compiled_and_added_to_it(open_compile: Open, tmp_path: Path) -> None:
    path = tmp_path / "grows.bundle"
    for number in (1, 2, 3):
        with open_compile(bundle=path) as async_compile:
            futures = [async_compile.triton(**pointwise(n)) for n in range(number)]
            assert all(future.result(PATIENCE).asm["cubin"] for future in futures)
            assert async_compile.statistics.compiled == 1
            assert async_compile.statistics.cached == number - 1
        assert len(Bundle.open(path)) == number


def test_what_a_program_asks_for_is_noted_as_used_and_what_is_only_compiled_ahead_is_not(
    open_compile: Open, tmp_path: Path
) -> None:
    path, long_ago = tmp_path / "used.bundle", dt.date(2026, 1, 1)
    with open_compile(bundle=path) as first:
        asked, ahead, raised, needed, met = made = [first.triton(**pointwise(n)).result(PATIENCE) for n in range(5)]
        requests = [span.kickoff.request for span in first._asked if span.kickoff is not None]
    keys = {kernel.key for kernel in made}
    assert last_used(path, first.cache_dir).keys() == keys
    note(path, first.cache_dir, keys, keys, today=long_ago)
    with open_compile(bundle=path) as second:
        for number in (1, 2, 3):
            second.submit(requests[number], background=True)
        second.triton(**pointwise(0))
        second.triton(**pointwise(2))  # which was compiled ahead
        second.needs(requests[3].digest())
        assert second.services_started == 0
    days = last_used(path, first.cache_dir)
    assert {key for key in keys if days[key] == long_ago} == {ahead.key, met.key}
    assert {key for key in keys if days[key] > long_ago} == {asked.key, raised.key, needed.key}


def test_of_one_request_a_bundle_gives_what_the_assembler_made_that_it_names(
    open_compile: Open, tmp_path: Path
) -> None:
    # As a process of torch.compile's asks: mostly with the assembler that torch brings, at times with Triton's.
    from triton.backends import nvidia

    assembler = tmp_path / "ptxas"
    assembler.write_text(f'#!/bin/sh\nexec {Path(nvidia.__file__).parent / "bin" / "ptxas"} "$@"\n')
    assembler.chmod(0o755)
    path = tmp_path / "two.bundle"
    with open_compile() as plain:
        plain.triton(**pointwise())
        (one,) = [each.kickoff.request for each in plain._asked if each.kickoff is not None]
    other = msgspec.structs.replace(one, environment={**one.environment, "TRITON_PTXAS_PATH": str(assembler)})
    assert one.digest() == other.digest()
    made, found = [], []
    for keys in (made, found):
        for request in (one, other):
            with open_compile(bundle=path, cache_dir=tmp_path / "empty" / str(len(made) + len(found))) as each:
                keys.append(each.submit(request).result(PATIENCE).key)
                assert each.statistics.compiled == (keys is made)
    assert found == made
    assert len(set(made)) == 2
    with open_compile(bundle=path, cache_dir=tmp_path / "empty" / "both") as both:
        futures = [both.submit(request) for request in (one, other, one, other)]
        assert [future.result(PATIENCE).key for future in futures] == made * 2
        assert (both.statistics.compiled, both.statistics.deduplicated) == (0, 2)
    with open_compile(cache_dir=tmp_path / "empty" / "neither") as neither:
        assert [neither.submit(request).result(PATIENCE).key for request in (other, one)] == made[::-1]


def test_a_kernel_of_a_bundle_stays_on_offer_when_the_futures_are_forgotten(open_compile: Open, tmp_path: Path) -> None:
    path = tmp_path / "offer.bundle"
    with open_compile(bundle=path) as async_compile:
        async_compile.triton(**pointwise()).result(PATIENCE)
    again = open_compile(bundle=path)
    first = again.triton(**pointwise())
    again.kernels.cache_clear()
    second = again.triton(**pointwise())
    assert second is not first
    assert second.result(PATIENCE).asm["cubin"] == first.result(PATIENCE).asm["cubin"]
    assert again.services_started == 0


def test_a_bundle_is_not_used_for_another_environment_or_toolchain(
    open_compile: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "other.bundle"
    with open_compile(bundle=path) as async_compile:
        plain = async_compile.triton(**pointwise()).result(PATIENCE)
    with monkeypatch.context() as other:
        other.setenv("TRITON_DISABLE_LINE_INFO", "1")
        with open_compile(bundle=path) as async_compile:
            bare = async_compile.triton(**pointwise()).result(PATIENCE)
            assert bare.key != plain.key
            assert async_compile.statistics.compiled == 1
    for name, value in hanging_ptxas(tmp_path / "tool").items():
        monkeypatch.setenv(name, value)
    with open_compile(bundle=path) as async_compile:
        assert async_compile.triton(**pointwise()).result(PATIENCE).key != plain.key
        assert async_compile.statistics.compiled == 1
    assert any("made by another Triton or Python" in message for message in caplog.messages)


def truncated(data: bytes) -> bytes:
    return data[:-10]


def with_another_index(data: bytes) -> bytes:
    return data[:-70] + bytes([data[-70] ^ 1]) + data[-69:]


def of_the_future(data: bytes) -> bytes:
    return data[:-10] + (999).to_bytes(2, "little") + data[-8:]


def nothing(data: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [truncated, with_another_index, of_the_future, nothing])
def test_a_damaged_bundle_is_not_used_with_a_warning_and_is_written_anew(
    open_compile: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "b.bundle"
    with open_compile(bundle=path) as async_compile:
        async_compile.triton(**pointwise()).result(PATIENCE)
    path.write_bytes(damage(path.read_bytes()))
    caplog.clear()
    with open_compile(bundle=path) as async_compile:
        assert async_compile.triton(**pointwise()).result(PATIENCE).asm["cubin"]
    (warning,) = (message for message in caplog.messages if "bundle" in message)
    assert str(path) in warning
    assert len(Bundle.open(path)) == 1


def damage_entry(path: Path, where: str) -> None:
    data = bytearray(path.read_bytes())
    (item,) = Bundle.open(path)
    position = item.offset + (item.length - 1 if where == "artifact" else 100)
    data[position] ^= 1
    path.with_suffix(".new").write_bytes(data)
    path.with_suffix(".new").replace(path)


@pytest.mark.parametrize("where", ["header", "artifact"])
def test_a_kernel_found_damaged_in_a_bundle_is_built_anew_and_the_bundle_is_mended(
    open_compile: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    path = tmp_path / "b.bundle"
    with open_compile(bundle=path) as async_compile:
        kernel = async_compile.triton(**pointwise()).result(PATIENCE)
        everything = {name: kernel.asm[name] for name in kernel.asm}
    damage_entry(path, where)
    caplog.clear()
    with open_compile(bundle=path) as async_compile:
        again = async_compile.triton(**pointwise()).result(PATIENCE)
        assert {name: again.asm[name] for name in again.asm} == everything
    assert any("compiled again" in message for message in caplog.messages)
    (item,) = Bundle.open(path)
    Bundle.open(path).entry(item.key).verify()


def test_a_bundle_that_cannot_be_written_costs_a_warning(
    open_compile: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with open_compile(bundle=tmp_path / "file" / "b.bundle") as async_compile:
        assert async_compile.triton(**pointwise()).result(PATIENCE).asm["cubin"]
    assert any("cannot write the bundle" in message for message in caplog.messages)


def test_a_bundle_in_an_earlier_compile_s_store_needs_no_compile(open_compile: Open, tmp_path: Path) -> None:
    with open_compile() as earlier:
        earlier.triton(**pointwise()).result(PATIENCE)
    with open_compile(bundle=tmp_path / "b.bundle") as async_compile:
        async_compile.triton(**pointwise()).result(PATIENCE)
        assert async_compile.statistics.cached == 1
    assert len(Bundle.open(tmp_path / "b.bundle")) == 1


def test_a_bundle_whose_kernel_was_evicted_meanwhile_is_whole_all_the_same(open_compile: Open, tmp_path: Path) -> None:
    from headstart.stores.disk import DiskStore

    with open_compile(bundle=tmp_path / "b.bundle") as async_compile:
        future = async_compile.triton(**pointwise())
        wait_until(future.done)
        DiskStore(async_compile.cache_dir).clear()
    (item,) = Bundle.open(tmp_path / "b.bundle")
    Bundle.open(tmp_path / "b.bundle").entry(item.key).verify()


# What is wrong with a request, and said at once


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "no name"}, "expected the name of a @triton.jit function"),
        ({"name": 3}, "expected the name of a @triton.jit function"),
        ({"source": b"bytes"}, "source: expected Python text, got bytes"),
        ({"source": "x = '\ud800'"}, "source: not valid text"),
        ({"signature": ["*fp32"]}, "signature: expected a mapping"),
        ({"signature": {"x": 3}}, "is not a name and a type"),
        ({"constants": {"BLOCK": object()}}, "a builtins.object cannot travel to a worker"),
        ({"constants": {"BLOCK": 1 << 70}}, "does not fit 64 bits"),
        ({"constants": {"no name": 1}}, "expected a parameter's name or position"),
        ({"attrs": {"x": object()}}, "expected a divisibility"),
        ({"options": {"num_warps": open}}, "cannot travel to a worker"),
    ],
)
def test_a_request_of_the_wrong_form_is_refused_at_once(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        CompileRequest.make(**{**pointwise(), "target": "cuda:90", **change})


@pytest.mark.parametrize("target", ["cuda", "cuda:ninety", "hip:942", "metal:1", "", "cuda:90:x"])
def test_an_unknown_target_is_refused_at_once(open_compile: Open, target: str) -> None:
    with pytest.raises(UsageError, match="unknown target"):
        headstart.AsyncCompile(target)
    with open_compile() as async_compile, pytest.raises(UsageError, match="unknown target"):
        async_compile.triton(**pointwise(), target=target)


def test_a_request_without_any_target_is_refused_at_once() -> None:
    with headstart.AsyncCompile(workers=1) as async_compile, pytest.raises(UsageError, match="no target"):
        async_compile.triton(**pointwise())


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        ({"workers": 0}, {}, "workers: expected a number from 1 to 1024, got 0"),
        ({}, {"HEADSTART_WORKERS": "many"}, "HEADSTART_WORKERS: expected a number"),
        ({}, {"HEADSTART_COMPILE_TIMEOUT": "-1"}, "HEADSTART_COMPILE_TIMEOUT: expected a number of seconds"),
        ({}, {"HEADSTART_CACHE_LIMIT": "much"}, "expected a size such as 10GiB"),
    ],
)
def test_a_setting_of_the_wrong_form_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], variables: dict[str, str], message: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=message):
        headstart.AsyncCompile("cuda:90", **arguments)


# What is wrong with a request, and only Triton can tell

SOURCE = pointwise()["source"]
REFUSED: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "does not parse": (
        {"source": "def pointwise(:\n    pass\n"},
        "source",
        ("SyntaxError: invalid syntax", 'File "pointwise.py", line 1'),
    ),
    "holds a zero": ({"source": SOURCE + "\0"}, "source", ("source code string cannot contain null bytes",)),
    "is empty": (
        {"source": ""},
        "source",
        ("does not define a @triton.jit function 'pointwise'", "no @triton.jit"),
    ),
    "does not define the name": (
        {"name": "other", "source": SOURCE},
        "source",
        ("does not define a @triton.jit function 'other'; it defines pointwise",),
    ),
    "defines a plain function": (
        {"source": SOURCE.replace("@triton.jit\n", "")},
        "source",
        ("does not define a @triton.jit function 'pointwise'",),
    ),
    "raises when it is defined": (
        {"source": SOURCE + "\n1 / 0\n"},
        "source",
        ("ZeroDivisionError: division by zero", "1 / 0"),
    ),
    "imports what is not there": (
        {"source": "import no_such_module\n" + SOURCE},
        "source",
        ("ModuleNotFoundError: No module named 'no_such_module'",),
    ),
    "unknown option": (
        {"options": {"num_wraps": 4}},
        "options",
        ("'num_wraps' is no option of this backend", "num_warps"),
    ),
    "an option's value": ({"options": {"num_warps": "many"}}, "options", ("many",)),
    "a number of warps that is no power of two": (
        {"options": {"num_warps": 3}},
        "options",
        ("num_warps", "power of 2"),
    ),
    "unknown type": (
        {"signature": {"x": "*fp33", "y": "*fp32", "n": "i32"}},
        "signature",
        ("'*fp33' of parameter 'x' is no type that Triton knows", "*fp32"),
    ),
    "a constant that is no parameter": (
        {"constants": {"BLOCK": 128, "SIZE": 1}},
        "signature",
        ("'SIZE' is no parameter; the parameters are x, y, n, BLOCK",),
    ),
    "a position that is no parameter": (
        {"constants": {"BLOCK": 128, (7,): 1}},
        "signature",
        ("position 7 is no parameter; there are 4",),
    ),
    "an attribute that is no parameter's": ({"attrs": {"z": 16}}, "signature", ("'z' is no parameter",)),
    "a type that is no parameter's": (
        {"signature": {"x": "*fp32", "y": "*fp32", "n": "i32", "m": "i32"}},
        "signature",
        ("the signature types 'm', no parameter of pointwise(x, y, n, BLOCK)",),
    ),
    "too few entries": (
        {"signature": {"x": "*fp32", "y": "*fp32"}},
        "signature",
        ("parameter 'n' has neither a type nor a constant",),
    ),
    "no constant for a constexpr": ({"constants": {}}, "signature", ("parameter 'BLOCK' has neither",)),
    "a type for a constexpr": (
        {"signature": {"x": "*fp32", "y": "*fp32", "n": "i32", "BLOCK": "i32"}, "constants": {}},
        None,
        ("BLOCK",),
    ),
    "too few entries in a string": (
        {"signature": "*fp32, *fp32, i32", "constants": {}},
        "signature",
        ("the signature has 3 entries and the kernel 4 parameters: x, y, n, BLOCK",),
    ),
    "an unknown hint": (
        {"signature": "*fp32:8, *fp32, i32, 128", "constants": {}},
        "signature",
        ("a hint is 1 or 16",),
    ),
}

ASK = """
import json, sys
import headstart
from test_async_compile import REFUSED
from kernels import pointwise
answers = {}
with headstart.AsyncCompile("cuda:90", workers=2) as async_compile:
    good = async_compile.triton(**pointwise())
    futures = {why: async_compile.triton(**{**pointwise(), **change}) for why, (change, _, _) in REFUSED.items()}
    for why, future in futures.items():
        error = future.exception(60)
        about = getattr(error, "stage", None), getattr(error, "reproduce", "")
        answers[why] = [type(error).__name__, *about, str(error)]
    assert good.result().asm["cubin"]
    assert async_compile.services_started == 1
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str, str, str]]:
    """What becomes of each of `REFUSED`, all asked for at once, in a client of their own."""
    folder = tmp_path_factory.mktemp("refused")
    folder.chmod(0o700)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TRITON_", "HEADSTART_"))}
    result = subprocess.run(
        [sys.executable, "-c", ASK],
        capture_output=True,
        text=True,
        env={
            **environment,
            **client_environment(),
            "HEADSTART_CACHE_DIR": str(folder / "cache"),
            "XDG_RUNTIME_DIR": str(folder),
        },
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    return dict(json.loads(result.stdout))


@pytest.mark.parametrize("why", REFUSED)
def test_a_source_or_a_signature_that_triton_cannot_compile_is_a_source_error_that_says_why(
    answers: dict[str, tuple[str, str, str, str]], why: str
) -> None:
    change, stage, words = REFUSED[why]
    kind, found_stage, reproduce, message = answers[why]
    assert kind == "SourceError", message
    assert stage is None or found_stage == stage
    assert reproduce.startswith("headstart build ")
    assert message.startswith(f"{change.get('name', 'pointwise')} (")
    for word in words:
        assert word in message
    assert "headstart/service" not in message  # our own frames are of no use to anybody


def test_an_error_in_a_function_that_a_kernel_calls_names_both(open_compile: Open) -> None:
    source = HEAD + (
        "@triton.jit\ndef helper(x):\n    return x + tl.nonsense(x)\n\n"
        "@triton.jit\ndef caller(x):\n    tl.store(x, helper(tl.load(x)))\n"
    )
    error = open_compile().triton("caller", source, signature={"x": "*fp32"}).exception(PATIENCE)
    assert isinstance(error, headstart.SourceError)
    assert "nonsense" in str(error)
    assert "helper(tl.load(x))" in str(error)


def test_a_request_is_logged_at_no_level_that_a_user_sees(
    open_compile: Open, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    with caplog.at_level(logging.INFO), open_compile() as async_compile:
        async_compile.triton(**pointwise()).result(PATIENCE)
    assert caplog.messages == []
