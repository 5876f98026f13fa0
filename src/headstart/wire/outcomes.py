"""What became of one compile, as it is told from process to process."""

from __future__ import annotations

import msgspec

_SHOWN = 16 << 10  # characters of what a compile printed that a person is shown


class Warned(msgspec.Struct, frozen=True):
    """A warning of Python's that a compile gave.

    Attributes:
        category: qualified name of its class, as `"builtins.UserWarning"`.
        once: Triton gives it once in a process.
    """

    category: str
    text: str
    filename: str
    line: int
    once: bool = False


class CompileLog(msgspec.Struct, frozen=True):
    """What one compile printed and how long its stages took; of one that this client waited for.

    Attributes:
        stdout, stderr: of Triton and its tools.
        warnings: in order.
        times: microseconds by stage; see `headstart.worker.compiling.Compiled`.
    """

    stdout: str = ""
    stderr: str = ""
    warnings: list[Warned] = []
    times: list[tuple[str, int]] = []

    @property
    def text(self) -> str:
        """What was said, for people: of each stream the end."""
        said = [f"{each.filename}:{each.line}: {each.category}: {each.text}" for each in self.warnings]
        streams = [stream[-_SHOWN:].strip() for stream in (self.stdout, self.stderr)]
        return "\n".join(filter(None, [*streams, *said]))

    def naming(self, path: str, instead: str) -> CompileLog:
        """The same, naming another file."""
        stdout, stderr = (text.replace(path, instead) for text in (self.stdout, self.stderr))
        return msgspec.structs.replace(self, stdout=stdout, stderr=stderr)


class Failure(msgspec.Struct, tag=True):
    """Why a kernel has no result: becomes the `CompileError` of its `kind`; "service" becomes a `ServiceError`.

    A worker's "space", for want of which it could not compile, is for its service alone.
    """

    kind: str
    summary: str
    stage: str = ""
    detail: str = ""
    output: str = ""
    reproduce: str = ""
    advice: str = ""
    raised: str = ""
    message: str = ""
    files: dict[str, bytes] = {}
    log: CompileLog | None = None
    needs_program: bool = False

    @property
    def is_refused_by_assembler(self) -> bool:
        """Whether an autotuner takes this as one configuration less."""
        return self.kind != "service" and self.summary.startswith("PTXASError")


class Result(msgspec.Struct, tag=True):
    """The entry of `key` is in the store, or, where the store could not take it, here as `entry`.

    `in_triton_cache`: it is where `Submit` wanted it to be, too; then `registers` per thread, if its binary says.
    `remote`: another host had compiled it; `farm`: one that a farm had lent.
    """

    ticket: int
    key: str
    entry: bytes = b""
    cached: bool = False
    shared: int = 0  # bytes of shared memory that it needs
    started: float = 0.0
    finished: float = 0.0
    cpu_s: float = 0.0
    log: CompileLog | None = None  # None: it was compiled before
    in_triton_cache: bool = False
    registers: int | None = None
    remote: bool = False
    farm: bool = False


class Failed(msgspec.Struct, tag=True):
    """This request has no result."""

    ticket: int
    failure: Failure
