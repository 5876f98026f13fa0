"""What an earlier run recorded is kicked off before the program asks: winners first, then the longest.

Kernels and sources of torch.compile's alike: `Replay` and `SourcesReplay`, one after the other in one thread.

    headstart-replay (thread)                               the program
      open the manifest, check, submit(background) ──▶ service
      a few at a time, so that imports go on               asks for one: the same future, from now on before all others

Nothing here decides what a program gets: a kernel whose source has changed since has another digest, so that what was
compiled for the old one is never found, and only counted as not used.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Set
from pathlib import Path
from typing import TYPE_CHECKING

from headstart.artifacts.generated import GeneratedSource
from headstart.artifacts.manifest import Manifest
from headstart.artifacts.specialization import Specialization
from headstart.artifacts.vetting import check_request
from headstart.client.async_compile import AsyncCompile
from headstart.errors import DamagedError, HeadstartError, ServiceError
from headstart.model.environment import TOOL_VARIABLES, bypass_reason, fingerprint
from headstart.model.request import CompileRequest
from headstart.model.target import Target
from headstart.system.confinement import unavailable

if TYPE_CHECKING:
    from headstart.adapters.inductor.adapter import Adapter

_BATCH = 32  # kick-offs between two pauses
_PAUSE = 0.002  # seconds: this thread shares the interpreter's lock with the program's imports

_log = logging.getLogger("headstart")


def open_manifest(path: Path) -> Manifest | None:
    """What was recorded; None if nothing was, or it cannot be read, which is a warning."""
    try:
        return Manifest.open(path)
    except FileNotFoundError:
        return None
    except (DamagedError, OSError) as error:
        _log.warning("nothing is compiled ahead: %s", error)
        return None


class Replay:
    """One replay of a manifest.

    Args:
        manifest: what to kick off.
        compiler: called in the replay's thread, once there is something to do.
        trusted: the manifest was recorded by this user's own programs; else kernels that could do anything but become
            a kernel are left out.
        target: the only one to kick off for; None: all that the manifest names.
    """

    def __init__(
        self,
        manifest: Manifest,
        compiler: Callable[[], AsyncCompile],
        *,
        trusted: bool,
        target: str | None = None,
    ) -> None:
        self._compiler = compiler
        self._trusted = trusted
        wanted = None if target is None else Target.parse(target)
        self._kernels = [
            each
            for each in manifest.in_compile_order()
            if not each.torch and (wanted is None or Target.parse(each.request.target) == wanted)
        ]
        self._stop = threading.Event()
        self._digests: set[str] = set()
        self.requests: list[CompileRequest] = []  # that were kicked off
        self._refused = 0

    def run(self) -> None:
        """Kick everything off, in the calling thread; ends early after `stop`."""
        if not self._kernels or bypass_reason(fingerprint()) is not None:
            return
        if not self._trusted and (why := unavailable()):
            _log.warning(
                "%d recorded kernels are not compiled ahead: nobody vouches for them, and their workers cannot be "
                "confined: %s; --trust compiles them",
                len(self._kernels),
                why,
            )
            return
        compiler = self._compiler()
        tools = {name: value for name, value in fingerprint().items() if name in TOOL_VARIABLES}
        for index, each in enumerate(self._kernels):
            if self._stop.is_set() or (index % _BATCH == _BATCH - 1 and self._stop.wait(_PAUSE)):
                return
            if not self._trusted and (reason := check_request(each.request, tools=tools)) is not None:
                self._refused += 1
                _log.debug("%s is not compiled ahead: %s", each.request.name, reason)
                continue
            try:
                compiler.submit(each.request, background=True, vouched=self._trusted)
            except HeadstartError as error:
                _log.debug("no more is compiled ahead: %s", error)
                return
            self._digests.add(each.digest)
            self.requests.append(each.request)
        if self._refused:
            _log.warning(
                "%d recorded kernels are not compiled ahead: they could do anything but become a kernel; --trust "
                "compiles them",
                self._refused,
            )

    def stop(self) -> None:
        """Kick off no more."""
        self._stop.set()

    def report(self, used: Set[str], had: Set[str]) -> str:
        """One line on what it was good for.

        Args:
            used: digests of what the program was given because it had been kicked off early.
            had: digests of what the program found in Triton's own cache.
        """
        unused = self._digests - used
        found = len(unused & had)
        parts = [
            f"{len(self._kernels)} recorded",
            f"{len(self._digests)} prefetched",
            f"{len(self._digests) - len(unused)} used",
            f"{len(unused)} not used" + (f" ({found} were in Triton's own cache)" if found else ""),
        ]
        if self._refused:
            parts.append(f"{self._refused} refused")
        return ", ".join(parts)


class SourcesReplay:
    """One replay of the sources of torch.compile's in a manifest.

    Args:
        manifest: what to kick off.
        adapter: called in the replay's thread, once there is something to do; None: torch.compile is left alone.
        trusted: as for `Replay`. Of others' nothing is kicked off: torch's decorators run what a source says.
    """

    def __init__(self, manifest: Manifest, adapter: Callable[[], Adapter | None], *, trusted: bool) -> None:
        self._adapter = adapter
        self._trusted = trusted
        self._sources = manifest.generated_in_order()
        self._late = [each for each in manifest.in_compile_order() if each.torch]
        self._stop = threading.Event()
        self._keys: set[str] = set()

    def run(self) -> None:
        """Kick everything off, in the calling thread; ends early after `stop`."""
        count = len(self._sources) + len(self._late)
        if not count or bypass_reason(fingerprint()) is not None:
            return
        if not self._trusted:
            _log.warning(
                "%d recorded sources of torch.compile's are not compiled ahead: nobody vouches for them; --trust "
                "compiles them",
                count,
            )
            return
        adapter = self._adapter()
        if adapter is None:
            return
        everything: list[GeneratedSource | Specialization] = [*self._sources, *self._late]
        for index, each in enumerate(everything):
            if self._stop.is_set() or (index % _BATCH == _BATCH - 1 and self._stop.wait(_PAUSE)):
                return
            try:
                if isinstance(each, Specialization):
                    adapter.prefetch_late(each)
                elif adapter.prefetch(each):
                    self._keys.add(each.key)
            except ServiceError as error:
                _log.debug("no more is compiled ahead: %s", error)
                return
            except HeadstartError as error:
                _log.debug("%s is not compiled ahead: %s", each, error)

    def stop(self) -> None:
        """Kick off no more."""
        self._stop.set()

    def report(self, noted: Set[str]) -> str:
        """One line on what it was good for; `noted`: keys of the recipes that the program's sources have."""
        used = len(self._keys & noted)
        return (
            f"torch.compile: {len(self._sources)} sources recorded, {len(self._keys)} prefetched, {used} used, "
            f"{len(self._keys) - used} not used"
        )
