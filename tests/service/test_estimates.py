"""What a service thinks that a compile takes."""

from __future__ import annotations

import pytest

from headstart.model.request import CompileRequest
from headstart.service.estimates import MOST_BELIEVED, Estimates
from kernels import pointwise

REQUEST = CompileRequest.make(**pointwise(), target="cuda:90")


def test_the_longest_of_a_kernels_configurations_counts() -> None:
    estimates = Estimates()
    assert estimates.of(REQUEST) is None
    for seconds in (1.0, 3.0, 2.0):
        estimates.seen(REQUEST, seconds)
    other = CompileRequest.make(**{**pointwise(), "options": {"num_warps": 8}}, target="cuda:90")
    assert other.digest() != REQUEST.digest()
    assert estimates.of(other) == 3.0


@pytest.mark.parametrize("said", [1e300, float("inf"), float("nan")])
def test_what_an_entry_says_is_believed_within_bounds_and_what_was_seen_here_is_believed(said: float) -> None:
    estimates = Estimates()
    estimates.heard(REQUEST, said)
    assert estimates.of(REQUEST) == MOST_BELIEVED
    estimates.seen(REQUEST, 500.0)
    assert estimates.of(REQUEST) == 500.0
