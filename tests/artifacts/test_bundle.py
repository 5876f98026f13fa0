"""A bundle is there whole or not at all, and gives back the entries that went in."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headstart.artifacts import bundle as bundle_module
from headstart.artifacts import index as index_module
from headstart.artifacts import packing
from headstart.artifacts.bundle import Bundle, BundleWriter, merge_bundles
from headstart.artifacts.entry import Entry, pack_entry
from headstart.artifacts.index import ending
from headstart.errors import DamagedError, FutureVersionError

A, B, C = ("aa" * 32, "bb" * 32, "cc" * 32)
FOOTER = struct.Struct("<QQ32sL32sH8s")
FOOTER_OF_BEFORE = struct.Struct("<QQ32sH8s")


def entry(key: str, **changes: Any) -> Entry:
    fields: dict[str, Any] = {
        "key": key,
        "name": f"kernel_{key[:2]}",
        "request_digest": key[::-1],
        "toolchain": "3.6",
        "target": "cuda:90",
        "components": [],
        "metadata": {"num_warps": 4},
        "artifacts": {"ptx": b"// " + key.encode(), "cubin": b"\x7f" * 50},
        "compile_wall_s": 0.25,
        "compile_cpu_s": 0.5,
        "triton_version": "3.6.0",
        "request": b"",
        "output": "",
    }
    return Entry.from_bytes(b"".join(pack_entry(**{**fields, **changes})))


def write(path: Path, *entries: Entry) -> Path:
    with BundleWriter(path) as writer:
        for each in entries:
            writer.add(each)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "my bundles é 核" / "program.hsb"


def reseal(data: bytes, items: list[Any], more: bytes = b"") -> bytes:
    """The bundle `data` with `more` before another index, checksums right."""
    offset = FOOTER.unpack(data[-FOOTER.size :])[0]
    data = data[:offset] + more
    offset += len(more)
    index = msgspec.msgpack.encode(items)
    return data + index + ending(offset, len(index), sha256(index).digest(), [])


# Writing and reading


def test_a_bundle_gives_back_what_went_in(path: Path) -> None:
    write(path, entry(A), entry(B, toolchain="3.9"))
    bundle = Bundle.open(path)
    assert len(bundle) == 2
    assert A in bundle
    assert C not in bundle
    assert bundle.toolchains == {"3.6", "3.9"}
    first, second = bundle
    assert (first.key, first.name, first.request_digest) == (A, "kernel_aa", A[::-1])
    assert (second.toolchain, second.target, second.offset) == ("3.9", "cuda:90", 8 + first.length)
    for original in (entry(A), entry(B, toolchain="3.9")):
        found = bundle.entry(original.key)
        assert found.header == original.header
        assert found.raw() == original.raw()
    assert bundle.verify() == []


def test_the_layout_is_the_documented_one(path: Path) -> None:
    data = write(path, entry(A), entry(B)).read_bytes()
    offset, length, digest, signed, signed_digest, version, magic = FOOTER.unpack(data[-94:])
    assert (version, magic) == (4, b"\x89HSB\r\n\x1a\n")
    assert (signed, signed_digest) == (0, sha256(b"").digest())
    assert data[:8] == magic
    a, b = Bundle.open(path)
    assert (a.offset, b.offset, offset) == (8, 8 + a.length, 8 + a.length + b.length)
    frame = data[a.offset : b.offset]
    assert zstandard.ZstdDecompressor().decompress(frame) == entry(A).raw()
    index = data[offset:-94]
    assert (len(index), sha256(index).digest()) == (length, digest)
    named = [A, "kernel_aa", A[::-1], "3.6", "cuda:90", 8, len(frame), "kernel", entry(A).size, ""]
    assert msgspec.msgpack.decode(index)[0] == [*named, sha256(frame).digest()]


def test_a_bundle_may_be_empty(path: Path) -> None:
    bundle = Bundle.open(write(path))
    assert (len(bundle), list(bundle), bundle.toolchains, bundle.verify()) == (0, [], set(), [])


def test_a_key_goes_in_once(path: Path) -> None:
    with BundleWriter(path) as writer:
        assert writer.add(entry(A))
        assert not writer.add(entry(A, output="again"))
        assert A in writer
        assert len(writer) == 1
    assert Bundle.open(path).entry(A).header.output == ""


def test_a_key_that_is_not_in_the_bundle_is_a_key_error(path: Path) -> None:
    bundle = Bundle.open(write(path, entry(A)))
    with pytest.raises(KeyError):
        bundle.entry(B)
    with pytest.raises(KeyError):
        bundle.extract(path.parent, [B])


def test_opening_reads_the_index_and_no_entry(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, entry(A, artifacts={"cubin": bytes(100_000)}), entry(B))
    read: list[int] = []
    pread = os.pread

    def counting(fd: int, count: int, offset: int) -> bytes:
        read.append(count)
        return pread(fd, count, offset)

    monkeypatch.setattr(os, "pread", counting)
    Bundle.open(path)
    assert len(read) == 3  # the footer, how it begins, the index
    assert sum(read) < 1000


def test_no_file_descriptor_stays_open(path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    bundle = Bundle.open(write(path, entry(A)))
    bundle.entry(A).verify()
    assert os.listdir("/proc/self/fd") == before


def test_unknown_index_fields_are_skipped(path: Path) -> None:
    data = write(path, entry(A)).read_bytes()
    (item,) = Bundle.open(path)
    path.write_bytes(reseal(data, [[*msgspec.structs.astuple(item), "invented later"]]))
    assert Bundle.open(path).verify() == []


# Complete or not there


def test_an_older_bundle_stays_until_the_new_one_is_complete(path: Path) -> None:
    write(path, entry(A))
    with BundleWriter(path) as writer:
        writer.add(entry(B))
        assert [item.key for item in Bundle.open(path)] == [A]
        assert writer.commit() == path
        assert [item.key for item in Bundle.open(path)] == [B]
    assert os.listdir(path.parent) == ["program.hsb"]


def test_an_exception_leaves_the_older_bundle_and_nothing_else(path: Path) -> None:
    write(path, entry(A))

    def interrupted() -> None:
        with BundleWriter(path) as writer:
            writer.add(entry(B))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [item.key for item in Bundle.open(path)] == [A]
    assert os.listdir(path.parent) == ["program.hsb"]


def test_aborting_is_final_and_may_be_repeated(path: Path) -> None:
    writer = BundleWriter(path)
    writer.add(entry(A))
    writer.abort()
    writer.abort()
    with pytest.raises(ValueError):
        writer.commit()
    assert os.listdir(path.parent) == []


def test_a_commit_that_fails_leaves_the_older_bundle(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(part: Path, target: Path) -> None:
        raise OSError("no space left")

    write(path, entry(A))
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        write(path, entry(B))
    assert [item.key for item in Bundle.open(path)] == [A]
    assert os.listdir(path.parent) == ["program.hsb"]


def test_a_full_disk_while_writing_leaves_nothing(path: Path) -> None:
    writer = BundleWriter(path)
    with Path("/dev/full").open("wb") as full:
        os.dup2(full.fileno(), writer._file.fileno())
    with pytest.raises(OSError, match="No space left"), writer:
        writer.add(entry(A))
    assert os.listdir(path.parent) == []


def test_an_index_that_could_not_be_read_back_is_not_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "MAX_INDEX_BYTES", 10)
    with pytest.raises(ValueError, match="1 kernels are too many"):
        write(path, entry(A))
    assert os.listdir(path.parent) == []


def test_an_entry_that_is_gone_does_not_spoil_the_bundle(path: Path, tmp_path: Path) -> None:
    lost = tmp_path / "lost.hse"
    lost.write_bytes(entry(B).raw())
    gone = Entry.open(lost)
    lost.unlink()
    with BundleWriter(path) as writer:
        writer.add(entry(A))
        with pytest.raises(DamagedError, match="removed while in use"):
            writer.add(gone)
        writer.add(entry(C))
    assert [item.key for item in Bundle.open(path)] == [A, C]
    assert Bundle.open(path).verify() == []


def test_a_link_to_a_bundle_stays_a_link(path: Path, tmp_path: Path) -> None:
    write(path, entry(A))
    link = tmp_path / "link"
    link.symlink_to(path)
    write(link, entry(B))
    assert link.is_symlink()
    assert [item.key for item in Bundle.open(path)] == [B]


# Damage


def read_all(path: Path) -> dict[str, dict[str, bytes]]:
    bundle = Bundle.open(path)
    found = {}
    for item in bundle:
        opened = bundle.entry(item.key)
        found[item.key] = {name: opened.artifact(name) for name in opened.artifact_names}
    return found


def test_truncation_anywhere_shows_at_open(path: Path) -> None:
    size = write(path, entry(A), entry(B)).stat().st_size
    for length in reversed(range(size)):
        os.truncate(path, length)
        with pytest.raises(DamagedError) as caught:
            Bundle.open(path)
        assert caught.value.path == str(path)


def test_every_flipped_bit_is_detected(path: Path) -> None:
    data = write(path, entry(A), entry(B)).read_bytes()
    for bit in range(0, 8 * len(data), 3):
        altered = bytearray(data)
        altered[bit // 8] ^= 1 << bit % 8
        path.write_bytes(altered)
        with pytest.raises(DamagedError):
            read_all(path)


def test_bytes_too_many_show_at_open(path: Path) -> None:
    data = write(path, entry(A)).read_bytes()
    for longer in (b"\0" + data, data + b"\0", data + data):
        path.write_bytes(longer)
        with pytest.raises(DamagedError):
            Bundle.open(path)


@given(data=st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)  # a busy machine is no fault
def test_random_bytes_are_damage(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "random"
    for hostile in (data, data + bundle_module.MAGIC, data + b"\x01\0" + bundle_module.MAGIC):
        path.write_bytes(hostile)
        with pytest.raises(DamagedError):
            Bundle.open(path)


@given(
    items=st.lists(
        st.tuples(
            st.sampled_from([A, B, C, "", "../" + A[3:]]),
            *[st.sampled_from(["kernel_aa", "3.6", "cuda:90"])] * 4,
            *[st.sampled_from([-1, 0, 1, entry(A).size, entry(A).size + 1, 2**63, 2**64 - 1])] * 2,
        )
    )
    | st.binary()
    | st.none()
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_hostile_index_with_a_right_checksum_is_damage(tmp_path: Path, items: Any) -> None:
    path = tmp_path / "hostile"
    path.write_bytes(reseal(write(path, entry(A), entry(B)).read_bytes(), items))
    try:
        problems = Bundle.open(path).verify()
    except DamagedError:
        return
    assert len(problems) == len({item[0] for item in items})


def test_a_newer_version_is_told_before_anything_else_is_interpreted(path: Path) -> None:
    data = write(path, entry(A)).read_bytes()
    for rest in (b"", b"\0" * 100, data[:-10]):
        path.write_bytes(rest + struct.pack("<H", 5) + bundle_module.MAGIC)
        with pytest.raises(FutureVersionError, match="format 5 is newer than 4"):
            Bundle.open(path)


def test_an_index_that_names_another_kernel_than_lies_there_is_damage(path: Path) -> None:
    data = write(path, entry(A), entry(B)).read_bytes()
    a, b = Bundle.open(path)
    swapped = [
        msgspec.structs.replace(a, offset=b.offset, length=b.length, size=b.size, sha256=b.sha256),
        msgspec.structs.replace(b, toolchain="3.9"),
    ]
    path.write_bytes(reseal(data, swapped))
    bundle = Bundle.open(path)
    with pytest.raises(DamagedError, match=r"kernel_bb .* lies where the index says kernel_aa"):
        bundle.entry(A)
    with pytest.raises(DamagedError):
        bundle.entry(B)


def test_verify_names_the_damaged_kernel_and_the_others_can_be_read(path: Path) -> None:
    data = bytearray(write(path, entry(A), entry(B), entry(C)).read_bytes())
    item = list(Bundle.open(path))[1]
    data[item.offset + item.length - 1] ^= 1
    path.write_bytes(data)
    bundle = Bundle.open(path)
    (problem,) = bundle.verify()
    assert "kernel_bb" in problem.reason
    assert problem.path == str(path)
    bundle.entry(A).verify()
    bundle.entry(C).verify()


def test_entries_go_on_working_when_the_bundle_is_written_anew(path: Path) -> None:
    bundle = Bundle.open(write(path, entry(A), entry(B)))
    held = bundle.entry(B)
    write(path, entry(C), entry(B), entry(A))
    for _ in range(2):
        held.verify()
        assert held.raw() == entry(B).raw()
        bundle._unpacked.clear()  # what was read last is kept
    write(path, entry(C))
    with pytest.raises(DamagedError, match="replaced while in use by a bundle without kernel_bb"):
        held.verify()


WATCHED = """
import sys
from pathlib import Path
import zstandard
from headstart.artifacts.bundle import Bundle
from headstart.errors import DamagedError

def refuse(event, arguments):
    if event in ("exec", "compile", "pickle.find_class", "marshal.loads", "os.system", "subprocess.Popen"):
        raise SystemExit(f"{event} {arguments}")

sys.addaudithook(refuse)
bundle = Bundle.open(sys.argv[1])
assert bundle.verify() == []
assert bundle.entry(next(iter(bundle)).key).metadata["payload"]
"""


def test_reading_never_unpickles_or_executes(path: Path) -> None:
    payload = b"cos\nsystem\n(S'echo executed'\ntR."
    hostile = entry(
        A,
        name="__import__('os').system('echo executed')",
        metadata={"payload": payload, "__reduce__": payload, "__class__": "os.system"},
        artifacts={"cubin": payload},
        request=payload,
    )
    result = subprocess.run([sys.executable, "-c", WATCHED, str(write(path, hostile))], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


# Packing


def alike(key: str, number: int) -> Entry:
    """One of several entries of one name, which have much in common."""
    text = "".join(f"// line {line} of what all of them have in common: {line * line}\n" for line in range(500))
    return entry(key, name="alike", artifacts={"ptx": f"{text}// {number}".encode(), "cubin": os.urandom(100)})


def test_entries_of_one_name_take_little_more_than_the_first_of_them(path: Path) -> None:
    entries = [alike(f"{number:x}" * 64, number) for number in range(10)]
    first, *others = Bundle.open(write(path, *entries))
    assert first.dictionary == ""
    assert {item.dictionary for item in others} == {first.key}
    assert first.length < first.size / 3
    assert all(item.length < first.length / 3 for item in others)
    for original in reversed(entries):
        assert Bundle.open(path).entry(original.key).raw() == original.raw()


def test_reading_one_entry_reads_it_and_its_dictionary_and_no_other(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [alike(f"{number:x}" * 64, number) for number in range(10)]
    bundle = Bundle.open(write(path, *entries))
    items = {item.offset: item for item in bundle}
    read: set[int] = set()
    pread = os.pread

    def noting(fd: int, count: int, offset: int) -> bytes:
        read.add(offset)
        return pread(fd, count, offset)

    monkeypatch.setattr(os, "pread", noting)
    assert bundle.entry(entries[7].key).artifact("cubin") == entries[7].artifact("cubin")
    assert {items[offset].key for offset in read} == {entries[0].key, entries[7].key}


def test_what_does_not_shrink_lies_there_as_it_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "pack", lambda data, dictionary: data + b"longer")
    (item,) = Bundle.open(write(path, entry(A)))
    assert (item.size, item.dictionary, item.length) == (0, "", entry(A).size)
    assert Bundle.open(path).entry(A).raw() == entry(A).raw()


def test_a_bundle_of_before_is_read(path: Path) -> None:
    raw = [entry(A).raw(), entry(B).raw()]
    offsets = (0, len(raw[0]))
    items = [
        [key, f"kernel_{key[:2]}", key[::-1], "3.6", "cuda:90", offset, len(data), "kernel"]
        for key, offset, data in zip((A, B), offsets, raw, strict=True)
    ]
    index = msgspec.msgpack.encode(items)
    path.parent.mkdir(exist_ok=True)
    footer = FOOTER_OF_BEFORE.pack(sum(map(len, raw)), len(index), sha256(index).digest(), 2, bundle_module.MAGIC)
    path.write_bytes(b"".join(raw) + index + footer)
    bundle = Bundle.open(path)
    assert [bundle.entry(key).raw() for key in (A, B)] == raw
    assert bundle.verify() == []
    with BundleWriter(path) as writer:  # and becomes one of now when it is written anew
        for item in bundle:
            writer.add(bundle.entry(item.key))
    assert [Bundle.open(path).entry(key).raw() for key in (A, B)] == raw


def test_a_bundle_without_signatures_of_before_is_read(path: Path) -> None:
    original = Bundle.open(write(path, entry(A), entry(B)))
    data = path.read_bytes()[: -FOOTER.size]
    index = original.index
    path.write_bytes(data + FOOTER_OF_BEFORE.pack(index.offset, index.length, index.digest, 3, bundle_module.MAGIC))
    bundle = Bundle.open(path)
    assert (bundle.index.version, bundle.signatures, bundle.verify()) == (3, (), [])
    assert [bundle.entry(key).raw() for key in (A, B)] == [entry(key).raw() for key in (A, B)]


def test_an_index_that_lists_a_kernel_twice_is_damage(path: Path) -> None:
    data = write(path, entry(A), entry(B)).read_bytes()
    first, second = Bundle.open(path)
    path.write_bytes(reseal(data, [first, second, msgspec.structs.replace(second, key=first.key)]))
    with pytest.raises(DamagedError, match="twice"):
        Bundle.open(path)


@pytest.mark.parametrize("what", ["cut", "another size", "too much", "a chain", "no dictionary", "a bomb"])
def test_a_frame_that_is_not_what_the_index_promises_is_damage(path: Path, what: str) -> None:
    data = write(path, *(alike(f"{number:x}" * 64, number) for number in range(3))).read_bytes()
    first, second, third = Bundle.open(path)
    more = b""
    if what == "cut":
        frame = data[second.offset :][: second.length - 1]
        second = msgspec.structs.replace(second, length=len(frame), sha256=sha256(frame).digest())
    elif what == "another size":
        second = msgspec.structs.replace(second, size=second.size - 1)
    elif what == "too much":
        second = msgspec.structs.replace(second, size=packing.MAX_BYTES + 1)
    elif what == "a chain":
        second = msgspec.structs.replace(second, dictionary=third.key)
    elif what == "no dictionary":
        second = msgspec.structs.replace(second, dictionary="ff" * 32)
    else:
        more = zstandard.ZstdCompressor().compress(bytes(64 << 20))
        offset = third.offset + third.length
        digest = sha256(more).digest()
        second = msgspec.structs.replace(second, offset=offset, length=len(more), sha256=digest, dictionary="")
    path.write_bytes(reseal(data, [first, second, third], more))
    bundle = Bundle.open(path)
    with pytest.raises(DamagedError):
        bundle.entry(second.key)
    assert second.key in bundle
    assert bundle.entry(first.key).artifact("cubin")


def test_damage_to_a_dictionary_is_damage_to_those_that_need_it_and_to_no_others(path: Path) -> None:
    other = entry(A)
    data = bytearray(write(path, *(alike(f"{n:x}" * 64, n) for n in range(3)), other).read_bytes())
    first = next(iter(Bundle.open(path)))
    data[first.offset + first.length // 2] ^= 1
    path.write_bytes(data)
    assert len(Bundle.open(path).verify()) == 3
    assert Bundle.open(path).entry(A).raw() == other.raw()


# Extracting and merging


def test_extracting_writes_artifacts_and_metadata(path: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(write(path, entry(A), entry(B)))
    folders = bundle.extract(tmp_path / "out")
    assert folders == [tmp_path / "out" / f"kernel_{key[:2]}-{key[:12]}" for key in (A, B)]
    assert sorted(os.listdir(folders[0])) == ["kernel_aa.cubin", "kernel_aa.ptx", "metadata.json"]
    assert (folders[0] / "kernel_aa.ptx").read_bytes() == b"// " + A.encode()
    assert json.loads((folders[0] / "metadata.json").read_text()) == {"num_warps": 4}
    assert bundle.extract(tmp_path / "one", [B]) == [tmp_path / "one" / folders[1].name]
    assert bundle.extract(tmp_path / "out") == folders


@pytest.mark.parametrize(
    "name",
    ["../../escaped", "/escaped", "..", ".", "", "a\0b", "a/../../b", "k" * 5000, "核" * 300, "~", "a\nb"],
)
def test_extracting_never_leaves_its_folder(path: Path, tmp_path: Path, name: str) -> None:
    hostile = entry(A, name=name, artifacts={name: b"artifact"}, metadata={"x": b"bytes", name: [1]})
    out = tmp_path / "outer" / "out"
    (folder,) = Bundle.open(write(path, hostile)).extract(out)
    assert folder.parent == out
    files = [file for file in (tmp_path / "outer").rglob("*") if file.is_file()]
    assert [file.parent for file in files] == [folder] * 2
    assert {file.read_bytes() for file in files} >= {b"artifact"}


def test_merging_keeps_the_first_of_each_key(path: Path, tmp_path: Path) -> None:
    first = write(tmp_path / "first", entry(A), entry(B, output="first"))
    second = write(tmp_path / "second", entry(B, output="second"), entry(C))
    assert merge_bundles(path, first, second) == 3
    merged = Bundle.open(path)
    assert [item.key for item in merged] == [A, B, C]
    assert merged.entry(B).header.output == "first"
    assert merged.verify() == []


def test_a_bundle_may_be_merged_into_itself(path: Path, tmp_path: Path) -> None:
    write(path, entry(A))
    assert merge_bundles(path, path, write(tmp_path / "more", entry(B))) == 2
    assert Bundle.open(path).verify() == []


def test_merging_a_damaged_bundle_leaves_what_was_there(path: Path, tmp_path: Path) -> None:
    write(path, entry(A))
    (tmp_path / "damaged").write_bytes(b"not a bundle")
    with pytest.raises(DamagedError, match="damaged"):
        merge_bundles(path, path, tmp_path / "damaged")
    assert [item.key for item in Bundle.open(path)] == [A]
    assert os.listdir(path.parent) == ["program.hsb"]
