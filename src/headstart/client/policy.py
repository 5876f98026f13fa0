"""What differs between those who share one client: who compiles, in which environment, and what answers lead to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from headstart.model.environment import TOOL_VARIABLES, fingerprint
from headstart.model.toolchain import Toolchain, find_toolchain

if TYPE_CHECKING:
    from headstart import wire
    from headstart.model.request import CompileRequest


class Policy:
    """How the requests of one AsyncCompile are compiled, and what becomes of the answers.

    Args:
        find: finds the toolchain.
        environment: the variables that change what a compile yields, as they are now.
        answered: told each answer, in the connection's thread, before its future is done.
        checks_limits: whether a kernel that needs more shared memory than its target has is a failure; else that is
            for Triton to say, when it loads the kernel: autotuners count on it.
        shows_output: whether what a compile printed is logged; else somebody prints it where Triton would have.
    """

    def __init__(
        self,
        *,
        find: Callable[[], Toolchain] = find_toolchain,
        environment: Callable[[], dict[str, str]] = fingerprint,
        answered: Callable[[CompileRequest, wire.Result], None] | None = None,
        checks_limits: bool = False,
        shows_output: bool = False,
    ) -> None:
        self._find = find
        self.environment = environment
        self.answered = answered
        self.checks_limits = checks_limits
        self.shows_output = shows_output
        self._toolchain: Toolchain | None = None
        self._digests: dict[tuple[tuple[str, str], ...], str] = {}  # by tools

    def toolchain(self, *, again: bool = False) -> Toolchain:
        """What compiles; found once, or `again`, as `sys.path` is by then.

        Raises:
            ServiceError: there is no Triton, or no interpreter that could be started.
        """
        if again or self._toolchain is None:
            self._toolchain = self._find()
        return self._toolchain

    def toolchain_digest(self, cache_dir: Path, variables: Mapping[str, str] | None = None) -> str:
        """SHA-256 of the toolchain with the tools that `variables` name (default: `environment()`), hexadecimal.

        Reading a toolchain that this machine never read before takes seconds.

        Raises:
            ServiceError: as `toolchain`; or a file of it cannot be read.
        """
        given = self.environment() if variables is None else variables
        tools = {name: value for name, value in given.items() if name in TOOL_VARIABLES}
        key = tuple(sorted(tools.items()))
        if key not in self._digests:
            self._digests[key] = self.toolchain().digest(tools, cache_dir / "toolchains")
        return self._digests[key]
