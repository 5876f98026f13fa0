"""A compiled kernel is read as far as it is used, and repairs itself when its entry turns out to be damaged."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from headstart.artifacts.entry import Entry, pack_entry
from headstart.client.kernel import CompiledKernel, KernelMetadata
from headstart.errors import DamagedError

ARTIFACTS = {"ttir": "module {}", "ptx": "// é\n.version 8.0", "cubin": "\x7fELF"}
KEY = "ab" * 32


def packed(**changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "key": KEY,
        "name": "add_kernel",
        "request_digest": "cd" * 32,
        "toolchain": "ef" * 32,
        "target": "cuda:90",
        "components": [],
        "metadata": {"name": "add_kernel_0d1d", "shared": 1024, "num_warps": 4},
        "artifacts": {name: text.encode() for name, text in ARTIFACTS.items()},
        "compile_wall_s": 0.25,
        "compile_cpu_s": 0.5,
        "triton_version": "3.9.0",
        "request": b"",
        "output": "",
    }
    return b"".join(pack_entry(**{**fields, **changes}))


def no_rebuild(error: DamagedError) -> Entry:
    pytest.fail(f"rebuilt because of {error}")


@pytest.fixture
def kernel() -> CompiledKernel:
    return CompiledKernel(Entry.from_bytes(packed()), no_rebuild)


def damage(path: Path) -> None:
    """Alter the last artifact, which is the cubin."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_kernel_tells_its_name_and_its_identity(kernel: CompiledKernel) -> None:
    assert (kernel.name, kernel.key) == ("add_kernel", KEY)
    assert repr(kernel) == f"<CompiledKernel add_kernel {KEY[:12]} for cuda:90>"


def test_binaries_are_bytes_and_the_rest_is_text(kernel: CompiledKernel) -> None:
    assert kernel.asm["cubin"] == b"\x7fELF"
    assert kernel.asm["ptx"] == "// é\n.version 8.0"
    amd = CompiledKernel(Entry.from_bytes(packed(artifacts={"hsaco": b"\xff", "amdgcn": b"s_endpgm"})), no_rebuild)
    assert dict(amd.asm) == {"hsaco": b"\xff", "amdgcn": "s_endpgm"}


def test_artifacts_are_listed_without_being_read(tmp_path: Path) -> None:
    path = tmp_path / "x.hse"
    path.write_bytes(packed())
    kernel = CompiledKernel(Entry.open(path), no_rebuild)
    path.unlink()
    assert list(kernel.asm) == list(ARTIFACTS)
    assert len(kernel.asm) == 3
    assert "ptx" in repr(kernel.asm)


@pytest.mark.parametrize("name", ["sass", "hsaco"])
def test_an_artifact_that_there_is_not_is_a_missing_key(kernel: CompiledKernel, name: str) -> None:
    with pytest.raises(KeyError):
        kernel.asm[name]
    assert kernel.asm.get(name) is None


def test_metadata_is_read_by_key_and_by_attribute(kernel: CompiledKernel) -> None:
    assert kernel.metadata.shared == kernel.metadata["shared"] == 1024
    assert kernel.metadata.name == "add_kernel_0d1d"
    assert dict(kernel.metadata) == {"name": "add_kernel_0d1d", "shared": 1024, "num_warps": 4}
    assert len(kernel.metadata) == 3
    assert "num_warps" in repr(kernel.metadata)


def test_metadata_that_there_is_not_is_told_with_what_there_is(kernel: CompiledKernel) -> None:
    with pytest.raises(AttributeError, match="no 'num_ctas'; it has name, shared, num_warps"):
        _ = kernel.metadata.num_ctas
    assert getattr(kernel.metadata, "num_ctas", 1) == 1
    with pytest.raises(KeyError):
        kernel.metadata["num_ctas"]


def test_metadata_cannot_be_changed_by_those_who_share_it() -> None:
    given = {"shared": 1024}
    metadata = KernelMetadata(given)
    given["shared"] = 0
    assert metadata.shared == 1024
    with pytest.raises(TypeError):
        metadata["shared"] = 0  # type: ignore[index]


def test_nested_metadata_cannot_be_changed_either() -> None:
    metadata = KernelMetadata({"cluster_dims": [1, 1], "hash": {"deep": [{}]}})
    assert metadata.cluster_dims == (1, 1)
    for change in (
        lambda: setattr(metadata, "shared", 0),
        lambda: metadata["hash"].update(deep=0),
        lambda: metadata["hash"]["deep"][0].update(deep=0),
    ):
        with pytest.raises(AttributeError):
            change()


def test_metadata_can_be_copied() -> None:
    assert dict(copy.copy(KernelMetadata({"shared": 1024}))) == {"shared": 1024}


def test_a_damaged_artifact_is_rebuilt_and_what_is_whole_is_not(tmp_path: Path) -> None:
    path = tmp_path / "x.hse"
    path.write_bytes(packed())
    reasons = []

    def rebuild(error: DamagedError) -> Entry:
        reasons.append(error.reason)
        return Entry.from_bytes(packed(artifacts={**{n: t.encode() for n, t in ARTIFACTS.items()}, "cubin": b"new"}))

    kernel = CompiledKernel(Entry.open(path), rebuild)
    damage(path)
    assert kernel.asm["ttir"] == "module {}"
    assert reasons == []
    assert kernel.asm["cubin"] == b"new"
    assert len(reasons) == 1
    assert kernel.asm["cubin"] == b"new"
    assert len(reasons) == 1, "the new entry stays"


def test_an_entry_that_vanished_is_rebuilt(tmp_path: Path) -> None:
    path = tmp_path / "x.hse"
    path.write_bytes(packed())
    kernel = CompiledKernel(Entry.open(path), lambda error: Entry.from_bytes(packed()))
    path.unlink()
    assert kernel.asm["cubin"] == b"\x7fELF"


def test_a_rebuilt_entry_that_is_damaged_too_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.hse"
    path.write_bytes(packed())
    kernel = CompiledKernel(Entry.open(path), lambda error: Entry.open(path))
    damage(path)
    with pytest.raises(DamagedError):
        kernel.asm["cubin"]
