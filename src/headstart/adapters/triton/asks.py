"""One compile that a program asks for, and the same as a request that can travel."""

from __future__ import annotations

import functools
import threading
from types import FrameType

from headstart.adapters.triton import compat
from headstart.capture import reading
from headstart.capture.functions import capture_call
from headstart.client.future import LambdaFuture
from headstart.client.kernel import CompiledKernel
from headstart.errors import CompileError, UsageError
from headstart.model.captured import CapturedSource, Unbound
from headstart.model.request import CompileRequest
from headstart.model.target import Target

# Options that name files: what these hold is in no key.
_FILES = frozenset({"extern_libs", "ir_override"})


class PendingCompile:
    """One compile that the program asked for, or will.

    Attributes:
        what: as Triton told it; `environment`: variables that change the outcome, as they were then.
        request: the same for a worker, once somebody needs it; `digest` is its.
        future: of the worker's answer; None: Triton's own cache had it.
        group: files that were written where Triton's cache could not be.
    """

    def __init__(self, what: compat.CompileCall, environment: dict[str, str]) -> None:
        self.what = what
        self.environment = environment
        self.request: CompileRequest | None = None
        self.digest = ""
        self.future: LambdaFuture[CompiledKernel] | None = None
        self.group: dict[str, str] | None = None
        self.told = False  # what its compile printed
        self.lock = threading.Lock()

    def make_request(self) -> CompileRequest:
        """The ask for a worker, made once.

        Raises:
            UsageError: it cannot travel.
        """
        if self.request is None:
            what = self.what
            if files := _FILES & what.options.keys():
                raise UsageError(f"its option {', '.join(sorted(files))} names a file")
            signature = what.source.signature
            source, constants = capture_call(what.function, what.source.constants, signature, lenient=True)
            request = CompileRequest.make(
                source.kernel.name,
                source,
                signature=signature,
                constants=constants,
                attrs={path: facts for path, facts in what.source.attrs.items() if facts},
                options=what.options,
                target=str(Target.parse(what.target)),
                environment=self.environment,
            )
            self.digest = request.digest()
            self.request = request
        return self.request

    def unbound_in(self, error: CompileError) -> str:
        """What the kernel turned out to need and could not be given, if that is why it failed in a worker."""
        source = None if self.request is None else self.request.source
        if isinstance(source, CapturedSource):
            for function in source.functions:
                for name, binding in function.names.items():
                    if isinstance(binding, Unbound) and f"{name} is not defined" in error.message + error.detail:
                        return f"it uses {name}, {binding.why}"
        return ""


@functools.lru_cache(maxsize=1024)
def _is_ours(module: str) -> bool:
    return reading.is_triton(module) or module == "headstart" or module.startswith("headstart.")


def asked_by(frame: FrameType | None) -> str:
    """The first frame that is neither Triton's nor headstart's, `"file:line"`."""
    while frame is not None:
        module = frame.f_globals.get("__name__")
        # Triton makes a function per kernel, and contextlib calls ours.
        if not (isinstance(module, str) and (_is_ours(module) or module == "contextlib")):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
