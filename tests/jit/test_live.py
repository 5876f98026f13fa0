"""Live kernels where a source is taken: AsyncCompile, the store, errors and the plans that reproduce these."""

from __future__ import annotations

import importlib
import linecache
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from conftest import PATIENCE, client_environment
from headstart import AsyncCompile, SourceError, UsageError, wire
from headstart.capture.functions import capture
from headstart.model.captured import CapturedFunction, CapturedSource
from headstart.model.request import CompileRequest
from kernels import TOOLCHAIN, pointwise

pytestmark = pytest.mark.triton

Open = Callable[..., AsyncCompile]

MODULE = """
import triton
import triton.language as tl
import users_constants as constants


@triton.jit
def scaled(value):
    return value * constants.SCALE


@triton.jit
def kernel(x, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(x + i, scaled(tl.load(x + i)), mask=i < n)


@triton.jit
def wrong_inside(value, BLOCK: tl.constexpr):
    return value + tl.arange(0, 2 * BLOCK)


@triton.jit
def wrong(x, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(x + i, wrong_inside(tl.load(x + i), BLOCK))


@triton.constexpr_function
def raising(value):
    raise ValueError(f"{value} is not my number")


@triton.jit
def raises(x, n, BLOCK: tl.constexpr):
    tl.store(x, raising(BLOCK))
"""
SIGNATURE = {"x": "*fp32", "n": "i32"}
HOW: dict[str, Any] = {"signature": SIGNATURE, "constants": {"BLOCK": 64}}


@pytest.fixture
def users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of somebody's, with kernels, which imports another one."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "users_constants.py").write_text("import triton.language as tl\nSCALE = tl.constexpr(2)\n")
    (tmp_path / "users_kernels.py").write_text(MODULE, encoding="utf-8")
    for name in ("users_constants", "users_kernels"):
        sys.modules.pop(name, None)
    return importlib.import_module("users_kernels")


def test_a_live_kernel_is_compiled_once_and_kept_although_its_module_imports_others(
    users: Any, open_compile: Open
) -> None:
    first = open_compile()
    future = first.triton(users.kernel, **HOW)
    assert first.triton(users.kernel, **HOW) is future
    kernel = future.result(PATIENCE)
    assert (kernel.name, kernel.metadata.name) == ("kernel", "kernel")
    second = open_compile()
    second.triton(users.kernel, **HOW).result(PATIENCE)
    assert second.statistics.cached == 1


def test_a_changed_value_makes_another_kernel(users: Any, open_compile: Open) -> None:
    async_compile = open_compile()
    two = async_compile.triton(users.kernel, **HOW)
    users.constants.SCALE = type(users.constants.SCALE)(3)
    three = async_compile.triton(users.kernel, **HOW)
    assert two.result(PATIENCE).asm["ptx"] != three.result(PATIENCE).asm["ptx"]


def test_workers_leave_nothing_of_one_kernel_to_the_next(users: Any, open_compile: Open) -> None:
    async_compile = open_compile(workers=1)
    before = async_compile.triton(**pointwise(), filename=users.__file__).result(PATIENCE)
    async_compile.triton(users.kernel, **HOW).result(PATIENCE)
    after = async_compile.triton(**pointwise(), filename=users.__file__, use_store=False)
    assert after is async_compile.triton(**pointwise(), filename=users.__file__, use_store=False)
    assert after.result(PATIENCE).asm["cubin"] == before.asm["cubin"]


def test_an_error_shows_the_lines_of_the_functions_that_led_to_it(users: Any, open_compile: Open) -> None:
    async_compile = open_compile()
    with pytest.raises(SourceError) as caught:
        async_compile.triton(users.wrong, **HOW).result(PATIENCE)
    assert caught.value.stage == "ttir"
    assert "return value + tl.arange(0, 2 * BLOCK)" in caught.value.detail
    with pytest.raises(SourceError) as caught:
        async_compile.triton(users.raises, **HOW).result(PATIENCE)
    line = users.raising.starting_line_number + 2
    assert f'File "{users.__file__}", line {line}, in raising' in caught.value.detail
    assert 'raise ValueError(f"{value} is not my number")' in caught.value.detail
    assert "64 is not my number" in caught.value.detail


def test_the_command_that_reproduces_a_failure_needs_nothing_of_the_program(
    users: Any, open_compile: Open, tmp_path: Path
) -> None:
    with pytest.raises(SourceError) as caught:
        open_compile().triton(users.raises, **HOW).result(PATIENCE)
    command = shlex.split(caught.value.reproduce)
    assert command[-3:-1] == ["headstart", "build"]
    assert MODULE.partition("@triton.constexpr_function")[2].partition("\n\n\n")[0] in Path(command[-1]).read_text()
    (tmp_path / "users_kernels.py").unlink()
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from headstart.cli import main; main()",
            *command[-2:],
            "-o",
            str(tmp_path / "x.bundle"),
        ],
        capture_output=True,
        text=True,
        env={**client_environment()} | {"PATH": "/usr/bin:/bin", "HEADSTART_CACHE_DIR": str(tmp_path / "again")},
    )
    assert "64 is not my number" in done.stdout + done.stderr


def test_a_kernel_of_a_notebook_cell_is_compiled_from_what_the_cell_said(open_compile: Open) -> None:
    text = textwrap.dedent(
        """
        import triton, triton.language as tl

        @triton.jit
        def cell(x, n, BLOCK: tl.constexpr):
            tl.store(x, n + BLOCK)
        """
    )
    filename = "<cell of a notebook>"
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    scope: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(text, filename, "exec", dont_inherit=True), scope)
    linecache.cache.pop(filename)
    kernel = open_compile().triton(scope["cell"], **HOW).result(PATIENCE)
    assert filename in kernel.asm["ttir"]


def test_a_name_without_a_source_says_what_is_missing(open_compile: Open) -> None:
    with pytest.raises(UsageError, match="kernel: its source is missing"):
        open_compile().triton("kernel", **HOW)


# Requests


def request(source: CapturedSource, **changes: Any) -> CompileRequest:
    return CompileRequest.make(source.kernel.name, source, **{**HOW, "target": "cuda:90", **changes})


def test_a_captured_source_keeps_its_identity_on_its_way(users: Any) -> None:
    sent = request(capture(users.kernel).named("another"))
    message = wire.decode(wire.decoder(wire.FromClient), wire.encode(wire.Submit(1, TOOLCHAIN, sent, True)))
    assert message.request == sent
    assert message.request.digest() == sent.digest()


def test_every_part_of_a_captured_source_but_the_file_is_part_of_the_identity(users: Any) -> None:
    source = capture(users.kernel)

    def changed(index: int = 0, **fields: Any) -> CapturedSource:
        functions: list[CapturedFunction] = list(source.functions)
        functions[index] = msgspec.structs.replace(functions[index], **fields)
        return msgspec.structs.replace(source, functions=functions)

    others = [
        source.named("other"),
        changed(kind="constexpr_function"),
        changed(module="elsewhere"),
        changed(1, qualname="inner.<locals>.scaled"),
        changed(1, first_line=1),
        changed(text=source.kernel.text + "\n"),
        changed(names={}),
        changed(1, defaults={"value": source.kernel.names["tl"]}),
        changed(noinline=False),
        changed(noinline=True),
        msgspec.structs.replace(source, functions=source.functions[:1]),
    ]
    digests = {request(other).digest() for other in [source, *others]}
    assert len(digests) == len(others) + 1
    assert request(changed(filename="/elsewhere.py")).digest() == request(source).digest()
    assert request(source.shown_in("/elsewhere.py")).digest() == request(source).digest()


def test_a_text_that_reads_like_a_captured_source_is_not_taken_for_it(users: Any) -> None:
    source = capture(users.kernel)
    text = CompileRequest.make("kernel", source.identity, **HOW, target="cuda:90")
    assert text.digest() != request(source).digest()
