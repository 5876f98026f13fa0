"""What lies under a key in a remote: whose word counts for it, and that nothing gets past that."""

from __future__ import annotations

import datetime as dt
from hashlib import sha256
from pathlib import Path

import pytest
from test_bundle import A, B, entry

from headstart.artifacts import keyring as keyring_module
from headstart.artifacts import signing
from headstart.artifacts.entry import Entry
from headstart.artifacts.keyring import Keyring
from headstart.errors import DamagedError, FutureVersionError
from headstart.stores.remote import sealing
from headstart.stores.remote.sealing import MAGIC, NotTrusted, Signer, Verifier, keyring_in, seal, unseal

METADATA = {"name": "add_kernel", "shared": 0}


def made(key: str = A, **changes: object) -> bytes:
    return entry(key, **{"metadata": METADATA, **changes}).raw()  # type: ignore[arg-type]


def graphs(key: str = A) -> bytes:
    """An entry that carries code."""
    return made(key, kind="graphs", name="graphs", artifacts={"graphs": b"a pickle"})


@pytest.fixture
def writer(tmp_path: Path) -> Keyring:
    """Of a user on another host, who has one pair."""
    keyring = Keyring(tmp_path / "writer")
    keyring.new("team")
    return keyring


@pytest.fixture
def reader(tmp_path: Path, writer: Keyring) -> Keyring:
    """Of a user who trusts that pair."""
    keyring = Keyring(tmp_path / "reader")
    keyring.trust(writer.folder / "keys" / "team.pub")
    return keyring


@pytest.fixture
def stranger(tmp_path: Path) -> Keyring:
    """Of a user who trusts nobody."""
    return Keyring(tmp_path / "stranger")


# Whose word counts


def test_what_a_trusted_key_has_sealed_is_the_entry(writer: Keyring, reader: Keyring) -> None:
    data = made()
    blob = seal(data, Signer(writer))
    assert (
        unseal(A, blob, Verifier(reader), kind="kernel", request_digest=Entry.from_bytes(data).header.request_digest)
        == data
    )


def test_who_trusts_nobody_is_given_nothing_and_told_whose_it_is(writer: Keyring, stranger: Keyring) -> None:
    with pytest.raises(NotTrusted, match=r"the unknown key .*, which calls itself team"):
        unseal(A, seal(made(), Signer(writer)), Verifier(stranger))


def test_who_shares_the_configuration_folder_needs_no_pair_of_keys(stranger: Keyring) -> None:
    signer = Signer(stranger)
    blob = seal(made(), signer)
    assert "you have no key to sign with" in signer.problem
    assert unseal(A, blob, Verifier(Keyring(stranger.folder))) == made()


def test_an_entry_without_a_signature_needs_a_reader_who_asks_for_none(reader: Keyring) -> None:
    blob = seal(made(), None)
    with pytest.raises(NotTrusted, match="not signed"):
        unseal(A, blob, Verifier(reader))
    assert unseal(A, blob, Verifier(reader), signed=False) == made()
    assert unseal(A, blob, Verifier(None), signed=False) == made()


def test_what_carries_code_needs_a_signature_whoever_is_trusted(writer: Keyring, reader: Keyring) -> None:
    with pytest.raises(NotTrusted):
        unseal(A, seal(graphs(), None), Verifier(reader), signed=False)
    assert unseal(A, seal(graphs(), Signer(writer)), Verifier(reader), signed=False) == graphs()


def test_who_can_have_no_keys_signs_nothing_and_trusts_nobody(writer: Keyring) -> None:
    assert keyring_in(b"") is None
    assert unseal(A, seal(made(), Signer(None)), Verifier(None), signed=False) == made()
    with pytest.raises(NotTrusted, match="can have no keys"):
        unseal(A, seal(made(), Signer(writer)), Verifier(None))


def test_a_key_whose_last_day_is_over_counts_no_longer(
    writer: Keyring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Keyring(tmp_path / "for a day")
    reader.trust(writer.folder / "keys" / "team.pub", until=dt.date(2030, 1, 1))
    blob = seal(made(), Signer(writer))
    monkeypatch.setattr(keyring_module, "today", lambda: dt.date(2030, 1, 1))
    assert unseal(A, blob, Verifier(reader)) == made()
    monkeypatch.setattr(keyring_module, "today", lambda: dt.date(2030, 1, 2))
    with pytest.raises(NotTrusted, match="expired"):
        unseal(A, blob, Verifier(reader))


def test_a_key_that_is_forgotten_counts_no_longer_and_one_that_is_trusted_counts_soon(
    writer: Keyring, reader: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = seal(made(), Signer(writer))
    verifier = Verifier(reader)
    assert unseal(A, blob, verifier) == made()
    reader.forget("team")
    assert unseal(A, blob, verifier) == made()  # the files were read a moment ago
    monkeypatch.setattr(sealing, "KEYS_AGE", -1.0)
    with pytest.raises(NotTrusted):
        unseal(A, blob, verifier)
    reader.trust(writer.folder / "keys" / "team.pub")
    assert unseal(A, blob, verifier) == made()


def test_of_several_pairs_the_one_that_is_named_signs(writer: Keyring, reader: Keyring) -> None:
    writer.new("private")
    unnamed = Signer(writer)
    with pytest.raises(NotTrusted):
        unseal(A, seal(made(), unnamed), Verifier(reader))
    assert "HEADSTART_REMOTE_KEY names none" in unnamed.problem
    named = Signer(writer, "team")
    assert unseal(A, seal(made(), named), Verifier(reader)) == made()
    assert named.problem == ""
    wrong = Signer(writer, "nobody's")
    seal(made(), wrong)
    assert "no key nobody's of yours" in wrong.problem or "is no name for a key" in wrong.problem


def test_a_signature_over_a_bundle_is_none_over_an_entry(writer: Keyring, reader: Keyring) -> None:
    data = made()
    over_bundle = signing.sign(writer.secret("team"), "team", sealing.VERSION, sha256(data).digest())
    signatures = signing.encode([over_bundle])
    blob = MAGIC + sealing.VERSION.to_bytes(2, "little") + len(signatures).to_bytes(4, "little") + signatures + data
    with pytest.raises(NotTrusted, match="not over what it holds"):
        unseal(A, blob, Verifier(reader))


# What is no entry of that key


def test_an_entry_that_lies_under_another_key_is_damage(writer: Keyring, reader: Keyring) -> None:
    with pytest.raises(DamagedError, match="another entry lies under"):
        unseal(B, seal(made(A), Signer(writer)), Verifier(reader))


def test_nothing_that_an_unsigned_entry_says_of_itself_is_repeated() -> None:
    with pytest.raises(DamagedError) as caught:
        unseal(B, seal(made(A, name="\x1b[2J\nall is well" + "x" * 9999), None), Verifier(None))
    assert "well" not in caught.value.reason
    assert caught.value.reason.isprintable()
    assert len(caught.value.reason) < 100


def test_an_entry_of_another_kind_or_request_is_damage(writer: Keyring, reader: Keyring) -> None:
    blob = seal(made(A), Signer(writer))
    for other in ({"kind": "recipe"}, {"request_digest": "00" * 32}):
        with pytest.raises(DamagedError, match="another entry lies under"):
            unseal(A, blob, Verifier(reader), **other)  # type: ignore[arg-type]


def test_no_byte_of_an_entry_can_be_changed_and_none_left_out(writer: Keyring, reader: Keyring) -> None:
    data = made(artifacts={"cubin": b"code"})
    blob = seal(data, Signer(writer))
    verifier = Verifier(reader)
    assert unseal(A, blob, verifier) == data
    for place in range(len(blob)):
        altered = bytearray(blob)
        altered[place] ^= 0x40
        try:
            # What a signer calls itself is not signed, and of two signatures one is enough.
            assert unseal(A, bytes(altered), verifier) == data
            assert place < len(blob) - len(data)
        except (DamagedError, NotTrusted):
            pass
        with pytest.raises(DamagedError):
            unseal(A, blob[:place], verifier)
    with pytest.raises(DamagedError):
        unseal(A, blob + b"\0", verifier)


def test_what_a_newer_headstart_wrote_is_none_of_ours_and_no_damage(reader: Keyring) -> None:
    later = MAGIC + (sealing.VERSION + 1).to_bytes(2, "little") + b"whatever"
    with pytest.raises(FutureVersionError):
        unseal(A, later, Verifier(reader))


def test_a_blob_that_promises_a_gibibyte_is_damage(reader: Keyring) -> None:
    huge = MAGIC + sealing.VERSION.to_bytes(2, "little") + (1 << 30).to_bytes(4, "little") + made()
    with pytest.raises(DamagedError, match="truncated or altered"):
        unseal(A, huge, Verifier(reader))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"metadata": {"name": "k", "shared": 1 << 40}}, "shared memory"),
        ({"metadata": {"name": "k", "shared": "much"}}, "shared memory"),
        ({"metadata": {"shared": 0}}, "names no kernel"),
        ({"compile_wall_s": float("nan")}, "no time that there is"),
        ({"artifacts": {"../../escape": b""}}, "no name of an artifact"),
    ],
)
def test_what_would_be_read_of_an_entry_as_if_a_worker_had_written_it_is_looked_at(
    changes: dict[str, object], why: str
) -> None:
    with pytest.raises(DamagedError, match=why):
        unseal(A, seal(made(**changes), None), Verifier(None), signed=False)
