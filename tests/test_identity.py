"""What makes two compiles the same, and what a compiled kernel is: whole, plain data, shared, immutable."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

import headstart
from conftest import PATIENCE, Client, client_environment
from headstart import AsyncCompile, CompiledKernel, wire
from headstart.artifacts.bundle import Bundle
from headstart.artifacts.entry import Entry, pack_entry
from headstart.model.request import CompileRequest
from headstart.stores.disk import DiskStore
from kernels import HEAD, TOOLCHAIN, Gate, Kernel, hanging_ptxas, matmul, pointwise

pytestmark = pytest.mark.triton

Open = Callable[..., AsyncCompile]
Start = Callable[..., Client]


# The same bytes as in the user's own process

IN_PROCESS = """
import base64, json, linecache, sys, types
from kernels import matmul, pointwise

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

def compile_here(name, source, signature, constants, attrs=None, options=None, backend="cuda", arch=90):
    filename = f"{name}.py"
    module = types.ModuleType(name)
    sys.modules[name] = module
    module.__file__ = filename
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    exec(compile(source, filename, "exec"), module.__dict__)
    function = getattr(module, name)
    types_ = {p: "constexpr" if p in constants else signature[p] for p in function.arg_names}
    values = {(function.arg_names.index(p),): value for p, value in constants.items()}
    facts = {(function.arg_names.index(p),): [["tt.divisibility", v]] for p, v in (attrs or {}).items()}
    target = GPUTarget(backend, arch, 64 if backend == "hip" else 32)
    made = triton.compile(ASTSource(function, types_, values, facts), target=target, options=options)
    return {k: base64.b64encode(v if isinstance(v, bytes) else v.encode()).decode() for k, v in made.asm.items()}

print(json.dumps({
    "pointwise": compile_here(**pointwise()),
    "matmul": compile_here(**matmul(num_warps=8)),
    "hip": compile_here(**pointwise(), backend="hip", arch="gfx942"),
}))
"""

IN_WORKER = """
import base64, json, sys
import headstart
from kernels import matmul, pointwise

def show(future):
    asm = future.result().asm
    texts = {k: asm[k] for k in asm}
    return {k: base64.b64encode(v if isinstance(v, bytes) else v.encode()).decode() for k, v in texts.items()}

with headstart.AsyncCompile("cuda:90", workers=2, cache_dir=sys.argv[1]) as async_compile:
    futures = {
        "pointwise": async_compile.triton(**pointwise()),
        "matmul": async_compile.triton(**matmul(num_warps=8)),
        "hip": async_compile.triton(**pointwise(), target="hip:gfx942"),
    }
    print(json.dumps({name: show(future) for name, future in futures.items()}))
"""


def test_artifacts_are_the_bytes_that_triton_makes_in_process_whatever_the_hash_seed(
    start_client: Start, tmp_path: Path
) -> None:
    here = start_client(IN_PROCESS, PYTHONHASHSEED="0")
    seeds = [start_client(IN_WORKER, tmp_path / seed, PYTHONHASHSEED=seed) for seed in ("1", "2")]
    expected = json.loads(here.finish())
    first, second = (json.loads(client.finish()) for client in seeds)
    assert set(expected) == set(first)
    for kernel, artifacts in expected.items():
        binary = "hsaco" if kernel == "hip" else "cubin"
        assert {"ttir", "ttgir", "llir", binary} <= set(artifacts)
        for artifact, content in artifacts.items():
            assert first[kernel][artifact] == content, f"{kernel}: {artifact} differs from the one made in process"
    assert first == second


# Keys


def key_of(async_compile: AsyncCompile, **kernel: Any) -> str:
    return async_compile.triton(**kernel).result(PATIENCE).key


def variants() -> dict[str, Kernel]:
    base = pointwise()
    return {
        "options": {**base, "options": {"num_warps": 8}},
        "constants": {**base, "constants": {"BLOCK": 256}},
        "signature": {**base, "signature": {**base["signature"], "x": "*fp64"}},
        "attributes": {**base, "attrs": {"x": 16}},
        "source": pointwise(3.0),
        "target": {**base, "target": "cuda:80"},
        "first line": {**base, "source": "\n" + base["source"]},
    }


def test_everything_that_changes_the_outcome_changes_the_key(open_compile: Open) -> None:
    async_compile = open_compile()
    futures = {name: async_compile.triton(**kernel) for name, kernel in variants().items()}
    futures["nothing"] = async_compile.triton(**pointwise())
    kernels = {name: future.result(PATIENCE) for name, future in futures.items()}
    assert len({kernel.key for kernel in kernels.values()}) == len(kernels)
    base = kernels["nothing"].entry.header.components
    explain = headstart.model.keys.explain
    assert explain(base, base) == []
    assert explain(base, kernels["options"].entry.header.components) == ["options.num_warps was not given, now 8"]
    assert explain(base, kernels["constants"].entry.header.components) == ["constants.BLOCK was 128, now 256"]
    assert explain(base, kernels["target"].entry.header.components) == ["target was cuda:90, now cuda:80"]


def test_equal_values_of_different_types_are_different_constants(open_compile: Open) -> None:
    async_compile = open_compile()
    source = HEAD + "@triton.jit\ndef k(x, V: tl.constexpr):\n    tl.store(x, V)\n"
    kernels = [
        async_compile.triton("k", source, signature={"x": "*fp32"}, constants={"V": value}).result(PATIENCE)
        for value in (1, 1.0, True)
    ]
    assert len({kernel.key for kernel in kernels}) == 3
    assert "1.000000e+00 : f32" in kernels[1].asm["ttir"]


def test_another_tool_is_another_toolchain(open_compile: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = []
    for variables in ({}, hanging_ptxas(tmp_path / "tool")):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        keys.append(key_of(open_compile(), **pointwise()))
    script = tmp_path / "tool" / "ptxas"
    copy = tmp_path / "ptxas"
    copy.write_text(script.read_text())
    copy.chmod(0o755)
    for name in hanging_ptxas(tmp_path / "tool"):
        monkeypatch.setenv(name, str(copy))
    keys.append(key_of(open_compile(), **pointwise()))  # elsewhere, the same content
    copy.write_text(script.read_text() + "# another build\n")
    keys.append(key_of(open_compile(), **pointwise()))
    assert keys[1] == keys[2]
    assert len(set(keys)) == 3


def test_a_relative_tool_path_means_the_client_s_folder(
    open_compile: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = hanging_ptxas(tmp_path / "tool")
    monkeypatch.chdir(tmp_path / "tool")
    for name in variables:
        monkeypatch.setenv(name, "ptxas")
    assert open_compile().triton(**pointwise()).result(PATIENCE).asm["cubin"]


def test_the_two_forms_of_a_signature_make_the_same_kernel(open_compile: Open) -> None:
    async_compile = open_compile()
    source = pointwise()["source"]
    text = async_compile.triton("pointwise", source, signature="*fp32:16, *fp32:16, i32, 128")
    plain = async_compile.triton(
        "pointwise",
        source,
        signature={"x": "*fp32", "y": "*fp32", "n": "i32", "BLOCK": "constexpr"},
        constants={"BLOCK": 128},
        attrs={(0,): [["tt.divisibility", 16]], "y": 16},
    )
    assert text.result(PATIENCE).asm["cubin"] == plain.result(PATIENCE).asm["cubin"]


def test_a_default_a_dtype_and_a_tuple_are_constants_too(open_compile: Open) -> None:
    source = HEAD + (
        "@triton.jit\n"
        "def k(x, T: tl.constexpr, P: tl.constexpr, B: tl.constexpr = 64):\n"
        "    i = tl.arange(0, B)\n"
        "    tl.store(x + i, tl.full((B,), P[1], T))\n"
    )

    class dtype:  # as triton.language's, which this process does not import
        name = "fp16"

    dtype.__module__ = "triton.language.core"
    kernel = open_compile().triton("k", source, signature={"x": "*fp16"}, constants={"T": dtype(), "P": (3, 7)})
    assert "dense<7.000000e+00> : tensor<64xf16" in kernel.result(PATIENCE).asm["ttir"]


def test_the_file_name_is_what_debug_lines_and_tracebacks_show(open_compile: Open) -> None:
    async_compile = open_compile()
    kernel = async_compile.triton(**pointwise(), filename="/somewhere/generated.py").result(PATIENCE)
    assert '"generated.py"' in kernel.asm["ptx"] or "/somewhere/generated.py" in kernel.asm["ptx"]
    bad = {**pointwise(3.0), "source": pointwise(3.0)["source"].replace("tl.exp(", "tl.nonsense(")}
    error = async_compile.triton(**bad, filename="/somewhere/generated.py").exception(PATIENCE)
    assert "/somewhere/generated.py" in str(error) or "tl.nonsense(tl.load" in str(error)


def test_what_a_source_takes_from_elsewhere_is_delivered_but_never_stored(
    open_compile: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    kernel = pointwise(before="import my_settings\nFACTOR = tl.constexpr(my_settings.FACTOR)\n")
    kernel["source"] = kernel["source"].replace("* 2.0", "* FACTOR")
    cubins = []
    for factor in (3.0, 5.0):
        (tmp_path / "my_settings.py").write_text(f"FACTOR = {factor}\n")
        with open_compile() as async_compile:
            cubins.append(async_compile.triton(**kernel).result(PATIENCE).asm["cubin"])
            assert async_compile.statistics.compiled == 1
    assert cubins[0] != cubins[1]
    assert any("my_settings" in message and "not stored" in message for message in caplog.messages)


def test_one_source_does_not_see_what_another_defined(open_compile: Open) -> None:
    async_compile = open_compile(workers=1)
    first = pointwise(name="same", before="LEFT_OVER = 1\n")
    second = pointwise(name="same", before="import sys\nassert 'LEFT_OVER' not in globals()\n")
    assert async_compile.triton(**first).result(PATIENCE).asm["cubin"]
    assert async_compile.triton(**second).result(PATIENCE).asm["cubin"]


@pytest.mark.parametrize("name", ["json", "triton", "kernel"])
def test_a_kernel_may_be_called_like_a_module(open_compile: Open, name: str) -> None:
    async_compile = open_compile(workers=1)
    assert async_compile.triton(**pointwise(name=name)).result(PATIENCE).asm["cubin"]
    assert async_compile.triton(**pointwise(3.0)).result(PATIENCE).asm["cubin"]


# Entries, whole or not at all


def stored(async_compile: AsyncCompile, **kernel: Any) -> tuple[CompiledKernel, Path]:
    made = async_compile.triton(**kernel).result(PATIENCE)
    assert made.entry.path is not None
    return made, made.entry.path


def truncate(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip_in_header(data: bytes) -> bytes:
    return data[:100] + bytes([data[100] ^ 1]) + data[101:]


def empty(data: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [truncate, flip_in_header, empty])
def test_a_damaged_entry_is_a_miss_with_a_warning_and_is_built_anew(
    open_compile: Open, start_client: Start, damage: Callable[[bytes], bytes]
) -> None:
    with open_compile() as async_compile:
        kernel, path = stored(async_compile, **pointwise())
        whole, cubin = path.read_bytes(), kernel.asm["cubin"]
    path.write_bytes(damage(whole))
    client = start_client(
        """
        import headstart
        from kernels import pointwise
        with headstart.AsyncCompile("cuda:90", workers=1) as async_compile:
            async_compile.triton(**pointwise()).result()
            print(async_compile.statistics.compiled, async_compile.statistics.cached)
        """
    )
    printed, errors = client.process.communicate(timeout=PATIENCE)
    assert printed == b"1 0\n"
    assert Entry.open(path).artifact("cubin") == cubin
    set_aside = path.parent.parent / "damaged" / path.name
    assert set_aside.read_bytes() == damage(whole)
    assert b"is damaged and will be compiled again" in errors


def test_an_entry_of_a_newer_headstart_is_a_miss_and_the_kernel_is_delivered(open_compile: Open) -> None:
    with open_compile() as async_compile:
        _, path = stored(async_compile, **pointwise())
    whole = path.read_bytes()
    path.write_bytes(whole[:8] + struct.pack("<H", 999) + whole[10:])
    again = open_compile()
    assert again.triton(**pointwise()).result(PATIENCE).asm["cubin"]
    assert again.statistics.compiled == 1


def flip_in_artifact(path: Path) -> None:
    data = path.read_bytes()
    other = path.with_suffix(".new")
    other.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    other.replace(path)


def test_an_artifact_found_damaged_when_it_is_read_is_built_anew(
    open_compile: Open, caplog: pytest.LogCaptureFixture
) -> None:
    async_compile = open_compile()
    kernel, path = stored(async_compile, **pointwise())
    last = kernel.entry.artifact_names[-1]
    before = kernel.asm[last]
    flip_in_artifact(path)
    assert kernel.asm[last] == before
    assert Entry.open(path).artifact(last) == kernel.entry.artifact(last)
    assert sum("is damaged and will be compiled again" in message for message in caplog.messages) == 1
    assert kernel.asm[last] == before
    assert list((path.parent.parent / "damaged").iterdir())


def test_a_kernel_whose_entry_vanishes_is_built_anew(open_compile: Open) -> None:
    async_compile = open_compile()
    early = async_compile.triton(**pointwise())
    while not early.done():
        pass
    DiskStore(async_compile.cache_dir).clear()
    kernel = early.result(PATIENCE)
    assert kernel.asm["cubin"]
    DiskStore(async_compile.cache_dir).clear()
    assert kernel.asm["ptx"]


def test_nobody_sees_an_entry_while_it_is_being_made(open_compile: Open, tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")
    async_compile = open_compile()
    future = async_compile.triton(**gate.kernel())
    gate.began()
    assert list(DiskStore(async_compile.cache_dir).keys()) == []
    gate.open()
    future.result(PATIENCE)
    assert [entry.name for entry in DiskStore(async_compile.cache_dir).entries()] == ["gated"]


def test_a_kernel_and_its_metadata_cannot_be_changed_by_those_who_share_it(open_compile: Open) -> None:
    kernel = open_compile().triton(**matmul()).result(PATIENCE)
    with pytest.raises(TypeError):
        kernel.asm["cubin"] = b""  # type: ignore[index]
    with pytest.raises(TypeError):
        kernel.metadata["num_warps"] = 1  # type: ignore[index]
    with pytest.raises((TypeError, AttributeError)):
        kernel.metadata.num_warps = 1
    assert kernel.metadata.num_warps == 4


# Plain data


class Boobytrap:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch sprung",)


READ = """
import sys
happened = []
watched = ("exec", "compile", "import", "marshal.loads", "os.exec", "os.system", "pickle.find_class")
import zstandard  # the library that unpacks is loaded when it is first needed
from headstart import wire
from headstart.artifacts.bundle import Bundle
from headstart.artifacts.entry import Entry
kinds = wire.FromClient, wire.FromService, wire.ToZygote, wire.FromZygote, wire.FromWorker
decoders = [wire.decoder(kind) for kind in kinds]
sys.addaudithook(lambda event, arguments: event in watched and happened.append((event, str(arguments)[:80])))
bundle = Bundle.open(sys.argv[2])
for entry in [Entry.open(sys.argv[1]), *(bundle.entry(item.key) for item in bundle)]:
    entry.verify(), entry.metadata, entry.header.request
for decoder in decoders:
    try:
        wire.decode(decoder, open(sys.argv[3], "rb").read())
    except wire.ProtocolError:
        pass
print(happened)
"""


def test_reading_an_entry_a_bundle_or_a_message_runs_nothing(tmp_path: Path) -> None:
    trap = pickle.dumps(Boobytrap())
    parts = pack_entry(
        key="a" * 64,
        name="__import__('os').system('touch sprung')",
        request_digest="c" * 64,
        toolchain="d" * 64,
        target="cuda:90",
        components=[("source", "import os; os.system('touch sprung')")],
        metadata={"__reduce__": trap, "__class__": "os.system"},
        artifacts={"cubin": trap, "ptx": trap},
        compile_wall_s=0.0,
        compile_cpu_s=0.0,
        triton_version="3.9.0",
        request=trap,
        output="",
    )
    (tmp_path / "entry.hse").write_bytes(b"".join(parts))
    with headstart.artifacts.bundle.BundleWriter(tmp_path / "all.bundle") as writer:  # type: ignore[attr-defined]
        writer.add(Entry.open(tmp_path / "entry.hse"))
    (tmp_path / "message").write_bytes(trap)
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            READ,
            *(str(tmp_path / name) for name in ("entry.hse", "all.bundle", "message")),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, **client_environment()},
    )
    assert result.stdout == "[]\n", result.stderr
    assert not (tmp_path / "sprung").exists()


def test_what_travels_is_text_and_plain_data() -> None:
    how = {key: value for key, value in matmul(num_warps=8).items() if value is not None}
    request = CompileRequest.make(**how, target="cuda:90")
    sent = msgspec.msgpack.decode(wire.encode(wire.Submit(1, TOOLCHAIN, request, True)))

    def plain(value: object) -> bool:
        if isinstance(value, dict):
            return all(isinstance(key, str) and plain(member) for key, member in value.items())
        if isinstance(value, list):
            return all(map(plain, value))
        return value is None or type(value) in (str, int, float, bool)

    assert plain(sent)
    assert (
        wire.decode(wire.decoder(wire.FromClient), wire.encode(wire.Submit(1, TOOLCHAIN, request, True))).request
        == request
    )


def test_an_entry_says_how_to_make_it_again(open_compile: Open) -> None:
    async_compile = open_compile()
    kernel = async_compile.triton(**matmul(num_warps=8)).result(PATIENCE)
    request = msgspec.msgpack.decode(kernel.entry.header.request, type=CompileRequest)
    assert request.source == matmul()["source"]
    assert request.options == {"num_warps": 8}
    assert request.digest() == kernel.entry.header.request_digest


def test_a_bundle_reads_back_what_was_compiled(open_compile: Open, tmp_path: Path) -> None:
    async_compile = open_compile()
    async_compile.bundler.begin_compile()
    kernel = async_compile.triton(**pointwise()).result(PATIENCE)
    bundle = Bundle.open(async_compile.bundler.collect(tmp_path / "one.bundle"))
    assert [item.key for item in bundle] == [kernel.key]
    assert bundle.entry(kernel.key).artifact("cubin") == kernel.asm["cubin"]
