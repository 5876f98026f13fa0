"""What each wrapper of a remote is for: counting, leaving alone, giving up, and being one of several."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Sequence

import pytest

from conftest import wait_until
from headstart.errors import UsageError
from headstart.stores.remote.base import Remote, RemoteError, check_blob
from headstart.stores.remote.tiers import Found, Remotes
from headstart.stores.remote.wrappers import (
    LEFT_ALONE_AT_MOST,
    BreakerRemote,
    CountingRemote,
    DeadlineRemote,
    ReadOnlyRemote,
)

A, B, C = "a" * 64, "b" * 64, "c" * 64


class FakeRemote:
    """A dict, which fails as it is told, or does not come back."""

    writable = True

    def __init__(self, name: str = "fake://one", *, trusted: bool = False, claims: bool | None = None) -> None:
        self.name = name
        self.trusted = trusted
        self.claims = claims
        self.blobs: dict[str, bytes] = {}
        self.asked: list[list[str]] = []
        self.error: Exception | None = None
        self.calls = 0
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def _call(self) -> None:
        self.calls += 1
        self.may_go_on.wait(30)
        if self.error is not None:
            raise self.error

    def get_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        self.asked.append(list(keys))
        self._call()
        return {key: self.blobs[key] for key in keys if key in self.blobs}

    def put(self, key: str, blob: bytes) -> None:
        self._call()
        self.blobs.setdefault(key, check_blob(blob))

    def claim(self, key: str, seconds: float) -> bool | None:
        self._call()
        return self.claims

    def release(self, key: str) -> None:
        self._call()

    def delete(self, key: str) -> None:
        self._call()
        self.blobs.pop(key, None)

    def close(self) -> None:
        self.calls += 1


def failing(lasting: bool = False) -> FakeRemote:
    fake = FakeRemote()
    fake.error = RemoteError("fake://one: it is broken", advice="mend it", lasting=lasting)
    return fake


def tiers(*fakes: Remote) -> Remotes:
    return Remotes([CountingRemote(fake) for fake in fakes])


# Counting


def test_hits_misses_bytes_and_errors_are_counted() -> None:
    fake = FakeRemote()
    store = CountingRemote(fake)
    store.put(A, b"12345")
    store.get_many([A, B, C, B])
    assert (store.hits, store.misses, store.hit_bytes, store.puts, store.put_bytes) == (1, 2, 5, 1, 5)
    fake.error = RemoteError("no")
    for call in (lambda: store.get_many([A]), lambda: store.put(B, b"b"), lambda: store.delete(A)):
        with pytest.raises(RemoteError):
            call()
    assert (store.hits, store.puts, store.errors) == (1, 1, 3)
    assert store.seconds > 0


# Leaving alone


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def breaker(fake: FakeRemote) -> tuple[BreakerRemote, Clock, list[str]]:
    clock, said = Clock(), list[str]()
    return BreakerRemote(fake, failures=3, left_alone=30.0, warn=said.append, clock=clock), clock, said


def fails(store: BreakerRemote) -> str:
    with pytest.raises(RemoteError) as caught:
        store.get_many([A])
    return str(caught.value)


def test_a_remote_that_fails_three_times_is_left_alone_and_that_is_said_once() -> None:
    fake = failing()
    store, _, said = breaker(fake)
    for _ in range(10):
        fails(store)
    assert fake.calls == 3
    assert store.is_open
    assert said == ["fake://one: it is broken; mend it. Compiles go on without it; it is tried again from time to time"]
    assert "not tried again for 30 s" in fails(store)


def test_a_failure_that_lasts_is_enough() -> None:
    fake = failing(lasting=True)
    store, _, said = breaker(fake)
    for _ in range(5):
        fails(store)
    assert (fake.calls, len(said)) == (1, 1)


def test_failures_that_are_not_in_a_row_change_nothing() -> None:
    fake = failing()
    store, _, said = breaker(fake)
    error = fake.error
    for _ in range(5):
        for now in (error, error, None):
            fake.error = now
            if now is None:
                store.get_many([A])
            else:
                fails(store)
    assert (fake.calls, said) == (15, [])


def test_it_is_tried_again_by_one_call_and_left_alone_for_longer_each_time() -> None:
    fake = failing()
    store, clock, said = breaker(fake)
    for _ in range(3):
        fails(store)
    pause = 30.0
    for _ in range(8):
        clock.now += pause - 0.1
        fails(store)
        calls = fake.calls
        clock.now += 0.1
        fails(store)
        fails(store)
        assert fake.calls == calls + 1
        pause = min(2 * pause, LEFT_ALONE_AT_MOST)
    assert len(said) == 1


def test_while_one_call_tries_others_fail_at_once() -> None:
    fake = failing()
    store, clock, _ = breaker(fake)
    for _ in range(3):
        fails(store)
    clock.now += 31
    fake.may_go_on.clear()
    calls = fake.calls
    trying = threading.Thread(target=fails, args=(store,))
    trying.start()
    try:
        wait_until(lambda: fake.calls > calls)
        fails(store)
        assert fake.calls == calls + 1
    finally:
        fake.may_go_on.set()
        trying.join(30)


def test_one_that_answers_again_is_used_again_and_that_is_said() -> None:
    fake = failing()
    store, clock, said = breaker(fake)
    for _ in range(3):
        fails(store)
    clock.now += 30
    fake.error = None
    fake.blobs[A] = b"a"
    assert store.get_many([A]) == {A: b"a"}
    assert said[1:] == ["fake://one answers again"]
    assert not store.is_open
    fake.error = RemoteError("again")
    fails(store)
    assert not store.is_open


class NotTaking(FakeRemote):
    """Can be read, and takes nothing."""

    def __init__(self, *, lasting: bool) -> None:
        super().__init__()
        self.blobs[A] = b"a"
        self.refusal: RemoteError | None = RemoteError("fake://one: a replica", advice="name another", lasting=lasting)

    def put(self, key: str, blob: bytes) -> None:
        if self.refusal is not None:
            self.calls += 1
            raise self.refusal
        super().put(key, blob)


@pytest.mark.parametrize(("lasting", "tries"), [(True, 1), (False, 3)])
def test_a_remote_that_takes_nothing_goes_on_being_read(lasting: bool, tries: int) -> None:
    fake = NotTaking(lasting=lasting)
    store, clock, said = breaker(fake)
    for _ in range(10):
        with pytest.raises(RemoteError, match="a replica"):
            store.put(B, b"b")
    assert fake.calls == tries
    assert said == [
        "fake://one: a replica; name another. Nothing is put there meanwhile; that is tried again from time to time"
    ]
    assert store.get_many([A]) == {A: b"a"}
    assert store.writable is not lasting  # what may pass by itself is tried, and counted
    clock.now += 30
    assert store.writable
    with pytest.raises(RemoteError, match="a replica"):
        store.put(B, b"b")
    assert store.get_many([A]) == {A: b"a"}
    clock.now += 60
    fake.refusal = None
    store.put(B, b"b")
    assert said[1:] == ["fake://one takes entries again"]
    assert store.writable


def test_what_cannot_be_read_is_not_written_and_a_write_is_no_trial() -> None:
    fake = failing()
    store, clock, said = breaker(fake)
    for _ in range(3):
        fails(store)
    for _ in range(5):
        with pytest.raises(RemoteError, match="not tried again for"):
            store.put(A, b"a")
        clock.now += 20
    assert (fake.calls, len(said)) == (3, 1)
    fake.error = None
    store.get_many([A])
    store.put(A, b"a")
    assert fake.blobs == {A: b"a"}


# Giving up


def test_a_call_that_does_not_come_back_is_given_up() -> None:
    fake = FakeRemote()
    fake.may_go_on.clear()
    store = DeadlineRemote(fake, 0.05)
    try:
        for _ in range(4):
            with pytest.raises(RemoteError, match=r"no answer within 0\.05 s"):
                store.get_many([A])
        with pytest.raises(RemoteError, match="4 calls have not come back"):
            store.put(A, b"a")
        assert fake.calls == 4
    finally:
        fake.may_go_on.set()
    wait_until(lambda: store._stuck == 0)
    store.put(A, b"a")
    assert store.get_many([A]) == {A: b"a"}


def test_what_a_call_raises_comes_out_of_it() -> None:
    store = DeadlineRemote(failing(), 30)
    with pytest.raises(RemoteError, match="it is broken"):
        store.get_many([A])
    assert store.trusted is False
    store.close()


def test_what_no_store_should_raise_is_an_error_of_that_store() -> None:
    fake = FakeRemote()
    fake.error = ValueError("of a library, with hunter2")
    store = DeadlineRemote(fake, 30)
    with pytest.raises(RemoteError, match=r"as no store should \(ValueError\)") as caught:
        store.get_many([A])
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))
    fake.error = UsageError("too large")
    with pytest.raises(UsageError):
        store.put(A, b"a")


# Several


def test_each_is_asked_only_for_what_those_before_it_lack() -> None:
    near, far = FakeRemote(), FakeRemote()
    near.blobs, far.blobs = {A: b"near"}, {A: b"far", B: b"far"}
    assert tiers(near, far).find_many([A, B, A, C]) == {A: Found(b"near", 0), B: Found(b"far", 1)}
    assert (near.asked, far.asked) == ([[A, B, C]], [[B, C]])
    assert tiers(near, far).find_many([A]) == {A: Found(b"near", 0)}
    assert len(far.asked) == 1


def test_what_a_far_one_has_is_copied_into_the_nearer_ones() -> None:
    nearest, near, far = FakeRemote(), FakeRemote(), FakeRemote()
    far.blobs = {A: b"a"}
    near.blobs = {B: b"b"}
    assert tiers(nearest, near, far).get_many([A, B]) == {A: b"a", B: b"b"}
    assert (nearest.blobs, near.blobs, far.blobs) == ({A: b"a", B: b"b"}, {A: b"a", B: b"b"}, {A: b"a"})


def test_what_is_not_accepted_is_not_there_and_is_not_copied() -> None:
    near, far, farthest = FakeRemote(trusted=True), FakeRemote(), FakeRemote(trusted=True)
    far.blobs, farthest.blobs = {A: b"unsigned", B: b"unsigned"}, {A: b"good"}
    store = tiers(near, far, farthest)
    found = store.find_many([A, B], lambda key, blob, trusted: trusted or blob == b"signed")
    assert found == {A: Found(b"good", 2)}
    assert near.blobs == {}
    assert store.keep_near(found) == 2
    assert near.blobs == {A: b"good"}
    assert B not in near.blobs


def test_one_that_fails_does_not_keep_the_others_from_answering() -> None:
    fake = FakeRemote()
    fake.blobs = {A: b"a"}
    broken = failing()
    for store in (tiers(broken, fake), tiers(fake, broken)):
        assert store.get_many([A, B]) == {A: b"a"}
        store.put(C, b"c")
        assert fake.blobs.pop(C) == b"c"
    with pytest.raises(RemoteError, match="it is broken"):
        tiers(broken, broken).find_many([A])
    with pytest.raises(RemoteError, match="it is broken"):
        tiers(broken, ReadOnlyRemote(fake)).put(A, b"a")
    with pytest.raises(RemoteError, match="it is broken"):
        tiers(broken, fake).delete(A)
    assert fake.blobs == {}


def test_one_that_is_only_read_is_neither_written_nor_copied_into() -> None:
    near, far = FakeRemote(), FakeRemote()
    far.blobs = {A: b"a"}
    store = tiers(ReadOnlyRemote(near), far)
    assert store.writable
    store.get_many([A])
    store.put(B, b"b")
    store.delete(B)
    assert near.blobs == {}
    nothing = tiers(ReadOnlyRemote(near))
    assert not nothing.writable
    nothing.put(A, b"a")
    assert near.blobs == {}


@pytest.mark.parametrize(
    ("near", "far", "answer"), [(None, None, None), (True, None, True), (True, False, False), (None, True, True)]
)
def test_claims_are_the_farthest_one_s_that_has_some(near: bool | None, far: bool | None, answer: bool | None) -> None:
    store = tiers(FakeRemote(claims=near), FakeRemote(claims=far))
    assert store.claim(A, 10) is answer
    store.release(A)
    store.close()


def test_a_claim_that_cannot_be_asked_for_is_none() -> None:
    assert tiers(failing()).claim(A, 10) is None
