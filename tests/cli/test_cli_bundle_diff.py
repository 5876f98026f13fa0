"""`headstart bundle diff`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from test_cli import KERNEL, run

from headstart.artifacts.bundle import BundleWriter
from headstart.artifacts.entry import Entry, pack_entry
from headstart.model import keys
from headstart.model.request import CompileRequest


@pytest.fixture(autouse=True)
def _a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def entry(
    name: str = "scale",
    source: str = KERNEL,
    *,
    kind: str = "kernel",
    toolchain: str = "d" * 64,
    triton: str = "3.9.0",
    encoded: bytes | None = None,
    **changes: Any,
) -> Entry:
    fields: dict[str, Any] = {"signature": {"x": "*fp32"}, "target": "cuda:90", "environment": {}} | changes
    request = CompileRequest.make(name, source, **fields)
    parts = pack_entry(
        key=keys.digest([("kind", kind), ("key", keys.entry_key(toolchain, request.digest()))]),
        kind=kind,
        name=name,
        request_digest=request.digest(),
        toolchain=toolchain,
        target=request.target if kind == "kernel" else "",
        components=[("format", "2"), ("toolchain", toolchain), *request.components()] if kind == "kernel" else [],
        metadata={},
        artifacts={"cubin": b"\x7fELF"},
        compile_wall_s=0.1,
        compile_cpu_s=0.1,
        triton_version=triton,
        request=msgspec.msgpack.encode(request) if encoded is None else encoded,
        output="",
    )
    return Entry.from_bytes(b"".join(parts))


def write(path: str, *entries: Entry) -> None:
    with BundleWriter(path) as writer:
        for each in entries:
            assert writer.add(each)


def test_it_says_what_only_one_has_and_why_kernels_differ() -> None:
    both = entry("both"), entry("both", kind="recipe")
    write("a.bundle", *both, entry("gone"), entry(options={"num_warps": 4}, constants={(3,): 64}))
    write(
        "b.bundle",
        *both,
        entry("come"),
        entry(options={"num_warps": 8}, constants={(3,): 64}),
        entry("graph", kind="graphs"),
    )
    result = run("bundle", "diff", "a.bundle", "b.bundle")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert [line[0] for line in lines] == ["-", "+", "+", "~", " "]
    assert "gone" in lines[0]
    assert "come" in lines[1]
    assert lines[2].endswith("graph  (graphs)")
    assert lines[3].endswith("scale  BLOCK=64, num_warps=8")
    assert lines[4] == "    options.num_warps was 4, now 8"
    assert result.stderr == (
        "1 kernel only in a.bundle, 1 kernel (and 1 graphs) only in b.bundle, 1 changed, "
        "1 kernel (and 1 recipe) in both\n"
    )


def test_a_constant_that_differs_is_called_by_its_parameter_s_name() -> None:
    write("a.bundle", entry(constants={(2,): 3}))
    write("b.bundle", entry(constants={(2,): 5}))
    assert "    constants.FACTOR was 3, now 5" in run("bundle", "diff", "a.bundle", "b.bundle").stdout.splitlines()


def test_a_source_that_differs_is_told_by_its_first_line() -> None:
    write("a.bundle", entry())
    write("b.bundle", entry(source=KERNEL.replace("* FACTOR", "+ FACTOR")))
    assert "source differs first at line 8: was" in run("bundle", "diff", "a.bundle", "b.bundle").stdout


def test_another_toolchain_is_told_with_its_triton() -> None:
    write("a.bundle", entry(triton="3.6.0"))
    write("b.bundle", entry(toolchain="e" * 64))
    said = f"    toolchain was {'d' * 12} (Triton 3.6.0), now {'e' * 12} (Triton 3.9.0)"
    assert run("bundle", "diff", "a.bundle", "b.bundle").stdout.splitlines()[1:] == [said]


def test_as_json_each_difference_is_an_object() -> None:
    old, new = entry(options={"num_warps": 4}), entry(options={"num_warps": 8})
    graphs = entry(kind="graphs")
    write("a.bundle", old, graphs)
    write("b.bundle", new)
    lines = [json.loads(line) for line in run("bundle", "diff", "--json", "a.bundle", "b.bundle").stdout.splitlines()]
    assert lines == [
        {"change": "removed", "kind": "graphs", "key": graphs.key, "name": "scale", "target": ""},
        {
            "change": "changed",
            "kind": "kernel",
            "key": new.key,
            "name": "scale",
            "target": "cuda:90",
            "before": old.key,
            "reasons": ["options.num_warps was 4, now 8"],
        },
    ]


def test_a_bundle_is_no_different_from_itself() -> None:
    write("a.bundle", entry(), entry("other"), entry(kind="failure"))
    result = run("bundle", "diff", "a.bundle", "a.bundle")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "2 kernels (and 1 failure) in both" in result.stderr


def test_what_a_stranger_wrote_is_not_trusted_with_the_terminal() -> None:
    write("a.bundle", entry(constants={"B": "\x1b[31m"}, encoded=b"\xc1 no request"))
    write("b.bundle", entry(constants={"B": "\x1b[32m"}), entry("k", kind="\x1b]0;owned\x07"))
    result = run("bundle", "diff", "a.bundle", "b.bundle")
    assert result.exit_code == 0
    assert "\x1b" not in result.output
    assert "\x1b" not in run("bundle", "diff", "--json", "a.bundle", "b.bundle").output


@pytest.mark.parametrize("damage", ["index", "entry"])
def test_a_damaged_bundle_is_named(damage: str) -> None:
    write("a.bundle")
    write("b.bundle", entry())
    data = Path("b.bundle").read_bytes()
    spoiled = data[:-1] if damage == "index" else data[:60] + bytes([data[60] ^ 1]) + data[61:]
    Path("b.bundle").write_bytes(spoiled)
    result = run("bundle", "diff", "a.bundle", "b.bundle")
    assert result.exit_code == 2
    assert result.stderr.startswith("headstart: ")
    assert "b.bundle" in result.stderr
