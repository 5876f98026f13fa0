"""A plugin of pytest's that runs a part of a test suite, with plain Triton or with headstart enabled.

    python -m pytest -p under_headstart --part 0/16 [--headstart] --told FILE …

FILE gets, as JSON, `outcomes` (by test: passed, failed, skipped or xfailed, and why), and with headstart `counts` (the
adapter's) and `reasons` (what was compiled in the program's process, and why).
"""

from __future__ import annotations

import json
import logging
import zlib
from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--part", default="0/1", help="I/N: of N parts of the tests, the I-th")
    parser.addoption("--share", type=float, default=1.0, help="of the tests of each file, chosen by name")
    parser.addoption("--headstart", action="store_true", help="headstart.enable()")
    parser.addoption("--dry-run", metavar="TARGET", help="a GPU that runs nothing, as on a machine without one")
    parser.addoption("--told", help="the file to write")


class Told(logging.Handler):
    """Hears what headstart says, and what becomes of each test."""

    def __init__(self, config: pytest.Config) -> None:
        super().__init__(logging.WARNING)
        self.reasons: list[str] = []
        self.outcomes: dict[str, tuple[str, str]] = {}
        self._config = config

    def emit(self, record: logging.LogRecord) -> None:
        self.reasons.append(record.getMessage())

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: Any) -> Any:
        report = yield
        before, _ = self.outcomes.get(item.nodeid, ("passed", ""))
        if before == "passed" and (report.when == "call" or report.outcome != "passed"):
            outcome = "xfailed" if hasattr(report, "wasxfail") and report.skipped else report.outcome
            why = "" if call.excinfo is None else f"{call.excinfo.typename}: {call.excinfo.value}"
            self.outcomes[item.nodeid] = (outcome, why[:600])
        return report

    def pytest_sessionfinish(self) -> None:
        counts: dict[str, int] = {}
        if self._config.getoption("--headstart"):
            import headstart
            from headstart.adapters import process

            current = process.current()
            if current is not None and current.jit is not None:
                counts = dict(current.jit.counts)
            headstart.disable()
        told = {"outcomes": self.outcomes, "counts": counts, "reasons": self.reasons}
        Path(self._config.getoption("--told")).write_text(json.dumps(told))


def pytest_configure(config: pytest.Config) -> None:
    told = Told(config)
    config.pluginmanager.register(told, "told")
    if target := config.getoption("--dry-run"):
        import torch
        import triton  # noqa: F401 - the driver is Triton's to hold

        from headstart.adapters.triton import dry_run
        from headstart.model.target import Target

        # What the tests ask of it.
        torch.cuda.get_device_capability = lambda *_: divmod(int(target.rpartition(":")[2]), 10)
        torch.cuda.get_device_name = lambda *_: target
        torch.cuda.get_device_properties = lambda *_: None
        torch.cuda.synchronize = lambda *_: None
        torch.cuda.is_available = lambda: True
        torch.cuda.current_device = lambda: 0
        dry_run.install(Target.parse(target))
    if config.getoption("--headstart"):
        import headstart

        logging.getLogger("headstart").addHandler(told)
        headstart.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    part, parts = map(int, config.getoption("--part").split("/"))
    share = config.getoption("--share")

    def is_mine(item: pytest.Item) -> bool:
        number = zlib.crc32(item.nodeid.encode())
        return number % parts == part and (number // parts) % 1000 < 1000 * share

    items[:] = [item for item in items if is_mine(item)]
