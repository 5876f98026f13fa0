"""The exceptions that callers of headstart meet. Those that never leave a module stand in it.

HeadstartError
├── UsageError             the caller's mistake: a bad target, signature, plan or option
│   └── CannotTravel       a live kernel uses something that no other process can be given
├── CompileError           one kernel could not be compiled
│   ├── SourceError        its source, signature or options are at fault
│   ├── OutOfResources     it compiled, but its target cannot run it
│   ├── CompilerCrashed    the compiler process died under it
│   ├── CompileTimeout     it took longer than the time limit
│   └── CompileOutOfMemory it used more than the memory limit
├── CompileErrors          several of the above, raised once everything has finished
├── ServiceError           the machine's failure: no service, no Triton, no process to be had
├── StoreUnavailable       the store cannot be written (full, read-only, not a folder)
└── DamagedError           an entry, a bundle or a manifest is not what its checksums say
    ├── FutureVersionError it was written by a newer headstart
    └── PastVersionError   it was written by an older one, whose files are not used any more

The user's mistake, the machine's failure and a kernel's failure are different classes, because what to do
next differs. `TimeoutError` from `LambdaFuture.result(timeout=)` is Python's own: nothing failed.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any


class HeadstartError(Exception):
    """Base of every exception that headstart raises on purpose."""


class UsageError(HeadstartError):
    """The request itself is wrong; the message says which part and what is accepted."""


class CannotTravel(UsageError):
    """A live kernel uses something that cannot be described to another process.

    Attributes:
        kernel: the function that uses it: its `__module__` and `__qualname__`.
        name: what it is called there; empty if the function itself is meant.
        why: one line.
        where: file and line of the function.
    """

    def __init__(self, kernel: str, name: str, why: str, where: str) -> None:
        self.kernel = kernel
        self.name = name
        self.why = why
        self.where = where
        what = f"it uses {name}, " if name else ""
        super().__init__(f"{kernel} cannot travel: {what}{why} ({where})")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.kernel, self.name, self.why, self.where)


class CompileError(HeadstartError):
    """One kernel could not be compiled.

    Attributes:
        kernel: name of the `@triton.jit` function.
        target: e.g. `"cuda:90"`.
        options: compiler options as requested, e.g. `{"num_warps": 4}`.
        stage: where it failed: `"source"`, `"signature"`, `"options"`, or Triton's `"ttir"`, `"ttgir"`, `"llir"`,
            `"ptx"`, `"cubin"`, …
        summary: what happened, one line.
        detail: the evidence: the worker's traceback, or how the process died.
        output: the last of what the compiler printed, tools included.
        reproduce: a shell command that compiles just this kernel again; empty if its source could not be kept.
        advice: what to do next, where headstart knows.
        raised: class of what Triton raised, e.g. `"triton.compiler.errors.CompilationError"`; empty if nothing.
        message: the whole text of that.
        files: what `message` and `output` name and the compiler has left, by path: a repro command's input.
        log: what the compile printed, stream by stream; None where it is not known.
        needs_program: it asks for something that only the program's own process has.
    """

    kind = "compile"

    def __init__(
        self,
        summary: str,
        *,
        kernel: str,
        target: str,
        options: dict[str, Any] | None = None,
        stage: str = "",
        detail: str = "",
        output: str = "",
        reproduce: str = "",
        advice: str = "",
        raised: str = "",
        message: str = "",
        files: dict[str, bytes] | None = None,
        log: Any = None,
        needs_program: bool = False,
    ) -> None:
        super().__init__(summary)
        self.summary = summary
        self.kernel = kernel
        self.target = target
        self.options = dict(options or {})
        self.stage = stage
        self.detail = detail
        self.output = output
        self.reproduce = reproduce
        self.advice = advice
        self.raised = raised
        self.message = message
        self.files = dict(files or {})
        self.log = log
        self.needs_program = needs_program

    def __str__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in sorted(self.options.items()))
        where = f" in stage {self.stage}" if self.stage else ""
        lines = [f"{self.kernel} ({self.target}{', ' if options else ''}{options}) failed{where}: {self.summary}"]
        for title, text in (("what happened", self.detail), ("the compiler's last words", self.output)):
            if text.strip():
                lines.append(f"  {title}:")
                lines.extend(f"    {line}" for line in text.strip().splitlines())
        if self.advice:
            lines.append(f"  what to do: {self.advice}")
        if self.reproduce:
            lines.append(f"  reproduce: {self.reproduce}")
        return "\n".join(lines)

    def fresh(self) -> CompileError:
        """A copy without a traceback, so that each waiter raises its own."""
        return type(self)(self.summary, **self._fields())

    def naming(self, path: str, instead: str) -> CompileError:
        """A copy whose texts name another file."""
        fields = self._fields()
        for field in ("detail", "output", "message"):
            fields[field] = fields[field].replace(path, instead)
        if self.log is not None:
            fields["log"] = self.log.naming(path, instead)
        fields["files"] = {(instead if each == path else each): content for each, content in self.files.items()}
        return type(self)(self.summary.replace(path, instead), **fields)

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(type(self), self.summary, **self._fields()), ()

    def _fields(self) -> dict[str, Any]:
        names = (
            *("kernel", "target", "options", "stage", "detail", "output", "reproduce", "advice", "raised", "message"),
            *("files", "log", "needs_program"),
        )
        return {name: getattr(self, name) for name in names}


class SourceError(CompileError):
    """The kernel's source, signature, constants or options are at fault."""

    kind = "source"


class OutOfResources(CompileError):
    """The kernel compiled, but needs more of a resource than its target has."""

    kind = "resources"


class CompilerCrashed(CompileError):
    """The process that compiled this kernel died: an abort in LLVM, a kill, no memory."""

    kind = "crash"


class CompileTimeout(CompileError):
    """The kernel took longer than `HEADSTART_COMPILE_TIMEOUT`."""

    kind = "timeout"


class CompileOutOfMemory(CompileError):
    """The kernel's compile, its tools included, used more memory than `HEADSTART_MEMORY_LIMIT`."""

    kind = "memory"


COMPILE_ERRORS: dict[str, type[CompileError]] = {
    cls.kind: cls
    for cls in (
        CompileError,
        SourceError,
        OutOfResources,
        CompilerCrashed,
        CompileTimeout,
        CompileOutOfMemory,
    )
}


class CompileErrors(HeadstartError):
    """Several kernels failed. Everything else finished and is in place.

    Attributes:
        errors: one `CompileError` per failed kernel, in the order of the requests.
    """

    def __init__(self, errors: Sequence[HeadstartError]) -> None:
        self.errors = list(errors)
        super().__init__(f"{len(self.errors)} kernels failed")

    def __str__(self) -> str:
        count = len(self.errors)
        head = f"{count} kernel{'' if count == 1 else 's'} failed; all others are in place"
        return "\n\n".join([head, *(str(error) for error in self.errors)])


class ServiceError(HeadstartError):
    """The machine's failure: the compile service cannot start, or there is no Triton to compile with."""


class StoreUnavailable(HeadstartError):
    """The store cannot be written. Kernels go on being compiled and are kept in memory.

    Attributes:
        path: the file or folder that could not be written.
    """

    def __init__(self, path: str | os.PathLike[str], error: OSError) -> None:
        self.path = os.fspath(path)
        self.errno = error.errno
        super().__init__(f"cannot write {self.path}: {error.strerror or error}")
        self._error = error

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self._error)


class DamagedError(HeadstartError):
    """A file is truncated, altered, or not of the kind that it was taken for.

    Attributes:
        path: the file.
        reason: what was found, one line.
    """

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        self.path = os.fspath(path)
        self.reason = reason
        super().__init__(f"{self.path}: {reason}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.reason)


class FutureVersionError(DamagedError):
    """A file was written by a newer headstart in a format this one does not know."""


class PastVersionError(DamagedError):
    """A file was written by an older headstart in a format that is not used any more."""
