"""Facts about the insides of torch and Triton that both the describer and the training process need.

Read for torch 2.11 to 2.14, and run with `KNOWN_VERSIONS`. Nothing here imports torch before it is called.
"""

from __future__ import annotations

import base64
import contextlib
import enum
import functools
import getpass
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

KNOWN_VERSIONS = ("2.11", "2.13", "2.14")  # those that the suite has run on


# What decides which assembler Triton finds, and which version it takes it for.
ASSEMBLER_VARIABLES = ("TRITON_PTXAS_PATH", "TRITON_PTXAS_BLACKWELL_PATH", "TRITON_MOCK_PTX_VERSION")


HEURISTICS = "torch._inductor.runtime.triton_heuristics"


GENERATED = "torch._inductor.runtime.compile_tasks"  # where modules of PyCodeCache claim to live


class Torch(msgspec.Struct, frozen=True):
    """The torch that this process has, or would import."""

    folder: str
    version: str

    @property
    def known(self) -> bool:
        """Whether headstart's suite has run on this version."""
        return ".".join(self.version.split(".")[:2]) in KNOWN_VERSIONS


def find_torch() -> Torch | None:
    """Found without importing it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent
    try:
        match = re.search(r"__version__\s*=\s*['\"]([^'\"]+)", (folder / "version.py").read_text(encoding="utf-8"))
    except OSError:
        match = None
    return Torch(str(folder), match[1] if match else "unknown")


@functools.cache
def stamp() -> str:
    """Of the torch that this process has, or would import: changes when what describes sources may have changed."""
    torch = find_torch()
    assert torch is not None
    digest = hashlib.sha256()
    for path in sorted([Path(torch.folder, "version.py"), *Path(torch.folder, "_inductor").rglob("*.py")]):
        with contextlib.suppress(OSError):
            status = path.stat()
            digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


@functools.cache
def generation() -> str:
    """Of that torch: changes when it may generate other sources, and not when its virtual environment is rebuilt."""
    torch = find_torch()
    assert torch is not None
    digest = hashlib.sha256(torch.version.encode())
    for path in sorted(Path(torch.folder, "_inductor").rglob("*.py")):
        with contextlib.suppress(OSError):
            digest.update(f"{path.relative_to(torch.folder)}\0{path.stat().st_size}\n".encode())
    return digest.hexdigest()


class Proxy:
    """A module, with another `compile`."""

    def __init__(self, module: Any, compile: Callable[..., Any]) -> None:
        self._module = module
        self.compile = compile

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def __dir__(self) -> list[str]:
        return dir(self._module)


def first_missing(required: Mapping[str, Sequence[str]]) -> str | None:
    """The first of some names, dotted and by module, that this torch does not have. Imports the modules."""
    for module, names in required.items():
        try:
            found = importlib.import_module(module)
        except ImportError as error:
            return f"{module} ({error})"
        for name in names:
            try:
                functools.reduce(getattr, name.split("."), found)
            except AttributeError:
                return f"{module}.{name}"
    return None


def inductor_config() -> Any:
    """Inductor's configuration."""
    return importlib.import_module("torch._inductor.config")


def heuristics() -> Any:
    """The module of CachingAutotuner."""
    return importlib.import_module(HEURISTICS)


def codecache() -> Any:
    """The module of PyCodeCache."""
    return importlib.import_module("torch._inductor.codecache")


def runtime_utils() -> Any:
    return importlib.import_module("torch._inductor.runtime.runtime_utils")


def hint(kind: str, member: str) -> Any:
    """A member of one of the enumerations in `torch._inductor.runtime.hints`."""
    found = getattr(importlib.import_module("torch._inductor.runtime.hints"), kind)
    if not (isinstance(found, type) and issubclass(found, enum.Enum)):
        raise ValueError(f"{kind} is no enumeration")
    return found[member]


def device_properties(values: list[Any]) -> Any:
    """Inductor's DeviceProperties."""
    return importlib.import_module("torch._inductor.runtime.hints").DeviceProperties(*values)


def ordered_set(members: list[Any]) -> Any:
    """torch's OrderedSet."""
    return importlib.import_module("torch.utils._ordered_set").OrderedSet(members)


def config(kind: str, attributes: dict[str, Any]) -> Any:
    """A `triton.Config`, or Inductor's kind of it."""
    if kind not in ("Config", "InductorConfig"):
        raise ValueError(f"{kind} is no configuration")
    cls = getattr(heuristics(), kind)
    made = cls.__new__(cls)
    made.__dict__.update(attributes)
    return made


def triton_language() -> Any:
    """`triton.language`."""
    return importlib.import_module("triton.language")


def module_of_stem(stem: str) -> str:
    """The name of the module that a source with this key becomes."""
    return f"{GENERATED}.{stem}"


def path_of_stem(stem: str, cache_dir: str | None = None) -> str:
    """Where PyCodeCache keeps the source with this key; `cache_dir` as in TORCHINDUCTOR_CACHE_DIR."""
    return os.path.join(cache_dir or runtime_utils().cache_dir(), stem[1:3], f"{stem}.py")


def expected_cache_dir() -> str:
    """Inductor's cache folder, if the program does not choose another; without torch."""
    try:
        user = getpass.getuser()
    except (KeyError, ImportError, OSError):
        user = f"uid_{os.getuid()}"
    folder = os.path.join(tempfile.gettempdir(), "torchinductor_" + re.sub(r'[\\/:*?"<>|]', "_", user))
    return os.path.abspath(os.environ.get("TORCHINDUCTOR_CACHE_DIR", folder))


def is_cached(text: str) -> bool:
    """Whether PyCodeCache has a source in exactly this form."""
    return os.path.exists(path_of_stem(code_key(text)))


def read_source(path: str) -> str:
    """The content of a generated file."""
    return Path(path).read_text(encoding="utf-8")


def hash_folder(hash: str) -> str:
    """The name of an entry's folder in Triton's cache."""
    return str(runtime_utils().triton_hash_to_path_key(hash))


def torch_key() -> str:
    """Inductor's own digest of torch's source files."""
    key = codecache().torch_key()
    return key.hex() if isinstance(key, bytes) else str(key)


def stem_of(text: str) -> str:
    """The same key without torch, for what comes out of a file: as `torch._inductor.codecache.code_hash` makes it."""
    digest = hashlib.sha256(text.strip().encode()).digest()
    return "c" + base64.b32encode(digest)[:51].decode().lower()


def code_key(text: str) -> str:
    """The key of a source in PyCodeCache."""
    return str(codecache().code_hash(text.strip()))


def parsed_options(target: Any, options: dict[str, Any]) -> dict[str, Any]:
    """All options of a compile, as the backend understands them."""
    from triton.compiler import make_backend

    return dict(vars(make_backend(target).parse_options(dict(options))))


def cache_hash(src: Any, target: Any, options: dict[str, Any]) -> str:
    """The hash under which Triton would keep this compile."""
    from triton.compiler import make_backend
    from triton.compiler.compiler import get_cache_invalidating_env_vars
    from triton.runtime.cache import get_cache_key

    backend = make_backend(target)
    key = get_cache_key(src, backend, backend.parse_options(dict(options)), env_vars=get_cache_invalidating_env_vars())
    return hashlib.sha256(key.encode()).hexdigest()


def forget_assembler() -> None:
    """Have Triton ask the assembler for its version again, which is part of its hash: another one may be set."""
    from triton.backends.nvidia import compiler

    for asked in (compiler.get_ptxas, compiler.get_ptxas_version):
        getattr(asked, "cache_clear", lambda: None)()
