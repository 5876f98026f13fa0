"""What carries code comes from trusted bundles only, and is passed on by nobody who was not entitled to it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest
from test_bundle import A, B, C, entry
from test_signing import graphs, sign_with

from headstart.adapters.run import RunConfig
from headstart.artifacts.bundle import Bundle, BundleWriter, merge_bundles
from headstart.artifacts.entry import Entry
from headstart.artifacts.index import encode_items, ending
from headstart.artifacts.keyring import Keyring
from headstart.artifacts.kinds import GRAPHS
from headstart.artifacts.seal import sign_bundle
from headstart.artifacts.trust import Trust
from headstart.client import client as client_module
from headstart.client import vouching
from headstart.client.bundler import TritonBundler
from headstart.client.client import Client

D = "dd" * 32


@pytest.fixture(autouse=True)
def _nothing_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vouching, "_said", set())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "app.bundle"


@pytest.fixture
def stranger(tmp_path: Path) -> Keyring:
    made = Keyring(tmp_path / "stranger")
    made.new("vendor")
    return made


def opener(of: Entry) -> Callable[[], Entry]:
    return lambda: of


def bundler_with(*entries: Entry) -> TritonBundler:
    made = TritonBundler(len)
    made.begin_compile()
    for each in entries:
        made.put(each.key, opener(each))
    return made


def unsigned(path: Path, *entries: Entry) -> Path:
    with BundleWriter(path) as writer:
        for each in entries:
            writer.add(each)
    return path


def reader_of(path: Path, *noted: Entry, trust: bool = False) -> TritonBundler:
    made = bundler_with(*noted)
    made.read_and_emit(path, trust=trust)
    return made


def given(bundler: TritonBundler) -> dict[str, bytes]:
    return {each.key: each.artifact("graphs") for each in bundler.entries_of("graphs")}


def trusted(path: Path) -> bool:
    return Trust(Keyring()).judge(Bundle.open(path).index).trusted


def keys_in(path: Path) -> set[str]:
    return {item.key for item in Bundle.open(path)}


# Reading


def test_what_an_own_run_wrote_is_given_out(path: Path) -> None:
    bundler_with(entry(A), graphs(C)).extend(path)
    reader = reader_of(path)
    assert given(reader) == {C: b"a pickle"}
    found = reader.find(C, GRAPHS)
    assert found is not None
    assert found.artifact("graphs") == b"a pickle"
    assert [each.key for each in reader.entries_of("kernel")] == [A]
    assert list(reader.entries_of("launcher")) == []


def test_code_of_an_unsigned_bundle_is_held_back_with_one_line_and_its_kernels_are_not(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reader = reader_of(unsigned(path, entry(A), graphs(C), graphs(D)))
    assert given(reader) == {}
    assert reader.find(C, GRAPHS) is None
    assert reader.find(C, "kernel") is None
    assert reader.find(A, "kernel") is not None
    assert [each.key for each in reader.entries_of("kernel")] == [A]
    (said,) = caplog.messages
    assert f"{path}: entries that could run code (2 graphs) are held back" in said
    assert "because it is not signed" in said
    assert "headstart key trust" in said
    assert "--trust" in said


def test_nothing_is_said_of_a_bundle_of_kernels(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    reader = reader_of(unsigned(path, entry(A)))
    assert given(reader) == {}
    assert reader.find(A, "kernel") is not None
    assert caplog.messages == []


def test_it_says_why_a_signature_does_not_count(
    path: Path, stranger: Keyring, caplog: pytest.LogCaptureFixture
) -> None:
    sign_bundle(unsigned(path, graphs(C)), sign_with(stranger, "vendor"))
    assert given(reader_of(path)) == {}
    assert "(1 graphs) are held back" in caplog.text
    assert "signed by the unknown key" in caplog.text
    Keyring().trust(stranger.own()[0].path)
    assert given(reader_of(path)) == {C: b"a pickle"}
    Keyring().forget("vendor")
    assert given(reader_of(path)) == {}


def test_an_index_that_calls_code_a_kernel_gets_nobody_the_code(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    unsigned(path, graphs(C))
    index, data = Bundle.open(path).index, path.read_bytes()
    lines = encode_items([msgspec.structs.replace(index.items[C], kind="kernel")])
    end = ending(index.offset, len(lines), sha256(lines).digest(), [])
    path.write_bytes(data[: index.offset] + lines + end)
    reader = reader_of(path)
    assert reader.find(C, GRAPHS) is None
    assert reader.find(C, "kernel") is None
    assert list(reader.entries_of("kernel")) == []
    assert "lies where the index says" in caplog.text


def test_at_one_s_own_risk_code_is_given_out_whoever_signed_it(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    reader = reader_of(unsigned(path, graphs(C)), trust=True)
    assert given(reader) == {C: b"a pickle"}
    assert reader.find(C, GRAPHS) is not None
    assert caplog.messages == []


def test_a_bundle_that_is_replaced_while_it_is_open_gives_out_no_code_of_the_other(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundler_with(entry(A), graphs(C)).extend(path)
    reader = reader_of(path)
    unsigned(path, entry(A), graphs(C, b"of somebody else"))
    assert given(reader) == {}
    assert reader.find(C, GRAPHS) is None
    assert reader.find(A, "kernel") is not None
    assert "not what the index says" in caplog.text


def test_of_two_bundles_the_trusted_one_gives_what_the_other_may_not(path: Path, tmp_path: Path) -> None:
    bundler_with(graphs(C)).extend(path)
    reader = TritonBundler(len)
    reader.read_and_emit(unsigned(tmp_path / "other.bundle", graphs(C, b"of somebody else")))
    reader.read_and_emit(path)
    assert given(reader) == {C: b"a pickle"}
    found = reader.find(C, GRAPHS)
    assert found is not None
    assert found.artifact("graphs") == b"a pickle"


# Writing


def test_what_is_collected_is_signed_by_the_local_key(path: Path) -> None:
    bundler_with(entry(A)).collect(path)
    assert [each.kind for each in Bundle.open(path).signatures] == ["local"]
    assert trusted(path)


@pytest.mark.parametrize("place", ["/proc/headstart", "~nobody-of-that-name/x"])
def test_where_there_can_be_no_key_a_bundle_is_written_without_a_signature(
    place: str, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HEADSTART_CONFIG_DIR", place)
    caplog.set_level(logging.INFO, "headstart")
    bundler_with(entry(A), graphs(C)).extend(path)
    assert keys_in(path) == {A, C}
    assert Bundle.open(path).signatures == ()
    (said,) = [each for each in caplog.records if "without a signature" in each.message]
    assert said.levelno == logging.INFO
    assert given(reader_of(path)) == {}  # and nothing raises


def test_code_that_is_not_trusted_is_not_passed_on_under_an_own_signature(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unsigned(path, entry(A), graphs(C, b"of somebody else"))
    reader_of(path, entry(B), graphs(D)).extend(path)
    assert keys_in(path) == {A, B, D}
    assert trusted(path)
    assert "(1 graphs) are left out" in caplog.text
    assert given(reader_of(path)) == {D: b"a pickle"}


def test_code_that_appears_in_the_place_meanwhile_is_not_passed_on(path: Path) -> None:
    bundler_with(entry(A)).extend(path)
    writer = reader_of(path, entry(B))
    unsigned(path, entry(A), graphs(C, b"of somebody else"))
    writer.extend(path)
    assert keys_in(path) == {A, B}
    assert trusted(path)


def test_code_of_another_bundle_that_was_read_is_not_collected(path: Path, tmp_path: Path) -> None:
    reader_of(unsigned(path, entry(A), graphs(C)), entry(B)).collect(tmp_path / "out.bundle")
    assert keys_in(tmp_path / "out.bundle") == {A, B}
    assert trusted(tmp_path / "out.bundle")


def test_an_own_entry_takes_the_place_of_one_that_is_not_trusted(path: Path) -> None:
    unsigned(path, entry(A), graphs(C, b"of somebody else"))
    reader_of(path, graphs(C)).extend(path)
    assert given(reader_of(path)) == {C: b"a pickle"}


def test_an_own_entry_that_is_there_unsigned_already_is_signed(path: Path) -> None:
    unsigned(path, graphs(C))
    reader_of(path, graphs(C)).extend(path)
    assert given(reader_of(path)) == {C: b"a pickle"}


def test_what_is_used_at_one_s_own_risk_is_kept_and_not_signed(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "headstart")
    unsigned(path, entry(A), graphs(C))
    reader_of(path, entry(B), graphs(D), trust=True).extend(path)
    assert keys_in(path) == {A, B, C, D}
    assert Bundle.open(path).signatures == ()
    assert "without a signature, since code in it is used at your own risk" in caplog.text
    assert given(reader_of(path)) == {}
    assert set(given(reader_of(path, trust=True))) == {C, D}


def test_a_new_bundle_is_signed_though_it_would_have_been_used_at_one_s_own_risk(path: Path) -> None:
    client = Client(workers=1, bundle=path, trust_bundle=True)
    client.bundler.put(C, opener(graphs(C)))
    client.close()
    assert trusted(path)


def test_what_a_trusted_key_signed_is_passed_on_while_it_is_trusted(path: Path, stranger: Keyring) -> None:
    Keyring().trust(stranger.own()[0].path)
    sign_bundle(unsigned(path, entry(A), graphs(C)), sign_with(stranger, "vendor"))
    reader_of(path, entry(B)).extend(path)
    assert [each.kind for each in Bundle.open(path).signatures] == ["local"]
    reader_of(path, graphs(D)).extend(path)  # and once more, by way of the own signature
    assert set(given(reader_of(path))) == {C, D}
    Keyring().forget("vendor")
    assert given(reader_of(path)) == {}


def test_what_was_made_with_code_of_a_trusted_key_counts_while_that_does(path: Path, stranger: Keyring) -> None:
    """torch saves what it was given together with what is new."""
    Keyring().trust(stranger.own()[0].path)
    sign_bundle(unsigned(path, graphs(C)), sign_with(stranger, "vendor"))
    reader = reader_of(path)
    (theirs,) = given(reader).values()
    reader.put(C, opener(graphs(C, theirs + b" and more")))
    reader.extend(path)
    assert given(reader_of(path)) == {C: b"a pickle and more"}
    Keyring().forget("vendor")
    assert given(reader_of(path)) == {}


def test_kernels_alone_rely_on_nobody(path: Path, stranger: Keyring) -> None:
    Keyring().trust(stranger.own()[0].path)
    sign_bundle(unsigned(path, entry(A)), sign_with(stranger, "vendor"))
    reader_of(path, entry(B), graphs(C)).extend(path)
    Keyring().forget("vendor")
    assert given(reader_of(path)) == {C: b"a pickle"}


@pytest.mark.parametrize("keys", [64, 65])
def test_a_signature_on_the_word_of_too_many_is_not_written(keys: int, path: Path) -> None:
    bundler = bundler_with(graphs(C))
    bundler._relied_on |= {bytes([number]) * 32 for number in range(keys)}
    bundler.extend(path)
    assert len(Bundle.open(path).signatures) == (1 if keys == 64 else 0)


def test_a_bundle_that_lacks_nothing_is_left_alone_with_its_signatures(path: Path, stranger: Keyring) -> None:
    Keyring().trust(stranger.own()[0].path)
    sign_bundle(unsigned(path, entry(A), graphs(C)), sign_with(stranger, "vendor"))
    before, inode = path.read_bytes(), path.stat().st_ino
    reader_of(path).extend(path)
    reader_of(path, entry(A)).extend(path)  # Triton's own cache had it, say
    reader_of(path, entry(A, compile_wall_s=7.0), graphs(C)).extend(path)
    assert (path.read_bytes(), path.stat().st_ino) == (before, inode)
    reader_of(path, graphs(C, b"grown")).extend(path)
    assert given(reader_of(path)) == {C: b"grown"}


def test_what_is_not_trusted_stays_where_nothing_is_added(path: Path) -> None:
    unsigned(path, entry(A), graphs(C))
    before = path.read_bytes()
    reader_of(path, entry(A)).extend(path)
    assert path.read_bytes() == before


def test_a_damaged_kernel_is_something_that_is_lacking(path: Path) -> None:
    bundler_with(entry(A), entry(B)).extend(path)
    data, item = bytearray(path.read_bytes()), Bundle.open(path).item(A)
    data[item.offset + 5] ^= 1
    path.write_bytes(data)
    reader_of(path, entry(A)).extend(path)
    assert Bundle.open(path).verify() == []


def test_merging_own_bundles_gives_one_whose_code_is_held_back(path: Path, tmp_path: Path) -> None:
    bundler_with(entry(A), graphs(C)).extend(path)
    merge_bundles(tmp_path / "merged.bundle", path)
    assert keys_in(tmp_path / "merged.bundle") == {A, C}
    assert given(reader_of(tmp_path / "merged.bundle")) == {}


# From the user to the bundler


def test_everybody_who_names_a_bundle_can_trust_it(path: Path) -> None:
    unsigned(path, graphs(C))
    for trust in (False, True):
        shared = client_module.acquire(workers=1, bundle=path, trust_bundle=trust)
        try:
            assert given(shared.bundler) == ({C: b"a pickle"} if trust else {})
        finally:
            client_module.release()
        first = client_module.acquire(workers=1)
        try:
            client_module.acquire(bundle=path, trust_bundle=trust)
            client_module.release()
            assert given(first.bundler) == ({C: b"a pickle"} if trust else {})
        finally:
            client_module.release()


def test_async_compile_can_trust_its_bundle(path: Path, open_compile: Callable[..., Any]) -> None:
    unsigned(path, graphs(C))
    assert given(open_compile(bundle=path).bundler) == {}
    assert given(open_compile(bundle=path, trust_bundle=True).bundler) == {C: b"a pickle"}


def test_orders_say_whether_the_bundle_is_trusted() -> None:
    orders = RunConfig(1, "app.py", bundle="/app.bundle", trust_bundle=True)
    assert RunConfig.decode(orders.encode()) == orders


PROGRAM = """
import logging, sys
logging.basicConfig(level=logging.WARNING)
{enable}
import triton
from headstart.client import client
print([each.key[:2] for each in client._shared.bundler.entries_of("graphs")])
"""
ENABLE = "import headstart; headstart.enable(bundle=sys.argv[1], trust_bundle=True)"


@pytest.mark.triton
@pytest.mark.parametrize("how", ["run", "run --trust", "enable"])
def test_a_program_gets_code_of_an_unsigned_bundle_if_it_is_told_to(
    how: str, path: Path, start_client: Callable[..., Any], tmp_path: Path
) -> None:
    unsigned(path, entry(A), graphs(C))
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(enable=ENABLE if how == "enable" else ""))
    command = [str(program), str(path)]
    if how != "enable":
        options = ["--trust"] if how.endswith("--trust") else []
        command = ["-m", "headstart", "run", "--bundle", str(path), *options, *command]
    starter = "import os, sys; os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    assert start_client(starter, *command).finish() == ("[]\n" if how == "run" else "['cc']\n")
