"""The targets: `TARGETS[name](data)` decodes `data` with everything in it, and raises only for a bug of ours.

Formats with a checksum are tried twice: as they are, and with `data` put under a right checksum, since nobody who means
harm would leave a wrong one.
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from headstart import wire
from headstart.artifacts import comparing, entry, index, manifest, run_records, runs
from headstart.artifacts.bundle import Bundle, BundleWriter
from headstart.artifacts.entry import Entry, pack_entry
from headstart.artifacts.manifest import Manifest
from headstart.artifacts.specialization import Origin, Specialization, Tuning
from headstart.cli import report_page, stats
from headstart.cli.report_data import report_data
from headstart.client import asked
from headstart.errors import DamagedError, HeadstartError
from headstart.model.captured import CapturedFunction, CapturedSource, Constant, Items
from headstart.model.parameters import PARSED
from headstart.model.request import CompileRequest
from headstart.model.toolchain import Toolchain
from headstart.service.intake import failure_of
from headstart.stores.failures import REMEMBERED_KINDS, Failures, RememberedFailure

Target = Callable[[bytes], None]

# What reading never does, whatever it reads.
_FORBIDDEN = {
    *("exec", "compile", "import", "pickle.find_class", "marshal.loads", "ctypes.dlopen", "socket.connect"),
    *("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "os.remove", "os.rename", "os.rmdir"),
}
_reading = False


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    is_only_parsed = event == "compile" and arguments[1] == PARSED  # for the names of parameters
    if _reading and event in _FORBIDDEN and not is_only_parsed:
        raise AssertionError(f"reading does {event} {arguments!r:.200}")


sys.addaudithook(_watch)


@contextlib.contextmanager
def _only_reading() -> Iterator[None]:
    global _reading
    _reading = True
    try:
        yield
    finally:
        _reading = False


@contextlib.contextmanager
def _file(data: bytes) -> Iterator[Path]:
    fd = os.memfd_create("fuzz")
    try:
        os.write(fd, data)
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def read_entry(data: bytes) -> None:
    """An entry; and `data` as the header of one."""
    header = struct.pack("<8sHI32s", entry.MAGIC, entry.VERSION, len(data), sha256(data).digest()) + data
    for each in (data, header):
        with _only_reading(), contextlib.suppress(DamagedError):
            _read_all_of(Entry.from_bytes(each))


def _read_all_of(found: Entry) -> None:
    repr(found)
    for name in found.artifact_names:
        found.artifact(name)
    found.verify()
    found.raw()


def read_bundle(data: bytes) -> None:
    """A bundle; and `data` as the index of one, behind a whole entry; and as the signatures of an empty one."""
    before = index.MAGIC + ENTRY
    as_index = before + data + index.ending(len(before), len(data), sha256(data).digest(), [])
    empty = b"\x90"
    footer = struct.pack("<QQ32s", len(index.MAGIC), len(empty), sha256(empty).digest())
    footer += struct.pack("<L32sH8s", len(data), sha256(data).digest(), index.VERSION, index.MAGIC)
    for each in (data, as_index, index.MAGIC + empty + data + footer):
        with _file(each) as path, _only_reading(), contextlib.suppress(DamagedError):
            found = Bundle.open(path)
            for problem in found.verify():
                str(problem)
            for item in found:
                _read_all_of(found.entry(item.key))
            comparing.compare_bundles(found, Bundle(path, index.Index({}, index.VERSION, 0, 0, b"", ())))


def read_manifest(data: bytes) -> None:
    """A manifest; and `data` as the body of one."""
    body = struct.pack("<8sHQ32s", manifest.MAGIC, manifest.VERSION, len(data), sha256(data).digest()) + data
    for each in (data, body):
        with _file(each) as path, _only_reading(), contextlib.suppress(DamagedError):
            found = Manifest.open(path)
            assert manifest.merge(found, found).encode() == found.encode()
            found.in_compile_order()
            comparing.compare(found, Manifest())
            for each_one in found.specializations.values():
                _identify(each_one.request)


def read_message(data: bytes) -> None:
    """A stream from each sort of peer; whoever asks for a kernel has its identity computed."""
    framed = len(data).to_bytes(4, "little") + data
    for kind in UNIONS:
        for stream in (data, framed):
            deframer = wire.Deframer(kind)
            with _only_reading(), contextlib.suppress(wire.ProtocolError):
                for at in (stream[: len(stream) // 2], stream[len(stream) // 2 :]):
                    for message in deframer.feed(at):
                        wire.encode(message)
                        if isinstance(message, wire.Submit):
                            _identify(message.request)


def read_captured(data: bytes) -> None:
    """A live kernel as plain data, as requests and plans carry it."""
    with _only_reading(), contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        source = msgspec.msgpack.decode(data, type=CapturedSource)
        assert source.kernel is source.functions[0]
        assert isinstance(source.identity, str)
        assert CapturedSource.from_plain(source.plain()) == source


def read_failure(data: bytes) -> None:
    """What is remembered of a kernel that crashed, and what a client makes of it; and `data` as the texts of one.

    JSON is decoded by msgspec, whose code no fuzzer sees: what can be covered is what is done with it.
    """
    told = msgspec.structs.replace(FAILURE, failure=_failure_of_texts(data))
    for each in (data, msgspec.json.encode(told)):
        failures = _Told(each)
        with _only_reading():
            for time_limit, memory_limit in ((None, 1 << 20), (1.0, None)):
                failure = failures.find(KEY, time_limit, memory_limit)
                if failure is not None:
                    _tell(failure)


class _Told(Failures):
    """A folder with one file, which holds `data`."""

    def __init__(self, data: bytes) -> None:
        super().__init__("/")
        self._data = data

    def _read(self, path: Path) -> RememberedFailure | None:
        return self.decode(self._data)

    def _is_private(self) -> bool:
        return True


def _failure_of_texts(data: bytes) -> wire.Failure:
    texts = (data.decode("utf-8", "replace").split("\n") + [""] * 9)[:9]
    return wire.Failure(*texts, files={texts[1]: data[:9]})


def _tell(failure: wire.Failure) -> None:
    """As a client and a service do."""
    for each in (failure, failure_of(failure)):
        error = asked.error_of(each, REQUESTS[0])
        assert isinstance(error, HeadstartError)
        assert isinstance(str(error) + repr(error), str)


def _identify(request: CompileRequest) -> None:
    request.digest()
    assert all(isinstance(text, str) for pair in request.components() for text in pair)


def read_run(data: bytes) -> None:
    """A run's log, and `data` as the one frame of one; what can be read is shown."""
    framed = run_records.beginning() + struct.pack("<II", len(data), zlib.crc32(data)) + data
    for each in (data, framed):
        process = runs.read_log(each)
        if process is not None:
            found = runs.Run("0000000a", [process])
            with tempfile.TemporaryDirectory() as folder:
                report_page.embedded(report_data(Path(folder), found))
                msgspec.json.encode(stats.totals([found], 5))


UNIONS = (
    *(wire.FromClient, wire.FromService, wire.ToZygote, wire.FromZygote, wire.FromWorker, wire.Assign),
    *(wire.ToRemote, wire.FromRemote),
    *(wire.ToDescriber, wire.FromDescriber),
)

TARGETS: dict[str, Target] = {
    "entry": read_entry,
    "bundle": read_bundle,
    "manifest": read_manifest,
    "message": read_message,
    "captured": read_captured,
    "failure": read_failure,
    "run": read_run,
}


# Valid data, to begin with


CAPTURED = CapturedSource(
    [
        CapturedFunction(
            "jit", "app", "kernel", "app.py", 3, "@triton.jit\ndef kernel(x): pass\n", {"N": Constant(2)}, {}
        ),
        CapturedFunction(
            "constexpr_function",
            "app",
            "main.<locals>.twice",
            "app.py",
            9,
            "def twice(n): return T",
            {"T": Items("tuple", [Constant(1.5), Constant("two"), Constant(None)])},
            {"n": Constant(True)},
        ),
    ]
)
REQUESTS = [
    CompileRequest.make(
        "kernel",
        source,
        signature={"x": "*fp32"},
        constants={"N": 2, "M": float("inf"), "shape": [1, [2, "three"]]},
        attrs={"x": 16},
        options={"num_warps": 4},
        target="cuda:90",
        environment={"TRITON_DEBUG": "1"},
    )
    for source in ("def kernel(x): 'é'", CAPTURED)
]
ENTRY = b"".join(
    pack_entry(
        key="ab" * 32,
        name="kernel",
        request_digest="cd" * 32,
        toolchain="ef" * 32,
        target="cuda:90",
        components=REQUESTS[0].components(),
        metadata={"num_warps": 4, "shared": 0},
        artifacts={"ttir": b"module {}", "cubin": bytes(range(64)), "empty": b""},
        compile_wall_s=0.5,
        compile_cpu_s=0.5,
        triton_version="3.9.0",
        request=wire.encode(REQUESTS[0]),
        output="words",
    )
)
MANIFEST = Manifest.of(
    [Specialization(request=request, digest=request.digest(), duration_s=1.0) for request in REQUESTS],
    [Tuning(autotuner="t", key=[1, "f32"], target="cuda:90", configuration={"num_warps": 8}, recorded_at=9.0)],
    [Origin(program="app.py", triton_version="3.9.0", recorded_at=7.0)],
)
_LOG = wire.CompileLog("words", "more", [wire.Warned("builtins.UserWarning", "careful", "k.py", 3)], [("ttir", 12)])
_FAILURE = wire.Failure("crash", "it died", stage="llir", output="words", files={"k.ptx": b"ptx"}, log=_LOG)
KEY = "ab" * 32
FAILURE = RememberedFailure(KEY, "kernel", "cuda:90", _FAILURE, 9.0)
_TOOLCHAIN = Toolchain("/usr/bin/python3", "3.11", "/usr/lib/triton", "3.9.0", ("/usr/lib",))
_DESCRIBER = wire.DescriberSpec(_TOOLCHAIN, "stamp", (("TORCHINDUCTOR_ENABLE_PDL", "1"),))
MESSAGES: list[msgspec.Struct] = [
    wire.Hello(wire.PROTOCOL, wire.Preferences(b"/cache", 1 << 30, 9.0)),
    wire.Prepare(_TOOLCHAIN, {"TRITON_DEBUG": "1"}),
    wire.SubmitSource(7, _DESCRIBER, b"a question", "stem", "torch", True, wire.FanOut("/c/a.py", 1, "/c", True)),
    wire.SourceCompiled(7, "ab" * 32, b"a recipe", [wire.JobOutcome(1, wire.Failed(0, _FAILURE))], has_more=True),
    wire.Answer(7, b"an answer"),
    *(wire.Submit(7, _TOOLCHAIN, request, True) for request in REQUESTS),
    wire.Await([1, 2, 1 << 40]),
    wire.Control("status"),
    wire.Result(7, "ab" * 32, entry=b"bytes", log=_LOG),
    wire.Failed(7, _FAILURE),
    wire.Fork(3, b"/run/worker-3"),
    wire.Reaped(3, -9),
    wire.Assign("ab" * 32, "ef" * 32, REQUESTS[1], b"/cache"),
    wire.Finished(True, 1.0, 2.0, log=_LOG),
    _FAILURE,
]


def _bundle() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        with BundleWriter(Path(folder, "one.bundle")) as writer:
            writer.add(Entry.from_bytes(ENTRY))
        return Path(folder, "one.bundle").read_bytes()


RUN = run_records.beginning() + run_records.frame(
    [
        run_records.Head(
            "0000000a", "run", "app.py", 7, 0, "0", "host", 1e9, 5.0, "0.1.0", "3.11.7", "app.bundle", "app.manifest", 2
        ),
        run_records.Text(0, "kernel"),
        run_records.Tool("3.9.0"),
        run_records.Asked(0, 10, 0, 0, 0, 0, b"12345678", "BLOCK=64 warps=8", False),
        run_records.Asked(1, 12, 0, 0, 0, 0, b"", "BLOCK=128 warps=8", True),
        run_records.Began(0, 20, 1),
        run_records.Blocked(0, 20, 0),
        run_records.Done(0, 99, 0, b"12345678", 20, 90, 1, 60, [0, 30]),
        run_records.Unblocked(0, 99, 0),
        run_records.Loaded(0, 3),
        run_records.Failed(1, 99, 0, 0, "it is wrong"),
        run_records.Since(1, 5, 0, 0),
        run_records.FellBack(50, "app.scale", "it cannot travel"),
        run_records.Swept(99, "app.kernel", [0, 1], [1.0, 2.0], 0),
        run_records.Lost(1),
        run_records.Ended(100, 3),
    ]
)


def _inside(file: bytes, prefix: str) -> bytes:
    """What the checksum at the head of `file` covers."""
    size = struct.calcsize(prefix)
    length = struct.unpack_from(prefix, file)[2]
    return file[size : size + length]


def bodies(name: str) -> list[bytes]:
    """Valid inputs of a target: msgpack, or JSON for "failure", without what a format puts around it."""
    whole = _bundle()
    offset, length = struct.unpack_from("<QQ", whole, len(whole) - 94)
    return {
        "entry": [_inside(ENTRY, "<8sHI32s")],
        "bundle": [whole[offset : offset + length]],
        "manifest": [_inside(MANIFEST.encode(), "<8sHQ32s")],
        "message": [wire.encode(message) for message in MESSAGES],
        "captured": [msgspec.msgpack.encode(CAPTURED)],
        "failure": [
            msgspec.json.encode(each) for each in (FAILURE, msgspec.structs.replace(FAILURE, memory_limit=1 << 30))
        ],
        "run": [RUN[run_records.HEADER_BYTES + 8 :]],
    }[name]


def seeds(name: str) -> list[bytes]:
    """Valid inputs of a target, whole files and frames among them."""
    whole = {"entry": [ENTRY], "bundle": [_bundle()], "manifest": [MANIFEST.encode()], "run": [RUN]}
    whole["failure"] = [f"{kind}\nit died\nllir\nwords".encode() for kind in REMEMBERED_KINDS]
    framed = [wire.frame(message) for message in MESSAGES] if name == "message" else []
    return [*bodies(name), *whole.get(name, []), *framed]
