"""Why a worker makes nothing of a request, before or while Triton compiles it."""

from __future__ import annotations

from headstart.wire import Failure


class Refused(Exception):
    """A compile that cannot succeed; carries the failure to report."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.summary)
        self.failure = failure


def source_failure(summary: str, stage: str = "source") -> Refused:
    return Refused(Failure("source", summary, stage=stage))


def signature_failure(summary: str) -> Refused:
    return Refused(Failure("source", summary, stage="signature"))
