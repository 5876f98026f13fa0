"""How long compiles took, for the record: known once a worker is done, before a kernel is noted or after."""

from __future__ import annotations

from collections.abc import Callable

from headstart import wire
from headstart.adapters.recording import Recorder
from headstart.model.request import CompileRequest


class Durations:
    """Of one process's requests.

    Args:
        recorder: gives who is told of those that were noted already; None: nothing is recorded.
    """

    def __init__(self, recorder: Callable[[], Recorder | None]) -> None:
        self._recorder = recorder
        self._seconds: dict[str, float] = {}  # by digest
        self._noted: set[str] = set()  # digests

    def noted(self, digest: str) -> float:
        """The recorder notes a request; returns how long it took, seconds; 0: that is not known yet."""
        self._noted.add(digest)
        return self._seconds.get(digest, 0.0)

    def answered(self, request: CompileRequest, result: wire.Result) -> None:
        """The service has answered. In the connection's thread."""
        seconds = result.finished - result.started
        recorder = self._recorder()
        if recorder is not None and seconds > 0.0:
            digest = request.digest()
            self._seconds[digest] = seconds
            if digest in self._noted:
                recorder.note(request, digest, duration_s=seconds)
