"""Servers that tests share, and what names a place of a test's own in each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TypeAlias

import pytest
import servers
from servers import KINDS, only, started, url_of

from headstart.stores.remote import open_remote
from headstart.stores.remote.base import Remote
from headstart.stores.remote.urls import parse_url

Place: TypeAlias = Callable[[], str]  # the URL of a place that nothing is in


@pytest.fixture(scope="session", params=only(*KINDS))
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Makes URLs of one kind of store. Its server is started before a test looks at which processes there are."""
    kind: str = request.param
    folder = tmp_path_factory.mktemp(kind.replace(" ", "-"))
    with ExitStack() as stack:
        server = started(kind, folder)
        address = stack.enter_context(servers.running(server)).address if server is not None else ""
        yield lambda: url_of(kind, address, folder)


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Those of the tests' servers, and none of whoever runs them."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "AZURE_", "GOOGLE_", "DOCKER_", "REGISTRY_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    for name, value in {**servers.S3_ENVIRONMENT, **servers.AZURE_ENVIRONMENT}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))


@pytest.fixture(autouse=True)
def _a_busy_machine_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers of tests share few cores with the tests: what stores wait for them is not what these are about."""
    monkeypatch.setattr("headstart.stores.remote.redis.READ_SECONDS", 2.0)
    monkeypatch.setattr("headstart.stores.remote.redis.CONNECT_SECONDS", 2.0)
    monkeypatch.setattr("headstart.stores.remote.objects.REQUEST_SECONDS", 20.0)
    monkeypatch.setattr("headstart.stores.remote.objects.CONNECT_SECONDS", 10.0)
    monkeypatch.setattr("headstart.stores.remote.registry.CONNECT_SECONDS", 10.0)
    monkeypatch.setattr("headstart.stores.remote.registry.READ_SECONDS", 20.0)


@pytest.fixture
def open_store() -> Iterator[Callable[[str], Remote]]:
    """Opens stores by URL, with nothing around them, and closes them."""
    opened: list[Remote] = []

    def make(url: str) -> Remote:
        opened.append(open_remote(parse_url(url)))
        return opened[-1]

    yield make
    for each in opened:
        each.close()
