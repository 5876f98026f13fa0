"""An entry is what was packed, or `DamagedError`."""

from __future__ import annotations

import os
import struct
import tracemalloc
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.artifacts import entry as entry_module
from headstart.artifacts.entry import Entry, pack_entry
from headstart.errors import DamagedError, FutureVersionError

KEY = "ab" * 32
ARTIFACTS = {"ttir": b"module {}", "cubin": bytes(range(256)), "empty": b""}
PREFIX = struct.Struct("<8sHI32s")


def pack(**changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "key": KEY,
        "name": "add_kernel",
        "request_digest": "cd" * 32,
        "toolchain": "ef" * 32,
        "target": "cuda:90",
        "components": [("name", "add_kernel"), ("options.num_warps", "4")],
        "metadata": {"num_warps": 4, "shared": 0, "name": "add_kernel", "cluster_dims": [1, 1, 1]},
        "artifacts": ARTIFACTS,
        "compile_wall_s": 0.25,
        "compile_cpu_s": 0.5,
        "triton_version": "3.6.0",
        "request": b"\x80",
        "output": "",
    }
    return b"".join(pack_entry(**{**fields, **changes}))


def with_header(header: bytes, body: bytes = b"") -> bytes:
    """An entry whose header has the right checksum, whatever is in it."""
    return PREFIX.pack(entry_module.MAGIC, entry_module.VERSION, len(header), sha256(header).digest()) + header + body


def header_fields(data: bytes) -> dict[str, Any]:
    length = PREFIX.unpack_from(data)[2]
    fields: dict[str, Any] = msgspec.msgpack.decode(data[PREFIX.size : PREFIX.size + length])
    return fields


def changed_header(**changes: Any) -> bytes:
    return with_header(msgspec.msgpack.encode({**header_fields(VALID), **changes}), b"".join(ARTIFACTS.values()))


VALID = pack()


def read_all(data: bytes) -> dict[str, bytes]:
    entry = Entry.from_bytes(data)
    return {name: entry.artifact(name) for name in entry.artifact_names}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a kernel é 核.hse"
    path.write_bytes(VALID)
    return path


def test_a_file_gives_back_what_was_packed(path: Path) -> None:
    entry = Entry.open(path)
    assert (entry.key, entry.name, entry.header.target) == (KEY, "add_kernel", "cuda:90")
    assert entry.header.components == [("name", "add_kernel"), ("options.num_warps", "4")]
    assert entry.metadata["cluster_dims"] == [1, 1, 1]
    assert entry.header.request == b"\x80"
    assert {name: entry.artifact(name) for name in entry.artifact_names} == ARTIFACTS
    assert entry.path == path
    assert entry.size == len(VALID)
    assert entry.raw() == VALID
    entry.verify()


def test_the_layout_is_the_documented_one() -> None:
    magic, version, length, digest = PREFIX.unpack_from(VALID)
    header = VALID[46 : 46 + length]
    assert (magic, version) == (b"\x89HSE\r\n\x1a\n", 2)
    assert digest == sha256(header).digest()
    assert VALID[46 + length :] == b"".join(ARTIFACTS.values())
    assert [info["name"] for info in msgspec.msgpack.decode(header)["artifacts"]] == list(ARTIFACTS)


def test_an_entry_in_memory_reads_like_one_in_a_file() -> None:
    entry = Entry.from_bytes(VALID)
    assert read_all(VALID) == ARTIFACTS
    assert entry.path is None
    assert entry.raw() == VALID


def test_an_entry_may_lie_inside_a_larger_file(tmp_path: Path) -> None:
    path = tmp_path / "many"
    path.write_bytes(b"before" + VALID + b"after")
    entry = Entry.open(path, offset=6, length=len(VALID))
    assert entry.artifact("cubin") == ARTIFACTS["cubin"]
    assert entry.raw() == VALID


def test_an_entry_outlives_a_change_of_the_working_directory(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    entry = Entry.open(path.name)
    monkeypatch.chdir("/")
    assert entry.artifact("ttir") == ARTIFACTS["ttir"]


def test_no_file_descriptor_stays_open(path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    entry = Entry.open(path)
    entry.verify()
    path.write_bytes(VALID[:-1])
    with pytest.raises(DamagedError):
        Entry.open(path)
    assert os.listdir("/proc/self/fd") == before


def test_an_artifact_that_does_not_exist_is_a_key_error(path: Path) -> None:
    with pytest.raises(KeyError, match="hsaco"):
        Entry.open(path).artifact("hsaco")


def test_a_file_that_does_not_exist_is_not_damaged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Entry.open(tmp_path / "absent")


def test_unknown_header_fields_are_skipped() -> None:
    assert read_all(changed_header(invented_later={"deep": [1, 2]})) == ARTIFACTS


def test_metadata_that_is_not_plain_data_cannot_be_packed() -> None:
    with pytest.raises(TypeError):
        pack(metadata={"launcher": object()})


# Damage


def test_truncation_anywhere_shows_at_open(path: Path) -> None:
    for length in reversed(range(len(VALID))):
        os.truncate(path, length)
        with pytest.raises(DamagedError) as caught:
            Entry.open(path)
        assert caught.value.path == str(path)
        assert not isinstance(caught.value, FutureVersionError)
        with pytest.raises(DamagedError):
            Entry.from_bytes(VALID[:length])


def test_bytes_too_many_show_at_open() -> None:
    with pytest.raises(DamagedError, match="should be"):
        Entry.from_bytes(VALID + b"\0")


def test_every_flipped_bit_is_detected() -> None:
    for bit in range(8 * len(VALID)):
        altered = bytearray(VALID)
        altered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DamagedError):
            read_all(bytes(altered))


def test_a_damaged_artifact_is_named_and_the_others_can_be_read() -> None:
    entry = Entry.from_bytes(VALID[:-1] + b"\0")
    assert entry.artifact("ttir") == ARTIFACTS["ttir"]
    with pytest.raises(DamagedError, match=r"add_kernel \(abababababab\): artifact 'cubin'"):
        entry.artifact("cubin")


@pytest.mark.parametrize("rest", [b"", b"\0" * 36, VALID[10:]])
def test_a_newer_version_is_told_before_anything_else_is_interpreted(rest: bytes) -> None:
    with pytest.raises(FutureVersionError, match="format 3 is newer than 2"):
        Entry.from_bytes(entry_module.MAGIC + struct.pack("<H", 3) + rest)


def test_version_zero_is_damage() -> None:
    with pytest.raises(DamagedError) as caught:
        Entry.from_bytes(entry_module.MAGIC + struct.pack("<H", 0) + VALID[10:])
    assert not isinstance(caught.value, FutureVersionError)


def test_a_corrupt_header_length_allocates_nothing(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    path.write_bytes(PREFIX.pack(entry_module.MAGIC, entry_module.VERSION, 2**32 - 1, bytes(32)))
    os.truncate(path, 2**33)
    tracemalloc.start()
    try:
        with pytest.raises(DamagedError):
            Entry.open(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_what_could_not_be_read_back_is_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry_module, "MAX_HEADER_BYTES", 1000)
    with pytest.raises(ValueError, match=r"add_kernel: .* room for 1000"):
        pack(output="x" * 1000)


@pytest.mark.parametrize(
    "changes",
    [
        {"key": "../../" + KEY[6:]},
        {"key": KEY + "\n"},
        {"artifacts": [{"name": "a", "length": -1, "sha256": bytes(32)}]},
        {"artifacts": [{"name": "a", "length": 265, "sha256": b""}]},
        {"artifacts": [{"name": "a", "length": length, "sha256": bytes(32)} for length in (65, 200)]},
        {"artifacts": [{"name": "a", "length": 2**64 - 1, "sha256": bytes(32)}]},
        {"metadata": []},
        {"name": None},
    ],
)
def test_a_header_that_makes_no_sense_is_damage(changes: dict[str, Any]) -> None:
    with pytest.raises(DamagedError):
        Entry.from_bytes(changed_header(**changes))


@pytest.mark.parametrize(
    "header",
    [
        b"\x81\xa8metadata\x81\xa1a" + b"\x91" * 100_000 + b"\xc0",  # nested too deeply
        b"\x81\xa8metadata\x81\xa1a\xdd\xff\xff\xff\xff",  # an array of four billion
        b"\x81\xa8metadata\x81\xa1a\x81\x80\x01",  # a map as a key
        b"\x81\xa4name\xa1\xff",  # not UTF-8
        b"\x81\xa8metadata\x81\xa1a\xc7\x0c\xff" + b"\xff" * 12,  # a time out of range
        b"",
    ],
)
def test_a_hostile_header_with_a_right_checksum_is_damage(header: bytes) -> None:
    with pytest.raises(DamagedError):
        Entry.from_bytes(with_header(header))


@given(st.binary(max_size=200))
def test_random_bytes_are_damage(data: bytes) -> None:
    for hostile in (data, entry_module.MAGIC + data, VALID[:10] + data):
        with pytest.raises(DamagedError):
            Entry.from_bytes(hostile)


texts = st.text(alphabet="aZ0_./\0é核", max_size=8)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | texts,
    lambda children: st.lists(children, max_size=4) | st.dictionaries(texts, children, max_size=4),
    max_leaves=10,
)


@given(st.binary(max_size=100) | st.dictionaries(st.sampled_from(sorted(header_fields(VALID))), json_values))
def test_random_headers_with_a_right_checksum_are_damage(header: Any) -> None:
    encoded = header if isinstance(header, bytes) else msgspec.msgpack.encode({**header_fields(VALID), **header})
    try:
        read_all(with_header(encoded, b"".join(ARTIFACTS.values())))
    except DamagedError:
        pass


@given(
    artifacts=st.dictionaries(texts, st.binary(max_size=100)),
    metadata=st.dictionaries(texts, json_values),
    output=texts,
)
def test_whatever_is_packed_comes_back(artifacts: dict[str, bytes], metadata: dict[str, Any], output: str) -> None:
    data = pack(artifacts=artifacts, metadata=metadata, output=output)
    assert read_all(data) == artifacts
    header = Entry.from_bytes(data).header
    assert (header.metadata, header.output) == (metadata, output)


# The file changes under its reader


def replace(path: Path, data: bytes) -> None:
    other = path.with_name("other")
    other.write_bytes(data)
    other.replace(path)


def test_an_entry_replaced_by_an_equal_one_goes_on_working(path: Path) -> None:
    entry = Entry.open(path)
    again = pack(output="another run of the same compile, with a longer header")
    replace(path, again)
    assert {name: entry.artifact(name) for name in entry.artifact_names} == ARTIFACTS
    assert entry.raw() == again


def test_an_entry_replaced_by_one_with_other_artifacts_is_damaged(path: Path) -> None:
    entry = Entry.open(path)
    replace(path, pack(artifacts={**ARTIFACTS, "cubin": b"other"}))
    assert entry.artifact("ttir") == ARTIFACTS["ttir"]
    with pytest.raises(DamagedError, match="cubin"):
        entry.artifact("cubin")


def test_an_entry_replaced_by_another_kernel_is_damaged(path: Path) -> None:
    entry = Entry.open(path)
    replace(path, pack(key="12" * 32, name="the_other_kernel", output="so that the header is longer"))
    for read in (entry.raw, entry.verify):
        with pytest.raises(DamagedError, match=r"replaced while in use by the_other_kernel \(121212"):
            read()


def test_an_entry_removed_while_in_use_is_damaged(path: Path) -> None:
    entry = Entry.open(path)
    path.unlink()
    for read in (entry.raw, entry.verify):
        with pytest.raises(DamagedError, match="removed while in use"):
            read()


def test_a_file_truncated_under_its_reader_is_damage_and_no_crash(path: Path) -> None:
    entry = Entry.open(path)
    os.truncate(path, 100)
    for read in (entry.raw, entry.verify):
        with pytest.raises(DamagedError, match="truncated"):
            read()
