"""What every store keeps to, and every wrapper of one; and that they agree, whatever is done to them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from test_store import A, B, C, parts

from headstart.errors import StoreUnavailable
from headstart.stores import open_store
from headstart.stores.base import Store
from headstart.stores.disk import DiskStore
from headstart.stores.memory import MemoryStore
from headstart.stores.wrappers import CountingStore, ReadOnlyStore, TieredStore

Make: TypeAlias = Callable[[Path], Store]
STORES: dict[str, Make] = {
    "disk": open_store,
    "memory": lambda folder: MemoryStore(),
    "counting": lambda folder: CountingStore(open_store(folder)),
    "tiered, disk behind memory": lambda folder: TieredStore(MemoryStore(), open_store(folder)),
    "tiered, memory behind disk": lambda folder: TieredStore(open_store(folder), MemoryStore()),
    "counting, of tiers that count": lambda folder: CountingStore(
        TieredStore(CountingStore(MemoryStore()), CountingStore(open_store(folder)))
    ),
}


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return STORES[request.param](tmp_path / "cache")


def test_what_is_published_is_found_and_nothing_else(store: Store) -> None:
    assert store.find(A) is None
    store.publish(A, parts(A))
    found = store.find(A, kind="kernel", request_digest="cd" * 32)
    assert found is not None
    assert found.raw() == b"".join(parts(A))
    assert store.find(B) is None


def test_publishing_again_replaces(store: Store) -> None:
    store.publish(A, parts(A))
    store.publish(A, parts(A, output="second"))
    found = store.find(A)
    assert found is not None
    assert found.header.output == "second"


@pytest.mark.parametrize("asked", [{"kind": "recipe"}, {"request_digest": "ee" * 32}])
def test_an_entry_of_another_kind_or_request_is_a_miss_and_set_aside(store: Store, asked: dict[str, str]) -> None:
    store.publish(A, parts(A))
    assert store.find(A, **asked) is None
    assert store.find(A) is None


def test_what_is_set_aside_is_a_miss_with_a_warning_and_can_be_published_again(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    store.publish(A, parts(A))
    with caplog.at_level(logging.WARNING, "headstart"):
        store.set_aside(A, "an artifact is not what its digest says")
    assert "damaged" in caplog.text
    assert store.find(A) is None
    store.publish(A, parts(A))
    assert store.find(A) is not None


def test_a_claim_is_given_back(store: Store) -> None:
    for _ in range(2):
        with store.claim(A):
            store.publish(A, parts(A))


def test_pruning_to_nothing_leaves_nothing_near(store: Store) -> None:
    store.publish(A, parts(A))
    store.publish(B, parts(B))
    report = store.prune(0)
    assert (report.removed, report.kept) == (2, 0)


# What each wrapper is for


def test_a_read_only_store_finds_and_changes_nothing(tmp_path: Path) -> None:
    below = open_store(tmp_path)
    store = ReadOnlyStore(below)
    below.publish(A, parts(A))
    assert store.find(A) is not None
    assert store.find(A, kind="recipe") is None
    assert store.find(A) is not None  # it has not been set aside
    for write in (lambda: store.publish(B, parts(B)), lambda: store.prune(0)):
        with pytest.raises(StoreUnavailable):
            write()
    store.set_aside(A, "it is damaged")
    assert store.find(A) is None
    assert below.find(A) is not None
    with store.claim(A):
        pass


def test_what_is_found_behind_is_near_from_then_on(tmp_path: Path) -> None:
    near, far = CountingStore(MemoryStore()), CountingStore(open_store(tmp_path))
    far.publish(A, parts(A))
    store = TieredStore(near, far)
    for _ in range(3):
        assert store.find(A) is not None
    assert (far.hits, near.hits, near.misses, near.published) == (1, 2, 1, 1)
    assert near.published_bytes == sum(map(len, parts(A)))


def test_one_behind_that_cannot_be_written_is_one_warning_and_no_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = TieredStore(MemoryStore(), ReadOnlyStore(open_store(tmp_path)))
    with caplog.at_level(logging.WARNING, "headstart"):
        for key in (A, B):
            assert store.publish(key, parts(key)) is not None
    assert caplog.text.count("kept here only") == 1


def test_an_entry_that_is_damaged_behind_is_a_miss_and_set_aside_there(tmp_path: Path) -> None:
    far = open_store(tmp_path)
    far.publish(A, parts(A))
    path = far.path_of(A)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # of an artifact: it shows when it is read
    path.write_bytes(data)
    store = TieredStore(MemoryStore(), far)
    assert store.find(A) is None
    assert not path.exists()


def test_one_near_that_cannot_be_written_still_finds_what_is_behind(tmp_path: Path) -> None:
    far = open_store(tmp_path)
    far.publish(A, parts(A))
    store = TieredStore(ReadOnlyStore(MemoryStore()), far)
    assert store.find(A) is not None
    with pytest.raises(StoreUnavailable):
        store.publish(B, parts(B))


# All of them, and a dict


class Agreement(RuleBasedStateMachine):
    """Every store, and what a dict would say."""

    keys = st.sampled_from([A, B, C])

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self._folder = tempfile.TemporaryDirectory()
        root = Path(self._folder.name)
        self.stores = {name: make(root / name) for name, make in STORES.items()}
        self.expected: dict[str, str] = {}

    def teardown(self) -> None:
        self._folder.cleanup()

    @rule(key=keys, output=st.text(max_size=3))
    def publish(self, key: str, output: str) -> None:
        for store in self.stores.values():
            store.publish(key, parts(key, output=output))
        self.expected[key] = output

    @rule(key=keys)
    def set_aside(self, key: str) -> None:
        for store in self.stores.values():
            store.set_aside(key, "a test says so")
        self.expected.pop(key, None)

    @rule(key=keys)
    def ask_for_another_kind(self, key: str) -> None:
        for store in self.stores.values():
            assert store.find(key, kind="recipe") is None
        self.expected.pop(key, None)

    @rule(key=keys)
    def claim(self, key: str) -> None:
        for store in self.stores.values():
            with store.claim(key):
                pass

    @rule()
    def prune_by_the_limit_that_there_is_none_of(self) -> None:
        for store in self.stores.values():
            assert store.prune().removed == 0

    @invariant()
    def all_find_the_same(self) -> None:
        for name, store in self.stores.items():
            for key in (A, B, C):
                found = store.find(key)
                said = None if found is None else found.header.output
                assert said == self.expected.get(key), name


TestAgreement: Any = Agreement.TestCase
TestAgreement.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)


def test_a_disk_store_is_what_a_cache_folder_has(tmp_path: Path) -> None:
    assert isinstance(open_store(tmp_path), DiskStore)
