"""The process that has the stores of other hosts: what it answers, publishes, refuses, and leaves when it ends."""

from __future__ import annotations

import hashlib
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from test_bundle import entry as make_entry

from conftest import PATIENCE, wait_until
from headstart import wire
from headstart.artifacts.entry import VERSION as ENTRY_VERSION
from headstart.artifacts.keyring import Keyring
from headstart.errors import UsageError
from headstart.remote import finding, publishing, watching
from headstart.remote import process as process_module
from headstart.remote.local import MOST_SAID, says
from headstart.remote.process import serve
from headstart.stores.disk import DiskStore
from headstart.stores.remote.base import RemoteError
from headstart.stores.remote.sealing import MAGIC, Signer, seal
from headstart.stores.remote.tiers import Remotes
from headstart.stores.remote.wrappers import BreakerRemote, CountingRemote

KEYS = [f"{number:064x}" for number in range(400)]


class FakeRemote:
    """A dictionary that can be made to wait, to fail, and to have claims."""

    def __init__(self, name: str = "fake://near", *, trusted: bool = True, writable: bool = True) -> None:
        self.name = name
        self.trusted = trusted
        self.writable = writable
        self.blobs: dict[str, bytes] = {}
        self.asked: list[list[str]] = []
        self.put_keys: list[str] = []
        self.deleted: list[str] = []
        self.claims: dict[str, str] | None = None  # key: whose
        self._lock = threading.Lock()
        self.may_claim: threading.Semaphore | None = None  # so many claims are answered
        self.released: list[str] = []
        self.fails = False
        self.may_get = threading.Event()
        self.may_put = threading.Event()
        self.may_get.set()
        self.may_put.set()

    def _check(self) -> None:
        if self.fails:
            raise RemoteError(f"{self.name}: it cannot be reached")

    def get_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        if set(keys) <= set(KEYS):  # else it is a trial
            self.asked.append(list(keys))
            assert self.may_get.wait(PATIENCE)
        self._check()
        return {key: self.blobs[key] for key in keys if key in self.blobs}

    def put(self, key: str, blob: bytes) -> None:
        assert self.may_put.wait(PATIENCE)
        self._check()
        self.blobs[key] = blob
        self.put_keys.append(key)

    def claim(self, key: str, seconds: float) -> bool | None:
        if self.claims is None:
            return None
        if self.may_claim is not None:
            assert self.may_claim.acquire(timeout=PATIENCE)
        with self._lock:
            is_free = key not in self.claims  # not this host's either, as in Redis and S3
            self.claims.setdefault(key, "ours")
        return is_free

    def release(self, key: str) -> None:
        self.released.append(key)
        if self.claims is not None:
            self.claims.pop(key, None)

    def delete(self, key: str) -> None:
        self.deleted.append(key)
        self.blobs.pop(key, None)

    def close(self) -> None:
        pass


class Running:
    """A remote process, in threads of this one."""

    def __init__(
        self, cache: Path, remotes: list[FakeRemote], settings: wire.RemoteSettings, error: Any = None
    ) -> None:
        self.cache = cache
        self.socket, theirs = socket.socketpair()
        self._tickets = self._dropped = 0
        self._heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.messages: list[Any] = []

        def open_them(settings: wire.RemoteSettings, warn: Callable[[str], None]) -> Remotes:
            if error is not None:
                raise error
            self.remotes = Remotes([CountingRemote(each) for each in remotes])
            return self.remotes

        self._thread = threading.Thread(target=lambda: serve(theirs, open_them), daemon=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        self._reader.start()
        self.say(wire.Serve(settings))
        self.hear(wire.Awake)

    def _read(self) -> None:
        try:
            for message in wire.receive_blocking(self.socket, wire.Deframer(wire.FromRemote)):
                self._heard.put(message)
        except OSError:
            pass

    def say(self, message: Any) -> None:
        self.socket.sendall(wire.frame(message))

    def hear(self, kind: type, such: Callable[[Any], bool] = lambda message: True) -> Any:
        """The next such message; those before it are kept in `messages`."""
        deadline = time.monotonic() + PATIENCE
        while True:
            message = self._heard.get(timeout=max(0.0, deadline - time.monotonic()))
            self.messages.append(message)
            if isinstance(message, kind) and such(message):
                return message

    def look_up(self, *keys: str, background: bool = False, lease: float = 0.0, **how: Any) -> list[int]:
        wanted = []
        for key in keys:
            self._tickets += 1
            wanted.append(wire.Wanted(self._tickets, key, "kernel", key[::-1], lease))
        self.say(wire.LookUp(wanted, os.fsencode(self.cache), background=background, **how))
        return [each.ticket for each in wanted]

    def answers(self, tickets: Sequence[int]) -> dict[int, bool]:
        """Whether each was found, once all are answered."""
        known: dict[int, bool] = {}
        while not set(tickets) <= set(known):
            message = self.hear(wire.LookedUp)
            known.update({each.ticket: True for each in message.found})
            known.update(dict.fromkeys(message.missing, False))
        return known

    def store(self) -> DiskStore:
        return DiskStore(self.cache)

    def publish(self, key: str, **how: Any) -> None:
        """As a worker: into the local store, and offered."""
        made = entry(key, **how)
        self.store().publish(key, [made])
        self.offer(key, made)

    def offer(self, key: str, made: bytes = b"") -> None:
        """As a service, of an entry that was made so."""
        self.say(wire.Offer(key, os.fsencode(self.cache), False, hashlib.sha256(made or entry(key)).digest()))

    def counts(self, such: Callable[[wire.RemoteCounts], bool]) -> wire.RemoteCounts:
        found: wire.RemoteCounts = self.hear(wire.RemoteCounts, such)
        return found

    def settle(self) -> None:
        """Until the process has read what was said: that there is no such entry, it says at once."""
        self._dropped += 1
        self.offer("ff" * 32, b"nothing")
        self.counts(lambda counts: counts.dropped >= self._dropped)

    def said(self) -> list[str]:
        return [each.text for each in self.messages if isinstance(each, wire.RemoteSays)]

    def end(self) -> float:
        """Close the socket, as a service does that ends; returns how many seconds the process goes on."""
        begun = time.monotonic()
        self.socket.shutdown(socket.SHUT_WR)
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        self.socket.close()
        return time.monotonic() - begun


def entry(key: str, **changes: Any) -> bytes:
    return make_entry(key, **{"metadata": {"name": "kernel", "shared": 0}, **changes}).raw()


def sealed(key: str, keyring: Keyring | None = None, **changes: Any) -> bytes:
    return seal(entry(key, **changes), Signer(keyring))


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def make(*remotes: FakeRemote, urls: str = "file:///remote", error: Any = None, **settings: Any) -> Running:
        keys = os.fsencode(tmp_path / "config")
        made = wire.RemoteSettings(urls, **{"config_dir": keys, **settings})
        started.append(Running(tmp_path / "cache", list(remotes), made, error))
        return started[-1]

    yield make
    for each in started:
        if each.socket.fileno() >= 0:
            each.end()


Run = Callable[..., Running]


# Looking up


def test_what_is_there_is_in_the_local_store_when_it_is_answered(run: Run) -> None:
    remote = FakeRemote()
    remote.blobs[KEYS[1]] = sealed(KEYS[1])
    running = run(remote)
    first, second = running.look_up(KEYS[0], KEYS[1])
    assert running.answers([first, second]) == {first: False, second: True}
    found = running.store().find(KEYS[1])
    assert found is not None
    assert found.raw() == entry(KEYS[1])
    (tier,) = running.counts(lambda counts: counts.tiers[0].hits == 1).tiers
    assert (tier.name, tier.misses, tier.hit_bytes) == ("fake://near", 1, len(remote.blobs[KEYS[1]]))


def test_what_is_asked_for_while_a_call_is_under_way_goes_into_the_next_one(run: Run) -> None:
    remote = FakeRemote()
    running = run(remote)
    remote.may_get.clear()
    tickets = running.look_up(KEYS[0], background=True)  # one thread is at this
    wait_until(lambda: len(remote.asked) == 1)
    tickets += running.look_up(KEYS[1])  # and one at this
    wait_until(lambda: len(remote.asked) == 2)
    for key in KEYS[2:10]:
        tickets += running.look_up(key)
    running.settle()
    remote.may_get.set()
    running.answers(tickets)
    assert len(remote.asked) <= 4
    assert sorted(key for keys in remote.asked for key in keys) == KEYS[:10]


def test_hundreds_of_keys_of_the_background_are_few_calls(run: Run) -> None:
    remote = FakeRemote()
    running = run(remote)
    tickets = running.look_up(*KEYS[:312], background=True)
    assert len(running.answers(tickets)) == 312
    assert len(remote.asked) == 2


def test_what_somebody_waits_for_goes_before_the_background(run: Run) -> None:
    remote = FakeRemote()
    running = run(remote)
    remote.may_get.clear()
    behind = running.look_up(*KEYS[100:], background=True)
    wait_until(lambda: remote.asked)
    behind += running.look_up(*KEYS[50:100], background=True)
    urgent = running.look_up(KEYS[0])
    wait_until(lambda: len(remote.asked) == 2)
    assert remote.asked[1] == [KEYS[0]]
    remote.may_get.set()
    running.answers(urgent)


def test_what_somebody_begins_to_wait_for_leaves_the_background(run: Run) -> None:
    remote = FakeRemote()
    running = run(remote)
    remote.may_get.clear()
    first = running.look_up(KEYS[0], background=True)  # the one thread that looks at the background is at this
    wait_until(lambda: remote.asked)
    behind = running.look_up(*KEYS[1:300], background=True)
    running.say(wire.Hurry([behind[200], first[0], 99_999]))  # of which one is under way, and one unknown
    wait_until(lambda: len(remote.asked) == 2)
    assert remote.asked[1] == [KEYS[201]]
    remote.may_get.set()
    running.answers(first + behind)
    assert sorted(key for keys in remote.asked for key in keys) == KEYS[:300]


def test_while_a_store_answers_key_by_key_the_process_is_not_silent(run: Run) -> None:
    remote = FakeRemote()
    remote.may_get.clear()
    running = run(remote)
    (ticket,) = running.look_up(KEYS[0])
    wait_until(lambda: remote.asked)
    for _ in range(2):
        wait_until(lambda: [running.remotes.progress(), not running._heard.empty()][1])
        assert running.hear(wire.LookedUp) == wire.LookedUp([], [])
    remote.may_get.set()
    assert running.answers([ticket]) == {ticket: False}


def test_where_the_local_store_cannot_be_written_the_entry_is_sent(run: Run, tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    remote = FakeRemote()
    remote.blobs[KEYS[0]] = sealed(KEYS[0])
    running = run(remote)
    running.look_up(KEYS[0])
    (found,) = running.hear(wire.LookedUp).found
    assert found.entry == entry(KEYS[0])


DAMAGED = {
    "another key's": lambda: sealed(KEYS[5]),
    "another kind": lambda: sealed(KEYS[0], kind="recipe"),
    "another request's": lambda: sealed(KEYS[0], request_digest="11" * 32),
    "cut": lambda: sealed(KEYS[0])[:-1],
    "altered": lambda: sealed(KEYS[0])[:-1] + b"\0",
    "nothing": lambda: b"",
    "a gibibyte, it says": lambda: MAGIC + b"\1\0" + (1 << 30).to_bytes(4, "little"),
    "an entry without a seal": lambda: entry(KEYS[0]),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_what_is_not_the_entry_of_its_key_is_not_there_and_is_replaced_by_what_is_compiled(run: Run, what: str) -> None:
    remote = FakeRemote()
    remote.blobs[KEYS[0]] = DAMAGED[what]()
    running = run(remote)
    (ticket,) = running.look_up(KEYS[0])
    assert running.answers([ticket]) == {ticket: False}
    assert running.store().find(KEYS[0]) is None
    assert running.counts(lambda counts: counts.refused == 1)
    (said,) = running.said()
    assert "is damaged" in said
    running.publish(KEYS[0])
    wait_until(lambda: remote.put_keys)
    assert remote.deleted == [KEYS[0]]
    assert running.answers([running.look_up(KEYS[0])[0]])


def test_what_a_newer_headstart_wrote_is_not_there_and_stays(run: Run) -> None:
    remote = FakeRemote()
    later = MAGIC + b"\xff\x7f" + b"whatever"
    newer = bytearray(sealed(KEYS[1]))
    at = newer.index(b"\x89HSE")
    newer[at + 8 : at + 10] = (ENTRY_VERSION + 1).to_bytes(2, "little")
    remote.blobs = {KEYS[0]: later, KEYS[1]: bytes(newer)}
    running = run(remote)
    tickets = running.look_up(KEYS[0], KEYS[1])
    assert not any(running.answers(tickets).values())
    running.counts(lambda counts: True)
    assert running.said() == []
    assert set(remote.blobs) == {KEYS[0], KEYS[1]}


ODD = "\x1b[2J\x1b]0;pwned\x07" + "x" * 100_000


def test_what_a_person_is_told_of_a_remote_is_one_short_line_that_a_terminal_does_not_obey(run: Run) -> None:
    remote = FakeRemote(ODD)
    remote.blobs[KEYS[0]] = sealed(KEYS[5], name=ODD)
    running = run(remote)
    running.answers(running.look_up(KEYS[0]))
    (damaged,) = running.said()
    running = run(remote, error=UsageError(f"the remote says {ODD}\nheadstart: all is well"))
    running.hear(wire.Availability)
    (wrong,) = running.said()
    for said in (damaged, wrong):
        assert said.isprintable()
        assert "x" in said
        assert len(said) <= MOST_SAID


@pytest.mark.parametrize("text", ["x" * 999, "\x1b" * 500, "€" * 5000, "\n\n  a \nb"])
def test_what_is_said_is_one_line_of_bounded_length(text: str) -> None:
    said = says(text).text
    assert said.isprintable()
    assert len(said) <= MOST_SAID
    assert said == says(said).text


# Trust


def test_from_where_others_can_write_only_what_a_trusted_key_signed_is_taken(run: Run, tmp_path: Path) -> None:
    writer = Keyring(tmp_path / "writer")
    public = writer.new("team")
    remote = FakeRemote(trusted=False)
    remote.blobs = {KEYS[0]: sealed(KEYS[0]), KEYS[1]: sealed(KEYS[1], writer)}
    running = run(remote)
    assert not any(running.answers(running.look_up(KEYS[0], KEYS[1])).values())
    (said,) = [text for text in running.said() if "headstart key trust" in text]
    assert "not signed" in said
    running.end()
    Keyring(tmp_path / "config").trust(public)
    running = run(remote)
    first, second = running.look_up(KEYS[0], KEYS[1])
    assert running.answers([first, second]) == {first: False, second: True}


def test_who_trusts_all_takes_what_nobody_signed_but_nothing_that_carries_code(run: Run) -> None:
    remote = FakeRemote(trusted=False)
    code = seal(make_entry(KEYS[1], kind="launcher", artifacts={"so": b"code"}).raw(), None)
    remote.blobs = {KEYS[0]: sealed(KEYS[0]), KEYS[1]: code}
    running = run(remote, trusts_all=True)
    (kernel,) = running.look_up(KEYS[0])
    running.say(wire.LookUp([wire.Wanted(99, KEYS[1], "launcher", KEYS[1][::-1])], os.fsencode(running.cache)))
    assert running.answers([kernel, 99]) == {kernel: True, 99: False}


def test_what_a_far_remote_had_is_copied_near_as_it_was(run: Run, tmp_path: Path) -> None:
    writer = Keyring(tmp_path / "writer")
    Keyring(tmp_path / "config").trust(writer.new("team"))
    near, far = FakeRemote("fake://near", trusted=False), FakeRemote("fake://far", trusted=False)
    far.blobs = {KEYS[0]: sealed(KEYS[0], writer), KEYS[1]: sealed(KEYS[1])}
    running = run(near, far)
    first, second = running.look_up(KEYS[0], KEYS[1])
    assert running.answers([first, second]) == {first: True, second: False}
    wait_until(lambda: near.put_keys)
    assert near.blobs == {KEYS[0]: far.blobs[KEYS[0]]}


# Publishing


def test_what_is_offered_is_signed_and_put_once(run: Run, tmp_path: Path) -> None:
    Keyring(tmp_path / "config").trust(Keyring(tmp_path / "config").new("mine"))
    remote = FakeRemote(trusted=False)
    running = run(remote)
    running.publish(KEYS[0])
    running.offer(KEYS[0])
    assert running.counts(lambda counts: counts.tiers[0].published == 1)
    other = run(remote)
    other.cache = tmp_path / "other"
    assert list(other.answers(other.look_up(KEYS[0])).values()) == [True]
    running.offer(KEYS[0])
    running.settle()
    assert remote.put_keys == [KEYS[0]]


def test_that_others_will_not_trust_what_goes_out_is_said_once_in_the_log(run: Run) -> None:
    running = run(FakeRemote(trusted=False))
    for key in KEYS[:3]:
        running.publish(key)
    running.counts(lambda counts: counts.tiers[0].published == 3)
    (said,) = [each for each in running.messages if isinstance(each, wire.RemoteSays)]
    assert said.quiet
    assert "headstart key new" in said.text


def test_what_there_is_no_room_for_is_dropped_and_counted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = publishing.Publisher.__init__.__kwdefaults__
    monkeypatch.setattr(publishing.Publisher.__init__, "__kwdefaults__", {**defaults, "max_offered": 4})
    remote = FakeRemote()
    remote.may_put.clear()
    running = run(remote)
    for key in KEYS[:10]:
        running.publish(key)
    running.counts(lambda counts: counts.dropped == 6)
    remote.may_put.set()
    counts = running.counts(lambda counts: counts.settled == 10)
    assert (counts.published, counts.dropped, counts.unpublished) == (4, 6, {"4 others were waiting": 6})


def test_copies_wait_in_memory_and_only_so_many_of_them(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    near, far = FakeRemote("fake://near"), FakeRemote("fake://far")
    far.blobs = {key: sealed(key) for key in KEYS[:3]}
    size = len(far.blobs[KEYS[0]])
    defaults = publishing.Publisher.__init__.__kwdefaults__
    monkeypatch.setattr(publishing.Publisher.__init__, "__kwdefaults__", {**defaults, "max_queued": 2 * size + 1})
    near.may_put.clear()
    running = run(near, far)
    for key in KEYS[:3]:
        running.answers(running.look_up(key))
    counts = running.counts(lambda counts: counts.dropped == 1)
    assert (counts.settled, counts.unpublished) == (0, {})  # nothing of it was offered
    near.may_put.set()
    wait_until(lambda: len(near.put_keys) == 2)


def test_what_became_of_each_entry_that_was_offered_is_counted(run: Run) -> None:
    remote = FakeRemote()
    remote.blobs[KEYS[0]] = sealed(KEYS[0])
    running = run(remote)
    running.answers(running.look_up(KEYS[0]))
    running.counts(lambda counts: counts.tiers[0].hits == 1)  # it is known by now
    for key in KEYS[:3]:
        running.publish(key)  # the first is there already
    running.counts(lambda counts: counts.settled == 3)
    remote.fails = True
    for key in KEYS[3:7]:
        running.publish(key)
    running.offer(KEYS[9])  # of which there is nothing
    counts = running.counts(lambda counts: counts.settled == 8)
    assert counts.published == 2
    assert counts.unpublished == {
        "fake://near: it cannot be reached": 4,
        "it was gone from the local store": 1,
    }
    assert counts.dropped == 5


def test_that_a_remote_is_left_alone_is_the_same_reason_as_why_it_is(run: Run) -> None:
    remote = FakeRemote()
    running = run(BreakerRemote(remote, failures=2, warn=lambda text: None))
    remote.fails = True
    for key in KEYS[:6]:
        running.publish(key)
    counts = running.counts(lambda counts: counts.settled == 6)
    assert counts.unpublished == {"fake://near: it cannot be reached": 6}


def test_of_why_entries_were_not_published_few_reasons_are_told_apart(run: Run) -> None:
    remote = FakeRemote()
    running = run(remote)
    remote.fails = True
    for number, key in enumerate(KEYS[:9], 1):
        remote.name = f"fake://{key[-1]}"
        running.publish(key)
        running.counts(lambda counts: counts.settled == number)  # noqa: B023 - called at once
    running.offer(KEYS[10])
    counts = running.counts(lambda counts: counts.settled == 10)
    assert len(counts.unpublished) == 5
    assert counts.unpublished["other reasons"] == 6


def test_a_remote_that_is_only_read_is_no_reason_to_say_that_entries_were_not_published(run: Run) -> None:
    running = run(FakeRemote(writable=False), urls="file:///remote?read-only")
    running.publish(KEYS[0])
    counts = running.counts(lambda counts: counts.settled == 1)
    assert (counts.published, counts.dropped, counts.unpublished) == (0, 0, {})


def test_what_is_damaged_or_gone_in_the_local_store_does_not_go_out(run: Run) -> None:
    remote = FakeRemote()
    running = run(remote)
    store = running.store()
    store.publish(KEYS[0], [entry(KEYS[0])])
    path = store.path_of(KEYS[0])
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b"\0")
    for key in KEYS[:2]:
        running.offer(key)
    assert running.counts(lambda counts: counts.dropped == 2)
    assert remote.put_keys == []


def test_what_took_the_place_of_what_was_compiled_here_is_not_signed(run: Run, tmp_path: Path) -> None:
    Keyring(tmp_path / "config").trust(Keyring(tmp_path / "config").new("mine"))
    remote = FakeRemote(trusted=False)
    running = run(remote)
    compiled = entry(KEYS[0])
    running.store().publish(KEYS[0], [entry(KEYS[0], artifacts={"cubin": b"of a remote that anybody may write"})])
    running.offer(KEYS[0], compiled)
    assert running.counts(lambda counts: counts.dropped == 1)
    assert remote.put_keys == []
    running.publish(KEYS[0])
    assert running.counts(lambda counts: counts.tiers[0].published == 1)


def test_where_nothing_may_be_written_nothing_is_tried(run: Run) -> None:
    remote = FakeRemote(writable=False)
    running = run(remote)
    running.publish(KEYS[0])
    running.end()
    assert (remote.put_keys, running.said()) == ([], [])


# The end


def test_at_the_end_what_waits_is_put(run: Run) -> None:
    remote = FakeRemote()
    remote.may_put.clear()
    running = run(remote)
    for key in KEYS[:5]:
        running.publish(key)
    running.settle()
    threading.Timer(0.1, remote.may_put.set).start()
    assert running.end() < process_module.FINISHING
    assert sorted(remote.put_keys) == KEYS[:5]


def test_a_remote_that_takes_nothing_holds_the_process_up_for_a_limited_time(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_module, "FINISHING", 0.3)
    remote = FakeRemote()
    remote.may_put.clear()
    running = run(remote)
    running.publish(KEYS[0])
    running.settle()
    assert 0.3 <= running.end() < PATIENCE / 2
    remote.may_put.set()


def test_a_process_that_nobody_asks_leaves_but_not_with_work_to_do(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "IDLE_TIMEOUT", 0.05)
    remote = FakeRemote()
    remote.may_put.clear()
    running = run(remote)
    running.publish(KEYS[0])
    running._thread.join(0.5)
    assert running._thread.is_alive()
    remote.may_put.set()
    running._thread.join(PATIENCE)
    assert not running._thread.is_alive()
    assert remote.put_keys == [KEYS[0]]


# Remotes that fail


def test_a_remote_that_fails_is_no_use_until_it_answers_again_and_the_process_tries_by_itself(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(watching, "MAX_PAUSE", 0.01)
    remote = FakeRemote()
    running = run(remote)
    tickets = running.look_up(KEYS[0])
    running.answers(tickets)
    remote.fails = True
    (ticket,) = running.look_up(KEYS[1])
    assert running.answers([ticket]) == {ticket: False}
    assert not running.hear(wire.Availability).usable
    asked = len(remote.asked)
    remote.fails = False
    assert running.hear(wire.Availability).usable
    assert len(remote.asked) == asked  # nobody's key was used to find out


def test_a_remote_that_is_not_there_is_known_to_be_no_use_before_anybody_asks(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "FIRST_PAUSE", 0.001)
    remote = FakeRemote()
    remote.fails = True
    running = run(remote)
    assert not running.hear(wire.Availability).usable
    assert remote.asked == []


def test_of_two_remotes_one_that_fails_is_no_reason_not_to_ask(run: Run) -> None:
    near, far = FakeRemote("fake://near"), FakeRemote("fake://far")
    near.fails = True
    far.blobs[KEYS[0]] = sealed(KEYS[0])
    running = run(near, far)
    assert list(running.answers(running.look_up(KEYS[0])).values()) == [True]
    assert not [each for each in running.messages if isinstance(each, wire.Availability)]


def test_a_setting_that_is_wrong_is_said_and_nobody_asks(run: Run) -> None:
    running = run(error=UsageError("redis:// needs the package redis: pip install 'headstart[redis]'"))
    assert running.hear(wire.Availability) == wire.Availability(False, for_good=True)
    (said,) = running.said()
    assert "pip install 'headstart[redis]'" in said
    running._thread.join(PATIENCE)  # it is of no use to anybody
    assert not running._thread.is_alive()


def test_a_bug_in_a_remote_costs_those_who_ask_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = FakeRemote()
    running = run(remote)

    def broken(keys: Sequence[str]) -> dict[str, bytes]:
        raise ValueError("a bug")

    monkeypatch.setattr(remote, "get_many", broken)
    (ticket,) = running.look_up(KEYS[0])
    assert running.answers([ticket]) == {ticket: False}
    monkeypatch.undo()
    remote.blobs[KEYS[1]] = sealed(KEYS[1])
    assert list(running.answers(running.look_up(KEYS[1])).values()) == [True]


# Claims


@pytest.fixture
def claiming() -> FakeRemote:
    remote = FakeRemote()
    remote.claims = {}
    return remote


def test_what_nobody_is_at_is_claimed_and_given_back_once_it_is_there(run: Run, claiming: FakeRemote) -> None:
    running = run(claiming, claims=True)
    (ticket,) = running.look_up(KEYS[0], lease=5.0)
    assert running.answers([ticket]) == {ticket: False}
    assert claiming.claims == {KEYS[0]: "ours"}
    running.publish(KEYS[0])
    wait_until(lambda: claiming.released)
    assert claiming.put_keys == [KEYS[0]]


def test_what_fails_here_is_given_back(run: Run, claiming: FakeRemote) -> None:
    running = run(claiming, claims=True)
    running.answers(running.look_up(KEYS[0], lease=5.0))
    running.say(wire.Disclaim(KEYS[0]))
    running.say(wire.Disclaim(KEYS[1]))  # which nobody has claimed
    wait_until(lambda: claiming.released)
    assert claiming.released == [KEYS[0]]


def test_what_another_host_is_at_is_waited_for_until_it_is_there(run: Run, claiming: FakeRemote) -> None:
    assert claiming.claims is not None
    claiming.claims[KEYS[0]] = "another host's"
    running = run(claiming, claims=True)
    ticket, free = running.look_up(KEYS[0], KEYS[1], lease=PATIENCE)
    assert running.hear(wire.Claimed).tickets == [ticket]
    assert running.answers([free]) == {free: False}
    claiming.blobs[KEYS[0]] = sealed(KEYS[0])
    assert running.answers([ticket]) == {ticket: True}


def test_what_another_host_gave_up_is_compiled_here_at_once(run: Run, claiming: FakeRemote) -> None:
    assert claiming.claims is not None
    claiming.claims[KEYS[0]] = "another host's"
    running = run(claiming, claims=True)
    (ticket,) = running.look_up(KEYS[0], lease=PATIENCE)
    running.hear(wire.Claimed, lambda message: message.seconds > PATIENCE)
    del claiming.claims[KEYS[0]]
    assert running.answers([ticket]) == {ticket: False}
    assert claiming.claims == {KEYS[0]: "ours"}


def test_while_claims_are_answered_one_by_one_the_process_is_not_silent(run: Run, claiming: FakeRemote) -> None:
    claiming.may_claim = threading.Semaphore(0)
    running = run(claiming, claims=True)
    tickets = running.look_up(KEYS[0], KEYS[1], lease=PATIENCE)
    claiming.may_claim.release()
    assert running.hear(wire.LookedUp) == wire.LookedUp([], [])
    assert claiming.asked == []
    claiming.may_claim.release()
    assert running.answers(tickets) == dict.fromkeys(tickets, False)


def test_each_is_waited_for_as_long_as_its_own_compile_would_take(run: Run, claiming: FakeRemote) -> None:
    claiming.claims = dict.fromkeys(KEYS[:3], "another host's")
    running = run(claiming, claims=True)
    leases = (60.0, 30.0, 60.0)
    wanted = [wire.Wanted(n, KEYS[n], "kernel", KEYS[n][::-1], lease) for n, lease in enumerate(leases)]
    running.say(wire.LookUp(wanted, os.fsencode(running.cache)))
    said = {
        message.seconds - finding.MAX_POLL: message.tickets for message in (running.hear(wire.Claimed) for _ in "12")
    }
    assert said == {60.0: [0, 2], 30.0: [1]}


def test_what_other_hosts_are_at_is_looked_for_in_calls_of_bounded_length_and_is_missing_once(
    run: Run, claiming: FakeRemote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finding, "BACKGROUND_BATCH", 4)
    keys = KEYS[:10]
    claiming.claims = dict.fromkeys(keys, "another host's")
    running = run(claiming, claims=True)
    claiming.may_get.clear()
    tickets = running.look_up(*keys, lease=PATIENCE)
    wait_until(lambda: claiming.asked)
    claiming.may_get.set()
    running.hear(wire.Claimed)
    wait_until(lambda: {key for asked in claiming.asked[1:] for key in asked} == set(keys))
    assert max(map(len, claiming.asked[1:])) <= 4
    claiming.blobs = {key: sealed(key) for key in keys}
    assert running.answers(tickets) == dict.fromkeys(tickets, True)
    (tier,) = running.remotes.tiers
    assert (tier.hits, tier.misses) == (10, 10)


def test_a_host_that_is_dead_is_waited_for_no_longer_than_its_compile_would_take(
    run: Run, claiming: FakeRemote
) -> None:
    assert claiming.claims is not None
    claiming.claims[KEYS[0]] = "a dead host's"
    running = run(claiming, claims=True)
    (ticket,) = running.look_up(KEYS[0], lease=0.2)
    assert running.hear(wire.Claimed).seconds == pytest.approx(0.2 + finding.MAX_POLL)
    assert running.answers([ticket]) == {ticket: False}
    assert claiming.claims == {KEYS[0]: "a dead host's"}


def test_what_was_made_by_another_host_before_it_could_be_claimed_is_found(run: Run, claiming: FakeRemote) -> None:
    claiming.blobs[KEYS[0]] = sealed(KEYS[0])
    running = run(claiming, claims=True)
    (ticket,) = running.look_up(KEYS[0], lease=60.0)
    assert running.answers([ticket]) == {ticket: True}
    wait_until(lambda: claiming.released)
    assert claiming.released == [KEYS[0]]


def test_one_key_that_two_stores_want_is_claimed_once(run: Run, claiming: FakeRemote) -> None:
    running = run(claiming, claims=True)
    tickets = running.look_up(KEYS[0], KEYS[0], lease=60.0)
    assert running.answers(tickets) == dict.fromkeys(tickets, False)


def test_what_has_no_lease_is_not_claimed(run: Run, claiming: FakeRemote) -> None:
    assert claiming.claims is not None
    claiming.claims[KEYS[0]] = "another host's"
    running = run(claiming, claims=True)
    tickets = running.look_up(KEYS[0], KEYS[1])
    assert running.answers(tickets) == dict.fromkeys(tickets, False)
    assert claiming.claims == {KEYS[0]: "another host's"}


def test_claims_that_are_held_at_the_end_are_given_back(run: Run, claiming: FakeRemote) -> None:
    running = run(claiming, claims=True)
    running.answers(running.look_up(KEYS[0], KEYS[1], lease=60.0))
    running.end()
    assert sorted(claiming.released) == KEYS[:2]


def test_where_no_claims_are_wanted_none_are_made(run: Run, claiming: FakeRemote) -> None:
    running = run(claiming)
    running.answers(running.look_up(KEYS[0], lease=5.0))
    assert claiming.claims == {}
