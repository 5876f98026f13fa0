"""A kernel is an entry of Triton's own cache when its client is told of it, if the client wants that."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import PATIENCE
from headstart import AsyncCompile, CompiledKernel, wire
from headstart.artifacts import triton_cache
from headstart.artifacts.cubin import registers
from headstart.client.policy import Policy
from headstart.errors import DamagedError
from headstart.model.request import CompileRequest
from kernels import pointwise, raises

pytestmark = pytest.mark.triton

HASH = hashlib.sha256(b"what Triton would make of it").hexdigest()


class Told:
    """An AsyncCompile that notes what the service answers."""

    def __init__(self, **how: bool) -> None:
        self.results: list[wire.Result] = []
        policy = Policy(answered=lambda request, result: self.results.append(result))
        self.compiler = AsyncCompile(target="cuda:90", policy=policy, **how)

    def compile(self, folder: Path | bytes, **how: object) -> CompiledKernel:
        request = CompileRequest.make(**pointwise(), target="cuda:90")
        place = wire.TritonCache(os.fsencode(folder), HASH, "pointwise")
        return self.compiler.submit(request, triton_cache=place, **how).result(PATIENCE)  # type: ignore[arg-type]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def told() -> Iterator[Told]:
    made = Told()
    yield made
    made.compiler.close()


def test_a_worker_writes_what_the_client_would_write(told: Told, tmp_path: Path) -> None:
    kernel = told.compile(tmp_path / "there" / "entry")
    (result,) = told.results
    assert result.in_triton_cache
    assert not result.cached
    assert result.registers == registers(kernel.asm["cubin"], kernel.metadata.name)
    assert result.registers
    mine = tmp_path / "mine" / "entry"
    triton_cache.write(str(mine), HASH, "pointwise", dict(kernel.asm), kernel.entry.metadata)
    theirs, expected = files(tmp_path / "there" / "entry"), files(mine)
    group = "__grp__pointwise.json"
    assert theirs.pop(group).replace(b"/there/", b"/mine/") == expected.pop(group)
    assert theirs == expected
    assert not list((tmp_path / "there").glob("tmp.*"))
    found = triton_cache.find(str(tmp_path / "there" / "entry"), "pointwise")
    assert found is not None
    assert Path(found["pointwise.cubin"]).read_bytes() == kernel.asm["cubin"]


def test_what_is_in_the_store_is_written_too(told: Told, tmp_path: Path) -> None:
    told.compile(tmp_path / "first")
    again = Told()
    try:
        again.compile(tmp_path / "second")
    finally:
        again.compiler.close()
    (first,), (second,) = told.results, again.results
    assert (second.cached, second.in_triton_cache, second.registers) == (True, True, first.registers)
    assert files(tmp_path / "second").keys() == files(tmp_path / "first").keys()


def test_what_is_stored_nowhere_is_written_too(told: Told, tmp_path: Path) -> None:
    told.compile(tmp_path / "entry", use_store=False)
    assert told.results[0].in_triton_cache
    assert triton_cache.find(str(tmp_path / "entry"), "pointwise")


def test_where_it_cannot_be_written_the_kernel_comes_and_the_client_is_told_so(told: Told, tmp_path: Path) -> None:
    (tmp_path / "a file").touch()
    kernel = told.compile(tmp_path / "a file" / "entry")
    assert kernel.asm["cubin"]
    assert not told.results[0].in_triton_cache


def test_half_an_entry_is_completed(told: Told, tmp_path: Path) -> None:
    folder = tmp_path / "entry"
    folder.mkdir()
    (folder / "pointwise.cubin").write_bytes(b"half")
    kernel = told.compile(folder)
    assert (folder / "pointwise.cubin").read_bytes() == kernel.asm["cubin"]


def test_of_two_who_want_one_kernel_in_two_places_each_is_told_of_its_own(tmp_path: Path) -> None:
    one, two = Told(), Told()
    try:
        kernels = [told.compile(tmp_path / name) for told, name in ((one, "one"), (two, "two"))]
        for told, name in ((one, "one"), (two, "two")):
            assert told.results[0].in_triton_cache == (tmp_path / name).exists()
        assert kernels[0].asm["cubin"] == kernels[1].asm["cubin"]
    finally:
        one.compiler.close()
        two.compiler.close()


def test_a_kernel_that_fails_leaves_nothing_there(told: Told, tmp_path: Path) -> None:
    request = CompileRequest.make(**raises(), target="cuda:90")
    place = wire.TritonCache(os.fsencode(tmp_path / "entry"), HASH, "pointwise")
    assert told.compiler.submit(request, triton_cache=place).exception(PATIENCE)
    assert not list(tmp_path.iterdir())


def test_what_is_no_part_of_a_kernel_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(DamagedError, match="no part of a kernel"):
        triton_cache.write(str(tmp_path / "entry"), HASH, "k", {"so": b"a library"}, {})
    assert not list(tmp_path.iterdir())
