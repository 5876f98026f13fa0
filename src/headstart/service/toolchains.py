"""What a service knows of its clients' toolchains. It may live longer than an installation stays as it is."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from headstart.errors import ServiceError
from headstart.model.environment import TOOL_VARIABLES
from headstart.model.toolchain import Toolchain


class Toolchains:
    """Digests, and how often each toolchain was seen to have changed on disk: its `generation`."""

    def __init__(self) -> None:
        self._digests: dict[tuple[Toolchain, tuple[tuple[str, str], ...]], str] = {}
        self._generations: Counter[Toolchain] = Counter()

    def digest(self, toolchain: Toolchain, environment: Mapping[str, str], cache_dir: str) -> str:
        """As of the last look; see `Toolchain.digest`, also for what it raises."""
        tools = {name: value for name, value in environment.items() if name in TOOL_VARIABLES}
        which = toolchain, tuple(sorted(tools.items()))
        if which not in self._digests:
            self._digests[which] = toolchain.digest(tools, Path(cache_dir, "toolchains"))
        return self._digests[which]

    def known(self, toolchain: Toolchain, environment: Mapping[str, str]) -> str | None:
        """The digest, if it was read before. May be called while another thread reads one."""
        tools = {name: value for name, value in environment.items() if name in TOOL_VARIABLES}
        return self._digests.get((toolchain, tuple(sorted(tools.items()))))

    def look_again(self, toolchain: Toolchain, cache_dir: str) -> None:
        """Notice what was rebuilt or edited since: it gets another digest, and another generation."""
        known = [which for which in self._digests if which[0] == toolchain]
        before = {which: self._digests.pop(which) for which in known}
        for _, tools in known:
            with contextlib.suppress(ServiceError):  # the next request is told
                self.digest(toolchain, dict(tools), cache_dir)
        if any(self._digests.get(which) != before[which] for which in known):
            self._generations[toolchain] += 1

    def generation(self, toolchain: Toolchain) -> int:
        """Processes that loaded another one are not to be used."""
        return self._generations[toolchain]
