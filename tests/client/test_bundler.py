"""The bundler writes what came back and offers what was written."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from headstart.artifacts.bundle import Bundle
from headstart.artifacts.entry import Entry, pack_entry
from headstart.client.bundler import TritonBundler
from headstart.errors import DamagedError

A, B, C = ("aa" * 32, "bb" * 32, "cc" * 32)


def entry(key: str, cubin: bytes = b"\x7fELF") -> Entry:
    return Entry.from_bytes(
        b"".join(
            pack_entry(
                key=key,
                name=f"kernel_{key[:2]}",
                request_digest=key[::-1],
                toolchain="3.9",
                target="cuda:90",
                components=[],
                metadata={},
                artifacts={"ptx": b"//", "cubin": cubin},
                compile_wall_s=0.25,
                compile_cpu_s=0.5,
                triton_version="3.9.0",
                request=b"",
                output="",
            )
        )
    )


def opener(key: str, cubin: bytes = b"\x7fELF") -> Callable[[], Entry]:
    return lambda: entry(key, cubin)


def bundler_with(*keys: str) -> TritonBundler:
    made = TritonBundler(len)
    made.begin_compile()
    for key in keys:
        made.put(key, opener(key))
    return made


def keys_in(path: Path) -> list[str]:
    return [item.key for item in Bundle.open(path)]


@pytest.fixture
def bundler() -> TritonBundler:
    return TritonBundler(len)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "program.hsb"


def test_what_was_noted_during_a_compile_is_collected(bundler: TritonBundler, path: Path) -> None:
    bundler.begin_compile()
    bundler.put(A, opener(A))
    bundler.put(B, opener(B))
    assert bundler.noted == 2
    assert bundler.collect(str(path)) == path
    assert keys_in(path) == [A, B]
    assert Bundle.open(path).verify() == []


def test_noting_opens_nothing(bundler: TritonBundler) -> None:
    bundler.begin_compile()
    bundler.put(A, lambda: pytest.fail("opened while it was noted"))


def test_a_kernel_noted_twice_is_collected_once_as_it_was_noted_last(bundler: TritonBundler, path: Path) -> None:
    bundler.begin_compile()
    bundler.put(A, opener(A, b"first"))
    bundler.put(A, opener(A, b"second"))
    assert bundler.noted == 1
    bundler.collect(path)
    assert Bundle.open(path).entry(A).artifact("cubin") == b"second"


def test_outside_a_compile_nothing_is_noted(bundler: TritonBundler, path: Path) -> None:
    bundler.put(A, opener(A))
    assert bundler.noted == 0
    bundler.begin_compile()
    bundler.put(B, opener(B))
    bundler.end_compile()
    bundler.put(C, opener(C))
    assert bundler.noted == 0
    bundler.collect(path)
    assert keys_in(path) == []


def test_a_new_compile_forgets_the_one_before(bundler: TritonBundler, path: Path) -> None:
    for key in (A, B):
        bundler.begin_compile()
        bundler.put(key, opener(key))
    bundler.collect(path)
    assert keys_in(path) == [B]


def test_collecting_does_not_end_the_compile(bundler: TritonBundler, path: Path) -> None:
    bundler.begin_compile()
    bundler.put(A, opener(A))
    bundler.collect(path)
    bundler.put(B, opener(B))
    bundler.collect(path)
    assert keys_in(path) == [A, B]


def test_a_bundle_that_is_read_is_emitted_and_the_answer_is_returned(bundler: TritonBundler, path: Path) -> None:
    bundler.begin_compile()
    bundler.put(A, opener(A))
    bundler.put(B, opener(B))
    bundler.collect(path)
    emitted = []

    def emit(bundle: Bundle) -> int:
        emitted.append([item.key for item in bundle])
        return 1

    assert TritonBundler(emit).read_and_emit(path) == 1
    assert emitted == [[A, B]]


def test_what_was_missing_is_added_to_what_was_read(bundler: TritonBundler, path: Path) -> None:
    bundler.begin_compile()
    bundler.put(A, opener(A))
    bundler.collect(path)
    later = TritonBundler(len)
    later.begin_compile()
    assert later.read_and_emit(path) == 1
    later.put(B, opener(B))
    later.collect(path)
    assert sorted(keys_in(path)) == [A, B]
    assert Bundle.open(path).verify() == []


def test_a_bundle_read_twice_is_collected_once(bundler: TritonBundler, path: Path) -> None:
    bundler.begin_compile()
    bundler.put(A, opener(A))
    bundler.collect(path)
    later = TritonBundler(len)
    for _ in range(2):
        later.read_and_emit(path)
    later.collect(path)
    assert keys_in(path) == [A]


@pytest.mark.parametrize("where", ["header", "artifact"])
def test_a_damaged_kernel_of_a_bundle_is_replaced_by_the_one_that_was_compiled_instead(
    where: str, bundler: TritonBundler, path: Path
) -> None:
    bundler.begin_compile()
    bundler.put(A, opener(A))
    bundler.put(B, opener(B))
    bundler.collect(path)
    data = bytearray(path.read_bytes())
    item = next(iter(Bundle.open(path)))
    data[item.offset + (50 if where == "header" else item.length - 1)] ^= 1
    path.write_bytes(data)
    assert len(Bundle.open(path).verify()) == 1
    later = TritonBundler(len)
    later.begin_compile()
    later.read_and_emit(path)
    later.put(A, opener(A))
    later.collect(path)
    assert sorted(keys_in(path)) == [A, B]
    assert Bundle.open(path).verify() == []


def test_a_damaged_kernel_that_nobody_compiled_again_does_not_keep_the_others_from_being_written(
    bundler: TritonBundler, path: Path
) -> None:
    bundler.begin_compile()
    bundler.put(A, opener(A))
    bundler.collect(path)
    data = bytearray(path.read_bytes())
    data[50] ^= 1
    path.write_bytes(data)
    later = TritonBundler(len)
    later.begin_compile()
    later.read_and_emit(path)
    later.put(B, opener(B))
    later.collect(path)
    assert B in keys_in(path)


def test_a_missing_or_damaged_bundle_is_told_and_not_emitted(path: Path) -> None:
    bundler = TritonBundler(lambda bundle: pytest.fail("emitted"))
    with pytest.raises(FileNotFoundError):
        bundler.read_and_emit(path)
    path.write_bytes(b"not a bundle")
    with pytest.raises(DamagedError):
        bundler.read_and_emit(path)


def test_a_kernel_that_cannot_be_opened_leaves_the_bundle_as_it_was(bundler: TritonBundler, path: Path) -> None:
    bundler.begin_compile()
    bundler.put(A, opener(A))
    bundler.collect(path)
    before = path.read_bytes()

    def broken() -> Entry:
        raise OSError("the disk is gone")

    bundler.put(B, broken)
    with pytest.raises(OSError, match="the disk is gone"):
        bundler.collect(path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


# Several clients, one bundle


def test_clients_that_extend_one_bundle_keep_what_the_others_wrote(path: Path) -> None:
    first, second = bundler_with(A, B), bundler_with(B, C)
    first.extend(path)
    second.extend(path)
    assert sorted(keys_in(path)) == [A, B, C]


def test_clients_may_extend_a_bundle_at_once(path: Path) -> None:
    keys = [f"{number:02x}" * 32 for number in range(16)]
    bundlers = [bundler_with(key) for key in keys]
    threads = [threading.Thread(target=each.extend, args=(path,)) for each in bundlers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(keys_in(path)) == keys


def test_a_damaged_bundle_is_written_anew(path: Path) -> None:
    bundler_with(B).extend(path)
    path.write_bytes(path.read_bytes()[:-20])
    bundler_with(A).extend(path)
    assert keys_in(path) == [A]
