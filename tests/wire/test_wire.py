"""Messages arrive as they were sent, however the stream was cut; anything else is a ProtocolError."""

from __future__ import annotations

import itertools
import socket
import typing
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart import wire
from headstart.model.request import CompileRequest
from headstart.wire import Channel, Deframer, ProtocolError
from kernels import TOOLCHAIN

UNIONS = {
    "FromClient": wire.FromClient,
    "FromService": wire.FromService,
    "ToZygote": wire.ToZygote,
    "FromZygote": wire.FromZygote,
    "FromWorker": wire.FromWorker,
    "ToWorker": wire.ToWorker,
    "ToDescriber": wire.ToDescriber,
    "FromDescriber": wire.FromDescriber,
    "ToRemote": wire.ToRemote,
    "FromRemote": wire.FromRemote,
}
REQUEST = CompileRequest(
    name="add",
    source="def add(): 'é'",
    signature={"x": "*fp32"},
    constants={"BLOCK": 1024, "SCALE": float("inf")},
    attributes={"x": [("tt.divisibility", 16)]},
    options={"num_warps": 4},
    target="cuda:90",
    environment={"TRITON_DEBUG": "1"},
    filename="add.py",
)
DESCRIBER = wire.DescriberSpec(TOOLCHAIN, "stamp", (("TORCHINDUCTOR_ENABLE_PDL", "1"),))
FAILURE = wire.Failure("crash", "it died", stage="llir", output="words")
REPORT = wire.Report(
    pid=17,
    now=20.0,
    started=10.0,
    persistent=True,
    quiesced=False,
    workers=1,
    limit=2,
    workers_memory=1 << 20,
    queued=[1, 2, 3],
    requests=6,
    stored=1,
    joined=2,
    compiled=2,
    failed=1,
    clients=[wire.ClientReport(99, "train.py", 12.5, 4)],
    running=[wire.RunningReport("add", "cuda:90", 1, 19.0, 2, 1 << 20)],
)
MESSAGES: dict[str, list[msgspec.Struct]] = {
    "FromClient": [
        wire.Hello(1, wire.Preferences(b"/cache/\xff", 1 << 30, 2.5, "train.py")),
        wire.Prepare(TOOLCHAIN, {"TRITON_DEBUG": "1"}, vouched=False),
        wire.Submit(7, TOOLCHAIN, REQUEST, True, background=True),
        wire.Await([1, 2]),
        wire.Await([], [3]),
        wire.Control("quiesce"),
        wire.Supersede(9),
        wire.PrepareDescriber(DESCRIBER),
        wire.SubmitSource(7, DESCRIBER, b"\x00\xff", "stem", "torch", True, wire.FanOut("/c/a.py", 1, "/c", True)),
        wire.SubmitSource(8, DESCRIBER, b"", "stem", "", False, None),
        wire.CountRemotes(),
    ],
    "FromService": [
        wire.Welcome(17),
        wire.Unwelcome("another language"),
        wire.Leaving(),
        REPORT,
        wire.Notice("the store is damaged"),
        wire.Started(7, 1, 12.5),
        wire.Result(7, "aa", entry=b"\x00\xff"),
        wire.Failed(7, FAILURE),
        wire.Events(20.0, [wire.Happened(19.5, "Requested ticket 1/7", ["Fork worker 1"])]),
        wire.DescriberState(DESCRIBER.settings, True),
        wire.SourceLocated(7, False),
        wire.SourceCompiled(
            7,
            "aa",
            b"\x00\xff",
            [wire.JobOutcome(1, wire.Result(0, "bb", registers=32)), wire.JobOutcome(-1, wire.Failed(0, FAILURE))],
            "cc",
            b"\x00",
            has_more=True,
        ),
        wire.AddedCompiled(7, [wire.JobOutcome(1, wire.Result(0, "bb"))]),
        wire.RemoteCounts([wire.RemoteReport("redis://host/0", 1)], offered=2, settled=1),
    ],
    "ToZygote": [wire.Fork(1, b"/tmp/\xff"), wire.Kill(1)],
    "FromZygote": [wire.Ready("3.9.0", 1), wire.Unable("no", 3), wire.Forked(1, 99), wire.Reaped(1, -9)],
    "FromWorker": [
        wire.Finished(True, 1.0, 2.0, taken_over=True),
        FAILURE,
        wire.Reached("cc"),
        wire.StoodAside("cc", b"\x00\xff"),
    ],
    "ToWorker": [
        wire.Assign("aa", "bb", REQUEST, b"/cache", early_cutoff=True, prefix=b"\x00"),
        wire.Proceed(),
        wire.StandAside(),
    ],
    "ToDescriber": [wire.Question(7, b"\x00\xff")],
    "FromDescriber": [wire.Awake(), wire.Answer(7, b"\x00\xff")],
    "ToRemote": [
        wire.Serve(wire.RemoteSettings("redis://:secret@host/0", True, 0.5, b"/config/\xff", "team")),
        wire.LookUp([wire.Wanted(7, "aa", "kernel", "bb", 3.0)], b"/cache/\xff", trusted=True, background=True),
        wire.Hurry([7, 8]),
        wire.Offer("aa", b"/cache", False, b"digest"),
        wire.Disclaim("aa"),
    ],
    "FromRemote": [
        wire.Awake(),
        wire.LookedUp([wire.FoundRemotely(7, b"\x00\xff")], [8, 9]),
        wire.Claimed([7], 3.0),
        wire.Availability(False, for_good=True),
        wire.RemoteCounts(
            [wire.RemoteReport("redis://host/0", 1, 2, 3, 4, 5, 6, 0.5)], 7, 8, 9, 8, 6, {"it is full": 2}
        ),
        wire.RemoteSays("it cannot be reached", quiet=True),
    ],
}
union_names = pytest.mark.parametrize("name", UNIONS)


def chunks(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    bounds = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    for start, end in itertools.pairwise(bounds):
        yield data[start:end]


@union_names
def test_every_message_has_an_example_here(name: str) -> None:
    kinds = set(typing.get_args(UNIONS[name])) or {UNIONS[name]}
    assert {type(message) for message in MESSAGES[name]} == kinds


@union_names
def test_a_message_is_decoded_as_it_was_encoded(name: str) -> None:
    decoder = wire.decoder(UNIONS[name])
    for message in MESSAGES[name]:
        assert wire.decode(decoder, wire.encode(message)) == message


@given(
    st.sampled_from(list(UNIONS)),
    st.lists(st.integers(0, 3), max_size=5),
    st.lists(st.integers(0, 2000), max_size=8),
)
def test_a_stream_gives_the_same_messages_however_it_is_cut(name: str, picks: list[int], cuts: list[int]) -> None:
    sent = [MESSAGES[name][pick % len(MESSAGES[name])] for pick in picks]
    stream = b"".join(map(wire.frame, sent))
    deframer = Deframer(UNIONS[name])
    received = [message for chunk in chunks(stream, cuts) for message in deframer.feed(chunk)]
    assert received == sent


def test_a_message_comes_with_its_last_byte_and_not_before() -> None:
    deframer = Deframer(wire.FromClient)
    framed = wire.frame(wire.Await([1]))
    for byte in framed[:-1]:
        assert list(deframer.feed(bytes([byte]))) == []
    assert list(deframer.feed(framed[-1:])) == [wire.Await([1])]


def test_a_frame_is_a_little_endian_length_and_msgpack() -> None:
    framed = wire.frame(wire.Await([1]))
    assert framed[:4] == (len(framed) - 4).to_bytes(4, "little")
    assert msgspec.msgpack.decode(framed[4:]) == {"type": "Await", "tickets": [1]}


def test_a_frame_that_is_too_long_is_refused_before_it_has_arrived(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProtocolError, match=f"{wire.MAX_FRAME} are allowed"):
        list(Deframer(wire.FromClient).feed((wire.MAX_FRAME + 1).to_bytes(4, "little")))
    body = wire.encode(wire.Await([1]))
    monkeypatch.setattr(wire, "MAX_FRAME", len(body))
    assert list(Deframer(wire.FromClient).feed(wire.frame(wire.Await([1])))) == [wire.Await([1])]


def test_messages_before_a_bad_frame_still_count() -> None:
    messages = Deframer(wire.FromClient).feed(wire.frame(wire.Await([1])) + b"\x01\x00\x00\x00\xc1")
    assert next(messages) == wire.Await([1])
    with pytest.raises(ProtocolError):
        next(messages)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode({"type": "Launch"}),
        msgspec.msgpack.encode({"tickets": [1]}),
        msgspec.msgpack.encode({"type": "Await", "tickets": "all"}),
        msgspec.msgpack.encode({"type": "Await"}),
        msgspec.msgpack.encode(["Await", [1]]),
        wire.encode(wire.Notice("hello")),
        wire.encode(wire.Await([1])) + b"\x00",
        b"\xa5\xff\xff\xff\xff\xff",
        b"\x91" * 100_000,
    ],
    ids=lambda body: repr(bytes(body[:20])),
)
def test_what_is_no_message_of_a_client_is_a_protocol_error(body: bytes) -> None:
    with pytest.raises(ProtocolError, match="not a message"):
        wire.decode(wire.decoder(wire.FromClient), body)


@given(st.sampled_from(list(UNIONS)), st.binary(max_size=60))
def test_random_bytes_never_raise_anything_but_a_protocol_error(name: str, data: bytes) -> None:
    try:
        wire.decode(wire.decoder(UNIONS[name]), data)
    except ProtocolError:
        pass
    try:
        list(Deframer(UNIONS[name]).feed(data))
    except ProtocolError:
        pass


@given(st.sampled_from(list(UNIONS)), st.integers(0, 3), st.integers(0, 5000), st.binary(min_size=1, max_size=8))
def test_a_damaged_message_never_raises_anything_but_a_protocol_error(
    name: str, pick: int, at: int, noise: bytes
) -> None:
    body = wire.encode(MESSAGES[name][pick % len(MESSAGES[name])])
    at %= len(body)
    try:
        wire.decode(wire.decoder(UNIONS[name]), body[:at] + noise + body[at + len(noise) :])
    except ProtocolError:
        pass


def test_unknown_fields_of_a_later_protocol_are_skipped() -> None:
    later = msgspec.msgpack.encode({"type": "Await", "tickets": [1], "why": "benchmark"})
    assert wire.decode(wire.decoder(wire.FromClient), later) == wire.Await([1])


# Channels


@pytest.fixture
def channels() -> Iterator[tuple[Channel, Channel]]:
    one, other = socket.socketpair()
    with one, other:
        yield Channel(one, wire.FromService), Channel(other, wire.FromClient)


def test_nothing_has_arrived_is_no_message(channels: tuple[Channel, Channel]) -> None:
    client, service = channels
    assert service.receive() == []
    client.send(wire.Await([1]))
    client.send(wire.Await([2]))
    assert service.receive() == [wire.Await([1]), wire.Await([2])]


def test_what_the_socket_does_not_take_is_kept_and_sent_later(channels: tuple[Channel, Channel]) -> None:
    client, service = channels
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    sent = [wire.Await(list(range(n, n + 2000))) for n in range(40)]
    for message in sent:
        client.send(message)  # returns at once, though nobody reads
    assert client.has_unsent
    received: list[Any] = []
    for _ in range(10_000):
        received += service.receive()
        client.flush()
        if len(received) == len(sent):
            break
    assert received == sent
    assert not client.has_unsent


def test_a_backlog_can_be_dropped_between_two_messages(channels: tuple[Channel, Channel]) -> None:
    client, service = channels
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    sent = [wire.Await(list(range(n, n + 2000))) for n in range(40)]
    for message in sent:
        client.send(message)
    assert client.backlog > 0
    client.drop_backlog()
    assert client.backlog == 0
    assert client.has_unsent, "the rest of the message that the socket has the beginning of"
    client.send(wire.Await([99]))
    received: list[Any] = []
    while client.has_unsent or not received or received[-1] != wire.Await([99]):
        received += service.receive()
        client.flush()
    assert received[:-1] == sent[: len(received) - 1]
    assert 0 < len(received) - 1 < len(sent)


def test_a_closed_peer_is_told_from_a_silent_one(channels: tuple[Channel, Channel]) -> None:
    client, service = channels
    client.send(wire.Await([1]))
    client.close()
    assert service.receive() == [wire.Await([1])], "what was sent before still arrives"
    with pytest.raises(EOFError):
        service.receive()
    with pytest.raises(ConnectionError):
        service.send(wire.Notice("hello"))


def test_a_peer_that_was_reset_counts_as_closed(channels: tuple[Channel, Channel]) -> None:
    client, service = channels
    service.send(wire.Notice("hello"))
    client.close()  # with something unread: the peer gets a reset
    with pytest.raises(EOFError):
        service.receive()


def test_a_blocking_stream_ends_when_the_peer_closes() -> None:
    one, other = socket.socketpair()
    with other:
        with one:
            one.sendall(wire.frame(wire.Await([1])) + wire.frame(wire.Await([2])) + b"\x09")
        assert list(wire.receive_blocking(other, Deframer(wire.FromClient))) == [
            wire.Await([1]),
            wire.Await([2]),
        ]
