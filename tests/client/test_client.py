"""One client for all of a process: who comes first makes it, and who leaves last closes it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from conftest import PATIENCE
from headstart.artifacts.bundle import Bundle
from headstart.client import client
from headstart.client.async_compile import AsyncCompile
from headstart.client.introduction import preferences
from headstart.client.policy import Policy
from headstart.errors import ServiceError
from headstart.model.request import CompileRequest
from headstart.model.toolchain import find_toolchain
from headstart.system.settings import Settings
from headstart.wire.remotes import MAX_DEADLINE
from kernels import pointwise


@pytest.fixture(autouse=True)
def nobody_holds_the_client() -> Iterator[None]:
    assert client._shared is None
    yield
    while client._shared is not None:
        client.release()


def test_all_adapters_share_one_client_which_the_last_one_closes() -> None:
    first, second = client.acquire(workers=1), client.acquire(workers=2)
    assert first is second
    client.release()
    AsyncCompile("cuda:90", client=first, policy=Policy()).triton(**pointwise()).result(PATIENCE)
    assert first.services_started == 1
    client.release()
    with pytest.raises(ServiceError, match="closed"):
        first.start(Policy())


def test_two_front_ends_of_one_client_have_one_service(tmp_path: Path) -> None:
    shared = client.acquire(workers=1)
    one = AsyncCompile("cuda:90", client=shared, policy=Policy())
    other = AsyncCompile("cuda:90", client=shared, policy=Policy())
    kernels = [one.triton(**pointwise()), other.triton(**pointwise()), other.triton(**pointwise(5.0))]
    assert len({kernel.result(PATIENCE).key for kernel in kernels}) == 2
    assert shared.services_started == 1
    one.close()  # which leaves the client to the other
    other.triton(**pointwise(3.0)).result(PATIENCE)
    assert shared.services_started == 1


def test_what_is_done_with_an_answer_is_each_policys_own() -> None:
    told: list[tuple[str, str]] = []

    def note(who: str) -> Policy:
        return Policy(answered=lambda request, result: told.append((who, request.name)))

    shared = client.acquire(workers=1)
    one = AsyncCompile("cuda:90", client=shared, policy=note("one"))
    other = AsyncCompile("cuda:90", client=shared, policy=note("other"))
    one.triton(**pointwise()).result(PATIENCE)
    other.triton(**pointwise(name="another")).result(PATIENCE)
    assert told == [("one", "pointwise"), ("other", "another")]


def test_a_bundle_that_only_the_second_names_is_read_and_extended(tmp_path: Path) -> None:
    path = tmp_path / "a.bundle"
    with AsyncCompile("cuda:90", workers=1, bundle=path) as writer:
        writer.triton(**pointwise()).result(PATIENCE)
    shared = client.acquire(workers=1)
    one = AsyncCompile("cuda:90", client=shared, policy=Policy(), start=False)
    client.acquire(bundle=path)
    one.triton(**pointwise()).result(PATIENCE)
    assert shared.services_started == 0
    one.triton(**pointwise(5.0)).result(PATIENCE)
    client.release()
    client.release()
    assert len(Bundle.open(path)) == 2


@pytest.mark.parametrize(
    ("changed", "made"),
    [
        ({"python_version": "3.0"}, "another build of Triton {here}, another torch or another Python"),
        ({"python_version": "3.0", "triton_version": "3.1.0"}, "Triton {here} (this is 3.1.0)"),
    ],
)
def test_a_bundle_that_is_for_none_of_them_is_named_once_when_something_is_compiled(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, changed: dict[str, str], made: str
) -> None:
    made = made.format(here=find_toolchain().triton_version)
    path = tmp_path / "a.bundle"
    with AsyncCompile("cuda:90", workers=1, bundle=path) as writer:
        writer.triton(**pointwise()).result(PATIENCE)
    shared = client.acquire(workers=1, bundle=path)
    other = Policy(find=lambda: msgspec.structs.replace(find_toolchain(), **changed))
    one = AsyncCompile("cuda:90", client=shared, policy=other)
    assert "its kernels were made" not in caplog.text
    assert shared.services_started == 0, "others may use it"
    request = CompileRequest.make(**pointwise(), target="cuda:90")
    with caplog.at_level(logging.WARNING, "headstart"):
        one.submit(request).exception(PATIENCE)
        one.submit(CompileRequest.make(**pointwise(5.0), target="cuda:90")).exception(PATIENCE)
    assert [record.message for record in caplog.records].count(
        f"{path} was not used: its kernels were made for {made}"
    ) == 1


def test_a_bundle_is_used_where_the_cache_folder_is_not(tmp_path: Path) -> None:
    path, cache = tmp_path / "a.bundle", tmp_path / "cache"
    with AsyncCompile("cuda:90", workers=1, bundle=path) as writer:
        writer.triton(**pointwise()).result(PATIENCE)
    cache.mkdir()
    cache.chmod(0o777)
    with AsyncCompile("cuda:90", workers=1, bundle=path, cache_dir=cache) as reader:
        assert reader.triton(**pointwise()).result(PATIENCE).asm["cubin"]
        assert reader.services_started == 0


def test_a_deadline_that_is_longer_than_a_service_takes_is_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_REMOTE", "file:///remote")
    monkeypatch.setenv("HEADSTART_REMOTE_DEADLINE", "1e12")
    remote = preferences(Settings.load(), keeps=True).remote
    assert remote is not None
    assert remote.deadline == MAX_DEADLINE
