"""How far the transfer of a bundle is."""

from __future__ import annotations

import io
import sys

import pytest

from headstart.cli import transfer
from headstart.cli.transfer import transferring


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(transfer.time, "monotonic", lambda: now[0])
    return now


def test_when_piped_there_is_a_line_every_few_seconds(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with transferring("pulling oci://host/app", quiet=False) as tell:
        for clock[0] in range(0, 14, 2):  # type: ignore[call-overload]
            tell(int(clock[0]) * 1024, 20480)
        clock[0] = 60.0
        tell(20480, 20480)
    assert sys.stderr.getvalue().splitlines() == [
        "headstart: pulling oci://host/app: 6.0 KiB of 20.0 KiB",
        "headstart: pulling oci://host/app: 12.0 KiB of 20.0 KiB",
    ]


def test_on_a_terminal_there_is_a_bar_that_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with transferring("pulling oci://host/[app]", quiet=False) as tell:
        tell(1000, 2000)
    shown = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert "pulling oci://host/[app]" in shown
    assert "\x1b[2K" in shown  # it is taken away


@pytest.mark.parametrize("quiet", [True, False])
def test_quiet_and_a_dumb_terminal_show_nothing_of_a_short_one(quiet: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "dumb")
    with transferring("pulling", quiet=quiet) as tell:
        tell(1000, 2000)
    assert sys.stderr.getvalue() == ""  # type: ignore[attr-defined]


def test_without_stderr_nothing_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with transferring("pulling", quiet=False) as tell:
        tell(1000, 2000)
