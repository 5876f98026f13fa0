"""What a service that died by itself leaves: who is suspected, and whether another is started."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from headstart.client.asked import Asked
from headstart.errors import CompilerCrashed, ServiceError
from headstart.model.request import CompileRequest

MAX_RUNNING_DEATHS = 2  # deaths of the service while one kernel was being compiled
MAX_FRUITLESS_DEATHS = 2  # deaths in a row without a single answer between


def blame(running: Iterable[Asked[Any]]) -> list[Asked[Any]]:
    """Count a death of the service for each kernel that was being compiled. Returns those that ran once too often."""
    suspects = []
    for kickoff in running:
        kickoff.deaths += 1
        kickoff.started = None
        if kickoff.deaths >= MAX_RUNNING_DEATHS:
            suspects.append(kickoff)
    return suspects


def crash_of(
    kickoff: Asked[Any], status: int | None, words: str, reproduce: Callable[[CompileRequest], str]
) -> CompilerCrashed:
    """What a suspect's waiters are told. `words` are the service's last ones."""
    request = kickoff.request
    return CompilerCrashed(
        f"the compile service died {kickoff.deaths} times while it was being compiled",
        kernel=kickoff.name,
        target="" if request is None else request.target,
        options={} if request is None else request.options,
        detail=f"it is the suspect because it ran each time; it is not tried again (status {status})",
        output=words,
        # A person who ran a plan with a strange source would vouch for it.
        reproduce=reproduce(request) if request is not None and kickoff.vouched else "",
        advice="compile it alone (headstart build) and watch the memory: dmesg names what was killed",
    )


def check_fruitless(deaths: int, status: int | None, words: str) -> None:
    """Raises `ServiceError`: services have died too often in a row for another to be of use."""
    if deaths >= MAX_FRUITLESS_DEATHS:
        raise ServiceError(
            f"the compile service died {deaths} times in a row before it had compiled anything (status {status}); its "
            f"last words: {words or 'none'}"
        )


def no_thread(error: Exception) -> ServiceError:
    """What is pending is told where this process can start no thread for the connection."""
    return ServiceError(
        f"no compile service: this process can start no thread ({error}); is there a limit on its "
        "processes (ulimit -u, pids.max) or open files (ulimit -n)?"
    )
