"""CompiledKernel: what a caller gets. Immutable, shared by everyone who asked, and read only as far as it is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from headstart.artifacts.entry import Entry
from headstart.errors import DamagedError, OutOfResources
from headstart.model.keys import Component
from headstart.model.request import CompileRequest
from headstart.model.target import Target

if TYPE_CHECKING:
    from headstart.wire import CompileLog

_BINARY = ("cubin", "hsaco")


class KernelMetadata(Mapping[str, Any]):
    """Triton's metadata of a kernel, by key or by attribute: `metadata["shared"]` is `metadata.shared`."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.__dict__["_values"] = _frozen(values)

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __getattr__(self, name: str) -> Any:
        values = self.__dict__.get("_values", {})  # a copy being made has none yet
        try:
            return values[name]
        except KeyError:
            raise AttributeError(f"this kernel's metadata has no {name!r}; it has {', '.join(values)}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{name}: a kernel's metadata is shared by everyone who uses it, and cannot be changed")

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"KernelMetadata({dict(self._values)!r})"


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return MappingProxyType({name: _frozen(member) for name, member in value.items()})
    return tuple(_frozen(member) for member in value) if isinstance(value, list) else value


class Artifacts(Mapping[str, Any]):
    """A kernel's artifacts by name: `bytes` for the binary, text for the rest. Each is verified whenever it is read."""

    def __init__(self, entry: Entry, rebuild: Callable[[DamagedError], Entry]) -> None:
        self._entry = entry
        self._rebuild = rebuild

    def __getitem__(self, name: str) -> Any:
        try:
            data = self._entry.artifact(name)
        except DamagedError as error:
            self._entry = self._rebuild(error)
            data = self._entry.artifact(name)
        return data if name in _BINARY else data.decode()

    def __iter__(self) -> Iterator[str]:
        return iter(self._entry.artifact_names)

    def __len__(self) -> int:
        return len(self._entry.artifact_names)

    def __repr__(self) -> str:
        return f"<Artifacts {', '.join(self)}>"


class CompiledKernel:
    """One compiled kernel.

    Attributes:
        name: of the `@triton.jit` function. The entry point in the binary is `metadata.name`.
        key: identity of what it was made of; see `headstart.model.keys`.
        asm: artifacts by Triton's names, read when asked for: `asm["cubin"]`, `asm["ptx"]`, …
        metadata: Triton's: `metadata.shared`, `metadata.num_warps`, …
        log: what its compile printed, and how long the stages took; None if it was compiled before.

    Args:
        entry: where it is kept.
        rebuild: gives another entry of the same key when this one turns out to be damaged.
        log: see above.
    """

    __slots__ = ("asm", "entry", "key", "log", "metadata", "name")

    def __init__(self, entry: Entry, rebuild: Callable[[DamagedError], Entry], log: CompileLog | None = None) -> None:
        self.name = entry.name
        self.key = entry.key
        self.entry = entry
        self.log = log
        self.asm: Mapping[str, Any] = Artifacts(entry, rebuild)
        self.metadata = KernelMetadata(entry.metadata)

    @property
    def components(self) -> list[Component]:
        """What its key was made of: `headstart.model.keys.explain` compares them with another kernel's."""
        return self.entry.header.components

    def __repr__(self) -> str:
        return f"<CompiledKernel {self.name} {self.key[:12]} for {self.entry.header.target}>"


def check_limits(request: CompileRequest, shared: int, reproduce: Callable[[CompileRequest], str] | None) -> None:
    """Find out whether the target can hold a kernel.

    Args:
        request: what was compiled.
        shared: bytes of shared memory that it needs.
        reproduce: makes the command that compiles it again; None: nobody vouches for it.

    Raises:
        OutOfResources: it cannot.
    """
    limit = Target.parse(request.target).shared_memory_limit
    if limit is not None and shared > limit:
        raise OutOfResources(
            f"it needs {shared} bytes of shared memory, and {request.target} has {limit}",
            kernel=request.name,
            target=request.target,
            options=request.options,
            stage="launch",
            reproduce="" if reproduce is None else reproduce(request),
            advice="use smaller blocks or fewer num_stages",
        )
