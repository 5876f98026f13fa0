"""What every store of other hosts keeps to, and every wrapper of one; and that they agree, whatever is done to them."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import servers
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from servers import KINDS, needs, only, started, url_of

from conftest import wait_until
from headstart.errors import UsageError
from headstart.stores.remote import base, open_remote, open_remotes, prunable
from headstart.stores.remote.base import MAX_BLOB_BYTES, Progress, Pruned, Remote
from headstart.stores.remote.tiers import Remotes
from headstart.stores.remote.urls import parse_url
from headstart.stores.remote.wrappers import BreakerRemote, CountingRemote, DeadlineRemote, ReadOnlyRemote

Open = Callable[[str], Remote]
Place = Callable[[], str]


def key_of(name: object) -> str:
    return hashlib.sha256(str(name).encode()).hexdigest()


A, B, C = map(key_of, "abc")
BLOB = bytes(range(256)) * 100


WRAPPERS: dict[str, Callable[[Remote], Remote]] = {
    "itself": lambda remote: remote,
    "counting": CountingRemote,
    "with a breaker": BreakerRemote,
    "with a deadline": lambda remote: DeadlineRemote(remote, 30),
    "as the only tier": lambda remote: Remotes([CountingRemote(remote)]),
}


@pytest.fixture(params=WRAPPERS)
def store(request: pytest.FixtureRequest, place: Place, open_store: Open) -> Remote:
    return WRAPPERS[request.param](open_store(place()))


def test_what_is_put_is_got_and_nothing_else(store: Remote) -> None:
    assert store.get_many([A]) == {}
    store.put(A, BLOB)
    assert store.get_many([A, B]) == {A: BLOB}
    assert store.get_many([]) == {}


def test_what_is_deleted_is_gone_and_can_be_put_again(store: Remote) -> None:
    store.delete(A)
    store.put(A, BLOB)
    store.put(B, b"b")
    store.delete(A)
    assert store.get_many([A, B]) == {B: b"b"}
    store.put(A, b"again")
    assert store.get_many([A]) == {A: b"again"}


def test_of_two_that_put_one_key_either_stays(store: Remote) -> None:
    store.put(A, b"first")
    store.put(A, b"second")
    assert store.get_many([A])[A] in (b"first", b"second")


def test_a_store_names_itself_and_can_be_written(store: Remote) -> None:
    assert "://" in store.name
    assert store.writable


@pytest.mark.parametrize("key", ["", "a", A.upper(), f"{A}0", f"../{A[3:]}", f"{A[:-1]}\n"])
def test_what_is_no_key_is_refused(place: Place, open_store: Open, key: str) -> None:
    store = open_store(place())
    for call in (lambda: store.get_many([key]), lambda: store.put(key, BLOB), lambda: store.delete(key)):
        with pytest.raises(UsageError, match="64 hexadecimal digits"):
            call()


@pytest.mark.parametrize("size", [1, 256 << 10, (256 << 10) + 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 7 << 20])
def test_blobs_of_every_length_come_back_whole(place: Place, open_store: Open, size: int) -> None:
    blob = os.urandom(size)
    store = open_store(place())
    store.put(A, blob)
    store.put(B, b"short")
    assert store.get_many([B, A, C]) == {A: blob, B: b"short"}


def test_hundreds_are_got_at_once(place: Place, open_store: Open) -> None:
    store = open_store(place())
    blobs = {key_of(number): os.urandom(300) for number in range(150)}
    for key, blob in blobs.items():
        store.put(key, blob)
    assert store.get_many([*blobs, *map(key_of, range(1000, 1150)), *blobs]) == blobs


def test_a_store_that_is_asked_for_each_key_says_how_far_it_is(place: Place) -> None:
    url, answered, progress = parse_url(place()), [], Progress()
    progress.listener = lambda: answered.append(threading.get_ident())
    store = open_remote(url, progress)
    store.put(A, BLOB)
    assert store.get_many([A, B, C]) == {A: BLOB}
    assert len(answered) == (3 if url.scheme in ("s3", "az", "oci") else 0)
    store.close()


def test_one_that_is_too_large_is_not_put(place: Place, open_store: Open) -> None:
    store = open_store(place())
    with pytest.raises(UsageError, match="is not kept in remotes"):
        store.put(A, bytes(MAX_BLOB_BYTES + 1))
    assert store.get_many([A]) == {}


def test_one_that_is_there_and_too_large_is_a_miss(
    place: Place, open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = place()
    open_store(url).put(A, BLOB)
    open_store(url).put(B, b"b")
    limit_everything_to(len(BLOB) - 1, monkeypatch)
    assert open_store(url).get_many([A, B]) == {B: b"b"}


def test_a_reply_is_no_longer_than_it_may_be(place: Place, open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    url = place()
    keys = [key_of(number) for number in range(10)]
    for key in keys:
        open_store(url).put(key, BLOB)
    for module in ("folder", "redis", "objects", "oci"):
        monkeypatch.setattr(f"headstart.stores.remote.{module}.MAX_REPLY_BYTES", 3 * len(BLOB) + 1)
    found = open_store(url).get_many(keys)
    assert len(found) == 3
    assert set(found.values()) == {BLOB}


def test_hosts_see_what_others_put_and_deleted(place: Place, open_store: Open) -> None:
    url = place()
    one, other = open_store(url), open_store(url)
    one.put(A, BLOB)
    assert other.get_many([A]) == {A: BLOB}
    other.delete(A)
    assert one.get_many([A]) == {}


def test_many_hosts_that_put_and_get_at_once_get_whole_blobs_or_none(place: Place, open_store: Open) -> None:
    url = place()
    keys = [key_of(number) for number in range(8)]
    blobs = {key: key.encode() * 500 for key in keys}
    problems: list[object] = []

    def work(store: Remote) -> None:
        try:
            for _ in range(3):
                for key in keys:
                    store.put(key, blobs[key])
                found = store.get_many(keys)
                if found != blobs:
                    problems.append(sorted(found))
        except Exception as error:  # noqa: BLE001 - it is looked at below
            problems.append(error)

    threads = [threading.Thread(target=work, args=(open_store(url),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert problems == []


def test_one_store_may_be_used_by_many_threads(place: Place, open_store: Open) -> None:
    store = open_store(place())
    store.put(A, BLOB)
    found: list[dict[str, bytes]] = []
    threads = [threading.Thread(target=lambda: found.append(store.get_many([A, B]))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [{A: BLOB}] * 8


# Claims


def test_without_being_asked_for_there_are_no_claims(place: Place, open_store: Open) -> None:
    url = place()
    store = open_store(url)
    assert store.claim(A, 10) is None
    store.release(A)
    if url.startswith(("file", "oci")):  # which cannot have any
        store = open_store(f"{url}?claims")
        assert store.claim(A, 10) is None
        store.release(A)


with_claims = pytest.mark.parametrize("place", only("redis", "s3"), indirect=True)


@pytest.fixture
def claiming(place: Place, open_store: Open) -> Callable[[], Remote]:
    """Opens the same store as one host each."""
    url = f"{place()}&claims"
    return lambda: open_store(url)


@with_claims
def test_a_claim_is_one_host_s_until_it_gives_it_back(claiming: Callable[[], Remote]) -> None:
    one, other = claiming(), claiming()
    assert one.claim(A, 60) is True
    assert one.claim(A, 60) is False  # it has it already
    assert other.claim(A, 60) is False
    assert other.claim(B, 60) is True
    other.release(A)  # it is not its
    assert other.claim(A, 60) is False
    one.release(A)
    assert other.claim(A, 60) is True
    one.release(C)


@with_claims
def test_the_claim_of_a_host_that_died_is_over_by_itself(claiming: Callable[[], Remote]) -> None:
    assert claiming().claim(A, 1) is True
    other = claiming()
    begun = time.monotonic()
    wait_until(lambda: other.claim(A, 60))
    assert time.monotonic() - begun < 20
    assert claiming().claim(A, 60) is False


@with_claims
def test_one_of_those_who_claim_at_once_gets_it(claiming: Callable[[], Remote]) -> None:
    hosts = [claiming() for _ in range(6)]
    got: list[bool | None] = []
    threads = [threading.Thread(target=lambda host=host: got.append(host.claim(A, 60))) for host in hosts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(map(bool, got)) == [False] * 5 + [True]


# Pruning


@pytest.mark.parametrize("place", only("folder", "s3"), indirect=True)
def test_what_is_old_is_pruned_by_the_clock_of_the_store(
    place: Place, open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = prunable(open_store(place()))
    assert store is not None
    assert store.prune(0) == Pruned()
    for key in (A, B):
        store.put(key, BLOB)
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + 7200)
    assert store.prune(3600) == Pruned(0, 0, 2, 2 * len(BLOB))
    assert store.get_many([A, B]) == {A: BLOB, B: BLOB}
    assert store.prune(-3600) == Pruned(2, 2 * len(BLOB), 0, 0)
    assert store.get_many([A, B]) == {}


@pytest.mark.parametrize("place", only("redis", "oci"), indirect=True)
def test_stores_that_have_rules_of_their_own_for_it_are_not_pruned(place: Place, open_store: Open) -> None:
    assert prunable(open_store(place())) is None


# Reading only


def test_a_store_that_is_only_read_is_not_written(place: Place, open_store: Open) -> None:
    url = place()
    open_store(url).put(A, BLOB)
    store = open_remotes(f"{url}{'&' if '?' in url else '?'}read-only", operation_seconds=60)
    assert not store.writable
    store.put(B, BLOB)
    store.delete(A)
    store.release(A)
    assert store.claim(A, 10) is None
    assert store.get_many([A, B]) == {A: BLOB}
    with pytest.raises(base.RemoteError, match="is only read"):
        ReadOnlyRemote(open_store(url)).put(B, BLOB)
    with pytest.raises(base.RemoteError, match="is only read"):
        ReadOnlyRemote(open_store(url)).delete(A)
    store.close()


# Agreement

KEYS = [key_of(f"agree {number}") for number in range(4)]


def test_a_store_does_what_a_dict_does(place: Place) -> None:
    class Agreement(RuleBasedStateMachine):
        """One store, used by two hosts, and what may be under each key."""

        @initialize()
        def open(self) -> None:
            url = place()
            self.hosts = [open_remote(parse_url(url)), open_remotes(url, operation_seconds=60)]
            self.expected: dict[str, set[bytes]] = {}

        @rule(host=st.integers(0, 1), key=st.sampled_from(KEYS), blob=st.binary(min_size=1, max_size=50))
        def put(self, host: int, key: str, blob: bytes) -> None:
            self.hosts[host].put(key, blob)
            self.expected.setdefault(key, set()).add(blob)

        @rule(host=st.integers(0, 1), key=st.sampled_from(KEYS))
        def delete(self, host: int, key: str) -> None:
            self.hosts[host].delete(key)
            self.expected.pop(key, None)

        @rule(host=st.integers(0, 1), keys=st.lists(st.sampled_from(KEYS)))
        def get(self, host: int, keys: list[str]) -> None:
            found = self.hosts[host].get_many(keys)
            assert found.keys() == set(keys) & self.expected.keys()
            assert all(blob in self.expected[key] for key, blob in found.items())

        @invariant()
        def hosts_agree(self) -> None:
            one, other = (host.get_many(KEYS) for host in self.hosts)
            assert one == other

        def teardown(self) -> None:
            for host in self.hosts:
                host.close()

    Agreement.TestCase.settings = settings(
        max_examples=8, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    Agreement.TestCase().runTest()


ALL = ("folder", "redis", "s3", "oci")


NEED_ALL = [mark for kind in ALL if KINDS[kind] for mark in needs(KINDS[kind])]


@pytest.fixture(scope="module", params=[pytest.param(ALL, marks=NEED_ALL, id="all")])
def places(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], list[str]]]:
    """Makes URLs of one place in each kind of store."""
    with ExitStack() as stack:
        addresses = {}
        folders = {kind: tmp_path_factory.mktemp(kind) for kind in request.param}
        for kind, folder in folders.items():
            server = started(kind, folder)
            addresses[kind] = "" if server is None else stack.enter_context(servers.running(server)).address
        yield lambda: [url_of(kind, addresses[kind], folders[kind]) for kind in request.param]


def test_all_stores_and_tiers_of_them_agree(places: Callable[[], list[str]]) -> None:
    class Agreement(RuleBasedStateMachine):
        """One store of each kind, and all of them as tiers: a key's blob is the same wherever it comes from."""

        @initialize()
        def open(self) -> None:
            self.stores: list[Remote] = [open_remote(parse_url(url)) for url in places()]
            self.stores.append(open_remotes(" ".join(places()), operation_seconds=60))
            self.expected: set[str] = set()

        @rule(keys=st.sets(st.sampled_from(KEYS), min_size=1))
        def put(self, keys: set[str]) -> None:
            for store in self.stores:
                for key in keys:
                    store.put(key, blob_of(key))
            self.expected |= keys

        @rule(key=st.sampled_from(KEYS))
        def delete(self, key: str) -> None:
            for store in self.stores:
                store.delete(key)
            self.expected.discard(key)

        @rule(key=st.sampled_from(KEYS), number=st.integers(0, len(ALL) - 2))
        def lose_in_a_near_tier(self, key: str, number: int) -> None:
            tiers = self.stores[-1]
            assert isinstance(tiers, Remotes)
            tiers.tiers[number].delete(key)

        @rule(keys=st.lists(st.sampled_from(KEYS)))
        def get(self, keys: list[str]) -> None:
            expected = {key: blob_of(key) for key in keys if key in self.expected}
            assert [store.get_many(keys) for store in self.stores] == [expected] * len(self.stores)

        def teardown(self) -> None:
            for store in getattr(self, "stores", []):
                store.close()

    Agreement.TestCase.settings = settings(
        max_examples=8, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    Agreement.TestCase().runTest()


def blob_of(key: str) -> bytes:
    return key.encode() * 3


def limit_everything_to(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("folder", "redis", "objects", "oci"):
        monkeypatch.setattr(f"headstart.stores.remote.{module}.MAX_BLOB_BYTES", size)
