"""Which Python and Triton compile, found and identified without importing Triton.

A toolchain is known by content: Triton's Python files, libtriton, the tools and bitcode that it ships, and whatever
`TRITON_PTXAS_PATH` and its like name instead. Reading all that takes long (Triton 3.9: some 600 MB), so

* digests are remembered under the cache folder by each file's path, size, mtime_ns and inode: an edited or rebuilt file
  misses;
* on a machine that remembers nothing yet, the large binaries of an unpacked wheel are not read: the wheel's RECORD
  lists their SHA-256, and counts for a file of the recorded size that has not been written since. Python files are
  always read.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import hashlib
import os
import re
import sys
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path

import msgspec

from headstart.errors import ServiceError
from headstart.model.environment import TOOL_VARIABLES
from headstart.system.files import replace
from headstart.system.private import make_folder, read, refusal

# Below Triton's folder, by suffix; and tools by name. Headers and debuggers do not change what a kernel becomes.
_SUFFIXES = (".py", ".bc", ".ll", ".pyi")
_TOOLS = ("ptxas", "ptxas-blackwell", "ld.lld")
_LIBRARY = re.compile(r"libtriton(\..*)?\.so")
# The part of torch that its generated kernels call and that ends up in them; all else of it is bookkeeping.
TORCH_FILES = ("_inductor/runtime/triton_compat.py", "_inductor/runtime/triton_helpers.py")
_LARGE = 1 << 20  # bytes; smaller files are read sooner than they are looked up
_SKIPPED_FOLDERS = {"__pycache__", "include", "profiler"}


class Toolchain(msgspec.Struct, frozen=True):
    """One Python with one Triton.

    Attributes:
        python: path of the interpreter.
        python_version: `"3.11"`.
        triton_dir: folder of the triton package.
        triton_version: as Triton says, e.g. `"3.6.0"`.
        sys_path: where the compiling process looks for modules, in order.
        torch_dir: folder of a torch package whose generated kernels are to be compiled without importing it
            (`headstart.worker.standins`); empty: no source may import torch.
    """

    python: str
    python_version: str
    triton_dir: str
    triton_version: str
    sys_path: tuple[str, ...]
    torch_dir: str = ""

    def files(self) -> list[Path]:
        """Every file whose content decides what this toolchain makes of a source, sorted."""
        found = []
        for folder, folders, names in os.walk(self.triton_dir):
            folders[:] = [name for name in folders if name not in _SKIPPED_FOLDERS]
            found += [
                Path(folder, name)
                for name in names
                if name.endswith(_SUFFIXES) or name in _TOOLS or _LIBRARY.fullmatch(name)
            ]
        return sorted(found)

    def digest(self, environment: Mapping[str, str], memory: Path) -> str:
        """SHA-256 of what compiles, hexadecimal.

        Args:
            environment: a request's fingerprint; tools named in it are part of the toolchain.
            memory: folder where digests are remembered. It need not be writable.

        Raises:
            ServiceError: a file cannot be read.
        """
        groups = {"triton": self.files()}
        if self.torch_dir:
            groups["torch"] = [Path(self.torch_dir, part) for part in TORCH_FILES]
        for name in sorted(TOOL_VARIABLES & environment.keys()):
            groups[name] = [Path(part) for part in environment[name].split(os.pathsep) if part]
        whole = hashlib.sha256(f"python {self.python_version}\n".encode())
        for group, files in groups.items():
            whole.update(f"{group} {_remembered_digest(files, Path(self.triton_dir), memory)}\n".encode())
        return whole.hexdigest()


def find_toolchain() -> Toolchain:
    """The toolchain of this process: its own interpreter, and the Triton it would import.

    Raises:
        ServiceError: there is no Triton, or no interpreter that could be started.
    """
    spec = find_spec("triton")
    if spec is None or spec.origin is None:
        raise ServiceError(
            f"no Triton to compile with: {sys.executable} finds no package 'triton'; pip install 'headstart[triton]', "
            "or run headstart from the environment that has it"
        )
    if not sys.executable or not os.access(sys.executable, os.X_OK):
        raise ServiceError(f"no usable Python interpreter: sys.executable is {sys.executable!r}")
    init = Path(spec.origin)
    if not (_is_text(sys.executable) and _is_text(spec.origin)):
        raise ServiceError(f"Triton's path or Python's is not valid UTF-8: {spec.origin!a}, {sys.executable!a}")
    version = re.search(r"__version__\s*=\s*['\"]([^'\"]+)", init.read_text(encoding="utf-8"))
    return Toolchain(
        python=sys.executable,
        python_version=f"{sys.version_info.major}.{sys.version_info.minor}",
        triton_dir=str(init.parent),
        triton_version=version[1] if version else "unknown",
        sys_path=tuple(filter(_is_text, map(os.path.abspath, sys.path))),
    )


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _remembered_digest(files: Iterable[Path], root: Path, memory: Path) -> str:
    states = []
    try:
        for file in files:
            status = file.stat()
            states.append((str(file), status.st_size, status.st_mtime_ns, status.st_ino))
    except OSError as error:
        raise ServiceError(f"cannot read {error.filename}, a part of the compiler: {error.strerror}") from error
    state = hashlib.sha256(repr(states).encode("utf-8", "surrogateescape")).hexdigest()
    note = memory / f"{state}.sha256"
    is_private = not refusal(memory)  # a digest that somebody made up would be another Triton's
    try:
        remembered = read(note).decode("ascii") if is_private else ""
        if re.fullmatch(r"[0-9a-f]{64}", remembered):
            return remembered
    except (OSError, UnicodeDecodeError):
        pass
    try:
        digest = _content_digest((Path(path) for path, *_ in states), root)
    except OSError as error:
        raise ServiceError(f"cannot read {error.filename}, a part of the compiler: {error.strerror}") from error
    if is_private:
        _remember(note, digest)
    return digest


def _content_digest(files: Iterable[Path], root: Path) -> str:
    recorded = _recorded_digests(root)
    whole = hashlib.sha256()
    for file in files:
        # The name is relative to Triton's folder: the same install elsewhere is the same toolchain.
        name = file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name
        content = recorded.get(name) or _read_digest(file)
        whole.update(f"{name}\0{content}\n".encode("utf-8", "surrogateescape"))
    return whole.hexdigest()


def _read_digest(file: Path) -> str:
    content = hashlib.sha256()
    with open(file, "rb") as stream:
        while chunk := stream.read(1 << 20):
            content.update(chunk)
    return content.hexdigest()


def _recorded_digests(root: Path) -> dict[str, str]:
    """SHA-256, by name below `root`, of large files that are as their wheel's RECORD says.

    The format is PEP 376's: path, `sha256=` and the unpadded base64url digest, size.
    """
    digests = {}
    for record in sorted(root.parent.glob("*triton*.dist-info/RECORD")):
        try:
            rows = list(csv.reader(record.read_text(encoding="utf-8").splitlines()))
            installed = record.stat().st_mtime_ns
            for path, method_and_digest, size in (row for row in rows if len(row) == 3):
                method, _, digest = method_and_digest.partition("=")
                file = root.parent / path
                if method != "sha256" or int(size) < _LARGE or file.suffix == ".py" or not file.is_relative_to(root):
                    continue
                status = file.stat()
                if status.st_size == int(size) and status.st_mtime_ns <= installed:
                    name = file.relative_to(root).as_posix()
                    digests[name] = base64.urlsafe_b64decode(digest + "=" * (-len(digest) % 4)).hex()
        except (OSError, ValueError, csv.Error):
            continue  # then the files are read
    return digests


def _remember(note: Path, digest: str) -> None:
    # A cache folder that cannot be written costs the hashing each time; the store warns about it.
    with contextlib.suppress(OSError):
        make_folder(note.parent)
        replace(note, digest.encode("ascii"))
