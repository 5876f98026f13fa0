"""`headstart build` and stores of other hosts: it ends once they have what it compiled, or will not have it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

import headstart
from conftest import PATIENCE
from headstart import wire
from headstart.cli import build as build_module
from headstart.cli import main, publishing
from headstart.cli.publishing import Published, Publishing, publishing_of
from headstart.errors import UsageError
from kernels import pointwise

REDIS = "redis://:hunter2@host/0"
NAME = "redis://host/0"
KERNELS = 3


# What is waited for, with a service that is a fake


class FakeClient:
    """Answers with one count after the other, the last one again and again; None: there is no service any more."""

    def __init__(self, *counts: wire.RemoteCounts | None, before: wire.RemoteCounts | None = None) -> None:
        self.settings = SimpleNamespace(remote=REDIS)
        self.keeps = True
        self.services_lost = 0
        self._counts = [before, *counts]

    def count_remotes(self) -> Future[wire.RemoteCounts | None]:
        answer: Future[wire.RemoteCounts | None] = Future()
        answer.set_result(self._counts.pop(0) if len(self._counts) > 1 else self._counts[0])
        return answer


def counts(offered: int, settled: int, published: int, **unpublished: int) -> wire.RemoteCounts:
    return wire.RemoteCounts(offered=offered, settled=settled, published=published, unpublished=unpublished)


def wait(client: Any, said: Callable[[str], None] = lambda text: None, **how: Any) -> Published:
    return Publishing(client).wait(said, **how)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "_PAUSE", 0.0)
    monkeypatch.setattr(publishing, "_MAX_PAUSE", 0.0)


def test_it_waits_until_it_is_known_what_became_of_everything() -> None:
    outcome = wait(FakeClient(counts(5, 1, 1), counts(5, 3, 3), counts(5, 5, 4, full=1)))
    assert (outcome.entries, outcome.unpublished, outcome.is_whole) == (4, {"full": 1}, False)
    assert outcome.line() == f"4 entries published to {NAME}, 1 not"


def test_where_everything_was_published_the_line_says_no_more() -> None:
    outcome = wait(FakeClient(counts(1, 1, 1)))
    assert (outcome.line(), outcome.is_whole) == (f"1 entry published to {NAME}", True)
    assert wait(FakeClient(counts(0, 0, 0))).line() == f"nothing was to be published to {NAME}"


def test_several_reasons_are_each_counted() -> None:
    outcome = wait(FakeClient(counts(6, 6, 1, full=2, gone=3)))
    assert outcome.line().endswith(", 5 not")
    assert outcome.warning().endswith(f"not everything was published to {NAME}: 2 entries: full; 3 entries: gone")


def test_what_a_shared_service_published_before_is_not_counted() -> None:
    outcome = wait(FakeClient(counts(15, 15, 12, full=3), before=counts(10, 10, 8, full=2)))
    assert (outcome.entries, outcome.unpublished) == (4, {"full": 1})


def test_what_other_clients_of_the_service_offer_meanwhile_is_not_waited_for() -> None:
    outcome = wait(FakeClient(counts(2, 1, 1), counts(9, 2, 2)))
    assert (outcome.entries, outcome.is_whole) == (2, True)


def test_where_nothing_happens_it_ends_in_time_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "PATIENCE", 0.05)
    outcome = wait(FakeClient(counts(5, 2, 2)))
    assert (outcome.entries, outcome.unpublished) == (2, {"no answer for 0.05 s": 3})


def test_while_something_happens_it_goes_on_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter(range(0, 10_000, 40))
    monkeypatch.setattr(publishing, "time", SimpleNamespace(monotonic=lambda: next(times), sleep=lambda seconds: None))
    said: list[str] = []
    slow = [counts(5, done, done) for done in range(6)]
    assert wait(FakeClient(*slow), said.append).entries == 5
    assert said[0].startswith(f"publishing to {NAME}: 5 entries to go")


def test_a_service_that_died_took_with_it_what_it_knew() -> None:
    client = FakeClient(counts(5, 2, 2), None)
    outcome = wait(client)
    assert outcome.lost
    assert not outcome.is_whole
    client = FakeClient(counts(1, 1, 1), before=counts(10, 10, 10))
    client.services_lost = 1
    outcome = wait(client)
    assert (outcome.entries, outcome.lost) == (1, True)


def test_ctrl_c_ends_the_wait_and_what_waits_is_counted() -> None:
    def interrupt(text: str) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publishing, "SAID_EVERY", 0.0)
        outcome = wait(FakeClient(counts(5, 2, 2)), interrupt)
    assert outcome.interrupted
    assert (outcome.entries, outcome.unpublished) == (2, {"interrupted": 3})


def test_what_is_kept_back_is_not_published_and_that_is_said() -> None:
    outcome = wait(FakeClient(counts(0, 0, 0)), compiled=3, kept_back="nobody vouches for them")
    assert outcome.unpublished == {"nobody vouches for them": 3}
    client = FakeClient(counts(0, 0, 0))
    client.keeps = False
    (reason,) = wait(client, compiled=2).unpublished
    assert "memory only" in reason
    assert wait(client, compiled=0).is_whole


def test_what_was_compiled_and_could_not_go_out_from_the_local_store_was_not_published() -> None:
    (reason,) = wait(FakeClient(counts(0, 0, 0)), compiled=2).unpublished.items()
    assert reason == ("not kept in the local store, from where entries go out", 2)
    outcome = wait(FakeClient(counts(11, 11, 11), before=counts(10, 10, 10)), compiled=3)
    assert (outcome.entries, sum(outcome.unpublished.values()), outcome.is_whole) == (1, 2, False)
    assert wait(FakeClient(counts(5, 5, 5)), compiled=3).is_whole  # recipes, and other clients' kernels
    client = FakeClient(counts(1, 1, 1))
    client.services_lost = 1  # what was offered before is not known
    assert wait(client, compiled=3).unpublished == {}


@pytest.mark.parametrize("urls", ["", "redis://host/0?read-only"])
def test_where_nothing_can_be_written_there_is_nothing_to_wait_for_unless_it_is_required(urls: str) -> None:
    client: Any = FakeClient(None)
    client.settings.remote = urls
    assert publishing_of(client, required=False) is None
    with pytest.raises(UsageError, match="nothing can be published"):
        publishing_of(client, required=True)


# Builds, and a registry that takes its time


class Registry(ThreadingHTTPServer):
    """Has every blob, and keeps the tags of manifests that are put, once it may."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Requests)
        self.status = 201
        self.may_put = threading.Event()
        self.tags: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"oci://127.0.0.1:{self.server_address[1]}/team/kernels:v1"


class _Requests(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Registry

    def do_HEAD(self) -> None:
        self._answer(404 if "/manifests/" in self.path else 200)

    def do_GET(self) -> None:
        self._answer(404)

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.may_put.wait(PATIENCE)
        if self.server.status == 201:
            self.server.tags.append(self.path.rpartition("/")[2])
        self._answer(self.server.status)

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    server = Registry()
    monkeypatch.setenv("HEADSTART_REMOTE", server.url)
    yield server
    server.may_put.set()
    server.shutdown()
    server.server_close()


def build(tmp_path: Path, *options: str) -> Result:
    specs = [pointwise(float(number + 2)) for number in range(KERNELS)]
    path = tmp_path / "plan.py"
    path.write_text(
        f"import json\nfrom headstart import KernelSpec\nSPECS = json.loads({json.dumps(specs)!r})\n"
        "def kernels():\n"
        "    for spec in SPECS:\n"
        "        yield KernelSpec(spec.pop('source'), **spec)\n"
    )
    arguments = ["build", str(path), "--target", "cuda:90", "--workers", "2", "-o", str(tmp_path / "out.bundle")]
    result = CliRunner().invoke(main, [*arguments, *options])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert (tmp_path / "out.bundle").exists(), result.output
    return result


@pytest.mark.triton
def test_a_build_ends_once_the_store_has_everything(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[str] = []

    def say(quiet: bool, text: str) -> None:  # it has compiled everything, and nothing is published
        assert registry.tags == []
        waits.append(text)
        monkeypatch.setattr(publishing, "SAID_EVERY", 1000.0)
        registry.may_put.set()

    monkeypatch.setattr(publishing, "SAID_EVERY", 0.0)
    monkeypatch.setattr(build_module, "_say", say)
    result = build(tmp_path)
    assert result.exit_code == 0
    assert len(set(registry.tags)) == KERNELS
    assert waits
    assert result.stdout.splitlines()[-1] == f"{KERNELS} entries published to {registry.url}"
    assert "warning" not in result.stderr


@pytest.mark.triton
@pytest.mark.parametrize("required", [False, True])
def test_a_store_that_refuses_fails_no_build_unless_it_must_have_everything(
    tmp_path: Path, registry: Registry, required: bool
) -> None:
    registry.status = 500
    registry.may_put.set()
    result = build(tmp_path, *(["--require-published"] if required else []))
    assert result.exit_code == int(required)
    last = result.stdout.splitlines()[-1]
    assert last == f"0 entries published to {registry.url}, {KERNELS} not"
    (warning,) = [line for line in result.stderr.splitlines() if "warning: not everything was published" in line]
    assert f"{KERNELS} entries: {registry.url}: " in warning
    assert "(500)" in warning


@pytest.mark.triton
def test_where_the_local_store_cannot_be_written_nothing_goes_out_and_that_is_said(
    tmp_path: Path, registry: Registry
) -> None:
    registry.may_put.set()
    headstart.cache_dir().mkdir(mode=0o700, parents=True)
    (headstart.cache_dir() / "store").touch()
    result = build(tmp_path, "--require-published")
    assert result.exit_code == 1
    assert registry.tags == []
    assert result.stdout.splitlines()[-1] == f"0 entries published to {registry.url}, {KERNELS} not"
    assert "not kept in the local store" in result.stderr


@pytest.mark.triton
def test_json_says_what_was_published(tmp_path: Path, registry: Registry) -> None:
    registry.may_put.set()
    outcome = json.loads(build(tmp_path, "--json").stdout.splitlines()[-1])
    assert (outcome["published"], outcome["unpublished"]) == (KERNELS, {})
    outcome = json.loads(build(tmp_path, "--json").stdout.splitlines()[-1])  # everything is in the local store
    assert (outcome["cached"], outcome["published"]) == (KERNELS, 0)


@pytest.mark.triton
def test_ctrl_c_ends_the_wait_and_the_bundle_is_there(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(quiet: bool, text: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(publishing, "SAID_EVERY", 0.0)
    monkeypatch.setattr(build_module, "_say", interrupt)
    result = build(tmp_path)
    assert result.exit_code == 130
    assert result.stdout.splitlines()[-1].endswith(f", {KERNELS} not")
    assert f"{KERNELS} entries: interrupted" in result.stderr
    registry.may_put.set()


def test_a_build_that_must_publish_needs_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plan.py"
    path.write_text("def kernels():\n    yield 1\n")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["build", str(path), "--require-published"])
    assert result.exit_code == 2
    assert "HEADSTART_REMOTE names no store" in result.stderr


def test_a_build_says_what_other_hosts_and_a_farm_had_made() -> None:
    from headstart.cli.build import describe

    counts = {"requested": 12, "compiled": 3, "cached": 9, "remote": 4, "farm": 3, "deduplicated": 0, "failed": 0}
    told = describe(
        {**counts, "failed_as_recorded": 0, "targets": ["cuda:90"], "wall_s": 1.0, "workers": 2, "bundle": None}
    )
    assert "3 compiled, 2 from the cache, 4 from other hosts, 3 compiled by the farm\n" in told
