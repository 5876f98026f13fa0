"""A toolchain is known by content, and what is known is remembered until a file changes."""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import sys
from collections.abc import Iterable
from importlib.machinery import ModuleSpec
from pathlib import Path

import msgspec
import pytest

from headstart.errors import ServiceError
from headstart.model import toolchain as toolchain_module
from headstart.model.toolchain import Toolchain, find_toolchain

PTXAS = b"\x7fELF ptxas" * 100
LARGE = 1000  # bytes, here


class Install:
    """A fake wheel, unpacked into a site-packages of its own."""

    def __init__(self, site: Path) -> None:
        self.site = site
        self.root = site / "triton"
        for name, content in {
            "__init__.py": b"__version__ = '3.9.0'\n",
            "compiler/code_generator.py": b"class CodeGenerator: ...\n",
            "_C/libtriton.so": b"\x7fELF libtriton" * 100,
            "backends/nvidia/bin/ptxas": PTXAS,
            "backends/nvidia/lib/libdevice.10.bc": b"BC libdevice",
            "backends/nvidia/include/cuda.h": b"#define CUDA",
            "backends/nvidia/bin/cuobjdump": b"\x7fELF debugger",
            "profiler/proton.py": b"import proton\n",
            "__pycache__/x.py": b"cached",
            "README.md": b"Triton\n",
        }.items():
            self.write(name, content)

    def write(self, name: str, content: bytes) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def toolchain(self, **changes: str) -> Toolchain:
        return msgspec.structs.replace(
            Toolchain("/usr/bin/python3", "3.11", str(self.root), "3.9.0", (str(self.site),)), **changes
        )

    def record(self, lines: Iterable[str] | None = None, *, folder: str = "triton-3.9.0.dist-info") -> Path:
        """Write RECORD, with wrong digests for everything, so that trust in it shows."""
        wrong = base64.urlsafe_b64encode(hashlib.sha256(b"as recorded").digest()).rstrip(b"=").decode()
        if lines is None:
            files = [path for path in sorted(self.root.rglob("*")) if path.is_file()]
            lines = [f"{path.relative_to(self.site)},sha256={wrong},{path.stat().st_size}" for path in files]
        path = self.site / folder / "RECORD"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join([*lines, "triton-3.9.0.dist-info/RECORD,,"]) + "\n")
        return path


@pytest.fixture
def install(tmp_path: Path) -> Install:
    return Install(tmp_path / "site-packages")


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "toolchains"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose content was hashed."""
    names: list[str] = []
    read = toolchain_module._read_digest

    def counted(file: Path) -> str:
        names.append(file.name)
        return read(file)

    monkeypatch.setattr(toolchain_module, "_read_digest", counted)
    return names


@pytest.fixture
def _small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain_module, "_LARGE", LARGE)


def later(path: Path, seconds: float = 10.0) -> None:
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + int(seconds * 1e9)))


# Which files


def test_what_decides_is_part_of_it_and_nothing_else_is(install: Install) -> None:
    install.write("_C/libtriton.cpython-311-x86_64-linux-gnu.so", b"\x7fELF")
    install.write("_C/libproton.so", b"\x7fELF")
    install.write("backends/amd/bin/ld.lld", b"\x7fELF")
    names = [path.relative_to(install.root).as_posix() for path in install.toolchain().files()]
    assert names == [
        "_C/libtriton.cpython-311-x86_64-linux-gnu.so",
        "_C/libtriton.so",
        "__init__.py",
        "backends/amd/bin/ld.lld",
        "backends/nvidia/bin/ptxas",
        "backends/nvidia/lib/libdevice.10.bc",
        "compiler/code_generator.py",
    ]


def test_the_digest_follows_every_file_and_only_names_below_triton(
    install: Install, memory: Path, tmp_path: Path
) -> None:
    original = install.toolchain().digest({}, memory)
    moved = Install(tmp_path / "elsewhere" / "site-packages")
    assert moved.toolchain().digest({}, memory) == original
    for path in moved.toolchain().files():
        content = path.read_bytes()
        path.write_bytes(content + b" ")
        assert moved.toolchain().digest({}, memory) != original, path
        path.write_bytes(content)
    assert moved.toolchain().digest({}, memory) == original
    moved.write("README.md", b"something else")
    moved.write("new.py", b"")
    assert moved.toolchain().digest({}, memory) != original


def test_renaming_a_file_makes_another_toolchain(install: Install, memory: Path) -> None:
    original = install.toolchain().digest({}, memory)
    (install.root / "compiler/code_generator.py").rename(install.root / "compiler/generator.py")
    assert install.toolchain().digest({}, memory) != original


def test_pythons_minor_version_counts_and_its_path_does_not(install: Install, memory: Path) -> None:
    original = install.toolchain().digest({}, memory)
    assert install.toolchain(python_version="3.12").digest({}, memory) != original
    assert install.toolchain(python="/opt/bin/python3").digest({}, memory) == original


# Memory


def test_what_is_remembered_is_not_read_again(install: Install, memory: Path, reads: list[str]) -> None:
    original = install.toolchain().digest({}, memory)
    assert len(reads) == len(install.toolchain().files())
    reads.clear()
    assert install.toolchain().digest({}, memory) == original
    assert reads == []


def test_an_edited_file_misses(install: Install, memory: Path) -> None:
    original = install.toolchain().digest({}, memory)
    path = install.root / "compiler/code_generator.py"
    before = path.stat()
    path.write_bytes(b"x" * before.st_size)
    later(path)
    assert path.stat().st_size == before.st_size
    assert install.toolchain().digest({}, memory) != original


def test_an_edit_that_keeps_the_time_but_not_the_size_misses(install: Install, memory: Path) -> None:
    original = install.toolchain().digest({}, memory)
    path = install.root / "compiler/code_generator.py"
    before = path.stat()
    path.write_bytes(b"other\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert install.toolchain().digest({}, memory) != original


def test_a_file_that_replaced_another_of_the_same_size_and_time_misses(install: Install, memory: Path) -> None:
    original = install.toolchain().digest({}, memory)
    path = install.root / "compiler/code_generator.py"
    before = path.stat()
    replacement = install.write("compiler/new", b"x" * before.st_size)
    os.utime(replacement, ns=(before.st_atime_ns, before.st_mtime_ns))
    replacement.replace(path)
    assert install.toolchain().digest({}, memory) != original


def test_a_touched_file_with_the_same_content_is_the_same_toolchain(
    install: Install, memory: Path, reads: list[str]
) -> None:
    original = install.toolchain().digest({}, memory)
    reads.clear()
    later(install.root / "compiler/code_generator.py")
    assert install.toolchain().digest({}, memory) == original
    assert reads, "its content was looked at"


@pytest.mark.parametrize("damage", [b"", b"0" * 63, b"\xff" * 64, b"not a digest"])
def test_a_damaged_memory_is_not_believed(damage: bytes, install: Install, memory: Path) -> None:
    original = install.toolchain().digest({}, memory)
    for note in memory.iterdir():
        note.write_bytes(damage)
    assert install.toolchain().digest({}, memory) == original
    assert {len(note.read_bytes()) for note in memory.iterdir()} == {64}, "it is mended"


def test_without_a_memory_that_can_be_written_the_digest_is_the_same(install: Install, tmp_path: Path) -> None:
    original = install.toolchain().digest({}, tmp_path / "cache")
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert install.toolchain().digest({}, blocked / "toolchains") == original


def test_a_memory_on_a_read_only_file_system_does_no_harm(
    install: Install, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(path: Path, *arguments: object, **options: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    original = install.toolchain().digest({}, memory)
    for note in memory.iterdir():
        note.unlink()
    monkeypatch.setattr(toolchain_module, "replace", read_only)
    assert install.toolchain().digest({}, memory) == original


def test_remembering_leaves_nothing_but_notes(install: Install, memory: Path) -> None:
    install.toolchain().digest({}, memory)
    assert [note.suffix for note in memory.iterdir()] == [".sha256"]


# RECORD


@pytest.mark.usefixtures("_small_is_large")
def test_large_files_that_are_as_recorded_are_not_read(install: Install, memory: Path, reads: list[str]) -> None:
    later(install.record())
    install.toolchain().digest({}, memory)
    assert "ptxas" not in reads
    assert "libtriton.so" not in reads
    assert {"__init__.py", "code_generator.py", "libdevice.10.bc"} <= set(reads)


@pytest.mark.usefixtures("_small_is_large")
def test_the_recorded_digest_is_the_one_that_reading_would_give(install: Install, memory: Path, tmp_path: Path) -> None:
    read = install.toolchain().digest({}, tmp_path / "first")
    digest = base64.urlsafe_b64encode(hashlib.sha256(PTXAS).digest()).rstrip(b"=").decode()
    line = f"triton/backends/nvidia/bin/ptxas,sha256={digest},{len(PTXAS)}"
    later(install.record([line]))
    assert install.toolchain().digest({}, memory) == read


@pytest.mark.usefixtures("_small_is_large")
@pytest.mark.parametrize("change", ["written since", "another size", "not recorded"])
def test_a_large_file_that_is_not_as_recorded_is_read(
    change: str, install: Install, memory: Path, reads: list[str]
) -> None:
    record = install.record()
    later(record)
    ptxas = install.root / "backends/nvidia/bin/ptxas"
    if change == "written since":
        later(ptxas, 20.0)
    elif change == "another size":
        status = ptxas.stat()
        ptxas.write_bytes(PTXAS + b" ")
        os.utime(ptxas, ns=(status.st_atime_ns, status.st_mtime_ns))
    else:
        lines = [line for line in record.read_text().splitlines() if "ptxas" not in line]
        later(install.record(lines))
    install.toolchain().digest({}, memory)
    assert "ptxas" in reads
    assert "libtriton.so" not in reads


@pytest.mark.usefixtures("_small_is_large")
def test_a_file_of_the_age_of_its_record_is_as_recorded(install: Install, memory: Path, reads: list[str]) -> None:
    record = install.record()
    ptxas = install.root / "backends/nvidia/bin/ptxas"
    os.utime(ptxas, ns=(record.stat().st_mtime_ns,) * 2)
    install.toolchain().digest({}, memory)
    assert "ptxas" not in reads


def test_small_files_are_always_read(install: Install, memory: Path, reads: list[str]) -> None:
    later(install.record())
    install.toolchain().digest({}, memory)
    assert len(reads) == len(install.toolchain().files())


@pytest.mark.usefixtures("_small_is_large")
def test_python_files_are_always_read(install: Install, memory: Path, reads: list[str]) -> None:
    install.write("huge.py", b"#" * 2 * LARGE)
    later(install.record())
    install.toolchain().digest({}, memory)
    assert "huge.py" in reads


@pytest.mark.usefixtures("_small_is_large")
@pytest.mark.parametrize(
    "line",
    [
        "triton/backends/nvidia/bin/ptxas,md5=abc,1000",
        "triton/backends/nvidia/bin/ptxas,sha256=abc,many",
        "triton/backends/nvidia/bin/ptxas,sha256=!,1000",
        "triton/gone,sha256=abc,1000",
        '"triton/backends',
        "a,b,c,d",
        "\x00",
        f"{'x' * 200_000},sha256=abc,1000",
    ],
    ids=lambda line: repr(line[:45]),
)
def test_a_record_that_makes_no_sense_is_not_used(line: str, install: Install, memory: Path, tmp_path: Path) -> None:
    original = install.toolchain().digest({}, tmp_path / "first")
    later(install.record([line]))
    assert install.toolchain().digest({}, memory) == original


@pytest.mark.usefixtures("_small_is_large")
def test_another_packages_record_is_not_used(install: Install, memory: Path, reads: list[str]) -> None:
    later(install.record(folder="numpy-2.0.dist-info"))
    install.toolchain().digest({}, memory)
    assert "ptxas" in reads


# Tools from elsewhere


def test_the_content_of_a_tool_that_a_variable_names_counts(install: Install, memory: Path, tmp_path: Path) -> None:
    toolchain = install.toolchain()
    tool = tmp_path / "cuda" / "ptxas"
    tool.parent.mkdir()
    tool.write_bytes(b"12.8")
    environment = {"TRITON_PTXAS_PATH": str(tool)}
    with_tool = toolchain.digest(environment, memory)
    assert with_tool != toolchain.digest({}, memory)
    assert toolchain.digest({**environment, "TRITON_DEBUG": "1"}, memory) == with_tool
    tool.write_bytes(b"12.9.1")
    assert toolchain.digest(environment, memory) != with_tool


def test_the_same_tool_in_another_place_is_the_same_toolchain(install: Install, memory: Path, tmp_path: Path) -> None:
    digests = set()
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "ptxas").write_bytes(b"12.8")
        digests.add(install.toolchain().digest({"TRITON_PTXAS_PATH": f"{tmp_path}/{folder}/ptxas"}, memory))
    assert len(digests) == 1


def test_one_tool_for_another_purpose_is_another_toolchain(install: Install, memory: Path, tmp_path: Path) -> None:
    tool = tmp_path / "ptxas"
    tool.write_bytes(b"12.8")
    names = ("TRITON_PTXAS_PATH", "TRITON_PTXAS_BLACKWELL_PATH")
    assert len({install.toolchain().digest({name: str(tool)}, memory) for name in names}) == 2


def test_every_plugin_of_a_list_counts(install: Install, memory: Path, tmp_path: Path) -> None:
    plugins = [tmp_path / "a.so", tmp_path / "b.so"]
    for plugin in plugins:
        plugin.write_bytes(b"plugin")
    environment = {"TRITON_PLUGIN_PATHS": os.pathsep.join([*map(str, plugins), ""])}
    original = install.toolchain().digest(environment, memory)
    plugins[1].write_bytes(b"another plugin")
    assert install.toolchain().digest(environment, memory) != original


def test_a_tool_that_is_not_there_is_an_error_that_names_it(install: Install, memory: Path, tmp_path: Path) -> None:
    missing = tmp_path / "no" / "ptxas"
    with pytest.raises(ServiceError, match=r"cannot read .*/no/ptxas, a part of the compiler: No such file"):
        install.toolchain().digest({"TRITON_PTXAS_PATH": str(missing)}, memory)


def test_a_tool_that_cannot_be_read_is_an_error_that_names_it(install: Install, memory: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a-folder"
    folder.mkdir()
    with pytest.raises(ServiceError, match="a-folder"):
        install.toolchain().digest({"TRITON_PTXAS_PATH": str(folder)}, memory)


# Finding it


@pytest.fixture
def _no_triton_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "triton"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.usefixtures("_no_triton_yet")
def test_the_triton_that_would_be_imported_is_found_without_importing_it(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(install.site))
    found = find_toolchain()
    assert "triton" not in sys.modules
    assert found == Toolchain(
        python=sys.executable,
        python_version=f"{sys.version_info.major}.{sys.version_info.minor}",
        triton_dir=str(install.root),
        triton_version="3.9.0",
        sys_path=tuple(os.path.abspath(entry) for entry in sys.path),
    )


@pytest.mark.usefixtures("_no_triton_yet")
def test_a_folder_whose_name_is_not_text_is_left_out_of_the_search_path(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(install.site))
    expected = find_toolchain().sys_path
    monkeypatch.syspath_prepend("/opt/caf\udce9")
    assert find_toolchain().sys_path == expected


@pytest.mark.usefixtures("_no_triton_yet")
def test_a_triton_whose_path_is_not_text_is_an_error_that_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install = Install(tmp_path / "caf\udce9")
    monkeypatch.syspath_prepend(str(install.site))
    with pytest.raises(ServiceError, match=r"not valid UTF-8: .*caf\\udce9"):
        find_toolchain()


@pytest.mark.usefixtures("_no_triton_yet")
def test_a_triton_that_does_not_tell_its_version_is_usable(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install.write("__init__.py", b"from ._version import __version__\n")
    monkeypatch.syspath_prepend(str(install.site))
    assert find_toolchain().triton_version == "unknown"


@pytest.mark.parametrize("spec", [None, ModuleSpec("triton", None, is_package=True)], ids=["none", "namespace"])
def test_without_triton_there_is_an_error_that_says_what_to_do(
    spec: ModuleSpec | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toolchain_module, "find_spec", lambda name: spec)
    with pytest.raises(ServiceError) as error:
        find_toolchain()
    assert sys.executable in str(error.value)
    assert "pip install 'headstart[triton]'" in str(error.value)


@pytest.mark.usefixtures("_no_triton_yet")
@pytest.mark.parametrize("executable", ["", "/no/such/python"])
def test_without_an_interpreter_there_is_an_error_that_shows_it(
    executable: str, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(install.site))
    monkeypatch.setattr(sys, "executable", executable)
    with pytest.raises(ServiceError, match=f"no usable Python interpreter: sys.executable is {executable!r}"):
        find_toolchain()
